//! One direction of an access link: a queue before a line of a rate, then a delay.
//!
//! Owns when a packet arrives at the other end, or why it does not. Deterministic: time comes in as an argument, what is
//! lost and how much later a packet comes follow from a seed, and no packet itself is seen, only its bytes. A packet is
//! through at max(now, when the one before was through) + bytes / rate, with what division leaves carried on, so that
//! the rate is exact over any time. Knows no sockets and no other line. Begin with [`Line::admit`].

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::time::Duration;

use fastrand::Rng;

const NANOS_A_SECOND: u128 = 1_000_000_000;

/// What a line does to packets. Bytes are those of IP packets, with their headers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Bits a second; without one packets take no time, and none waits.
    pub rate_bits: Option<NonZeroU64>,
    /// From when a packet is through until it arrives.
    pub delay: Duration,
    /// So much more at most, drawn for each packet.
    pub jitter: Duration,
    /// Whether a packet that was drawn less jitter overtakes. Otherwise it arrives with the one before it at the earliest.
    pub reorders: bool,
    /// Bytes that wait or are on the line; a packet that does not fit is dropped, unless the line is idle.
    pub queue_bytes: usize,
    /// How likely a packet is lost after it was on the line.
    pub loss: f64,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives at this time.
    Arrives(Duration),
    /// The queue has no room for it.
    Full,
    /// It is lost on the way.
    Lost,
}

/// A line at work. Times are those since some beginning, and do not decrease.
#[derive(Debug)]
pub struct Line {
    shape: Shape,
    draws: Rng,
    /// When all that was admitted is through, and the part of a nanosecond that was left over, in 1 / rate.
    idle_at: Duration,
    left_over: u128,
    /// When each packet that waits or is on the line is through, and its bytes.
    waiting: VecDeque<(Duration, usize)>,
    waiting_bytes: usize,
    /// When the latest one arrives.
    latest: Duration,
}

impl Shape {
    /// Nothing happens to packets.
    pub const NONE: Self = Self {
        rate_bits: None,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        reorders: false,
        queue_bytes: 0,
        loss: 0.0,
    };
}

impl Line {
    /// An idle line. The same seed and the same packets meet the same fates.
    #[must_use]
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self {
            shape,
            draws: Rng::with_seed(seed),
            idle_at: Duration::ZERO,
            left_over: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            latest: Duration::ZERO,
        }
    }

    /// A packet comes to the line.
    pub fn admit(&mut self, now: Duration, bytes: usize) -> Fate {
        let Some(through) = self.through(now, bytes) else {
            return Fate::Full;
        };
        // Both are drawn for each packet: what one is does not change what the others get.
        let is_lost = self.draws.f64() < self.shape.loss;
        let jitter = self.shape.jitter.mul_f64(self.draws.f64());
        if is_lost {
            return Fate::Lost;
        }
        let mut arrives = through + self.shape.delay + jitter;
        if !self.shape.reorders {
            arrives = arrives.max(self.latest);
            self.latest = arrives;
        }
        Fate::Arrives(arrives)
    }

    /// Bytes that wait or are on the line.
    #[must_use]
    pub fn waiting_bytes(&mut self, now: Duration) -> usize {
        while let Some((_, bytes)) = self.waiting.pop_front_if(|(through, _)| *through <= now) {
            self.waiting_bytes -= bytes;
        }
        self.waiting_bytes
    }

    /// When a packet is through the line; nothing where the queue has no room for it.
    fn through(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        let Some(rate) = self.shape.rate_bits else {
            return Some(now);
        };
        let waiting = self.waiting_bytes(now);
        if waiting > 0 && waiting + bytes > self.shape.queue_bytes {
            return None;
        }
        if self.idle_at < now {
            self.idle_at = now;
            self.left_over = 0;
        }
        let rate = u128::from(rate.get());
        let bits = u128::try_from(bytes).expect("a usize fits") * 8;
        let due = bits * NANOS_A_SECOND + self.left_over;
        self.left_over = due % rate;
        self.idle_at += Duration::from_nanos_u128(due / rate);
        self.waiting.push_back((self.idle_at, bytes));
        self.waiting_bytes += bytes;
        Some(self.idle_at)
    }
}

#[cfg(test)]
mod tests {
    use super::{Fate, Line, Shape};
    use proptest::prelude::*;
    use std::num::NonZeroU64;
    use std::time::Duration;

    const HOME: Shape = Shape {
        rate_bits: NonZeroU64::new(80_000_000),
        delay: Duration::from_millis(25),
        queue_bytes: 1_250_000,
        ..Shape::NONE
    };

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Fates of packets that come all at once.
    fn burst(shape: Shape, seed: u64, count: usize, bytes: usize) -> Vec<Fate> {
        let mut line = Line::new(shape, seed);
        (0..count)
            .map(|_| line.admit(Duration::ZERO, bytes))
            .collect()
    }

    fn lost(fates: &[Fate]) -> Vec<usize> {
        let is_lost = |(_, fate): &(usize, &Fate)| **fate == Fate::Lost;
        let lost = fates.iter().enumerate().filter(is_lost);
        lost.map(|(index, _)| index).collect()
    }

