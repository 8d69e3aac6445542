//! The states of stages that a volunteer keeps: its own theta of the newest rounds, and copies for others.
//!
//! A blob is named by round and stage and checked against its hash before it gets here. Nothing is dropped
//! until the host says that a later round is safe, except results of a round that was never committed.

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

    /// The state of that round and stage, if its blob has that hash.
    pub fn get(&self, held: &Held) -> Option<&Bytes> {
        self.states
            .get(&(held.round, held.stage))
            .filter(|(kept, _)| kept.blob == held.blob)
            .map(|(_, blob)| blob)
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

    /// Takes the results of a committed round as what they are: those with another hash are dropped.
    pub fn commit(&mut self, round: Round, stages: &[Held]) {
        let committed: BTreeMap<StageId, Digest> =
            stages.iter().map(|held| (held.stage, held.blob)).collect();
        self.states.retain(|(of, stage), (held, _)| {
            *of != round || committed.get(stage) == Some(&held.blob)
        });
        self.is_changed = true;
    }
}
