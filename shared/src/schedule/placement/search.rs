//! The search behind [`super::assign`]: seat after seat, a bounded number of partial line-ups at a time.
//!
//! [`Problem::fastest`] asks "is there a line-up in which no seat and no border takes longer than so many
//! microseconds?" for ever smaller times. For a given time a volunteer reaches from each stage a known furthest
//! stage, and reaching further is hardly ever worse, so a partial line-up is told by who is used, who came last,
//! and how far it reaches. It is tried from both ends, since either end of the model may be what is hard to place.
//!
//! [`Problem::least_moved`] then looks for the least state to move among line-ups within a time. Both leave small
//! problems to [`super::exact`].
//!
//! Invariant: every cover returned reaches the last stage with at least `seats_min` seats.

use std::collections::BTreeSet;

use super::{Candidate, Given, PACE_UNIT, StageCosts, exact, moves};
use crate::units::StageRange;

/// Who sits, by index, and up to which stage; head first.
pub(super) type Cover = Vec<(u16, u16)>;

/// The longest time that is one: a border of more can't be passed.
pub(super) const LIMIT_MAX: u64 = u64::MAX - 1;
/// Partial line-ups that are kept at least where a search is thorough.
const WIDTH_MIN: usize = 4;

/// How much a search may look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Volunteers that are tried in all ways.
    exact_max: usize,
    /// Partial line-ups times volunteers that one seat of [`Problem::fastest`] looks at.
    steps_max: usize,
    /// Partial line-ups times volunteers times stages that one stage of [`Problem::least_moved`] looks at.
    moves_max: usize,
    /// Partial line-ups that are kept at least.
    width_min: usize,
    /// Steps of cutting an order that bettering it spends: seats times stages, over all trials.
    pub(super) work_max: usize,
    /// Found well enough, where not all ways are tried: within one part in so many of what can't be found.
    parts: u64,
}

impl Effort {
    /// For the only pipeline of a run.
    pub(super) const WHOLE: Self = Self {
        exact_max: exact::VOLUNTEERS_MAX,
        steps_max: 4_096,
        moves_max: 20_000,
        width_min: WIDTH_MIN,
        work_max: 3_000_000,
        parts: u64::MAX,
    };

    /// For a first opinion of thousands of groups.
    pub(super) const GLANCE: Self = Self {
        exact_max: 6,
        steps_max: 24,
        moves_max: 0,
        width_min: 1,
        work_max: 0,
        parts: 64,
    };

    /// For one of several pipelines, that share what a single one may spend.
    pub(super) fn shared_by(pipelines: usize) -> Self {
        let whole = Self::WHOLE;
        let share = |of: usize, least: usize| (of * 4 / pipelines.max(4)).max(least);
        Self {
            exact_max: if pipelines <= 64 { whole.exact_max } else { 8 },
            steps_max: share(whole.steps_max, 96),
            moves_max: share(whole.moves_max, 200),
            work_max: share(whole.work_max, 2_000),
            width_min: if pipelines <= 64 { WIDTH_MIN } else { 2 },
            parts: if pipelines <= 64 { whole.parts } else { 512 },
        }
    }
}

/// A volunteer's figures.
struct Worker {
    pace: u128,
    memory_bytes: u64,
    /// Bytes of state of the stages before each one that it does not hold; one more entry than stages.
    lacks: Vec<u64>,
    /// A number of its own, to tell sets of volunteers apart by their exclusive or.
    mark: u64,
}

/// One question of placement, with volunteers by index.
pub(super) struct Problem<'a> {
    workers: Vec<Worker>,
    costs: &'a StageCosts,
    /// What a border between two costs, row by row; more than [`LIMIT_MAX`] if they can't connect.
    borders_us: Vec<u64>,
    floor_us: u64,
    stages: u16,
    seats_min: usize,
    effort: Effort,
}

/// How far each volunteer reaches from each stage.
pub(super) type Reach = Vec<Vec<u16>>;

#[derive(Clone, Default)]
struct Partial {
    cover: Cover,
    used: Vec<u64>,
    marks: u64,
    moved_bytes: u64,
    slowest_us: u64,
}

impl Partial {
    fn end(&self) -> u16 {
        self.cover.last().map_or(0, |&(_, end)| end)
    }

    fn last(&self) -> Option<u16> {
        self.cover.last().map(|&(who, _)| who)
    }

    fn uses(&self, who: u16) -> bool {
        let (word, bit) = (usize::from(who) / 64, who % 64);
        self.used.get(word).is_some_and(|used| used >> bit & 1 == 1)
    }

