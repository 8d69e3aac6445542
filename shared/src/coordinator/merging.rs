//! How a round ends: what its pipelines trained is committed as it is, where there is one, or merged.
//!
//! Once all pipelines of the round hold what they trained, one attempt after the other is made to merge it, until all
//! replicas of each stage hold the same bits. An attempt that loses a pipeline is void for good; the next one
//! goes without. Where one pipeline is left, what it trained is the round's result: there is no outer step.
//!
//! Invariant: an attempt ends in a commit, or in another one of fewer pipelines, or (once where replicas disagree one
//! against one, once where it came to nothing at a seat) of the same: so a round has an end.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Coordinator;
use super::history::SeatRow;
use super::pipeline::{Phase, Pipeline};
use crate::limits::{MERGE_BYTES_PER_SECOND_MIN, MERGE_MAX, OVERTAKEN_WAIT_MIN};
use crate::schedule::grouping::{self, Replica};
use crate::schedule::placement::BYTES_PER_SECOND_ASSUMED;
use crate::units::{Attempt, Digest, PeerId, PipelineId, Span, StageId, Time};
use crate::wire::frame::Place;
use crate::wire::merge::{Group, TILE};
use crate::wire::signal::{Down, Held, MergeOrder, Neighbour};

/// The attempt that is under way.
#[derive(Clone, Debug)]
pub(super) struct Merging {
    pub(super) attempt: Attempt,
    pub(super) members: Vec<Member>,
    /// Who averages what with whom, in order of stages.
    plans: Vec<Plan>,
    /// When a seat last had its result, or it began.
    pub(super) progressed: Time,
    /// How long that may take.
    patience: Span,
    repeats: Repeats,
}

/// One pipeline of a merge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) pipeline: PipelineId,
    /// Samples that it trained in the round: its weight in the average.
    pub(super) samples: u64,
}

/// One stage's replicas in a merge.
#[derive(Clone, Debug)]
struct Plan {
    /// One for each member, in order.
    holders: Vec<Neighbour>,
    /// Each one's groups, in order of levels.
    groups: Vec<Vec<Arc<grouping::Group>>>,
}

/// Why an attempt was made again with the same members: each once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Repeats {
    /// Replicas disagreed, one against one.
    tied: bool,
    /// It came to nothing at a seat.
    failed: bool,
}

impl Merging {
    /// Which member a pipeline is: they are in order of their numbers.
    fn member(&self, id: PipelineId) -> Option<usize> {
        self.members
            .binary_search_by_key(&id, |it| it.pipeline)
            .ok()
    }
}

impl Plan {
    /// Whether that member averages a part with `peer`.
    fn meets(&self, member: usize, peer: PeerId) -> bool {
        let mut groups = self.groups[member].iter();
        groups.any(|group| {
            group
                .members
                .iter()
                .any(|it| self.holders[*it].peer == peer)
        })
    }

    /// That member's groups, as it is told them.
    fn of(&self, member: usize) -> Vec<Group> {
        let told = |group: &Arc<grouping::Group>| Group {
            peers: group.members.iter().map(|it| self.holders[*it]).collect(),
            samples: group.samples.clone(),
            shares: group.shares.clone(),
        };
        self.groups[member].iter().map(told).collect()
    }
}

/// Whom the replicas of a merge leave the choice of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// All agree, or most: what they hold, in order of stages.
    Agreed(Vec<Held>),
    /// As many say one thing as the other.
    Tied,
}

impl Coordinator {
    /// Ends the round if all that it waits for is here.
    pub(super) fn end_round(&mut self, now: Time) {
        if self.is_journaling() {
            return;
        }
        if self.merging.is_some() {
            return self.end_merge(now);
        }
        let mut ended = Vec::new();
        let mut awaited = Vec::new();
        for pipeline in self.pipelines.iter() {
            match pipeline.phase {
                // Who comes back may bring what it trained.
                Phase::Resuming { .. } => return,
                // It would be left out of the round, and what it measures with it.
                Phase::Evaluating => return,
                Phase::Training if pipeline.agreed_steps().is_some() => {
                    ended.push(pipeline.place.pipeline);
                }
                Phase::Training => return,
                Phase::Forming if self.is_overtaken(pipeline.place.pipeline) => {
                    awaited.push(pipeline.place.pipeline);
                }
                Phase::Journaling
                | Phase::Forming
                | Phase::Merging
                | Phase::Committing
                | Phase::Boundary => {}
            }
        }
        if !ended.is_empty() && self.waits_for(now, &ended, &awaited) {
            return;
        }
        match ended[..] {
            [] => {}
            [one] => self.commit_alone(now, one),
            _ => self.begin_merge(now, &ended, Repeats::default()),
        }
    }

