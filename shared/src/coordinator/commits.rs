//! The commit: what a round made of the run is judged, journaled, and then told.
//!
//! Invariant: what is journaled is never taken back, and can be read again at each start.

use super::conduct::GO_ON;
use super::history::{CommitRow, MemberRow, Row};
use super::pipeline::{Phase, Pipeline, Seat};
use super::{Awaited, Coordinator};
use crate::limits::LOSS_WINDOW;
use crate::units::{Attempt, PeerId, PipelineId, Round, StageRange, Time};
use crate::wire::signal::{Down, Held};

impl Coordinator {
    /// The round is what one pipeline trained.
    pub(super) fn commit_alone(&mut self, now: Time, id: PipelineId) {
        let Some(pipeline) = self.pipelines.get(id) else {
            return;
        };
        let results = pipeline.seats.iter().filter_map(|seat| seat.holds.as_ref());
        let stages = results
            .flat_map(|holds| holds.stages.iter().copied())
            .collect();
        if let Some(attempt) = pipeline.attempt {
            self.commit(now, attempt, &[id], stages);
        }
    }

    /// The round is what these pipelines made of it.
    pub(super) fn commit(
        &mut self,
        now: Time,
        attempt: Attempt,
        ids: &[PipelineId],
        stages: Vec<Held>,
    ) {
        let members: Vec<&Pipeline> = ids
            .iter()
            .filter_map(|id| self.pipelines.get(*id))
            .collect();
        let Some(first) = members.first() else { return };
        let (round, parent) = (first.result, first.place.round);
        let reports = members.iter().filter_map(|member| member.report);
        let steps: f64 = reports.clone().map(|report| f64::from(report.steps)).sum();
        let loss: f64 = reports
            .clone()
            .map(|report| report.round_loss * f64::from(report.steps))
            .sum();
        let loss = loss / steps;
        let elapsed_us = reports.map(|report| report.elapsed_us).max().unwrap_or(0);
        let row = CommitRow {
            round,
            parent,
            members: members.iter().map(|member| member_row(member)).collect(),
            attempt,
            stages,
            loss,
            elapsed_us,
        };
        if self.jumped(loss) {
            return self.postpone(ids, loss);
        }
        if !self.fits(&row) {
            return self.give_round_up(ids);
        }
        self.jumps_in_a_row = 0;
        self.merging = None;
        for id in ids {
            if let Some(pipeline) = self.pipelines.get_mut(*id) {
                pipeline.phase = Phase::Committing;
            }
        }
        let row = Row::Commit(row);
        self.journal(row.clone(), Awaited::Commit(row.clone()));
        #[cfg(any(test, feature = "sim"))]
        if self.broken.commit_before_sync {
            self.commit_journaled(now, &row);
        }
        #[cfg(not(any(test, feature = "sim")))]
        let _ = now; // only a broken rule would commit at once
    }

    /// Whether a round may be committed: what is journaled is never taken back, and must be read again at each start.
    fn fits(&self, row: &CommitRow) -> bool {
        #[cfg(any(test, feature = "sim"))]
        if self.broken.lease_twice {
            return true;
        }
        self.history.judge(row).is_ok()
    }

    /// A round that can't follow the history: the books are wrong, so they are written anew from the history.
    fn give_round_up(&mut self, ids: &[PipelineId]) {
        for id in ids {
            if let Some(pipeline) = self.pipelines.get_mut(*id) {
                pipeline.leases.clear();
            }
            self.break_pipeline(*id);
        }
        self.open_anew();
        let leased: Vec<_> = self
            .pipelines
            .iter()
            .flat_map(Pipeline::leased_samples)
            .collect();
        self.take_out(&leased);
    }

    /// What the history does not hold is open, and nothing is leased.
    pub(super) fn open_anew(&mut self) {
        let (waiting, fresh) = self.history.waiting(self.config().training.batch);
        (self.queue, self.fresh) = (waiting.into(), fresh);
    }

    /// Whether a round's loss lies far above the recent ones.
    fn jumped(&self, loss: f64) -> bool {
        let recent: Vec<f64> = self
            .history
            .newest_first()
            .take(LOSS_WINDOW)
            .map(|commit| commit.loss)
            .collect();
        let highest = recent.iter().copied().fold(f64::MIN, f64::max);
        let lowest = recent.iter().copied().fold(f64::MAX, f64::min);
        !loss.is_finite()
            || recent.len() >= LOSS_WINDOW / 2 && loss > highest + (highest - lowest).max(0.5)
    }

    /// A loss that is not believed: the round is not committed, its samples come last.
    fn postpone(&mut self, ids: &[PipelineId], loss: f64) {
        for id in ids {
            if let Some(pipeline) = self.pipelines.get_mut(*id) {
                let leases = std::mem::take(&mut pipeline.leases);
                self.queue.extend(leases.iter().map(|lease| lease.samples));
            }
        }
        self.jumps_in_a_row += 1;
        if self.jumps_in_a_row > 1 {
            self.pause(format!(
                "paused: the loss jumped in two rounds in a row, to {loss:.3}; look into it, {GO_ON}"
            ));
        }
        for id in ids {
            self.break_pipeline(*id);
        }
    }

