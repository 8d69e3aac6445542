//! A run's configuration once it is valid: what all sides compute with.
//!
//! Made from what a host wrote by [`super::written`], sent to volunteers as JSON, kept in the journal.
//! Values here are in range once [`RunConfig::validate`] has passed; nothing downstream checks them again. A
//! volunteer calls it on what a host sent, as the host did on what a person wrote.
//!
//! Invariant: two volunteers with equal `RunConfig` derive the same model, bit for bit.

use serde::{Deserialize, Serialize};

use super::model::{ModelConfig, NumberFormat, token_bytes};
use crate::limits::{SIGNAL_BYTES_A_STAGE, SIGNAL_BYTES_BASE};
use crate::units::{Digest, Microbatch, Round, Span};

/// Weights and both moments of one parameter, in f32.
const PARAMETER_STATE_BYTES: u64 = 12;
/// ... and the outer momentum, where pipelines merge.
const OUTER_MOMENTUM_BYTES: u64 = 4;

/// A run, as host and volunteers agree on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// What people call it.
    pub name: String,
    /// Everything that is not data or learned follows from it.
    pub seed: u64,
    /// The transformer, its cut into stages and its boundary codec.
    pub model: ModelConfig,
    /// How boundaries are packed where they cross the network.
    pub format: NumberFormat,
    /// Batch sizes, learning rate and length.
    pub training: TrainingConfig,
    /// How rounds, seats and durability go.
    pub schedule: ScheduleConfig,
    /// How pipelines become one again at a round's end.
    pub merge: MergeConfig,
}

/// What several pipelines make of what they trained in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeKind {
    /// DiLoCo, arXiv 2311.08105: each pipeline's change over the round is a pseudo-gradient; their average drives a step
    /// with Nesterov momentum.
    Outer,
    /// A round is one step, and what is averaged is its gradient: as one pipeline with the larger batch.
    Gradient,
}

/// How what several pipelines trained in a round is merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeConfig {
    /// Of what, and into what.
    pub kind: MergeKind,
    /// How gradients and pseudo-gradients are packed; what packing loses is carried into the next round.
    pub format: NumberFormat,
    /// Learning rate of the outer step.
    pub learning_rate: f64,
    /// Its Nesterov momentum.
    pub momentum: f64,
    /// Pipelines that merge in one group; more do in levels of groups.
    pub group_max: u16,
}

/// How the model is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingConfig {
    /// Samples (sequences) a step. A multiple of `microbatches`.
    pub batch: u32,
    /// Microbatches a step.
    pub microbatches: u16,
    /// Highest learning rate, after warm-up.
    pub learning_rate: f64,
    /// Global gradient norm above which gradients are scaled down.
    pub clip: f64,
    /// Length of the run in samples: what the learning rate's schedule is laid over. The run ends there.
    pub samples: u64,
    /// Samples over which the learning rate rises from 0.
    pub warmup_samples: u64,
}

/// How the run is organised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduleConfig {
    /// Steps a round.
    pub round_steps: u32,
    /// Longest a round may take until it is closed with the steps it has.
    pub round_max: Span,
    /// Seats that the run waits for; 1 lets a single volunteer hold all stages.
    pub seats_min: u16,
    /// Pipelines at most.
    pub pipelines_max: u16,
    /// An evaluation each so many rounds; 0 for none.
    pub eval_rounds: u32,
    /// Microbatches of held-out data an evaluation.
    pub eval_microbatches: u16,
    /// Between checkpoints in the store.
    pub checkpoint: Span,
    /// How long a lost last copy is waited for before the run goes back.
    pub rewind_wait: Span,
}

/// What a forward frame is the first of: such frames bear the bases that change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opens {
    /// A round, and its first step.
    Round,
    /// A step; or it may be the first of an evaluation that comes.
    Step,
    /// Nothing.
    Nothing,
}

impl RunConfig {
    /// Sequences in one microbatch.
    pub fn microbatch_sequences(&self) -> u16 {
        u16::try_from(self.training.batch / u32::from(self.training.microbatches))
            .expect("a validated batch is at most 65,535 sequences a microbatch")
    }

    /// Tokens whose loss one step sums up.
    pub fn step_tokens(&self) -> u64 {
        u64::from(self.training.batch) * self.model.context as u64
    }

    /// A name for this configuration: a journal or store made under another one is refused.
    pub fn digest(&self) -> Digest {
        let text =
            serde_json::to_vec(self).expect("a configuration has string keys and finite numbers");
        Digest::of(&text)
    }
}

impl RunConfig {
    /// Bytes of a forward frame's payload that opens nothing: token ids and the packed boundary of a microbatch. See
    /// [`Self::forward_boundary_bytes`] for those that do.
    #[must_use]
    pub fn forward_payload_bytes(&self) -> usize {
        self.token_ids_bytes() + self.boundary_bytes()
    }

    /// Bytes of a microbatch's token ids.
    #[must_use]
    pub fn token_ids_bytes(&self) -> usize {
        let sequences = usize::from(self.microbatch_sequences());
        let ModelConfig {
            vocabulary,
            context,
            ..
        } = self.model;
        sequences * (context + 1) * token_bytes(vocabulary)
    }

    /// Longest message that a volunteer has to say in this run.
    #[must_use]
    pub fn signal_bytes_max(&self) -> usize {
        SIGNAL_BYTES_BASE + self.model.stages * SIGNAL_BYTES_A_STAGE
    }

    /// Bytes of a microbatch's packed boundary, in either direction.
    #[must_use]
    pub fn boundary_bytes(&self) -> usize {
        let rows = usize::from(self.microbatch_sequences()) * self.model.context;
        rows * self.format.row_bytes(self.model.boundary_width())
    }

    /// Bytes that follow the token ids of a forward frame: the packed boundary, and behind it, as f32 little-endian, a
    /// basis: of the border, where it is learned, with what opens a step; of the subspace, where it is adapted, with what
    /// opens a round.
    #[must_use]
    pub fn forward_boundary_bytes(&self, opens: Opens) -> usize {
        let basis = match opens {
            Opens::Round => self.model.learned_basis_bytes() + self.model.adapted_basis_bytes(),
            Opens::Step => self.model.learned_basis_bytes(),
            Opens::Nothing => 0,
        };
        self.boundary_bytes() + basis
    }

    /// Bytes of a backward frame's payload: the packed gradient of a boundary, and with a step's last microbatch, as f32
    /// little-endian, what the receiver adds to the gradient of a learned basis, or what an adapted one turns by.
    #[must_use]
    pub fn backward_payload_bytes(&self, round: Round, microbatch: Microbatch) -> usize {
        let last = self.training.microbatches.checked_sub(1);
        if last != Some(microbatch.0) {
            return self.boundary_bytes();
        }
        let energy = usize::from(self.model.adapts_in(round)) * self.model.adapted_basis_bytes();
        self.boundary_bytes() + self.model.learned_basis_bytes() + energy
    }

    /// Bytes of the weights and moments of `stage`.
    #[must_use]
    pub fn stage_state_bytes(&self, stage: usize) -> u64 {
        let outer = if self.merges() {
            OUTER_MOMENTUM_BYTES
        } else {
            0
        };
        self.model.parameter_count_of(stage) as u64 * (PARAMETER_STATE_BYTES + outer)
    }

    /// Whether pipelines merge their gradients.
    #[must_use]
    pub fn merges_gradients(&self) -> bool {
        self.merges() && self.merge.kind == MergeKind::Gradient
    }

    /// Whether several pipelines may train at once, and so merge.
    #[must_use]
    pub const fn merges(&self) -> bool {
        self.schedule.pipelines_max > 1
    }
}