    /// Whether the round, which these have ended, waits for line-ups that were overtaken: as long again as it took. Who is
    /// not ready by then sits out for a while, so that a slow link costs the others little.
    fn waits_for(&mut self, now: Time, ended: &[PipelineId], awaited: &[PipelineId]) -> bool {
        if awaited.is_empty() || self.steps_target() == 0 {
            return false;
        }
        let reports = ended
            .iter()
            .filter_map(|id| self.pipelines.get(*id)?.report);
        let took_us = reports.map(|report| report.elapsed_us).max();
        let wait = OVERTAKEN_WAIT_MIN.max(Span::from_micros(took_us.unwrap_or(0)));
        let since = *self.awaiting.get_or_insert(now);
        if now < since + wait {
            return true;
        }
        for id in awaited {
            let text = "the others waited for your seat; you get one again in a minute";
            self.bench(now, *id, |seat| !seat.ready, text);
        }
        false
    }

    /// Tells all seats of these pipelines to merge what they hold.
    fn begin_merge(&mut self, now: Time, ids: &[PipelineId], repeats: Repeats) {
        let attempt = self.issue();
        let batch = u64::from(self.config().training.batch);
        let mut members = Vec::new();
        for id in ids {
            let Some(pipeline) = self.pipelines.get_mut(*id) else {
                continue;
            };
            pipeline.phase = Phase::Merging;
            pipeline.seats.iter_mut().for_each(|it| it.merged = None);
            members.push(Member {
                pipeline: *id,
                samples: u64::from(pipeline.steps_done()) * batch,
            });
        }
        let plans = self.plans(&members);
        let levels = plans
            .iter()
            .flat_map(|plan| plan.groups.iter().map(Vec::len));
        let levels = levels.max().unwrap_or_default() as u64;
        self.merging = Some(Merging {
            attempt,
            plans,
            members,
            progressed: now,
            patience: self.merge_patience(ids, levels),
            repeats,
        });
        let merging = |it: &Pipeline| it.phase == Phase::Merging;
        let peers: Vec<PeerId> = self
            .pipelines
            .iter()
            .filter(|it| merging(it))
            .flat_map(Pipeline::peers)
            .collect();
        for peer in peers {
            self.say_merge(peer);
        }
    }

    /// How long the largest seat may take to send what it changed and to get what comes of it.
    fn merge_patience(&self, ids: &[PipelineId], levels: u64) -> Span {
        let seats = ids.iter().filter_map(|id| self.pipelines.get(*id));
        let values =
            |stage: StageId| self.config().model.parameter_count_of(usize::from(stage.0)) as u64;
        let seat_values = seats
            .flat_map(|it| &it.seats)
            .map(|seat| seat.row.stages.iter().map(values).sum::<u64>());
        let row_bytes = self.config().merge.format.row_bytes(TILE) as u64;
        // There and back, and of groups of two somebody sends all of it again on each further level.
        let bytes = (1 + levels) * seat_values.max().unwrap_or(0).div_ceil(TILE as u64) * row_bytes;
        MERGE_MAX + Span::from_secs(bytes / MERGE_BYTES_PER_SECOND_MIN)
    }

    /// Tells a seat's volunteer what to merge, and with whom.
    pub(super) fn say_merge(&mut self, peer: PeerId) {
        if let Some(order) = self.merge_order(peer) {
            self.introduce_replicas(peer, &order);
            self.tell(peer, Down::Merge(Box::new(order)));
        }
    }

    fn introduce_replicas(&mut self, peer: PeerId, order: &MergeOrder) {
        let groups = order.stages.iter().flatten();
        let others = groups.flat_map(|group| &group.peers);
        for other in others.filter(|other| other.peer != peer) {
            self.conduct.introduce(peer, other.peer);
        }
    }

