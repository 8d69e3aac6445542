//! One seat at work: which microbatch is computed next, and what follows from its result.
//!
//! Owns the order within a round: forwards and backwards in number order whatever the channel's order,
//! backward before forward, a step's update as soon as it is known how the step ended. The head also
//! owns the step's end: loss, gradient norm and clip scale are complete when its last backward is.
//!
//! Knows no links and no host: frames and messages leave as values, addressed by position in the pipe.
//! A line-up that changes replaces the whole `Work`.
//!
//! Texts that are written meanwhile are `texts`' business.
//! Begin reading at [`Work::next_job`] (in `jobs`) and [`Work::handle_done`] (in `results`).

mod ending;
mod flow;
mod jobs;
mod results;
mod texts;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::evaluation::Evaluation;
use crate::compute::Input;
use crate::config::run::RunConfig;
use crate::limits::CREDIT_MAX;
use crate::schedule::order::Order;
use crate::units::{Attempt, Round, SampleRange, Span, Step, Time};
use crate::wire::frame::{Behind, Frame, Header, Mode, Place, Slot, StepEnd};
use crate::wire::signal::{Held, Lease, Report, SeatOrder, Up};
use ending::RoundEnd;
use flow::Flow;
use texts::Texts;

pub use ending::Committed;
pub use flow::Pace;

/// Which neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The seat before: where forwards come from.
    Previous,
    /// The seat after: where gradients come from.
    Next,
}

/// What a seat at work wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkOutput {
    /// Send this to a neighbour.
    Frame(Side, Frame),
    /// Tell the host.
    Up(Up),
    /// Get these samples' tokens from the host's data.
    Tokens {
        /// Training or held-out data.
        mode: Mode,
        /// Which samples.
        samples: SampleRange,
    },
    /// Keep these states: a round's result, provisional until it is committed.
    Keep(Vec<(Held, Bytes)>),
    /// Keep these no more: another attempt voids them.
    Drop(Vec<Held>),
    /// These are committed, and the compute cannot take them as what they are.
    Wrong(Vec<Held>),
    /// A neighbour sent what no correct build sends: what.
    Refuse(Side, String),
}

/// What the host said at the beginning of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The attempt at the round's end.
    pub attempt: Attempt,
    /// The number that the result gets.
    pub result: Round,
    /// Samples committed before the round.
    pub samples_done: u64,
}

/// A gradient that came from the next seat.
#[derive(Clone, Debug)]
struct Arrived {
    gradient: Bytes,
    loss_sum: f64,
    norm_squared: Option<f64>,
}

/// How far a seat is within its round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Steps are done as their inputs come.
    Steps,
    /// The last step's update and the snapshot.
    Ending,
    /// The result is with the host; its commit begins the next round.
    Held,
    /// Something cannot go on; the host will renew the line-up.
    Halted,
}

/// A seat in its round.
#[derive(Clone, Debug)]
pub struct Work {
    order: SeatOrder,
    microbatches: u16,
    sequences: u16,
    batch: u32,
    step_tokens: u64,
    clip: f64,
    vocabulary: usize,

    phase: Phase,
    begun: Option<Begun>,
    /// Steps of this round whose update is done or asked for.
    applied: u32,
    step: Step,
    /// The newest step of this round that a forward was asked for: it may be under way.
    entered: Option<Step>,
    /// Whose turn it is within the step.
    order_in_step: Order,
    inputs: BTreeMap<(Step, u16), Input>,
    gradients: BTreeMap<(Step, u16), Arrived>,
    ends: BTreeMap<Step, StepEnd>,
    last_step: Option<Step>,
    snapshot_asked: bool,
    /// The round's result, and what a merge made of it, until a commit.
    ended: Option<RoundEnd>,
    merged: Option<RoundEnd>,
    /// What is merged and committed, until the compute has taken it.
    reseat: Option<RoundEnd>,

    /// Forwards sent in this epoch, and how many the next seat takes in all.
    sent: u64,
    credit: u64,
    /// Forwards that the previous seat may send in this epoch in all, and how many came.
    granted: u64,
    received: u64,
    /// Held-out microbatches that the next seat has not answered.
    unanswered: u64,
    flow: Flow,
    /// Microbatches that there is memory for.
    room: u16,

