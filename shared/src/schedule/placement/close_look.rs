//! Who can matter: from thousands of volunteers the few that a search has to look at.
//!
//! Whoever is beaten in speed, memory and way to the host by as many others as there can be seats is left out: one of
//! them is free for its seat. Pairs of whom something is known need more to choose from. Whoever holds state or
//! has a seat stays, and so do those whose measured links are best.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::{Candidate, Given, StageCosts};
use crate::units::PeerId;

/// Volunteers that are looked at closely for their figures: a third each for speed, memory and link.
const CLOSE_LOOK_MAX: usize = 255;
/// ... and for the state they hold, or for their measured links.
const KNOWN_MAX: usize = 128;

struct Looked<'a> {
    one: &'a Candidate,
    pace: u128,
    /// No more than all stages take.
    memory_bytes: u64,
    /// What a border to another like it would cost.
    border_us: u64,
}

impl Looked<'_> {
    fn is_as_good_as(&self, other: &Self) -> bool {
        self.pace <= other.pace
            && self.memory_bytes >= other.memory_bytes
            && self.border_us <= other.border_us
            && self.one.delay_us <= other.one.delay_us
    }

    fn order(&self) -> (u128, Reverse<u64>, u64, PeerId) {
        let memory = Reverse(self.memory_bytes);
        (self.pace, memory, self.border_us, self.one.peer)
    }
}

/// Those who can matter, fastest first. `seated` ones stay.
pub(super) fn close_look<'a>(given: &Given<'a>, seated: &BTreeSet<PeerId>) -> Vec<&'a Candidate> {
    let costs = given.costs;
    let enough = costs.memory_of(costs.all());
    let look = |one: &'a Candidate| Looked {
        one,
        pace: one.pace(),
        memory_bytes: one.memory_bytes.min(enough),
        border_us: one.border_to_its_like_us(costs),
    };
    let mut sorted: Vec<Looked<'a>> = given.volunteers.iter().map(look).collect();
    sorted.sort_by_key(Looked::order);
    if sorted.len() <= super::exact::VOLUNTEERS_MAX {
        return sorted.into_iter().map(|looked| looked.one).collect();
    }
    let stages = costs.all().count();
    let mut chosen: BTreeSet<usize> = front(&sorted, stages + given.links.len().min(stages));
    let mut holders: Vec<usize> = (0..sorted.len())
        .filter(|&index| !sorted[index].one.holds.is_empty())
        .collect();
    holders.sort_by_key(|&index| (Reverse(costs.held_bytes(&sorted[index].one.holds)), index));
    chosen.extend(holders.into_iter().take(KNOWN_MAX.min(2 * stages)));
    chosen.extend((0..sorted.len()).filter(|&index| seated.contains(&sorted[index].one.peer)));
    chosen.extend(best_linked(&sorted, given, stages));
    chosen.into_iter().map(|index| sorted[index].one).collect()
}

impl Candidate {
    /// What a border to another like it would cost.
    pub(super) fn border_to_its_like_us(&self, costs: &StageCosts) -> u64 {
        let rate = self.rate();
        costs
            .border()
            .cost_us(2 * self.delay_us.min(u64::MAX / 2), rate, self.relay_only)
    }
}

/// Those that fewer than `depth` others beat; the best of each kind, if they are too many.
fn front(sorted: &[Looked<'_>], depth: usize) -> BTreeSet<usize> {
    let mut front: Vec<usize> = Vec::new();
    for (index, looked) in sorted.iter().enumerate() {
        // Whoever beats it comes before it in the order, and enough of those that do are in the front.
        let beaten_by = front
            .iter()
            .filter(|&&other| sorted[other].is_as_good_as(looked));
        if beaten_by.take(depth).count() < depth {
            front.push(index);
        }
    }
    if front.len() <= CLOSE_LOOK_MAX {
        return front.into_iter().collect();
    }
    let share = CLOSE_LOOK_MAX / 3;
    let mut chosen: BTreeSet<usize> = front.iter().copied().take(share).collect();
    front.sort_by_key(|&index| (Reverse(sorted[index].memory_bytes), index));
    chosen.extend(front.iter().copied().take(share));
    front.sort_by_key(|&index| (sorted[index].border_us, index));
    chosen.extend(front.iter().copied().take(share));
    chosen
}

/// Both ends of the measured links that cost least.
fn best_linked(sorted: &[Looked<'_>], given: &Given<'_>, stages: usize) -> Vec<usize> {
    let indices: std::collections::BTreeMap<PeerId, usize> = (0..)
        .zip(sorted)
        .map(|(index, looked)| (looked.one.peer, index))
        .collect();
    let ends = |(a, b): (PeerId, PeerId)| Some((*indices.get(&a)?, *indices.get(&b)?));
    let known = sorted
        .iter()
        .flat_map(|looked| given.links.known_of(looked.one.peer));
    let mut borders: Vec<(u64, usize, usize)> = known
        .filter_map(ends)
        .filter_map(|(a, b)| {
            let border = given.costs.border();
            let us = given
                .links
                .border_us(sorted[a].one, sorted[b].one, border)?;
            Some((us, a.min(b), a.max(b)))
        })
        .collect();
    borders.sort_unstable();
    borders.truncate(KNOWN_MAX.min(2 * stages));
    borders.into_iter().flat_map(|(_, a, b)| [a, b]).collect()
}
