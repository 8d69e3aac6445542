//! Runs that have a name: `tiny`, `small` and `base`, for anything that a host does not write.
//!
//! Sizes are the model's presets; what stands here is how they are trained and organised. Warm-up is
//! 2 % of the run. A round is long beside the moving of a seat's state, and short enough that losing
//! one costs minutes.

use super::model::{ModelConfig, NumberFormat};
use super::run::{MergeConfig, MergeKind, RunConfig, ScheduleConfig, TrainingConfig};
use crate::limits::MERGE_GROUP_MAX;
use crate::units::Span;

/// The names of all presets, smallest first.
pub const PRESETS: [&str; 3] = ["tiny", "small", "base"];

/// The part of a run's samples that warm-up takes where nothing else is written.
pub const fn warmup_of(samples: u64) -> u64 {
    samples / 50
}

impl RunConfig {
    /// The preset of that name, if there is one.
    #[must_use]
    pub fn preset(name: &str) -> Option<Self> {
        let model = ModelConfig::preset(name)?;
        let (training, schedule) = match name {
            "tiny" => (training(32, 8, 2e-3, 64_000), schedule(20, 1)),
            "small" => (training(64, 16, 1e-3, 1_280_000), schedule(20, 5)),
            "base" => (training(512, 64, 6e-4, 2_560_000), schedule(10, 10)),
            _ => return None,
        };
        Some(Self {
            name: name.to_owned(),
            seed: 1,
            model,
            format: NumberFormat::Int8,
            training,
            schedule,
            merge: MergeConfig {
                kind: MergeKind::Outer,
                format: NumberFormat::Int8,
                learning_rate: 0.7,
                momentum: 0.9,
                group_max: MERGE_GROUP_MAX,
            },
        })
    }
}

fn training(batch: u32, microbatches: u16, learning_rate: f64, samples: u64) -> TrainingConfig {
    TrainingConfig {
        batch,
        microbatches,
        learning_rate,
        clip: 1.0,
        samples,
        warmup_samples: warmup_of(samples),
    }
}

fn schedule(round_steps: u32, eval_rounds: u32) -> ScheduleConfig {
    ScheduleConfig {
        round_steps,
        round_max: Span::from_secs(600),
        seats_min: 1,
        pipelines_max: 1,
        eval_rounds,
        eval_microbatches: 8,
        checkpoint: Span::from_secs(300),
        rewind_wait: Span::from_secs(15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_microbatch_of_tiny_takes_its_tokens_and_one_packed_row_each() {
        let tiny = RunConfig::preset("tiny").expect("a preset");
        assert_eq!(tiny.boundary_bytes(), 4 * 128 * (32 + 2));
        assert_eq!(
            tiny.forward_payload_bytes(),
            4 * 129 * 2 + 4 * 128 * (32 + 2)
        );
    }

    #[test]
    fn every_preset_is_a_valid_run_of_whole_rounds() {
        for name in PRESETS {
            let config = RunConfig::preset(name).expect("a preset");
            assert_eq!(config.validate(), Ok(()), "{name}");
            let round = u64::from(config.training.batch) * u64::from(config.schedule.round_steps);
            assert_eq!(config.training.samples % round, 0, "{name}");
            assert_eq!(config.training.warmup_samples * 50, config.training.samples);
        }
        assert_eq!(RunConfig::preset("huge"), None);
    }
}
