//! How long a seat's microbatches take on this device, measured while it trains.
//!
//! Forward and backward are kept apart, the last few of each: their medians together are a microbatch. What compiles
//! kernels or meets something else on the machine now and then is left out so; a machine that is busy all the time
//! is not.

use std::collections::VecDeque;

use crate::compute::Job;
use crate::limits::{HUNG_MIN, HUNG_TIMES, WORKED_TIMES};
use crate::units::Span;
use crate::wire::frame::Mode;

/// Jobs of one kind that a median is taken over.
const WINDOW: usize = 32;
/// Jobs of one kind that say enough.
const ENOUGH: usize = 8;
/// ... and forwards beside so many backwards: a seat whose gradients have piled up does few of them, and the first may have
/// been begun at another speed.
const FORWARDS_ENOUGH: usize = 2;

/// A microbatch's job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Forward,
    Evaluation,
    Backward,
    /// Of a step: it asks for the norm.
    LastBackward,
}

impl Kind {
    /// `None` for all that is not about a microbatch.
    fn of(job: &Job) -> Option<Self> {
        match job {
            Job::Forward { mode, .. } => Some(match mode {
                Mode::Train => Self::Forward,
                Mode::Evaluate => Self::Evaluation,
            }),
            Job::Backward { step_tokens, .. } => Some(match step_tokens {
                None => Self::Backward,
                Some(_) => Self::LastBackward,
            }),
            Job::Seat { .. }
            | Job::Apply { .. }
            | Job::Generate(_)
            | Job::Forget { .. }
            | Job::Snapshot { .. }
            | Job::Contribute { .. }
            | Job::Average { .. }
            | Job::OuterStep { .. }
            | Job::Norm { .. }
            | Job::GradientStep { .. } => None,
        }
    }
}

/// What a seat's device takes.
#[derive(Clone, Debug, Default)]
pub(super) struct Rhythm {
    forwards: VecDeque<Span>,
    backwards: VecDeque<Span>,
}

impl Rhythm {
    /// A job took so long.
    pub(super) fn took(&mut self, job: &Job, span: Span) {
        let window = match Kind::of(job) {
            Some(Kind::Forward) => &mut self.forwards,
            Some(Kind::Backward | Kind::LastBackward) => &mut self.backwards,
            Some(Kind::Evaluation) | None => return,
        };
        if window.len() == WINDOW {
            window.pop_front();
        }
        window.push_back(span);
    }

    /// How much of a job's time was work. A machine that sleeps or is stopped in the middle of one does not work
    /// meanwhile, and no job says so but by its length.
    pub(super) fn worked(&self, job: &Job, span: Span) -> Span {
        let all = self.microbatch();
        let usual = match Kind::of(job) {
            Some(Kind::Forward) => self.median_of(&self.forwards),
            Some(Kind::Backward) => self.median_of(&self.backwards),
            // It computes what training leaves to the backward.
            Some(Kind::Evaluation) => all,
            // It may wait for what others only handed to the device.
            Some(Kind::LastBackward) => all.map(|all| all.times(HUNG_TIMES / WORKED_TIMES)),
            None => None,
        };
        usual.map_or(span, |usual| span.min(usual.times(WORKED_TIMES)))
    }

    fn median_of(&self, window: &VecDeque<Span>) -> Option<Span> {
        (window.len() >= ENOUGH).then(|| median(window))
    }

    /// Forward and backward of a microbatch, without rests; `None` until there were enough.
    pub(super) fn microbatch(&self) -> Option<Span> {
        let enough = self.backwards.len() >= ENOUGH && self.forwards.len() >= FORWARDS_ENOUGH;
        enough.then(|| median(&self.forwards) + median(&self.backwards))
    }

    /// How long a microbatch's job may take before the device is taken for hung.
    pub(super) fn hung_after(&self) -> Option<Span> {
        Some(self.microbatch()?.times(HUNG_TIMES).max(HUNG_MIN))
    }
}

fn median(window: &VecDeque<Span>) -> Span {
    let mut spans: Vec<Span> = window.iter().copied().collect();
    spans.sort_unstable();
    spans.get(spans.len() / 2).copied().unwrap_or(Span::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, Microbatch, PipelineId, Round, Step};
    use crate::wire::frame::{Place, Slot};

    #[test]
    fn what_a_machine_sleeps_through_is_no_work_of_its_device() {
        let place = Place {
            pipeline: PipelineId(0),
            epoch: Epoch::default(),
            round: Round(0),
        };
        let job = Job::Backward {
            slot: Slot {
                place,
                step: Step(0),
                microbatch: Microbatch(0),
            },
            gradient: None,
            step_tokens: None,
        };
        let (usual, night) = (Span::from_millis(20), Span::from_secs(9));
        let mut rhythm = Rhythm::default();
        // A first one compiles kernels, and that is work.
        assert_eq!(rhythm.worked(&job, night), night);
        for _ in 0..ENOUGH {
            rhythm.took(&job, usual);
        }
        assert_eq!(rhythm.worked(&job, usual.times(3)), usual.times(3));
        assert_eq!(rhythm.worked(&job, night), usual.times(WORKED_TIMES));
        let update = Job::Apply {
            step: Step(0),
            scale: 1.0,
            samples_done: 0,
            step_tokens: 1,
        };
        assert_eq!(rhythm.worked(&update, night), night);
    }
}