    fn with(&self, who: u16, end: u16, mark: u64) -> Self {
        let mut next = self.clone();
        let (word, bit) = (usize::from(who) / 64, who % 64);
        if next.used.len() <= word {
            next.used.resize(word + 1, 0);
        }
        next.used[word] |= 1 << bit;
        next.cover.push((who, end));
        next.marks ^= mark;
        next
    }
}

impl<'a> Problem<'a> {
    /// Nobody outside `volunteers` is looked at; none of their line-ups takes less than `floor_us`.
    pub(super) fn new(
        volunteers: &[&Candidate],
        given: &Given<'a>,
        floor_us: u64,
        effort: Effort,
    ) -> Self {
        let costs = given.costs;
        let worker = |one: &&Candidate| {
            let mut lacks = vec![0];
            let mut sum = 0;
            for stage in costs.all().iter() {
                if !one.holds.contains(&stage) {
                    sum += costs.state_bytes(stage);
                }
                lacks.push(sum);
            }
            Worker {
                pace: one.pace(),
                memory_bytes: one.memory_bytes,
                lacks,
                mark: scatter(one.peer.0),
            }
        };
        let border = |a: &Candidate, b: &Candidate| {
            let us = given.links.border_us(a, b, costs.border());
            us.unwrap_or(u64::MAX)
        };
        let count = volunteers.len();
        let mut borders_us = vec![0; count * count];
        for (row, a) in volunteers.iter().enumerate() {
            for (column, b) in volunteers[..=row].iter().enumerate() {
                // There and back are the same.
                let us = border(a, b);
                borders_us[row * count + column] = us;
                borders_us[column * count + row] = us;
            }
        }
        Self {
            workers: volunteers.iter().map(worker).collect(),
            borders_us,
            costs,
            floor_us,
            stages: costs.all().end,
            seats_min: given.seats_min.max(1),
            effort,
        }
    }

    fn is_small(&self) -> bool {
        let volunteers = self.workers.len();
        volunteers <= self.effort.exact_max && exact::is_small(volunteers, self.stages)
    }

    /// What it may look at.
    pub(super) fn effort(&self) -> &Effort {
        &self.effort
    }

    fn indices(&self) -> impl Iterator<Item = u16> + use<> {
        0..u16::try_from(self.workers.len()).expect("a close look is at few volunteers")
    }

    /// Number of volunteers.
    pub(super) fn volunteers(&self) -> usize {
        self.workers.len()
    }

    /// Number of stages.
    pub(super) fn stages(&self) -> u16 {
        self.stages
    }

    /// Seats there must be at least.
    pub(super) fn seats_min(&self) -> usize {
        self.seats_min
    }

    /// Microseconds of a border between two; more than [`LIMIT_MAX`] if they can't connect.
    pub(super) fn border_us(&self, a: usize, b: usize) -> u64 {
        self.borders_us[a * self.workers.len() + b]
    }

    /// Bytes of state that a volunteer lacks of some stages.
    pub(super) fn lacks(&self, who: usize, first: usize, end: usize) -> u64 {
        let lacks = &self.workers[who].lacks;
        lacks[end] - lacks[first]
    }

    fn may_follow(&self, last: Option<u16>, who: u16, limit_us: u64) -> bool {
        last.is_none_or(|last| self.border_us(usize::from(last), usize::from(who)) <= limit_us)
    }

    fn seat_us(&self, who: u16, first: u16, end: u16) -> u64 {
        let work = u128::from(self.costs.milliblocks_of(StageRange { first, end }));
        let microseconds = (work * self.workers[usize::from(who)].pace).div_ceil(PACE_UNIT);
        u64::try_from(microseconds).unwrap_or(u64::MAX)
    }

    /// Microseconds of each seat, and of the border to the one before it if that is more.
    fn times<'c>(&'c self, cover: &'c Cover) -> impl Iterator<Item = (u16, u64)> + 'c {
        let before = std::iter::once(None).chain(cover.iter().copied().map(Some));
        cover.iter().zip(before).map(|(&(who, end), before)| {
            let first = before.map_or(0, |(_, end)| end);
            let border_us = before.map_or(0, |(last, _)| {
                self.border_us(usize::from(last), usize::from(who))
            });
            (who, self.seat_us(who, first, end).max(border_us))
        })
    }

    /// Microseconds of the slowest seat or border.
    pub(super) fn slowest_us(&self, cover: &Cover) -> u64 {
        self.times(cover).map(|(_, us)| us).max().unwrap_or(0)
    }

    /// Who sits at the slowest seat, or behind the slowest border.
    pub(super) fn slowest_seat(&self, cover: &Cover) -> Option<u16> {
        self.times(cover)
            .max_by_key(|(_, us)| *us)
            .map(|(who, _)| who)
    }