    fn merge_order(&self, peer: PeerId) -> Option<MergeOrder> {
        let merging = self.merging.as_ref()?;
        let pipeline = self.pipelines.of(peer)?;
        let seat = pipeline.seat(peer)?;
        let member = merging.member(pipeline.place.pipeline)?;
        let stages = seat.row.stages.iter();
        Some(MergeOrder {
            place: pipeline.place,
            attempt: merging.attempt,
            result: pipeline.result,
            samples: merging.members.iter().map(|it| it.samples).sum(),
            stages: stages
                .map(|stage| Some(merging.plans.get(usize::from(stage.0))?.of(member)))
                .collect::<Option<_>>()?,
        })
    }

    /// Whether two average a part of a stage with each other. Costs what the one's groups hold, however many merge.
    pub(super) fn are_merging(&self, one: PeerId, other: PeerId) -> bool {
        let met = || {
            let merging = self.merging.as_ref()?;
            let pipeline = self.pipelines.of(one)?;
            let member = merging.member(pipeline.place.pipeline)?;
            let mut stages = pipeline.seat(one)?.row.stages.iter();
            let plan = |stage: StageId| merging.plans.get(usize::from(stage.0));
            Some(stages.any(|stage| plan(stage).is_some_and(|it| it.meets(member, other))))
        };
        met().unwrap_or(false)
    }

    /// Who averages what with whom. Pipelines stand beside each other by their slowest seats, so that members of all
    /// stages have the same neighbours where pipelines are cut alike.
    fn plans(&self, members: &[Member]) -> Vec<Plan> {
        let pipelines = members.iter().map(|it| self.pipelines.get(it.pipeline));
        let pipelines: Vec<&Pipeline> = pipelines.flatten().collect();
        let rate = |row: &SeatRow| {
            let rate = self.roster.get(row.peer).and_then(|it| it.bytes_per_second);
            rate.unwrap_or(BYTES_PER_SECOND_ASSUMED)
        };
        let slowest = |of: &usize| pipelines[*of].seats.iter().map(|it| rate(&it.row)).min();
        let mut fastest_first: Vec<usize> = (0..pipelines.len()).collect();
        fastest_first.sort_by_key(|of| std::cmp::Reverse(slowest(of)));
        let group_max = usize::from(self.config().merge.group_max);
        let plan = |stage: StageId| {
            let holds = |seat: &&super::pipeline::Seat| seat.row.stages.contains(stage);
            let rows = pipelines
                .iter()
                .map(|it| Some(it.seats.iter().find(holds)?.row));
            let rows: Vec<SeatRow> = rows.collect::<Option<_>>()?;
            let replicas = rows.iter().zip(members).map(|(row, member)| Replica {
                samples: member.samples,
                rate: rate(row),
            });
            let replicas: Vec<Replica> = replicas.collect();
            let neighbour = |row: &SeatRow| Neighbour {
                peer: row.peer,
                key: row.key,
            };
            Some(Plan {
                holders: rows.iter().map(neighbour).collect(),
                groups: grouping::groups(&replicas, &fastest_first, group_max),
            })
        };
        let stages = 0..u16::try_from(self.config().model.stages).expect("stages fit u16");
        let plans = stages.map(|stage| plan(StageId(stage)));
        plans.collect::<Option<_>>().unwrap_or_default()
    }

    /// The attempt under way is void: what its pipelines trained stands, and waits for the next one.
    pub(super) fn void_merge(&mut self) {
        if self.merging.take().is_some() {
            for pipeline in self.pipelines.iter_mut() {
                if pipeline.phase == Phase::Merging {
                    pipeline.phase = Phase::Training;
                }
            }
        }
    }

    /// Commits what was merged, once all seats hold it and it is the same.
    fn end_merge(&mut self, now: Time) {
        let Some(merging) = &self.merging else { return };
        let ids: Vec<PipelineId> = merging.members.iter().map(|it| it.pipeline).collect();
        let is_here = |id: &PipelineId| {
            let pipeline = self.pipelines.get(*id);
            pipeline.is_some_and(|it| it.seats.iter().all(|seat| seat.merged.is_some()))
        };
        if !ids.iter().all(is_here) {
            return;
        }
        let (attempt, repeats) = (merging.attempt, merging.repeats);
        match self.verdict(&ids) {
            // Who holds something else gets what was agreed on once it is committed.
            Verdict::Agreed(stages) => self.commit(now, attempt, &ids, stages),
            Verdict::Tied if !repeats.tied => {
                let tied = true;
                self.begin_merge(now, &ids, Repeats { tied, ..repeats });
            }
            // The line-up that has agreed with others for a shorter time leaves.
            Verdict::Tied => {
                let epoch = |id: &PipelineId| self.pipelines.get(*id).map(|it| it.place.epoch);
                if let Some(newer) = ids.into_iter().max_by_key(epoch) {
                    let text = "your device merged otherwise than others, twice; you get a seat again in a minute";
                    self.bench(now, newer, |_| true, text);
                    self.end_round(now);
                }
            }
        }
    }