    head: Head,
    evaluation: Evaluation,
    texts: Texts,
    outputs: VecDeque<WorkOutput>,
}

/// What only a pipeline's first seat keeps.
#[derive(Clone, Debug, Default)]
struct Head {
    leases: BTreeMap<Step, Lease>,
    closing: bool,
    began: Time,
    step_loss: f64,
    round_loss: f64,
    forward_bytes: u64,
    backward_bytes: u64,
    report: Option<Report>,
}

impl Work {
    /// A seat whose states are in place and whose links are up.
    ///
    /// `memory_bytes` is what the volunteer lends, for all it holds.
    pub fn new(order: SeatOrder, config: &RunConfig, memory_bytes: u64) -> Self {
        let mut work = Self {
            microbatches: config.training.microbatches,
            sequences: config.microbatch_sequences(),
            batch: config.training.batch,
            step_tokens: config.step_tokens(),
            clip: config.training.clip,
            vocabulary: config.model.vocabulary,
            phase: Phase::Steps,
            begun: None,
            applied: 0,
            step: Step(0),
            entered: None,
            order_in_step: Order::new(0, 0, config.training.microbatches),
            inputs: BTreeMap::new(),
            gradients: BTreeMap::new(),
            ends: BTreeMap::new(),
            last_step: None,
            snapshot_asked: false,
            ended: None,
            merged: None,
            reseat: None,
            sent: 0,
            credit: 0,
            granted: 0,
            received: 0,
            unanswered: 0,
            flow: Flow::default(),
            room: flow::room(config, order.stages, memory_bytes),
            head: Head::default(),
            evaluation: Evaluation::new(config.schedule.eval_microbatches),
            texts: Texts::new(config.model.context),
            outputs: VecDeque::new(),
            order,
        };
        work.order_in_step = work.fresh_order();
        work
    }

    /// The beginning of a step: how far this seat runs ahead in it.
    fn fresh_order(&self) -> Order {
        let most = self.room - 1;
        let seats_behind = self.order.seats_behind.min(most);
        let extra = self.flow.extra(self.order.seats_behind);
        Order::new(
            seats_behind,
            extra.min(most - seats_behind),
            self.microbatches,
        )
    }

    /// What this seat has measured of itself and its links. It counts from the next step on.
    pub fn set_pace(&mut self, pace: Pace) {
        self.flow.pace = pace;
        self.refresh_order();
    }

    /// A step that has not begun begins with what is known now.
    fn refresh_order(&mut self) {
        if self.order_in_step.forwards() == 0 {
            self.order_in_step = self.fresh_order();
        }
    }

    /// Goes by the rule that knows no links, for comparison.
    #[cfg(any(test, feature = "sim"))]
    pub fn be_blind(&mut self) {
        self.flow.blind = true;
        self.refresh_order();
    }

    /// Line-up and round.
    pub fn place(&self) -> Place {
        self.order.place
    }

    /// The seat's order, with the round it is at now.
    pub fn order(&self) -> &SeatOrder {
        &self.order
    }

    fn is_head(&self) -> bool {
        self.order.previous.is_none()
    }

    fn is_last(&self) -> bool {
        self.order.next.is_none()
    }

    /// Microbatches between forward and backward at this seat.
    fn in_flight_max(&self) -> u16 {
        self.order_in_step.in_flight_max().min(self.microbatches)
    }

    fn send(&mut self, side: Side, header: Header, payload: Bytes) {
        if side == Side::Next && matches!(header, Header::Forward { .. }) {
            self.head.forward_bytes += payload.len() as u64;
        }
        self.outputs
            .push_back(WorkOutput::Frame(side, Frame { header, payload }));
    }

    /// Grants the previous seat its first microbatches. Once, when the seat is ready.
    pub fn open(&mut self) {
        if !self.is_head() {
            self.grant(u64::from(self.room.min(CREDIT_MAX)));
        }
    }

    fn grant(&mut self, more: u64) {
        self.granted += more;
        let Place {
            pipeline, epoch, ..
        } = self.place();
        let header = Header::Credit {
            pipeline,
            epoch,
            granted: self.granted,
            behind: self.flow.told(),
        };
        self.send(Side::Previous, header, Bytes::new());
    }