    /// From each stage on, the furthest end that fits in memory and in `limit_us`.
    pub(super) fn reach(&self, limit_us: u64) -> Reach {
        let reach_of = |worker: &Worker| {
            let work_max = u128::from(limit_us) * PACE_UNIT / worker.pace;
            let fits = |stages: StageRange| {
                u128::from(self.costs.milliblocks_of(stages)) <= work_max
                    && self.costs.memory_of(stages) <= worker.memory_bytes
            };
            let mut end = 0;
            (0..self.stages)
                .map(|first| {
                    end = end.max(first);
                    while end < self.stages
                        && fits(StageRange {
                            first,
                            end: end + 1,
                        })
                    {
                        end += 1;
                    }
                    end
                })
                .collect()
        };
        self.workers.iter().map(reach_of).collect()
    }

    /// The line-up whose slowest part is fastest.
    ///
    /// # Errors
    /// The furthest stage that memory lets a line-up from the head reach, if there is none at all.
    pub(super) fn fastest(&self) -> Result<Cover, u16> {
        let is_small = self.is_small();
        let within = |limit_us: u64| {
            let reach = self.reach(limit_us);
            match is_small {
                true => exact::within(self, &reach, limit_us),
                false => self.found_within(&reach, limit_us),
            }
        };
        let mut best = within(LIMIT_MAX)?;
        let mut best_us = self.slowest_us(&best);
        let mut too_fast_us = self.floor_us.saturating_sub(1);
        let gap = |best_us: u64| {
            if is_small {
                1
            } else {
                1 + best_us / self.effort.parts
            }
        };
        while too_fast_us.saturating_add(gap(best_us)) < best_us {
            let middle_us = too_fast_us + (best_us - too_fast_us) / 2;
            match within(middle_us) {
                Ok(cover) => {
                    best_us = self.slowest_us(&cover);
                    best = cover;
                }
                Err(_furthest) => too_fast_us = middle_us,
            }
        }
        Ok(match is_small {
            true => best,
            false => moves::bettered(self, best),
        })
    }

    /// A line-up in which nothing takes longer, or how far one from the head gets.
    fn found_within(&self, reach: &Reach, limit_us: u64) -> Result<Cover, u16> {
        match self.cover(&mirror(reach, self.stages), limit_us, false) {
            Ok(cover) => return Ok(turn(&cover, self.stages)),
            Err(_from_the_end) => {}
        }
        match self.cover(reach, limit_us, false) {
            Err(_) if limit_us == LIMIT_MAX => self.cover(reach, limit_us, true),
            found => found,
        }
    }

    /// Seat after seat from stage 0 on, those that reach furthest first.
    ///
    /// With `any_end` seats are also tried shorter than they can be: where neighbours are apart or memory is
    /// scarce, that can be what makes a line-up possible.
    fn cover(&self, reach: &Reach, limit_us: u64, any_end: bool) -> Result<Cover, u16> {
        let width = (self.effort.steps_max / self.workers.len()).clamp(self.effort.width_min, 512);
        let mut furthest = 0;
        let mut level = vec![Partial::default()];
        for seats in 1..=usize::from(self.stages).min(self.workers.len()) {
            let seats_left =
                u16::try_from(self.seats_min.saturating_sub(seats)).unwrap_or(u16::MAX);
            let end_max = self.stages.saturating_sub(seats_left);
            let mut steps: Vec<(u16, usize, u16)> = Vec::new();
            for (parent, partial) in level.iter().enumerate() {
                let first = partial.end();
                for who in self.indices() {
                    if partial.uses(who) || !self.may_follow(partial.last(), who, limit_us) {
                        continue;
                    }
                    let end = reach[usize::from(who)][usize::from(first)].min(end_max);
                    let shortest = if any_end {
                        first + 1
                    } else {
                        end.max(first + 1)
                    };
                    steps.extend((shortest..=end).map(|end| (end, parent, who)));
                }
            }
            steps.sort_unstable_by_key(|&(end, parent, who)| (std::cmp::Reverse(end), parent, who));
            let Some(&(end, parent, who)) = steps.first() else {
                break;
            };
            furthest = furthest.max(end);
            if end == self.stages {
                return Ok(level[parent].with(who, end, 0).cover);
            }
            let mut known = BTreeSet::new();
            let new = steps.iter().filter(|&&(end, parent, who)| {
                let marks = level[parent].marks ^ self.workers[usize::from(who)].mark;
                known.insert((marks, who, end))
            });
            level = new
                .take(width)
                .map(|&(end, parent, who)| {
                    level[parent].with(who, end, self.workers[usize::from(who)].mark)
                })
                .collect();
        }
        Err(furthest)
    }

