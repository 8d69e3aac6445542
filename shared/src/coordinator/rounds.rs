//! A round from `begin` to `commit`: leases, reports, results.
//!
//! A lease is the samples of one step. Samples are in one of three places: committed (the history says so), leased
//! (a pipeline's leases), or open (the queue, then everything from `fresh` on).

use super::conduct::GO_ON;
use super::history::{CommitRow, Row};
use super::pipeline::Phase;
use super::{Awaited, Coordinator};
use crate::limits::{LEASES_AHEAD, LOSS_WINDOW};
use crate::units::{PeerId, Round, SampleRange, StageRange, Step, Time};
use crate::wire::frame::{Mode, Place};
use crate::wire::signal::{Down, Holds, Lease, Report};

impl Coordinator {
    /// Steps that the run still has to go.
    pub(super) fn remaining_steps(&self) -> u32 {
        let training = &self.config().training;
        let open = training.samples.saturating_sub(self.history.samples());
        u32::try_from(open / u64::from(training.batch)).unwrap_or(u32::MAX)
    }

    /// Steps that the next round is to have.
    pub(super) fn steps_target(&self) -> u32 {
        let round_steps = self.config().schedule.round_steps;
        round_steps.min(self.remaining_steps())
    }

    /// All seats are ready: evaluate if it is due, else train.
    pub(super) fn begin(&mut self, now: Time) {
        let newest = self.history.newest();
        let schedule = &self.config().schedule;
        let is_due = schedule.eval_rounds > 0
            && schedule.eval_microbatches > 0
            && self.start.data.validation_tokens > 0
            && newest.0.is_multiple_of(schedule.eval_rounds)
            && self.history.validation(newest).is_none();
        let mode = if is_due { Mode::Evaluate } else { Mode::Train };
        let attempt = self.issue();
        let steps_target = self.steps_target();
        let result = self.history.next_round();
        let Some(pipeline) = &mut self.pipeline else {
            return;
        };
        pipeline.phase = if is_due {
            Phase::Evaluating
        } else {
            Phase::Training
        };
        pipeline.attempt = Some(attempt);
        pipeline.result = result;
        pipeline.steps_target = steps_target;
        pipeline.began = now;
        pipeline.progressed = now;
        let peers: Vec<PeerId> = pipeline.peers().collect();
        for peer in peers {
            self.say_begin(peer, mode);
        }
        if mode == Mode::Train {
            self.top_up();
        }
    }

    fn say_begin(&mut self, peer: PeerId, mode: Mode) {
        let samples_done = self.history.samples();
        let Some(pipeline) = &self.pipeline else {
            return;
        };
        let (place, result) = (pipeline.place, pipeline.result);
        if let Some(attempt) = pipeline.attempt {
            self.tell(
                peer,
                Down::Begin {
                    place,
                    mode,
                    attempt,
                    result,
                    samples_done,
                },
            );
        }
    }

    /// Everything a seat's volunteer may have missed of the round under way. Nothing of it acts twice.
    pub(super) fn say_round_again(&mut self, peer: PeerId) {
        let Some(pipeline) = &self.pipeline else {
            return;
        };
        let mode = match pipeline.phase {
            Phase::Training => Mode::Train,
            Phase::Evaluating => Mode::Evaluate,
            Phase::Journaling
            | Phase::Forming
            | Phase::Committing
            | Phase::Boundary
            | Phase::Resuming { .. } => return,
        };
        let is_head = pipeline.head() == peer;
        // Those before were done before the connection broke.
        let first = usize::try_from(pipeline.steps_done()).expect("a round's steps fit usize");
        let leases: Vec<Lease> = pipeline.leases.iter().skip(first).copied().collect();
        let (place, closing) = (pipeline.place, pipeline.closing);
        self.say_begin(peer, mode);
        if is_head && mode == Mode::Train {
            for lease in leases {
                self.tell(peer, Down::Lease(lease));
            }
            if closing {
                self.tell(peer, Down::Close { place });
            }
        }
    }

