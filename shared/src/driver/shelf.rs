//! States kept over restarts: a folder, or a browser's database.
//!
//! What a [`Peer`](crate::peer::Peer) keeps is written here too, one state after the other, so that a volunteer
//! whose process dies brings it back. A shelf that fails costs nothing but that: it is a warning, never an end.
//!
//! Invariant: the last state of a stage is not removed before another one of that stage was written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;

use bytes::Bytes;

use crate::transport::MaybeSend;
use crate::units::{Digest, StageId};
use crate::wire::signal::Held;

/// Keeps states of one volunteer over its restarts. Writes are whole or not at all.
pub trait Shelf: Clone + MaybeSend + 'static {
    /// Names of what is kept of a run, whose configuration has that hash. Makes room by forgetting other runs.
    fn open(&self, run: Digest) -> impl Future<Output = Vec<Held>> + MaybeSend;

    /// A state, as it was written; `None` if it cannot be read.
    fn get(&self, run: Digest, held: Held) -> impl Future<Output = Option<Bytes>> + MaybeSend;

    /// Writes a state: when this returns, it survives the process.
    ///
    /// # Errors
    /// Why it was not written, in words: the disk is full, or the shelf has its size.
    fn put(
        &self,
        run: Digest,
        held: Held,
        blob: Bytes,
    ) -> impl Future<Output = Result<(), String>> + MaybeSend;

    /// Removes a state; one that is not there is removed already.
    fn remove(&self, run: Digest, held: Held) -> impl Future<Output = ()> + MaybeSend;
}

/// No shelf: nothing survives.
#[derive(Clone, Copy, Debug)]
pub struct NoShelf;

impl Shelf for NoShelf {
    async fn open(&self, _run: Digest) -> Vec<Held> {
        Vec::new()
    }

    async fn get(&self, _run: Digest, _held: Held) -> Option<Bytes> {
        None
    }

    async fn put(&self, _run: Digest, _held: Held, _blob: Bytes) -> Result<(), String> {
        Ok(())
    }

    async fn remove(&self, _run: Digest, _held: Held) {}
}

/// Reads what is kept of a run: of states that are what their names say, the newest that fit into `room_bytes`.
/// Removes what is damaged.
pub(super) async fn load<S: Shelf>(shelf: S, run: Digest, room_bytes: u64) -> Vec<(Held, Bytes)> {
    let mut names = shelf.open(run).await;
    names.sort_unstable_by_key(|held| std::cmp::Reverse((held.round, held.stage)));
    let mut states = Vec::new();
    let mut bytes = 0;
    for held in names {
        let Some(blob) = shelf.get(run, held).await else {
            continue;
        };
        if Digest::of(&blob) != held.blob {
            shelf.remove(run, held).await;
            continue;
        }
        bytes += blob.len() as u64;
        if bytes > room_bytes {
            break;
        }
        states.push((held, blob));
    }
    states
}

/// A change of the shelf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Write it.
    Put(Held, Bytes),
    /// Remove it.
    Remove(Held),
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    /// It is written.
    Put(Held),
    /// It could not be written: why.
    Failed(Held, String),
    /// It is gone.
    Removed,
}

/// Carries out one change.
pub(super) async fn change<S: Shelf>(shelf: S, run: Digest, change: Change) -> Changed {
    match change {
        Change::Put(held, blob) => match shelf.put(run, held, blob).await {
            Ok(()) => Changed::Put(held),
            Err(reason) => Changed::Failed(held, reason),
        },
        Change::Remove(held) => {
            shelf.remove(run, held).await;
            Changed::Removed
        }
    }
}

/// Changes that are due, one at a time, in an order that never leaves a stage without a state.
///
/// Bounded by what the peer keeps: a state that is dropped before it was written is not written.
#[derive(Debug, Default)]
pub(super) struct Queue {
    due: VecDeque<Change>,
    /// What is written, by stage: of one round there may be a seat's own result beside a merged one.
    written: BTreeMap<StageId, BTreeSet<Held>>,
    /// What is to be removed once its stage has another state.
    outdated: Vec<Held>,
    is_busy: bool,
    /// What is being written.
    writing: Option<Held>,
    /// Whether the last write failed: told once, until one succeeds.
    failing: bool,
}

impl Queue {
    /// These are on the shelf already.
    pub(super) fn found(&mut self, held: &Held) {
        self.written.entry(held.stage).or_default().insert(*held);
    }

    /// The peer keeps this.
    pub(super) fn put(&mut self, held: Held, blob: Bytes) {
        self.due.push_back(Change::Put(held, blob));
    }