    /// How many forwards the next seat takes in all, in this epoch, and what is behind this one.
    pub fn handle_credit(&mut self, granted: u64, behind: Behind) {
        self.credit = self.credit.max(granted);
        self.flow.behind = behind;
        self.refresh_order();
    }

    /// The host says go.
    pub fn handle_begin(&mut self, now: Time, mode: Mode, begun: Begun) {
        match mode {
            Mode::Train => self.begin_attempt(now, begun),
            Mode::Evaluate if self.is_head() => {
                if let Some(samples) = self.evaluation.begin(self.sequences) {
                    let mode = Mode::Evaluate;
                    self.outputs.push_back(WorkOutput::Tokens { mode, samples });
                }
            }
            Mode::Evaluate => {}
        }
    }

    /// An attempt voids all earlier ones. What was computed stays good: line-up, round and so the work are the
    /// same, and only what the host is told of it bears the attempt.
    fn begin_attempt(&mut self, now: Time, begun: Begun) {
        let Some(before) = self.begun else {
            self.begun = Some(begun);
            self.head.began = now;
            return;
        };
        if begun.attempt <= before.attempt {
            return;
        }
        self.begun = Some(begun);
        if self.phase != Phase::Held {
            return;
        }
        self.unmerge();
        if begun.result != before.result {
            // Its weights bear the number of the round: they are copied out once more.
            self.phase = Phase::Ending;
            self.snapshot_asked = false;
            self.ended = None;
        } else if let Some(ended) = &mut self.ended {
            ended.holds.attempt = begun.attempt;
            let holds = ended.holds.clone();
            self.outputs.push_back(WorkOutput::Up(Up::Holds(holds)));
        }
    }

    /// Whether microbatches come though the host has not said `begin`.
    pub fn lacks_begin(&self) -> bool {
        let is_at_work =
            self.step.0 > 0 || self.order_in_step.forwards() > 0 || !self.inputs.is_empty();
        self.begun.is_none() && !self.is_head() && is_at_work
    }

    /// Samples for one step, for the head. A lease that comes again has no effect.
    pub fn handle_lease(&mut self, lease: Lease) {
        if self.is_head() && self.head.leases.insert(lease.step, lease).is_none() {
            let (mode, samples) = (Mode::Train, lease.samples);
            self.outputs.push_back(WorkOutput::Tokens { mode, samples });
        }
    }

    /// The round is to end with the step that is under way.
    pub fn handle_close(&mut self) {
        self.head.closing = true;
        // Between two steps: the one before was the last, if there was one.
        if self.is_head()
            && self.phase == Phase::Steps
            && self.entered != Some(self.step)
            && self.step.0 > 0
        {
            self.end_round(Step(self.step.0 - 1));
        }
    }

    /// Tokens of samples, `[count, context + 1]`, as asked for.
    pub fn handle_tokens(&mut self, mode: Mode, samples: SampleRange, tokens: &[u32]) {
        let row = tokens.len() / (samples.count.max(1) as usize);
        let chunk = row * usize::from(self.sequences);
        let inputs = (0u16..)
            .zip(tokens.chunks_exact(chunk.max(1)))
            .map(|(microbatch, tokens)| {
                let first_sample =
                    samples.first + u64::from(microbatch) * u64::from(self.sequences);
                (
                    microbatch,
                    Input {
                        tokens: tokens.to_vec(),
                        boundary: None,
                        first_sample,
                    },
                )
            });
        match mode {
            Mode::Train => {
                let step = self
                    .head
                    .leases
                    .values()
                    .find(|lease| lease.samples == samples);
                if let Some(step) = step.map(|lease| lease.step) {
                    self.inputs
                        .extend(inputs.map(|(microbatch, input)| ((step, microbatch), input)));
                }
            }
            Mode::Evaluate => inputs.for_each(|(microbatch, input)| {
                self.evaluation.push(microbatch, input);
            }),
        }
    }

    /// A boundary from the previous seat.
    pub fn handle_forward(
        &mut self,
        slot: Slot,
        mode: Mode,
        previous: Option<StepEnd>,
        input: Input,
    ) {
        self.received += 1;
        if self.received > self.granted {
            return self.refuse(Side::Previous, "more microbatches than it has credit for");
        }
        match mode {
            Mode::Evaluate => self.evaluation.push(slot.microbatch.0, input),
            Mode::Train => {
                let is_late = slot.step < self.step
                    || (slot.step == self.step
                        && slot.microbatch.0 < self.order_in_step.forwards());
                if is_late {
                    return;
                }
                if let (Some(end), Some(before)) = (previous, slot.step.0.checked_sub(1)) {
                    self.ends.insert(Step(before), end);
                }
                self.inputs.insert((slot.step, slot.microbatch.0), input);
            }
        }
    }

