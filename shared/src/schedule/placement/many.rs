//! Places several pipelines: keeps those that can stay, repairs those that lost a seat, forms new ones from spares.
//!
//! Pipelines are disjoint, so a run gets done what they get done together: the sum of one by each one's slowest part.
//! What is kept, repaired and added follows step by step from what there is: a step adds pipelines
//! from spares alone, or changes old ones where that gains more than [`super::GAIN_PERCENT_MIN`] of the
//! whole run, a few first, all at once only if that does not suffice. Steps go on until none is left to be taken.
//!
//! Begin with [`assign_all`]. How volunteers are dealt to new pipelines is decided in `groups`; a single
//! pipeline is placed by [`assign`] as before.
//!
//! Invariant: what came out, given again, comes out again; each step gets more samples done, so that they end.

use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::groups::{grouped, rate_max};
use super::rate::Rate;
use super::search::Effort;
use super::spares::Spares;
use super::{Candidate, Given, LineUp, NoPlacement, assign, assign_with};
use crate::units::{PeerId, PipelineId};

/// Pipelines that one step tries to better, each by itself: those with most to gain.
const BETTERED_MAX: usize = 16;

/// Line-ups by pipeline.
type LineUps = BTreeMap<PipelineId, LineUp>;

/// Places at most `pipelines_max` pipelines; at least one. `old` are the present line-ups.
///
/// A pipeline that keeps most of its volunteers keeps its number; a new one gets the lowest that is free.
///
/// # Errors
/// What is waited for before even one pipeline can be placed, in words.
pub fn assign_all(
    given: &Given<'_>,
    old: &BTreeMap<PipelineId, LineUp>,
    pipelines_max: u16,
) -> Result<BTreeMap<PipelineId, LineUp>, NoPlacement> {
    let run = Run::new(given, usize::from(pipelines_max.max(1)));
    let old = run.at_most(old);
    if run.pipelines_max == 1 {
        let line_up = assign(given, old.values().next())?;
        return Ok(numbered(&old, vec![line_up]));
    }
    let mut now = run.kept(&old);
    if now.is_empty() {
        now = numbered(&old, run.afresh().clone());
    }
    if now.is_empty() {
        now = numbered(&old, vec![assign(given, None)?]);
    }
    while let Some(next) = run.step(&now) {
        now = next;
    }
    Ok(now)
}

/// Line-ups under their numbers: that of the old one most of whose volunteers are in it, else the lowest free.
fn numbered(old: &LineUps, mut line_ups: Vec<LineUp>) -> LineUps {
    line_ups.sort_by_key(|line_up| line_up.peers().min());
    let seats = old
        .iter()
        .flat_map(|(id, line_up)| line_up.peers().map(|peer| (peer, *id)));
    let seats: BTreeMap<PeerId, PipelineId> = seats.collect();
    let mut new = LineUps::new();
    let mut unnumbered = Vec::new();
    for line_up in line_ups {
        let mut stayed: BTreeMap<PipelineId, usize> = BTreeMap::new();
        for id in line_up.peers().filter_map(|peer| seats.get(&peer)) {
            *stayed.entry(*id).or_default() += 1;
        }
        let mostly = stayed
            .iter()
            .find(|(id, count)| 2 * **count > old[id].seats.len());
        match mostly {
            Some((id, _)) if !new.contains_key(id) => {
                new.insert(*id, line_up);
            }
            Some(_) | None => unnumbered.push(line_up),
        }
    }
    for line_up in unnumbered {
        let free = (0..=u16::MAX)
            .map(PipelineId)
            .find(|id| !new.contains_key(id));
        new.insert(free.expect("fewer pipelines than numbers"), line_up);
    }
    new
}

impl LineUp {
    fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.seats.iter().map(|(peer, _)| *peer)
    }
}

/// A pipeline whose line-up is no longer possible.
struct Lost<'a, 'l> {
    id: PipelineId,
    old: &'l LineUp,
    /// Those of its volunteers that are still here.
    rest: Vec<&'a Candidate>,
}

