//! What one link is like: how long a small message takes, and how fast it carries microbatches.
//!
//! The other end acknowledges each microbatch as soon as the whole of it is there, and answers each keepalive
//! with the next of its own. The delay is half of the least round trip seen lately: a message that had to queue
//! says nothing about it. A microbatch's transfer begins when it was sent, or when the one before it was through if
//! that was later; so neither what waits in the driver's outbox nor what waits in the channel counts. Of the last
//! transfers the median counts: one that waited for a lost packet, or for a piece of state, does not.
//!
//! Knows no clock and no frames' content: told when something was sent and when it was acknowledged.

use std::collections::VecDeque;

use crate::units::{Span, Time};
use crate::wire::frame::{Mode, Slot};

/// Microbatches that may wait for their acknowledgement: more than any credit; the oldest are forgotten.
const AWAITED_MAX: usize = 128;
/// Transfers that the median is taken over.
const TRANSFERS: usize = 32;
/// Transfers from which on a rate is told to others.
const TRANSFERS_MIN: usize = 8;
/// The least round trip is kept for each span of this length...
const LEAST_SPAN: Span = Span::from_secs(60);
/// ... and so many of them: a link that is full for minutes still knows what it was like when it was not.
const LEAST_SPANS: usize = 10;
/// The longest round trip that is told from nonsense.
const ROUND_TRIP_MAX: Span = Span::from_secs(60);
/// A transfer's pace is counted in microseconds for so many bytes.
const PACE_BYTES: u64 = 1 << 20;

/// A microbatch that was sent and is not acknowledged.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    slot: Slot,
    mode: Mode,
    sent: Time,
    bytes: u64,
}

/// Measures one link, in the direction away from this end.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    awaited: VecDeque<Awaited>,
    /// When the newest acknowledgement came.
    acknowledged: Time,
    /// The least round trip of each span, oldest first, and when the span began.
    least: VecDeque<(Time, Span)>,
    /// Microseconds for [`PACE_BYTES`], newest last.
    paces: VecDeque<u64>,
}

impl Meter {
    /// A microbatch of `bytes` was handed on to be sent.
    pub fn sent(&mut self, now: Time, slot: Slot, mode: Mode, bytes: usize) {
        if self.awaited.len() == AWAITED_MAX {
            self.awaited.pop_front();
        }
        self.awaited.push_back(Awaited {
            slot,
            mode,
            sent: now,
            bytes: bytes as u64,
        });
    }

    /// The other end has the whole of a microbatch. What was never sent has no effect.
    pub fn received(&mut self, now: Time, slot: Slot, mode: Mode) {
        let is_it = |awaited: &Awaited| (awaited.slot, awaited.mode) == (slot, mode);
        let Some(index) = self.awaited.iter().position(is_it) else {
            return;
        };
        let Some(awaited) = self.awaited.remove(index) else {
            return;
        };
        self.round_trip(now, now.since(awaited.sent));
        let arrival = awaited.sent + self.least().unwrap_or(Span::ZERO);
        let transfer = now.since(arrival.max(self.acknowledged));
        self.acknowledged = now;
        if awaited.bytes > 0 {
            if self.paces.len() == TRANSFERS {
                self.paces.pop_front();
            }
            let pace = u128::from(transfer.as_micros()) * u128::from(PACE_BYTES)
                / u128::from(awaited.bytes);
            self.paces
                .push_back(u64::try_from(pace).unwrap_or(u64::MAX));
        }
    }

    /// A message and its answer took so long, together.
    pub fn round_trip(&mut self, now: Time, took: Span) {
        if took > ROUND_TRIP_MAX {
            return;
        }
        match self.least.back_mut() {
            Some((began, least)) if now.since(*began) < LEAST_SPAN => *least = took.min(*least),
            Some(_) | None => {
                if self.least.len() == LEAST_SPANS {
                    self.least.pop_front();
                }
                self.least.push_back((now, took));
            }
        }
    }

    fn least(&self) -> Option<Span> {
        self.least.iter().map(|(_, least)| *least).min()
    }

    /// Microseconds one way of a small message; `None` before the first answer.
    #[must_use]
    pub fn delay_us(&self) -> Option<u64> {
        self.least().map(|least| least.as_micros() / 2)
    }

    /// Median of the last transfers' paces.
    fn pace(&self) -> Option<u64> {
        let mut paces: Vec<u64> = self.paces.iter().copied().collect();
        paces.sort_unstable();
        paces.get(paces.len() / 2).copied()
    }

