//! One session between a gateway and the host, as either end sees it: numbers in, numbers out, and how long it is quiet.
//!
//! The message system below may lose, repeat or exchange packets. A packet is taken only when it is the next one; anything
//! else ends the session, so that nothing is ever acted on out of order. At most [`GATEWAY_PACKETS_AHEAD`] packets are on
//! their way; an end that takes many says so at once, so that the other one can go on.

use shared::limits::{GATEWAY_PACKETS_AHEAD, GATEWAY_SILENCE_MAX, KEEPALIVE};
use shared::units::Time;
use shared::wire::gateway::Stamp;

/// Packets that may be under way.
const AHEAD: u64 = GATEWAY_PACKETS_AHEAD as u64;
/// Packets that are taken in silence: then the other end is told.
const TOLD_EVERY: u64 = AHEAD / 4;

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Packets were lost, repeated or exchanged.
    #[error("packet {got} came where {expected} was due: some were lost or came twice")]
    OutOfTurn {
        /// What came.
        got: u64,
        /// What was due.
        expected: u64,
    },
    /// The other end took what was never sent.
    #[error("{taken} packets were taken of {sent} that were sent")]
    NeverSent {
        /// What it says.
        taken: u64,
        /// What was sent.
        sent: u64,
    },
    /// Nothing came for too long.
    #[error("nothing was heard for {} s", GATEWAY_SILENCE_MAX.as_micros() / 1_000_000)]
    Silent,
}

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    sent: u64,
    acknowledged: u64,
    taken: u64,
    /// What of `taken` the other end was told.
    told: u64,
    heard: Time,
    spoke: Time,
}

impl Link {
    /// A session that begins now.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self {
            sent: 0,
            acknowledged: 0,
            taken: 0,
            told: 0,
            heard: now,
            spoke: now,
        }
    }

    /// Whether one more message may go. Keepalives always may.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.sent - self.acknowledged < AHEAD
    }

    /// The stamp of the packet that goes now.
    pub fn stamp(&mut self, now: Time) -> Stamp {
        let stamp = Stamp {
            seq: self.sent,
            taken: self.taken,
        };
        self.sent += 1;
        self.told = self.taken;
        self.spoke = now;
        stamp
    }

    /// Takes a packet that came.
    ///
    /// # Errors
    /// It is not the next one, or says what can't be: the session is over.
    pub fn take(&mut self, now: Time, stamp: Stamp) -> Result<(), LinkError> {
        if stamp.seq != self.taken {
            return Err(LinkError::OutOfTurn {
                got: stamp.seq,
                expected: self.taken,
            });
        }
        if stamp.taken > self.sent {
            return Err(LinkError::NeverSent {
                taken: stamp.taken,
                sent: self.sent,
            });
        }
        self.taken += 1;
        self.acknowledged = self.acknowledged.max(stamp.taken);
        self.heard = now;
        Ok(())
    }

    /// Whether the other end is due a packet, if only to hear that this one is there.
    #[must_use]
    pub fn owes_word(&self, now: Time) -> bool {
        now >= self.spoke + KEEPALIVE || self.taken - self.told >= TOLD_EVERY
    }

    /// Whether the other end still lives. Asked only when everything that came was taken.
    ///
    /// # Errors
    /// [`LinkError::Silent`].
    pub fn check(&self, now: Time) -> Result<(), LinkError> {
        if now >= self.silent_at() {
            Err(LinkError::Silent)
        } else {
            Ok(())
        }
    }

    /// When the other end is taken for dead.
    #[must_use]
    pub fn silent_at(&self) -> Time {
        self.heard + GATEWAY_SILENCE_MAX
    }

    /// When a keepalive is due.
    #[must_use]
    pub fn word_at(&self) -> Time {
        self.spoke + KEEPALIVE
    }
}

#[cfg(test)]
mod tests {
    use shared::units::Span;

    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Span::from_millis(millis)
    }

    fn stamp(seq: u64, taken: u64) -> Stamp {
        Stamp { seq, taken }
    }

    #[test]
    fn packets_are_taken_in_their_order_and_in_no_other() {
        let mut link = Link::new(at(0));
        assert_eq!(link.take(at(1), stamp(0, 0)), Ok(()));
        assert_eq!(link.take(at(2), stamp(1, 0)), Ok(()));
        for got in [0, 1, 3, u64::MAX] {
            let expected = 2;
            let refused = Err(LinkError::OutOfTurn { got, expected });
            assert_eq!(link.clone().take(at(3), stamp(got, 0)), refused);
        }
        let refused = Err(LinkError::NeverSent { taken: 1, sent: 0 });
        assert_eq!(link.take(at(3), stamp(2, 1)), refused);
    }

    #[test]
    fn so_many_packets_go_ahead_and_whoever_takes_them_says_so() {
        let (mut sender, mut taker) = (Link::new(at(0)), Link::new(at(0)));
        let mut answers = 0;
        let mut sent = 0;
        while sender.has_room() {
            let stamp = sender.stamp(at(1));
            taker.take(at(1), stamp).unwrap();
            sent += 1;
            if taker.owes_word(at(1)) {
                answers += 1;
                if answers == 4 {
                    break;
                }
                taker.stamp(at(1));
            }
        }
        assert_eq!((sent, answers), (AHEAD, 4));
        assert!(!sender.has_room());
        // The answers before this one were lost on the way: that would end the session. With all of them it goes on.
        let lost = taker.stamp(at(1));
        assert!(sender.clone().take(at(2), lost).is_err());
        sender.taken = lost.seq;
        sender.take(at(2), lost).unwrap();
        assert!(sender.has_room());
    }

    #[test]
    fn who_is_quiet_says_that_it_is_there_and_who_is_silent_is_dead() {
        let mut link = Link::new(at(0));
        assert!(!link.owes_word(at(999)));
        assert!(link.owes_word(at(1_000)));
        assert_eq!(link.word_at(), at(1_000));
        link.stamp(at(1_000));
        assert!(!link.owes_word(at(1_999)));
        assert_eq!(link.check(at(4_999)), Ok(()));
        assert_eq!(link.check(at(5_000)), Err(LinkError::Silent));
        link.take(at(4_999), stamp(0, 0)).unwrap();
        assert_eq!(link.check(at(5_000)), Ok(()));
    }
}
