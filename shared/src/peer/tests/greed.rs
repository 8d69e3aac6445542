//! What a linked volunteer can make another one keep: no more than the limits say.

use super::*;
use crate::limits::{EARLY_FRAMES_MAX, STATE_CHUNK_BYTES, STATE_PIECES_QUEUED, STATE_REQUESTS_MAX};
use crate::units::Microbatch;

/// The microbatch of that number, counted over steps.
fn slot(alone: &Alone, place: Place, number: u64) -> Slot {
    let of_step = u64::from(alone.config.training.microbatches);
    Slot {
        place,
        step: Step(u32::try_from(number / of_step).unwrap()),
        microbatch: Microbatch(u16::try_from(number % of_step).unwrap()),
    }
}

#[test]
fn microbatches_beyond_the_credit_are_refused() {
    let (mut alone, place, granted) = Alone::at_work();
    for number in 0..granted {
        let frame = alone.forward(slot(&alone, place, number));
        alone.frame(9, frame);
    }
    assert!(alone.refused().is_empty());
    let frame = alone.forward(slot(&alone, place, granted));
    alone.frame(9, frame);
    assert_eq!(alone.refused(), vec![9]);
}

#[test]
fn gradients_that_nothing_asked_for_or_of_another_size_are_refused() {
    let in_flight = || {
        let (mut alone, place, _) = Alone::at_work();
        let credit = Header::Credit {
            pipeline: place.pipeline,
            epoch: place.epoch,
            granted: 8,
            behind: Behind::default(),
        };
        alone.frame(10, Frame::from(credit));
        let first = slot(&alone, place, 0);
        let frame = alone.forward(first);
        alone.frame(9, frame);
        let done = Done::Forward {
            slot: first,
            boundary: Some(vec![0; alone.config.boundary_bytes()].into()),
            loss_sum: None,
        };
        alone.peer.handle_done(alone.now, done);
        (alone, first)
    };
    let (mut alone, first) = in_flight();
    let frame = alone.backward(first);
    alone.frame(10, frame);
    assert!(alone.refused().is_empty(), "it was sent");
    let (microbatch, step) = (Microbatch(1), Step(1));
    let ahead = [
        Slot {
            microbatch,
            ..first
        },
        Slot { step, ..first },
    ];
    for slot in ahead {
        let (mut alone, _) = in_flight();
        let frame = alone.backward(slot);
        alone.frame(10, frame);
        assert_eq!(alone.refused(), vec![10], "{slot:?} was not sent");
    }
    let (mut alone, first) = in_flight();
    let mut frame = alone.backward(first);
    frame.payload = vec![0; frame.payload.len() + 1].into();
    alone.frame(10, frame);
    assert_eq!(alone.refused(), vec![10], "too long");
}

#[test]
fn early_frames_are_kept_of_neighbours_alone_each_its_own() {
    let (mut alone, place, _) = Alone::at_work();
    alone.link(7);
    let round = place.round.next();
    let place = Place { round, ..place };
    let kept = |alone: &Alone, of: u64| {
        let early = alone.peer.early.iter();
        early.filter(|(from, _)| *from == PeerId(of)).count()
    };
    for number in 0..2 * EARLY_FRAMES_MAX as u64 {
        for peer in [7, 9] {
            let frame = alone.forward(slot(&alone, place, number));
            alone.frame(peer, frame);
        }
    }
    let frame = alone.backward(slot(&alone, place, 0));
    alone.frame(10, frame);
    let counts = [7, 9, 10].map(|of| kept(&alone, of));
    assert_eq!(counts, [0, EARLY_FRAMES_MAX, 1]);
    let mut frame = alone.backward(slot(&alone, place, 1));
    frame.payload = vec![0; 1 << 20].into();
    alone.frame(10, frame);
    assert_eq!(alone.refused(), vec![10], "no frame of this run is as long");
}

#[test]
fn who_asks_for_much_and_takes_nothing_gets_few_pieces() {
    let mut alone = Alone::joined(1);
    alone.link(7);
    let blob = Bytes::from(vec![1; 5 * STATE_CHUNK_BYTES]);
    let held = Held {
        round: Round(1),
        stage: StageId(0),
        agreed: Digest::default(),
        blob: Digest::of(&blob),
    };
    alone.peer.handle_kept(vec![(held, blob)]);
    let pieces = |alone: &mut Alone| {
        let is_piece = |output: &Output| {
            let Output::Frame(PeerId(7), frame) = output else {
                return false;
            };
            frame.header.kind() == "state chunk"
        };
        alone.outputs().iter().filter(|it| is_piece(it)).count()
    };
    for piece in 0..5 {
        alone.frame(7, state_request(piece * STATE_CHUNK_BYTES as u64));
    }
    assert_eq!(pieces(&mut alone), STATE_PIECES_QUEUED);
    // Each one that is out makes room for the next.
    for _ in STATE_PIECES_QUEUED..5 {
        alone.peer.handle_state_sent(alone.now, PeerId(7));
        assert_eq!(pieces(&mut alone), 1);
    }
    for _ in 0..STATE_REQUESTS_MAX + 100 {
        alone.frame(7, state_request(0));
    }
    assert_eq!(pieces(&mut alone), 0);
    let left = std::iter::from_fn(|| {
        alone.peer.handle_state_sent(alone.now, PeerId(7));
        (pieces(&mut alone) > 0).then_some(())
    });
    let left = left.count();
    assert_eq!(left, STATE_REQUESTS_MAX);
}
