//! How fast a volunteer works: lately, while it is looked at, while it is hidden.

use std::collections::VecDeque;

use shared::units::{Span, Time};

use crate::messages::Rates;

/// Over how much time "lately" is.
const LATELY: Span = Span::from_secs(20);

/// What was computed, and when.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    hidden: bool,
    /// Jobs handed to the device.
    jobs: u64,
    /// Ends of microbatches and the tokens in them, of the last while.
    done: VecDeque<(Time, u64)>,
    /// Tokens and busy time, visible and hidden.
    totals: [(u64, Span); 2],
}

impl Meter {
    /// The page was hidden or shown.
    pub fn set_hidden(&mut self, hidden: bool) {
        self.hidden = hidden;
    }

    /// Whether the page is hidden.
    #[must_use]
    pub fn hidden(&self) -> bool {
        self.hidden
    }

    /// A job is handed to the device.
    pub fn begin(&mut self) {
        self.jobs += 1;
    }

    /// Jobs that were handed to the device.
    #[must_use]
    pub fn jobs(&self) -> u64 {
        self.jobs
    }

    /// The device was busy for so long with a job that ended `now`, which ends `tokens` tokens' work (a backward) or
    /// none (anything else).
    pub fn worked(&mut self, now: Time, busy: Span, tokens: u64) {
        let total = &mut self.totals[usize::from(self.hidden)];
        total.0 += tokens;
        total.1 += busy;
        if tokens > 0 {
            self.done.push_back((now, tokens));
        }
    }

    /// Whether any microbatch was computed.
    #[must_use]
    pub fn has_worked(&self) -> bool {
        self.totals.iter().any(|(tokens, _)| *tokens > 0)
    }

    /// How fast it is, seen at `now`.
    #[must_use]
    pub fn rates(&mut self, now: Time) -> Rates {
        while self
            .done
            .front()
            .is_some_and(|(at, _)| now.since(*at) > LATELY)
        {
            self.done.pop_front();
        }
        let busy = |(tokens, busy): (u64, Span)| {
            (tokens > 0 && busy > Span::ZERO).then(|| tokens as f64 / busy.as_secs_f64())
        };
        Rates {
            tokens_per_second: self.lately(now),
            visible: busy(self.totals[0]),
            hidden: busy(self.totals[1]),
        }
    }

    /// Tokens a second from the first microbatch's end of the last while to now.
    fn lately(&self, now: Time) -> Option<f64> {
        let (since, first) = *self.done.front()?;
        let tokens: u64 = self.done.iter().map(|(_, tokens)| tokens).sum();
        let passed = now.since(since).as_secs_f64();
        // The first one's own work lies before that time.
        (passed > 0.0 && tokens > first).then(|| (tokens - first) as f64 / passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Span::from_secs(seconds)
    }

    #[test]
    fn speed_lately_counts_rests_and_forgets() {
        let mut meter = Meter::default();
        assert_eq!(meter.rates(at(0)).tokens_per_second, None);
        for second in 1..=5 {
            meter.worked(at(second), Span::from_millis(500), 100);
        }
        let rates = meter.rates(at(5));
        assert_eq!(rates.tokens_per_second, Some(100.0));
        assert_eq!(rates.visible, Some(200.0));
        assert_eq!(meter.rates(at(100)).tokens_per_second, None);
    }

    #[test]
    fn a_hidden_page_has_a_speed_of_its_own() {
        let mut meter = Meter::default();
        meter.worked(at(1), Span::from_secs(1), 300);
        meter.set_hidden(true);
        meter.worked(at(5), Span::from_secs(3), 0);
        meter.worked(at(6), Span::from_secs(1), 300);
        let rates = meter.rates(at(6));
        assert_eq!(rates.visible, Some(300.0));
        assert_eq!(rates.hidden, Some(75.0));
    }
}
