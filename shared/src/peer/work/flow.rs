//! How far a seat runs ahead, so that the links behind it hide behind compute.
//!
//! In flight are as many microbatches as there are seats behind, plus one, plus as many as the slowest of those seats
//! computes while a microbatch is on the wire behind: delay and transfer, both ways, over every link. And
//! [`READY_A_SEAT`] more for each seat behind, for nothing comes exactly in time: a frame is late, or comes while the seat works
//! in the other direction. What is behind a
//! seat comes from the next one with each credit; so it is added up from the last seat to the head, a microbatch
//! at a time.
//!
//! What a seat lends of memory bounds it: a microbatch is kept from its arrival to its backward. The credit that a seat
//! grants is all it has room for: what is of use in flight is the order's business at each seat, and the head's bounds
//! everything behind it.

use crate::config::run::{Opens, RunConfig};
use crate::limits::{CREDIT_MIN, READY_A_SEAT};
use crate::schedule::placement::StageCosts;
use crate::units::StageRange;
use crate::wire::frame::Behind;

/// What a seat measured of itself and its links; all zero before it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Microseconds of a microbatch at this seat: forward and backward, rests included.
    pub microbatch_us: u64,
    /// Microseconds that a boundary takes to the next seat: delay and transfer.
    pub next_us: u64,
    /// Microseconds that a gradient takes to the previous seat: delay and transfer.
    pub previous_us: u64,
}

/// What the seat knows of the pipe from itself on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) pace: Pace,
    pub(super) behind: Behind,
    /// Runs ahead by one more microbatch a seat behind whatever the link: the rule of before, for comparison.
    #[cfg(any(test, feature = "sim"))]
    pub(super) blind: bool,
}

impl Flow {
    /// Microbatches in flight beyond those that seats take. Before anything is measured, only those that are to be ready.
    pub(super) fn extra(&self, seats_behind: u16) -> u16 {
        #[cfg(any(test, feature = "sim"))]
        if self.blind {
            return seats_behind;
        }
        if seats_behind == 0 {
            return 0;
        }
        let wire_us = self.pace.next_us.saturating_add(self.behind.wire_us);
        let hides = match self.slowest_us() {
            0 => 0,
            slowest_us => u16::try_from(wire_us.div_ceil(slowest_us)).unwrap_or(u16::MAX),
        };
        hides.saturating_add(READY_A_SEAT.saturating_mul(seats_behind))
    }

    fn slowest_us(&self) -> u64 {
        self.pace.microbatch_us.max(self.behind.slowest_us)
    }

    /// What the seat before must know.
    pub(super) fn told(&self) -> Behind {
        let both_ways = self.pace.next_us.saturating_add(self.behind.wire_us);
        Behind {
            wire_us: self.pace.previous_us.saturating_add(both_ways),
            slowest_us: self.slowest_us(),
        }
    }
}

/// Microbatches that a seat has room for at a time, beside its stages: in flight, and unread.
pub(super) fn room(config: &RunConfig, stages: StageRange, memory_bytes: u64) -> u16 {
    let rows = u64::from(config.microbatch_sequences()) * config.model.context as u64;
    // Between forward and backward, the border input of each of its stages.
    let kept = rows * config.model.boundary_width() as u64 * 4 * stages.count() as u64;
    // As it came, its tokens unpacked, and its gradient.
    let boundary = config.forward_boundary_bytes(Opens::Round) as u64;
    let packed = 2 * boundary + 4 * (rows + u64::from(config.microbatch_sequences()));
    let taken = StageCosts::new(config).memory_of(stages);
    // The other half is for copies and for what a transfer is put together from.
    let free = memory_bytes.saturating_sub(taken) / 2;
    let fits = u16::try_from(free / (kept + packed).max(1)).unwrap_or(u16::MAX);
    fits.max(CREDIT_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(microbatch_us: u64, next_us: u64, behind: Behind) -> Flow {
        let pace = Pace {
            microbatch_us,
            next_us,
            previous_us: 7,
        };
        Flow {
            pace,
            behind,
            blind: false,
        }
    }

    #[test]
    fn the_wire_behind_counts_in_microbatches_of_the_slowest_seat() {
        let last = flow(10_000, 0, Behind::default());
        assert_eq!(last.extra(0), 0, "nothing is behind the last seat");
        let middle = flow(4_000, 60_000, last.told());
        let wire_us = 60_000 + 7;
        assert_eq!(
            middle.extra(1) - READY_A_SEAT,
            7,
            "{wire_us} in microbatches of 10,000"
        );
        let told = middle.told();
        assert_eq!((told.wire_us, told.slowest_us), (wire_us + 7, 10_000));
        let head = flow(20_000, 5_000, told);
        assert_eq!(
            head.extra(2) - 2 * READY_A_SEAT,
            4,
            "65,014 in microbatches of 20,000"
        );
    }

    #[test]
    fn a_seat_that_has_measured_nothing_keeps_those_behind_it_ready() {
        assert_eq!(Flow::default().extra(3), 3 * READY_A_SEAT);
        let unmeasured_wire = flow(1_000, 0, Behind::default());
        assert_eq!(unmeasured_wire.extra(3), 3 * READY_A_SEAT);
    }

    #[test]
    fn no_figure_of_a_neighbour_is_too_large() {
        let behind = Behind {
            wire_us: u64::MAX,
            slowest_us: u64::MAX,
        };
        let flow = flow(1, u64::MAX, behind);
        assert_eq!(flow.extra(1), 1 + READY_A_SEAT);
        assert_eq!(flow.told().wire_us, u64::MAX);
        let behind = Behind {
            slowest_us: 0,
            ..behind
        };
        assert_eq!(super::Flow { behind, ..flow }.extra(1), u16::MAX);
    }

    #[test]
    fn memory_bounds_what_is_in_flight() {
        let config = RunConfig::preset("tiny").expect("a preset");
        let stages = StageCosts::new(&config).all();
        let taken = StageCosts::new(&config).memory_of(stages);
        let room = |free: u64| super::room(&config, stages, taken + free);
        assert_eq!(room(0), CREDIT_MIN);
        assert_eq!(super::room(&config, stages, 0), CREDIT_MIN);
        assert_eq!(room(u64::MAX / 4), u16::MAX);
        let one = (1..).map(|kilobytes| kilobytes << 10);
        let first = one.into_iter().find(|free| room(*free) > CREDIT_MIN);
        assert!(first.is_some_and(|free| room(2 * free) > room(free)));
    }
}
