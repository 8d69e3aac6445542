//! What follows from a job's result: a frame, a step's end, a round's result.

use bytes::Bytes;

use super::ending::RoundEnd;
use super::{Phase, Side, Work, WorkOutput};
use crate::compute::{Done, Input, Job, Snapshot, clip_scale};
use crate::schedule::order::Action;
use crate::units::{Round, Step, Time};
use crate::wire::frame::{Header, Mode, Slot, StepEnd};
use crate::wire::payload;
use crate::wire::signal::{Report, Up};

impl Work {
    /// A job's result. `job` is what was asked for.
    pub fn handle_done(&mut self, now: Time, job: &Job, done: Done) {
        match (job, done) {
            (
                Job::Forward { slot, mode, input },
                Done::Forward {
                    boundary, loss_sum, ..
                },
            ) => {
                self.forward_done(*slot, *mode, input, boundary, loss_sum);
            }
            (
                Job::Backward { slot, .. },
                Done::Backward {
                    gradient,
                    loss_sum,
                    norm_squared,
                    ..
                },
            ) => self.backward_done(now, *slot, gradient, loss_sum, norm_squared),
            (Job::Apply { step, .. }, Done::Applied { .. }) => {
                self.applied = self.applied.max(step.0 + 1);
                self.ends.retain(|of, _| *of >= *step);
            }
            (Job::Snapshot { round }, Done::Snapshot { stages, .. }) => {
                self.snapshot_done(*round, stages);
            }
            (Job::Seat { .. }, done @ (Done::Seated { .. } | Done::Refused { .. })) => {
                self.reseated(&done);
            }
            (Job::Generate(portion), Done::Generated { written, .. }) => {
                self.text_done(portion, written);
            }
            (Job::Generate(portion), Done::Refused { reason }) => {
                self.text_refused(portion.request, reason);
            }
            (Job::Forget { .. }, Done::Forgotten { .. }) => {}
            (_, Done::NonFinite { stage, own, .. }) => {
                let place = self.place();
                self.halt(WorkOutput::Up(Up::NonFinite { place, stage, own }));
            }
            (Job::Backward { .. }, Done::Refused { reason }) => {
                self.halt(WorkOutput::Refuse(Side::Next, reason));
            }
            (_, Done::Refused { reason }) => {
                self.halt(WorkOutput::Refuse(Side::Previous, reason));
            }
            (job, done) => panic!("the compute answered {job:?} with {done:?}"),
        }
    }

    pub(super) fn halt(&mut self, last_words: WorkOutput) {
        self.phase = Phase::Halted;
        self.outputs.push_back(last_words);
    }

    fn forward_done(
        &mut self,
        slot: Slot,
        mode: Mode,
        input: &Input,
        boundary: Option<Bytes>,
        loss_sum: Option<f64>,
    ) {
        if mode == Mode::Train {
            self.inputs.remove(&(slot.step, slot.microbatch.0));
            self.order_in_step.advance(Action::Forward(slot.microbatch));
        }
        if !self.is_head() {
            self.grant(1);
        }
        if let Some(boundary) = boundary {
            self.sent += 1;
            self.unanswered += u64::from(mode == Mode::Evaluate);
            let previous = slot.step.0.checked_sub(1).and_then(|before| {
                // Kept until the step after is applied: every microbatch of the step carries it.
                self.ends.get(&Step(before)).copied()
            });
            let microbatches = match mode {
                Mode::Train => self.microbatches,
                // An evaluation may be longer than a step.
                Mode::Evaluate => self.microbatches.max(self.evaluation.microbatches()),
            };
            let header = Header::Forward {
                slot,
                mode,
                microbatches,
                sequences: self.sequences,
                first_sample: input.first_sample,
                previous,
            };
            let payload = payload::encode_forward(&input.tokens, self.vocabulary, &boundary);
            self.send(Side::Next, header, payload);
        }
        if let Some(loss_sum) = loss_sum {
            self.evaluated(slot, loss_sum);
        }
    }

    fn backward_done(
        &mut self,
        now: Time,
        slot: Slot,
        gradient: Option<Bytes>,
        own_loss: Option<f64>,
        own_norm: Option<f64>,
    ) {
        let arrived = self.gradients.remove(&(slot.step, slot.microbatch.0));
        let loss_sum = own_loss.or(arrived.as_ref().map(|arrived| arrived.loss_sum));
        let loss_sum = loss_sum.expect("a loss comes from the last seat or with the gradient");
        let behind = arrived
            .and_then(|arrived| arrived.norm_squared)
            .unwrap_or(0.0);
        let norm_squared = own_norm.map(|own| own + behind);
        self.order_in_step
            .advance(Action::Backward(slot.microbatch));
        if let Some(gradient) = gradient {
            let mode = Mode::Train;
            let header = Header::Backward {
                slot,
                mode,
                loss_sum,
                norm_squared,
            };
            self.send(Side::Previous, header, gradient);
        } else {
            self.head.step_loss += loss_sum;
        }
        if let Some(norm_squared) = norm_squared {
            if self.is_head() {
                self.end_step(now, norm_squared);
            }
            if self.phase == Phase::Steps {
                self.step.0 += 1;
                self.order_in_step = self.fresh_order();
            }
        }
    }

    /// At the head, the step's last backward is done: the step's end is known.
    fn end_step(&mut self, now: Time, norm_squared: f64) {
        let norm = norm_squared.sqrt();
        if !norm.is_finite() || !self.head.step_loss.is_finite() {
            let (place, stage) = (self.place(), self.order.stages.iter().next());
            let stage = stage.expect("a seat has a stage");
            return self.halt(WorkOutput::Up(Up::NonFinite {
                place,
                stage,
                own: false,
            }));
        }
        let begun = self
            .begun
            .expect("the head forwards nothing before the host says begin");
        let scale = clip_scale(self.clip, norm);
        let samples_done = begun.samples_done + u64::from(self.step.0) * u64::from(self.batch);
        let end = StepEnd {
            scale,
            samples_done,
        };
        self.ends.insert(self.step, end);
        self.report(now);
        let is_last = self
            .head
            .leases
            .get(&self.step)
            .is_some_and(|lease| lease.last);
        if is_last || self.head.closing {
            self.end_round(self.step);
        } else {
            // Their updates are then done before the next step's first microbatch is there.
            self.tell_end(self.step, end, false);
        }
    }

    fn report(&mut self, now: Time) {
        let steps = self.step.0 + 1;
        let loss = self.head.step_loss / self.step_tokens as f64;
        self.head.step_loss = 0.0;
        self.head.round_loss += loss;
        let report = Report {
            place: self.place(),
            steps,
            loss,
            round_loss: self.head.round_loss / f64::from(steps),
            elapsed_us: now.since(self.head.began).as_micros(),
            forward_bytes: self.head.forward_bytes,
            backward_bytes: self.head.backward_bytes,
        };
        self.head.report = Some(report);
        self.outputs.push_back(WorkOutput::Up(Up::Report(report)));
    }

    fn snapshot_done(&mut self, round: Round, snapshots: Vec<Snapshot>) {
        let begun = self.begun.expect("a snapshot is asked for after begin");
        if round != begun.result {
            // A newer attempt gave the result another number meanwhile.
            self.snapshot_asked = false;
            return;
        }
        let ended = RoundEnd::new(self.place(), begun.attempt, self.applied, round, snapshots);
        self.phase = Phase::Held;
        self.hold(&ended);
        self.ended = Some(ended);
    }
}
