//! Forming line-ups: who sits where, from which round, and when that changes.
//!
//! A line-up changes when a seat is lost, when its volunteer wants to leave, or between two rounds when
//! placement finds a better one. Each change is a new epoch, journaled before anybody hears of it.
//!
//! Looking at all volunteers is done between two rounds, and else at most once a tick: what one of thousands says
//! must not cost a look at all of them.

use super::history::{Row, SeatRow};
use super::pipeline::{Phase, Pipeline};
use super::{Awaited, Coordinator};
use crate::limits::{APART_MAX, BENCH, READY_MAX, TICK};
use crate::schedule::placement::{self, Given, LineUp, Links};
use crate::units::{PeerId, PipelineId, Round, StageId, Time};
use crate::wire::frame::Place;
use crate::wire::signal::{Down, Held};

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
        if self.over || self.history.paused().is_some() {
            return self.rest(now);
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

    /// Whether all volunteers may be looked at: once a tick.
    pub(super) fn may_look_at_all(&mut self, now: Time) -> bool {
        let may = now >= self.next_look;
        if may {
            self.next_look = now + TICK;
        }
        may
    }

    /// Between two rounds: a better line-up, the same one again, or the end.
    fn boundary(&mut self, now: Time) {
        if self.remaining_steps() == 0 {
            if self.may_look_at_all(now) {
                self.over_when_stored(now);
            }
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
        self.place(now, &self.links)
            .is_ok_and(|line_up| line_up == now_seated)
    }

    fn place(&self, now: Time, links: &Links) -> Result<LineUp, String> {
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
            links,
            seats_min,
        };
        placement::assign(&given, old.as_ref()).map_err(|error| error.to_string())
    }

    /// Where only pairs that could not connect keep a line-up from being formed, they try again after a while: a
    /// router that was in the way may be back. Gives what is waited for, if it is that.
    fn reunite(&mut self, now: Time) -> Option<String> {
        let mut links = self.links.clone();
        links.reunite();
        let (a, b) = *self.links.apart().first()?;
        self.place(now, &links).ok()?;
        if now >= *self.reunion.get_or_insert(now + APART_MAX) {
            self.reunion = None;
            self.links = links;
            self.link_failures.clear();
        }
        let name = |peer| Some(self.roster.get(peer)?.name.as_str());
        let (a, b) = (name(a)?, name(b)?);
        Some(format!(
            "{a} and {b} could not connect; they try again within a minute"
        ))
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
        if !self.may_look_at_all(now) {
            return;
        }
        if self.remaining_steps() == 0 {
            return self.over_when_stored(now);
        }
        let returning = self.roster.iter().find(|volunteer| volunteer.returning);
        if let Some(name) = returning.map(|volunteer| volunteer.name.clone()) {
            return self.everyone_waits(&format!("waiting for {name}, who may return at once"));
        }
        let line_up = match self.place(now, &self.links) {
            Ok(line_up) => line_up,
            Err(reason) => {
                let reason = self.reunite(now).unwrap_or(reason);
                return self.everyone_waits(&reason);
            }
        };
        self.reunion = None;
        if self.lost_stages(self.history.newest()).next().is_some() {
            return self.wait_or_rewind(now);
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

    /// Stages of `round` that can be had neither from the seed, nor from a volunteer, nor from the store.
    fn lost_stages(&self, round: Round) -> impl Iterator<Item = StageId> {
        let commit = self.history.get(round);
        let commit = commit.filter(|_| !self.has_manifest(round));
        let stages = commit.into_iter().flat_map(|commit| &commit.stages);
        let lost = stages.filter(|held| self.roster.holders(held).next().is_none());
        lost.map(|held| held.stage)
    }

    /// The newest round's state is not to be had. Who may still bring it is waited for; so is who may bring the state
    /// of a round that is newer than the newest of which all is here.
    fn wait_or_rewind(&mut self, now: Time) {
        let since = *self.lost_since.get_or_insert(now);
        let wait = self.config().schedule.rewind_wait;
        let mut hoped_for = None;
        let mut to = Round(0);
        for commit in self.history.newest_first() {
            let round = commit.round;
            let Some(stage) = self.lost_stages(round).next() else {
                to = round;
                break;
            };
            if hoped_for.is_none() && self.may_be_brought_back(round) {
                hoped_for = Some((round, stage));
            }
        }
        if let Some((round, stage)) = hoped_for.filter(|_| now < since + wait) {
            return self.everyone_waits(&format!(
                "waiting for a volunteer that holds stage {stage} of round {round}"
            ));
        }
        let row = Row::Rewind { to };
        self.journal(row.clone(), Awaited::Rewind(row));
    }

    /// Whether those who are away or gone may bring back all that is lost of `round`. After a restart of the host nobody
    /// knows who that is, so the newest round is hoped for until somebody comes back without it; an older one, which
    /// most have dropped, only where somebody is known to have had it.
    fn may_be_brought_back(&self, round: Round) -> bool {
        let is_newest = round == self.history.newest();
        self.lost_stages(round).all(|stage| {
            let at = (round, stage);
            self.roster.is_elsewhere(at) || is_newest && !self.roster.came_back_without(at)
        })
    }

    pub(super) fn rewind_journaled(&mut self, row: &Row) {
        self.history
            .apply(row)
            .expect("a rewind goes to a round that stands");
        let to = self.history.newest();
        self.open_anew();
        self.lost_since = None;
        self.safe = self.safe.min(to);
        self.stop_securing();
        self.missing.retain_rounds(|round| round <= to);
        self.roster.retain_rounds(|round| round <= to);
        for volunteer in self.roster.iter_mut() {
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
        self.waits_for = None;
        let pipeline = pipeline.clone();
        for index in 0..pipeline.seats.len() {
            let order = self.seat_order(&pipeline, index);
            let peer = pipeline.seats[index].row.peer;
            let told_of = order.previous.iter().chain(&order.next).chain(&order.keys);
            told_of.for_each(|other| self.conduct.introduce(peer, other.peer));
            let reason = match pipeline.seats.len() {
                1 => "you hold all stages".to_owned(),
                _ => format!("you hold {}", order.stages),
            };
            self.tell(peer, Down::Seat(Box::new(order)));
            self.reason(peer, reason);
        }
        self.tell_spares();
    }

    /// A seat has its links and states. With other states than the history names it is not ready: it gets them again.
    pub(super) fn ready(&mut self, now: Time, peer: PeerId, place: Place, stages: &[Held]) {
        let seat = self
            .pipeline
            .as_ref()
            .filter(|pipeline| pipeline.place == place)
            .and_then(|pipeline| pipeline.seat(peer));
        let Some(seat) = seat else { return };
        // Said again after a connection broke, it names the states of the round at which the line-up began.
        let named = stages.iter().filter(|held| held.round == place.round);
        let is_other = |held: &Held| *held != self.fetch(held.round, held.stage, peer).held;
        let is_of_seat = |held: &&Held| seat.row.stages.contains(held.stage);
        if !seat.ready && named.filter(is_of_seat).any(is_other) {
            return self.seat_is_wrong(now, peer, place.round);
        }
        let Some(pipeline) = &mut self.pipeline else {
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
            Phase::Training | Phase::Evaluating
                if now.since(pipeline.progressed) > pipeline.stall_after() =>
            {
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
}

fn seats_of(pipeline: &Pipeline) -> LineUp {
    let seats = pipeline
        .seats
        .iter()
        .map(|seat| (seat.row.peer, seat.row.stages))
        .collect();
    LineUp { seats }
}
