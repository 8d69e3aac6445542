//! The search behind [`super::assign`]: seat after seat, a bounded number of partial line-ups at a time.
//!
//! [`Problem::fastest`] asks "is there a line-up in which no seat takes longer than so many microseconds?"
//! for ever smaller times. For a given time a volunteer reaches from each stage a known furthest stage, and
//! reaching further is never worse, so a partial line-up is told by who is used, who came last, and how far it
//! reaches. It is tried from both ends, since either end of the model may be what is hard to place.
//!
//! [`Problem::least_moved`] then looks for the least state to move among line-ups within a time.
//!
//! Invariant: every cover returned reaches the last stage with at least `seats_min` seats.

use std::collections::BTreeSet;

use super::{Candidate, PACE_UNIT, StageCosts, are_apart};
use crate::units::{PeerId, StageRange};

/// Who sits, by index, and up to which stage; head first.
pub(super) type Cover = Vec<(u16, u16)>;

/// Partial line-ups times volunteers that one seat of [`Problem::fastest`] looks at.
const STEPS_MAX: usize = 4_096;
/// Partial line-ups times volunteers times stages that one stage of [`Problem::least_moved`] looks at.
const MOVES_MAX: usize = 20_000;

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
    /// For each volunteer those it is apart from.
    apart: Vec<Vec<u16>>,
    stages: u16,
    seats_min: usize,
}

/// How far each volunteer reaches from each stage.
type Reach = Vec<Vec<u16>>;

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
    pub(super) fn new(
        volunteers: &[&Candidate],
        costs: &'a StageCosts,
        apart: &BTreeSet<(PeerId, PeerId)>,
        seats_min: usize,
    ) -> Self {
        let index = |count: usize| u16::try_from(count).expect("a close look is at few volunteers");
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
        let others = |one: &&Candidate| {
            let of_one = (0..volunteers.len())
                .filter(|&other| are_apart(apart, one.peer, volunteers[other].peer));
            of_one.map(index).collect()
        };
        Self {
            workers: volunteers.iter().map(worker).collect(),
            apart: if apart.is_empty() {
                vec![Vec::new(); volunteers.len()]
            } else {
                volunteers.iter().map(others).collect()
            },
            costs,
            stages: costs.all().end,
            seats_min,
        }
    }

    fn indices(&self) -> impl Iterator<Item = u16> + use<> {
        0..u16::try_from(self.workers.len()).expect("a close look is at few volunteers")
    }

    fn may_follow(&self, last: Option<u16>, who: u16) -> bool {
        last.is_none_or(|last| !self.apart[usize::from(last)].contains(&who))
    }

    fn seat_us(&self, who: u16, first: u16, end: u16) -> u64 {
        let work = u128::from(self.costs.milliblocks_of(StageRange { first, end }));
        let microseconds = (work * self.workers[usize::from(who)].pace).div_ceil(PACE_UNIT);
        u64::try_from(microseconds).unwrap_or(u64::MAX)
    }

    /// Microseconds of the slowest seat.
    pub(super) fn slowest_us(&self, cover: &Cover) -> u64 {
        let firsts = std::iter::once(0).chain(cover.iter().map(|&(_, end)| end));
        let seats = cover.iter().zip(firsts);
        let times = seats.map(|(&(who, end), first)| self.seat_us(who, first, end));
        times.max().unwrap_or(0)
    }

    /// From each stage on, the furthest end that fits in memory and in `limit_us`.
    fn reach(&self, limit_us: u64) -> Reach {
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

    /// The line-up whose slowest seat is fastest, with as few seats as that allows.
    ///
    /// # Errors
    /// The furthest stage that memory lets a line-up from the head reach, if there is none at all.
    pub(super) fn fastest(&self) -> Result<Cover, u16> {
        let mut best = self.within(u64::MAX)?;
        let mut best_us = self.slowest_us(&best);
        let mut too_fast_us = 0;
        while too_fast_us + 1 < best_us {
            let middle_us = too_fast_us + (best_us - too_fast_us) / 2;
            match self.within(middle_us) {
                Ok(cover) => {
                    best_us = self.slowest_us(&cover);
                    best = cover;
                }
                Err(_furthest) => too_fast_us = middle_us,
            }
        }
        Ok(best)
    }

    /// A line-up in which no seat takes longer, or how far one from the head gets.
    fn within(&self, limit_us: u64) -> Result<Cover, u16> {
        let reach = self.reach(limit_us);
        match self.cover(&mirror(&reach, self.stages)) {
            Ok(cover) => Ok(turn(&cover, self.stages)),
            Err(_from_the_end) => self.cover(&reach),
        }
    }

    /// Seat after seat from stage 0 on, those that reach furthest first.
    fn cover(&self, reach: &Reach) -> Result<Cover, u16> {
        let width = (STEPS_MAX / self.workers.len()).clamp(4, 512);
        // Where seats may be too few or neighbours apart, a shorter seat can be what makes a line-up possible.
        let any_end = self.seats_min > 1 || self.apart.iter().any(|others| !others.is_empty());
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
                    if partial.uses(who) || !self.may_follow(partial.last(), who) {
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
        let width = (MOVES_MAX / (self.workers.len() * usize::from(self.stages))).clamp(4, 512);
        let mut by_end: Vec<Vec<Partial>> = vec![Vec::new(); usize::from(self.stages) + 1];
        by_end[0].push(Partial::default());
        for first in 0..self.stages {
            let here = std::mem::take(&mut by_end[usize::from(first)]);
            for partial in self.narrowed(here, width) {
                for who in self.indices() {
                    if partial.uses(who) || !self.may_follow(partial.last(), who) {
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
