//! Forming line-ups: who sits where, from which round, and when that changes.
//!
//! A line-up changes when a seat is lost, when its volunteer wants to leave, or between two rounds when
//! placement finds a better one. Each change is a new epoch, journaled before anybody hears of it.

use std::collections::BTreeSet;

use super::history::{Row, SeatRow};
use super::pipeline::{Phase, Pipeline};
use super::{Awaited, Coordinator, Output};
use crate::limits::{BENCH, READY_MAX, STALL_MAX, STRIKES_MAX};
use crate::schedule::placement::{self, Given, LineUp};
use crate::units::{Digest, PeerId, PipelineId, Round, StageId, StageRange, Time};
use crate::wire::frame::Place;
use crate::wire::signal::{Down, Fetch, Held, Neighbour, Resume, SeatOrder, Source};

/// What a volunteer without a seat is told.
const SPARE: &str = "spare: you keep copies until a seat is free";
/// What a volunteer is told whose device is not to be trusted with a seat.
const STRUCK: &str = "no seat for you: this device made numbers that are not finite, twice; you keep copies. \
                      See `shoal doctor`, and start again with another --gpu";

impl Coordinator {
    /// Does whatever the rules ask for now. Called after everything that happened.
    pub(super) fn reconsider(&mut self, now: Time) {
        if self.is_journaling() {
            return;
        }
        if self
            .pipeline
            .as_ref()
            .is_some_and(|pipeline| pipeline.broken)
        {
            self.break_pipeline();
        }
        self.release_finished();
        if self.over || self.paused.is_some() {
            return self.rest();
        }
        let Some(pipeline) = &self.pipeline else {
            return self.form(now);
        };
        if let Phase::Resuming { until } = pipeline.phase {
            if now >= until {
                self.break_pipeline();
                self.form(now);
            }
            return;
        }
        let all_here = pipeline.peers().all(|peer| self.roster.get(peer).is_some());
        match (all_here, pipeline.phase) {
            (false, _) => {
                self.break_pipeline();
                self.form(now);
            }
            (true, Phase::Boundary) => self.boundary(now),
            (true, _) => {}
        }
    }

    /// Between two rounds: a better line-up, the same one again, or the end.
    fn boundary(&mut self, now: Time) {
        if self.remaining_steps() == 0 {
            self.over_when_stored(now);
        } else if self.is_best_line_up(now) {
            self.begin(now);
        } else {
            self.break_pipeline();
            self.form(now);
        }
    }

    fn is_best_line_up(&self, now: Time) -> bool {
        let Some(pipeline) = &self.pipeline else {
            return false;
        };
        let now_seated = seats_of(pipeline);
        self.place(now).is_ok_and(|line_up| line_up == now_seated)
    }

    fn place(&self, now: Time) -> Result<LineUp, String> {
        let newest = self.history.newest();
        let candidates: Vec<_> = self
            .roster
            .iter()
            .filter(|volunteer| volunteer.is_placeable(now))
            .map(|volunteer| {
                let holds = volunteer
                    .kept
                    .keys()
                    .filter(|(round, _)| *round == newest)
                    .map(|(_, stage)| *stage)
                    .collect();
                volunteer.candidate(holds)
            })
            .collect();
        let old = self.pipeline.as_ref().map(seats_of);
        let old = old.or_else(|| self.given_up.clone());
        let seats_min = usize::from(self.config().schedule.seats_min);
        let given = Given {
            volunteers: &candidates,
            costs: &self.start.costs,
            links: &self.links,
            seats_min,
        };
        placement::assign(&given, old.as_ref()).map_err(|error| error.to_string())
    }

    /// Ends the line-up: its leases come again, its seats wait for a new one.
    pub(super) fn break_pipeline(&mut self) {
        if let (true, Some(pipeline)) = (self.is_journaling(), &mut self.pipeline) {
            // Its leases may be part of the commit that is on its way to the disk.
            pipeline.broken = true;
            return;
        }
        let Some(pipeline) = self.pipeline.take() else {
            return;
        };
        self.return_leases(&pipeline.leases);
        self.given_up = Some(seats_of(&pipeline));
        for peer in pipeline.peers() {
            self.tell(
                peer,
                Down::Spare {
                    place: pipeline.place,
                },
            );
        }
    }

