//! The shape of the model that a run trains, and how it is cut into stages.
//!
//! Owns every size that the mathematics needs (width, heads, blocks, vocabulary, codec) and the
//! list of tensors that each stage holds: [`ModelConfig::parameters_of`] is the one place where
//! a parameter gets its name, shape and first values. `derive` fills them, `model` computes with
//! them, checkpoints are checked against them.
//!
//! Knows nothing of steps, rounds or learning rates: those belong to the run's configuration.
//! Invariant: after [`ModelConfig::validate`] succeeded, all methods are total for `stage < stages`.

mod parameters;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::units::Round;

pub use parameters::{Initial, Parameter};
#[cfg(feature = "compute")]
pub(crate) use parameters::{SUBSPACE, SUBSPACE_NEXT};

/// Largest `d_model`: rows of this width still fit a frame many times over.
pub const WIDTH_MAX: usize = 16_384;
/// Largest vocabulary: token ids above this are no text that we know of.
pub const VOCABULARY_MAX: usize = 1 << 20;
/// Largest context: attention is quadratic in it, volunteers are small.
pub const CONTEXT_MAX: usize = 16_384;
/// Most blocks, and so most stages.
pub const BLOCKS_MAX: usize = crate::limits::STAGES_MAX;
/// Most values in a single tensor: keeps every size far inside 32 bits, which WASM has.
pub const TENSOR_VALUES_MAX: usize = 1 << 29;

/// Added to the mean square inside every RMS norm.
pub const NORM_EPSILON: f64 = 1e-5;
/// Base of the rotary position angles.
pub const ROTARY_BASE: f64 = 10_000.0;

/// Sizes of the decoder-only transformer of a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Attention heads; divides `d_model` into heads of even width.
    pub heads: usize,
    /// Width inside the SwiGLU MLP.
    pub d_ff: usize,
    /// Transformer blocks in the whole model.
    pub blocks: usize,
    /// Stages that the blocks are cut into, in order and as evenly as whole blocks allow.
    pub stages: usize,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Positions in a sequence; a sample has one token more.
    pub context: usize,
    /// What crosses a stage border.
    pub codec: Codec,
}

/// What a stage sends to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Codec {
    /// The residual stream as it is, `d_model` wide: the baseline.
    Dense,
    /// Coordinates in one subspace that all borders share, after arXiv 2506.01260.
    Subspace {
        /// Width of what crosses a border.
        rank: usize,
        /// Every how many rounds the subspace turns to where the loss depends most on the stream; 0 for never.
        #[serde(default, skip_serializing_if = "is_never")]
        adapt_rounds: u32,
    },
    /// The stream's coordinates in a subspace that each border has for itself, after MAPL (arXiv 2606.05484); the
    /// receiver adds what it knows of each token.
    Projector {
        /// Width of what crosses a border.
        rank: usize,
        /// Width of what a receiver learns of each token.
        anchor: usize,
        /// What becomes of the subspaces.
        #[serde(default)]
        basis: Basis,
    },
}

impl Codec {
    /// [`Self::Subspace`] that stays as the seed has it.
    #[must_use]
    pub const fn fixed_subspace(rank: usize) -> Self {
        Self::Subspace {
            rank,
            adapt_rounds: 0,
        }
    }
}

/// Whether a number of rounds stands for never. Then it is not written: so are configurations that know nothing of it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references")]
const fn is_never(rounds: &u32) -> bool {
    *rounds == 0
}

/// What becomes of the subspaces of [`Codec::Projector`] while the model trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// They stay as the seed has them.
    #[default]
    Fixed,
    /// The stage before each border turns its basis down the loss, and sends it on with every step.
    Learned,
}

/// How numbers are packed where a border crosses the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NumberFormat {
    /// IEEE single precision, exact.
    F32,
    /// IEEE half precision.
    F16,
    /// Eight-bit integers with one bf16 scale per token row.
    #[default]
    Int8,
    /// Four-bit integers with one bf16 scale for each tile of [`INT4_TILE`], after a Hadamard rotation of the tile.
    Int4,
}

/// Numbers of a token that share a scale in [`NumberFormat::Int4`]; the last ones of a token are filled up with zeros.
pub const INT4_TILE: usize = 32;

impl NumberFormat {
    /// Bytes that the `width` numbers of one token take, the scale included.
    #[must_use]
    pub const fn row_bytes(self, width: usize) -> usize {
        match self {
            Self::F32 => 4 * width,
            Self::F16 => 2 * width,
            Self::Int8 => 2 + width,
            Self::Int4 => width.div_ceil(INT4_TILE) * (2 + INT4_TILE / 2),
        }
    }
}

/// Bytes of one token id, on the wire and in data shards.
#[must_use]
pub const fn token_bytes(vocabulary: usize) -> usize {
    if vocabulary > 1 << 16 { 4 } else { 2 }
}

