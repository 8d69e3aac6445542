//! Marks of whatever a driver may see, in any order: whole, one after the other, none lost.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::compute::Input;
use crate::units::{Epoch, PipelineId, Span};
use crate::wire::frame::Place;

fn slot(number: u16) -> Slot {
    Slot {
        place: Place {
            pipeline: PipelineId(0),
            epoch: Epoch::default(),
            round: Round(4),
        },
        step: Step(u32::from(number / 8)),
        microbatch: Microbatch(number % 8),
    }
}

fn forward(number: u16) -> Job {
    Job::Forward {
        slot: slot(number),
        mode: Mode::Train,
        input: Input {
            tokens: vec![],
            boundary: None,
            first_sample: 0,
        },
    }
}

fn gradient(number: u16) -> Frame {
    Frame {
        header: Header::Backward {
            slot: slot(number),
            mode: Mode::Train,
            loss_sum: 1.0,
            norm_squared: None,
        },
        payload: Bytes::from_static(&[0; 70]),
    }
}

fn received(number: u16) -> Frame {
    Frame::from(Header::Received {
        slot: slot(number),
        mode: Mode::Train,
    })
}

/// A tracer, and what it says.
fn heard() -> (Tracer, Arc<Mutex<Vec<Mark>>>) {
    let marks = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&marks);
    let tracer = Tracer::new(move |mark| kept.lock().unwrap().push(mark));
    (tracer, marks)
}

fn at(millis: u64) -> Time {
    Time::ZERO + Span::from_millis(millis)
}

#[test]
fn a_wait_ends_with_the_job_that_follows_and_a_frame_with_its_acknowledgement() {
    let (mut tracer, marks) = heard();
    tracer.waits(at(1), Some(Wait::Input));
    tracer.waits(at(2), Some(Wait::Input));
    tracer.begins(at(5), &forward(9));
    tracer.waits(at(5), None);
    tracer.ends(at(8));
    tracer.sends(at(8), PeerId(3), &gradient(9));
    tracer.waits(at(8), Some(Wait::Gradient));
    tracer.receives(at(60), PeerId(4), &received(9));
    tracer.receives(at(61), PeerId(3), &received(9));
    tracer.waits(at(61), Some(Wait::Credit));
    let marks = marks.lock().unwrap();
    let told: Vec<_> = marks
        .iter()
        .map(|mark| (mark.track, mark.name, mark.began, mark.ended))
        .collect();
    let expected = [
        (Track::Wait, "input", at(1), at(5)),
        (Track::Compute, "forward", at(5), at(8)),
        (Track::Sent, "backward", at(8), at(61)),
        (Track::Wait, "gradient", at(8), at(61)),
    ];
    assert_eq!(told, expected);
    let sent = About {
        peer: Some(PeerId(3)),
        bytes: Some(70),
        ..slot(9).into()
    };
    assert_eq!(marks[2].about, sent);
}

#[test]
fn frames_that_nobody_acknowledges_are_forgotten_at_the_limit() {
    let (mut tracer, _) = heard();
    for number in 0..3_000 {
        tracer.sends(at(1), PeerId(1), &gradient(number));
    }
    assert_eq!(tracer.sent.len(), TRACED_FRAMES_MAX);
}

#[test]
fn nobody_who_listens_is_nothing_to_remember() {
    let mut tracer = Tracer::default();
    tracer.begins(at(1), &forward(0));
    tracer.waits(at(1), Some(Wait::Input));
    tracer.sends(at(1), PeerId(1), &gradient(0));
    assert!(tracer.job.is_none() && tracer.wait.is_none() && tracer.sent.is_empty());
}

/// What a driver may see next.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Job,
    Done,
    Wait(Wait),
    Send,
    Acknowledge,
}

fn seen() -> impl Strategy<Value = (u64, Seen)> {
    let wait = prop_oneof![
        Just(Wait::Input),
        Just(Wait::Gradient),
        Just(Wait::Credit),
        Just(Wait::Host)
    ];
    let seen = prop_oneof![
        2 => Just(Seen::Job),
        2 => Just(Seen::Done),
        1 => wait.prop_map(Seen::Wait),
        2 => Just(Seen::Send),
        2 => Just(Seen::Acknowledge),
    ];
    (0_u64..4, seen)
}

proptest! {
    #[test]
    fn the_device_does_one_thing_at_a_time_and_every_job_and_frame_is_told_once(
        sights in proptest::collection::vec(seen(), 0..200),
    ) {
        let (mut tracer, marks) = heard();
        let (mut now, mut busy) = (0, false);
        let (mut jobs, mut sent, mut acknowledged) = (0_u16, 0_u16, 0_u16);
        for (passed, sight) in sights {
            now += passed;
            // As the peer has it: one job at a time, and no wait meanwhile.
            match sight {
                Seen::Job if !busy => {
                    tracer.begins(at(now), &forward(jobs));
                    busy = true;
                }
                Seen::Done if busy => {
                    tracer.ends(at(now));
                    (busy, jobs) = (false, jobs + 1);
                }
                Seen::Job | Seen::Done => {}
                Seen::Wait(wait) => tracer.waits(at(now), (!busy).then_some(wait)),
                Seen::Send => {
                    tracer.sends(at(now), PeerId(1), &gradient(sent));
                    sent += 1;
                }
                Seen::Acknowledge if acknowledged < sent => {
                    tracer.receives(at(now), PeerId(1), &received(acknowledged));
                    acknowledged += 1;
                }
                Seen::Acknowledge => {}
            }
        }
        let marks = marks.lock().unwrap();
        let of = |track| marks.iter().filter(move |mark| mark.track == track);
        prop_assert_eq!(of(Track::Compute).count(), usize::from(jobs));
        prop_assert_eq!(of(Track::Sent).count(), usize::from(acknowledged));
        let mut device: Vec<_> = of(Track::Compute).chain(of(Track::Wait)).collect();
        device.sort_by_key(|mark| (mark.began, mark.ended));
        prop_assert!(device.is_sorted_by(|one, next| one.ended <= next.began), "{device:?}");
        prop_assert!(marks.iter().all(|mark| mark.began <= mark.ended));
    }
}
