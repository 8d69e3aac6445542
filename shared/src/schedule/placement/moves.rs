//! Betters a line-up by trial: exchanges, moves, adds and leaves out volunteers, and cuts the stages anew each time.
//!
//! Walks over orders of volunteers. An order that is hardly slower than the best one so far is gone on from; one
//! that beats it becomes the best. How much slower differs from walk to walk, each of which begins at the best. For a given order the cut is exact: which ends a seat can have follows from the
//! ends of the one before. Which moves are tried follows from a fixed seed: equal questions get equal answers.
//!
//! Invariant: what comes out is as fast as what went in, or faster, and as possible.

use super::search::{Cover, LIMIT_MAX, Problem, Reach};
use crate::random::Words;

/// Trials at most, however small the model.
const TRIALS_MAX: usize = 16_000;
/// Trials of one walk.
const WALK_MAX: usize = 1_000;
/// By how many percent an order may be slower than the best, walk after walk.
const SLOWER_PERCENT: [u64; 4] = [0, 4, 12, 30];

/// The best time so far, and what volunteers reach in less, and in the time that a walk allows.
struct Walk<'a> {
    problem: &'a Problem<'a>,
    best_us: u64,
    reach_in_less: Reach,
    slower_percent: u64,
    allowed_us: u64,
    reach: Reach,
    /// Ends that the seats of the order looked at last can have, seat by seat.
    ends: Vec<bool>,
}

/// The best that bounded trial makes of `cover`.
pub(super) fn bettered(problem: &Problem<'_>, cover: Cover) -> Cover {
    let work_max = problem.effort().work_max;
    if work_max == 0 {
        return cover;
    }
    let mut words = Words::new("placement trials", &[]);
    let mut walk = Walk::new(problem, &cover);
    let mut best = cover;
    let mut order = Vec::new();
    let mut work = 0;
    for trial in 0..TRIALS_MAX {
        if work > work_max {
            break;
        }
        if trial % WALK_MAX == 0 {
            order = best.iter().map(|&(who, _)| who).collect();
            walk.allow(SLOWER_PERCENT[trial / WALK_MAX % SLOWER_PERCENT.len()]);
        }
        while let Some(cover) = walk.faster(&order) {
            walk.take(&cover);
            best = cover;
        }
        let Some(next) = changed(problem, &order, &best, &mut words) else {
            continue;
        };
        work += next.len() * usize::from(problem.stages());
        if walk.allows(&next) {
            order = next;
        }
    }
    best
}

impl<'a> Walk<'a> {
    fn new(problem: &'a Problem<'a>, cover: &Cover) -> Self {
        let mut walk = Self {
            problem,
            best_us: 0,
            reach_in_less: Reach::new(),
            slower_percent: 0,
            allowed_us: 0,
            reach: Reach::new(),
            ends: Vec::new(),
        };
        walk.take(cover);
        walk
    }

    fn take(&mut self, cover: &Cover) {
        self.best_us = self.problem.slowest_us(cover);
        self.reach_in_less = self.problem.reach(self.best_us.saturating_sub(1));
        self.allow(self.slower_percent);
    }

    fn allow(&mut self, slower_percent: u64) {
        let allowed_us = u128::from(self.best_us) * u128::from(100 + slower_percent) / 100;
        self.slower_percent = slower_percent;
        self.allowed_us = u64::try_from(allowed_us)
            .unwrap_or(LIMIT_MAX)
            .min(LIMIT_MAX);
        self.reach = self.problem.reach(self.allowed_us);
    }

    fn allows(&mut self, order: &[u16]) -> bool {
        let (problem, ends) = (self.problem, &mut self.ends);
        fill_ends(problem, &self.reach, self.allowed_us, order, ends)
    }

