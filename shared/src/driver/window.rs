//! How much of a connection's tensors may be under way, where its transport does not see to that, or where there are several.
//!
//! A browser's SCTP sends ahead until a queue on the way overflows, and then mends what was lost at a packet or two a round
//! trip. So the other end says what has arrived, and no more is under way than fills the line: one and a quarter times what
//! the line carries in the least round trip. What more is to go waits here, where it is still in order of urgency.
//!
//! # Source
//! BBR's model of a path (Cardwell and others, ACM Queue 14.5, 2016): its greatest rate and its least round trip, each of the
//! last few seconds, and now and then a moment with little under way to see the latter. Pacing and probing for more are the
//! transport's, or follow from the quarter that is more.

use std::collections::VecDeque;

use crate::limits::CHUNK_BYTES_MAX;
use crate::units::{Span, Time};
use crate::wire::chunk::CHUNK_HEADER_BYTES;

/// What may always be under way: a few messages, with which a new link begins to measure.
const LEAST_BYTES: u64 = 3 * MESSAGE_BYTES;
/// Beyond what the line carries in a round trip: what arrives is told a message at a time.
const MORE_BYTES: u64 = 2 * MESSAGE_BYTES;
/// Of what is measured of a round trip, the message itself is a part: it is told of when the whole of it is there.
const MESSAGE_BYTES: u64 = (CHUNK_BYTES_MAX + CHUNK_HEADER_BYTES) as u64;
/// The most that may be under way: a line of 160 Mbit/s at 200 ms.
const MOST_BYTES: u64 = 6 << 20;
/// How long the greatest rate is believed...
const RATE_SPAN: Span = Span::from_secs(3);
/// ... and the least round trip, before it is looked at anew...
const LEAST_SPAN: Span = Span::from_secs(10);
/// ... by leaving the queue empty for so long.
const LOOK: Span = Span::from_millis(200);
/// Round trips that are nonsense, and rates that follow from them.
const ROUND_TRIP_MIN: Span = Span::from_micros(200);

/// A message that was sent, and how far everything was.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Bytes sent in all, with it.
    sent_bytes: u64,
    at: Time,
    /// Bytes that were known to have arrived, since when, and when the last of them had been sent.
    arrived_bytes: u64,
    arrived_at: Time,
    arrived_sent_at: Time,
    /// Whether as much was under way with it as may be: else it says how much there was to send, not what the line carries.
    is_full: bool,
}

/// The window of one connection, away from this end.
#[derive(Debug)]
pub(super) struct Window {
    sent_bytes: u64,
    arrived_bytes: u64,
    /// When the newest word of that came; or something was sent while nothing was under way.
    arrived_at: Time,
    /// When the last of what has arrived was sent; likewise.
    arrived_sent_at: Time,
    marks: VecDeque<Mark>,
    /// Bytes a second, and when: greatest first, each newer one smaller.
    rates: VecDeque<(Time, u64)>,
    least: Option<(Time, Span)>,
    looking: Option<Look>,
    /// What may be under way now. It grows by no more than arrives: nothing leaves in one burst that fills a queue.
    granted_bytes: u64,
}

/// A look at the round trip without a queue of our own.
#[derive(Clone, Copy, Debug, Default)]
struct Look {
    /// Since when little has been under way.
    since: Option<Time>,
    /// Of what was sent since then.
    least: Option<Span>,
}

impl Window {
    /// Of a connection by which so many bytes were sent before, of whose arrival nothing is known.
    pub(super) fn new(sent_bytes: u64) -> Self {
        Self {
            sent_bytes,
            arrived_bytes: 0,
            arrived_at: Time::default(),
            arrived_sent_at: Time::default(),
            marks: VecDeque::new(),
            rates: VecDeque::new(),
            least: None,
            looking: None,
            granted_bytes: LEAST_BYTES,
        }
    }

    /// Whether anything went.
    pub(super) fn has_sent(&self) -> bool {
        self.sent_bytes > 0
    }

    /// The least round trip of late, once one was seen.
    pub(super) fn round_trip_min(&self) -> Option<Span> {
        self.least.map(|(_, least)| least)
    }