    #[test]
    fn a_packet_takes_its_time_on_the_line_and_the_delay() {
        let mut line = Line::new(HOME, 1);
        // 1,000 bytes at 80 Mbit/s: 100 us.
        let through = Duration::from_micros(100);
        assert_eq!(line.admit(ms(3), 1000), Fate::Arrives(ms(28) + through));
        assert_eq!(line.admit(ms(3), 1000), Fate::Arrives(ms(28) + 2 * through));
        let idle = Fate::Arrives(ms(35) + through);
        assert_eq!(line.admit(ms(10), 1000), idle, "time idle is not made up");
    }

    #[test]
    fn the_rate_is_exact_at_rates_that_divide_nothing() {
        for rate in [999_983, 7_654_321, 80_000_000, 943_718_401] {
            let shape = Shape {
                rate_bits: NonZeroU64::new(rate),
                queue_bytes: usize::MAX,
                ..Shape::NONE
            };
            let mut line = Line::new(shape, 1);
            let mut bits = 0;
            let mut last = Duration::ZERO;
            for packet in 0..100_000 {
                let bytes = 40 + packet % 1461;
                bits += 8 * bytes as u64;
                // The sender is always ahead, and comes at odd times.
                let now = last.saturating_sub(ms(20));
                let Fate::Arrives(at) = line.admit(now, bytes) else {
                    panic!("there is room");
                };
                last = at;
            }
            let exact = bits as f64 / rate as f64;
            let error = (last.as_secs_f64() / exact - 1.0).abs();
            assert!(error < 1e-6, "{rate}: {error}");
        }
    }

    #[test]
    fn a_queue_takes_what_fits_and_drops_what_comes_last() {
        let shape = Shape {
            queue_bytes: 10_000,
            ..HOME
        };
        let fates = burst(shape, 1, 14, 1000);
        let (first, rest) = fates.split_at(10);
        assert!(first.iter().all(|fate| matches!(fate, Fate::Arrives(_))));
        assert!(rest.iter().all(|fate| *fate == Fate::Full));
        let mut line = Line::new(shape, 1);
        for _ in 0..10 {
            line.admit(Duration::ZERO, 1000);
        }
        let soon = Duration::from_micros(99);
        assert_eq!(line.admit(soon, 1000), Fate::Full, "none is through yet");
        let room = line.admit(Duration::from_micros(100), 1000);
        assert!(matches!(room, Fate::Arrives(_)), "one is through");
    }

    #[test]
    fn packets_are_lost_as_often_as_asked_and_the_same_ones_by_the_same_seed() {
        let shape = Shape {
            loss: 0.01,
            queue_bytes: usize::MAX,
            ..HOME
        };
        let first = lost(&burst(shape, 7, 100_000, 1200));
        // Three deviations: 3 * sqrt(100,000 * 0.01 * 0.99) = 94.
        assert!((906..=1094).contains(&first.len()), "{}", first.len());
        assert_eq!(first, lost(&burst(shape, 7, 100_000, 1200)));
        assert_ne!(first, lost(&burst(shape, 8, 100_000, 1200)));
        let late = Shape {
            jitter: ms(5),
            ..shape
        };
        let late = lost(&burst(late, 7, 100_000, 1200));
        assert_eq!(first, late, "jitter changes no losses");
        let lossless = burst(Shape { loss: 0.0, ..shape }, 7, 100_000, 1200);
        assert!(lost(&lossless).is_empty());
    }

    #[test]
    fn only_jitter_that_may_reorder_does() {
        let overtakes = |reorders| {
            let shape = Shape {
                jitter: ms(10),
                reorders,
                ..HOME
            };
            let fates = burst(shape, 3, 800, 1200);
            fates.windows(2).any(|pair| match pair {
                [Fate::Arrives(one), Fate::Arrives(next)] => next < one,
                _ => panic!("there is room, and no loss"),
            })
        };
        assert!(overtakes(true));
        assert!(!overtakes(false));
    }

    proptest! {
        #[test]
        fn whatever_comes_arrives_in_its_bounds_in_order_and_no_faster_than_the_line(
            rate in 100_000_u64..1_000_000_000,
            delay_us in 0_u64..100_000,
            jitter_us in 0_u64..20_000,
            queue_bytes in 0_usize..100_000,
            packets in prop::collection::vec((0_u64..2_000, 20_usize..1500), 1..400),
        ) {
            let shape = Shape {
                rate_bits: NonZeroU64::new(rate),
                delay: Duration::from_micros(delay_us),
                jitter: Duration::from_micros(jitter_us),
                queue_bytes,
                ..Shape::NONE
            };
            let mut line = Line::new(shape, rate);
            let (mut now, mut latest) = (Duration::ZERO, Duration::ZERO);
            // When the line is free, as a plain sum of seconds has it.
            let mut free = 0_f64;
            for (gap_us, bytes) in packets {
                now += Duration::from_micros(gap_us);
                let before = line.waiting_bytes(now);
                let Fate::Arrives(at) = line.admit(now, bytes) else {
                    prop_assert!(before > 0 && before + bytes > queue_bytes);
                    continue;
                };
                prop_assert!(line.waiting_bytes(now) <= queue_bytes.max(bytes));
                free = free.max(now.as_secs_f64()) + 8.0 * bytes as f64 / rate as f64;
                let flight = at.as_secs_f64() - free - shape.delay.as_secs_f64();
                prop_assert!(flight > -1e-8, "early by {flight} s");
                prop_assert!(flight < shape.jitter.as_secs_f64() + 1e-8, "late by {flight} s");
                prop_assert!(at >= latest);
                latest = at;
            }
        }
    }
}
