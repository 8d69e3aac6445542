//! Deals volunteers into groups that each place a pipeline, so that all together get the most samples done.
//!
//! Which groups are best is as hard as placing one pipeline, and then as hard again. Tried are all numbers of pipelines
//! (a grid of them, if they are many), each with a few ways to deal: in tiers of like speed, and within a tier so
//! that all groups have as much memory, or as much speed. Of many groups a sample is looked at. The best
//! deals are mended and bettered by bounded trial: volunteers change groups, groups join and part.
//! What a group is worth is told by a glance (`search`, with little effort); only the groups that are
//! taken are placed with care.
//!
//! Begin with [`grouped`]. Invariant: line-ups are disjoint and possible, and no fewer samples get done than with the
//! best single one.

mod deal;
mod trial;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::rate::Rate;
use super::search::{Effort, Problem};
use super::{Candidate, Given, LineUp, PACE_UNIT, StageCosts, assign_with};
use crate::units::StageRange;
use deal::Deal;

/// Bits after the point in speeds.
const SPEED_SCALE: u32 = 64;
/// Ever fewer pipelines are tried until, for a factor of three, all fall short of the best by so many percent.
const FAR_PERCENT: u64 = 20;
/// Deals that are bettered by trial...
const STARTS_MAX: usize = 3;
/// ... and fewer where there are more pipelines than this.
const SEVERAL_MAX: usize = 64;

/// What is given to deal from, with volunteers by index, those of the shortest turns first.
struct Pool<'a> {
    given: Given<'a>,
    all: Vec<&'a Candidate>,
    pipelines_max: usize,
    stages: usize,
    /// Memory that all stages take, in bytes.
    enough_bytes: u64,
    /// Work that so many of the fastest do in a microsecond; one more entry.
    speeds: Vec<u128>,
    /// Those who are best for the hardest stage, the best first.
    anchors: Vec<u32>,
    /// The fastest one's pace.
    fastest: u128,
    /// What glances showed.
    seen: BTreeMap<Vec<u32>, Rate>,
}

/// Groups of volunteers by index; the first are those in no group.
#[derive(Clone, Default)]
struct Groups {
    members: Vec<Vec<u32>>,
    rates: Vec<Rate>,
}

impl Groups {
    /// What they get done, and how many pipelines they are.
    fn worth(&self) -> (Rate, usize) {
        let placed = self.rates.iter().filter(|rate| **rate > Rate::default());
        (self.rates.iter().copied().sum(), placed.count())
    }
}

/// Whether one is worth more than the other: more samples, or as many in more pipelines.
fn is_better(one: (Rate, usize), other: (Rate, usize)) -> bool {
    other.0.is_below(one.0) || (!one.0.is_below(other.0) && one.1 > other.1)
}

/// The most that so many pipelines of these volunteers can get done, whoever sits where.
pub(super) fn rate_max<'c>(
    volunteers: impl Iterator<Item = &'c Candidate>,
    given: &Given<'_>,
    pipelines: usize,
) -> Rate {
    let mut paces: Vec<u128> = volunteers.map(Candidate::pace).collect();
    paces.sort_unstable();
    let seats = pipelines.saturating_mul(given.costs.all().count());
    paces.truncate(seats);
    let speeds = paces.iter().map(|pace| speed(*pace)).sum();
    rate_of_speeds(
        speeds,
        paces.first().copied().unwrap_or(1),
        given,
        pipelines,
    )
}

fn rate_of_speeds(speeds: u128, fastest: u128, given: &Given<'_>, pipelines: usize) -> Rate {
    let (all, costs) = (given.costs.all(), given.costs);
    let heaviest = all
        .iter()
        .map(|stage| costs.milliblocks_of(StageRange::one(stage)))
        .max();
    let alone = u128::from(heaviest.unwrap_or(0)) * fastest / PACE_UNIT;
    let alone_us = u64::try_from(alone).unwrap_or(u64::MAX);
    let shared = Rate::of_work(speeds, SPEED_SCALE, costs.milliblocks_of(all));
    shared.min(Rate::of(alone_us).times(pipelines))
}

fn speed(pace: u128) -> u128 {
    (PACE_UNIT << SPEED_SCALE) / pace
}

/// Line-ups of at most `pipelines_max` pipelines from `volunteers`; none if there is none.
///
/// `effort` is for a single pipeline of them all.
pub(super) fn grouped(
    given: &Given<'_>,
    volunteers: Vec<&Candidate>,
    pipelines_max: usize,
    effort: Effort,
) -> Vec<LineUp> {
    let most = pipelines_max.min(volunteers.len() / given.seats_min.max(1));
    if most == 0 {
        return Vec::new();
    }
    let mut pool = Pool::new(given, volunteers, most);
    if !pool.may_cover() {
        return Vec::new();
    }
    let several = match most {
        1 => Vec::new(),
        _ => pool.several(),
    };
    let rate: Rate = several.iter().map(|(_, rate)| *rate).sum();
    let single_max = rate_max(pool.all.iter().copied(), given, 1);
    if rate.is_below(single_max) {
        let everybody: Vec<u32> = (0..).zip(&pool.all).map(|(index, _)| index).collect();
        match pool.placed(&everybody, effort) {
            Some((single, single_rate)) if rate.is_below(single_rate) => return vec![single],
            Some(_) | None => {}
        }
    }
    several.into_iter().map(|(line_up, _)| line_up).collect()
}

