//! One run of the frontier: codec, rank, number format, rate, seed and depth; its configuration, and its bytes a token.
//!
//! Knows nothing of what was measured, nor of which runs are.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{BATCH, CONTEXT, EVALUATIONS, MICROBATCHES};

/// Width of the residual stream of `tiny`, and of each tile of int4.
pub(super) const D_MODEL: u64 = 128;
const TILE: u64 = 32;
/// Tokens of a step of `tiny`.
const STEP_TOKENS: f64 = 4_096.0;

/// What crosses a border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Codec {
    Dense,
    Subspace,
    /// With the seed's bases.
    Projector,
    /// With bases that it learns.
    Learned,
    /// The shared subspace where it turns as each round ends.
    Adapted,
}

impl Codec {
    /// Those that everything is varied for.
    pub(super) const ALL: [Self; 4] = [Self::Dense, Self::Subspace, Self::Projector, Self::Learned];
    /// Those that have a rank.
    pub(super) const NARROW: [Self; 3] = [Self::Subspace, Self::Projector, Self::Learned];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Subspace => "subspace",
            Self::Projector => "projector",
            Self::Learned => "projector, learned",
            Self::Adapted => "subspace, adapted",
        }
    }

    /// As a host writes it.
    pub(super) const fn keys(self) -> &'static str {
        match self {
            Self::Dense => "codec = \"dense\"",
            Self::Subspace => "codec = \"subspace\"",
            Self::Projector => "codec = \"projector\"",
            Self::Learned => "codec = \"projector\"\nbasis = \"learned\"",
            Self::Adapted => "codec = \"subspace\"\nadapt_rounds = 1",
        }
    }
}

/// How its numbers are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Format {
    F32,
    F16,
    Int8,
    Int4,
}

impl Format {
    pub(super) const PACKED: [Self; 3] = [Self::F16, Self::Int8, Self::Int4];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    pub(super) const fn row_bytes(self, width: u64) -> u64 {
        match self {
            Self::F32 => 4 * width,
            Self::F16 => 2 * width,
            Self::Int8 => width + 2,
            Self::Int4 => width.div_ceil(TILE) * (TILE / 2 + 2),
        }
    }
}

/// A run to measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Point {
    pub(super) codec: Codec,
    /// Of what crosses; none is the whole width.
    pub(super) rank: Option<u64>,
    pub(super) format: Format,
    pub(super) learning_rate: f64,
    pub(super) seed: u64,
    /// One block each; the borders between them are one fewer.
    pub(super) stages: u64,
    pub(super) steps: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            to,
            "{}, {} stages, rate {}, seed {}, {} steps",
            self.what(),
            self.stages,
            self.learning_rate,
            self.seed,
            self.steps
        )
    }
}

impl Point {
    /// What crosses its borders, in words.
    pub(super) fn what(&self) -> String {
        let rank = self.rank.map_or(String::new(), |rank| format!(" {rank}"));
        format!("{}{rank} {}", self.codec.name(), self.format.name())
    }

    /// A run's configuration, with so many microbatches of held-out text an evaluation.
    pub(super) fn config(&self, eval_microbatches: u64) -> String {
        let Self {
            learning_rate,
            seed,
            stages,
            steps,
            ..
        } = self;
        let (codec, format) = (self.codec.keys(), self.format.name());
        let rank = self
            .rank
            .map_or(String::new(), |rank| format!("rank = {rank}\n"));
        let (round_steps, samples) = (steps / EVALUATIONS, steps * BATCH);
        format!(
            "[run]\nname = \"figures\"\nseed = {seed}\npreset = \"tiny\"\n\n\
             [model]\nblocks = {stages}\nstages = {stages}\ncontext = {CONTEXT}\n{codec}\n{rank}\n\
             [wire]\nformat = \"{format}\"\n\n\
             [training]\nbatch = {BATCH}\nmicrobatches = {MICROBATCHES}\n\
             learning_rate = {learning_rate:e}\nsamples = {samples}\n\n\
             [schedule]\nround_steps = {round_steps}\n\
             eval_rounds = 1\neval_microbatches = {eval_microbatches}\n"
        )
    }

    /// Bytes of a token at one border, both ways, with the ids that go forward. A learned basis and its gradient count for
    /// the tokens of a step of `tiny`.
    pub(super) fn bytes_a_token(&self) -> f64 {
        let width = self.rank.unwrap_or(D_MODEL);
        let ids = 2.0 * (CONTEXT + 1) as f64 / CONTEXT as f64;
        let bases = match self.codec {
            Codec::Learned => 4.0 * (D_MODEL * width) as f64 / STEP_TOKENS,
            // Back alone: forward it goes once a round.
            Codec::Adapted => 2.0 * (D_MODEL * width) as f64 / STEP_TOKENS,
            Codec::Dense | Codec::Subspace | Codec::Projector => 0.0,
        };
        2.0 * (self.format.row_bytes(width) as f64 + bases) + ids
    }

    /// The same but for its seed and depth.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.codec, self.rank, self.format, self.steps)
            == (other.codec, other.rank, other.format, other.steps)
            && self.learning_rate == other.learning_rate
    }

    /// Equal ones are listed in this order.
    pub(super) fn order(&self) -> impl Ord + use<> {
        let rate = self.learning_rate.to_bits();
        (
            self.steps,
            self.stages,
            self.seed,
            self.codec,
            self.rank,
            self.format,
            rate,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn int4_is_half_a_byte_and_a_scale_a_tile_each_way_and_two_bytes_an_id() {
        let point = Point {
            codec: Codec::Projector,
            rank: Some(40),
            format: Format::Int4,
            learning_rate: 1e-3,
            seed: 1,
            stages: 4,
            steps: 6,
        };
        let tiles = 2.0 * 2.0 * (16.0 + 2.0);
        assert!((point.bytes_a_token() - tiles - 2.0 * 129.0 / 128.0).abs() < 1e-9);
    }
}
