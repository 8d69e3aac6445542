//! How a round ends: what its pipelines trained is committed as it is, where there is one, or merged.
//!
//! Once all pipelines of the round hold what they trained, one attempt after the other is made to merge it, until all
//! replicas of each stage hold the same bits. An attempt that loses a pipeline is void for good; the next one
//! goes without. Where one pipeline is left, what it trained is the round's result: there is no outer step.
//!
//! Invariant: an attempt ends in a commit, or in another one of fewer pipelines, or (once where replicas disagree one
//! against one, once where it came to nothing at a seat) of the same: so a round has an end.

use std::collections::BTreeMap;

use super::Coordinator;
use super::pipeline::{Phase, Pipeline};
use crate::limits::{MERGE_BYTES_PER_SECOND_MIN, MERGE_MAX, OVERTAKEN_WAIT_MIN};
use crate::units::{Attempt, Digest, PeerId, PipelineId, Span, StageId, Time};
use crate::wire::frame::Place;
use crate::wire::merge::TILE;
use crate::wire::signal::{Down, Held, Member, MergeOrder, Neighbour, Replicas};

/// The attempt that is under way.
#[derive(Clone, Debug)]
pub(super) struct Merging {
    pub(super) attempt: Attempt,
    pub(super) members: Vec<Member>,
    /// When a seat last had its result, or it began.
    pub(super) progressed: Time,
    /// How long that may take.
    patience: Span,
    repeats: Repeats,
}

/// Why an attempt was made again with the same members: each once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Repeats {
    /// Replicas disagreed, one against one.
    tied: bool,
    /// It came to nothing at a seat.
    failed: bool,
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
                epoch: pipeline.place.epoch,
                steps: pipeline.steps_done(),
                samples: u64::from(pipeline.steps_done()) * batch,
            });
        }
        self.merging = Some(Merging {
            attempt,
            members,
            progressed: now,
            patience: self.merge_patience(ids),
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
    fn merge_patience(&self, ids: &[PipelineId]) -> Span {
        let seats = ids.iter().filter_map(|id| self.pipelines.get(*id));
        let values =
            |stage: StageId| self.config().model.parameter_count_of(usize::from(stage.0)) as u64;
        let seat_values = seats
            .flat_map(|it| &it.seats)
            .map(|seat| seat.row.stages.iter().map(values).sum::<u64>());
        let row_bytes = self.config().merge.format.row_bytes(TILE) as u64;
        // There and back.
        let bytes = 2 * seat_values.max().unwrap_or(0).div_ceil(TILE as u64) * row_bytes;
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
        let others = order.stages.iter().flat_map(|stage| &stage.peers);
        for other in others.filter(|other| other.peer != peer) {
            self.conduct.introduce(peer, other.peer);
        }
    }

    fn merge_order(&self, peer: PeerId) -> Option<MergeOrder> {
        let merging = self.merging.as_ref()?;
        let pipeline = self.pipelines.of(peer)?;
        let seat = pipeline.seat(peer)?;
        let stages = seat.row.stages.iter();
        Some(MergeOrder {
            place: pipeline.place,
            attempt: merging.attempt,
            result: pipeline.result,
            members: merging.members.clone(),
            stages: stages
                .map(|stage| self.replicas(&merging.members, stage))
                .collect::<Option<_>>()?,
        })
    }

    /// Who holds a stage, one for each member, and how much of it each is to average: as it sends.
    fn replicas(&self, members: &[Member], stage: StageId) -> Option<Replicas> {
        let rows = members.iter().map(|member| {
            let pipeline = self.pipelines.get(member.pipeline)?;
            let holds = |seat: &&super::pipeline::Seat| seat.row.stages.contains(stage);
            Some(pipeline.seats.iter().find(holds)?.row)
        });
        let rows = rows.collect::<Option<Vec<_>>>()?;
        let rates: Vec<u64> = rows
            .iter()
            .map(|row| self.roster.get(row.peer).and_then(|it| it.bytes_per_second))
            .map(|rate| rate.unwrap_or(crate::schedule::placement::BYTES_PER_SECOND_ASSUMED))
            .collect();
        let neighbour = |row: &super::history::SeatRow| Neighbour {
            peer: row.peer,
            key: row.key,
        };
        Some(Replicas {
            peers: rows.iter().map(neighbour).collect(),
            shares: shares(&rates),
        })
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
            let count = |agreed: Digest| {
                let same = replicas.iter().filter(|held| held.agreed == agreed);
                same.count()
            };
            let Some(most) = replicas.iter().max_by_key(|held| count(held.agreed)) else {
                return Verdict::Tied;
            };
            #[cfg(any(test, feature = "sim"))]
            if self.broken.any_replica {
                stages.push(replicas[0]);
                continue;
            }
            if 2 * count(most.agreed) <= replicas.len() {
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

/// How much each of those who send so fast is to average, so that all have sent everything at the same time.
///
/// Of a stage of length L, cut among n, member j sends L - p_j of its own changes and (n - 1) p_j of averages: in all
/// L + (n - 2) p_j. With two it is always L, and what they average is all the same.
fn shares(rates: &[u64]) -> Vec<u32> {
    /// A stage's length here.
    const WHOLE: u128 = 1 << 16;
    let members = rates.len() as u128;
    if members < 3 {
        return vec![1; rates.len()];
    }
    let mut averaging: Vec<usize> = (0..rates.len()).collect();
    loop {
        // T = (n - 2 + |averaging|) L / (sum of their rates): who has not sent its L by then averages nothing.
        let sum: u128 = averaging
            .iter()
            .map(|who| u128::from(rates[*who].max(1)))
            .sum();
        let parts = WHOLE * (members - 2 + averaging.len() as u128);
        let sends = |who: &usize| parts * u128::from(rates[*who].max(1)) / sum;
        let enough: Vec<usize> = averaging
            .iter()
            .copied()
            .filter(|who| sends(who) > WHOLE)
            .collect();
        if enough.len() == averaging.len() || enough.is_empty() {
            let mut shares = vec![0; rates.len()];
            for who in &averaging {
                let share = sends(who).saturating_sub(WHOLE) / (members - 2);
                shares[*who] = u32::try_from(share).unwrap_or(u32::MAX);
            }
            return shares;
        }
        averaging = enough;
    }
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn who_sends_faster_averages_more_and_all_are_done_at_once() {
        assert_eq!(shares(&[7, 1]), [1, 1], "two send the same either way");
        assert_eq!(shares(&[5, 5, 5, 5]), [16384; 4]);
        // Sent in all by rates 3:2:2 is L + p: 12/7 L, 8/7 L, 8/7 L.
        let cut = shares(&[3, 2, 2]);
        assert_eq!(cut, [46811, 9362, 9362]);
        let [fast, slow, none] = shares(&[10, 9, 1])[..] else {
            panic!("three")
        };
        assert_eq!(none, 0, "the slowest only sends what it changed");
        assert!(fast > slow && (fast + slow).abs_diff(1 << 16) < 4);
    }
}
