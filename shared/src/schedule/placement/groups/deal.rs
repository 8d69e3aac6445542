//! Ways to deal volunteers into groups: how many groups, from how many volunteers, in which tiers, balanced by what.

use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};

use super::super::rate::Rate;
use super::{Groups, Pool, speed};
use crate::units::{StageId, StageRange};

/// Numbers of pipelines that are all tried; of more, each by a third more than the one before.
const COUNTS_MAX: usize = 12;
/// Groups of a deal that are looked at: of the first ones, of as many more, of twice as many more, and so on.
const SAMPLES: usize = 3;
/// Volunteers that are added to a group that can't be placed, one after the other twice as many.
const ADDED: [usize; 3] = [1, 2, 4];
/// Volunteers in no group that trials look at: the fastest, and those of most memory.
const LEFT_MAX: usize = 128;

/// What the groups of a tier get an equal share of.
#[derive(Clone, Copy, Debug)]
enum By {
    Memory,
    Speed,
}

/// One way to deal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deal {
    pub(super) pipelines: usize,
    /// The fastest so many are dealt.
    dealt: usize,
    /// Groups of one tier are faster than those of the next.
    tiers: usize,
    by: By,
    /// Each group begins with one of those who are best for the hardest stage.
    anchored: bool,
}

impl Pool<'_> {
    /// Ways that are looked at, those of most pipelines first.
    pub(super) fn deals(&self) -> Vec<Deal> {
        let mut counts = BTreeSet::from([self.pipelines_max]);
        let mut count = 1;
        while count < self.pipelines_max {
            counts.insert(count);
            count += if count < COUNTS_MAX { 1 } else { count / 3 };
        }
        // Where all stages are alike, nobody is best for one of them.
        let anchored: &[bool] = if self.anchors.is_empty() {
            &[false]
        } else {
            &[true, false]
        };
        let mut deals = Vec::new();
        for &pipelines in counts.iter().rev() {
            let seats_min = self.given.seats_min.max(1);
            let full = self.stages.max(seats_min);
            // One more than can sit leaves a choice.
            let sizes =
                [full + 1, full.div_ceil(2), full.div_ceil(4)].map(|size| size.max(seats_min));
            let dealt: BTreeSet<usize> = sizes
                .map(|size| pipelines.saturating_mul(size).min(self.all.len()))
                .into();
            let root = pipelines.isqrt();
            let tiers = BTreeSet::from([1, root, pipelines]);
            for &dealt in dealt.iter().rev() {
                for &tiers in &tiers {
                    let both = [By::Memory, By::Speed];
                    // A group that is a tier gets all of it, however it is dealt.
                    let ways = if tiers == pipelines {
                        &both[..1]
                    } else {
                        &both
                    };
                    for &anchored in anchored {
                        deals.extend(ways.iter().map(|&by| Deal {
                            pipelines,
                            dealt,
                            tiers,
                            by,
                            anchored,
                        }));
                    }
                }
            }
        }
        deals
    }

    /// The groups of a deal. Who is in none is in none.
    pub(super) fn dealt(&self, deal: &Deal) -> Vec<Vec<u32>> {
        let anchors = if deal.anchored {
            &self.anchors[..]
        } else {
            &[]
        };
        let anchors = &anchors[..anchors.len().min(deal.pipelines)];
        let is_anchor = self.are_among(anchors.iter());
        let others = (0..).zip(&is_anchor).filter(|(_, is_anchor)| !**is_anchor);
        let others = others.map(|(one, _)| one).take(deal.dealt - anchors.len());
        let others: Vec<u32> = others.collect();
        let mut dealt = Vec::new();
        for tier in 0..deal.tiers {
            let groups = |tier: usize| tier * deal.pipelines / deal.tiers;
            let groups = groups(tier)..groups(tier + 1);
            let cut = |group: usize| group * others.len() / deal.pipelines;
            let tier = others[cut(groups.start)..cut(groups.end)].to_vec();
            let first = groups.map(|group| anchors.get(group).copied());
            dealt.extend(self.dealt_tier(deal.by, first.collect(), tier));
        }
        dealt
    }

    /// By index, whether a volunteer is one of these.
    fn are_among<'m>(&self, members: impl Iterator<Item = &'m u32>) -> Vec<bool> {
        let mut are = vec![false; self.all.len()];
        members.for_each(|one| are[*one as usize] = true);
        are
    }

    /// Groups that begin with `first`, if with anybody: whichever has the least gets the next one.
    fn dealt_tier(&self, by: By, first: Vec<Option<u32>>, mut tier: Vec<u32>) -> Vec<Vec<u32>> {
        if let (By::Memory, 2..) = (by, first.len()) {
            tier.sort_by_key(|&one| (Reverse(self.memory(one)), one));
        }
        let share = |one: u32| match by {
            By::Memory => u128::from(self.memory(one)),
            By::Speed => speed(self.all[one as usize].pace()),
        };
        let mut least: BTreeSet<(bool, u128, usize)> = (0..)
            .zip(&first)
            .map(|(group, first)| (false, first.map_or(0, share), group))
            .collect();
        let mut groups: Vec<Vec<u32>> = first.into_iter().map(Vec::from_iter).collect();
        for one in tier {
            let (_, has, group) = least.pop_first().expect("a tier has a group");
            groups[group].push(one);
            let is_enough = groups[group].len() >= self.given.seats_min;
            least.insert((is_enough, has + share(one), group));
        }
        groups
    }

    /// Memory of a volunteer that it can use.
    fn memory(&self, one: u32) -> u64 {
        self.all[one as usize].memory_bytes.min(self.enough_bytes)
    }

    /// About what the groups of a deal get done.
    pub(super) fn estimate(&mut self, deal: &Deal) -> Rate {
        let mut groups = self.dealt(deal);
        let mut sum = Rate::default();
        // Faster groups come first, and a few may do most: of ever more groups as many are looked at.
        let mut first = 0;
        while first < groups.len() {
            let end = (2 * first).max(first + SAMPLES).min(groups.len());
            let samples = SAMPLES.min(end - first);
            let looked_at: Rate = (0..samples)
                .map(|sample| first + (2 * sample + 1) * (end - first) / (2 * samples))
                .map(|group| self.glance(&mut groups[group]))
                .sum();
            sum = [sum, looked_at.times(end - first).shared_by(samples)]
                .into_iter()
                .sum();
            first = end;
        }
        sum
    }

    /// Groups that can't be placed get some of those in no group, or end.
    pub(super) fn mended(&mut self, dealt: Vec<Vec<u32>>) -> Groups {
        let is_dealt = self.are_among(dealt.iter().flatten());
        let left = (0..).zip(is_dealt).filter(|(_, is_dealt)| !is_dealt);
        let mut left: Vec<u32> = left.map(|(one, _)| one).collect();
        left.sort_by_key(|&one| (Reverse(self.memory(one)), one));
        let mut left = VecDeque::from(left);
        let mut groups = Groups {
            members: vec![Vec::new()],
            rates: vec![Rate::default()],
        };
        for mut members in dealt {
            let mut rate = self.glance(&mut members);
            for count in ADDED {
                if rate > Rate::default() || left.len() < count {
                    break;
                }
                members.extend(left.drain(..count));
                rate = self.glance(&mut members);
            }
            if rate > Rate::default() {
                groups.members.push(members);
                groups.rates.push(rate);
            } else {
                left.extend(members);
            }
        }
        let mut left = Vec::from(left);
        if left.len() > LEFT_MAX {
            left.sort_by_key(|&one| (Reverse(self.memory(one)), one));
            let mut slower = left.split_off(LEFT_MAX / 2);
            slower.sort_unstable();
            left.extend(slower.into_iter().take(LEFT_MAX / 2));
        }
        groups.members[0] = left;
        groups
    }

    /// Those who can hold the stage that takes most memory, fastest first; nobody if other stages are much like it.
    pub(super) fn best_for_the_hardest(&self) -> Vec<u32> {
        let costs = self.given.costs;
        let one_stage = StageRange::one;
        let cost = |stage: StageId| {
            let stage = one_stage(stage);
            (costs.memory_of(stage), costs.milliblocks_of(stage))
        };
        let stages = costs.all().iter();
        let hardest = stages.clone().max_by_key(|&stage| cost(stage));
        let hardest = hardest.expect("a model has a stage");
        let (memory, work) = cost(hardest);
        let is_alike = |stage: StageId| {
            let (own_memory, own_work) = cost(stage);
            memory <= own_memory.saturating_mul(3) / 2 && work <= own_work.saturating_mul(3) / 2
        };
        if stages.clone().all(is_alike) {
            return Vec::new();
        }
        let able = (0..)
            .zip(&self.all)
            .filter(|(_, one)| one.memory_bytes >= memory);
        let mut able: Vec<(u64, u32)> = able
            .map(|(index, one)| (one.seat_us(costs, one_stage(hardest)), index))
            .collect();
        able.sort_unstable();
        able.truncate(self.pipelines_max);
        able.into_iter().map(|(_, index)| index).collect()
    }
}