    /// Gives the head leases until it holds enough ahead, or the round has all its steps.
    pub(super) fn top_up(&mut self) {
        loop {
            let Some(pipeline) = &self.pipeline else {
                return;
            };
            let issued = u32::try_from(pipeline.leases.len()).expect("a round's steps fit u32");
            let ahead = issued - pipeline.steps_done().min(issued);
            let is_full = usize::try_from(ahead).is_ok_and(|ahead| ahead > LEASES_AHEAD);
            if pipeline.closing || is_full || issued >= pipeline.steps_target {
                return;
            }
            let (place, head) = (pipeline.place, pipeline.head());
            let last = issued + 1 == pipeline.steps_target;
            let samples = self.take_samples();
            let lease = Lease {
                place,
                step: Step(issued),
                samples,
                last,
            };
            if let Some(pipeline) = &mut self.pipeline {
                pipeline.leases.push(lease);
            }
            self.tell(head, Down::Lease(lease));
        }
    }

    fn take_samples(&mut self) -> SampleRange {
        let count = self.config().training.batch;
        #[cfg(any(test, feature = "sim"))]
        if self.broken.lease_twice
            && let Some(lease) = self
                .pipeline
                .as_ref()
                .and_then(|pipeline| pipeline.leases.last())
        {
            return lease.samples;
        }
        self.queue.pop_front().unwrap_or_else(|| {
            let samples = SampleRange {
                first: self.fresh,
                count,
            };
            self.fresh = samples.end();
            samples
        })
    }

    /// Samples that are leased already, after a restart: neither open nor fresh.
    pub(super) fn take_out(&mut self, leased: &[SampleRange]) {
        self.queue.retain(|samples| !leased.contains(samples));
        let count = self.config().training.batch;
        for samples in leased {
            // Between the fresh ones and a lease lie leases that are gone: they are open again.
            while self.fresh < samples.first {
                let open = SampleRange {
                    first: self.fresh,
                    count,
                };
                if !leased.contains(&open) {
                    self.queue.push_back(open);
                }
                self.fresh = open.end();
            }
            self.fresh = self.fresh.max(samples.end());
        }
    }

    /// Leases that did not become part of a commit come first again.
    pub(super) fn return_leases(&mut self, leases: &[Lease]) {
        for lease in leases.iter().rev() {
            self.queue.push_front(lease.samples);
        }
    }

    /// The head's account of its round.
    pub(super) fn report(&mut self, now: Time, peer: PeerId, report: Report) {
        let Some(pipeline) = &mut self.pipeline else {
            return;
        };
        if pipeline.place != report.place || pipeline.head() != peer {
            return;
        }
        let (forward, backward) = pipeline.report.map_or((0, 0), |before| {
            (before.forward_bytes, before.backward_bytes)
        });
        if pipeline.take_report(now, report) {
            let is_training = pipeline.phase == Phase::Training;
            let total = &mut self.wire_bytes;
            let (forward, backward) = (
                report.forward_bytes.saturating_sub(forward),
                report.backward_bytes.saturating_sub(backward),
            );
            total.forward = total.forward.saturating_add(forward);
            total.backward = total.backward.saturating_add(backward);
            if is_training {
                self.top_up();
                self.try_commit(now);
            }
        }
    }

    /// A loss on held-out data.
    pub(super) fn evaluated(&mut self, now: Time, peer: PeerId, place: Place, loss: f64) {
        let Some(pipeline) = &self.pipeline else {
            return;
        };
        if pipeline.place == place
            && pipeline.head() == peer
            && pipeline.phase == Phase::Evaluating
            && loss.is_finite()
        {
            self.note(Row::Evaluated {
                round: place.round,
                loss,
            });
            self.begin(now);
        }
    }

    /// A seat's result of the round.
    pub(super) fn holds(&mut self, now: Time, peer: PeerId, holds: Holds) {
        let Some(pipeline) = &mut self.pipeline else {
            return;
        };
        if pipeline.place != holds.place {
            return;
        }
        let result = pipeline.result;
        let Some(seat) = pipeline.seat_mut(peer) else {
            return;
        };
        let fits = holds.stages.len() == seat.row.stages.count()
            && holds
                .stages
                .iter()
                .zip(seat.row.stages.iter())
                .all(|(held, stage)| (held.round, held.stage) == (result, stage));
        if fits {
            seat.holds = Some(holds);
            pipeline.progressed = now;
            self.try_commit(now);
        }
    }