    /// Forms a line-up from whoever is here, at the newest round whose state is to be had.
    fn form(&mut self, now: Time) {
        if self.remaining_steps() == 0 {
            return self.over_when_stored(now);
        }
        let returning = self.roster.iter().find(|volunteer| volunteer.returning);
        if let Some(name) = returning.map(|volunteer| volunteer.name.clone()) {
            return self.everyone_waits(&format!("waiting for {name}, who may return at once"));
        }
        let line_up = match self.place(now) {
            Ok(line_up) => line_up,
            Err(reason) => return self.everyone_waits(&reason),
        };
        if let Some(stage) = self.lost_stage(self.history.newest()) {
            return self.wait_or_rewind(now, stage);
        }
        self.lost_since = None;
        let epoch = self.issue();
        let place = Place {
            pipeline: PipelineId(0),
            epoch,
            round: self.history.newest(),
        };
        let seats: Vec<SeatRow> = line_up
            .seats
            .iter()
            .filter_map(|(peer, stages)| self.seat_row(*peer, *stages))
            .collect();
        let row = Row::LineUp {
            place,
            seats: seats.clone(),
        };
        self.pipeline = Some(Pipeline::new(now, place, seats));
        self.history
            .apply(&row)
            .expect("a line-up never breaks the rule");
        self.journal(row, Awaited::LineUp);
    }

    fn seat_row(&self, peer: PeerId, stages: StageRange) -> Option<SeatRow> {
        let volunteer = self.roster.get(peer)?;
        Some(SeatRow {
            peer,
            key: volunteer.key,
            session: volunteer.session,
            stages,
        })
    }

    /// A stage of `round` that can be had neither from the seed, nor from a volunteer, nor from the store.
    fn lost_stage(&self, round: Round) -> Option<StageId> {
        let commit = self.history.get(round)?;
        if self.has_manifest(round) {
            return None;
        }
        let lost = commit
            .stages
            .iter()
            .find(|held| self.roster.holders(held).next().is_none());
        lost.map(|held| held.stage)
    }

    fn wait_or_rewind(&mut self, now: Time, stage: StageId) {
        let since = *self.lost_since.get_or_insert(now);
        let wait = self.config().schedule.rewind_wait;
        if now < since + wait {
            return self.everyone_waits(&format!(
                "waiting for a volunteer that holds stage {stage} of round {}",
                self.history.newest()
            ));
        }
        let standing = self.history.newest_first().map(|commit| commit.round);
        let to = standing
            .into_iter()
            .find(|round| self.lost_stage(*round).is_none());
        let row = Row::Rewind {
            to: to.unwrap_or(Round(0)),
        };
        self.journal(row.clone(), Awaited::Rewind(row));
    }

    pub(super) fn rewind_journaled(&mut self, row: &Row) {
        self.history
            .apply(row)
            .expect("a rewind goes to a round that stands");
        let to = self.history.newest();
        let (waiting, fresh) = self.history.waiting(self.config().training.batch);
        (self.queue, self.fresh) = (waiting.into(), fresh);
        self.lost_since = None;
        self.safe = self.safe.min(to);
        self.stop_securing();
        for volunteer in self.roster.iter_mut() {
            volunteer.kept.retain(|(round, _), _| *round <= to);
            volunteer.copying = None;
        }
        self.tell_all(&Down::Rewind { to });
    }

    /// The line-up is synced: its seats may hear of it.
    pub(super) fn line_up_journaled(&mut self, now: Time) {
        let Some(pipeline) = &mut self.pipeline else {
            return;
        };
        pipeline.phase = Phase::Forming;
        pipeline.began = now;
        let pipeline = pipeline.clone();
        for index in 0..pipeline.seats.len() {
            let order = self.seat_order(&pipeline, index);
            let peer = pipeline.seats[index].row.peer;
            let reason = match pipeline.seats.len() {
                1 => "you hold all stages".to_owned(),
                _ => format!("you hold {}", order.stages),
            };
            self.tell(peer, Down::Seat(Box::new(order)));
            self.reason(peer, reason);
        }
        self.tell_spares();
    }

    fn seat_order(&self, pipeline: &Pipeline, index: usize) -> SeatOrder {
        let SeatRow { peer, stages, .. } = pipeline.seats[index].row;
        let neighbour = |index: usize| {
            let row = pipeline.seats.get(index)?.row;
            Some(Neighbour {
                peer: row.peer,
                key: row.key,
            })
        };
        let state: Vec<Fetch> = stages
            .iter()
            .map(|stage| self.fetch(pipeline.place.round, stage, peer))
            .collect();
        SeatOrder {
            place: pipeline.place,
            stages,
            previous: index.checked_sub(1).and_then(neighbour),
            next: neighbour(index + 1),
            seats_behind: u16::try_from(pipeline.seats.len() - 1 - index)
                .expect("fewer seats than stages"),
            keys: self.keys(&state),
            state,
        }
    }

