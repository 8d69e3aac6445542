//! What packing lost in merges, by stage: added to what is packed the next time, so that nothing is lost for good.
//!
//! An attempt begins with what the last committed merge left. What it leaves counts once a commit names it. All of it
//! may be dropped at any time: then a little is lost once.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::units::{Attempt, StageId, StageRange};

/// What packing lost, as the compute gives it.
#[derive(Clone, Debug, Default)]
pub struct Residuals {
    committed: BTreeMap<StageId, Bytes>,
    /// Of an attempt that no commit has named yet.
    provisional: Option<(Attempt, BTreeMap<StageId, Bytes>)>,
}

impl Residuals {
    /// What the last committed merge left of a stage; empty for nothing.
    pub fn of(&self, stage: StageId) -> Bytes {
        self.committed.get(&stage).cloned().unwrap_or_default()
    }

    /// What an attempt leaves, if it is committed.
    pub fn propose(
        &mut self,
        attempt: Attempt,
        residuals: impl IntoIterator<Item = (StageId, Bytes)>,
    ) {
        self.provisional = Some((attempt, residuals.into_iter().collect()));
    }

    /// That attempt is committed. One that merged nothing leaves nothing.
    pub fn commit(&mut self, attempt: Attempt) {
        let named = self.provisional.take().filter(|(of, _)| *of == attempt);
        self.committed = named.map(|(_, residuals)| residuals).unwrap_or_default();
    }

    /// Keeps those of stages that stay; no attempt's, for it is over.
    pub fn retain(&mut self, stages: StageRange) {
        self.provisional = None;
        self.committed.retain(|stage, _| stages.contains(*stage));
    }

    /// Drops all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(counter: u32) -> Attempt {
        Attempt {
            incarnation: 1,
            counter,
        }
    }

    fn proposed(attempt: Attempt, residuals: &mut Residuals) -> Bytes {
        let bytes = Bytes::from(vec![attempt.counter.to_le_bytes()[0]]);
        residuals.propose(attempt, (0..3).map(|stage| (StageId(stage), bytes.clone())));
        bytes
    }

    #[test]
    fn only_what_a_commit_names_is_added_the_next_time() {
        let mut residuals = Residuals::default();
        let first = proposed(attempt(1), &mut residuals);
        assert!(residuals.of(StageId(0)).is_empty(), "not committed yet");
        residuals.commit(attempt(1));
        assert_eq!(residuals.of(StageId(0)), first);
        proposed(attempt(2), &mut residuals);
        assert_eq!(residuals.of(StageId(0)), first, "the second may fail");
        let third = proposed(attempt(3), &mut residuals);
        residuals.commit(attempt(3));
        assert_eq!(residuals.of(StageId(0)), third);
        proposed(attempt(5), &mut residuals);
        residuals.commit(attempt(4));
        assert!(residuals.of(StageId(0)).is_empty(), "it merged nothing");
    }

    #[test]
    fn stages_that_stay_keep_theirs() {
        let mut residuals = Residuals::default();
        let first = proposed(attempt(1), &mut residuals);
        residuals.commit(attempt(1));
        residuals.retain(StageRange { first: 1, end: 9 });
        assert!(residuals.of(StageId(0)).is_empty());
        assert_eq!(residuals.of(StageId(1)), first);
        residuals.clear();
        assert!(residuals.of(StageId(1)).is_empty());
    }
}
