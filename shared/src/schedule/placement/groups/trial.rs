//! Betters groups by trial: volunteers change groups, groups join and part. Which are tried follows from a fixed seed.
//!
//! Walks as [`super::super::moves`] does, over groups instead of orders: what is hardly worse than the best so far is
//! gone on from, and how much worse differs from walk to walk.

use super::{Groups, Pool, Rate, is_better};
use crate::random::Words;

/// Work that trials of one call spend, as [`Pool::work`] counts it.
const WORK_MAX: usize = 3_000_000;
/// Trials at most, however small the groups.
const TRIALS_MAX: usize = 1_500;
/// Trials of one walk.
const WALK_MAX: usize = 250;
/// By how many percent groups may get less done than the best, walk after walk.
const LESS_PERCENT: [u64; 3] = [0, 3, 10];

/// Two groups, the first perhaps those in none, and who is in them from now on.
struct Change {
    at: [usize; 2],
    members: [Vec<u32>; 2],
}

impl Pool<'_> {
    /// The best that bounded trial makes of `groups`.
    pub(super) fn bettered(&mut self, groups: Groups) -> Groups {
        let mut words = Words::new("grouping trials", &[]);
        let mut best = groups.clone();
        let mut now = groups;
        let mut work = 0;
        for trial in 0..TRIALS_MAX {
            if work > WORK_MAX {
                break;
            }
            if trial % WALK_MAX == 0 {
                now = best.clone();
            }
            let less = LESS_PERCENT[trial / WALK_MAX % LESS_PERCENT.len()];
            let Some(mut change) = self.changed(&now, &mut words) else {
                continue;
            };
            work += self.work(&change);
            let rates = [0, 1].map(|end| match change.at[end] {
                0 => Rate::default(),
                _ => self.glance(&mut change.members[end]),
            });
            let before: Rate = change
                .at
                .iter()
                .filter_map(|&at| now.rates.get(at))
                .copied()
                .sum();
            let (total, _) = now.worth();
            let after: Rate = [total.over(before)].into_iter().chain(rates).sum();
            let (best_total, best_count) = best.worth();
            if after.is_below(best_total.less(less)) {
                continue;
            }
            now.take(change, rates);
            if is_better(now.worth(), (best_total, best_count)) {
                best = now.clone();
            }
        }
        best
    }

    /// About how many steps it takes to look at a change.
    fn work(&self, change: &Change) -> usize {
        let of = |members: &Vec<u32>| match members.len() {
            few @ ..=6 => (few * few) << few,
            many => 40 * many * many.min(self.stages),
        };
        let groups = change.at.iter().zip(&change.members);
        let looked_at =
            groups.filter(|(at, members)| **at > 0 && !self.seen.contains_key(*members));
        looked_at.map(|(_, members)| of(members)).sum()
    }

    /// Something that may be worth more; `None` if the lot fell on what can't be.
    fn changed(&self, groups: &Groups, words: &mut Words) -> Option<Change> {
        let mut draw = |below: usize| words.next_word() as usize % below.max(1);
        // One more than there are stands for a new one.
        let count = groups.members.len();
        let at = [draw(count), draw(count + 1)];
        let is_new = at[1] == count;
        if at[0] == at[1] || (is_new && count > self.pipelines_max) {
            return None;
        }
        let mut from = groups.members[at[0]].clone();
        let mut to = groups.members.get(at[1]).cloned().unwrap_or_default();
        if from.is_empty() {
            return None;
        }
        match draw(8) {
            0..3 if !to.is_empty() => {
                let (one, other) = (draw(from.len()), draw(to.len()));
                std::mem::swap(&mut from[one], &mut to[other]);
            }
            0..5 => to.push(from.swap_remove(draw(from.len()))),
            5 if at[0] > 0 => to.append(&mut from),
            5 | 6 => {
                let most = (from.len() / 2).clamp(1, self.stages);
                for _ in 0..=draw(most) {
                    if !from.is_empty() {
                        to.push(from.swap_remove(draw(from.len())));
                    }
                }
            }
            _ => {
                if at.contains(&0) {
                    return None;
                }
                from.append(&mut to);
                from.sort_unstable();
                let (one, other) = from.into_iter().partition(|_| draw(2) == 0);
                (from, to) = (one, other);
            }
        }
        let size_max = 2 * self.stages.max(self.given.seats_min);
        let mut members = [from, to];
        for (at, members) in at.iter().zip(&mut members) {
            if *at > 0 && members.len() > size_max {
                return None;
            }
            members.sort_unstable();
        }
        Some(Change { at, members })
    }
}

impl Groups {
    fn take(&mut self, change: Change, rates: [Rate; 2]) {
        for ((at, members), rate) in change.at.into_iter().zip(change.members).zip(rates) {
            if at == self.members.len() {
                self.members.push(members);
                self.rates.push(rate);
            } else {
                self.members[at] = members;
                self.rates[at] = rate;
            }
        }
        // Empty ones are no groups; the first stays for those in none.
        let mut at = 1;
        while at < self.members.len() {
            if self.members[at].is_empty() {
                self.members.swap_remove(at);
                self.rates.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }
}
