//! What is trained in a world: a model of four stages, so small that only its rules matter.

use super::Dice;
use crate::config::model::{Basis, Codec, ModelConfig, NumberFormat};
use crate::config::run::{MergeConfig, MergeKind, RunConfig, ScheduleConfig, TrainingConfig};
use crate::limits::MERGE_GROUP_MAX;
use crate::units::Span;

/// A run's configuration, drawn from the seed.
pub(super) fn config(seed: u64, dice: &mut Dice) -> RunConfig {
    let kind = if seed % 5 == 4 {
        MergeKind::Gradient
    } else {
        MergeKind::Outer
    };
    let round_steps = match kind {
        MergeKind::Outer => u32::try_from(dice.between(2, 5)).expect("small"),
        // Gradients are merged after each step.
        MergeKind::Gradient => 1,
    };
    // Where bases are learned a step's first and last frames are longer; where the subspace is adapted, a round's first
    // one, and each step's last in every other round.
    let codec = match seed % 3 {
        2 => Codec::Projector {
            rank: 8,
            anchor: 1,
            basis: Basis::Learned,
        },
        1 if kind == MergeKind::Outer => Codec::Subspace {
            rank: 8,
            adapt_rounds: 2,
        },
        _ => Codec::Dense,
    };
    RunConfig {
        name: "simulation".to_owned(),
        seed,
        model: ModelConfig {
            d_model: 8,
            heads: 2,
            d_ff: 8,
            blocks: 4,
            stages: 4,
            vocabulary: 64,
            context: 4,
            codec,
        },
        format: NumberFormat::F32,
        training: TrainingConfig {
            batch: 8,
            microbatches: 4,
            learning_rate: 1e-3,
            clip: 1.0,
            samples: 1 << 40,
            warmup_samples: 0,
        },
        schedule: ScheduleConfig {
            round_steps,
            round_max: Span::from_secs(60),
            seats_min: u16::try_from(dice.between(1, 4)).expect("small"),
            pipelines_max: u16::try_from([1, 2, 3, 5][(seed % 4) as usize]).expect("small"),
            eval_rounds: 4,
            eval_microbatches: 2,
            checkpoint: Span::from_secs(dice.between(10, 90)),
            rewind_wait: Span::from_secs(15),
        },
        merge: MergeConfig {
            kind,
            format: NumberFormat::F32,
            learning_rate: 0.7,
            momentum: 0.9,
            // Of more than two pipelines some merge in levels.
            group_max: if (seed / 4).is_multiple_of(2) {
                2
            } else {
                MERGE_GROUP_MAX
            },
        },
    }
}
