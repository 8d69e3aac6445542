//! Who has no seat, and the few of them that one pipeline has to look at.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{Candidate, Given};
use crate::units::{PeerId, StageId};

/// So many spares are all looked at.
const ALL_MAX: usize = 128;
/// Of more, so many of the fastest, and as many of those with most memory.
const OF_A_KIND_MAX: usize = 12;
/// ... and of those that hold a stage that is needed.
const HOLDERS_MAX: usize = 4;

/// Volunteers without a seat.
pub(super) struct Spares<'a> {
    enough_bytes: u64,
    by_pace: BTreeMap<(u128, PeerId), &'a Candidate>,
    by_memory: BTreeMap<(Reverse<u64>, u128, PeerId), &'a Candidate>,
    holders: BTreeMap<(StageId, u128, PeerId), &'a Candidate>,
}

impl<'a> Spares<'a> {
    pub(super) fn new(spares: Vec<&'a Candidate>, given: &Given<'_>) -> Self {
        let mut empty = Self {
            enough_bytes: given.costs.memory_of(given.costs.all()),
            by_pace: BTreeMap::new(),
            by_memory: BTreeMap::new(),
            holders: BTreeMap::new(),
        };
        empty.add(spares);
        empty
    }

    pub(super) fn add(&mut self, spares: Vec<&'a Candidate>) {
        for one in spares {
            let pace = one.pace();
            self.by_pace.insert((pace, one.peer), one);
            self.by_memory.insert(self.memory_key(one), one);
            let held = one
                .holds
                .iter()
                .map(|stage| ((*stage, pace, one.peer), one));
            self.holders.extend(held);
        }
    }

    fn memory_key(&self, one: &Candidate) -> (Reverse<u64>, u128, PeerId) {
        let usable = one.memory_bytes.min(self.enough_bytes);
        (Reverse(usable), one.pace(), one.peer)
    }

    /// These have seats now.
    pub(super) fn take(
        &mut self,
        seated: &BTreeSet<PeerId>,
        known: &BTreeMap<PeerId, &'a Candidate>,
    ) {
        for one in seated.iter().filter_map(|peer| known.get(peer)) {
            let pace = one.pace();
            self.by_pace.remove(&(pace, one.peer));
            self.by_memory.remove(&self.memory_key(one));
            for stage in &one.holds {
                self.holders.remove(&(*stage, pace, one.peer));
            }
        }
    }

    /// Those that matter to a pipeline that lacks `needed`.
    pub(super) fn few(&self, needed: impl IntoIterator<Item = StageId>) -> Vec<&'a Candidate> {
        if self.by_pace.len() <= ALL_MAX {
            return self.by_pace.values().copied().collect();
        }
        let fastest = self.by_pace.values().take(OF_A_KIND_MAX);
        let largest = self.by_memory.values().take(OF_A_KIND_MAX);
        let mut few: BTreeMap<PeerId, &Candidate> =
            fastest.chain(largest).map(|one| (one.peer, *one)).collect();
        for stage in needed {
            let holders = self
                .holders
                .range((stage, 0, PeerId(0))..=(stage, u128::MAX, PeerId(u64::MAX)));
            few.extend(
                holders
                    .take(HOLDERS_MAX)
                    .map(|((_, _, peer), one)| (*peer, *one)),
            );
        }
        few.into_values().collect()
    }
}