    /// Commits the round when every seat holds its result and all agree on what is in it.
    pub(super) fn try_commit(&mut self, now: Time) {
        let Some(pipeline) = &mut self.pipeline else {
            return;
        };
        let (Phase::Training, Some(steps), Some(attempt), Some(report)) = (
            pipeline.phase,
            pipeline.agreed_steps(),
            pipeline.attempt,
            pipeline.report,
        ) else {
            return;
        };
        let place = pipeline.place;
        let row = CommitRow {
            round: pipeline.result,
            parent: place.round,
            place,
            attempt,
            stages: pipeline
                .seats
                .iter()
                .filter_map(|seat| seat.holds.as_ref())
                .flat_map(|holds| holds.stages.iter().copied())
                .collect(),
            steps: pipeline
                .leases
                .iter()
                .take(usize::try_from(steps).expect("a round's steps fit usize"))
                .map(|lease| lease.samples)
                .collect(),
            loss: report.round_loss,
            elapsed_us: report.elapsed_us,
        };
        if self.jumped(report.round_loss) {
            return self.postpone();
        }
        if !self.fits(&row) {
            return self.give_round_up();
        }
        self.jumps_in_a_row = 0;
        if let Some(pipeline) = &mut self.pipeline {
            pipeline.phase = Phase::Committing;
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
    fn give_round_up(&mut self) {
        if let Some(pipeline) = &mut self.pipeline {
            pipeline.leases.clear();
        }
        self.break_pipeline();
        self.open_anew();
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
    fn postpone(&mut self) {
        let Some(pipeline) = &mut self.pipeline else {
            return;
        };
        let leases = std::mem::take(&mut pipeline.leases);
        self.queue.extend(leases.iter().map(|lease| lease.samples));
        self.jumps_in_a_row += 1;
        if self.jumps_in_a_row > 1 {
            let loss = self.pipeline.as_ref().and_then(|pipeline| pipeline.report);
            let loss = loss.map_or(f64::NAN, |report| report.round_loss);
            self.pause(format!(
                "paused: the loss jumped in two rounds in a row, to {loss:.3}; look into it, {GO_ON}"
            ));
        }
        self.break_pipeline();
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
        let Some(pipeline) = &mut self.pipeline else {
            return;
        };
        let taken = commit.steps.len();
        let unused = pipeline.leases.split_off(taken.min(pipeline.leases.len()));
        let seats: Vec<_> = pipeline.seats.iter().map(|seat| seat.row).collect();
        pipeline.advance(now, round);
        self.return_leases(&unused);
        let microbatches = u64::from(self.config().training.microbatches) * taken as u64;
        for seat in &seats {
            if let Some(volunteer) = self.roster.get_mut(seat.peer) {
                volunteer.accepted += microbatches;
            }
            for stage in seat.stages.iter() {
                let held = &commit.stages[usize::from(stage.0)];
                self.roster.keep(seat.peer, held);
            }
        }
        self.conduct.committed();
        self.missing.committed();
        self.named = None;
        self.secure(now, false);
        let peers: Vec<PeerId> = self.roster.iter().map(|volunteer| volunteer.peer).collect();
        for peer in peers {
            self.say_commit(peer, round);
        }
        self.forget_old_copies();
    }

    /// Tells a volunteer of a commit; with the hashes of its seat's stages, if it has one.
    pub(super) fn say_commit(&mut self, peer: PeerId, round: Round) {
        let Some(commit) = self.history.get(round) else {
            return;
        };
        let (place, attempt) = (commit.place, commit.attempt);
        let seat = self
            .pipeline
            .as_ref()
            .and_then(|pipeline| pipeline.seat(peer));
        let stages = seat.map_or_else(Vec::new, |seat| {
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