    /// Payload bytes a second to the other end; `None` until enough went over to tell.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<u64> {
        let pace = self
            .pace()
            .filter(|_| self.paces.len() >= TRANSFERS_MIN)?
            .max(1);
        Some((PACE_BYTES * 1_000_000 / pace).max(1))
    }

    /// Microseconds that a microbatch of so many bytes is on the wire, one way: delay and transfer, as far as they
    /// are known.
    #[must_use]
    pub fn wire_us(&self, bytes: usize) -> u64 {
        let transfer =
            u128::from(self.pace().unwrap_or(0)) * bytes as u128 / u128::from(PACE_BYTES);
        let transfer = u64::try_from(transfer).unwrap_or(u64::MAX);
        self.delay_us().unwrap_or(0).saturating_add(transfer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::{Epoch, Microbatch, PipelineId, Round, Step};
    use crate::wire::frame::Place;

    fn slot(number: u32) -> Slot {
        Slot {
            place: Place {
                pipeline: PipelineId(0),
                epoch: Epoch::default(),
                round: Round(0),
            },
            step: Step(number),
            microbatch: Microbatch(0),
        }
    }

    /// A link of a given delay and rate that carries one frame after the other.
    struct Wire {
        delay: Span,
        bytes_per_second: u64,
        free: Time,
        meter: Meter,
        acknowledgements: Vec<(Time, u32)>,
    }

    impl Wire {
        fn new(delay_us: u64, bytes_per_second: u64) -> Self {
            Self {
                delay: Span::from_micros(delay_us),
                bytes_per_second,
                free: Time::ZERO,
                meter: Meter::default(),
                acknowledgements: Vec::new(),
            }
        }

        fn send(&mut self, at: Time, number: u32, bytes: u64, jitter: Span) {
            let transfer = Span::from_micros(bytes * 1_000_000 / self.bytes_per_second);
            self.free = self.free.max(at) + transfer;
            let bytes = usize::try_from(bytes).unwrap();
            self.meter.sent(at, slot(number), Mode::Train, bytes);
            let back = self.free + self.delay.times(2) + jitter;
            self.acknowledgements.push((back, number));
        }

        fn acknowledge(&mut self) {
            self.acknowledgements.sort_unstable();
            for (at, number) in std::mem::take(&mut self.acknowledgements) {
                self.meter.received(at, slot(number), Mode::Train);
            }
        }
    }

    fn within(found: u64, expected: u64, percent: u64) -> bool {
        found.abs_diff(expected) * 100 <= expected * percent
    }

    /// Sends `count` frames of `bytes`, one each `every_us`; a keepalive was answered while the link was empty.
    fn measured(wire: &mut Wire, count: u32, bytes: u64, every_us: u64, jitter_us: &[u64]) {
        wire.meter.round_trip(Time::ZERO, wire.delay.times(2));
        for (number, jitter) in (0..count).zip(jitter_us.iter().cycle()) {
            let at = Time::from_micros(u64::from(number) * every_us);
            wire.send(at, number, bytes, Span::from_micros(*jitter));
        }
        wire.acknowledge();
    }

    #[test]
    fn frames_that_queue_do_not_make_the_link_look_slower_or_longer() {
        // 80 Mbit/s, 25 ms one way; 100 kB take 10 ms, and come twice as fast as that.
        let mut wire = Wire::new(25_000, 10_000_000);
        measured(&mut wire, 60, 100_000, 5_000, &[0]);
        assert_eq!(wire.meter.delay_us(), Some(25_000));
        let rate = wire.meter.bytes_per_second().unwrap();
        assert!(within(rate, 10_000_000, 1), "{rate}");
        let wire_us = wire.meter.wire_us(100_000);
        assert!(within(wire_us, 35_000, 1), "{wire_us}");
    }

    #[test]
    fn frames_that_follow_each_other_within_a_round_trip_do_not_make_the_link_look_slower() {
        let mut wire = Wire::new(100_000, 10_000_000);
        measured(&mut wire, 60, 10_000, 50_000, &[0]);
        let rate = wire.meter.bytes_per_second().unwrap();
        assert!(within(rate, 10_000_000, 1), "{rate}");
    }

    #[test]
    fn without_any_keepalive_a_single_frame_bounds_the_delay() {
        let mut wire = Wire::new(25_000, 10_000_000);
        for number in 0..4 {
            wire.send(Time::ZERO, number, 100_000, Span::ZERO);
        }
        wire.acknowledge();
        assert_eq!(wire.meter.delay_us(), Some(30_000));
        assert_eq!(wire.meter.bytes_per_second(), None, "four say little");
    }

    #[test]
    fn a_full_link_remembers_for_minutes_what_it_was_like_when_empty() {
        let mut meter = Meter::default();
        for second in 0..120 {
            let round_trip = if second == 0 { 40 } else { 900 };
            let now = Time::ZERO + Span::from_secs(second);
            meter.round_trip(now, Span::from_millis(round_trip));
        }
        assert_eq!(meter.delay_us(), Some(20_000));
        for second in 120..800 {
            let now = Time::ZERO + Span::from_secs(second);
            meter.round_trip(now, Span::from_millis(900));
        }
        assert_eq!(meter.delay_us(), Some(450_000), "the path became longer");
    }

    #[test]
    fn acknowledgements_of_what_was_never_sent_say_nothing() {
        let mut meter = Meter::default();
        meter.received(Time::ZERO, slot(1), Mode::Train);
        meter.sent(Time::ZERO, slot(1), Mode::Train, 10);
        meter.received(Time::ZERO, slot(1), Mode::Evaluate);
        assert_eq!((meter.delay_us(), meter.wire_us(1_000)), (None, 0));
        for number in 0..1_000 {
            meter.sent(Time::ZERO, slot(number), Mode::Train, 10);
        }
        assert_eq!(meter.awaited.len(), AWAITED_MAX);
    }

    proptest! {
        #[test]
        fn rate_and_delay_are_found_whatever_the_load(
            delay_us in 1_000_u64..150_000,
            bytes_per_second in 500_000_u64..20_000_000,
            transfer_us in 2_000_u64..40_000,
            load_percent in 10_u64..300,
        ) {
            let bytes = transfer_us * bytes_per_second / 1_000_000;
            let every_us = transfer_us * 100 / load_percent;
            let mut wire = Wire::new(delay_us, bytes_per_second);
            // A twentieth of a transfer of jitter, and now and then a packet that is sent again.
            let small = transfer_us / 20;
            measured(&mut wire, 64, bytes, every_us, &[0, small, 0, small / 2, 0, 0, 0, 30 * transfer_us]);
            let rate = wire.meter.bytes_per_second().unwrap();
            prop_assert!(within(rate, bytes_per_second, 15), "{rate} of {bytes_per_second}");
            let wire_us = wire.meter.wire_us(usize::try_from(bytes).unwrap());
            prop_assert!(within(wire_us, delay_us + transfer_us, 15), "{wire_us}");
        }
    }
}
