//! What peers say to each other: a 1-byte version, a postcard header, then the payload.
//!
//! A frame that concerns a microbatch bears its [`Slot`], so that what is late, repeated or from an older
//! line-up is told by its numbers. Cutting frames into messages is [`super::chunk`]'s business.
//!
//! [`Frame::decode`] is the edge: what it returns has finite numbers, counts above zero and no payload where
//! none belongs. Whether a payload fits the model is for [`super::payload`] and [`super::number`].
//!
//! Invariant: decoding any bytes never panics, and allocates at most [`HEADER_BYTES_MAX`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::config::run::Opens;
use crate::limits::{
    FLOW_SIGNAL_BYTES_MAX, FLOWS_MAX, FRAME_BYTES_MAX, HEADER_BYTES_MAX, MERGE_SLICE_BYTES,
    REASON_BYTES_MAX, STATE_BYTES_MAX, STATE_CHUNK_BYTES,
};
use crate::transport::FlowName;
use crate::units::{
    Attempt, Epoch, Microbatch, PeerId, PipelineId, RequestId, Round, StageId, Step,
};
use crate::wire::generate::Sampling;
use crate::wire::merge::Leg;

/// First byte of every frame and of every hello to the host.
pub const VERSION: u8 = 7;
/// Version of this build, as people install it. Builds that speak the same [`VERSION`] take part in one run.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// What a microbatch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Its gradients become part of a step.
    Train,
    /// Only its loss is wanted: nothing is stored, nothing applied.
    Evaluate,
}

impl Mode {
    /// What a forward frame opens, for those that follow in their order; in evaluation, where they come in any, each may be
    /// the first.
    #[must_use]
    pub fn opens(self, slot: Slot) -> Opens {
        match (self, slot.microbatch.0, slot.step.0) {
            (Self::Evaluate, _, _) => Opens::Step,
            (Self::Train, 0, 0) => Opens::Round,
            (Self::Train, 0, _) => Opens::Step,
            (Self::Train, _, _) => Opens::Nothing,
        }
    }
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

/// An answer to a keepalive, with the next one the other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// The stamp of the keepalive that is answered.
    pub stamp_us: u64,
    /// Microseconds from its arrival until this answer left.
    pub held_us: u64,
}

