//! The states of stages that a volunteer keeps: its own theta of the newest rounds, and copies for others.
//!
//! A blob is named by round and stage and checked against its hash before it gets here. Replicas of a stage agree on its
//! weights alone, so what is looked for is what has the agreed hash, and what is given on bears its own. Nothing is
//! dropped until the host says that a later round is safe, except results of a round that was never committed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::limits::STATE_CHUNK_BYTES;
use crate::units::{Digest, Round, StageId};
use crate::wire::signal::Held;

/// States of stages, by round and stage.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    states: BTreeMap<(Round, StageId), (Held, Bytes)>,
    /// What of them is known to be on the shelf.
    shelved: BTreeSet<Held>,
    /// Whether anything changed since the shelf was told.
    is_changed: bool,
}

impl Kept {
    /// Keeps `blob`, whose hash is `held.blob`.
    pub fn insert(&mut self, held: Held, blob: Bytes) {
        self.states.insert((held.round, held.stage), (held, blob));
        self.is_changed = true;
    }

    /// The state of that round and stage.
    pub fn at(&self, round: Round, stage: StageId) -> Option<&(Held, Bytes)> {
        self.states.get(&(round, stage))
    }

    /// The state of that round and stage, if it is what the run agreed on under that name. Its blob is our own: others
    /// carry other moments.
    pub fn agreeing(&self, held: &Held) -> Option<&(Held, Bytes)> {
        let kept = self.at(held.round, held.stage)?;
        (kept.0.agreed == held.agreed).then_some(kept)
    }

    /// Our own blob of that name.
    pub fn get(&self, held: &Held) -> Option<&Bytes> {
        let (kept, blob) = self.at(held.round, held.stage)?;
        (kept.blob == held.blob).then_some(blob)
    }

    /// Keeps that state no more.
    pub fn remove(&mut self, held: &Held) {
        self.states.retain(|_, (kept, _)| kept != held);
        self.is_changed = true;
    }

    /// What is kept, in order of rounds.
    pub fn list(&self) -> Vec<Held> {
        self.states.values().map(|(held, _)| *held).collect()
    }

    /// A piece of a state for another volunteer: the bytes from `offset` on, and the whole length.
    pub fn piece(&self, round: Round, stage: StageId, offset: u64) -> Option<(Bytes, u64)> {
        let (_, blob) = self.states.get(&(round, stage))?;
        let first = usize::try_from(offset)
            .ok()
            .filter(|first| *first < blob.len())?;
        let end = blob.len().min(first + STATE_CHUNK_BYTES);
        Some((blob.slice(first..end), blob.len() as u64))
    }

    /// Drops everything that `keep` does not want.
    pub fn retain(&mut self, mut keep: impl FnMut(Round, StageId) -> bool) {
        self.states.retain(|(round, stage), _| keep(*round, *stage));
        self.is_changed = true;
    }

    /// What was added and what was dropped since this was asked last, for whoever keeps it over a restart.
    pub fn changes(&mut self) -> (Vec<(Held, Bytes)>, Vec<Held>) {
        if !std::mem::take(&mut self.is_changed) {
            return (Vec::new(), Vec::new());
        }
        let now: BTreeSet<Held> = self.states.values().map(|(held, _)| *held).collect();
        let added = self
            .states
            .values()
            .filter(|(held, _)| !self.shelved.contains(held));
        let added = added.cloned().collect();
        let dropped = self.shelved.difference(&now).copied().collect();
        self.shelved = now;
        (added, dropped)
    }

    /// These are on the shelf already, whatever of them is kept.
    pub fn found(&mut self, on_shelf: impl IntoIterator<Item = Held>) {
        self.shelved.extend(on_shelf);
    }

    /// Takes the results of a committed round as what they are: those that the run did not agree on are dropped.
    pub fn commit(&mut self, round: Round, stages: &[Held]) {
        let committed: BTreeMap<StageId, Digest> = stages
            .iter()
            .map(|held| (held.stage, held.agreed))
            .collect();
        self.states.retain(|(of, stage), (held, _)| {
            *of != round || committed.get(stage) == Some(&held.agreed)
        });
        self.is_changed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(agreed: &[u8], blob: &[u8]) -> Held {
        Held {
            round: Round(1),
            stage: StageId(0),
            agreed: Digest::of(agreed),
            blob: Digest::of(blob),
        }
    }

    #[test]
    fn a_commit_that_bears_anothers_blob_keeps_our_own() {
        let (ours, theirs) = (held(b"weights", b"ours"), held(b"weights", b"theirs"));
        let mut kept = Kept::default();
        kept.insert(ours, Bytes::from_static(b"ours"));
        kept.commit(Round(1), &[theirs]);
        assert_eq!(kept.list(), [ours]);
        assert_eq!(kept.agreeing(&theirs).map(|(held, _)| *held), Some(ours));
        assert_eq!(kept.get(&theirs), None, "no blob of that name is here");
        kept.commit(Round(1), &[held(b"other weights", b"ours")]);
        assert_eq!(kept.list(), []);
    }

    #[test]
    fn of_two_states_of_one_name_on_the_shelf_one_goes() {
        let (first, second) = (held(b"own", b"own"), held(b"merged", b"merged"));
        let mut kept = Kept::default();
        kept.insert(first, Bytes::new());
        kept.insert(second, Bytes::new());
        kept.found([first, second]);
        assert_eq!(kept.changes(), (Vec::new(), vec![first]));
    }
}
