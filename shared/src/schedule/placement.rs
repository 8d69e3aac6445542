//! Seats for volunteers.

use std::collections::BTreeSet;

use crate::config::model::ModelConfig;
use crate::units::{PeerId, StageId, StageRange};

/// A volunteer that may be given a seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its number.
    pub peer: PeerId,
    /// Microseconds a block takes.
    pub block_us: u64,
    /// Share of the time it lends.
    pub throttle_percent: u8,
    /// Memory it lends.
    pub memory_bytes: u64,
    /// Whether it is reached through relays only.
    pub relay_only: bool,
    /// Stages whose state it keeps.
    pub holds: BTreeSet<StageId>,
}

/// What each stage costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageCosts {
    state_bytes: Vec<u64>,
}

impl StageCosts {
    /// Costs of a model's stages.
    pub fn new(model: &ModelConfig) -> Self {
        Self {
            state_bytes: vec![1 << 20; model.stages],
        }
    }

    /// Bytes of a stage's weights and moments.
    pub fn state_bytes(&self, stage: StageId) -> u64 {
        self.state_bytes[usize::from(stage.0)]
    }
}

/// Seats of one pipeline, head first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineUp {
    /// Who holds which stages.
    pub seats: Vec<(PeerId, StageRange)>,
}

/// Why there is no line-up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlacement {
    /// Too few volunteers.
    #[error("waiting for {more} more volunteer(s)")]
    TooFew {
        /// How many more it takes.
        more: usize,
    },
}

/// Seats for one pipeline.
///
/// # Errors
/// Fewer volunteers than seats.
pub fn assign(
    candidates: &[Candidate],
    costs: &StageCosts,
    _apart: &BTreeSet<(PeerId, PeerId)>,
    _old: Option<&LineUp>,
    seats_min: usize,
) -> Result<LineUp, NoPlacement> {
    let stages = costs.state_bytes.len();
    let seats = candidates.len().min(stages);
    if seats < seats_min.max(1) {
        return Err(NoPlacement::TooFew {
            more: seats_min.max(1) - seats,
        });
    }
    let bound = |seat: usize| u16::try_from(seat * stages / seats).unwrap_or(u16::MAX);
    let seats = (0..seats)
        .map(|seat| {
            (
                candidates[seat].peer,
                StageRange {
                    first: bound(seat),
                    end: bound(seat + 1),
                },
            )
        })
        .collect();
    Ok(LineUp { seats })
}
