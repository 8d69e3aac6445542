//! Getting one stage's state from whoever has it: peers piece by piece, or the host's store in one request.
//!
//! Sources are tried in the order given. Pieces are asked for a few ahead and may come in any order. Nothing is
//! believed before the whole blob has the hash that the host named.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::limits::{FETCH_SILENCE_MAX, STATE_BYTES_MAX, STATE_CHUNK_BYTES, STATE_CHUNKS_AHEAD};
use crate::units::{Digest, PeerId, Time};
use crate::wire::signal::{Fetch, Held, Source};

/// What a transfer wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchOutput {
    /// Open a link to this peer; say [`Transfer::handle_link`] when it is up.
    Link(PeerId),
    /// Ask this peer for the piece at `offset`.
    Request {
        /// Who has it.
        peer: PeerId,
        /// Where the piece begins.
        offset: u64,
    },
    /// Get it from the host's store.
    Download(String),
    /// The blob is here, and its hash is right.
    Complete(Bytes),
    /// No source had it.
    Exhausted,
}

/// One stage's state on its way here.
#[derive(Clone, Debug)]
pub struct Transfer {
    held: Held,
    sources: VecDeque<Source>,
    from: Option<PeerId>,
    linked: bool,
    /// What has arrived, by offset: memory is taken by bytes received, never by what a peer announces.
    pieces: BTreeMap<u64, Bytes>,
    /// Length of the blob, as the source's first piece says.
    total: u64,
    next_offset: u64,
    deadline: Option<Time>,
    outputs: VecDeque<FetchOutput>,
}

impl Transfer {
    /// Begins with the first source of `fetch`.
    pub fn new(now: Time, fetch: Fetch) -> Self {
        let mut transfer = Self {
            held: fetch.held,
            sources: fetch.sources.into(),
            from: None,
            linked: false,
            pieces: BTreeMap::new(),
            total: 0,
            next_offset: 0,
            deadline: None,
            outputs: VecDeque::new(),
        };
        transfer.next_source(now);
        transfer
    }

    /// What is being fetched.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Whom it is being fetched from now.
    pub fn source(&self) -> Option<PeerId> {
        self.from
    }