    /// Whether so many bytes more may go.
    pub(super) fn admits(&self, len_bytes: usize) -> bool {
        let under_way = self.under_way();
        under_way == 0 || under_way + len_bytes as u64 <= self.granted_bytes
    }

    /// So many bytes go.
    pub(super) fn sent(&mut self, now: Time, len_bytes: usize) {
        if self.under_way() == 0 {
            // It was idle: what arrives next says nothing about the time before.
            self.arrived_at = now;
            self.arrived_sent_at = now;
            let half = LEAST_BYTES.max(self.carried().unwrap_or(0) / 2);
            self.granted_bytes = self.granted_bytes.min(half);
        }
        self.sent_bytes += len_bytes as u64;
        self.marks.push_back(Mark {
            sent_bytes: self.sent_bytes,
            at: now,
            arrived_bytes: self.arrived_bytes,
            arrived_at: self.arrived_at,
            arrived_sent_at: self.arrived_sent_at,
            is_full: self.under_way() + MESSAGE_BYTES > self.granted_bytes,
        });
    }

    /// The other end says how many bytes have arrived in all.
    pub(super) fn arrived(&mut self, now: Time, bytes: u64) {
        let bytes = bytes.min(self.sent_bytes);
        if bytes <= self.arrived_bytes {
            return;
        }
        let arrived = bytes - self.arrived_bytes;
        self.arrived_bytes = bytes;
        self.arrived_at = now;
        let mut newest = None;
        while let Some(mark) = self.marks.front().filter(|mark| mark.sent_bytes <= bytes) {
            newest = Some(*mark);
            self.marks.pop_front();
        }
        if let Some(mark) = newest {
            self.round_trip(now, mark.at);
            // Words that come all at once after a pause say nothing of the line, nor does what leaves upon them.
            let took = now.since(mark.arrived_at);
            let took = took.max(mark.at.since(mark.arrived_sent_at));
            let took = took.max(ROUND_TRIP_MIN);
            self.arrived_sent_at = mark.at;
            let rate = u128::from(bytes - mark.arrived_bytes) * 1_000_000;
            let rate = rate / u128::from(took.as_micros());
            let rate = u64::try_from(rate).unwrap_or(u64::MAX);
            let is_more = self.rates.front().is_none_or(|(_, most)| rate >= *most);
            if mark.is_full || is_more {
                self.rate(now, rate);
            }
        }
        self.granted_bytes = self.wanted().min(self.granted_bytes + arrived);
    }

    /// Bytes that were sent and of whose arrival nothing is known.
    pub(super) fn under_way(&self) -> u64 {
        self.sent_bytes - self.arrived_bytes
    }

    /// What the line carries in a round trip without a queue, in bytes, once that was seen.
    fn carried(&self) -> Option<u64> {
        let (_, rate) = self.rates.front()?;
        let (_, least) = self.least?;
        let carried = u128::from(*rate) * u128::from(least.as_micros()) / 1_000_000;
        let carried = u64::try_from(carried).unwrap_or(MOST_BYTES);
        Some(carried.saturating_sub(MESSAGE_BYTES).min(MOST_BYTES))
    }

    /// What is to be under way.
    fn wanted(&self) -> u64 {
        match (self.carried(), self.looking) {
            (None, _) => LEAST_BYTES,
            (Some(carried), Some(_)) => carried / 2,
            (Some(carried), None) => {
                (carried + carried / 4 + MORE_BYTES).clamp(LEAST_BYTES, MOST_BYTES)
            }
        }
    }

    fn rate(&mut self, now: Time, rate: u64) {
        while self.rates.back().is_some_and(|(_, older)| *older <= rate) {
            self.rates.pop_back();
        }
        self.rates.push_back((now, rate));
        while self.rates.len() > 1 && self.rates[0].0 + RATE_SPAN < now {
            self.rates.pop_front();
        }
    }

