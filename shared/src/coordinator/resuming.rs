//! A seat's volunteer is back, after its connection or the host broke: both sides compare notes.
//!
//! A volunteer is believed about its own work as far as the journal and the line-up bear it out; what it says again has
//! no effect twice.

use std::collections::BTreeSet;

use super::Coordinator;
use super::pipeline::{Phase, Pipeline};
use crate::units::{PeerId, PipelineId, SampleRange, Time};
use crate::wire::frame::Place;
use crate::wire::signal::{Down, Held, Holds, Resume};

impl Coordinator {
    /// Whether its seat goes on: the same line-up, at this round or just before its commit.
    pub(super) fn may_resume(&self, resume: &Resume) -> bool {
        let Some(pipeline) = self.pipelines.of(resume.peer) else {
            return false;
        };
        let Some(place) = resume.place else {
            return false;
        };
        let before = self.history.get(pipeline.place.round);
        let missed_commit = before.is_some_and(|commit| {
            let is_committed = |held: &Held| {
                let committed = commit.stages.get(usize::from(held.stage.0));
                committed.is_some_and(|it| it.agreed == held.agreed)
            };
            let mut results = resume.holds.iter().chain(&resume.merged);
            let result = results.find(|it| it.attempt == commit.attempt);
            // Who merged something else than most did goes on from what they agreed on.
            commit.parent == place.round
                && result.is_some_and(|it| it.stages.iter().all(is_committed))
        });
        pipeline.seat(resume.peer).is_some()
            && self.leases_fit(pipeline, place, resume)
            && pipeline.phase != Phase::Journaling
            && place.epoch == pipeline.place.epoch
            && (place.round == pipeline.place.round || missed_commit)
    }

    /// Whether a volunteer was leased what it brings back, as far as the host can tell. After a restart of the host the
    /// head alone knows; it can't lease itself what no host would, or what is trained already.
    fn leases_fit(&self, pipeline: &Pipeline, place: Place, resume: &Resume) -> bool {
        let batch = self.config().training.batch;
        let steps_max = self.config().schedule.round_steps;
        let Some(leases) = resume.leases.unpack(place, batch, steps_max) else {
            return false;
        };
        let is_asked = matches!(pipeline.phase, Phase::Resuming { .. })
            && pipeline.head() == resume.peer
            && place.round == pipeline.place.round;
        if !is_asked {
            return true;
        }
        let total = self.config().training.samples;
        let farthest = self.fresh + total.min(u64::from(batch) * u64::from(u16::MAX));
        let are_whole = leases.iter().all(|lease| {
            let first = lease.samples.first;
            first.is_multiple_of(u64::from(batch)) && first < farthest
        });
        let count = u32::try_from(leases.len()).expect("at most a round's steps");
        let report = resume.report.filter(|report| report.place == place);
        let reported = report.map_or(0, |report| report.steps);
        let samples = leases.iter().map(|lease| lease.samples);
        let others = self
            .pipelines
            .iter()
            .filter(|it| it.place != pipeline.place);
        let of_others: BTreeSet<SampleRange> = others.flat_map(Pipeline::leased_samples).collect();
        are_whole
            && count <= steps_max.min(self.remaining_steps())
            && samples.clone().all(|samples| !of_others.contains(&samples))
            && count >= pipeline.steps_done().max(reported)
            && self.history.sample_twice(samples).is_none()
    }