    /// Whom it is or may be fetched from.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        let later = self.sources.iter().filter_map(|source| match source {
            Source::Peer { peer, .. } => Some(*peer),
            Source::Seed | Source::Store { .. } => None,
        });
        self.from.into_iter().chain(later)
    }

    fn next_source(&mut self, now: Time) {
        self.pieces.clear();
        self.total = 0;
        self.next_offset = 0;
        self.linked = false;
        self.from = None;
        self.deadline = None;
        match self.sources.pop_front() {
            Some(Source::Peer { peer, blob }) => {
                self.held.blob = blob;
                self.from = Some(peer);
                self.deadline = Some(now + FETCH_SILENCE_MAX);
                self.outputs.push_back(FetchOutput::Link(peer));
            }
            Some(Source::Store { path, blob }) => {
                self.held.blob = blob;
                self.outputs.push_back(FetchOutput::Download(path));
            }
            // What follows from the seed is never transferred: the seat derives it.
            Some(Source::Seed) => self.next_source(now),
            None => self.outputs.push_back(FetchOutput::Exhausted),
        }
    }

    /// The link to `peer` is up.
    pub fn handle_link(&mut self, now: Time, peer: PeerId) {
        if self.from == Some(peer) && !self.linked {
            self.linked = true;
            self.deadline = Some(now + FETCH_SILENCE_MAX);
            self.request(peer, 0);
        }
    }

    /// The link to `peer` is lost, or could not be opened.
    pub fn handle_lost(&mut self, now: Time, peer: PeerId) {
        if self.from == Some(peer) {
            self.next_source(now);
        }
    }

    fn request(&mut self, peer: PeerId, offset: u64) {
        self.next_offset = offset + STATE_CHUNK_BYTES as u64;
        self.outputs
            .push_back(FetchOutput::Request { peer, offset });
    }

    /// A piece arrived. `total` is 0 when the peer does not have the state any more.
    pub fn handle_piece(
        &mut self,
        now: Time,
        peer: PeerId,
        offset: u64,
        total: u64,
        payload: &[u8],
    ) {
        if self.from != Some(peer) {
            return;
        }
        let chunk = STATE_CHUNK_BYTES as u64;
        let fits = total > 0
            && total <= STATE_BYTES_MAX
            && (self.total == 0 || total == self.total)
            && offset.is_multiple_of(chunk)
            && offset < total
            && payload.len() as u64 == (total - offset).min(chunk);
        if !fits {
            return self.next_source(now);
        }
        self.total = total;
        self.pieces.insert(offset, Bytes::copy_from_slice(payload));
        self.deadline = Some(now + FETCH_SILENCE_MAX);
        self.ask_ahead(peer, total);
        if self.pieces.len() as u64 * chunk >= total {
            self.finish(now);
        }
    }

    fn ask_ahead(&mut self, peer: PeerId, total: u64) {
        let chunk = STATE_CHUNK_BYTES as u64;
        let horizon = (self.pieces.len() as u64 + u64::from(STATE_CHUNKS_AHEAD)) * chunk;
        while self.next_offset < total.min(horizon) {
            self.request(peer, self.next_offset);
        }
    }

    fn finish(&mut self, now: Time) {
        let pieces: Vec<Bytes> = std::mem::take(&mut self.pieces).into_values().collect();
        self.accept(now, pieces.concat().into());
    }

    fn accept(&mut self, now: Time, blob: Bytes) {
        if Digest::of(&blob) == self.held.blob {
            self.deadline = None;
            self.from = None;
            self.outputs.push_back(FetchOutput::Complete(blob));
        } else {
            self.next_source(now);
        }
    }

    /// The store answered; `None` when it could not.
    pub fn handle_download(&mut self, now: Time, blob: Option<Bytes>) {
        match blob {
            Some(blob) => self.accept(now, blob),
            None => self.next_source(now),
        }
    }

    /// When to call [`Transfer::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        self.deadline
    }

    /// Time has come: a silent source is given up.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.next_source(now);
        }
    }

    /// What to do next; `None` when there is nothing more.
    pub fn poll_output(&mut self) -> Option<FetchOutput> {
        self.outputs.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Round, StageId};

    fn peer(peer: u64, blob: &[u8]) -> Source {
        Source::Peer {
            peer: PeerId(peer),
            blob: Digest::of(blob),
        }
    }

    fn fetch(blob: &[u8], sources: Vec<Source>) -> Transfer {
        let held = Held {
            round: Round(3),
            stage: StageId(1),
            agreed: Digest::default(),
            blob: Digest::of(blob),
        };
        Transfer::new(Time::ZERO, Fetch { held, sources })
    }

    /// Answers every request from `blob`, the newest request first; returns the last output.
    fn serve(transfer: &mut Transfer, blob: &[u8]) -> Option<FetchOutput> {
        let mut requests = Vec::new();
        loop {
            while let Some(output) = transfer.poll_output() {
                match output {
                    FetchOutput::Link(peer) => transfer.handle_link(Time::ZERO, peer),
                    FetchOutput::Request { peer, offset } => requests.push((peer, offset)),
                    last @ (FetchOutput::Download(_)
                    | FetchOutput::Complete(_)
                    | FetchOutput::Exhausted) => return Some(last),
                }
            }
            let (peer, offset) = requests.pop()?;
            let first = usize::try_from(offset).unwrap();
            let end = blob.len().min(first + STATE_CHUNK_BYTES);
            let total = blob.len() as u64;
            transfer.handle_piece(Time::ZERO, peer, offset, total, &blob[first..end]);
        }
    }

    #[test]
    fn pieces_in_any_order_make_the_blob() {
        let blob: Vec<u8> = (0..STATE_CHUNK_BYTES * 20 + 17)
            .map(|i| i.to_le_bytes()[0])
            .collect();
        let mut transfer = fetch(&blob, vec![peer(7, &blob)]);
        assert_eq!(
            serve(&mut transfer, &blob),
            Some(FetchOutput::Complete(Bytes::from(blob)))
        );
    }

    #[test]
    fn a_source_with_another_blob_is_not_believed() {
        let mut transfer = fetch(
            b"right",
            vec![
                peer(7, b"right"),
                Source::Store {
                    path: "blobs/x".to_owned(),
                    blob: Digest::of(b"right"),
                },
            ],
        );
        assert_eq!(
            serve(&mut transfer, b"wrong"),
            Some(FetchOutput::Download("blobs/x".to_owned()))
        );
        transfer.handle_download(Time::ZERO, None);
        assert_eq!(transfer.poll_output(), Some(FetchOutput::Exhausted));
    }

    #[test]
    fn a_silent_source_is_left_for_the_next() {
        let mut transfer = fetch(b"x", vec![peer(7, b"x"), peer(8, b"x")]);
        assert_eq!(transfer.poll_output(), Some(FetchOutput::Link(PeerId(7))));
        transfer.handle_timeout(transfer.poll_timeout().unwrap());
        assert_eq!(transfer.poll_output(), Some(FetchOutput::Link(PeerId(8))));
    }
}
