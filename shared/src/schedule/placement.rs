//! Cuts the stages into contiguous seats and gives each to a volunteer, so that the slowest part is fastest.
//!
//! In the steady state a pipeline is as fast as its slowest seat or its slowest border between two seats, so that is
//! what is minimised, over any number of seats: a volunteer, or a link, that would slow the pipe down is left
//! out. Among line-ups within [`GAIN_PERCENT_MIN`] of the best, the one that moves the least state wins, and
//! an old line-up that is still possible stays.
//!
//! Finding the best line-up is NP-hard in general. Up to ten volunteers are tried in all ways (`exact`).
//! Beyond, `search` keeps a bounded number of partial line-ups and `moves` betters the best of them by bounded
//! trial. Volunteers that as many others as there are stages beat in everything are left out before
//! (`close_look`), so that 10,000 cost hardly more than 100.
//!
//! Several pipelines are disjoint, and get done what they get done together: the sum of one by each one's slowest
//! part. There are as many as that does not fall by. Old ones stay or are repaired from their own rest and
//! spares (`many`), new ones are dealt from those without a seat (`groups`), each group placed as above.
//!
//! Begin with [`assign`], which places one pipeline, then [`assign_all`].
//!
//! Invariant: no volunteer has two seats; a line-up covers each stage once, in order, never over a volunteer's memory, and two that are
//! apart are never neighbours.

mod close_look;
mod costs;
mod exact;
mod groups;
mod links;
mod many;
mod moves;
mod rate;
mod search;
mod spares;

use std::collections::BTreeSet;

pub use costs::{StageCost, StageCosts};
pub use links::{BYTES_PER_SECOND_ASSUMED, Border, Links, Measured};
pub use many::assign_all;

use crate::units::{PeerId, StageId, StageRange};
use search::{Cover, Effort, LIMIT_MAX, Problem};

/// A line-up is renewed only for a gain of more than this, and state is moved only for it.
pub const GAIN_PERCENT_MIN: u64 = 10;

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

/// What there is to place pipelines from.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// Who may be given a seat.
    pub volunteers: &'a [Candidate],
    /// What the model's stages and borders cost.
    pub costs: &'a StageCosts,
    /// What is known of pairs of volunteers.
    pub links: &'a Links,
    /// Seats there must be at least in a pipeline.
    pub seats_min: usize,
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
    /// Microseconds that the slowest seat or border takes for one sequence: what the pipeline's speed follows from.
    ///
    /// `None` if a volunteer of the line-up is not given, or two that are apart are neighbours.
    #[must_use]
    pub fn slowest_us(&self, given: &Given<'_>) -> Option<u64> {
        let seats = self.seats.iter().map(|&(peer, stages)| {
            let volunteer = given.find(peer)?;
            Some((volunteer, volunteer.seat_us(given.costs, stages)))
        });
        let seats = seats.collect::<Option<Vec<_>>>()?;
        let border = given.costs.border();
        let borders = seats
            .windows(2)
            .map(|pair| given.links.border_us(pair[0].0, pair[1].0, border));
        let slowest_border = borders.collect::<Option<Vec<u64>>>()?.into_iter().max();
        let slowest_seat = seats.iter().map(|(_, us)| *us).max();
        slowest_seat.max(slowest_border)
    }

    /// Whether it keeps to everything that a line-up must keep to.
    #[must_use]
    pub fn is_possible(&self, given: &Given<'_>) -> bool {
        let costs = given.costs;
        let fits = |&(peer, stages): &(PeerId, StageRange)| {
            stages.count() > 0
                && given
                    .find(peer)
                    .is_some_and(|one| costs.memory_of(stages) <= one.memory_bytes)
        };
        let covered = self.seats.iter().flat_map(|(_, stages)| stages.iter());
        let peers: BTreeSet<PeerId> = self.seats.iter().map(|(peer, _)| *peer).collect();
        covered.eq(costs.all().iter())
            && peers.len() == self.seats.len()
            && self.seats.len() >= given.seats_min
            && self.seats.iter().all(fits)
            && self
                .seats
                .windows(2)
                .all(|pair| !given.links.are_apart(pair[0].0, pair[1].0))
    }
}

