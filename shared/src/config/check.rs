//! What makes a configuration valid: every bound in one place, and the text that tells what to change.
//!
//! Used twice on the same values: by the host on what a person wrote, by a volunteer on what a host sent.
//! The model's sizes have their own rules in [`super::model`]; here are those of training, schedule and
//! of both together, such as that a microbatch fits a frame.
//!
//! Invariant: after [`RunConfig::validate`] succeeded, no frame or blob of the run exceeds its limit.

use super::model::{Codec, ModelConfigError, token_bytes};
use super::run::{MergeKind, RunConfig, ScheduleConfig, TrainingConfig};
use crate::limits::{
    FRAME_BYTES_MAX, HEADER_BYTES_MAX, MERGE_GROUP_MAX, MERGE_LEVELS_MAX, PIPELINES_MAX,
    STATE_BYTES_MAX,
};

/// Longest name of a run, in characters.
pub const RUN_NAME_CHARS_MAX: usize = 64;

/// What a number may be, and what to do where it is something else.
struct Bound {
    /// As it is written: section and key.
    key: &'static str,
    min: f64,
    max: f64,
    remedy: &'static str,
}

const fn bound(key: &'static str, min: f64, max: f64, remedy: &'static str) -> Bound {
    Bound {
        key,
        min,
        max,
        remedy,
    }
}

const BOUNDS: &[Bound] = &[
    bound("training.batch", 1.0, 65_535.0, "samples a step"),
    bound(
        "training.microbatches",
        1.0,
        1_024.0,
        "microbatches a step; 2 to 4 a stage keep seats busy",
    ),
    bound(
        "training.learning_rate",
        1e-8,
        1.0,
        "the presets have 6e-4 to 2e-3",
    ),
    bound(
        "training.clip",
        1e-6,
        1e6,
        "the largest gradient norm that is not scaled down, usually 1.0",
    ),
    bound(
        "training.samples",
        1.0,
        9_007_199_254_740_992.0,
        "the length of the run in samples",
    ),
    bound(
        "training.warmup_samples",
        0.0,
        9_007_199_254_740_992.0,
        "usually 2 % of training.samples",
    ),
    bound(
        "schedule.round_steps",
        1.0,
        100_000.0,
        "steps between two commits",
    ),
    bound(
        "schedule.round_max_seconds",
        1.0,
        86_400.0,
        "the longest a round may take",
    ),
    bound(
        "schedule.seats_min",
        1.0,
        512.0,
        "1 lets a single volunteer hold all stages",
    ),
    bound(
        "schedule.pipelines_max",
        1.0,
        PIPELINES_MAX as f64,
        "pipelines that train beside each other and merge",
    ),
    bound(
        "merge.group_max",
        2.0,
        MERGE_GROUP_MAX as f64,
        "pipelines that merge in one group; more do in levels",
    ),
    bound(
        "merge.learning_rate",
        1e-6,
        2.0,
        "of the outer step, usually 0.7",
    ),
    bound(
        "merge.momentum",
        0.0,
        0.999,
        "of the outer step, usually 0.9",
    ),
    bound(
        "schedule.eval_rounds",
        0.0,
        1_000_000.0,
        "0 turns evaluations off",
    ),
    bound(
        "schedule.eval_microbatches",
        1.0,
        1_024.0,
        "microbatches an evaluation",
    ),
    bound(
        "schedule.checkpoint_minutes",
        0.02,
        1_440.0,
        "the presets have 5",
    ),
    bound(
        "schedule.rewind_wait_seconds",
        0.0,
        3_600.0,
        "the presets have 15",
    ),
];

