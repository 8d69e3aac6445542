//! A last seat and the word of how a step ended, whenever that comes.

use super::*;
use crate::compute::{Done, Job};
use crate::units::{Digest, Epoch, Microbatch, PeerId, PipelineId, StageRange};
use crate::wire::signal::Neighbour;

const END: StepEnd = StepEnd {
    scale: 0.5,
    samples_done: 0,
};

fn place() -> Place {
    Place {
        pipeline: PipelineId(0),
        epoch: Epoch::default(),
        round: Round(0),
    }
}

/// The last of two seats, whose round has begun.
fn last_seat(config: &RunConfig) -> Work {
    let previous = Neighbour {
        peer: PeerId(1),
        key: Digest::default(),
    };
    let order = SeatOrder {
        place: place(),
        stages: StageRange { first: 3, end: 4 },
        previous: Some(previous),
        next: None,
        seats_behind: 0,
        state: vec![],
        keys: vec![],
    };
    let mut seat = Work::new(order, config, 1 << 30);
    seat.open();
    let begun = Begun {
        attempt: Attempt::default(),
        result: Round(1),
        samples_done: 0,
    };
    seat.handle_begin(Time::ZERO, Mode::Train, begun);
    seat
}

/// Does all microbatches of a step; none of its frames says how the step before ended.
fn step(seat: &mut Work, config: &RunConfig, step: Step) {
    for number in 0..config.training.microbatches {
        let slot = Slot {
            place: place(),
            step,
            microbatch: Microbatch(number),
        };
        let input = Input {
            tokens: vec![],
            boundary: Some(Bytes::new()),
            first_sample: 0,
        };
        seat.handle_forward(slot, Mode::Train, None, input);
        let forward = seat.next_job().expect("its input is there");
        let done = Done::Forward {
            slot,
            boundary: None,
            loss_sum: None,
        };
        seat.handle_done(Time::ZERO, &forward, done);
        let backward = seat.next_job().expect("a last seat's is there at once");
        let is_last = number + 1 == config.training.microbatches;
        let done = Done::Backward {
            slot,
            gradient: Some(Bytes::new()),
            loss_sum: Some(1.0),
            norm_squared: is_last.then_some(1.0),
        };
        seat.handle_done(Time::ZERO, &backward, done);
    }
}

fn update(seat: &mut Work) -> Step {
    let job = seat.next_job().expect("there is something to do");
    let Job::Apply { step, .. } = job else {
        panic!("{job:?}");
    };
    seat.handle_done(Time::ZERO, &job, Done::Applied { step });
    step
}

#[test]
fn an_update_is_made_as_soon_as_the_step_s_end_is_told() {
    let config = RunConfig::preset("tiny").unwrap();
    let mut seat = last_seat(&config);
    step(&mut seat, &config, Step(0));
    assert_eq!(seat.next_job(), None, "nobody has said how it ended");
    seat.handle_apply(Step(0), END, false);
    assert_eq!(update(&mut seat), Step(0));
    assert_eq!(seat.next_job(), None, "once");
    seat.handle_apply(Step(0), END, false);
    assert_eq!(seat.next_job(), None, "and not again");
}

#[test]
fn a_round_that_is_closed_between_steps_ends_though_its_last_update_is_made() {
    let config = RunConfig::preset("tiny").unwrap();
    let mut seat = last_seat(&config);
    step(&mut seat, &config, Step(0));
    seat.handle_apply(Step(0), END, false);
    update(&mut seat);
    seat.handle_apply(Step(0), END, true);
    let job = seat.next_job();
    assert_eq!(job, Some(Job::Snapshot { round: Round(1) }));
}

#[test]
fn the_end_of_a_step_that_is_not_over_here_is_not_kept() {
    let config = RunConfig::preset("tiny").unwrap();
    let mut seat = last_seat(&config);
    step(&mut seat, &config, Step(0));
    for number in 1..9 {
        seat.handle_apply(Step(number), END, false);
    }
    assert!(seat.ends.is_empty());
    assert_eq!(seat.next_job(), None);
}