/// Why a model's sizes were refused. The text names the key to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelConfigError {
    /// A size is zero or beyond its limit.
    #[error("model.{key} is {value}, must be between {min} and {max}")]
    Range {
        /// The key as it is written in the configuration.
        key: &'static str,
        /// What it was.
        value: usize,
        /// Smallest that is accepted.
        min: usize,
        /// Largest that is accepted.
        max: usize,
    },
    /// Heads do not divide the width into heads of even width.
    #[error("model.d_model {d_model} must be a multiple of twice model.heads {heads}")]
    Heads {
        /// Width of the model.
        d_model: usize,
        /// Number of heads.
        heads: usize,
    },
    /// A tensor would be larger than [`TENSOR_VALUES_MAX`].
    #[error(
        "{name} would hold {values} values, more than {TENSOR_VALUES_MAX}: make the model smaller"
    )]
    TooLarge {
        /// The tensor's name.
        name: String,
        /// Number of values it would hold.
        values: usize,
    },
}

impl ModelConfig {
    /// Bytes as tokens, four small stages: minutes on a laptop's CPU.
    #[must_use]
    pub const fn tiny() -> Self {
        Self {
            d_model: 128,
            heads: 4,
            d_ff: 352,
            blocks: 4,
            stages: 4,
            vocabulary: 256,
            context: 128,
            codec: Codec::fixed_subspace(32),
        }
    }

    /// Six stages over a vocabulary of 4,096: an evening on a few GPUs.
    #[must_use]
    pub const fn small() -> Self {
        Self {
            d_model: 384,
            heads: 6,
            d_ff: 1024,
            blocks: 6,
            stages: 6,
            vocabulary: 4096,
            context: 256,
            codec: Codec::fixed_subspace(96),
        }
    }

    /// The size of GPT-2 small, in twelve stages.
    #[must_use]
    pub const fn base() -> Self {
        Self {
            d_model: 768,
            heads: 12,
            d_ff: 2048,
            blocks: 12,
            stages: 12,
            vocabulary: 50_304,
            context: 1024,
            codec: Codec::fixed_subspace(192),
        }
    }