    /// A commit's row is synced: that was the commit. Now it may be told.
    pub(super) fn commit_journaled(&mut self, now: Time, row: &Row) {
        let Row::Commit(commit) = row else { return };
        if self.history.get(commit.round).is_some() {
            return;
        }
        self.history
            .apply(row)
            .expect("a commit builds on the newest round");
        let round = commit.round;
        let mut left_out = self.pipelines.ids(|it| {
            let place = it.place;
            commit.member(place.pipeline, place.epoch).is_none()
        });
        self.awaiting = None;
        for id in &left_out {
            self.note_overtaken(*id);
        }
        for member in &commit.members {
            if !self.member_committed(now, commit, member) {
                left_out.push(member.place.pipeline);
            }
        }
        self.conduct.committed();
        self.missing.committed();
        self.reconsider_cut(now);
        self.named = None;
        self.plan_due = true;
        self.secure(now, false);
        let peers: Vec<PeerId> = self.roster.iter().map(|volunteer| volunteer.peer).collect();
        for peer in peers {
            self.say_commit(peer, round);
        }
        // They get the new round's states like newcomers.
        for id in left_out {
            self.break_pipeline(id);
        }
        self.forget_old_copies();
    }

    /// The round is over for whoever of a line-up was still fetching, or waited for the next one.
    fn note_overtaken(&mut self, id: PipelineId) {
        let Some(pipeline) = self.pipelines.get(id) else {
            return;
        };
        let is_late = |seat: &&Seat| !seat.ready || pipeline.phase == Phase::Boundary;
        let late = pipeline.seats.iter().filter(is_late);
        for peer in late.map(|seat| seat.row.peer).collect::<Vec<PeerId>>() {
            if let Some(volunteer) = self.roster.get_mut(peer) {
                volunteer.overtaken = true;
            }
        }
    }

    /// One pipeline's part of a commit. Whether what all its seats hold is what was committed.
    fn member_committed(&mut self, now: Time, commit: &CommitRow, member: &MemberRow) -> bool {
        let id = member.place.pipeline;
        let Some(pipeline) = self.pipelines.get_mut(id) else {
            return true;
        };
        let taken = member.steps.len();
        let unused = pipeline.leases.split_off(taken.min(pipeline.leases.len()));
        let results: Vec<(PeerId, Vec<Held>)> = pipeline
            .seats
            .iter()
            .filter_map(|seat| {
                let mut results = seat.merged.iter().chain(&seat.holds);
                let result = results.find(|holds| holds.attempt == commit.attempt)?;
                Some((seat.row.peer, result.stages.clone()))
            })
            .collect();
        let seats = pipeline.seats.len();
        pipeline.advance(now, commit.round);
        self.return_leases(&unused);
        let microbatches = u64::from(self.config().training.microbatches) * taken as u64;
        let mut holds_all = results.len() == seats;
        for (peer, stages) in results {
            if let Some(volunteer) = self.roster.get_mut(peer) {
                volunteer.accepted += microbatches;
                volunteer.overtaken = false;
            }
            for held in stages {
                let committed = commit.stages[usize::from(held.stage.0)];
                if held.agreed == committed.agreed {
                    self.roster.keep(peer, &held);
                } else {
                    holds_all = false;
                }
            }
        }
        holds_all
    }

    /// Tells a volunteer of a commit; with the hashes of its seat's stages, if it has one.
    pub(super) fn say_commit(&mut self, peer: PeerId, round: Round) {
        let Some(commit) = self.history.get(round) else {
            return;
        };
        let pipeline = self.pipelines.of(peer);
        let own = pipeline.and_then(|it| commit.member(it.place.pipeline, it.place.epoch));
        let Some(member) = own.or(commit.members.first()) else {
            return;
        };
        let (place, attempt) = (member.place, commit.attempt);
        let stages = self.pipelines.seat(peer).map_or_else(Vec::new, |seat| {
            let StageRange { first, end } = seat.row.stages;
            commit.stages[usize::from(first)..usize::from(end)].to_vec()
        });
        self.tell(
            peer,
            Down::Commit {
                round,
                place,
                attempt,
                stages,
            },
        );
    }
}

/// What a pipeline did, as its head reported it.
fn member_row(pipeline: &Pipeline) -> MemberRow {
    let steps = usize::try_from(pipeline.steps_done()).expect("a round's steps fit usize");
    let leases = pipeline.leases.iter().take(steps);
    MemberRow {
        place: pipeline.place,
        steps: leases.map(|lease| lease.samples).collect(),
    }
}
