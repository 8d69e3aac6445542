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
    let heard = alone.compute_while(|alone, job| {
        if let Job::Forward { slot, .. } = job
            && (slot.step, slot.microbatch) == wanted
        {
            alone.say(Down::Close { place });
        }
    });
    let ends = |up| {
        let Up::Holds(holds) = up else { return None };
        Some(holds.steps)
    };
    let ended: Vec<u32> = heard.into_iter().filter_map(ends).collect();
    assert_eq!(ended.len(), 1, "it ended the round once");
    ended[0]
}

#[test]
fn a_step_whose_first_forward_is_under_way_has_begun() {
    // Left out, its gradients would become part of the next round's first step.
    assert_eq!(closed_at((Step(1), Microbatch(0))), 2);
    assert_eq!(closed_at((Step(1), Microbatch(1))), 2);
    assert_eq!(closed_at((Step(0), Microbatch(0))), 1);
}