/// What a seat must know of those behind it, to run as far ahead as hides their links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Microseconds that a microbatch is on the wire on its way back to the seat that is told, and behind the one that
    /// tells, both ways: delay and transfer.
    pub wire_us: u64,
    /// Microseconds of the slowest seat's microbatch, from the seat that tells on: forward and backward, rests included.
    pub slowest_us: u64,
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
    /// A step is over: apply it. On `control`, down the pipe, as soon as the head knows how it ended.
    Apply {
        /// Line-up and round.
        place: Place,
        /// The step to apply.
        step: Step,
        /// How it ended.
        end: StepEnd,
        /// Whether the round ends with it.
        last: bool,
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
        /// What is behind the seat before.
        behind: Behind,
    },
    /// I am here. Each second on `control`.
    Keepalive {
        /// Microseconds of the sender's clock, to be sent back.
        stamp_us: u64,
        /// Answer to the other end's newest keepalive that is not answered.
        echo: Option<Echo>,
    },
    /// I close this link on purpose.
    Bye {
        /// Why, in words for a log.
        reason: String,
    },
    /// The whole of a `forward` or `backward` is here. At once, on `control`: the sender measures the link by it.
    Received {
        /// The microbatch.
        slot: Slot,
        /// Training or evaluation.
        mode: Mode,
    },
    /// A slice of a part of a stage's merge. Payload: packed numbers.
    Merge {
        /// The attempt that it is for.
        attempt: Attempt,
        /// The stage.
        stage: StageId,
        /// What it is.
        leg: Leg,
        /// Where in the part it begins, in bytes.
        offset: u64,
    },
    /// How many slices of that attempt the sender has taken from us in all. On `control`: so many more may come.
    MergeTaken {
        /// The attempt.
        attempt: Attempt,
        /// Cumulative number of slices.
        taken: u64,
    },
    /// Sum of squares of a merged gradient from the sender's stages to the last one. On `control`, up the pipe.
    MergeNorm {
        /// The attempt.
        attempt: Attempt,
        /// Added stage by stage, the last one first.
        norm_squared: f64,
    },
    /// What clipping multiplies the merged gradients of all stages by. On `control`, down the pipe.
    MergeScale {
        /// The attempt.
        attempt: Attempt,
        /// From 0 to 1.
        scale: f32,
    },
    /// A text on its way to the next seat. Payload: token ids, then their packed boundary, a row each.
    Text {
        /// The pipeline.
        pipeline: PipelineId,
        /// Its line-up. A text outlives rounds.
        epoch: Epoch,
        /// Which text.
        request: RequestId,
        /// Tokens that the seat has read of it before; 0 begins it, or begins it anew.
        position: u32,
        /// Tokens of it that were drawn before.
        drawn: u32,
        /// How the next one is drawn.
        sampling: Sampling,
    },
    /// The token that was drawn from a text, on its way to the head. On `control`.
    Drawn {
        /// The pipeline.
        pipeline: PipelineId,
        /// Its line-up.
        epoch: Epoch,
        /// Which text.
        request: RequestId,
        /// Tokens of it that were drawn before.
        drawn: u32,
        /// The token; `None` if the sender, or a seat behind it, cannot go on with the text.
        token: Option<u32>,
    },
    /// A text is over: what was read of it may be forgotten. On `control`, down the pipe.
    Forget {
        /// The pipeline.
        pipeline: PipelineId,
        /// Its line-up.
        epoch: Epoch,
        /// Which text.
        request: RequestId,
    },
    /// Bytes of messages on `tensors` that arrived from you in all; tell me the same from now on. On the `control` of the same
    /// connection; a further one's carries nothing else.
    Arrived {
        /// Since it opened.
        bytes: u64,
        /// Whether the sender waits for such a word, so that one is to be said even if it is no news.
        asks: bool,
    },
    /// Opens or mends a further connection. Payload: a [`LinkSignal`](crate::transport::LinkSignal) in postcard. On `control`.
    Flow(FlowName),
}

/// One message between peers.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// What it is about.
    pub header: Header,
    /// Tensor or state bytes; empty for most.
    pub payload: Bytes,
}

/// Length of an Ed25519 signature.
const SIGNATURE_BYTES: usize = 64;

/// Why bytes from a peer were refused. Close the link; never stop the run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Longer than any frame.
    #[error("frame of {len_bytes} bytes exceeds the limit of {FRAME_BYTES_MAX}")]
    TooLarge {
        /// How long it is.
        len_bytes: usize,
    },
    /// No byte at all.
    #[error("frame is empty")]
    Empty,
    /// The other end runs another build.
    #[error("peer speaks wire version {theirs}, this build speaks {VERSION}")]
    Version {
        /// The version it speaks.
        theirs: u8,
    },
    /// Not a header, or one longer than [`HEADER_BYTES_MAX`].
    #[error("no header can be read: {reason}")]
    Header {
        /// What the reader said.
        reason: String,
    },
    /// A header with a value that no correct build sends.
    #[error("{kind} frame: {rule}")]
    Value {
        /// Name of the header.
        kind: &'static str,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A payload whose length does not follow from its header and the run's sizes.
    #[error("payload of {len_bytes} bytes, must be {expected_bytes}")]
    Length {
        /// How long it is.
        len_bytes: usize,
        /// How long it must be.
        expected_bytes: usize,
    },
    /// A token id that the vocabulary does not have.
    #[error("token {token} is not below the vocabulary's size {vocabulary}")]
    Token {
        /// The id.
        token: u32,
        /// Ids are below this.
        vocabulary: usize,
    },
}

impl StepEnd {
    /// Clipping only ever scales down.
    fn is_sound(self) -> bool {
        (0.0..=1.0).contains(&self.scale)
    }
}

