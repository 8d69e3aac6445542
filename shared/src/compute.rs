//! The one boundary to the mathematics: jobs in, results out.
//!
//! The peer decides what is computed and in which order; an implementation owns weights,
//! gradients and stored border inputs. It is [`crate::model`] in the clients and a fake that
//! takes time in the simulation. It knows no peers, no rounds' outcome, no network.
//!
//! Invariant: jobs are done one at a time in the order given, each gives exactly one [`Done`].

use std::future::Future;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::transport::MaybeSend;
use crate::units::{Digest, RequestId, Round, StageId, StageRange, Step};
use crate::wire::frame::{Mode, Slot};
use crate::wire::generate::Sampling;
use crate::wire::merge::Shape;

/// What gradients of that norm are multiplied by, so that their norm is at most `clip`.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the optimizer multiplies in f32"
)]
pub fn clip_scale(clip: f64, norm: f64) -> f32 {
    if norm > clip {
        (clip / norm) as f32
    } else {
        1.0
    }
}

/// Where a stage's weights and moments come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StageState {
    /// The run's seed: round 0.
    Seed,
    /// A blob that another seat's [`Done::Snapshot`] gave; its hash was checked, its content not.
    Blob(Bytes),
}

/// What a stage brings into a merge: it is averaged with what the others bring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// What it changed over the round: its pseudo-gradient `start - end`.
    Round {
        /// The stage at the round's beginning.
        start: StageState,
        /// The stage at its end: a [`Snapshot::blob`] of ours.
        end: Bytes,
    },
    /// The gradient of the round's only step: a [`Snapshot::gradient`] of ours.
    Gradient(Bytes),
}

/// What enters a seat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Token ids, `[sequences, context + 1]`, row after row; the last column are targets only.
    pub tokens: Vec<u32>,
    /// What the seat before sent, in the run's number format; `None` at the head.
    pub boundary: Option<Bytes>,
    /// Number of the microbatch's first sample: keys the stochastic rounding.
    pub first_sample: u64,
}

/// Tokens of a text that the model goes on with: those that follow what a seat has read of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Portion {
    /// Which text.
    pub request: RequestId,
    /// Tokens that were read before; 0 begins the text, or begins it anew.
    pub position: u32,
    /// At least one, and with those before no more than the model's context.
    pub tokens: Vec<u32>,
    /// What the seat before sent, a row a token, in the run's number format; `None` at the head.
    pub boundary: Option<Bytes>,
    /// How the last seat draws the next token.
    pub sampling: Sampling,
    /// Tokens of the text that were drawn before.
    pub drawn: u32,
}

/// What a seat makes of a [`Portion`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Written {
    /// What the next seat receives.
    Boundary(Bytes),
    /// The next token, at the last seat.
    Token(u32),
    /// None: a number is not finite, and training will find the stage, and name it; or the learned basis of the border
    /// before the seat is still to come.
    Nothing,
}

/// Work for a seat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Job {
    /// Take these stages, and drop all gradients and stored inputs of before.
    Seat {
        /// Stages of the seat.
        stages: StageRange,
        /// One state a stage, in order.
        states: Vec<StageState>,
        /// Whether what was read of texts stays: these are the same stages, with newer weights.
        keeps_texts: bool,
    },
    /// Read on in a text with the weights of now; what was read of it before was remembered, and so is this.
    Generate(Portion),
    /// Remember a text no more.
    Forget {
        /// Which one.
        request: RequestId,
    },
    /// Forward through the seat. In [`Mode::Train`] the input is kept for the backward.
    ///
    /// The last seat in training only keeps the input: its backward runs the forward anyway.
    Forward {
        /// The microbatch.
        slot: Slot,
        /// Training or evaluation.
        mode: Mode,
        /// What enters.
        input: Input,
    },
    /// Backward through the seat from its kept input; adds to the step's gradients.
    Backward {
        /// The microbatch.
        slot: Slot,
        /// Gradient of the sum of token losses, in the run's number format; `None` at the last seat.
        gradient: Option<Bytes>,
        /// Tokens of the whole step, when this is the step's last microbatch: asks for the norm.
        step_tokens: Option<u64>,
    },
    /// The optimizer's update with the gradients of `step`, which are then cleared.
    Apply {
        /// The step that is applied.
        step: Step,
        /// What clipping multiplies all gradients by.
        scale: f32,
        /// Samples done before this step: sets the learning rate.
        samples_done: u64,
        /// Tokens of the whole step: gradients are divided by them.
        step_tokens: u64,
    },
    /// Copy out weights and moments.
    Snapshot {
        /// The round whose theta it will be.
        round: Round,
    },
    /// What a stage brings into a merge, plus what packing lost before, packed.
    ///
    /// Jobs of a merge work on copies alone: the seat's own weights stay as they are.
    Contribute {
        /// Who merges.
        shape: Shape,
        /// What it brings.
        change: Change,
        /// What packing lost before, as [`Done::Contributed`] and [`Done::Averaged`] gave it; empty for nothing.
        residual: Bytes,
    },
    /// The average of our own part of a stage, from what all members of a level's group bring, weighted by their samples.
    Average {
        /// Who merges.
        shape: Shape,
        /// Which of its levels.
        level: usize,
        /// Our part of each member's [`Done::Contributed::parts`], or beyond the first level of its
        /// [`Done::Averaged::parts`], in order of members.
        parts: Vec<Bytes>,
        /// As [`Done::Contributed`], or the [`Done::Averaged`] of the level before, gave it.
        residual: Bytes,
    },
    /// The outer step of a stage from the averages of all parts.
    OuterStep {
        /// Who merges.
        shape: Shape,
        /// The round whose theta it will be.
        round: Round,
        /// The stage at the round's beginning, with its outer momentum.
        start: StageState,
        /// The stage at its end: its moments are carried on.
        end: Bytes,
        /// The averages of each member's part of the first level, in order of members: a member's
        /// [`Done::Averaged::parts`], or what its further levels made of them, one after the other.
        parts: Vec<Bytes>,
    },
    /// The squared norm of a stage's merged gradient, for clipping by the norm over all stages.
    Norm {
        /// Who merges.
        shape: Shape,
        /// As in [`Job::OuterStep`].
        parts: Vec<Bytes>,
    },
    /// The optimizer's update of a stage with its merged gradient.
    GradientStep {
        /// Who merges.
        shape: Shape,
        /// The round whose theta it will be.
        round: Round,
        /// The stage at the round's beginning, with its moments.
        start: StageState,
        /// As in [`Job::OuterStep`].
        parts: Vec<Bytes>,
        /// What clipping multiplies all gradients by.
        scale: f32,
        /// Samples done before this step: sets the learning rate.
        samples_done: u64,
    },
}

