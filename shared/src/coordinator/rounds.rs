//! A round from `begin` to its end: leases, reports, results.
//!
//! A lease is the samples of one step. Samples are in one of three places: committed (the history says so), leased
//! (a pipeline's leases), or open (the queue, then everything from `fresh` on).
//!
//! All pipelines train from the same newest round, each as many steps as it gets done until the fastest has done those of
//! a round: then the others end with the step they are in. What becomes of what they trained is decided in
//! [`merging`](super::merging), and made to last in [`commits`](super::commits).

use super::Coordinator;
use super::history::Row;
use super::pipeline::{Phase, Pipeline};
use crate::limits::LEASES_AHEAD;
use crate::units::{PeerId, PipelineId, SampleRange, Step, Time};
use crate::wire::frame::{Mode, Place};
use crate::wire::signal::{Down, Holds, Lease, Report};

impl Coordinator {
    /// Steps that the run still has to go.
    pub(super) fn remaining_steps(&self) -> u32 {
        let training = &self.config().training;
        let open = training.samples.saturating_sub(self.history.samples());
        u32::try_from(open / u64::from(training.batch)).unwrap_or(u32::MAX)
    }

    /// Steps that the next pipeline to begin is to have in its round: its share of what is left of the run at most.
    pub(super) fn steps_target(&self) -> u32 {
        let round_steps = self.config().schedule.round_steps;
        let taken = |pipeline: &Pipeline| match pipeline.phase {
            Phase::Training | Phase::Merging => pipeline.steps_target,
            Phase::Resuming { .. } => u32::try_from(pipeline.leases.len()).unwrap_or(u32::MAX),
            Phase::Journaling
            | Phase::Forming
            | Phase::Evaluating
            | Phase::Committing
            | Phase::Boundary => 0,
        };
        let taken: u32 = self.pipelines.iter().map(taken).sum();
        let left = self.remaining_steps().saturating_sub(taken);
        let others = self.pipelines.ids(|it| it.phase == Phase::Forming).len();
        let sharers = u32::try_from(others.max(1)).expect("few pipelines");
        round_steps.min(left.div_ceil(sharers))
    }

    /// Whether the round under way is about to end: nobody begins it any more.
    pub(super) fn is_round_closing(&self) -> bool {
        self.merging.is_some()
            || self
                .pipelines
                .in_round()
                .any(|it| it.closing || it.has_done_all())
    }

    /// Whether the last round was committed while somebody of this line-up was fetching the one before. Else a line-up
    /// that fetches for longer than a round takes would never catch up.
    pub(super) fn is_overtaken(&self, id: PipelineId) -> bool {
        let peers = self.pipelines.get(id).into_iter().flat_map(Pipeline::peers);
        peers
            .filter_map(|peer| self.roster.get(peer))
            .any(|volunteer| volunteer.overtaken)
    }

    /// All seats of a pipeline are ready: it evaluates if that is due, else it trains, if the round is open to it.
    pub(super) fn begin(&mut self, now: Time, id: PipelineId) {
        let newest = self.history.newest();
        let schedule = &self.config().schedule;
        let is_evaluating = |it: &Pipeline| it.phase == Phase::Evaluating;
        let is_due = schedule.eval_rounds > 0
            && schedule.eval_microbatches > 0
            && self.start.data.validation_tokens > 0
            && newest.0.is_multiple_of(schedule.eval_rounds)
            && self.history.validation(newest).is_none()
            && !self.pipelines.iter().any(is_evaluating);
        let mode = if is_due { Mode::Evaluate } else { Mode::Train };
        let steps_target = self.steps_target();
        let is_closing = self.is_round_closing();
        // Who was overtaken once is waited for, and does one step of a round that else is over.
        let is_awaited = self.merging.is_none() && self.is_overtaken(id);
        let is_open = steps_target > 0 && (!is_closing || is_awaited);
        let steps_target = if is_closing {
            steps_target.min(1)
        } else {
            steps_target
        };
        let attempt = self.issue();
        let result = self.history.next_round();
        let Some(pipeline) = self.pipelines.get_mut(id) else {
            return;
        };
        pipeline.began = now;
        pipeline.progressed = now;
        if !is_due && !is_open {
            pipeline.phase = Phase::Boundary;
            let peers: Vec<PeerId> = pipeline.peers().collect();
            for peer in peers {
                let text = "the round is about to end; you take part in the next one";
                self.reason(peer, text.to_owned());
            }
            return;
        }
        pipeline.phase = if is_due {
            Phase::Evaluating
        } else {
            Phase::Training
        };
        pipeline.attempt = Some(attempt);
        pipeline.result = result;
        pipeline.steps_target = steps_target;
        let peers: Vec<PeerId> = pipeline.peers().collect();
        for peer in peers {
            self.say_begin(peer, mode);
        }
        if mode == Mode::Train {
            self.top_up(id);
        }
    }