    /// What was sent at `sent` has arrived.
    fn round_trip(&mut self, now: Time, sent: Time) {
        let taken = now.since(sent).max(ROUND_TRIP_MIN);
        let (seen, least) = self.least.unwrap_or((now, taken));
        if taken <= least {
            self.least = Some((now, taken));
        }
        let is_little = self.under_way() <= self.wanted().max(MESSAGE_BYTES);
        let Some(look) = &mut self.looking else {
            if seen + LEAST_SPAN < now && taken > least {
                self.looking = Some(Look::default());
            }
            return;
        };
        match look.since {
            None if is_little => look.since = Some(now),
            Some(since) if sent >= since => {
                let least = look.least.map_or(taken, |least| least.min(taken));
                look.least = Some(least);
                if since + LOOK < now {
                    self.looking = None;
                    self.least = Some((now, least));
                }
            }
            None | Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: usize = CHUNK_BYTES_MAX + CHUNK_HEADER_BYTES;

    /// A line in microseconds, with a queue that drops; and the way back of what is told.
    #[derive(Clone, Copy)]
    struct Line {
        bytes_a_second: u64,
        delay_us: u64,
        queue_bytes: u64,
        /// For so long in each second nobody is told anything, then all at once.
        silent_us: u64,
    }

    /// What came of a while on it.
    struct Found {
        arrived_bytes: u64,
        /// Most that waited on the way, in microseconds of the line.
        waited_us: u64,
        overflowed: bool,
    }

    struct World {
        window: Window,
        now_us: u64,
        /// When the line has sent all that it has.
        free_us: u64,
        /// When each word of an arrival is back, and of how much.
        told: VecDeque<(u64, u64)>,
        arrived_bytes: u64,
    }

    impl World {
        fn new() -> Self {
            Self {
                window: Window::new(0),
                now_us: 0,
                free_us: 0,
                told: VecDeque::new(),
                arrived_bytes: 0,
            }
        }

        /// Sends all that it may for so long.
        fn fill(&mut self, line: Line, seconds: u64) -> Found {
            let end_us = self.now_us + seconds * 1_000_000;
            let begun_bytes = self.arrived_bytes;
            let (mut waited_us, mut overflowed) = (0, false);
            while self.now_us < end_us {
                while self.window.admits(MESSAGE) {
                    self.window.sent(Time::from_micros(self.now_us), MESSAGE);
                    let waits_us = self.free_us.saturating_sub(self.now_us);
                    waited_us = waited_us.max(waits_us);
                    overflowed |= waits_us * line.bytes_a_second / 1_000_000 > line.queue_bytes;
                    let takes_us = MESSAGE_BYTES * 1_000_000 / line.bytes_a_second;
                    self.free_us = self.free_us.max(self.now_us) + takes_us;
                    self.arrived_bytes += MESSAGE_BYTES;
                    let back_us = self.free_us + 2 * line.delay_us;
                    let into_us = back_us % 1_000_000;
                    let back_us = back_us - into_us + into_us.max(line.silent_us);
                    self.told.push_back((back_us, self.arrived_bytes));
                }
                let (at_us, bytes) = self.told.pop_front().expect("something is under way");
                self.now_us = at_us;
                self.window.arrived(Time::from_micros(at_us), bytes);
            }
            Found {
                arrived_bytes: self.arrived_bytes - begun_bytes,
                waited_us,
                overflowed,
            }
        }
    }

    #[test]
    fn lines_of_many_kinds_are_filled_and_their_queues_are_not() {
        for mbit in [2_u64, 10, 40, 80, 200] {
            for delay_ms in [2_u64, 10, 25, 60] {
                let bytes_a_second = mbit * 125_000;
                let carried = bytes_a_second * 2 * delay_ms / 1000;
                let line = Line {
                    bytes_a_second,
                    delay_us: delay_ms * 1000,
                    silent_us: 0,
                    // What little a link begins with must fit, too.
                    queue_bytes: (carried / 2 + MORE_BYTES).max(LEAST_BYTES),
                };
                let mut world = World::new();
                world.fill(line, 3);
                // Long enough to look at the round trip more than once.
                let found = world.fill(line, 30);
                let share = found.arrived_bytes as f64 / (30 * bytes_a_second) as f64;
                assert!(share > 0.95, "{mbit} Mbit/s, {delay_ms} ms: {share}");
                assert!(
                    !found.overflowed,
                    "{mbit} Mbit/s, {delay_ms} ms: {} us",
                    found.waited_us
                );
            }
        }
    }

    #[test]
    fn words_that_come_in_bunches_fill_no_queue() {
        for mbit in [8_u64, 40, 80] {
            let line = Line {
                bytes_a_second: mbit * 125_000,
                delay_us: 25_000,
                // 250 ms.
                queue_bytes: mbit * 31_250,
                silent_us: 300_000,
            };
            let mut world = World::new();
            world.fill(line, 3);
            let found = world.fill(line, 30);
            let share = found.arrived_bytes as f64 / (30 * line.bytes_a_second) as f64;
            assert!(share > 0.6, "{mbit} Mbit/s: {share}");
            assert!(!found.overflowed, "{mbit} Mbit/s: {} us", found.waited_us);
        }
    }

    #[test]
    fn a_new_link_is_filled_within_ten_round_trips() {
        let line = Line {
            bytes_a_second: 10_000_000,
            delay_us: 25_000,
            queue_bytes: 1_250_000,
            silent_us: 0,
        };
        let mut world = World::new();
        world.fill(line, 1);
        let second = world.fill(line, 1).arrived_bytes;
        assert!(second > 9_500_000, "{second}");
    }

    #[test]
    fn what_is_known_of_a_line_is_known_after_a_pause() {
        let line = Line {
            bytes_a_second: 12_500_000,
            delay_us: 25_000,
            queue_bytes: 1_250_000,
            silent_us: 0,
        };
        let mut world = World::new();
        world.fill(line, 5);
        while let Some((at_us, bytes)) = world.told.pop_front() {
            world.now_us = at_us;
            world.window.arrived(Time::from_micros(at_us), bytes);
        }
        let wanted = world.window.wanted();
        for _ in 0..5 {
            // A frame of some messages every four seconds.
            world.now_us += 4_000_000;
            for _ in 0..4 {
                world.window.sent(Time::from_micros(world.now_us), MESSAGE);
                world.arrived_bytes += MESSAGE_BYTES;
            }
            world.now_us += 60_000;
            let now = Time::from_micros(world.now_us);
            world.window.arrived(now, world.arrived_bytes);
        }
        assert!(
            world.window.wanted() * 2 > wanted,
            "{}",
            world.window.wanted()
        );
    }

    #[test]
    fn a_line_that_becomes_slower_or_longer_is_followed() {
        let fast = Line {
            bytes_a_second: 10_000_000,
            delay_us: 25_000,
            queue_bytes: 1_250_000,
            silent_us: 0,
        };
        let slow = Line {
            bytes_a_second: 1_000_000,
            ..fast
        };
        let mut world = World::new();
        world.fill(fast, 5);
        world.fill(slow, 8);
        let found = world.fill(slow, 20);
        assert!(found.arrived_bytes > 19_000_000, "{}", found.arrived_bytes);
        assert!(found.waited_us < 250_000, "{}", found.waited_us);
        world.fill(fast, 15);
        let found = world.fill(fast, 20);
        assert!(found.arrived_bytes > 190_000_000, "{}", found.arrived_bytes);
        let far = Line {
            delay_us: 100_000,
            ..fast
        };
        world.fill(far, 20);
        let found = world.fill(far, 20);
        assert!(found.arrived_bytes > 190_000_000, "{}", found.arrived_bytes);
    }

    #[test]
    fn words_that_cannot_be_true_change_nothing_for_good() {
        let mut window = Window::new(0);
        window.arrived(Time::from_micros(1), u64::MAX);
        assert!(window.admits(MESSAGE));
        window.sent(Time::from_micros(2), MESSAGE);
        // All at once, in no time, and again, and less.
        for bytes in [u64::MAX, MESSAGE_BYTES, 0] {
            window.arrived(Time::from_micros(2), bytes);
        }
        assert!(window.wanted() <= MOST_BYTES);
        // One that says nothing stops what goes to it.
        let mut sent = 0;
        while window.admits(MESSAGE) {
            window.sent(Time::from_micros(3), MESSAGE);
            sent += MESSAGE_BYTES;
        }
        assert!(sent <= MOST_BYTES);
        // A message larger than all goes alone.
        window.arrived(Time::from_micros(4), u64::MAX);
        assert!(window.admits(usize::MAX >> 1));
    }
}
