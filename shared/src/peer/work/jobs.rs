//! What a seat computes next: one forward, one backward, in number order.
//!
//! Backward before forward keeps few microbatches in flight. A step's update comes as soon as its head says how it ended,
//! which is before the next step's first forward is there; that bears it too, for it may overtake the word. A text's job
//! goes between two of training.

use super::{Phase, Work};
use crate::compute::Job;
use crate::peer::waiting::Wait;
use crate::schedule::order::Action;
use crate::units::{Microbatch, Step};
use crate::wire::frame::{Mode, Slot, StepEnd};

impl Work {
    /// The next job for the seat, if anything can be computed now: of training and of texts in turn.
    pub fn next_job(&mut self) -> Option<Job> {
        if self.phase == Phase::Halted {
            return None;
        }
        if self.texts.is_due()
            && let Some(job) = self.texts.next_job()
        {
            return Some(job);
        }
        match self.training_job() {
            Some(job) => {
                self.texts.trains();
                Some(job)
            }
            None => self.texts.next_job(),
        }
    }

    fn training_job(&mut self) -> Option<Job> {
        match self.phase {
            Phase::Halted => None,
            Phase::Held => self.evaluation_job(),
            Phase::Ending => self.ending_job(),
            Phase::Steps if self.reseat.is_some() => self.reseat_job(),
            Phase::Steps => self.step_job().or_else(|| self.evaluation_job()),
        }
    }

    /// What the seat waits for; `None` where there is something to compute.
    pub fn waits_for(&self) -> Option<Wait> {
        match self.phase {
            Phase::Halted | Phase::Held => return Some(Wait::Host),
            Phase::Ending => return None,
            Phase::Steps if self.reseat.is_some() => return None,
            Phase::Steps => {}
        }
        let turn = |has: &dyn Fn(Action) -> bool| self.order_in_step.next(has);
        if turn(&|action| self.has_arrived(action)).is_some() {
            return None;
        }
        // A gradient is not there; may it run further ahead meanwhile?
        let Some(Action::Forward(microbatch)) = turn(&|it| matches!(it, Action::Forward(_))) else {
            return Some(Wait::Gradient);
        };
        let has_input = self.inputs.contains_key(&(self.step, microbatch.0));
        Some(match (self.is_head(), has_input) {
            (true, _) if self.begun.is_none() => Wait::Host,
            (_, true) => Wait::Credit,
            (false, false) => Wait::Input,
            (true, false) if self.head.leases.contains_key(&self.step) => Wait::Tokens,
            (true, false) => Wait::Lease,
        })
    }

    fn slot(&self, microbatch: Microbatch) -> Slot {
        Slot {
            place: self.place(),
            step: self.step,
            microbatch,
        }
    }

    /// Whether what an action needs is here, and whatever else it must wait for.
    fn has_arrived(&self, action: Action) -> bool {
        match action {
            Action::Backward(microbatch) => {
                self.is_last() || self.gradients.contains_key(&(self.step, microbatch.0))
            }
            Action::Forward(microbatch) => {
                (self.begun.is_some() || !self.is_head())
                    && self.may_send()
                    && self.inputs.contains_key(&(self.step, microbatch.0))
            }
        }
    }

    fn may_send(&self) -> bool {
        self.is_last() || self.sent < self.credit
    }

    /// The update of the step before, as soon as it is known how that ended.
    fn update_job(&self) -> Option<Job> {
        let before = self.step.0.checked_sub(1)?;
        (self.applied == before).then(|| self.apply_job(Step(before)))?
    }

    fn step_job(&mut self) -> Option<Job> {
        if let Some(job) = self.update_job() {
            return Some(job);
        }
        let action = self.order_in_step.next(|action| self.has_arrived(action))?;
        match action {
            Action::Backward(microbatch) => {
                let arrived = self.gradients.get(&(self.step, microbatch.0));
                let is_last_of_step = microbatch.0 + 1 == self.microbatches;
                Some(Job::Backward {
                    slot: self.slot(microbatch),
                    gradient: arrived.map(|arrived| arrived.gradient.clone()),
                    step_tokens: is_last_of_step.then_some(self.step_tokens),
                })
            }
            // It came before what it is to be computed with.
            Action::Forward(_) if self.applied < self.step.0 => None,
            Action::Forward(microbatch) => {
                let input = self.inputs.get(&(self.step, microbatch.0))?.clone();
                self.entered = Some(self.step);
                Some(Job::Forward {
                    slot: self.slot(microbatch),
                    mode: Mode::Train,
                    input,
                })
            }
        }
    }

    fn apply_job(&self, step: Step) -> Option<Job> {
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
        let (microbatch, input) =
            self.evaluation
                .next(self.may_send(), self.in_flight_max(), self.is_head())?;
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