impl Given<'_> {
    fn find(&self, peer: PeerId) -> Option<&Candidate> {
        self.volunteers.iter().find(|one| one.peer == peer)
    }

    /// Microseconds that no line-up gets below: all stages shared out without a rest, or the heaviest one alone.
    fn floor_us(&self) -> u64 {
        self.floor_us_of(self.volunteers.iter())
    }

    /// ... if only these may be given a seat.
    fn floor_us_of<'c>(&self, volunteers: impl Iterator<Item = &'c Candidate>) -> u64 {
        let mut paces: Vec<u128> = volunteers.map(Candidate::pace).collect();
        let stages = self.costs.all();
        if paces.len() > stages.count() {
            paces.select_nth_unstable(stages.count() - 1);
            paces.truncate(stages.count());
        }
        let Some(fastest) = paces.iter().min() else {
            return 0;
        };
        let scale = PACE_UNIT << 32;
        let work_in_us: u128 = paces.iter().map(|pace| scale.div_ceil(*pace)).sum();
        let shared = (u128::from(self.costs.milliblocks_of(stages)) << 32) / work_in_us;
        let heaviest = stages
            .iter()
            .map(|stage| self.costs.milliblocks_of(StageRange::one(stage)))
            .max();
        let alone = u128::from(heaviest.unwrap_or(0)) * fastest / PACE_UNIT;
        u64::try_from(shared.max(alone)).unwrap_or(u64::MAX)
    }
}

/// Places one pipeline. `old` is the present line-up, if there is one.
///
/// # Errors
/// What is waited for, in words.
pub fn assign(given: &Given<'_>, old: Option<&LineUp>) -> Result<LineUp, NoPlacement> {
    assign_with(given, old, Effort::WHOLE)
}

/// [`assign`] that looks at no more than `effort` allows.
fn assign_with(
    given: &Given<'_>,
    old: Option<&LineUp>,
    effort: Effort,
) -> Result<LineUp, NoPlacement> {
    let seats_min = given.seats_min.max(1);
    if given.volunteers.len() < seats_min {
        return Err(NoPlacement::Volunteers {
            missing: seats_min - given.volunteers.len(),
        });
    }
    let old = old.filter(|old| old.is_possible(given));
    let old = old.and_then(|old| Some((old, old.slowest_us(given)?)));
    let floor_us = given.floor_us();
    if let Some((old, old_us)) = old
        && old_us <= with_gain(floor_us)
    {
        return Ok(old.clone());
    }
    let seated: BTreeSet<PeerId> = old
        .iter()
        .flat_map(|(old, _)| old.seats.iter().map(|(peer, _)| *peer))
        .collect();
    let close = close_look::close_look(given, &seated);
    let problem = Problem::new(&close, given, floor_us, effort);
    let best = problem
        .fastest()
        .map_err(|furthest| no_placement(&close, given, furthest, effort))?;
    let limit_us = with_gain(problem.slowest_us(&best));
    if let Some((old, old_us)) = old
        && old_us <= limit_us
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

/// What a line-up may take that is as good as one that takes `us`.
fn with_gain(us: u64) -> u64 {
    let limit_us = u128::from(us) * u128::from(100 + GAIN_PERCENT_MIN) / 100;
    u64::try_from(limit_us).unwrap_or(u64::MAX).min(LIMIT_MAX)
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
    given: &Given<'_>,
    furthest: u16,
    effort: Effort,
) -> NoPlacement {
    let furthest = if given.links.apart().is_empty() {
        furthest
    } else {
        let links = &Links::default();
        let together = Given { links, ..*given };
        match Problem::new(close, &together, given.floor_us(), effort).fastest() {
            Ok(_) => return NoPlacement::Apart,
            Err(furthest) => furthest,
        }
    };
    let costs = given.costs;
    let stage = StageId(furthest.min(costs.all().end - 1));
    NoPlacement::Memory {
        stage,
        bytes: costs.memory_of(StageRange::one(stage)),
    }
}

#[cfg(test)]
mod tests;