    fn say_begin(&mut self, peer: PeerId, mode: Mode) {
        let samples_done = self.history.samples();
        let Some(pipeline) = self.pipelines.of(peer) else {
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
        let Some(pipeline) = self.pipelines.of(peer) else {
            return;
        };
        let mode = match pipeline.phase {
            Phase::Training => Mode::Train,
            Phase::Evaluating => Mode::Evaluate,
            Phase::Merging => return self.say_merge(peer),
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
    ///
    /// After a restart of the host, only once it is known what all pipelines have leased.
    pub(super) fn top_up(&mut self, id: PipelineId) {
        let resuming = |it: &Pipeline| matches!(it.phase, Phase::Resuming { .. });
        if self.pipelines.iter().any(resuming) {
            return;
        }
        loop {
            let Some(pipeline) = self.pipelines.get(id) else {
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
            if let Some(pipeline) = self.pipelines.get_mut(id) {
                pipeline.leases.push(lease);
            }
            self.tell(head, Down::Lease(lease));
        }
    }

    fn take_samples(&mut self) -> SampleRange {
        let count = self.config().training.batch;
        #[cfg(any(test, feature = "sim"))]
        if self.broken.lease_twice
            && let Some(lease) = self.pipelines.iter().find_map(|it| it.leases.last())
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

    /// Heads end the round with the step that they are in.
    pub(super) fn close_round(&mut self) {
        let mut closed = Vec::new();
        for pipeline in self.pipelines.iter_mut() {
            let goes_on = pipeline.phase == Phase::Training && !pipeline.has_done_all();
            if goes_on && !pipeline.closing {
                pipeline.closing = true;
                closed.push((pipeline.head(), pipeline.place));
            }
        }
        for (head, place) in closed {
            self.tell(head, Down::Close { place });
        }
    }

    /// The head's account of its round.
    pub(super) fn report(&mut self, now: Time, peer: PeerId, report: Report) {
        let Some(pipeline) = self.pipelines.at_mut(report.place) else {
            return;
        };
        if pipeline.head() != peer {
            return;
        }
        let (forward, backward) = pipeline.report.map_or((0, 0), |before| {
            (before.forward_bytes, before.backward_bytes)
        });
        if pipeline.take_report(now, report) {
            let is_training = pipeline.phase == Phase::Training;
            let has_done_all = pipeline.has_done_all();
            let total = &mut self.wire_bytes;
            let (forward, backward) = (
                report.forward_bytes.saturating_sub(forward),
                report.backward_bytes.saturating_sub(backward),
            );
            total.forward = total.forward.saturating_add(forward);
            total.backward = total.backward.saturating_add(backward);
            if is_training {
                self.top_up(report.place.pipeline);
                if has_done_all {
                    self.close_round();
                }
                self.end_round(now);
            }
        }
    }

    /// A loss on held-out data.
    pub(super) fn evaluated(&mut self, now: Time, peer: PeerId, place: Place, loss: f64) {
        let Some(pipeline) = self.pipelines.at(place) else {
            return;
        };
        if pipeline.head() == peer && pipeline.phase == Phase::Evaluating && loss.is_finite() {
            self.note(Row::Evaluated {
                round: place.round,
                loss,
            });
            self.begin(now, place.pipeline);
        }
    }

    /// A seat's result of the round, or of its merge.
    pub(super) fn holds(&mut self, now: Time, peer: PeerId, holds: Holds) {
        let merge = self.merging.as_ref().map(|merging| merging.attempt);
        let Some(pipeline) = self.pipelines.at_mut(holds.place) else {
            return;
        };
        let (result, own) = (pipeline.result, pipeline.attempt);
        let Some(seat) = pipeline.seat_mut(peer) else {
            return;
        };
        let fits = holds.stages.len() == seat.row.stages.count()
            && holds
                .stages
                .iter()
                .zip(seat.row.stages.iter())
                .all(|(held, stage)| (held.round, held.stage) == (result, stage));
        if !fits {
            return;
        }
        // Said again, it is no progress: else one that says it again and again holds everybody up.
        let is_news = if Some(holds.attempt) == merge {
            let is_news = seat.merged.is_none();
            seat.merged = Some(holds);
            if let Some(merging) = self.merging.as_mut().filter(|_| is_news) {
                merging.progressed = now;
            }
            is_news
        } else if own.is_none_or(|own| own == holds.attempt) {
            let before = seat.holds.replace(holds);
            before.is_none_or(|before| Some(before.attempt) != own)
        } else {
            // Of an attempt that is void.
            return;
        };
        if is_news {
            pipeline.progressed = now;
        }
        self.end_round(now);
    }
}