/// Why a run's configuration was refused. The text names the key to change.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RunConfigError {
    /// The model's sizes.
    #[error(transparent)]
    Model(#[from] ModelConfigError),
    /// The name is empty, too long, or would garble a terminal.
    #[error("run.name must be 1 to {RUN_NAME_CHARS_MAX} printable characters")]
    Name,
    /// TOML has signed integers.
    #[error("run.seed is {seed}, must be at most {}", i64::MAX)]
    Seed {
        /// What it was.
        seed: u64,
    },
    /// A number is out of its range.
    #[error("{key} is {value}, must be between {min} and {max}: {remedy}")]
    Range {
        /// The key as it is written.
        key: &'static str,
        /// What it was.
        value: f64,
        /// Smallest that is accepted.
        min: f64,
        /// Largest that is accepted.
        max: f64,
        /// What it is for, or what to write.
        remedy: &'static str,
    },
    /// A step does not cut into equal microbatches.
    #[error("training.batch {batch} must be a multiple of training.microbatches {microbatches}")]
    Microbatches {
        /// Samples a step.
        batch: u32,
        /// Microbatches a step.
        microbatches: u16,
    },
    /// The run ends before its first step.
    #[error(
        "training.samples {samples} must be at least training.batch {batch}: the run would end before its first step"
    )]
    Samples {
        /// Length of the run.
        samples: u64,
        /// Samples a step.
        batch: u32,
    },
    /// The learning rate would not reach its height.
    #[error("training.warmup_samples {warmup_samples} must be at most training.samples {samples}")]
    Warmup {
        /// Samples of the warm-up.
        warmup_samples: u64,
        /// Length of the run.
        samples: u64,
    },
    /// More seats than stages.
    #[error(
        "schedule.seats_min {seats_min} must be at most model.stages {stages}: a seat holds at least one stage"
    )]
    Seats {
        /// Seats that are waited for.
        seats_min: u16,
        /// Stages that there are.
        stages: usize,
    },
    /// Gradients are merged after each step.
    #[error(
        "merge.kind is \"gradient\", so schedule.round_steps must be 1, not {round_steps}: gradients are merged after \
         each step"
    )]
    GradientRounds {
        /// Steps a round.
        round_steps: u32,
    },
    /// Rounds of one step show too little of where the loss depends on the stream.
    #[error(
        "merge.kind is \"gradient\", so model.adapt_rounds must be 0, not {adapt_rounds}: such rounds are one step, too \
         few to turn the subspace by"
    )]
    GradientAdapts {
        /// Rounds between two turns.
        adapt_rounds: u32,
    },
    /// Groups are too small for all pipelines to merge.
    #[error(
        "merge.group_max is {group_max}, room for {room} pipelines to merge: raise it, or lower schedule.pipelines_max"
    )]
    Groups {
        /// Pipelines in a group at most.
        group_max: u16,
        /// How many can merge.
        room: u32,
    },
    /// A microbatch does not fit a frame.
    #[error(
        "a microbatch takes {bytes} bytes on the wire, more than {}: raise training.microbatches, \
         or lower training.batch or model.context",
        FRAME_BYTES_MAX
    )]
    Frame {
        /// Bytes of a forward frame's payload.
        bytes: u64,
    },
    /// A stage's weights and moments are larger than peers may send.
    #[error(
        "stage {stage} takes {bytes} bytes with its moments, more than {STATE_BYTES_MAX}: raise model.stages"
    )]
    State {
        /// The stage.
        stage: usize,
        /// Bytes of its weights and moments.
        bytes: u64,
    },
}

impl RunConfig {
    /// Checks that a run can be made of this.
    ///
    /// # Errors
    /// The first rule that is broken, with the key to change.
    pub fn validate(&self) -> Result<(), RunConfigError> {
        let name_chars = self.name.chars().count();
        if !(1..=RUN_NAME_CHARS_MAX).contains(&name_chars)
            || self.name.trim().is_empty()
            || self.name.chars().any(char::is_control)
        {
            return Err(RunConfigError::Name);
        }
        if i64::try_from(self.seed).is_err() {
            return Err(RunConfigError::Seed { seed: self.seed });
        }
        self.model.validate()?;
        for (key, value) in self.numbers() {
            check_range(key, value)?;
        }
        self.check_training()?;
        let stages = self.model.stages;
        let ScheduleConfig { seats_min, .. } = self.schedule;
        if usize::from(seats_min) > stages {
            return Err(RunConfigError::Seats { seats_min, stages });
        }
        let round_steps = self.schedule.round_steps;
        let room = u32::from(self.merge.group_max).pow(MERGE_LEVELS_MAX);
        if u32::from(self.schedule.pipelines_max) > room {
            return Err(RunConfigError::Groups {
                group_max: self.merge.group_max,
                room,
            });
        }
        if self.merge.kind == MergeKind::Gradient && round_steps != 1 {
            return Err(RunConfigError::GradientRounds { round_steps });
        }
        if self.merge.kind == MergeKind::Gradient
            && let Codec::Subspace {
                adapt_rounds: adapt_rounds @ 1..,
                ..
            } = self.model.codec
        {
            return Err(RunConfigError::GradientAdapts { adapt_rounds });
        }
        for stage in 0..stages {
            let bytes = self.stage_state_bytes(stage);
            if bytes > STATE_BYTES_MAX {
                return Err(RunConfigError::State { stage, bytes });
            }
        }
        self.check_frame()
    }