    /// A gradient, or an evaluation's loss, from the next seat.
    pub fn handle_backward(
        &mut self,
        slot: Slot,
        mode: Mode,
        loss_sum: f64,
        norm_squared: Option<f64>,
        gradient: Bytes,
    ) {
        let (forwards, backwards) = (
            self.order_in_step.forwards(),
            self.order_in_step.backwards(),
        );
        let number = slot.microbatch.0;
        match mode {
            Mode::Evaluate if self.unanswered > 0 && number < self.evaluation.microbatches() => {
                self.unanswered -= 1;
                self.evaluated(slot, loss_sum);
            }
            Mode::Train if slot.step < self.step => {}
            Mode::Train if slot.step == self.step && number < backwards => {}
            Mode::Train if slot.step == self.step && number < forwards => {
                self.head.backward_bytes += gradient.len() as u64;
                let arrived = Arrived {
                    gradient,
                    loss_sum,
                    norm_squared,
                };
                self.gradients.insert((slot.step, number), arrived);
            }
            Mode::Train | Mode::Evaluate => {
                self.refuse(Side::Next, "an answer to a microbatch that it was not sent");
            }
        }
    }

    fn refuse(&mut self, side: Side, what: &str) {
        self.outputs
            .push_back(WorkOutput::Refuse(side, what.to_owned()));
    }

    fn evaluated(&mut self, slot: Slot, loss_sum: f64) {
        if !self.is_head() {
            let (mode, norm_squared) = (Mode::Evaluate, None);
            let header = Header::Backward {
                slot,
                mode,
                loss_sum,
                norm_squared,
            };
            self.send(Side::Previous, header, Bytes::new());
        } else if let Some(loss_sum) = self.evaluation.handle_loss(slot.microbatch.0, loss_sum) {
            let per_microbatch = self.step_tokens / u64::from(self.microbatches);
            let tokens = per_microbatch * u64::from(self.evaluation.microbatches());
            let (place, loss) = (self.place(), loss_sum / tokens as f64);
            self.outputs
                .push_back(WorkOutput::Up(Up::Evaluated { place, loss }));
        }
    }

    /// A step is over, says the previous seat; the round as well if it was the `last`.
    pub fn handle_apply(&mut self, step: Step, end: StepEnd, last: bool) {
        if self.phase != Phase::Steps || self.last_step.is_some() {
            return;
        }
        // Of no other step the head can know it: all of our part of it is done, and its update is not.
        let is_due = self.applied == step.0 && self.step.0 == step.0 + 1;
        if last {
            // Its update may be made: the host closed the round after the head had told of its end.
            self.ends.insert(step, end);
            self.end_round(step);
        } else if is_due {
            self.ends.insert(step, end);
            self.tell_end(step, end, last);
        }
    }

    /// Seats behind hear how a step ended.
    fn tell_end(&mut self, step: Step, end: StepEnd, last: bool) {
        if !self.is_last() {
            let header = Header::Apply {
                place: self.place(),
                step,
                end,
                last,
            };
            self.send(Side::Next, header, Bytes::new());
        }
    }

    /// Ends the round with `step`, whose end is known, here and in the seats behind.
    fn end_round(&mut self, step: Step) {
        let Some(end) = self.ends.get(&step).copied() else {
            return;
        };
        self.last_step = Some(step);
        self.phase = Phase::Ending;
        self.tell_end(step, end, true);
    }

    /// For people: steps done in the round, the last step's loss, and seconds since the round began.
    pub fn progress(&self, now: Time) -> (u32, Option<f64>, Span) {
        let loss = self.head.report.map(|report| report.loss);
        (self.step.0, loss, now.since(self.head.began))
    }

    /// What to do next; `None` when there is nothing more.
    pub fn poll_output(&mut self) -> Option<WorkOutput> {
        self.outputs.pop_front()
    }
}

#[cfg(test)]
mod tests;
