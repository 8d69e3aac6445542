//! How the replicas of a stage share out their merge: what the host tells them, who averages which part of its values, and
//! how long a part is.
//!
//! A stage's values are laid out in name order, one after the other, and cut into tiles of [`TILE`] values, the last one
//! filled up with zeros. Each member of a group owns a run of tiles: it is sent everybody's pseudo-gradients of
//! them (reduce-scatter), averages, and sends the average to all (all-gather). Who sends faster owns more.
//!
//! More replicas than a group may have merge in levels: those of a group average its members' parts, and each then averages its
//! own part with those that own the same part in other groups, a group of the next level; averages come back the same
//! way. So each member sends every value about twice, however many they are.
//!
//! Knows no network and no mathematics. Invariant: members that hold equal shapes cut alike, to the tile.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::frame::Place;
use super::signal::Neighbour;
use crate::config::model::NumberFormat;
use crate::units::{Attempt, Round, StageId};

/// Values that share one scale where they are packed.
pub const TILE: usize = 256;

/// Those that average a part of a stage with each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// In the order in which they add up; the one who is told is among them.
    pub peers: Vec<Neighbour>,
    /// Samples behind what each brings: its weight in the average. On the first level its own pipeline's of the round, then those
    /// of all whom its part is averaged of already.
    pub samples: Vec<u64>,
    /// How much each averages, in proportion: it follows from how fast each sends.
    pub shares: Vec<u32>,
}

/// A seat's part in the merge of a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeOrder {
    /// The seat.
    pub place: Place,
    /// The attempt. Beginning it voids all earlier ones for good.
    pub attempt: Attempt,
    /// The number that the result gets if it is committed.
    pub result: Round,
    /// Samples that all pipelines of the merge trained in the round.
    pub samples: u64,
    /// For each stage of the seat, in order, its groups: first that which shares all of the stage out, then one for each further
    /// level that the seat's own part goes through.
    pub stages: Vec<Vec<Group>>,
}

/// One group of a stage's merge, as all its members know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// Each member's weight in the average.
    pub weights: Vec<u64>,
    /// How much each member averages, in proportion to the others.
    pub shares: Vec<u32>,
    /// Which member this volunteer is.
    pub own: u16,
}

/// One stage's merge, as one volunteer takes part in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// The stage.
    pub stage: StageId,
    /// Trained values of the stage.
    pub values: u64,
    /// How pseudo-gradients and their averages are packed.
    pub format: NumberFormat,
    /// Samples of all pipelines that merge.
    pub samples: u64,
    /// The volunteer's groups; each but the first shares out its own part of the one before. Not empty.
    pub levels: Vec<Level>,
}

/// What a piece of a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leg {
    /// What the sender brings of the receiver's part.
    Scatter,
    /// The average of the sender's part.
    Gather,
}

impl Level {
    /// Number of members.
    #[must_use]
    pub fn members(&self) -> usize {
        self.weights.len()
    }

    /// The volunteer's own place among them.
    #[must_use]
    pub fn own(&self) -> usize {
        usize::from(self.own)
    }

    /// Samples behind the group's average.
    #[must_use]
    pub fn samples(&self) -> u128 {
        self.weights.iter().map(|weight| u128::from(*weight)).sum()
    }

    /// Each member's part of these tiles, in order of members; together all of them.
    fn cut(&self, tiles: &Range<usize>) -> Vec<Range<usize>> {
        assert_eq!(self.shares.len(), self.members(), "one share a member");
        assert!(!self.shares.is_empty(), "a merge has members");
        let count = tiles.len() as u128;
        // Where nobody has a share all have the same.
        let nobody = self.shares.iter().all(|share| *share == 0);
        let share = |share: &u32| if nobody { 1 } else { u128::from(*share) };
        let total: u128 = self.shares.iter().map(share).sum();
        let mut sum = 0;
        let mut before = tiles.start;
        let part = |of: &u32| {
            sum += share(of);
            let end = usize::try_from(count * sum / total).expect("a stage's tiles fit memory");
            let part = before..tiles.start + end;
            before = part.end;
            part
        };
        self.shares.iter().map(part).collect()
    }
}

impl Shape {
    /// The tiles of each member's part of a level, in order of members.
    ///
    /// # Panics
    /// If there is no such level, or one of these has no members, or not one share a member.
    #[must_use]
    pub fn parts(&self, level: usize) -> Vec<Range<usize>> {
        let tiles = usize::try_from(self.values.div_ceil(TILE as u64));
        let mut parts = self.levels[0].cut(&(0..tiles.expect("a stage's tiles fit memory")));
        for pair in self.levels[..=level].windows(2) {
            parts = pair[1].cut(&parts[pair[0].own()]);
        }
        parts
    }

    /// The parts into which a group's average of this volunteer's part is packed: those of the next level, or that part
    /// as it is.
    ///
    /// # Panics
    /// As [`Self::parts`].
    #[must_use]
    pub fn parts_of_average(&self, level: usize) -> Vec<Range<usize>> {
        if level + 1 < self.levels.len() {
            self.parts(level + 1)
        } else {
            let own = self.levels[level].own();
            vec![self.parts(level).swap_remove(own)]
        }
    }

    /// Bytes of so many tiles as they are packed.
    #[must_use]
    pub fn bytes(&self, tiles: &Range<usize>) -> usize {
        tiles.len() * self.format.row_bytes(TILE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn level(shares: Vec<u32>, own: u16) -> Level {
        Level {
            weights: vec![1; shares.len()],
            shares,
            own,
        }
    }

    fn shape(values: u64, levels: Vec<Level>) -> Shape {
        Shape {
            stage: StageId(0),
            values,
            format: NumberFormat::Int8,
            samples: 1,
            levels,
        }
    }

    #[test]
    fn who_sends_twice_as_fast_averages_twice_as_much() {
        let parts = |values, shares| shape(values, vec![level(shares, 0)]).parts(0);
        assert_eq!(parts(256 * 90, vec![2, 1]), [0..60, 60..90]);
        assert_eq!(parts(256 * 3, vec![0, 0, 0]), [0..1, 1..2, 2..3]);
        assert_eq!(parts(1, vec![1, 1]), [0..0, 0..1]);
        let one = shape(257, vec![level(vec![1], 0)]);
        assert_eq!(one.bytes(&one.parts(0)[0]), 2 * (256 + 2));
    }

    #[test]
    fn the_next_level_shares_the_own_part_out() {
        let shape = shape(
            256 * 90,
            vec![level(vec![2, 1], 1), level(vec![1, 1, 1], 0)],
        );
        assert_eq!(shape.parts(1), [60..70, 70..80, 80..90]);
        assert_eq!(shape.parts_of_average(0), shape.parts(1));
        assert_eq!(shape.parts_of_average(1), vec![60..70]);
    }

    proptest! {
        #[test]
        fn all_tiles_are_somebodys(
            values in 1_u64..1 << 33,
            shares in proptest::collection::vec(any::<u32>(), 1..17),
        ) {
            let parts = shape(values, vec![level(shares, 0)]).parts(0);
            prop_assert_eq!(parts[0].start, 0);
            prop_assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
            let end = parts.last().map(|part| part.end as u64);
            prop_assert_eq!(end, Some(values.div_ceil(TILE as u64)));
        }
    }
}
