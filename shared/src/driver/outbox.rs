//! Frames on their way to and from one peer: cut, put in order of urgency, joined again.
//!
//! `control` keeps its order. On `tensors` microbatches go before merges, and merges before state: a long transfer never
//! holds a microbatch up for longer than one message. Where the link has several connections ([`Flows`]), `tensors` go by all of
//! them in turn.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::flows::{Act, Flows};
use super::sent::{Purpose, Sent};
use super::way::Way;
use crate::limits::FLOW_SIGNAL_BYTES_MAX;
use crate::transport::{Channel, Flow, FlowName, LinkEvent, Transport};
use crate::units::{PeerId, Time};
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
    /// A `flow` frame without a signal in it.
    #[error("no signal of a connection can be read: {0}")]
    Signal(#[from] postcard::Error),
}

/// An encoded frame that waits.
#[derive(Debug)]
struct Queued {
    purpose: Purpose,
    payload_bytes: usize,
    bytes: Bytes,
}

/// Frames of one urgency, and the messages of the one being sent.
#[derive(Debug, Default)]
struct Lane {
    frames: VecDeque<Queued>,
    messages: VecDeque<Bytes>,
    /// Frames that left since this was asked last.
    left: usize,
}

impl Lane {
    /// The next message, cut from the next frame when the last one is out.
    fn front(&mut self, chunker: &mut Chunker, sent: &Sent) -> Option<&Bytes> {
        if self.messages.is_empty()
            && let Some(frame) = self.frames.pop_front()
        {
            self.messages.extend(chunker.cut(frame.bytes));
            let message_bytes = self.messages.iter().map(Bytes::len).sum();
            sent.add(frame.purpose, frame.payload_bytes, message_bytes);
        }
        self.messages.front()
    }

    fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.messages.is_empty()
    }

    /// The next message is out.
    fn pop(&mut self) {
        self.messages.pop_front();
        self.left += usize::from(self.messages.is_empty());
    }
}

/// One peer's two channels, both ways.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    sent: Sent,
    control: Lane,
    microbatches: Lane,
    merges: Lane,
    state: Lane,
    control_chunks: (Chunker, Joiner),
    tensor_chunks: (Chunker, Joiner),
    /// What went and came by each of the link's connections, by number.
    ways: BTreeMap<u8, Way>,
    /// Whether the transport bounds what is under way by a connection. Where bulk waits, it is bounded here all the same.
    transport_bounds: bool,
    flows: Flows,
    /// The connection that was used last.
    turn: usize,
    /// The generation that the link was opened with.
    generation: u32,
}

impl Outbox {
    /// An outbox of a link that has just opened; what leaves is added to `sent`. It bounds what is under way if the
    /// transport does not.
    pub(super) fn new(sent: Sent, transport_bounds: bool, generation: u32) -> Self {
        Self {
            sent,
            generation,
            transport_bounds,
            ..Self::default()
        }
    }

    /// Queues a frame.
    pub(super) fn push(&mut self, frame: &Frame) {
        let lane = match frame.header {
            Header::Forward { .. } | Header::Backward { .. } | Header::Text { .. } => {
                &mut self.microbatches
            }
            Header::Merge { .. } => &mut self.merges,
            Header::StateChunk { .. } => &mut self.state,
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
            | Header::Forget { .. } => &mut self.control,
        };
        lane.frames.push_back(Queued {
            purpose: Purpose::of(&frame.header),
            payload_bytes: frame.payload.len(),
            bytes: frame.encode(),
        });
    }

    /// Gives the transport as much as it takes, and the line carries.
    pub(super) fn flush<T: Transport>(&mut self, now: Time, to: PeerId, transport: &mut T) {
        self.flush_control(to, transport);
        // Behind what waits, and the newest word alone: each says all.
        if self.control.is_empty() {
            self.tell_arrived(now, to, transport, Way::is_word_due);
        }
        self.flush_tensors(now, to, transport);
        let waits = [&self.microbatches, &self.merges, &self.state];
        let waits = !waits.into_iter().all(Lane::is_empty);
        let told_bytes = self.ways.values().map(Way::told_bytes).sum();
        self.flows.look(now, waits, told_bytes);
        self.tell_arrived(now, to, transport, |way| {
            way.is_to_ask() || way.is_late(now)
        });
        self.carry_out(to, transport);
        self.flush_control(to, transport);
    }

    /// What is to be done for further connections.
    fn carry_out<T: Transport>(&mut self, to: PeerId, transport: &mut T) {
        while let Some(act) = self.flows.poll() {
            match act {
                Act::Step(number, step) => transport.link(Flow { peer: to, number }, step),
                Act::Signal(name, signal) => {
                    let payload = postcard::to_allocvec(&signal)
                        .expect("a signal holds nothing that postcard cannot write");
                    // None of today's stacks makes a longer one; the connection is not opened then.
                    if payload.len() <= FLOW_SIGNAL_BYTES_MAX {
                        self.push(&Frame {
                            header: Header::Flow(name),
                            payload: payload.into(),
                        });
                    }
                }
            }
        }
    }

