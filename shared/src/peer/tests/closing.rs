//! A round that the host ends early: between two steps, or with the one that has begun.

use super::*;
use crate::units::Microbatch;

/// The steps that a head's result holds that is told to close once it is asked for that forward.
fn closed_at(wanted: (Step, Microbatch)) -> u32 {
    let mut alone = Alone::joined(1);
    let place = alone.seat(None, None);
    alone.compute();
    alone.begin(place, 1);
    let batch = alone.config.training.batch;
    for step in 0..3 {
        alone.say(Down::Lease(Lease {
            place,
            step: Step(step),
            samples: SampleRange {
                first: u64::from(step * batch),
                count: batch,
            },
            last: false,
        }));
    }
    let mut heard = Vec::new();
    while let Some(output) = alone.peer.poll_output() {
        if let Output::Tokens { mode, samples } = output {
            let row = alone.config.model.context + 1;
            let tokens = vec![0; samples.count as usize * row];
            alone.peer.handle_tokens(alone.now, mode, samples, &tokens);
        } else if let Output::Compute(job) = output {
            if let Job::Forward { slot, .. } = &job
                && (slot.step, slot.microbatch) == wanted
            {
                alone.say(Down::Close { place });
            }
            alone.peer.handle_done(alone.now, done(job));
        } else if let Output::Host(Up::Holds(holds)) = output {
            heard.push(holds.steps);
        }
    }
    assert_eq!(heard.len(), 1);
    heard[0]
}

#[test]
fn a_step_whose_first_forward_is_under_way_has_begun() {
    // Left out, its gradients would become part of the next round's first step.
    assert_eq!(closed_at((Step(1), Microbatch(0))), 2);
    assert_eq!(closed_at((Step(1), Microbatch(1))), 2);
    assert_eq!(closed_at((Step(0), Microbatch(0))), 1);
}
