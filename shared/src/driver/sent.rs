//! What went out to other volunteers, counted by what it was for.
//!
//! The driver's outboxes count each frame as it is cut into messages for an open link. Whoever runs the
//! driver keeps a clone of [`Sent`] and reads it when it likes, also after the driver has ended. What
//! encryption, acknowledgements and the network's own headers add is not known here.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::wire::frame::{Header, Mode};

/// What a frame is for, as far as its volume is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A boundary on its way to the next seat, in training.
    Forward,
    /// A boundary's gradient on its way back.
    Backward,
    /// Held-out data, both ways.
    Evaluation,
    /// Slices of merges.
    Merge,
    /// Pieces of a stage's state.
    State,
    /// Texts that the model writes, on their way to the next seat.
    Text,
    /// Everything else: hellos, credit, keepalives, requests.
    Control,
}

impl Purpose {
    /// What a frame with that header is for.
    #[must_use]
    pub const fn of(header: &Header) -> Self {
        match header {
            Header::Forward {
                mode: Mode::Train, ..
            } => Self::Forward,
            Header::Backward {
                mode: Mode::Train, ..
            } => Self::Backward,
            Header::Forward {
                mode: Mode::Evaluate,
                ..
            }
            | Header::Backward {
                mode: Mode::Evaluate,
                ..
            } => Self::Evaluation,
            Header::Merge { .. } => Self::Merge,
            Header::StateChunk { .. } => Self::State,
            Header::Text { .. } => Self::Text,
            Header::Hello { .. }
            | Header::Apply { .. }
            | Header::StateRequest { .. }
            | Header::Credit { .. }
            | Header::Keepalive { .. }
            | Header::Bye { .. }
            | Header::Received { .. }
            | Header::MergeNorm { .. }
            | Header::MergeScale { .. }
            | Header::Arrived { .. }
            | Header::Flow(_)
            | Header::MergeTaken { .. }
            | Header::Drawn { .. }
            | Header::Forget { .. } => Self::Control,
        }
    }
}

/// Frames of one purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// How many.
    pub frames: u64,
    /// Bytes of tensors, tokens or state in them.
    pub payload_bytes: u64,
    /// Bytes of the messages they were cut into: payload, the frame's header, a chunk header a message.
    pub message_bytes: u64,
}

/// Frames by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Volumes {
    /// Boundaries in training.
    pub forward: Volume,
    /// Gradients.
    pub backward: Volume,
    /// Held-out data, both ways.
    pub evaluation: Volume,
    /// Merges.
    pub merge: Volume,
    /// State.
    pub state: Volume,
    /// Texts.
    pub text: Volume,
    /// Everything else.
    pub control: Volume,
}

/// A running count; a clone counts with it.
#[derive(Clone, Debug, Default)]
pub struct Sent(Arc<Mutex<Volumes>>);

impl Sent {
    /// What has gone out so far.
    #[must_use]
    pub fn volumes(&self) -> Volumes {
        // Plain sums: a panic elsewhere leaves nothing half done.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one frame.
    pub(super) fn add(&self, purpose: Purpose, payload_bytes: usize, message_bytes: usize) {
        let mut volumes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let volume = match purpose {
            Purpose::Forward => &mut volumes.forward,
            Purpose::Backward => &mut volumes.backward,
            Purpose::Evaluation => &mut volumes.evaluation,
            Purpose::Merge => &mut volumes.merge,
            Purpose::State => &mut volumes.state,
            Purpose::Text => &mut volumes.text,
            Purpose::Control => &mut volumes.control,
        };
        volume.frames += 1;
        volume.payload_bytes += payload_bytes as u64;
        volume.message_bytes += message_bytes as u64;
    }
}