/// A stage's weights and moments at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The stage.
    pub stage: StageId,
    /// Hash of the agreed part (weights, and with merged gradients the moments): equal in all replicas at a commit.
    pub agreed: Digest,
    /// Weights and moments as one safetensors file; its own hash is the blob's name.
    pub blob: Bytes,
    /// Where pipelines merge gradients: that of the last step's mean loss before clipping, all values in name order,
    /// f32 little-endian. Else empty.
    pub gradient: Bytes,
}

/// A job's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Done {
    /// The seat holds its stages.
    Seated {
        /// Hash of each stage's agreed part, in order: what it loaded is what the run agreed on.
        agreed: Vec<Digest>,
    },
    /// A forward.
    Forward {
        /// The microbatch.
        slot: Slot,
        /// What the next seat receives; `None` at the last seat.
        boundary: Option<Bytes>,
        /// Sum of token losses, at the last seat in [`Mode::Evaluate`].
        loss_sum: Option<f64>,
    },
    /// A text was read on.
    Generated {
        /// Which one.
        request: RequestId,
        /// What came of it.
        written: Written,
    },
    /// A text is not remembered any more.
    Forgotten {
        /// Which one.
        request: RequestId,
    },
    /// A backward.
    Backward {
        /// The microbatch.
        slot: Slot,
        /// What the seat before receives; `None` at the head.
        gradient: Option<Bytes>,
        /// Sum of token losses, at the last seat.
        loss_sum: Option<f64>,
        /// Sum of squared gradients (of the step's mean loss) over the seat, where it was asked for.
        norm_squared: Option<f64>,
    },
    /// An update.
    Applied {
        /// The step that was applied.
        step: Step,
    },
    /// Copies of all stages of the seat, in order.
    Snapshot {
        /// The round that was asked for.
        round: Round,
        /// One a stage.
        stages: Vec<Snapshot>,
    },
    /// What a stage changed.
    Contributed {
        /// The stage.
        stage: StageId,
        /// Packed, one part for each member of the first level, in order.
        parts: Vec<Bytes>,
        /// What packing lost, to be added the next time; empty for nothing.
        residual: Bytes,
    },
    /// The average of our part.
    Averaged {
        /// The stage.
        stage: StageId,
        /// Packed: one part for each member of the next level, in order, or one, where there is none.
        parts: Vec<Bytes>,
        /// What packing lost in both, to be added the next time.
        residual: Bytes,
    },
    /// The norm of a merged gradient.
    Normed {
        /// The stage.
        stage: StageId,
        /// Sum of its squares.
        norm_squared: f64,
    },
    /// The result of an outer step, or of a step with a merged gradient.
    Merged {
        /// The round that was asked for.
        round: Round,
        /// The stage's new state: equal in all members but for what is carried.
        snapshot: Snapshot,
    },
    /// A stage met NaN or infinity.
    NonFinite {
        /// The microbatch.
        slot: Slot,
        /// The first stage of the seat whose output is not finite.
        stage: StageId,
        /// Whether the seat's own input was finite: then the fault is this seat's.
        own: bool,
    },
    /// An input does not fit the model: wrong length, a token out of range, a scale that is not finite.
    Refused {
        /// What was wrong with it, in words.
        reason: String,
    },
    /// The device is lost or out of memory; no further job can be done.
    Failed {
        /// What happened, in words.
        reason: String,
    },
}

/// Does the work of a seat.
pub trait Compute: MaybeSend + 'static {
    /// Does one job. Not cancel safe: drive it to its end.
    fn run(&mut self, job: Job) -> impl Future<Output = Done> + MaybeSend;
}
