//! What is known between two volunteers: how long a microbatch takes from one to the other, or that none gets there.
//!
//! What was measured of a link counts for that link. For two that were never linked, their ways to the host stand in:
//! one's way there and the other's way back, and the slower of both rates. A rate nobody measured is taken for a good
//! one: a link that is used gets measured, and one that is never used stays unknown.
//!
//! Invariant: a pair stands under both of its ends, so that whatever concerns one volunteer is found, and
//! forgotten, in time that grows with its own links only.

use std::collections::{BTreeMap, BTreeSet};

use super::Candidate;
use crate::units::PeerId;

/// What a rate is taken for until it is measured, in bytes a second: 100 Mbit/s.
pub const BYTES_PER_SECOND_ASSUMED: u64 = 12_500_000;
/// The slowest rate that is told from standing still.
const BYTES_PER_SECOND_MIN: u64 = 1_000;
/// The longest delay that is told from silence.
const DELAY_US_MAX: u64 = 60_000_000;
/// A relayed link is counted as slower by one in so many parts.
const RELAY_PARTS: u128 = 8;

/// What one volunteer measured of its link to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Microseconds one way.
    pub delay_us: u64,
    /// Payload bytes a second to the other end, once known.
    pub bytes_per_second: Option<u64>,
    /// Whether packets go through a TURN server.
    pub relayed: bool,
}

/// What goes over a border between two seats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Border {
    /// Payload bytes of a microbatch, there and back.
    pub bytes: u64,
    /// Sequences in a microbatch.
    pub sequences: u64,
    /// Microbatches in a step: they share the wait for the step's last one.
    pub microbatches: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pair {
    /// By the volunteer that stands first in the key.
    measured: Option<Measured>,
    apart: bool,
}

/// What is known of pairs of volunteers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    pairs: BTreeMap<(PeerId, PeerId), Pair>,
}

impl Links {
    /// These two can't connect.
    pub fn separate(&mut self, a: PeerId, b: PeerId) {
        if a != b {
            self.pairs.entry((a, b)).or_default().apart = true;
            self.pairs.entry((b, a)).or_default().apart = true;
        }
    }

    /// All may try again to connect with each other.
    pub fn reunite(&mut self) {
        for (a, b) in self.apart() {
            for key in [(a, b), (b, a)] {
                self.pairs.entry(key).or_default().apart = false;
            }
            self.drop_if_unknown(a, b);
        }
    }

    /// Whether these two can't connect.
    #[must_use]
    pub fn are_apart(&self, a: PeerId, b: PeerId) -> bool {
        self.pairs.get(&(a, b)).is_some_and(|pair| pair.apart)
    }

    /// Whether one of these measured its link to the other.
    #[must_use]
    pub fn are_measured(&self, a: PeerId, b: PeerId) -> bool {
        let mut ends = [(a, b), (b, a)].into_iter();
        ends.any(|key| {
            self.pairs
                .get(&key)
                .is_some_and(|pair| pair.measured.is_some())
        })
    }

    /// Pairs that can't connect, each once.
    #[must_use]
    pub fn apart(&self) -> BTreeSet<(PeerId, PeerId)> {
        let apart = self
            .pairs
            .iter()
            .filter(|((a, b), pair)| a < b && pair.apart);
        apart.map(|(key, _)| *key).collect()
    }

    /// All that one volunteer measured: what it said before is replaced.
    pub fn measure(&mut self, by: PeerId, links: impl IntoIterator<Item = (PeerId, Measured)>) {
        for other in self.others(by) {
            if let Some(pair) = self.pairs.get_mut(&(by, other)) {
                pair.measured = None;
            }
            self.drop_if_unknown(by, other);
        }
        for (other, measured) in links {
            if other != by {
                self.pairs.entry((by, other)).or_default().measured = Some(measured);
                self.pairs.entry((other, by)).or_default();
            }
        }
    }