    /// The line-up that moves the least state with no seat slower than `limit_us`; `known` if none is better.
    pub(super) fn least_moved(&self, limit_us: u64, known: Cover) -> Cover {
        let reach = self.reach(limit_us);
        if self.is_small() {
            return self.least_moved_of_all(limit_us, known);
        }
        let looked_at = self.workers.len() * usize::from(self.stages);
        let width = (self.effort.moves_max / looked_at).clamp(self.effort.width_min, 512);
        let mut by_end: Vec<Vec<Partial>> = vec![Vec::new(); usize::from(self.stages) + 1];
        by_end[0].push(Partial::default());
        for first in 0..self.stages {
            let here = std::mem::take(&mut by_end[usize::from(first)]);
            for partial in self.narrowed(here, width) {
                for who in self.indices() {
                    if partial.uses(who) || !self.may_follow(partial.last(), who, limit_us) {
                        continue;
                    }
                    for end in first + 1..=reach[usize::from(who)][usize::from(first)] {
                        let seats = partial.cover.len() + 1 + usize::from(self.stages - end);
                        if seats >= self.seats_min {
                            by_end[usize::from(end)].push(self.seated(&partial, who, end));
                        }
                    }
                }
            }
        }
        let whole = std::mem::take(&mut by_end[usize::from(self.stages)]);
        let known = known
            .iter()
            .fold(Partial::default(), |partial, &(who, end)| {
                self.seated(&partial, who, end)
            });
        let best = whole
            .into_iter()
            .chain([known])
            .min_by(|a, b| rank(a).cmp(&rank(b)));
        best.expect("at least the known one").cover
    }

    /// ... of a small problem. If the fastest line-ups move as little as slower ones, one of them it is.
    fn least_moved_of_all(&self, limit_us: u64, known: Cover) -> Cover {
        let moved_bytes = |cover: &Cover| {
            let whole = cover
                .iter()
                .fold(Partial::default(), |partial, &(who, end)| {
                    self.seated(&partial, who, end)
                });
            whole.moved_bytes
        };
        let best_us = self.slowest_us(&known);
        let within = |us| exact::least_moved(self, &self.reach(us), us);
        match (within(best_us), within(limit_us)) {
            (Some(fast), Some(slow)) if moved_bytes(&slow) < moved_bytes(&fast) => slow,
            (Some(fast), _) => fast,
            (None, slow) => slow.unwrap_or(known),
        }
    }

    fn seated(&self, partial: &Partial, who: u16, end: u16) -> Partial {
        let worker = &self.workers[usize::from(who)];
        let first = partial.end();
        let mut next = partial.with(who, end, worker.mark);
        next.moved_bytes += worker.lacks[usize::from(end)] - worker.lacks[usize::from(first)];
        next.slowest_us = next.slowest_us.max(self.seat_us(who, first, end));
        next
    }

    /// The best ones, each set of volunteers with the same last one once.
    fn narrowed(&self, mut partials: Vec<Partial>, width: usize) -> Vec<Partial> {
        partials.sort_by(|a, b| rank(a).cmp(&rank(b)));
        let mut known = BTreeSet::new();
        partials.retain(|partial| known.insert((partial.marks, partial.last())));
        partials.truncate(width);
        partials
    }
}

/// What makes one line-up better than another: the smaller the better.
fn rank(partial: &Partial) -> (u64, u64, usize, &Cover) {
    (
        partial.moved_bytes,
        partial.slowest_us,
        partial.cover.len(),
        &partial.cover,
    )
}

/// The same question with the last stage first.
fn mirror(reach: &Reach, stages: u16) -> Reach {
    let mirrored = |from: &Vec<u16>| {
        let mut first = stages;
        (0..stages)
            .map(|turned| {
                // The furthest begin of a seat that ends where the turned one begins.
                let end = stages - turned;
                first = first.min(end);
                while first > 0 && from[usize::from(first - 1)] >= end {
                    first -= 1;
                }
                stages - first
            })
            .collect()
    };
    reach.iter().map(mirrored).collect()
}

/// A cover of the mirrored question as one of the question itself.
fn turn(cover: &Cover, stages: u16) -> Cover {
    let begins = std::iter::once(0).chain(cover.iter().map(|&(_, end)| end));
    let mut turned: Cover = cover
        .iter()
        .zip(begins)
        .map(|(&(who, _), begin)| (who, stages - begin))
        .collect();
    turned.reverse();
    turned
}

/// Spreads a number over 64 bits (the finaliser of SplitMix64).
fn scatter(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
