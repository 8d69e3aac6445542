//! Frames on their way to and from one peer: cut, put in order of urgency, joined again.
//!
//! `control` keeps its order. On `tensors` microbatches go before state: a long transfer never holds a
//! microbatch up for longer than one message.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::transport::{Channel, Transport};
use crate::units::PeerId;
use crate::wire::chunk::{ChunkError, Chunker, Joiner};
use crate::wire::frame::{DecodeError, Frame, Header};

/// Why what a peer sent is no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum JoinError {
    /// The pieces do not fit.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// The pieces fit, but make no frame.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Frames of one urgency, and the messages of the one being sent.
#[derive(Debug, Default)]
struct Lane {
    frames: VecDeque<Bytes>,
    messages: VecDeque<Bytes>,
}

impl Lane {
    /// The next message, cut from the next frame when the last one is out.
    fn front(&mut self, chunker: &mut Chunker) -> Option<&Bytes> {
        if self.messages.is_empty()
            && let Some(frame) = self.frames.pop_front()
        {
            self.messages.extend(chunker.cut(frame));
        }
        self.messages.front()
    }
}

/// One peer's two channels, both ways.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    control: Lane,
    microbatches: Lane,
    state: Lane,
    control_chunks: (Chunker, Joiner),
    tensor_chunks: (Chunker, Joiner),
}

impl Outbox {
    /// Queues a frame.
    pub(super) fn push(&mut self, frame: &Frame) {
        let lane = match frame.header {
            Header::Forward { .. } | Header::Backward { .. } => &mut self.microbatches,
            Header::StateChunk { .. } => &mut self.state,
            Header::Hello { .. }
            | Header::Apply { .. }
            | Header::StateRequest { .. }
            | Header::Credit { .. }
            | Header::Keepalive
            | Header::Bye { .. } => &mut self.control,
        };
        lane.frames.push_back(frame.encode());
    }

    /// Gives the transport as much as it takes.
    pub(super) fn flush<T: Transport>(&mut self, to: PeerId, transport: &mut T) {
        drain(
            &mut self.control,
            Channel::Control,
            &mut self.control_chunks.0,
            to,
            transport,
        );
        let chunker = &mut self.tensor_chunks.0;
        if drain(
            &mut self.microbatches,
            Channel::Tensors,
            chunker,
            to,
            transport,
        ) {
            drain(&mut self.state, Channel::Tensors, chunker, to, transport);
        }
    }

    /// Takes a message; gives the frame that it completes.
    pub(super) fn join(
        &mut self,
        channel: Channel,
        message: Bytes,
    ) -> Result<Option<Frame>, JoinError> {
        let joiner = match channel {
            Channel::Control => &mut self.control_chunks.1,
            Channel::Tensors => &mut self.tensor_chunks.1,
        };
        let whole = joiner.push(message)?;
        Ok(whole.map(|bytes| Frame::decode(&bytes)).transpose()?)
    }
}

/// Whether the lane is empty now; otherwise the channel is full.
fn drain<T: Transport>(
    lane: &mut Lane,
    channel: Channel,
    chunker: &mut Chunker,
    to: PeerId,
    transport: &mut T,
) -> bool {
    while let Some(message) = lane.front(chunker) {
        if !transport.try_send(to, channel, message.clone()) {
            return false;
        }
        lane.messages.pop_front();
    }
    true
}
