//! What peers say to each other: a 1-byte version, a postcard header, then the payload.
//!
//! A frame that concerns a microbatch bears its [`Slot`], so that what is late, repeated or from an older
//! line-up is told by its numbers. Cutting frames into messages is [`super::chunk`]'s business.
//!
//! Invariant: decoding any bytes never panics, and allocates at most what the bytes hold.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::units::{Epoch, Microbatch, PeerId, PipelineId, Round, StageId, Step};

/// First byte of every frame and of every hello to the host.
pub const VERSION: u8 = 1;

/// What a microbatch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Its gradients become part of a step.
    Train,
    /// Only its loss is wanted: nothing is stored, nothing applied.
    Evaluate,
}

/// Which line-up and round something belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The pipeline.
    pub pipeline: PipelineId,
    /// Its line-up.
    pub epoch: Epoch,
    /// The round it works on, from `theta_round`.
    pub round: Round,
}

/// Which microbatch something belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// Line-up and round.
    pub place: Place,
    /// Step within the round.
    pub step: Step,
    /// Microbatch within the step.
    pub microbatch: Microbatch,
}

/// How a step ended, as its head says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepEnd {
    /// What clipping multiplies the step's gradients by.
    pub scale: f32,
    /// Samples done before that step: those committed before the round plus this pipeline's in it.
    pub samples_done: u64,
}

/// The first part of a frame: what it is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Header {
    /// Who I am: the first frame on `control`, each way.
    Hello {
        /// The number the host gave me.
        peer: PeerId,
        /// Ed25519 signature over `hello_message(both DTLS fingerprints, both peers)`, 64 bytes.
        signature: Vec<u8>,
    },
    /// A boundary on its way to the next seat. Payload: token ids, then the packed boundary.
    Forward {
        /// The microbatch.
        slot: Slot,
        /// Training or evaluation.
        mode: Mode,
        /// Microbatches in this step.
        microbatches: u16,
        /// Sequences in this microbatch.
        sequences: u16,
        /// Number of the microbatch's first sample.
        first_sample: u64,
        /// How the step before ended; `None` on a round's first step.
        previous: Option<StepEnd>,
    },
    /// A boundary's gradient on its way back. Payload: the packed gradient; empty in evaluation.
    Backward {
        /// The microbatch.
        slot: Slot,
        /// Training or evaluation.
        mode: Mode,
        /// Sum of the microbatch's token losses.
        loss_sum: f64,
        /// On the step's last microbatch: squared gradient norms of this seat and all behind it.
        norm_squared: Option<f64>,
    },
    /// The round's last step is over: apply it. On `control`, down the pipe.
    Apply {
        /// Line-up and round.
        place: Place,
        /// The step to apply: the last one.
        step: Step,
        /// How it ended.
        end: StepEnd,
    },
    /// Please send me a piece of a stage's state.
    StateRequest {
        /// The round whose theta is wanted.
        round: Round,
        /// The stage.
        stage: StageId,
        /// From this byte of the blob on.
        offset: u64,
    },
    /// A piece of a stage's state. Payload: bytes of the blob; empty if the sender has it no more.
    StateChunk {
        /// The round whose theta it is.
        round: Round,
        /// The stage.
        stage: StageId,
        /// Where in the blob it belongs.
        offset: u64,
        /// Length of the whole blob in bytes; 0 if the sender has it no more.
        total: u64,
    },
    /// How many forward microbatches of this epoch the receiver takes in all, counted from its beginning.
    Credit {
        /// The pipeline.
        pipeline: PipelineId,
        /// Its line-up.
        epoch: Epoch,
        /// Cumulative number of microbatches granted.
        granted: u64,
    },
    /// I am here. Each second on `control`.
    Keepalive,
    /// I close this link on purpose.
    Bye {
        /// Why, in words for a log.
        reason: String,
    },
}

/// One message between peers.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// What it is about.
    pub header: Header,
    /// Tensor or state bytes; empty for most.
    pub payload: Bytes,
}
