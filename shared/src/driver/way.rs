//! Tensors by one connection of a link, both ways: what is under way, and what the ends tell each other of it.
//!
//! A lost packet is noticed by what arrives after it, but behind the last packet of a burst nothing does; then SCTP
//! sends it again after a second, and begins with the least it ever has under way. So where a word of what arrived is
//! late, a few small messages follow, as TCP's tail loss probe (RFC 8985, section 7) does: words of our own.

use bytes::Bytes;

use super::window::Window;
use crate::transport::{Channel, Flow, Transport};
use crate::units::{Span, Time};
use crate::wire::frame::Header;

/// Words that follow the last message: SCTP sends a packet again once three later ones have arrived.
const PROBES: u32 = 3;
/// Between them: two at once would go in one packet.
const PROBE_STEP: Span = Span::from_millis(10);
/// How long a word is waited for beyond twice the least round trip; and where none was seen yet.
const PROBE_GRACE: Span = Span::from_millis(20);
const ROUND_TRIP_UNKNOWN: Span = Span::from_millis(200);

/// One connection's tensors.
#[derive(Debug, Default)]
pub(super) struct Way {
    sent_bytes: u64,
    window: Option<Window>,
    /// Whether the other end was asked to tell what arrives there, as the window needs it; and what it told.
    has_asked: bool,
    told_bytes: u64,
    arrived_bytes: u64,
    /// Whether the other end has asked to be told of them, and whether some arrived since it was told last.
    tells: bool,
    is_due: bool,
    /// When something was sent or told last, and words that have followed since.
    moved: Time,
    probes: u32,
}

impl Way {
    /// Bounds what is under way from now on, if nothing did.
    pub(super) fn bound(&mut self, now: Time) {
        self.window.get_or_insert_with(|| {
            let mut window = Window::new(self.sent_bytes);
            window.arrived(now, self.told_bytes);
            window
        });
    }

    /// Whether what was sent has not all arrived, as far as is known.
    pub(super) fn is_something_missing(&self) -> bool {
        self.sent_bytes > self.told_bytes
    }

    /// Sends a message if there is room; whether there was.
    pub(super) fn send<T: Transport>(
        &mut self,
        now: Time,
        by: Flow,
        transport: &mut T,
        message: &Bytes,
    ) -> bool {
        let len_bytes = message.len();
        let window = self.window.as_mut();
        let admits = window.as_ref().is_none_or(|it| it.admits(len_bytes));
        if !admits || !transport.try_send(by, Channel::Tensors, message.clone()) {
            return false;
        }
        self.sent_bytes += len_bytes as u64;
        self.moved = now;
        self.probes = 0;
        if let Some(window) = window {
            window.sent(now, len_bytes);
        }
        true
    }

    /// So many bytes have arrived here.
    pub(super) fn took(&mut self, len_bytes: usize) {
        self.arrived_bytes += len_bytes as u64;
        self.is_due = true;
    }

    /// The other end tells what has arrived there, and is to be told the same: at once if it asks.
    pub(super) fn told(&mut self, now: Time, bytes: u64, asks: bool) {
        self.tells = true;
        self.is_due |= asks;
        let bytes = bytes.min(self.sent_bytes);
        if bytes > self.told_bytes {
            self.told_bytes = bytes;
            self.moved = now;
            self.probes = 0;
        }
        if let Some(window) = &mut self.window {
            window.arrived(now, bytes);
        }
    }

    /// Bytes that have arrived at the other end, as it tells.
    pub(super) fn told_bytes(&self) -> u64 {
        self.told_bytes
    }

    /// Whether the other end waits for a word of what has arrived here.
    pub(super) fn is_word_due(&self) -> bool {
        self.tells && self.is_due
    }

    /// Whether something was sent, and the other end not asked what arrives.
    pub(super) fn is_to_ask(&self) -> bool {
        !self.has_asked && self.window.as_ref().is_some_and(Window::has_sent)
    }

    /// When a word of what was sent is late, if nothing moves until then.
    pub(super) fn late_at(&self) -> Option<Time> {
        let window = self.window.as_ref()?;
        if window.under_way() == 0 || self.probes >= PROBES {
            return None;
        }
        let wait = match (self.probes, window.round_trip_min()) {
            (0, Some(least)) => least + least + PROBE_GRACE,
            (0, None) => ROUND_TRIP_UNKNOWN + PROBE_GRACE,
            (_, _) => PROBE_STEP,
        };
        Some(self.moved + wait)
    }

    /// Whether a word is to follow what was sent, so that a loss is noticed.
    pub(super) fn is_late(&self, now: Time) -> bool {
        self.late_at().is_some_and(|at| now >= at)
    }

    /// A word of what has arrived here; it asks for the same.
    pub(super) fn word(&mut self, now: Time) -> Header {
        // The word that is waited for may be what was lost.
        let asks = self.is_late(now);
        if asks {
            self.probes += 1;
            self.moved = now;
        }
        self.has_asked = true;
        self.is_due = false;
        Header::Arrived {
            bytes: self.arrived_bytes,
            asks,
        }
    }

    /// There was no room for that word: another one says as much.
    pub(super) fn is_not_said(&mut self) {
        self.is_due = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_micros(millis * 1_000)
    }

    #[test]
    fn three_words_follow_what_is_late_and_none_what_arrives() {
        let mut way = Way {
            sent_bytes: 1_000,
            ..Way::default()
        };
        assert_eq!(way.late_at(), None, "nothing is told of it");
        way.bound(Time::ZERO);
        let mut sent = Vec::new();
        for millis in 0..2_000 {
            if way.is_late(at(millis)) {
                way.word(at(millis));
                sent.push(millis);
            }
        }
        assert_eq!(sent, [220, 230, 240]);
        way.told(at(2_000), 500, false);
        assert!(!way.is_word_due());
        let next = way.late_at().expect("half of it is still under way");
        assert!(next > at(2_000));
        way.told(at(2_010), 1_000, true);
        assert!(way.is_word_due(), "though nothing has arrived");
        assert_eq!(way.late_at(), None);
    }
}