impl Header {
    /// Line-up and round that the frame is about, if it is about any.
    pub fn place(&self) -> Option<Place> {
        match self {
            Self::Forward { slot, .. } | Self::Backward { slot, .. } => Some(slot.place),
            Self::Apply { place, .. } => Some(*place),
            Self::Hello { .. }
            | Self::StateRequest { .. }
            | Self::StateChunk { .. }
            | Self::Credit { .. }
            | Self::Keepalive { .. }
            | Self::Bye { .. }
            | Self::Received { .. }
            | Self::Merge { .. }
            | Self::MergeNorm { .. }
            | Self::MergeScale { .. }
            | Self::MergeTaken { .. }
            | Self::Text { .. }
            | Self::Drawn { .. }
            | Self::Forget { .. }
            | Self::Arrived { .. }
            | Self::Flow(_) => None,
        }
    }

    /// The header's name, for logs.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Forward { .. } => "forward",
            Self::Backward { .. } => "backward",
            Self::Apply { .. } => "apply",
            Self::StateRequest { .. } => "state request",
            Self::StateChunk { .. } => "state chunk",
            Self::Credit { .. } => "credit",
            Self::Keepalive { .. } => "keepalive",
            Self::Bye { .. } => "bye",
            Self::Received { .. } => "received",
            Self::Merge { .. } => "merge",
            Self::MergeNorm { .. } => "merge norm",
            Self::MergeScale { .. } => "merge scale",
            Self::MergeTaken { .. } => "merge taken",
            Self::Text { .. } => "text",
            Self::Drawn { .. } => "drawn",
            Self::Forget { .. } => "forget",
            Self::Arrived { .. } => "arrived",
            Self::Flow(_) => "flow",
        }
    }

    /// A `bye` whose reason is cut to what a frame may carry.
    #[must_use]
    pub fn bye(reason: &str) -> Self {
        let reason = reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned();
        Self::Bye { reason }
    }

    /// The first rule that this header breaks with a payload of so many bytes.
    fn broken_rule(&self, payload_bytes: usize) -> Option<&'static str> {
        let rules: &[(bool, &'static str)] = match self {
            Self::Hello { signature, .. } => &[
                (
                    signature.len() == SIGNATURE_BYTES,
                    "a signature has 64 bytes",
                ),
                (payload_bytes == 0, "has no payload"),
            ],
            Self::Forward {
                slot,
                microbatches,
                sequences,
                previous,
                ..
            } => &[
                (
                    slot.microbatch.0 < *microbatches,
                    "the microbatch is one of the step's",
                ),
                (*sequences > 0, "has at least one sequence"),
                (
                    previous.is_none_or(StepEnd::is_sound),
                    "the scale lies between 0 and 1",
                ),
                (payload_bytes > 0, "has a payload"),
            ],
            Self::Backward {
                mode,
                loss_sum,
                norm_squared,
                ..
            } => &[
                (loss_sum.is_finite(), "the loss is finite"),
                (
                    norm_squared.is_none_or(|norm| norm.is_finite() && norm >= 0.0),
                    "the norm is finite and not negative",
                ),
                (
                    (*mode == Mode::Train) == (payload_bytes > 0),
                    "has a payload in training, none in evaluation",
                ),
            ],
            Self::Apply { end, .. } => &[
                (end.is_sound(), "the scale lies between 0 and 1"),
                (payload_bytes == 0, "has no payload"),
            ],
            Self::StateRequest { offset, .. } => &[
                (*offset < STATE_BYTES_MAX, "the offset lies within a blob"),
                (payload_bytes == 0, "has no payload"),
            ],
            Self::StateChunk { offset, total, .. } => &[
                (
                    payload_bytes <= STATE_CHUNK_BYTES,
                    "a chunk is no longer than agreed",
                ),
                (*total <= STATE_BYTES_MAX, "a blob is no longer than agreed"),
                (
                    offset
                        .checked_add(payload_bytes as u64)
                        .is_some_and(|end| end <= *total || *total == 0 && payload_bytes == 0),
                    "the chunk lies within the blob",
                ),
            ],
            Self::Merge { offset, .. } => &[
                (payload_bytes > 0, "has a payload"),
                (
                    payload_bytes <= MERGE_SLICE_BYTES,
                    "a slice is no longer than agreed",
                ),
                (*offset < STATE_BYTES_MAX, "the offset lies within a stage"),
            ],
            Self::MergeNorm { norm_squared, .. } => &[
                (
                    norm_squared.is_finite() && *norm_squared >= 0.0,
                    "the norm is finite and not negative",
                ),
                (payload_bytes == 0, "has no payload"),
            ],
            Self::MergeScale { scale, .. } => &[
                (
                    (0.0..=1.0).contains(scale),
                    "the scale lies between 0 and 1",
                ),
                (payload_bytes == 0, "has no payload"),
            ],
            Self::Text { sampling, .. } => &[
                (sampling.is_sound(), "a token can be drawn so"),
                (payload_bytes > 0, "has a payload"),
            ],
            Self::Flow(name) => &[
                (name.number < FLOWS_MAX, "a link has few connections"),
                (
                    (1..=FLOW_SIGNAL_BYTES_MAX).contains(&payload_bytes),
                    "has a signal, no longer than agreed",
                ),
            ],
            Self::Credit { .. }
            | Self::Keepalive { .. }
            | Self::Received { .. }
            | Self::MergeTaken { .. }
            | Self::Arrived { .. }
            | Self::Drawn { .. }
            | Self::Forget { .. } => &[(payload_bytes == 0, "has no payload")],
            Self::Bye { reason } => &[
                (
                    reason.len() <= REASON_BYTES_MAX,
                    "a reason is no longer than agreed",
                ),
                (payload_bytes == 0, "has no payload"),
            ],
        };
        rules
            .iter()
            .find_map(|&(kept, rule)| (!kept).then_some(rule))
    }
}