    /// What most replicas of each stage hold.
    fn verdict(&self, ids: &[PipelineId]) -> Verdict {
        let mut held: BTreeMap<StageId, Vec<Held>> = BTreeMap::new();
        for id in ids {
            let seats = self.pipelines.get(*id).into_iter().flat_map(|it| &it.seats);
            for state in seats
                .filter_map(|seat| seat.merged.as_ref())
                .flat_map(|it| &it.stages)
            {
                held.entry(state.stage).or_default().push(*state);
            }
        }
        let mut stages = Vec::new();
        for replicas in held.values() {
            let mut counts: BTreeMap<Digest, usize> = BTreeMap::new();
            for held in replicas {
                *counts.entry(held.agreed).or_default() += 1;
            }
            let Some(most) = replicas.iter().max_by_key(|held| counts[&held.agreed]) else {
                return Verdict::Tied;
            };
            #[cfg(any(test, feature = "sim"))]
            if self.broken.any_replica {
                stages.push(replicas[0]);
                continue;
            }
            if 2 * counts[&most.agreed] <= replicas.len() {
                return Verdict::Tied;
            }
            stages.push(*most);
        }
        Verdict::Agreed(stages)
    }

    /// Nothing can come of an attempt at that seat, by its own fault: another one follows at once, and then one without
    /// it. Where a link broke whoever does not answer is found, or who owes most.
    pub(super) fn merge_failed(&mut self, now: Time, peer: PeerId, place: Place, attempt: Attempt) {
        let of_it = self.merging.as_ref().filter(|it| it.attempt == attempt);
        let has_seat = self.pipelines.at(place).and_then(|it| it.seat(peer));
        let (Some(merging), Some(_)) = (of_it, has_seat) else {
            return;
        };
        if merging.repeats.failed {
            let text = "your device could not merge, twice; you get a seat again in a minute";
            self.bench(now, place.pipeline, |seat| seat.row.peer == peer, text);
            self.end_round(now);
        } else {
            self.merge_again(now);
        }
    }

    /// Somebody of the attempt is back at the host without a result: it may have missed what it was told, or lost a link
    /// meanwhile. Once, all merge anew.
    pub(super) fn merge_again(&mut self, now: Time) {
        let Some(merging) = self.merging.as_ref().filter(|it| !it.repeats.failed) else {
            return;
        };
        let ids: Vec<PipelineId> = merging.members.iter().map(|it| it.pipeline).collect();
        let repeats = merging.repeats;
        let failed = true;
        self.begin_merge(now, &ids, Repeats { failed, ..repeats });
    }

    /// A merge that does not go on is begun anew without a pipeline that owes a result: one whose seats owe most of it,
    /// and of several the one that trained least.
    pub(super) fn check_merge(&mut self, now: Time) {
        let Some(merging) = &self.merging else { return };
        if now.since(merging.progressed) <= merging.patience {
            return;
        }
        let owing = |member: &&Member| {
            let pipeline = self.pipelines.get(member.pipeline);
            let seats = pipeline.into_iter().flat_map(|it| &it.seats);
            let (here, owed): (Vec<_>, Vec<_>) = seats.partition(|seat| seat.merged.is_some());
            let parts = 1_000 * owed.len() / (here.len() + owed.len()).max(1);
            (parts, std::cmp::Reverse(member.samples))
        };
        let slowest = merging.members.iter().max_by_key(owing);
        if let Some(id) = slowest.map(|member| member.pipeline) {
            let text = "your stages were not merged in time; you get a seat again in a minute";
            self.bench(now, id, |seat| seat.merged.is_none(), text);
            self.end_round(now);
        }
    }
}
