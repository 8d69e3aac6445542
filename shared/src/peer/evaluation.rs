//! The held-out data's way through the pipe, between two rounds.
//!
//! The head sends a fixed set of microbatches and sums the losses that come back; other seats pass them on as
//! they come. Nothing is stored for backward.

use std::collections::BTreeMap;

use crate::compute::Input;
use crate::units::SampleRange;

/// Evaluation at one seat.
#[derive(Clone, Debug)]
pub(super) struct Evaluation {
    microbatches: u16,
    waiting: BTreeMap<u16, Input>,
    sent: u16,
    losses: BTreeMap<u16, f64>,
}

impl Evaluation {
    /// An evaluation is `microbatches` long.
    pub(super) fn new(microbatches: u16) -> Self {
        Self {
            microbatches,
            waiting: BTreeMap::new(),
            sent: 0,
            losses: BTreeMap::new(),
        }
    }

    /// Microbatches an evaluation.
    pub(super) fn microbatches(&self) -> u16 {
        self.microbatches
    }

    /// Begins one, at the head: the held-out samples to get. `None` if there is nothing to evaluate.
    pub(super) fn begin(&mut self, sequences: u16) -> Option<SampleRange> {
        self.waiting.clear();
        self.losses.clear();
        self.sent = 0;
        let count = u32::from(self.microbatches) * u32::from(sequences);
        (count > 0).then_some(SampleRange { first: 0, count })
    }

    /// A microbatch to compute.
    pub(super) fn push(&mut self, microbatch: u16, input: Input) {
        if microbatch < self.microbatches {
            self.waiting.insert(microbatch, input);
        }
    }

    /// The next microbatch, if it may be computed now.
    pub(super) fn next(
        &mut self,
        may_send: bool,
        in_flight_max: u16,
        is_head: bool,
    ) -> Option<(u16, Input)> {
        let in_flight = usize::from(self.sent) - self.losses.len().min(usize::from(self.sent));
        if !may_send || (is_head && in_flight >= usize::from(in_flight_max)) {
            return None;
        }
        let next = self.waiting.pop_first();
        if next.is_some() && is_head {
            self.sent += 1;
        }
        next
    }

    /// A microbatch's loss, at the head. Returns the sum when it was the last.
    pub(super) fn handle_loss(&mut self, microbatch: u16, loss_sum: f64) -> Option<f64> {
        let is_news = self.losses.insert(microbatch, loss_sum).is_none();
        let is_complete = self.losses.len() == usize::from(self.microbatches);
        (is_news && is_complete).then(|| self.losses.values().sum())
    }
}
