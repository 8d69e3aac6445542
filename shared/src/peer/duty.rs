//! A share of the time: how long a device rests after each piece of work, so that it works no more than asked.
//!
//! The share is busy / (busy + rest), where rest is time in which the device is kept free on purpose. Rests go
//! between microbatches, and a clock that wakes late is made good by shorter rests afterwards. The time that
//! a device waits for its neighbours is neither.
//!
//! Knows no clock and no device: told when work ended and how long it took, it says until when to rest.

use std::collections::VecDeque;

use crate::limits::{REST_LATE_MAX, REST_MAX};
use crate::units::{Span, Time};

/// Pieces of work that the measured share is taken over.
const WINDOW: usize = 512;

/// One device's rhythm of work and rest.
#[derive(Clone, Debug)]
pub struct Duty {
    percent: u8,
    /// Microseconds of rest that are due; below zero when it rested for too long.
    due_us: i64,
    /// Since when it rests, and until when it is to.
    resting: Option<(Time, Time)>,
    /// What it worked and then rested, newest last.
    done: VecDeque<(Span, Span)>,
}

impl Duty {
    /// A device that is to work for `percent` of the time, 10 to 100.
    #[must_use]
    pub fn new(percent: u8) -> Self {
        Self {
            percent: percent.clamp(10, 100),
            due_us: 0,
            resting: None,
            done: VecDeque::new(),
        }
    }

    /// The share that was asked for, in percent.
    #[must_use]
    pub const fn percent(&self) -> u8 {
        self.percent
    }

    /// Changes the share, from now on: what was due is forgotten, and so is what was measured.
    pub fn set_percent(&mut self, percent: u8) {
        *self = Self::new(percent);
    }

    /// A piece of work ended `now` that took `busy`: its rest begins.
    pub fn worked(&mut self, now: Time, busy: Span) {
        let percent = i64::from(self.percent);
        let owed_us = signed(busy) * (100 - percent) / percent;
        self.due_us = (self.due_us + owed_us).min(signed(REST_MAX));
        if self.done.len() == WINDOW {
            self.done.pop_front();
        }
        self.done.push_back((busy, Span::ZERO));
        let rest = Span::from_micros(u64::try_from(self.due_us).unwrap_or(0));
        self.resting = (rest > Span::ZERO).then_some((now, now + rest));
    }

    /// Until when it rests; `None` when it may work.
    #[must_use]
    pub fn rests_until(&self) -> Option<Time> {
        self.resting.map(|(_, until)| until)
    }

    /// Ends the rest if its time has come; whether the device may work.
    pub fn may_work(&mut self, now: Time) -> bool {
        let Some((since, until)) = self.resting else {
            return true;
        };
        if now < until {
            return false;
        }
        let rested = now.since(since);
        self.resting = None;
        self.due_us = (self.due_us - signed(rested)).max(-signed(REST_LATE_MAX));
        if let Some((_, rest)) = self.done.back_mut() {
            *rest = rested;
        }
        true
    }

    /// The measured share in percent, over the last pieces of work; `None` before the first.
    #[must_use]
    pub fn measured_percent(&self) -> Option<f64> {
        let sum = |part: fn(&(Span, Span)) -> Span| {
            self.done
                .iter()
                .map(part)
                .fold(Span::ZERO, |sum, span| sum + span)
                .as_secs_f64()
        };
        let (busy, rest) = (sum(|(busy, _)| *busy), sum(|(_, rest)| *rest));
        (busy > 0.0).then(|| 100.0 * busy / (busy + rest))
    }
}

fn signed(span: Span) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX / 1_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Works `busy` again and again, woken `late` after each rest is over.
    fn measured(percent: u8, busy: &[u64], late: Span) -> f64 {
        let mut duty = Duty::new(percent);
        let mut now = Time::ZERO;
        for busy in busy {
            let busy = Span::from_micros(*busy);
            now = now + busy;
            duty.worked(now, busy);
            if let Some(until) = duty.rests_until() {
                assert!(!duty.may_work(now), "it rests");
                now = until + late;
            }
            assert!(duty.may_work(now), "the rest is over");
        }
        duty.measured_percent().unwrap()
    }

    #[test]
    fn a_device_that_works_all_the_time_never_rests() {
        let mut duty = Duty::new(100);
        duty.worked(Time::ZERO, Span::from_secs(9));
        assert_eq!(duty.rests_until(), None);
        assert_eq!(duty.measured_percent(), Some(100.0));
    }

    #[test]
    fn half_the_time_is_as_much_rest_as_work() {
        let mut duty = Duty::new(50);
        let now = Time::from_micros(7_000);
        duty.worked(now, Span::from_millis(5));
        assert_eq!(duty.rests_until(), Some(now + Span::from_millis(5)));
        assert!(!duty.may_work(now + Span::from_micros(4_999)));
        assert!(duty.may_work(now + Span::from_millis(5)));
    }

    #[test]
    fn a_new_share_counts_from_now_on() {
        let mut duty = Duty::new(10);
        duty.worked(Time::ZERO, Span::from_millis(100));
        duty.set_percent(100);
        assert!(duty.may_work(Time::ZERO), "it rests no longer");
    }

    #[test]
    fn a_clock_that_wakes_a_second_late_is_made_good() {
        let share = measured(50, &[20_000; 500], Span::from_secs(1));
        assert!((share - 50.0).abs() < 5.0, "{share}");
    }

    proptest! {
        #[test]
        fn the_measured_share_is_the_one_that_was_asked_for(
            percent in 10_u8..=100,
            busy in proptest::collection::vec(1_000_u64..200_000, 64..200),
            late_us in 0_u64..5_000,
        ) {
            let share = measured(percent, &busy, Span::from_micros(late_us));
            prop_assert!((share - f64::from(percent)).abs() < 2.0, "{share} for {percent}");
        }
    }
}
