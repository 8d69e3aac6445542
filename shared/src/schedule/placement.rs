//! Cuts the stages into contiguous seats and gives each to a volunteer, so that the slowest seat is fastest.
//!
//! A pipeline is as fast as its slowest seat, so that is what is minimised, over any number of seats: a
//! volunteer that would slow the pipe down stays a spare. Among line-ups within [`GAIN_PERCENT_MIN`] of the
//! best, the one that moves the least state wins, and an old line-up that is still possible stays.
//!
//! Finding the best line-up is NP-hard in general. `search` keeps a bounded number of partial line-ups: all
//! there are up to about eight volunteers, the most promising ones beyond. Volunteers that as many others as
//! there are stages beat in speed and memory are left out before, so that 10,000 cost hardly more than 30.
//!
//! Begin with [`assign`]. One call places one pipeline; several take turns over the volunteers left.
//!
//! Invariant: a line-up covers each stage once, in order, never over a volunteer's memory, and two that are
//! apart are never neighbours.

mod costs;
mod links;
mod search;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

pub use costs::{StageCost, StageCosts};
pub use links::{BYTES_PER_SECOND_ASSUMED, Border, Links, Measured};

use crate::units::{PeerId, StageId, StageRange};
use search::{Cover, Problem};

/// A line-up is renewed only for a gain of more than this, and state is moved only for it.
pub const GAIN_PERCENT_MIN: u64 = 10;
/// Volunteers that are looked at closely: the fastest, the largest, and those that hold state.
const CLOSE_LOOK_MAX: usize = 256;

/// A volunteer that may be given a seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its number.
    pub peer: PeerId,
    /// Microseconds that forward and backward of one block take for one sequence.
    pub block_us: u64,
    /// Share of the time it lends, in percent.
    pub throttle_percent: u8,
    /// Memory it lends, in bytes.
    pub memory_bytes: u64,
    /// Whether all its links go through relays: it is counted as an eighth slower.
    pub relay_only: bool,
    /// Microseconds one way to the host.
    pub delay_us: u64,
    /// Payload bytes a second that it sends to the host, once known.
    pub bytes_per_second: Option<u64>,
    /// Stages whose state it has, of the round to start from.
    pub holds: BTreeSet<StageId>,
}

/// The seats of one pipeline, head first: they cover all stages once, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineUp {
    /// Who covers which stages; at least one.
    pub seats: Vec<(PeerId, StageRange)>,
}

/// Why there is no line-up. The text is shown to the people who wait.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoPlacement {
    /// Too few volunteers.
    #[error("waiting for {missing} more {}", if *missing == 1 { "volunteer" } else { "volunteers" })]
    Volunteers {
        /// How many more there must be.
        missing: usize,
    },
    /// Memory does not suffice.
    #[error("waiting for 1 more volunteer (stage {stage} needs {})", Memory(*bytes))]
    Memory {
        /// The first stage that nobody has room for.
        stage: StageId,
        /// What it takes.
        bytes: u64,
    },
    /// Everything would fit, but not without neighbours that cannot connect.
    #[error("waiting for 1 more volunteer (some of those here cannot connect with each other)")]
    Apart,
}

/// Bytes, for people.
struct Memory(u64);

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let megabytes = self.0 as f64 / 1e6;
        if megabytes >= 1e3 {
            write!(f, "{:.1} GB", megabytes / 1e3)
        } else {
            write!(f, "{:.0} MB", megabytes.ceil())
        }
    }
}

impl Candidate {
    /// Microseconds this volunteer takes for `stages` and one sequence, forward and backward.
    #[must_use]
    pub fn seat_us(&self, costs: &StageCosts, stages: StageRange) -> u64 {
        let microseconds = u128::from(costs.milliblocks_of(stages)) * self.pace();
        u64::try_from(microseconds.div_ceil(PACE_UNIT)).unwrap_or(u64::MAX)
    }