/// One question of placement.
struct Run<'a> {
    given: &'a Given<'a>,
    known: BTreeMap<PeerId, &'a Candidate>,
    pipelines_max: usize,
    /// What would be placed if nobody had a seat.
    afresh: OnceCell<Vec<LineUp>>,
}

impl<'a> Run<'a> {
    fn new(given: &'a Given<'a>, pipelines_max: usize) -> Self {
        let known = given.volunteers.iter().map(|one| (one.peer, one));
        Self {
            given,
            known: known.collect(),
            pipelines_max,
            afresh: OnceCell::new(),
        }
    }

    fn afresh(&self) -> &Vec<LineUp> {
        self.afresh.get_or_init(|| {
            let everybody = self.known.values().copied().collect();
            grouped(self.given, everybody, self.pipelines_max, Effort::WHOLE)
        })
    }

    fn seated(&self, line_up: &LineUp) -> Vec<&'a Candidate> {
        let known = line_up
            .peers()
            .filter_map(|peer| self.known.get(&peer).copied());
        known.collect()
    }

    /// Everybody but these.
    fn spares(&self, seated: &BTreeSet<PeerId>) -> Vec<&'a Candidate> {
        let spares = self
            .known
            .values()
            .filter(|one| !seated.contains(&one.peer));
        spares.copied().collect()
    }

    /// What a line-up gets done; `None` if it is not possible.
    fn rate(&self, line_up: &LineUp) -> Option<Rate> {
        let volunteers: Vec<Candidate> = self.seated(line_up).into_iter().cloned().collect();
        let given = Given {
            volunteers: &volunteers,
            ..*self.given
        };
        let possible = line_up.is_possible(&given).then_some(line_up)?;
        possible.slowest_us(&given).map(Rate::of)
    }

    fn rates<'l>(&self, line_ups: impl IntoIterator<Item = &'l LineUp>) -> Rate {
        line_ups
            .into_iter()
            .filter_map(|line_up| self.rate(line_up))
            .sum()
    }

    /// No more pipelines than there may be: the fastest.
    fn at_most(&self, old: &LineUps) -> LineUps {
        if old.len() <= self.pipelines_max {
            return old.clone();
        }
        let mut fastest: Vec<(&PipelineId, &LineUp)> = old.iter().collect();
        fastest.sort_by_cached_key(|(id, line_up)| (Reverse(self.rate(line_up)), **id));
        fastest.truncate(self.pipelines_max);
        fastest
            .into_iter()
            .map(|(id, line_up)| (*id, line_up.clone()))
            .collect()
    }

    /// Old pipelines: as they are where they are possible, else repaired, else dissolved.
    fn kept(&self, old: &LineUps) -> LineUps {
        let mut kept = LineUps::new();
        let mut taken: BTreeSet<PeerId> = BTreeSet::new();
        let mut lost: Vec<(PipelineId, &LineUp)> = Vec::new();
        for (id, line_up) in old {
            let is_free = line_up.peers().all(|peer| !taken.contains(&peer));
            if is_free && self.rate(line_up).is_some() {
                taken.extend(line_up.peers());
                kept.insert(*id, line_up.clone());
            } else {
                lost.push((*id, line_up));
            }
        }
        let mut lost: Vec<Lost<'a, '_>> = lost
            .into_iter()
            .map(|(id, old)| {
                let mut rest = self.seated(old);
                rest.retain(|one| taken.insert(one.peer));
                Lost { id, old, rest }
            })
            .collect();
        let mut spares = Spares::new(self.spares(&taken), self.given);
        while !lost.is_empty() {
            lost.retain(|lost| {
                let repaired = self.repaired(lost, &mut spares);
                let is_lost = repaired.is_none();
                kept.extend(repaired.map(|line_up| (lost.id, line_up)));
                is_lost
            });
            // Who can't be repaired may be what the others lack: half of them each time, or this would take long.
            lost.sort_by_key(|lost| (Reverse(lost.rest.len()), lost.id));
            for dissolved in lost.split_off(lost.len() / 2) {
                spares.add(dissolved.rest);
            }
        }
        kept
    }

    /// A line-up from what is left of a pipeline and from spares.
    fn repaired(&self, lost: &Lost<'a, '_>, spares: &mut Spares<'a>) -> Option<LineUp> {
        let here: BTreeSet<PeerId> = lost.rest.iter().map(|one| one.peer).collect();
        let needed = lost
            .old
            .seats
            .iter()
            .filter(|(peer, _)| !here.contains(peer));
        let needed = needed.flat_map(|(_, stages)| stages.iter());
        let few = spares.few(needed);
        let volunteers = lost.rest.iter().chain(&few).map(|one| (*one).clone());
        let volunteers: Vec<Candidate> = volunteers.collect();
        let given = Given {
            volunteers: &volunteers,
            ..*self.given
        };
        let effort = Effort::shared_by(self.pipelines_max.min(self.known.len()));
        let line_up = assign_with(&given, Some(lost.old), effort).ok()?;
        let seated: BTreeSet<PeerId> = line_up.peers().collect();
        spares.take(&seated, &self.known);
        let rest = lost.rest.iter().filter(|one| !seated.contains(&one.peer));
        spares.add(rest.copied().collect());
        Some(line_up)
    }

    /// What to do next with line-ups that are all possible, if anything.
    fn step(&self, now: &LineUps) -> Option<LineUps> {
        let seated = now.values().flat_map(LineUp::peers).collect();
        let spares = self.spares(&seated);
        let missing = self.pipelines_max - now.len();
        let effort = Effort::shared_by(now.len() + 1);
        let added = grouped(self.given, spares.clone(), missing, effort);
        if !added.is_empty() {
            let all = now.values().cloned().chain(added);
            return Some(numbered(now, all.collect()));
        }
        let rate = self.rates(now.values());
        let most = rate_max(self.known.values().copied(), self.given, self.pipelines_max);
        if !most.is_worth_more_than(rate) {
            return None;
        }
        if let Some(next) = self.bettered(now, rate, spares) {
            return Some(next);
        }
        let afresh = self.afresh();
        let gains = self.rates(afresh).is_worth_more_than(rate);
        gains.then(|| numbered(now, afresh.clone()))
    }

    /// Pipelines bettered one by one with spares, or parted, if together that is worth it.
    fn bettered(&self, now: &LineUps, rate: Rate, spares: Vec<&'a Candidate>) -> Option<LineUps> {
        let mut spares = Spares::new(spares, self.given);
        let mut next = now.clone();
        let mut missing = self.pipelines_max - now.len();
        let few = spares.few([]);
        let to_gain = now.iter().filter_map(|(id, line_up)| {
            let pool = self.seated(line_up).into_iter().chain(few.iter().copied());
            let (own, most) = (self.rate(line_up)?, rate_max(pool, self.given, 1 + missing));
            most.is_worth_more_than(own)
                .then(|| (Reverse(most.over(own)), *id, own))
        });
        let mut to_gain: Vec<(Reverse<Rate>, PipelineId, Rate)> = to_gain.collect();
        to_gain.sort_unstable();
        to_gain.truncate(BETTERED_MAX);
        let most: Rate = to_gain.iter().map(|(gain, ..)| gain.0).chain([rate]).sum();
        if !most.is_worth_more_than(rate) {
            return None;
        }
        let mut parted = Vec::new();
        for (_, id, own) in to_gain {
            let mut pool = self.seated(&now[&id]);
            pool.extend(spares.few([]));
            let effort = Effort::shared_by(now.len());
            let line_ups = grouped(self.given, pool, 1 + missing, effort);
            if self.rates(&line_ups).is_worth_more_than(own) {
                missing -= line_ups.len() - 1;
                spares.add(self.seated(&now[&id]));
                let seated = line_ups.iter().flat_map(LineUp::peers).collect();
                spares.take(&seated, &self.known);
                next.remove(&id);
                parted.extend(line_ups);
            }
        }
        let all: Vec<LineUp> = next.into_values().chain(parted).collect();
        let gains = self.rates(&all).is_worth_more_than(rate);
        gains.then(|| numbered(now, all))
    }
}