impl Candidate {
    /// Microseconds that a pipeline of many like it takes for a sequence: for a stage or a border, or, where there is
    /// memory to do without borders, for all stages.
    fn turn_us(&self, costs: &StageCosts) -> u64 {
        let all = costs.all();
        let all_us = self.seat_us(costs, all);
        let stage_us = all_us / all.count() as u64;
        let border_us = self.border_to_its_like_us(costs);
        if self.memory_bytes >= costs.memory_of(all) {
            stage_us.max(border_us.min(all_us))
        } else {
            stage_us.max(border_us)
        }
    }
}

impl<'a> Pool<'a> {
    fn new(given: &Given<'a>, mut all: Vec<&'a Candidate>, pipelines_max: usize) -> Self {
        let costs = given.costs;
        let mut paces: Vec<u128> = all.iter().map(|one| one.pace()).collect();
        paces.sort_unstable();
        let fastest = paces.first().copied().unwrap_or(1);
        let mut sum = 0;
        let speeds = paces.into_iter().map(|pace| {
            sum += speed(pace);
            sum
        });
        let speeds = std::iter::once(0).chain(speeds).collect();
        all.sort_by_cached_key(|one| {
            let key = (one.pace(), Reverse(one.memory_bytes), one.peer);
            (one.turn_us(costs), key)
        });
        let mut pool = Self {
            given: *given,
            all,
            anchors: Vec::new(),
            pipelines_max,
            stages: costs.all().count(),
            enough_bytes: costs.memory_of(costs.all()),
            speeds,
            fastest,
            seen: BTreeMap::new(),
        };
        pool.anchors = pool.best_for_the_hardest();
        pool
    }

    /// Whether memory lets anybody hope.
    fn may_cover(&self) -> bool {
        let costs = self.given.costs;
        let most = self.all.iter().map(|one| one.memory_bytes).max();
        let mut stages = costs.all().iter();
        let each_fits = stages.all(|stage| Some(costs.memory_of(StageRange::one(stage))) <= most);
        each_fits && self.has_memory(self.all.iter().copied())
    }

    fn has_memory<'c>(&self, volunteers: impl Iterator<Item = &'c Candidate>) -> bool {
        let sum = volunteers
            .map(|one| u128::from(one.memory_bytes))
            .sum::<u128>();
        sum >= u128::from(self.enough_bytes)
    }

    /// The most that so many pipelines can get done.
    fn rate_max(&self, pipelines: usize) -> Rate {
        let seats = pipelines.saturating_mul(self.stages).min(self.all.len());
        rate_of_speeds(self.speeds[seats], self.fastest, &self.given, pipelines)
    }

    /// What a group gets done, at a glance; nothing if it can't be placed.
    fn glance(&mut self, members: &mut Vec<u32>) -> Rate {
        members.sort_unstable();
        if let Some(rate) = self.seen.get(members) {
            return *rate;
        }
        let given = &self.given;
        let looked: Vec<&Candidate> = members
            .iter()
            .map(|index| self.all[*index as usize])
            .collect();
        let rate = if looked.len() < given.seats_min || !self.has_memory(looked.iter().copied()) {
            Rate::default()
        } else {
            let floor_us = given.floor_us_of(looked.iter().copied());
            let problem = Problem::new(&looked, given, floor_us, Effort::GLANCE);
            let fastest = problem.fastest().ok();
            fastest.map_or(Rate::default(), |cover| {
                Rate::of(problem.slowest_us(&cover))
            })
        };
        self.seen.insert(members.clone(), rate);
        rate
    }

    fn placed(&self, members: &[u32], effort: Effort) -> Option<(LineUp, Rate)> {
        let members = members
            .iter()
            .map(|index| self.all[*index as usize].clone());
        let members: Vec<Candidate> = members.collect();
        let given = Given {
            volunteers: &members,
            ..self.given
        };
        let line_up = assign_with(&given, None, effort).ok()?;
        let slowest_us = line_up.slowest_us(&given)?;
        Some((line_up, Rate::of(slowest_us)))
    }

    /// The best groups that were found, each placed with care.
    fn several(&mut self) -> Vec<(LineUp, Rate)> {
        let mut starts: Vec<(Rate, Deal)> = Vec::new();
        let mut best = Rate::default();
        // The number of pipelines that was tried last of those that came near the best.
        let mut near = self.pipelines_max;
        for deal in self.deals() {
            let is_far = 3 * deal.pipelines < near;
            if is_far || self.rate_max(deal.pipelines) < best {
                continue;
            }
            let rate = self.estimate(&deal);
            best = best.max(rate);
            // So it is, too, as long as none can be placed.
            if best.less(FAR_PERCENT) <= rate {
                near = deal.pipelines;
            }
            starts.push((rate, deal));
        }
        starts.sort_by_key(|(rate, deal)| Reverse((*rate, deal.pipelines)));
        let mut seen = BTreeSet::new();
        let dealt = starts.iter().map(|(_, deal)| self.dealt(deal));
        let dealt = dealt.filter(|groups| seen.insert(groups.clone()));
        let count = if self.pipelines_max > SEVERAL_MAX {
            2
        } else {
            STARTS_MAX
        };
        let starts: Vec<Vec<Vec<u32>>> = dealt.take(count).collect();
        let mut best = Groups::default();
        for dealt in starts {
            let groups = self.mended(dealt);
            let groups = self.bettered(groups);
            if is_better(groups.worth(), best.worth()) {
                best = groups;
            }
        }
        let effort = Effort::shared_by(best.members.len());
        let placed = best.members.iter().zip(&best.rates);
        let placed = placed.filter(|(_, rate)| **rate > Rate::default());
        placed
            .filter_map(|(members, _)| self.placed(members, effort))
            .collect()
    }
}
