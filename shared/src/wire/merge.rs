//! How the replicas of a stage share out their merge: what the host tells them, who averages which part of its values, and
//! how long a part is.
//!
//! A stage's values are laid out in name order, one after the other, and cut into tiles of [`TILE`] values, the last one
//! filled up with zeros. Each member of a group owns a run of tiles: it is sent everybody's pseudo-gradients of
//! them (reduce-scatter), averages, and sends the average to all (all-gather). Who sends faster owns more.
//!
//! Knows no network and no mathematics. Invariant: members that hold equal shapes cut alike, to the tile.

use serde::{Deserialize, Serialize};

use super::frame::Place;
use super::signal::Neighbour;
use crate::config::model::NumberFormat;
use crate::units::{Attempt, Epoch, PipelineId, Round, StageId};

/// Values that share one scale where they are packed.
pub const TILE: usize = 256;

/// One pipeline of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The pipeline.
    pub pipeline: PipelineId,
    /// Its line-up.
    pub epoch: Epoch,
    /// Steps that it trained in the round.
    pub steps: u32,
    /// Samples in them: its weight in the average.
    pub samples: u64,
}

/// Those that hold a stage, one for each member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replicas {
    /// In order of members; the one who is told is among them.
    pub peers: Vec<Neighbour>,
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
    /// Pipelines that merge, in order of their numbers; at least two.
    pub members: Vec<Member>,
    /// One for each stage of the seat, in order.
    pub stages: Vec<Replicas>,
}

/// One stage's merge, as all members of its group know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// The stage.
    pub stage: StageId,
    /// Trained values of the stage.
    pub values: u64,
    /// How pseudo-gradients and their averages are packed.
    pub format: NumberFormat,
    /// Samples that each member trained in the round: its weight in the average.
    pub weights: Vec<u64>,
    /// How much each member averages, in proportion to the others.
    pub shares: Vec<u32>,
    /// Which member this volunteer is.
    pub own: u16,
}

/// What a piece of a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leg {
    /// The sender's pseudo-gradients of the receiver's part.
    Scatter,
    /// The average of the sender's part.
    Gather,
}

impl Shape {
    /// Number of members.
    #[must_use]
    pub fn members(&self) -> usize {
        self.weights.len()
    }

    /// Tiles of each member's part, in order of members; together all tiles of the stage.
    ///
    /// # Panics
    /// If there are no members, or not one share a member.
    #[must_use]
    pub fn tiles(&self) -> Vec<usize> {
        assert_eq!(self.shares.len(), self.members(), "one share a member");
        assert!(!self.shares.is_empty(), "a merge has members");
        let tiles = u128::from(self.values.div_ceil(TILE as u64));
        // Where nobody has a share all have the same.
        let nobody = self.shares.iter().all(|share| *share == 0);
        let share = |share: &u32| if nobody { 1 } else { u128::from(*share) };
        let total: u128 = self.shares.iter().map(share).sum();
        let mut sum = 0;
        let mut before = 0;
        let part = |of: &u32| {
            sum += share(of);
            let end = tiles * sum / total;
            let part = end - before;
            before = end;
            usize::try_from(part).expect("a stage's tiles fit memory")
        };
        self.shares.iter().map(part).collect()
    }

    /// Bytes of `member`'s part as it is packed, in either leg.
    #[must_use]
    pub fn part_bytes(&self, member: usize) -> usize {
        self.tiles()[member] * self.format.row_bytes(TILE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(values: u64, shares: Vec<u32>) -> Shape {
        Shape {
            stage: StageId(0),
            values,
            format: NumberFormat::Int8,
            weights: vec![1; shares.len()],
            shares,
            own: 0,
        }
    }

    #[test]
    fn who_sends_twice_as_fast_averages_twice_as_much() {
        assert_eq!(shape(256 * 90, vec![2, 1]).tiles(), [60, 30]);
        assert_eq!(shape(256 * 3, vec![0, 0, 0]).tiles(), [1, 1, 1]);
        assert_eq!(shape(1, vec![1, 1]).tiles(), [0, 1]);
        assert_eq!(shape(257, vec![1]).part_bytes(0), 2 * (256 + 2));
    }

    proptest! {
        #[test]
        fn all_tiles_are_somebodys(
            values in 1_u64..1 << 33,
            shares in proptest::collection::vec(any::<u32>(), 1..17),
        ) {
            let tiles: usize = shape(values, shares).tiles().iter().sum();
            prop_assert_eq!(tiles as u64, values.div_ceil(TILE as u64));
        }
    }
}
