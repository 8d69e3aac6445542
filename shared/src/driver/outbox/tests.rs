//! What leaves a link, in which order, by which of its connections.

use crate::config::run::RunConfig;
use crate::transport::{LinkSignal, LinkStep, NetEvent, TransportStopped};
use crate::units::{Epoch, Microbatch, PipelineId, Round, StageId, Step};
use crate::wire::chunk::CHUNK_HEADER_BYTES;
use crate::wire::frame::{Mode, Place, Slot};
use crate::wire::signal::IceServer;

use super::*;
use crate::driver::sent::Volume;

/// A link that takes so many more messages.
struct Narrow {
    room: usize,
    taken: Vec<Bytes>,
}

impl Transport for Narrow {
    fn link(&mut self, _: Flow, _: LinkStep) {}

    fn try_send(&mut self, _: Flow, _: Channel, message: Bytes) -> bool {
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
    let mut outbox = Outbox::new(sent.clone(), true, 1);
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
    let mut here = Outbox::new(Sent::default(), false, 1);
    let mut there = Outbox::new(Sent::default(), true, 1);
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
    let mut whole = there.join(0, Channel::Control, bye).expect("a frame");
    there.flush(Time::from_micros(0), PeerId(0), &mut back);
    assert!(back.taken.is_empty());
    // What is to be told is asked for with the first tensors, behind them; it arrives as soon.
    let ask = out.taken.pop().expect("it asks");
    let asked = there.join(0, Channel::Control, ask).expect("a frame");
    let asked = asked.expect("a whole one").header;
    assert_eq!(
        asked,
        Header::Arrived {
            bytes: 0,
            asks: false,
        }
    );
    let begun = out.taken.len();
    assert!(begun > 1 && begun < 8, "{begun} messages");
    there.arrived(Time::from_micros(1), 0, 0, false);
    for turn in 1.. {
        let messages = std::mem::take(&mut out.taken);
        if messages.is_empty() {
            break;
        }
        let now = Time::from_micros(turn * 50_000);
        for message in messages {
            whole = there.join(0, Channel::Tensors, message).expect("in order");
        }
        // However many arrived, one word says it.
        there.flush(now, PeerId(0), &mut back);
        let [word] = &std::mem::take(&mut back.taken)[..] else {
            panic!("one word");
        };
        let word = here.join(0, Channel::Control, word.clone());
        let Ok(Some(Frame {
            header: Header::Arrived { bytes, .. },
            ..
        })) = word
        else {
            panic!("{word:?}");
        };
        here.arrived(now, 0, bytes, false);
        here.flush(now, PeerId(1), &mut out);
    }
    assert_eq!(whole.expect("all of it").payload.len(), frame.payload.len());
}
/// A transport of two connections, one of them full.
#[derive(Default)]
struct Several {
    full: Option<u8>,
    taken: Vec<(u8, Channel, Bytes)>,
}

impl Transport for Several {
    fn link(&mut self, _: Flow, _: LinkStep) {}

    fn try_send(&mut self, by: Flow, channel: Channel, message: Bytes) -> bool {
        let fits = self.full != Some(by.number);
        if fits {
            self.taken.push((by.number, channel, message));
        }
        fits
    }

    fn set_ice_servers(&mut self, _: Vec<IceServer>) {}

    async fn next_event(&mut self) -> Result<NetEvent, TransportStopped> {
        std::future::pending().await
    }
}

/// An outbox of a link to which the other end has opened a second connection: number 2 here.
fn with_two() -> Outbox {
    let mut outbox = Outbox::new(Sent::default(), true, 1);
    let offer = LinkSignal::Offer {
        generation: 1,
        sdp: String::new(),
    };
    let offer = postcard::to_allocvec(&offer).expect("a signal");
    let theirs = FlowName {
        number: 0,
        opened_here: true,
    };
    outbox
        .handle_signal(Time::ZERO, theirs, &offer)
        .expect("a signal");
    let open = LinkEvent::Open {
        generation: 1,
        local_fingerprint: String::new(),
        remote_fingerprint: String::new(),
        relayed: false,
    };
    outbox.handle_flow_event(Time::ZERO, 2, open);
    outbox
}

#[test]
fn tensors_go_by_all_connections_in_turn_and_past_one_that_is_full() {
    let config = RunConfig::preset("base").expect("a preset");
    for full in [None, Some(0), Some(2)] {
        let (mut here, mut there) = (with_two(), with_two());
        let mut out = Several {
            full,
            ..Several::default()
        };
        let frame = forward(&config, Mode::Train);
        here.push(&frame);
        here.flush(Time::ZERO, PeerId(1), &mut out);
        let messages = std::mem::take(&mut out.taken);
        let by = |number| messages.iter().filter(|(it, ..)| *it == number).count();
        let each = [by(0), by(2)];
        match full {
            None => assert!(each[0].abs_diff(each[1]) <= 1, "{each:?}"),
            Some(0) => assert_eq!(each[0], 0),
            Some(_) => assert_eq!(each[1], 0),
        }
        let mut whole = None;
        for (number, channel, message) in messages.into_iter().rev() {
            whole = whole.or(there.join(number, channel, message).expect("pieces"));
        }
        assert_eq!(whole, Some(frame));
    }
}

#[test]
fn what_arrives_is_told_by_the_connection_that_it_came_by() {
    let config = RunConfig::preset("base").expect("a preset");
    let (mut here, mut there) = (with_two(), with_two());
    let (mut out, mut back) = (Several::default(), Several::default());
    here.push(&forward(&config, Mode::Train));
    here.flush(Time::ZERO, PeerId(1), &mut out);
    for number in [0, 2] {
        there.arrived(Time::ZERO, number, 0, false);
    }
    let mut came = [0; 3];
    for (number, channel, message) in out.taken {
        came[usize::from(number)] += message.len() as u64;
        drop(there.join(number, channel, message).expect("pieces"));
    }
    there.flush(Time::ZERO, PeerId(0), &mut back);
    let mut told = [0; 3];
    for (number, channel, message) in back.taken {
        assert_eq!(channel, Channel::Control);
        let word = here.join(number, channel, message).expect("a frame");
        let Some(Header::Arrived { bytes, asks: false }) = word.map(|it| it.header) else {
            panic!("a word");
        };
        told[usize::from(number)] = bytes;
    }
    assert_eq!(told, came);
    assert!(came[0] > 0 && came[2] > 0);
}