    /// In 64 bits: where these sizes are not sound, they may exceed a browser's `usize`.
    fn check_frame(&self) -> Result<(), RunConfigError> {
        let model = &self.model;
        let sequence_tokens = model.context as u64 + 1;
        let row_bytes = self.format.row_bytes(model.boundary_width());
        let sequence_bytes = sequence_tokens * token_bytes(model.vocabulary) as u64
            + model.context as u64 * row_bytes as u64;
        let bytes = sequence_bytes * u64::from(self.microbatch_sequences())
            + (model.learned_basis_bytes() + model.adapted_basis_bytes()) as u64;
        if bytes > (FRAME_BYTES_MAX - HEADER_BYTES_MAX) as u64 {
            return Err(RunConfigError::Frame { bytes });
        }
        Ok(())
    }

    fn check_training(&self) -> Result<(), RunConfigError> {
        let TrainingConfig {
            batch,
            microbatches,
            samples,
            warmup_samples,
            ..
        } = self.training;
        if !batch.is_multiple_of(u32::from(microbatches)) {
            return Err(RunConfigError::Microbatches {
                batch,
                microbatches,
            });
        }
        if samples < u64::from(batch) {
            return Err(RunConfigError::Samples { samples, batch });
        }
        if warmup_samples > samples {
            return Err(RunConfigError::Warmup {
                warmup_samples,
                samples,
            });
        }
        Ok(())
    }

    /// Every number that has a bound of its own, by the key it is written as.
    fn numbers(&self) -> [(&'static str, f64); 17] {
        let training = &self.training;
        let schedule = &self.schedule;
        [
            ("training.batch", f64::from(training.batch)),
            ("training.microbatches", f64::from(training.microbatches)),
            ("training.learning_rate", training.learning_rate),
            ("training.clip", training.clip),
            ("training.samples", training.samples as f64),
            ("training.warmup_samples", training.warmup_samples as f64),
            ("schedule.round_steps", f64::from(schedule.round_steps)),
            (
                "schedule.round_max_seconds",
                schedule.round_max.as_secs_f64(),
            ),
            ("schedule.seats_min", f64::from(schedule.seats_min)),
            ("schedule.pipelines_max", f64::from(schedule.pipelines_max)),
            ("merge.learning_rate", self.merge.learning_rate),
            ("merge.momentum", self.merge.momentum),
            ("merge.group_max", self.merge.group_max.into()),
            ("schedule.eval_rounds", f64::from(schedule.eval_rounds)),
            (
                "schedule.eval_microbatches",
                f64::from(schedule.eval_microbatches),
            ),
            (
                "schedule.checkpoint_minutes",
                schedule.checkpoint.as_secs_f64() / 60.0,
            ),
            (
                "schedule.rewind_wait_seconds",
                schedule.rewind_wait.as_secs_f64(),
            ),
        ]
    }
}

/// Checks one number against its bound, if it has one.
pub(super) fn check_range(key: &str, value: f64) -> Result<(), RunConfigError> {
    match BOUNDS.iter().find(|bound| bound.key == key) {
        Some(&Bound {
            key,
            min,
            max,
            remedy,
        }) if !(min..=max).contains(&value) => Err(RunConfigError::Range {
            key,
            value,
            min,
            max,
            remedy,
        }),
        Some(_) | None => Ok(()),
    }
}