    /// The preset of that name, if there is one.
    #[must_use]
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "tiny" => Some(Self::tiny()),
            "small" => Some(Self::small()),
            "base" => Some(Self::base()),
            _ => None,
        }
    }

    /// Checks that these sizes describe a model.
    ///
    /// # Errors
    /// Names the first key that is out of range, or the first tensor that would be too large.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        let rank_max = self.d_model;
        let (rank, anchor) = match self.codec {
            Codec::Dense => (1, 1),
            Codec::Subspace { rank, .. } => (rank, 1),
            Codec::Projector { rank, anchor, .. } => (rank, anchor),
        };
        let ranges = [
            ("d_model", self.d_model, 2, WIDTH_MAX),
            ("heads", self.heads, 1, self.d_model / 2),
            ("d_ff", self.d_ff, 1, 4 * WIDTH_MAX),
            ("blocks", self.blocks, 1, BLOCKS_MAX),
            ("stages", self.stages, 1, self.blocks),
            ("vocabulary", self.vocabulary, 2, VOCABULARY_MAX),
            ("context", self.context, 1, CONTEXT_MAX),
            ("codec.rank", rank, 1, rank_max),
            ("codec.anchor", anchor, 1, rank_max),
        ];
        for (key, value, min, max) in ranges {
            if value < min || value > max {
                return Err(ModelConfigError::Range {
                    key,
                    value,
                    min,
                    max,
                });
            }
        }
        if !self.d_model.is_multiple_of(2 * self.heads) {
            return Err(ModelConfigError::Heads {
                d_model: self.d_model,
                heads: self.heads,
            });
        }
        for stage in [0, self.stages - 1] {
            for Parameter { name, shape, .. } in self.parameters_of(stage) {
                let values = shape
                    .iter()
                    .fold(1_usize, |product, &size| product.saturating_mul(size));
                if values > TENSOR_VALUES_MAX {
                    return Err(ModelConfigError::TooLarge { name, values });
                }
            }
        }
        Ok(())
    }

    /// The blocks of `stage`, numbered through the whole model.
    ///
    /// # Panics
    /// If `stage` is not below `stages`.
    #[must_use]
    pub fn blocks_of(&self, stage: usize) -> Range<usize> {
        assert!(stage < self.stages, "stage {stage} of {}", self.stages);
        stage * self.blocks / self.stages..(stage + 1) * self.blocks / self.stages
    }

    /// Whether `stage` ends the model: it owns the final norm, the head and the loss.
    #[must_use]
    pub const fn is_last(&self, stage: usize) -> bool {
        stage + 1 == self.stages
    }

    /// Numbers per token that cross a border, in each direction.
    #[must_use]
    pub const fn boundary_width(&self) -> usize {
        match self.codec {
            Codec::Dense => self.d_model,
            Codec::Subspace { rank, .. } | Codec::Projector { rank, .. } => rank,
        }
    }

    /// Width of what blocks add to: `rank` where that are coordinates of a subspace.
    const fn state_width(&self) -> usize {
        match self.codec {
            Codec::Dense | Codec::Projector { .. } => self.d_model,
            Codec::Subspace { rank, .. } => rank,
        }
    }

    /// Width of what a branch of `stage` writes: `rank` wherever the subspace must stay closed.
    #[must_use]
    pub const fn branch_width(&self, stage: usize) -> usize {
        if self.is_last(stage) {
            self.d_model
        } else {
            self.state_width()
        }
    }

    /// Width of the table that `stage` knows tokens by where its input does not name them; `None` without one.
    #[must_use]
    pub const fn anchor_width(&self, stage: usize) -> Option<usize> {
        match self.codec {
            Codec::Projector { anchor, .. } if stage > 0 => Some(anchor),
            Codec::Dense | Codec::Subspace { .. } | Codec::Projector { .. } => None,
        }
    }

    /// Rank of the basis that `stage` learns for the border after it; `None` where it learns none.
    #[must_use]
    pub const fn learned_rank(&self, stage: usize) -> Option<usize> {
        match self.codec {
            Codec::Projector {
                rank,
                basis: Basis::Learned,
                ..
            } if !self.is_last(stage) => Some(rank),
            Codec::Dense | Codec::Subspace { .. } | Codec::Projector { .. } => None,
        }
    }

    /// Bytes of a learned basis, and of its gradient, where one crosses a border.
    #[must_use]
    pub const fn learned_basis_bytes(&self) -> usize {
        match self.codec {
            Codec::Projector {
                rank,
                basis: Basis::Learned,
                ..
            } => 4 * self.d_model * rank,
            Codec::Dense | Codec::Subspace { .. } | Codec::Projector { .. } => 0,
        }
    }

    /// Rank of the run's subspace, where that turns while the model trains; `None` where it does not.
    #[must_use]
    pub const fn adapted_rank(&self) -> Option<usize> {
        match self.codec {
            Codec::Subspace {
                rank,
                adapt_rounds: 1..,
            } => Some(rank),
            Codec::Dense | Codec::Subspace { .. } | Codec::Projector { .. } => None,
        }
    }

    /// Bytes of an adapted basis where one crosses a border, and of what it turns by.
    #[must_use]
    pub const fn adapted_basis_bytes(&self) -> usize {
        match self.adapted_rank() {
            Some(rank) => 4 * self.d_model * rank,
            None => 0,
        }
    }

    /// Whether the subspace turns at the end of `round`, by what its steps see.
    #[must_use]
    pub const fn adapts_in(&self, round: Round) -> bool {
        match self.codec {
            Codec::Subspace {
                adapt_rounds: rounds @ 1..,
                ..
            } => round.0 % rounds == rounds - 1,
            Codec::Dense | Codec::Subspace { .. } | Codec::Projector { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_hold_as_many_values_as_their_sizes_say() {
        for (name, count) in [
            ("tiny", 706_688),
            ("small", 10_560_384),
            ("base", 115_403_520),
        ] {
            let config = ModelConfig::preset(name).expect("a preset");
            assert_eq!(config.validate(), Ok(()));
            assert_eq!(config.parameter_count(), count, "{name}");
        }
    }

    #[test]
    fn stages_cover_all_blocks_in_order_whatever_the_cut() {
        for blocks in 1..13 {
            for stages in 1..=blocks {
                let config = ModelConfig {
                    blocks,
                    stages,
                    ..ModelConfig::tiny()
                };
                let covered: Vec<usize> = (0..stages)
                    .flat_map(|stage| config.blocks_of(stage))
                    .collect();
                assert_eq!(covered, (0..blocks).collect::<Vec<_>>());
                assert!((0..stages).all(|stage| !config.blocks_of(stage).is_empty()));
            }
        }
    }

    #[test]
    fn only_the_last_stage_writes_full_width_in_a_subspace() {
        let config = ModelConfig::tiny();
        assert_eq!(
            (0..4)
                .map(|stage| config.branch_width(stage))
                .collect::<Vec<_>>(),
            [32, 32, 32, 128]
        );
    }

    #[test]
    fn sizes_out_of_range_are_refused_with_the_key_to_change() {
        let refused = |config: ModelConfig| config.validate().expect_err("refused").to_string();
        let tiny = ModelConfig::tiny;
        assert_eq!(
            refused(ModelConfig {
                stages: 5,
                ..tiny()
            }),
            "model.stages is 5, must be between 1 and 4"
        );
        assert_eq!(
            refused(ModelConfig {
                codec: Codec::fixed_subspace(129),
                ..tiny()
            }),
            "model.codec.rank is 129, must be between 1 and 128"
        );
        assert_eq!(
            refused(ModelConfig { heads: 3, ..tiny() }),
            "model.d_model 128 must be a multiple of twice model.heads 3"
        );
        assert!(
            refused(ModelConfig {
                d_model: 16_384,
                heads: 1,
                vocabulary: 1 << 20,
                codec: Codec::Dense,
                ..tiny()
            })
            .starts_with("embed would hold")
        );
    }

    #[test]
    fn a_config_reads_back_what_it_wrote() {
        for config in [
            ModelConfig::tiny(),
            ModelConfig {
                codec: Codec::Dense,
                ..ModelConfig::base()
            },
        ] {
            let text = toml::to_string(&config).expect("serialises");
            assert_eq!(
                toml::from_str::<ModelConfig>(&text).expect("parses"),
                config,
                "{text}"
            );
        }
    }
}
