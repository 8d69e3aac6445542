//! Who may come in, and how often: rates by address, unjoined connections, messages a second.
//!
//! Time is an argument here too. Nothing in this module knows what a volunteer says; it only counts. Every limit of
//! the host that is not the protocol's own stands here, with its reason.
//!
//! Invariant: memory is bounded by [`ADDRESSES_MAX`], whoever knocks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use shared::units::{Span, Time};

/// Connections that one address may open at once, before it has to wait: a school behind one router.
pub const JOINS_BURST: u32 = 64;
/// Between two more of them.
pub const JOIN_EVERY: Span = Span::from_millis(500);
/// Addresses whose rate is remembered; beyond, those that have been quiet longest are forgotten.
pub const ADDRESSES_MAX: usize = 10_000;
/// How long a connection may take to say `join`: the weights' hash of a large model takes seconds.
pub const JOIN_MAX: Span = Span::from_secs(10);
/// Messages that a volunteer may send at once: a link's candidates come in bursts.
pub const MESSAGES_BURST: u32 = 512;
/// Between two more of them.
pub const MESSAGE_EVERY: Span = Span::from_millis(5);
/// Words of texts that a head may say at once, one a message, and between two more: a small model on a fast machine.
pub const WORDS_BURST: u32 = 4_096;
/// ... see [`WORDS_BURST`].
pub const WORD_EVERY: Span = Span::from_micros(200);
/// Texts that one address may ask for at once, however soon it lets them go: each is read anew at every seat.
pub const TEXTS_BURST: u32 = 8;
/// Between two more of them.
pub const TEXT_EVERY: Span = Span::from_secs(3);
/// Messages that wait for a volunteer; one that reads none of them is disconnected.
pub const OUTBOX_MESSAGES_MAX: usize = 512;
/// Messages from all volunteers that wait for the coordinator; then their connections are read more slowly.
pub const INBOX_MESSAGES_MAX: usize = 4_096;
/// Bytes that are read from a volunteer at once, kept for each of thousands: most messages are far smaller, and a larger
/// one comes in pieces.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 10;
/// How long one message may take to leave: then the connection is taken for dead.
pub const SEND_MAX: Span = Span::from_secs(10);
/// Pages that follow the run through `/api/run/events` at once.
pub const FOLLOWERS_MAX: usize = 1_000;
/// Uploads at once: each holds one part of 8 MiB in memory.
pub const UPLOADS_MAX: usize = 16;
/// How long an upload waits for its turn: all stages of a checkpoint are asked for at once. Less than what a client
/// waits for an answer; then it comes again.
pub const UPLOAD_TURN_MAX: Duration = Duration::from_secs(25);

/// So many at once, then one each `every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    burst: u32,
    every: Span,
    /// When it is full again.
    full_at: Time,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub const fn new(burst: u32, every: Span) -> Self {
        Self {
            burst,
            every,
            full_at: Time::ZERO,
        }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Time) -> bool {
        let from = self.full_at.max(now);
        let allowed = from.since(now) <= self.every.times(u64::from(self.burst) - 1);
        if allowed {
            self.full_at = from + self.every;
        }
        allowed
    }
}

/// Rates of something, by address: of joining, if nothing else is said.
#[derive(Debug)]
pub struct Door {
    /// Of an address that is new.
    full: Bucket,
    known: Mutex<Known>,
}

impl Default for Door {
    fn default() -> Self {
        Self::new(JOINS_BURST, JOIN_EVERY)
    }
}

/// Buckets by address, and addresses by how long their bucket has been untouched.
#[derive(Debug, Default)]
struct Known {
    buckets: BTreeMap<IpAddr, Bucket>,
    quietest_first: BTreeSet<(Time, IpAddr)>,
}

impl Door {
    /// So many at once from an address, then one each `every`.
    #[must_use]
    pub fn new(burst: u32, every: Span) -> Self {
        Self {
            full: Bucket::new(burst, every),
            known: Mutex::default(),
        }
    }

    /// Whether `address` may have one more now.
    pub fn admit(&self, now: Time, address: IpAddr) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = neighbourhood(address);
        let mut bucket = known.buckets.remove(&key).unwrap_or(self.full);
        known.quietest_first.remove(&(bucket.full_at, key));
        let admitted = bucket.take(now);
        if known.buckets.len() >= ADDRESSES_MAX
            && let Some((_, quietest)) = known.quietest_first.pop_first()
        {
            known.buckets.remove(&quietest);
        }
        known.quietest_first.insert((bucket.full_at, key));
        known.buckets.insert(key, bucket);
        admitted
    }
}

/// A span as the system's timers take it.
pub(crate) const fn duration(span: Span) -> Duration {
    Duration::from_micros(span.as_micros())
}

/// What one person holds: an IPv4 address, or a /64 of IPv6.
pub(crate) fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            Ipv6Addr::from(network).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Span::from_millis(millis)
    }

    #[test]
    fn a_bucket_gives_its_burst_then_one_each_interval() {
        let mut bucket = Bucket::new(3, Span::from_millis(100));
        let taken: Vec<bool> = [0, 0, 0, 0, 99, 100, 150, 200, 1_000, 1_000, 1_000, 1_000]
            .into_iter()
            .map(|millis| bucket.take(at(5_000 + millis)))
            .collect();
        let (yes, no) = (true, false);
        assert_eq!(
            taken,
            [yes, yes, yes, no, no, yes, no, yes, yes, yes, yes, no]
        );
    }

    #[test]
    fn addresses_are_counted_apart_but_one_network_of_ipv6_together() {
        let door = Door::default();
        let admitted = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            (0..100).filter(|_| door.admit(at(0), address)).count()
        };
        assert_eq!(admitted("192.0.2.1"), 64);
        assert_eq!(admitted("::ffff:192.0.2.1"), 0);
        assert_eq!(admitted("192.0.2.2"), 64);
        assert_eq!(admitted("2001:db8::1"), 64);
        assert_eq!(admitted("2001:db8::2"), 0);
        assert_eq!(admitted("2001:db8:0:1::1"), 64);
    }

    #[test]
    fn whoever_knocks_memory_is_bounded_and_the_busy_are_remembered() {
        let door = Door::default();
        let busy = IpAddr::from([192, 0, 2, 1]);
        while door.admit(at(0), busy) {}
        for index in 0..30_000_u32 {
            assert!(door.admit(at(0), Ipv6Addr::from(u128::from(index) << 64).into()));
        }
        assert!(door.known.lock().unwrap().buckets.len() <= ADDRESSES_MAX);
        assert!(!door.admit(at(0), busy));
    }
}
