//! What a seat computes next: one forward, one backward, in number order.
//!
//! Backward before forward keeps few microbatches in flight. A step's update is asked for just before the next
//! step's first forward, or at the round's end.

use super::{Phase, Work};
use crate::compute::Job;
use crate::units::{Microbatch, Step};
use crate::wire::frame::{Mode, Slot, StepEnd};

impl Work {
    /// The next job for the seat, if anything can be computed now.
    pub fn next_job(&mut self) -> Option<Job> {
        match self.phase {
            Phase::Halted => None,
            Phase::Held => self.evaluation_job(),
            Phase::Ending => self.ending_job(),
            Phase::Steps => self
                .backward_job()
                .or_else(|| self.forward_job())
                .or_else(|| self.evaluation_job()),
        }
    }

    fn slot(&self, microbatch: u16) -> Slot {
        Slot {
            place: self.place(),
            step: self.step,
            microbatch: Microbatch(microbatch),
        }
    }

    fn backward_job(&mut self) -> Option<Job> {
        let microbatch = self.backward_next;
        if microbatch >= self.forward_next {
            return None;
        }
        let arrived = self.gradients.get(&(self.step, microbatch));
        let gradient = match (self.is_last(), arrived) {
            (true, _) => None,
            (false, Some(arrived)) => Some(arrived.gradient.clone()),
            (false, None) => return None,
        };
        let is_last_of_step = microbatch + 1 == self.microbatches;
        let step_tokens = is_last_of_step.then_some(self.step_tokens);
        Some(Job::Backward {
            slot: self.slot(microbatch),
            gradient,
            step_tokens,
        })
    }

    fn forward_job(&mut self) -> Option<Job> {
        let microbatch = self.forward_next;
        let waits = self.begun.is_none() && self.is_head()
            || microbatch == self.microbatches
            || microbatch - self.backward_next >= self.in_flight_max()
            || !(self.is_last() || self.sent < self.credit)
            || !self.inputs.contains_key(&(self.step, microbatch));
        if waits {
            return None;
        }
        if self.applied < self.step.0 {
            return self.apply_job(Step(self.step.0 - 1));
        }
        let input = self.inputs.get(&(self.step, microbatch))?.clone();
        Some(Job::Forward {
            slot: self.slot(microbatch),
            mode: Mode::Train,
            input,
        })
    }

    fn apply_job(&mut self, step: Step) -> Option<Job> {
        let StepEnd {
            scale,
            samples_done,
        } = *self.ends.get(&step)?;
        let step_tokens = self.step_tokens;
        Some(Job::Apply {
            step,
            scale,
            samples_done,
            step_tokens,
        })
    }

    fn ending_job(&mut self) -> Option<Job> {
        let last = self.last_step?;
        if self.applied <= last.0 {
            return self.apply_job(last);
        }
        let result = self.begun?.result;
        (!self.snapshot_asked).then(|| {
            self.snapshot_asked = true;
            Job::Snapshot { round: result }
        })
    }

    fn evaluation_job(&mut self) -> Option<Job> {
        let may_send = self.is_last() || self.sent < self.credit;
        let (microbatch, input) =
            self.evaluation
                .next(may_send, self.in_flight_max(), self.is_head())?;
        let slot = Slot {
            place: self.place(),
            step: Step(0),
            microbatch: Microbatch(microbatch),
        };
        Some(Job::Forward {
            slot,
            mode: Mode::Evaluate,
            input,
        })
    }
}
