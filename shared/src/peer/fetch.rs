//! Getting one stage's state from whoever has it: peers piece by piece, or the host's store in one request.
//!
//! Sources are tried in the order given; peers that hold the same blob, a few at a time, serve it together: each has its own
//! pieces on the way, and who falls silent or leaves loses them to the others. What has arrived stays as long as
//! the same blob is asked for. Pieces may come in any order.
//!
//! Nothing is believed before the whole blob has the hash that the host named. A wrong one, or another length, of several
//! holders names nobody: then each of them is asked alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::limits::{
    FETCH_SILENCE_MAX, STATE_BYTES_MAX, STATE_CHUNK_BYTES, STATE_CHUNKS_AHEAD, STATE_HOLDERS_MAX,
};
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

/// Bytes of a piece, but for the last.
const CHUNK: u64 = STATE_CHUNK_BYTES as u64;

/// A peer that pieces are asked of.
#[derive(Clone, Debug)]
struct Holder {
    linked: bool,
    /// Where the pieces begin that it was asked for and has not sent.
    asked: BTreeSet<u64>,
    /// When it will have been silent for too long, while a link or a piece is waited for.
    deadline: Option<Time>,
}

/// One stage's state on its way here.
#[derive(Clone, Debug)]
pub struct Transfer {
    held: Held,
    sources: VecDeque<Source>,
    holders: BTreeMap<PeerId, Holder>,
    /// Whether several holders together gave a wrong blob: each is asked alone now.
    is_alone: bool,
    /// What has arrived, by offset, and of whom: memory is taken by bytes received, never by what a peer announces.
    pieces: BTreeMap<u64, (PeerId, Bytes)>,
    /// Length of the blob, as the first piece says.
    total: u64,
    /// Where the pieces begin that nobody was asked for,
    next_offset: u64,
    /// ... and those of holders that were given up.
    given_up: BTreeSet<u64>,
    outputs: VecDeque<FetchOutput>,
}

impl Transfer {
    /// Begins with the first source of `fetch`.
    pub fn new(now: Time, fetch: Fetch) -> Self {
        let mut transfer = Self {
            held: fetch.held,
            sources: fetch.sources.into(),
            holders: BTreeMap::new(),
            is_alone: false,
            pieces: BTreeMap::new(),
            total: 0,
            next_offset: 0,
            given_up: BTreeSet::new(),
            outputs: VecDeque::new(),
        };
        transfer.next_source(now);
        transfer
    }

    /// What is being fetched: the blob of the source that is asked now.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Whether it is being fetched from `peer` now.
    pub fn is_from(&self, peer: PeerId) -> bool {
        self.holders.contains_key(&peer)
    }