    /// What a stage's state is at `round`, and where `peer` can get it.
    pub(super) fn fetch(&self, round: Round, stage: StageId, peer: PeerId) -> Fetch {
        let Some(commit) = self.history.get(round) else {
            let (agreed, blob) = (Digest::default(), Digest::default());
            return Fetch {
                held: Held {
                    round,
                    stage,
                    agreed,
                    blob,
                },
                sources: vec![Source::Seed],
            };
        };
        let held = commit.stages[usize::from(stage.0)];
        let peers = self
            .roster
            .holders(&held)
            .filter(|volunteer| volunteer.peer != peer)
            .map(|volunteer| Source::Peer(volunteer.peer));
        let stored = self
            .has_manifest(round)
            .then(|| Source::Store(format!("/store/blobs/{}", held.blob)));
        Fetch {
            held,
            sources: peers.take(4).chain(stored).collect(),
        }
    }

    /// Keys of all peers named as sources.
    pub(super) fn keys(&self, state: &[Fetch]) -> Vec<Neighbour> {
        let peers: BTreeSet<PeerId> = state
            .iter()
            .flat_map(|fetch| &fetch.sources)
            .filter_map(|source| match source {
                Source::Peer(peer) => Some(*peer),
                Source::Seed | Source::Store(_) => None,
            })
            .collect();
        let key = |peer: PeerId| {
            Some(Neighbour {
                peer,
                key: self.roster.get(peer)?.key,
            })
        };
        peers.into_iter().filter_map(key).collect()
    }

    /// A seat has its links and states.
    pub(super) fn ready(&mut self, now: Time, peer: PeerId, place: Place) {
        let Some(pipeline) = self
            .pipeline
            .as_mut()
            .filter(|pipeline| pipeline.place == place)
        else {
            return;
        };
        if let Some(seat) = pipeline.seat_mut(peer) {
            seat.ready = true;
        }
        let all_ready = pipeline.seats.iter().all(|seat| seat.ready);
        if pipeline.phase == Phase::Forming && all_ready {
            self.link_failures.clear();
            self.begin(now);
        }
    }

    /// A seat's volunteer is back, after its connection or the host broke: both sides compare notes.
    pub(super) fn resync(&mut self, now: Time, peer: PeerId, resume: Resume) {
        let Some(pipeline) = &mut self.pipeline else {
            return;
        };
        let Some(place) = resume.place else { return };
        let place_now = pipeline.place;
        let is_head = pipeline.head() == peer;
        if let Some(seat) = pipeline.seat_mut(peer) {
            seat.resumed = true;
        }
        if place.round != place_now.round {
            // The commit's row was synced, its message was lost.
            self.say_commit(peer, place_now.round);
            if let Some(seat) = self.pipeline.as_mut().and_then(|p| p.seat_mut(peer)) {
                seat.ready = true;
            }
        } else {
            if let (Phase::Resuming { .. }, true) = (pipeline.phase, is_head) {
                pipeline.leases.clone_from(&resume.leases);
                pipeline.attempt = resume.attempt;
                let leased: Vec<_> = pipeline.leased_samples().collect();
                self.take_out(&leased);
            }
            if let Some(report) = resume.report {
                self.report(now, peer, report);
            }
            if let Some(holds) = resume.holds {
                self.holds(now, peer, holds);
            }
        }
        self.resume_pipeline(now);
        self.say_round_again(peer);
    }

    /// All seats are back after a restart: go on where they are.
    fn resume_pipeline(&mut self, now: Time) {
        let Some(pipeline) = &mut self.pipeline else {
            return;
        };
        let is_resuming = matches!(pipeline.phase, Phase::Resuming { .. });
        if !is_resuming || !pipeline.seats.iter().all(|seat| seat.resumed) {
            return;
        }
        pipeline.began = now;
        pipeline.progressed = now;
        if pipeline.attempt.is_some() {
            pipeline.phase = Phase::Training;
            pipeline.steps_target = self.start.config.schedule.round_steps;
            self.top_up();
            self.try_commit(now);
        } else {
            pipeline.phase = Phase::Forming;
            if pipeline.seats.iter().all(|seat| seat.ready) {
                self.begin(now);
            }
        }
    }

    /// Looks at a pipeline's clocks: not ready in time, no step for too long, a round too long.
    pub(super) fn check_pipeline(&mut self, now: Time) {
        if self.is_journaling() {
            return;
        }
        let round_max = self.config().schedule.round_max;
        let Some(pipeline) = &mut self.pipeline else {
            return;
        };
        match pipeline.phase {
            Phase::Forming if now.since(pipeline.began) > READY_MAX => {
                let late: Vec<PeerId> = pipeline
                    .seats
                    .iter()
                    .filter(|seat| !seat.ready)
                    .map(|seat| seat.row.peer)
                    .collect();
                for peer in late {
                    if let Some(volunteer) = self.roster.get_mut(peer) {
                        volunteer.benched_until = Some(now + BENCH);
                    }
                    self.reason(
                        peer,
                        "your seat was not ready in time; another one follows".to_owned(),
                    );
                }
                self.break_pipeline();
            }
            Phase::Training | Phase::Evaluating if now.since(pipeline.progressed) > STALL_MAX => {
                self.break_pipeline();
            }
            Phase::Training if !pipeline.closing && now.since(pipeline.began) > round_max => {
                pipeline.closing = true;
                let (head, place) = (pipeline.head(), pipeline.place);
                self.tell(head, Down::Close { place });
            }
            Phase::Journaling
            | Phase::Forming
            | Phase::Evaluating
            | Phase::Training
            | Phase::Committing
            | Phase::Boundary
            | Phase::Resuming { .. } => {}
        }
    }