    /// Goes on with a seat whose volunteer came back.
    pub(super) fn resync(&mut self, now: Time, peer: PeerId, resume: Resume) {
        let Some(pipeline) = self.pipelines.of_mut(peer) else {
            return;
        };
        let Some(place) = resume.place else { return };
        let training = &self.start.config.training;
        let steps_max = self.start.config.schedule.round_steps;
        let leases = resume
            .leases
            .unpack(place, training.batch, steps_max)
            .unwrap_or_default();
        let place_now = pipeline.place;
        let is_head = pipeline.head() == peer;
        if let Some(seat) = pipeline.seat_mut(peer) {
            seat.resumed = true;
        }
        if place.round != place_now.round {
            // The commit's row was synced, its message was lost.
            self.say_commit(peer, place_now.round);
            if let Some(seat) = self.pipelines.seat_mut(peer) {
                seat.ready = true;
            }
        } else {
            if let (Phase::Resuming { .. }, true) = (pipeline.phase, is_head) {
                let before = std::mem::replace(&mut pipeline.leases, leases);
                pipeline.attempt = resume.attempt;
                let leased: Vec<_> = pipeline.leased_samples().collect();
                // It may have come back before, with others.
                self.return_leases(&before);
                self.take_out(&leased);
            }
            if let Some(report) = resume.report {
                self.report(now, peer, report);
            }
            if let Some(holds) = resume.holds {
                self.holds(now, peer, holds);
            }
            self.resync_merge(now, peer, resume.merged);
        }
        if self.resume_pipeline(now, place.pipeline) {
            // Those who came back before it went on were told nothing.
            let pipeline = self.pipelines.get(place.pipeline).into_iter();
            for seated in pipeline.flat_map(Pipeline::peers).collect::<Vec<_>>() {
                self.say_round_again(seated);
            }
        } else {
            self.say_round_again(peer);
        }
    }

    /// What somebody who is back has merged.
    fn resync_merge(&mut self, now: Time, peer: PeerId, merged: Option<Holds>) {
        let Some(attempt) = self.merging.as_ref().map(|merging| merging.attempt) else {
            return;
        };
        let is_in_it = |it: &Pipeline| it.phase == Phase::Merging;
        match merged.filter(|merged| merged.attempt == attempt) {
            Some(merged) => self.holds(now, peer, merged),
            None if self.pipelines.of(peer).is_some_and(is_in_it) => self.merge_again(now),
            None => {}
        }
    }

    /// A volunteer sees its neighbours at something it was not told of: it is told again. Nothing of it acts twice.
    pub(super) fn asked(&mut self, peer: PeerId, at: Option<Place>) {
        let Some(pipeline) = self.pipelines.of(peer) else {
            return self.has_no_seat(peer, at);
        };
        if let Phase::Journaling | Phase::Resuming { .. } = pipeline.phase {
            // It is told once the line-up is synced, or back.
            return;
        }
        let place = pipeline.place;
        let seat = pipeline.seats.iter().position(|seat| seat.row.peer == peer);
        let Some(index) = seat else { return };
        if at.is_none_or(|at| at.epoch != place.epoch) {
            let order = self.seat_order(pipeline, index);
            return self.tell(peer, Down::Seat(Box::new(order)));
        }
        if at.is_some_and(|at| at.round != place.round) {
            self.say_commit(peer, place.round);
        }
        self.say_round_again(peer);
    }

    /// Somebody without a seat believes to have one, or to be told of one.
    fn has_no_seat(&mut self, peer: PeerId, at: Option<Place>) {
        if let Some(place) = at.or_else(|| self.pipelines.iter().map(|it| it.place).next()) {
            self.tell(peer, Down::Spare { place });
        }
    }

    /// Once all seats are back after a restart, they go on where they are. Whether they did so now.
    fn resume_pipeline(&mut self, now: Time, id: PipelineId) -> bool {
        let steps_target = self.steps_target();
        let Some(pipeline) = self.pipelines.get_mut(id) else {
            return false;
        };
        let is_resuming = matches!(pipeline.phase, Phase::Resuming { .. });
        if !is_resuming || !pipeline.seats.iter().all(|seat| seat.resumed) {
            return false;
        }
        pipeline.began = now;
        pipeline.progressed = now;
        if pipeline.attempt.is_some() {
            pipeline.phase = Phase::Training;
            // What ends with a lease that is known is as long as it was.
            let known = pipeline.leases.iter().any(|lease| lease.last);
            let leased = u32::try_from(pipeline.leases.len()).expect("a round's steps fit u32");
            pipeline.steps_target = if known {
                leased
            } else {
                steps_target.max(leased)
            };
            let training = self.pipelines.ids(|it| it.phase == Phase::Training);
            training.into_iter().for_each(|id| self.top_up(id));
            if self.pipelines.in_round().any(Pipeline::has_done_all) {
                self.close_round();
            }
            self.end_round(now);
        } else {
            pipeline.phase = Phase::Forming;
            if pipeline.seats.iter().all(|seat| seat.ready) {
                self.begin(now, id);
            }
        }
        true
    }
}