    /// Payload bytes a second that it sends, as far as anybody knows.
    fn rate(&self) -> u64 {
        self.bytes_per_second.unwrap_or(BYTES_PER_SECOND_ASSUMED)
    }

    /// Time of a thousandth of a block, in [`PACE_UNIT`]ths of a microsecond: smaller is faster.
    fn pace(&self) -> u128 {
        let relay = if self.relay_only { 9 } else { 8 };
        let percent = u128::from(self.throttle_percent.clamp(1, 100));
        u128::from(self.block_us.max(1)) * relay * 100 * PACE_PARTS / percent
    }
}

/// A pace is counted in so many parts, so that a percentage divides it with little rounding.
const PACE_PARTS: u128 = 1_000;
/// What makes microseconds of thousandths of blocks, eighths and parts.
const PACE_UNIT: u128 = 1_000 * 8 * PACE_PARTS;

impl LineUp {
    /// Microseconds that the slowest seat takes for one sequence: what the pipeline's speed follows from.
    ///
    /// `None` if a volunteer of the line-up is not among `volunteers`.
    #[must_use]
    pub fn slowest_us(&self, volunteers: &[Candidate], costs: &StageCosts) -> Option<u64> {
        let times = self.seats.iter().map(|&(peer, stages)| {
            let volunteer = volunteers.iter().find(|one| one.peer == peer)?;
            Some(volunteer.seat_us(costs, stages))
        });
        times.collect::<Option<Vec<u64>>>()?.into_iter().max()
    }

    /// Whether it keeps to everything that a line-up must keep to.
    #[must_use]
    pub fn is_possible(
        &self,
        volunteers: &[Candidate],
        costs: &StageCosts,
        apart: &BTreeSet<(PeerId, PeerId)>,
        seats_min: usize,
    ) -> bool {
        let fits = |&(peer, stages): &(PeerId, StageRange)| {
            let volunteer = volunteers.iter().find(|one| one.peer == peer);
            stages.count() > 0
                && volunteer.is_some_and(|one| costs.memory_of(stages) <= one.memory_bytes)
        };
        let covered = self.seats.iter().flat_map(|(_, stages)| stages.iter());
        let peers: BTreeSet<PeerId> = self.seats.iter().map(|(peer, _)| *peer).collect();
        covered.eq(costs.all().iter())
            && peers.len() == self.seats.len()
            && self.seats.len() >= seats_min
            && self.seats.iter().all(fits)
            && self
                .seats
                .windows(2)
                .all(|pair| !are_apart(apart, pair[0].0, pair[1].0))
    }
}

fn are_apart(apart: &BTreeSet<(PeerId, PeerId)>, a: PeerId, b: PeerId) -> bool {
    apart.contains(&(a, b)) || apart.contains(&(b, a))
}

/// Places one pipeline.
///
/// `apart` holds pairs that cannot connect, in either order. `old` is the present line-up, if there is one.
///
/// # Errors
/// What is waited for, in words.
pub fn assign(
    volunteers: &[Candidate],
    costs: &StageCosts,
    apart: &BTreeSet<(PeerId, PeerId)>,
    old: Option<&LineUp>,
    seats_min: usize,
) -> Result<LineUp, NoPlacement> {
    let seats_min = seats_min.max(1);
    if volunteers.len() < seats_min {
        return Err(NoPlacement::Volunteers {
            missing: seats_min - volunteers.len(),
        });
    }
    let close = close_look(volunteers, costs, old, apart.len());
    let problem = Problem::new(&close, costs, apart, seats_min);
    let best = problem
        .fastest()
        .map_err(|furthest| no_placement(&close, costs, apart, seats_min, furthest))?;
    let best_us = problem.slowest_us(&best);
    let limit_us = u128::from(best_us) * u128::from(100 + GAIN_PERCENT_MIN) / 100;
    let limit_us = u64::try_from(limit_us).unwrap_or(u64::MAX);
    if let Some(old) = old
        && old.is_possible(volunteers, costs, apart, seats_min)
        && old
            .slowest_us(volunteers, costs)
            .is_some_and(|us| us <= limit_us)
    {
        return Ok(old.clone());
    }
    let nobody_holds = close.iter().all(|one| one.holds.is_empty());
    let chosen = if nobody_holds {
        best
    } else {
        problem.least_moved(limit_us, best)
    };
    Ok(line_up(&close, &chosen))
}