impl From<Header> for Frame {
    /// A frame without payload.
    fn from(header: Header) -> Self {
        Self {
            header,
            payload: Bytes::new(),
        }
    }
}

impl Frame {
    /// Version byte, header, payload.
    ///
    /// # Panics
    /// If the frame is larger than [`FRAME_BYTES_MAX`]: a validated configuration leads to none.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut buffer = Vec::with_capacity(1 + 64 + self.payload.len());
        buffer.push(VERSION);
        let mut buffer = postcard::to_extend(&self.header, buffer)
            .expect("a header holds nothing that postcard cannot write");
        buffer.extend_from_slice(&self.payload);
        assert!(
            buffer.len() <= FRAME_BYTES_MAX,
            "{} frame of {} bytes",
            self.header.kind(),
            buffer.len()
        );
        buffer.into()
    }

    /// Length of what [`encode`](Self::encode) gives.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let header_bytes = postcard::experimental::serialized_size(&self.header)
            .expect("a header holds nothing that postcard cannot write");
        1 + header_bytes + self.payload.len()
    }

    /// Reads what [`encode`](Self::encode) wrote. The payload shares the memory of `bytes`.
    ///
    /// # Errors
    /// Whatever no build of this version sends.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(DecodeError::TooLarge {
                len_bytes: bytes.len(),
            });
        }
        let (&version, rest) = bytes.split_first().ok_or(DecodeError::Empty)?;
        if version != VERSION {
            return Err(DecodeError::Version { theirs: version });
        }
        let head = &rest[..rest.len().min(HEADER_BYTES_MAX)];
        let (header, unread) =
            postcard::take_from_bytes::<Header>(head).map_err(|error| DecodeError::Header {
                reason: error.to_string(),
            })?;
        let payload = bytes.slice(1 + head.len() - unread.len()..);
        match header.broken_rule(payload.len()) {
            Some(rule) => Err(DecodeError::Value {
                kind: header.kind(),
                rule,
            }),
            None => Ok(Self { header, payload }),
        }
    }
}