    /// Whom it is or may be fetched from.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        let later = self.sources.iter().filter_map(|source| match source {
            Source::Peer { peer, .. } => Some(*peer),
            Source::Seed | Source::Store { .. } => None,
        });
        self.holders.keys().copied().chain(later)
    }

    fn next_source(&mut self, now: Time) {
        match self.sources.pop_front() {
            Some(Source::Peer { peer, blob }) => {
                self.want(blob);
                self.add_holder(now, peer);
                self.add_holders(now);
            }
            Some(Source::Store { path, blob }) => {
                self.want(blob);
                self.outputs.push_back(FetchOutput::Download(path));
            }
            // What follows from the seed is never transferred: the seat derives it.
            Some(Source::Seed) => self.next_source(now),
            None => self.outputs.push_back(FetchOutput::Exhausted),
        }
    }

    /// From now on that blob is asked for: pieces of another one are of no use, nor are those of somebody else where
    /// each must answer for itself.
    fn want(&mut self, blob: Digest) {
        if self.is_alone || self.held.blob != blob {
            self.held.blob = blob;
            self.forget_pieces();
        }
    }

    fn forget_pieces(&mut self) {
        self.pieces.clear();
        self.given_up.clear();
        self.total = 0;
        self.next_offset = 0;
    }

    fn add_holder(&mut self, now: Time, peer: PeerId) {
        let holder = Holder {
            linked: false,
            asked: BTreeSet::new(),
            deadline: Some(now + FETCH_SILENCE_MAX),
        };
        self.holders.insert(peer, holder);
        self.outputs.push_back(FetchOutput::Link(peer));
    }

    /// Others that hold the same blob help, as many as may.
    fn add_holders(&mut self, now: Time) {
        let wanted = self.held.blob;
        let holds =
            |source: &Source| matches!(source, Source::Peer { blob, .. } if *blob == wanted);
        while !self.is_alone && self.holders.len() < STATE_HOLDERS_MAX {
            let at = self.sources.iter().position(holds);
            let Some(Source::Peer { peer, .. }) = at.and_then(|at| self.sources.remove(at)) else {
                return;
            };
            self.add_holder(now, peer);
        }
    }

    /// The link to `peer` is up.
    pub fn handle_link(&mut self, now: Time, peer: PeerId) {
        if let Some(holder) = self.holders.get_mut(&peer).filter(|it| !it.linked) {
            holder.linked = true;
            holder.deadline = None;
            self.ask_ahead(now);
        }
    }

    /// The link to `peer` is lost, or could not be opened: its pieces are asked of the others.
    pub fn handle_lost(&mut self, now: Time, peer: PeerId) {
        let Some(holder) = self.holders.remove(&peer) else {
            return;
        };
        self.given_up.extend(holder.asked);
        self.add_holders(now);
        if self.holders.is_empty() {
            self.next_source(now);
        } else {
            self.ask_ahead(now);
        }
    }

    /// Asks for as many pieces as may be on their way, of everybody in turn.
    fn ask_ahead(&mut self, now: Time) {
        while let Some(peer) = self.idlest()
            && let Some(offset) = self.unasked()
        {
            if let Some(holder) = self.holders.get_mut(&peer) {
                holder.asked.insert(offset);
                holder.deadline.get_or_insert(now + FETCH_SILENCE_MAX);
            }
            self.outputs
                .push_back(FetchOutput::Request { peer, offset });
        }
    }

    /// Who has the fewest pieces on their way, and may have more.
    fn idlest(&self) -> Option<PeerId> {
        let may_ask =
            |holder: &Holder| holder.linked && holder.asked.len() < STATE_CHUNKS_AHEAD as usize;
        let holders = self.holders.iter().filter(|(_, holder)| may_ask(holder));
        let idlest = holders.min_by_key(|(_, holder)| holder.asked.len())?;
        Some(*idlest.0)
    }

    /// A piece that nobody is asked for. Before the length is known there is one.
    fn unasked(&mut self) -> Option<u64> {
        if let Some(offset) = self.given_up.pop_first() {
            return Some(offset);
        }
        let offset = self.next_offset;
        (offset < self.total.max(1)).then(|| {
            self.next_offset += CHUNK;
            offset
        })
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
        let Some(holder) = self.holders.get_mut(&peer) else {
            return;
        };
        let fits = total > 0
            && total <= STATE_BYTES_MAX
            && offset.is_multiple_of(CHUNK)
            && offset < total
            && payload.len() as u64 == (total - offset).min(CHUNK);
        if !fits {
            return self.handle_lost(now, peer);
        }
        if !holder.asked.remove(&offset) {
            return;
        }
        if self.total != 0 && self.total != total {
            if self.holders.len() == 1 {
                return self.handle_lost(now, peer);
            }
            // One of them lies about the length; which one shows once each is asked alone.
            let again = std::mem::take(&mut self.holders).into_keys().collect();
            return self.ask_alone(now, again);
        }
        holder.deadline = (!holder.asked.is_empty()).then_some(now + FETCH_SILENCE_MAX);
        self.total = total;
        let piece = (peer, Bytes::copy_from_slice(payload));
        self.pieces.insert(offset, piece);
        self.ask_ahead(now);
        if self.pieces.len() as u64 * CHUNK >= total {
            self.finish(now);
        }
    }

    fn finish(&mut self, now: Time) {
        let pieces = std::mem::take(&mut self.pieces);
        let givers: BTreeSet<PeerId> = pieces.values().map(|(peer, _)| *peer).collect();
        let pieces: Vec<Bytes> = pieces.into_values().map(|(_, piece)| piece).collect();
        let blob = Bytes::from(pieces.concat());
        let holders = std::mem::take(&mut self.holders);
        if Digest::of(&blob) == self.held.blob {
            return self.outputs.push_back(FetchOutput::Complete(blob));
        }
        let mut again: BTreeSet<PeerId> = holders.into_keys().collect();
        // One alone is to blame; of several any may be.
        if givers.len() > 1 {
            again.extend(givers);
            return self.ask_alone(now, again);
        }
        again.retain(|peer| !givers.contains(peer));
        self.ask_again(now, again);
    }

    fn ask_alone(&mut self, now: Time, again: BTreeSet<PeerId>) {
        self.is_alone = true;
        self.ask_again(now, again);
    }

    /// What arrived is no good: these peers are asked for all of it, before other sources.
    fn ask_again(&mut self, now: Time, again: BTreeSet<PeerId>) {
        self.forget_pieces();
        let blob = self.held.blob;
        for peer in again.into_iter().rev() {
            self.sources.push_front(Source::Peer { peer, blob });
        }
        self.next_source(now);
    }

    /// The store answered; `None` when it could not.
    pub fn handle_download(&mut self, now: Time, blob: Option<Bytes>) {
        match blob.filter(|blob| Digest::of(blob) == self.held.blob) {
            Some(blob) => self.outputs.push_back(FetchOutput::Complete(blob)),
            None => self.next_source(now),
        }
    }

    /// When to call [`Transfer::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        self.holders
            .values()
            .filter_map(|holder| holder.deadline)
            .min()
    }

    /// Time has come: who has been silent for too long is given up.
    pub fn handle_timeout(&mut self, now: Time) {
        let is_silent = |holder: &Holder| holder.deadline.is_some_and(|deadline| now >= deadline);
        let silent = self.holders.iter().filter(|(_, it)| is_silent(it));
        let silent: Vec<PeerId> = silent.map(|(peer, _)| *peer).collect();
        for peer in silent {
            self.handle_lost(now, peer);
        }
    }

    /// What to do next; `None` when there is nothing more.
    pub fn poll_output(&mut self) -> Option<FetchOutput> {
        self.outputs.pop_front()
    }
}

#[cfg(test)]
mod tests;
