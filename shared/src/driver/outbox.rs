//! Frames on their way to and from one peer: cut, put in order of urgency, joined again.
//!
//! `control` keeps its order. On `tensors` microbatches go before merges, and merges before state: a long transfer never
//! holds a microbatch up for longer than one message.

use std::collections::VecDeque;

use bytes::Bytes;

use super::sent::{Purpose, Sent};
use super::window::Window;
use crate::transport::{Channel, Transport};
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
    /// How much may be under way, where the transport does not see to that.
    window: Option<Window>,
    /// Whether the other end was asked to tell what arrives there, as the window needs it.
    has_asked: bool,
    /// Bytes of tensors that have arrived from the other end.
    arrived_bytes: u64,
    /// Whether it has asked to be told of them.
    tells: bool,
    /// Whether some arrived since it was told last.
    is_word_due: bool,
}

impl Outbox {
    /// An outbox of a link that has just opened; what leaves is added to `sent`. It bounds what is under way if the
    /// transport does not.
    pub(super) fn new(sent: Sent, transport_bounds: bool) -> Self {
        Self {
            sent,
            window: (!transport_bounds).then(Window::new),
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
        if self.tells && self.is_word_due && self.control.is_empty() {
            self.tell_arrived();
            self.flush_control(to, transport);
        }
        self.flush_tensors(now, to, transport);
        let has_sent = self.window.as_ref().is_some_and(Window::has_sent);
        if has_sent && !std::mem::replace(&mut self.has_asked, has_sent) {
            self.tell_arrived();
            self.flush_control(to, transport);
        }
    }

    fn flush_tensors<T: Transport>(&mut self, now: Time, to: PeerId, transport: &mut T) {
        let chunker = &mut self.tensor_chunks.0;
        for lane in [&mut self.microbatches, &mut self.merges, &mut self.state] {
            while let Some(message) = lane.front(chunker, &self.sent) {
                let window = &mut self.window;
                let admits = window.as_ref().is_none_or(|it| it.admits(message.len()));
                if !admits || !transport.try_send(to, Channel::Tensors, message.clone()) {
                    return;
                }
                if let Some(window) = window {
                    window.sent(now, message.len());
                }
                lane.pop();
            }
        }
    }

    fn tell_arrived(&mut self) {
        self.is_word_due = false;
        self.push(&Frame {
            header: Header::Arrived {
                bytes: self.arrived_bytes,
            },
            payload: Bytes::new(),
        });
    }

    /// The other end says how many bytes of tensors have arrived there in all, and is to be told the same from now on.
    pub(super) fn arrived(&mut self, now: Time, bytes: u64) {
        self.tells = true;
        if let Some(window) = &mut self.window {
            window.arrived(now, bytes);
        }
    }

    fn flush_control<T: Transport>(&mut self, to: PeerId, transport: &mut T) {
        let chunker = &mut self.control_chunks.0;
        while let Some(message) = self.control.front(chunker, &self.sent) {
            if !transport.try_send(to, Channel::Control, message.clone()) {
                return;
            }
            self.control.pop();
        }
    }

    /// How many pieces of state the transport has taken as a whole since this was asked last.
    pub(super) fn state_left(&mut self) -> usize {
        std::mem::take(&mut self.state.left)
    }

    /// Takes a message; gives the frame that it completes.
    pub(super) fn join(
        &mut self,
        channel: Channel,
        message: Bytes,
    ) -> Result<Option<Frame>, JoinError> {
        let joiner = match channel {
            Channel::Control => &mut self.control_chunks.1,
            Channel::Tensors => {
                self.arrived_bytes += message.len() as u64;
                self.is_word_due = true;
                &mut self.tensor_chunks.1
            }
        };
        let whole = joiner.push(message)?;
        Ok(whole.map(|bytes| Frame::decode(&bytes)).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::run::RunConfig;
    use crate::transport::{LinkStep, NetEvent, TransportStopped};
    use crate::units::{Epoch, Microbatch, PipelineId, Round, StageId, Step};
    use crate::wire::chunk::CHUNK_HEADER_BYTES;
    use crate::wire::frame::{Mode, Place, Slot};
    use crate::wire::signal::IceServer;

    use super::super::sent::Volume;
    use super::*;

    /// A link that takes so many more messages.
    struct Narrow {
        room: usize,
        taken: Vec<Bytes>,
    }

    impl Transport for Narrow {
        fn link(&mut self, _: PeerId, _: LinkStep) {}

        fn try_send(&mut self, _: PeerId, _: Channel, message: Bytes) -> bool {
            let fits = self.room > 0;
            if fits {
                self.room -= 1;
                self.taken.push(message);
            }
            fits
        }

        fn set_ice_servers(&mut self, _: Vec<IceServer>) {}

        async fn next_event(&mut self) -> Result<NetEvent, TransportStopped> {
            std::future::pending().await
        }
    }

    fn forward(config: &RunConfig, mode: Mode) -> Frame {
        let place = Place {
            pipeline: PipelineId(0),
            epoch: Epoch::default(),
            round: Round(0),
        };
        let slot = Slot {
            place,
            step: Step(0),
            microbatch: Microbatch(0),
        };
        Frame {
            header: Header::Forward {
                slot,
                mode,
                microbatches: config.training.microbatches,
                sequences: config.microbatch_sequences(),
                first_sample: 0,
                previous: None,
            },
            payload: vec![0; config.forward_payload_bytes()].into(),
        }
    }

    #[test]
    fn what_left_is_counted_once_by_purpose_however_often_the_channel_is_full() {
        let mut config = RunConfig::preset("tiny").expect("a preset");
        config.model.codec = crate::config::model::Codec::Dense;
        let sent = Sent::default();
        let mut outbox = Outbox::new(sent.clone(), true);
        let mut transport = Narrow {
            room: 1,
            taken: Vec::new(),
        };
        let state = Frame {
            header: Header::StateChunk {
                round: Round(1),
                stage: StageId(0),
                offset: 0,
                total: 7,
            },
            payload: Bytes::from_static(&[1; 7]),
        };
        let training = forward(&config, Mode::Train);
        for frame in [&training, &forward(&config, Mode::Evaluate), &state] {
            outbox.push(frame);
        }
        outbox.flush(Time::default(), PeerId(1), &mut transport);
        let (payload, whole) = (training.payload.len(), training.encode().len());
        let messages = whole.div_ceil(crate::limits::CHUNK_BYTES_MAX);
        assert!(messages > 1, "the frame is cut");
        assert_eq!(transport.taken.len(), 1);
        let volume = |payload: usize, message: usize| Volume {
            frames: 1,
            payload_bytes: payload as u64,
            message_bytes: message as u64,
        };
        let expected = volume(payload, whole + messages * CHUNK_HEADER_BYTES);
        assert_eq!(sent.volumes().forward, expected);
        assert_eq!(sent.volumes().evaluation, Volume::default(), "still waits");
        while transport.taken.len() < 2 * messages + 1 {
            assert_eq!(outbox.state_left(), 0);
            transport.room = 1;
            outbox.flush(Time::default(), PeerId(1), &mut transport);
        }
        assert_eq!((outbox.state_left(), outbox.state_left()), (1, 0));
        let volumes = sent.volumes();
        assert_eq!((volumes.forward, volumes.evaluation), (expected, expected));
        assert_eq!(
            volumes.state,
            volume(7, state.encode().len() + CHUNK_HEADER_BYTES)
        );
        let taken: usize = transport.taken.iter().map(Bytes::len).sum();
        let counted = volumes.forward.message_bytes
            + volumes.evaluation.message_bytes
            + volumes.state.message_bytes;
        assert_eq!(counted, taken as u64);
    }
    #[test]
    fn where_the_transport_bounds_nothing_no_more_is_under_way_than_arrives() {
        let config = RunConfig::preset("base").expect("a preset");
        let mut here = Outbox::new(Sent::default(), false);
        let mut there = Outbox::new(Sent::default(), true);
        let transport = || Narrow {
            room: usize::MAX,
            taken: Vec::new(),
        };
        let (mut out, mut back) = (transport(), transport());
        let frame = forward(&config, Mode::Train);
        here.push(&frame);
        here.push(&Frame {
            header: Header::bye("over"),
            payload: Bytes::new(),
        });
        here.flush(Time::from_micros(0), PeerId(1), &mut out);
        // Control waits for nothing, and nobody is told of it.
        let bye = out.taken.remove(0);
        let mut whole = there.join(Channel::Control, bye).expect("a frame");
        there.flush(Time::from_micros(0), PeerId(0), &mut back);
        assert!(back.taken.is_empty());
        // What is to be told is asked for with the first tensors, behind them; it arrives as soon.
        let ask = out.taken.pop().expect("it asks");
        let asked = there.join(Channel::Control, ask).expect("a frame");
        let asked = asked.expect("a whole one").header;
        assert_eq!(asked, Header::Arrived { bytes: 0 });
        let begun = out.taken.len();
        assert!(begun > 1 && begun < 8, "{begun} messages");
        there.arrived(Time::from_micros(1), 0);
        for turn in 1.. {
            let messages = std::mem::take(&mut out.taken);
            if messages.is_empty() {
                break;
            }
            let now = Time::from_micros(turn * 50_000);
            for message in messages {
                whole = there.join(Channel::Tensors, message).expect("in order");
            }
            // However many arrived, one word says it.
            there.flush(now, PeerId(0), &mut back);
            let [word] = &std::mem::take(&mut back.taken)[..] else {
                panic!("one word");
            };
            let word = here.join(Channel::Control, word.clone());
            let Ok(Some(Frame {
                header: Header::Arrived { bytes },
                ..
            })) = word
            else {
                panic!("{word:?}");
            };
            here.arrived(now, bytes);
            here.flush(now, PeerId(1), &mut out);
        }
        assert_eq!(whole.expect("all of it").payload.len(), frame.payload.len());
    }
}