    /// The other end says something of a further connection.
    pub(super) fn handle_signal(
        &mut self,
        now: Time,
        theirs: FlowName,
        payload: &[u8],
    ) -> Result<(), JoinError> {
        let signal = postcard::from_bytes(payload)?;
        self.flows.handle_signal(now, theirs, signal);
        Ok(())
    }

    /// News of a further connection, from the transport.
    pub(super) fn handle_flow_event(&mut self, now: Time, number: u8, event: LinkEvent) {
        self.flows.handle_event(now, number, event);
    }

    /// That messages are missing which nothing brings back: to the link as if its first connection had broken.
    pub(super) fn lost(&self) -> Option<LinkEvent> {
        let generation = self.generation;
        let is_missing = |number| self.ways.get(number).is_some_and(Way::is_something_missing);
        let is_lost = self.flows.ended().iter().any(is_missing);
        is_lost.then_some(LinkEvent::Down { generation })
    }

    /// Whether the link's first connection goes through a relay.
    pub(super) fn set_relayed(&mut self, relayed: bool) {
        self.flows.set_relayed(relayed);
    }

    /// When to call [`Outbox::handle_timeout`].
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let late = self.ways.values().filter_map(Way::late_at);
        late.chain(self.flows.poll_timeout()).min()
    }

    /// Time has come; flush next.
    pub(super) fn handle_timeout(&mut self, now: Time) {
        self.flows.handle_timeout(now);
    }

    /// Closes all connections but the first.
    pub(super) fn close<T: Transport>(&mut self, to: PeerId, transport: &mut T) {
        self.flows.close();
        self.carry_out(to, transport);
    }

    fn flush_tensors<T: Transport>(&mut self, now: Time, to: PeerId, transport: &mut T) {
        let chunker = &mut self.tensor_chunks.0;
        let usable = self.flows.usable();
        let bounds = !self.transport_bounds || self.flows.has_waited();
        for lane in [&mut self.microbatches, &mut self.merges, &mut self.state] {
            while let Some(message) = lane.front(chunker, &self.sent) {
                // By the next connection that has room.
                let is_sent = usable.iter().any(|_| {
                    self.turn = (self.turn + 1) % usable.len();
                    let number = usable[self.turn];
                    let way = self.ways.entry(number).or_default();
                    if bounds {
                        way.bound(now);
                    }
                    let flow = Flow { peer: to, number };
                    way.send(now, flow, transport, message)
                });
                if !is_sent {
                    return;
                }
                lane.pop();
            }
        }
    }

    /// Tells what has arrived by these connections, which asks for the same.
    fn tell_arrived<T: Transport>(
        &mut self,
        now: Time,
        to: PeerId,
        transport: &mut T,
        which: impl Fn(&Way) -> bool,
    ) {
        let mut first = None;
        for (&number, way) in self.ways.iter_mut().filter(|(_, way)| which(way)) {
            let word = Frame::from(way.word(now));
            if number == 0 {
                first = Some(word);
                continue;
            }
            let (flow, message) = (Flow { peer: to, number }, word.encode());
            let message_bytes = message.len();
            if transport.try_send(flow, Channel::Control, message) {
                self.sent.add(Purpose::Control, 0, message_bytes);
            } else {
                way.is_not_said();
            }
        }
        if let Some(word) = first {
            self.push(&word);
            self.flush_control(to, transport);
        }
    }

    /// The other end says how many bytes of tensors have arrived there in all by the connection of that number, and is to be
    /// told the same from now on.
    pub(super) fn arrived(&mut self, now: Time, number: u8, bytes: u64, asks: bool) {
        self.flows.told();
        self.ways.entry(number).or_default().told(now, bytes, asks);
    }

    fn flush_control<T: Transport>(&mut self, to: PeerId, transport: &mut T) {
        let chunker = &mut self.control_chunks.0;
        while let Some(message) = self.control.front(chunker, &self.sent) {
            if !transport.try_send(Flow::first(to), Channel::Control, message.clone()) {
                return;
            }
            self.control.pop();
        }
    }

    /// How many pieces of state the transport has taken as a whole since this was asked last.
    pub(super) fn state_left(&mut self) -> usize {
        std::mem::take(&mut self.state.left)
    }

    /// Takes a message that came by the connection of that number; gives the frame that it completes.
    pub(super) fn join(
        &mut self,
        number: u8,
        channel: Channel,
        message: Bytes,
    ) -> Result<Option<Frame>, JoinError> {
        let joiner = match (channel, number) {
            (Channel::Control, 0) => &mut self.control_chunks.1,
            // Its frames are so small that nobody cuts them.
            (Channel::Control, _) => return Ok(Some(Frame::decode(&message)?)),
            (Channel::Tensors, _) => {
                self.ways.entry(number).or_default().took(message.len());
                &mut self.tensor_chunks.1
            }
        };
        let whole = joiner.push(message)?;
        Ok(whole.map(|bytes| Frame::decode(&bytes)).transpose()?)
    }
}

#[cfg(test)]
mod tests;