    /// This order's line-up within less than the best time, if it has one.
    fn faster(&mut self, order: &[u16]) -> Option<Cover> {
        let less_us = self.best_us.checked_sub(1)?;
        let reach = &self.reach_in_less;
        fill_ends(self.problem, reach, less_us, order, &mut self.ends).then(|| {
            let row = usize::from(self.problem.stages()) + 1;
            let mut cover = Cover::new();
            let mut end = self.problem.stages();
            for (seat, &who) in order.iter().enumerate().rev() {
                cover.push((who, end));
                let begins = (0..end).find(|&first| {
                    let is_begin = match seat {
                        0 => first == 0,
                        _ => self.ends[(seat - 1) * row + usize::from(first)],
                    };
                    is_begin && reach[usize::from(who)][usize::from(first)] >= end
                });
                end = begins.expect("an end that can be had has a beginning");
            }
            cover.reverse();
            cover
        })
    }
}

/// Which ends each seat of an order can have; whether the last can have the last stage.
fn fill_ends(
    problem: &Problem<'_>,
    reach: &Reach,
    limit_us: u64,
    order: &[u16],
    ends: &mut Vec<bool>,
) -> bool {
    let are_linked = order
        .windows(2)
        .all(|pair| problem.border_us(usize::from(pair[0]), usize::from(pair[1])) <= limit_us);
    if !are_linked || order.len() < problem.seats_min() {
        return false;
    }
    let stages = usize::from(problem.stages());
    let row = stages + 1;
    ends.clear();
    ends.resize(order.len() * row, false);
    for (seat, &who) in order.iter().enumerate() {
        let reach = &reach[usize::from(who)];
        let mut furthest = 0;
        for end in 1..row {
            let is_begin = match seat {
                0 => end == 1,
                _ => ends[(seat - 1) * row + end - 1],
            };
            if is_begin {
                furthest = furthest.max(usize::from(reach[end - 1]));
            }
            ends[seat * row + end] = end <= furthest;
        }
    }
    ends[order.len() * row - 1]
}

/// An order that differs in one thing; `None` if the lot fell on one that can't be.
fn changed(
    problem: &Problem<'_>,
    order: &[u16],
    best: &Cover,
    words: &mut Words,
) -> Option<Vec<u16>> {
    let draw = |words: &mut Words, below: usize| words.next_word() as usize % below;
    let mut next = order.to_vec();
    let at = seat_by_lot(problem, order, best, words);
    match draw(words, 8) {
        0..3 => next[at] = newcomer(problem, order, words)?,
        3 => {
            let other = draw(words, next.len());
            next.swap(at, other);
        }
        4 => {
            if next.len() == usize::from(problem.stages()) {
                return None;
            }
            let who = newcomer(problem, order, words)?;
            next.insert(draw(words, next.len() + 1), who);
        }
        5 => {
            if next.len() == 1 {
                return None;
            }
            next.remove(at);
        }
        6 => {
            let who = next.remove(at);
            let to = draw(words, next.len() + 1);
            next.insert(to, who);
        }
        _ => {
            let other = draw(words, next.len());
            next[at.min(other)..=at.max(other)].reverse();
        }
    }
    Some(next)
}

/// Any seat; half of the time one that holds the best line-up up, where it still sits in this order.
fn seat_by_lot(problem: &Problem<'_>, order: &[u16], best: &Cover, words: &mut Words) -> usize {
    let word = words.next_word() as usize;
    let slowest = problem.slowest_seat(best);
    let held_up = order.iter().position(|&who| Some(who) == slowest);
    match held_up {
        Some(seat) if word & 1 == 0 => seat,
        Some(_) | None => (word >> 1) % order.len(),
    }
}

/// Somebody without a seat, a fast one rather than a slow one.
fn newcomer(problem: &Problem<'_>, order: &[u16], words: &mut Words) -> Option<u16> {
    let volunteers = problem.volunteers();
    let mut draw = || words.next_word() as usize % volunteers;
    let who = u16::try_from(draw().min(draw())).expect("a close look is at few volunteers");
    (!order.contains(&who)).then_some(who)
}