fn line_up(close: &[&Candidate], cover: &Cover) -> LineUp {
    let mut first = 0;
    let seats = cover.iter().map(|&(who, end)| {
        let stages = StageRange { first, end };
        first = end;
        (close[usize::from(who)].peer, stages)
    });
    LineUp {
        seats: seats.collect(),
    }
}

/// What is missing, where no line-up at all was found.
fn no_placement(
    close: &[&Candidate],
    costs: &StageCosts,
    apart: &BTreeSet<(PeerId, PeerId)>,
    seats_min: usize,
    furthest: u16,
) -> NoPlacement {
    let furthest = if apart.is_empty() {
        furthest
    } else {
        let none = BTreeSet::new();
        match Problem::new(close, costs, &none, seats_min).fastest() {
            Ok(_) => return NoPlacement::Apart,
            Err(furthest) => furthest,
        }
    };
    let stage = StageId(furthest.min(costs.all().end - 1));
    NoPlacement::Memory {
        stage,
        bytes: costs.memory_of(StageRange {
            first: stage.0,
            end: stage.0 + 1,
        }),
    }
}

/// Those who can matter, fastest first.
///
/// Whoever is beaten in speed and memory by as many others as there can be seats is left out: one of them is
/// free for its seat. Pairs that are apart need more to choose from; whoever holds state or has a seat stays.
fn close_look<'a>(
    volunteers: &'a [Candidate],
    costs: &StageCosts,
    old: Option<&LineUp>,
    apart_count: usize,
) -> Vec<&'a Candidate> {
    let stages = costs.all().count();
    let enough = costs.memory_of(costs.all());
    let memory = |one: &Candidate| one.memory_bytes.min(enough);
    let mut sorted: Vec<&Candidate> = volunteers.iter().collect();
    sorted.sort_by_key(|one| (one.pace(), Reverse(memory(one)), one.peer));

    let depth = stages + apart_count.min(stages);
    let mut largest = BinaryHeap::with_capacity(depth + 1);
    let mut front: Vec<&Candidate> = Vec::new();
    for &one in &sorted {
        let beaten = largest.len() == depth
            && largest
                .peek()
                .is_some_and(|Reverse(least)| *least >= memory(one));
        if !beaten {
            front.push(one);
            largest.push(Reverse(memory(one)));
            if largest.len() > depth {
                largest.pop();
            }
        }
    }
    if front.len() > CLOSE_LOOK_MAX {
        let rest = front.split_off(CLOSE_LOOK_MAX / 2);
        let mut rest: Vec<&Candidate> = rest;
        rest.sort_by_key(|one| (Reverse(memory(one)), one.pace(), one.peer));
        rest.truncate(CLOSE_LOOK_MAX / 2);
        front.extend(rest);
    }

    let mut holders: Vec<&Candidate> = sorted
        .iter()
        .copied()
        .filter(|one| !one.holds.is_empty())
        .collect();
    holders.sort_by_key(|one| (Reverse(costs.held_bytes(&one.holds)), one.pace(), one.peer));
    holders.truncate(2 * stages);
    let seated: BTreeSet<PeerId> = old
        .iter()
        .flat_map(|old| old.seats.iter().map(|(peer, _)| *peer))
        .collect();
    let seated = sorted
        .iter()
        .copied()
        .filter(|one| seated.contains(&one.peer));
    let mut close: Vec<&Candidate> = front.into_iter().chain(holders).chain(seated).collect();
    close.sort_by_key(|one| (one.pace(), Reverse(memory(one)), one.peer));
    close.dedup_by_key(|one| one.peer);
    close
}

#[cfg(test)]
mod tests;