    /// The peer keeps this no more.
    pub(super) fn remove(&mut self, held: Held) {
        self.due
            .retain(|change| !matches!(change, Change::Put(due, _) if *due == held));
        let written = self.written.get(&held.stage);
        let is_there = written.is_some_and(|states| states.contains(&held));
        if is_there || self.writing == Some(held) {
            self.outdated.push(held);
        }
    }

    /// The next change, unless one is under way.
    pub(super) fn next(&mut self) -> Option<Change> {
        if self.is_busy {
            return None;
        }
        let change = self.removal().or_else(|| self.due.pop_front())?;
        self.is_busy = true;
        self.writing = match &change {
            Change::Put(held, _) => Some(*held),
            Change::Remove(_) => None,
        };
        Some(change)
    }

    /// An outdated state whose stage has another one, which is not outdated.
    fn removal(&mut self) -> Option<Change> {
        let index = self.outdated.iter().position(|old| {
            let written = self.written.get(&old.stage);
            written.is_some_and(|states| {
                let mut others = states.iter().filter(|other| *other != old);
                others.any(|other| !self.outdated.contains(other))
            })
        })?;
        let held = self.outdated.swap_remove(index);
        if let Some(states) = self.written.get_mut(&held.stage) {
            states.remove(&held);
        }
        Some(Change::Remove(held))
    }

    /// A change is over. Returns why nothing is kept, the first time that a write fails.
    pub(super) fn changed(&mut self, changed: Changed) -> Option<String> {
        self.is_busy = false;
        self.writing = None;
        match changed {
            Changed::Put(held) => {
                self.found(&held);
                self.failing = false;
                None
            }
            Changed::Failed(held, reason) => {
                self.outdated.retain(|outdated| *outdated != held);
                let is_news = !std::mem::replace(&mut self.failing, true);
                is_news.then_some(reason)
            }
            Changed::Removed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Round;

    fn held(round: u32, stage: u16) -> Held {
        let blob = Digest::of(&[round.to_le_bytes()[0], stage.to_le_bytes()[0]]);
        Held {
            round: Round(round),
            stage: StageId(stage),
            agreed: Digest::default(),
            blob,
        }
    }

    fn put(round: u32, stage: u16) -> Change {
        Change::Put(held(round, stage), Bytes::new())
    }

    #[test]
    fn an_older_state_goes_once_the_newer_one_is_written() {
        let mut queue = Queue::default();
        queue.put(held(1, 0), Bytes::new());
        assert_eq!(queue.next(), Some(put(1, 0)));
        assert_eq!(queue.next(), None, "one at a time");
        queue.changed(Changed::Put(held(1, 0)));
        queue.put(held(2, 0), Bytes::new());
        queue.remove(held(1, 0));
        assert_eq!(queue.next(), Some(put(2, 0)));
        queue.changed(Changed::Put(held(2, 0)));
        assert_eq!(queue.next(), Some(Change::Remove(held(1, 0))));
    }

    #[test]
    fn a_full_disk_keeps_the_older_state_and_is_told_once() {
        let mut queue = Queue::default();
        queue.found(&held(1, 0));
        let mut told = 0;
        for round in 2..5 {
            queue.put(held(round, 0), Bytes::new());
            queue.remove(held(round - 1, 0));
            assert_eq!(queue.next(), Some(put(round, 0)));
            let failed = Changed::Failed(held(round, 0), "full".to_owned());
            told += u32::from(queue.changed(failed).is_some());
            assert_eq!(queue.next(), None, "the only state of the stage stays");
        }
        assert_eq!(told, 1);
        queue.put(held(5, 0), Bytes::new());
        assert_eq!(queue.next(), Some(put(5, 0)));
        queue.changed(Changed::Put(held(5, 0)));
        assert_eq!(queue.next(), Some(Change::Remove(held(1, 0))));
    }

    #[test]
    fn what_is_dropped_before_it_was_written_is_never_written() {
        let mut queue = Queue::default();
        queue.put(held(1, 0), Bytes::new());
        queue.put(held(2, 0), Bytes::new());
        queue.remove(held(1, 0));
        assert_eq!(queue.next(), Some(put(2, 0)));
    }

    #[test]
    fn of_two_states_of_one_round_either_can_go() {
        let (own, merged) = (
            held(1, 0),
            Held {
                blob: Digest::of(b"merged"),
                ..held(1, 0)
            },
        );
        for gone in [own, merged] {
            let mut queue = Queue::default();
            queue.found(&own);
            queue.found(&merged);
            queue.remove(gone);
            assert_eq!(queue.next(), Some(Change::Remove(gone)));
        }
    }
}