    fn drop_if_unknown(&mut self, a: PeerId, b: PeerId) {
        let unknown = Pair::default();
        let is_unknown = |key| self.pairs.get(&key).is_none_or(|pair| *pair == unknown);
        if is_unknown((a, b)) && is_unknown((b, a)) {
            self.pairs.remove(&(a, b));
            self.pairs.remove(&(b, a));
        }
    }

    /// This volunteer is gone.
    pub fn forget(&mut self, peer: PeerId) {
        for other in self.others(peer) {
            self.pairs.remove(&(peer, other));
            self.pairs.remove(&(other, peer));
        }
    }

    /// A volunteer got another number: what is known of its links stays known.
    pub fn renumber(&mut self, before: PeerId, after: PeerId) {
        for other in self.others(before) {
            for (old, new) in [
                ((before, other), (after, other)),
                ((other, before), (other, after)),
            ] {
                if let Some(pair) = self.pairs.remove(&old) {
                    self.pairs.insert(new, pair);
                }
            }
        }
    }

    /// Those of whom anything is known together with `peer`.
    fn others(&self, peer: PeerId) -> Vec<PeerId> {
        let of_peer = self
            .pairs
            .range((peer, PeerId(0))..=(peer, PeerId(u64::MAX)));
        of_peer.map(|((_, other), _)| *other).collect()
    }

    /// Pairs of which anything is known and whose lesser end is `peer`.
    pub(super) fn known_of(&self, peer: PeerId) -> impl Iterator<Item = (PeerId, PeerId)> {
        let of_peer = self.pairs.range((peer, peer)..=(peer, PeerId(u64::MAX)));
        of_peer.map(|(pair, _)| *pair).filter(|(a, b)| a < b)
    }

    /// Number of pairs of which anything is known.
    pub(super) fn len(&self) -> usize {
        self.pairs.len() / 2
    }

    /// Microseconds that a border between two adjacent seats costs a sequence; `None` if they can't connect.
    ///
    /// In the steady state of one-forward-one-backward a microbatch goes out each time one comes back, so a border
    /// is passed as often as a seat works: what counts is how long its bytes take. Its delay is waited for
    /// once there and back a step, and is shared by the step's microbatches.
    #[must_use]
    pub fn border_us(&self, a: &Candidate, b: &Candidate, border: &Border) -> Option<u64> {
        let pair = self.pairs.get(&(a.peer, b.peer));
        if pair.is_some_and(|pair| pair.apart) {
            return None;
        }
        // Where nothing stands under one end, nothing stands under the other.
        let turned = pair.and_then(|_| self.pairs.get(&(b.peer, a.peer)));
        let ends = [pair, turned].map(|pair| pair?.measured);
        let known = ends.iter().flatten();
        let delay_us = known
            .clone()
            .map(|link| link.delay_us)
            .max()
            .unwrap_or_else(|| a.delay_us.saturating_add(b.delay_us));
        let rate = known
            .clone()
            .filter_map(|link| link.bytes_per_second)
            .min()
            .unwrap_or_else(|| a.rate().min(b.rate()));
        let is_linked = known.clone().count() > 0;
        let relayed = if is_linked {
            known.clone().any(|link| link.relayed)
        } else {
            a.relay_only || b.relay_only
        };
        Some(border.cost_us(delay_us, rate, relayed))
    }
}

impl Border {
    pub(super) fn cost_us(&self, delay_us: u64, bytes_per_second: u64, relayed: bool) -> u64 {
        let rate = u128::from(bytes_per_second.max(BYTES_PER_SECOND_MIN));
        let transfer_us = u128::from(self.bytes) * 1_000_000 / rate;
        let delays_us = 2 * u128::from(delay_us.min(DELAY_US_MAX));
        let wait_us = delays_us / u128::from(self.microbatches.max(1));
        let parts = RELAY_PARTS + u128::from(relayed);
        let microbatch_us = (transfer_us + wait_us) * parts;
        let sequence_us = microbatch_us.div_ceil(u128::from(self.sequences.max(1)) * RELAY_PARTS);
        u64::try_from(sequence_us).unwrap_or(u64::MAX)
    }
}