    /// A paused or finished run has no line-up.
    fn rest(&mut self) {
        self.break_pipeline();
        if let Some(reason) = self.paused.clone() {
            self.everyone_waits(&reason);
        }
    }

    fn everyone_waits(&mut self, reason: &str) {
        let peers: Vec<PeerId> = self.roster.iter().map(|volunteer| volunteer.peer).collect();
        for peer in peers {
            self.wait_reason(peer, reason);
        }
    }

    fn tell_spares(&mut self) {
        let Some(pipeline) = &self.pipeline else {
            return;
        };
        let seated: BTreeSet<PeerId> = pipeline.peers().collect();
        let spares: Vec<PeerId> = self
            .roster
            .iter()
            .map(|volunteer| volunteer.peer)
            .filter(|peer| !seated.contains(peer))
            .collect();
        for peer in spares {
            self.wait_reason(peer, SPARE);
        }
    }

    /// Tells a volunteer without a seat why it has none: what all wait for, or what is wrong with itself.
    fn wait_reason(&mut self, peer: PeerId, common: &str) {
        let volunteer = self.roster.get(peer);
        let is_struck = volunteer.is_some_and(|it| it.strikes >= STRIKES_MAX);
        let text = if is_struck { STRUCK } else { common };
        self.reason(peer, text.to_owned());
    }

    /// Tells a volunteer why it waits or what it does, when that changed. Whoever rests knows why.
    pub(super) fn reason(&mut self, peer: PeerId, text: String) {
        let is_seated = self.is_seated(peer);
        let Some(volunteer) = self.roster.get_mut(peer) else {
            return;
        };
        let resting = volunteer.paused.filter(|_| !is_seated);
        let text = resting.map_or(text, |pause| pause.words().to_owned());
        if volunteer.reason != text {
            volunteer.reason.clone_from(&text);
            self.tell(peer, Down::Reason { text });
        }
    }

    /// Lets a volunteer go that wants to, once all that it alone holds of the newest round is elsewhere.
    fn release_finished(&mut self) {
        let newest = self.history.newest();
        let seated: BTreeSet<PeerId> = self.pipeline.iter().flat_map(Pipeline::peers).collect();
        let commit = self.history.get(newest);
        let is_needed = |peer: PeerId| {
            let stored = self.has_manifest(newest);
            commit.is_some_and(|commit| {
                !stored
                    && commit.stages.iter().any(|held| {
                        let mut holders = self.roster.holders(held).map(|holder| holder.peer);
                        let mut others = self.roster.holders(held).filter(|v| v.peer != peer);
                        holders.any(|holder| holder == peer) && others.all(|v| v.finishing)
                    })
            })
        };
        let free: Vec<PeerId> = self
            .roster
            .iter()
            .filter(|volunteer| volunteer.finishing && !volunteer.released)
            .map(|volunteer| volunteer.peer)
            .filter(|peer| !seated.contains(peer) && !is_needed(*peer))
            .collect();
        for peer in free {
            if let Some(volunteer) = self.roster.get_mut(peer) {
                volunteer.released = true;
            }
            self.tell(peer, Down::Released);
        }
    }

    /// The run has its length: once the last round is in the store, everybody may go.
    fn over_when_stored(&mut self, now: Time) {
        let newest = self.history.newest();
        if !self.has_manifest(newest) {
            self.everyone_waits("the run is complete; its last state goes to the store");
            return self.secure(now, true);
        }
        self.over = true;
        self.break_pipeline();
        let connections: Vec<_> = self
            .roster
            .iter()
            .filter_map(|volunteer| volunteer.connection)
            .collect();
        for connection in connections {
            self.out(Output::Send(
                connection,
                Down::Refuse {
                    code: crate::wire::signal::RefuseCode::Over,
                    text: "the run has reached its length".to_owned(),
                    remedy: "export the model from the host's page".to_owned(),
                },
            ));
        }
    }
}

fn seats_of(pipeline: &Pipeline) -> LineUp {
    let seats = pipeline
        .seats
        .iter()
        .map(|seat| (seat.row.peer, seat.row.stages))
        .collect();
    LineUp { seats }
}
