//! How long a link may be silent before its other end is suspected.

use std::collections::VecDeque;

use crate::limits::{KEEPALIVE, RESTART_ANSWER_MAX, SILENCE_MAX, SILENCE_MIN};
use crate::units::{Span, Time};

/// Inter-arrival times of one link, and when silence becomes suspicious: median + 8 deviations
/// (median absolute), never before [`SILENCE_MIN`], and so early that the other end can still be asked through the
/// host before [`SILENCE_MAX`].
#[derive(Clone, Debug, Default)]
pub(super) struct Pulse {
    last: Time,
    gaps_us: VecDeque<u64>,
    /// Median and 8 deviations of the gaps, in microseconds: it is asked far more often than it changes.
    usual_us: u64,
}

impl Pulse {
    const GAPS: usize = 32;

    /// Somebody was heard just now, for the first time.
    pub(super) fn beginning(now: Time) -> Self {
        Self {
            last: now,
            gaps_us: VecDeque::new(),
            usual_us: 0,
        }
    }

    /// Somebody was heard.
    pub(super) fn beat(&mut self, now: Time) {
        let gap = now.since(self.last).as_micros();
        self.last = now;
        // Bursts of frames say nothing about how long silence may last.
        if gap > KEEPALIVE.as_micros() / 4 {
            if self.gaps_us.len() == Self::GAPS {
                self.gaps_us.pop_front();
            }
            self.gaps_us.push_back(gap);
            let median = median(self.gaps_us.iter().copied());
            self.usual_us = median + 8 * median_deviation(&self.gaps_us, median);
        }
    }

    /// Nobody could be heard until now, and that is no fault of theirs.
    pub(super) fn resume(&mut self, now: Time) {
        self.last = now;
    }

    /// When it will have been silent for too long.
    pub(super) fn silent_at(&self) -> Time {
        let latest_us = SILENCE_MAX.as_micros() - RESTART_ANSWER_MAX.as_micros();
        let allowed = self.usual_us.clamp(SILENCE_MIN.as_micros(), latest_us);
        self.last + Span::from_micros(allowed)
    }
}

fn median_deviation(gaps_us: &VecDeque<u64>, median_us: u64) -> u64 {
    median(gaps_us.iter().map(|gap| gap.abs_diff(median_us)))
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
