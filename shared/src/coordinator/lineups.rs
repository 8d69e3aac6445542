//! Forming line-ups: who sits where, from which round, and when that changes.
//!
//! All line-ups are looked at between two rounds: those that placement would not change begin at once, the others are
//! formed anew. In a round only a pipeline that lost a seat is: from those who sit nowhere else. Each change is a new
//! epoch, journaled before anybody hears of it.
//!
//! Looking at all volunteers is done between two rounds, and else at most once a tick: what one of thousands says
//! must not cost a look at all of them.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Row, SeatRow};
use super::pipeline::{Phase, Pipeline, Seat};
use super::{Awaited, Coordinator};
use crate::limits::{APART_MAX, BENCH, READY_MAX, TICK};
use crate::schedule::placement::{self, Given, LineUp, Links};
use crate::units::{PeerId, PipelineId, Round, StageId, StageRange, Time};
use crate::wire::frame::Place;
use crate::wire::signal::{Down, Held};

/// Line-ups by pipeline.
type LineUps = BTreeMap<PipelineId, LineUp>;

impl Coordinator {
    /// Does whatever the rules ask for now. Called after everything that happened.
    pub(super) fn reconsider(&mut self, now: Time) {
        self.pump_texts(now);
        if self.is_journaling() {
            return;
        }
        for id in self.pipelines.ids(|it| it.broken) {
            self.break_pipeline(id);
        }
        if self.over || self.history.paused().is_some() {
            return self.rest(now);
        }
        let is_lost = |pipeline: &Pipeline| match pipeline.phase {
            Phase::Resuming { until } => now >= until,
            Phase::Journaling
            | Phase::Forming
            | Phase::Evaluating
            | Phase::Training
            | Phase::Merging
            | Phase::Committing
            | Phase::Boundary => pipeline.peers().any(|peer| self.roster.get(peer).is_none()),
        };
        for id in self.pipelines.ids(is_lost) {
            self.break_pipeline(id);
        }
        self.end_round(now);
        if self.is_journaling() {
            return;
        }
        if self.remaining_steps() > 0 {
            let waits = |it: &Pipeline| it.phase == Phase::Boundary;
            // Nobody is in the round any more that they wait for.
            if !self.pipelines.is_empty() && self.pipelines.iter().all(waits) {
                self.plan_due = true;
            }
            self.line_up(now);
        } else if self.pipelines.in_round().next().is_none() && self.may_look_at_all(now) {
            self.over_when_stored(now);
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

    /// Between two rounds all line-ups are looked at; in a round those that are broken are formed again.
    fn line_up(&mut self, now: Time) {
        let is_between_rounds = std::mem::take(&mut self.plan_due);
        let is_anything_to_form = self.pipelines.is_empty() || !self.given_up.is_empty();
        if !(is_between_rounds || is_anything_to_form && self.may_look_at_all(now)) {
            return;
        }
        if self.pipelines.is_empty()
            && let Some(name) = self.whoever_returns()
        {
            return self.everyone_waits(&format!("waiting for {name}, who may return at once"));
        }
        let plan = match self.plan(now, is_between_rounds, &self.links) {
            Ok(plan) => plan,
            Err(reason) => {
                // Volunteers of a line-up that can't be formed may strengthen others, between two rounds.
                if self.pipelines.in_round().next().is_none() {
                    let idle = self.pipelines.ids(|it| it.phase == Phase::Boundary);
                    idle.into_iter().for_each(|id| self.break_pipeline(id));
                }
                if self.pipelines.is_empty() {
                    let reason = self.reunite(now).unwrap_or(reason);
                    self.everyone_waits(&reason);
                }
                return;
            }
        };
        self.reunion = None;
        if is_between_rounds {
            self.begin_next_round(now, &plan);
        }
        self.form(now, plan, is_between_rounds);
    }

    fn whoever_returns(&self) -> Option<String> {
        let returning = self.roster.iter().find(|volunteer| volunteer.returning);
        returning.map(|volunteer| volunteer.name.clone())
    }

    /// Line-ups that stay as they are begin the next round; the others end.
    fn begin_next_round(&mut self, now: Time, plan: &LineUps) {
        let idle = self.pipelines.ids(|it| it.phase == Phase::Boundary);
        let stays = |id: &PipelineId| {
            let pipeline = self.pipelines.get(*id);
            plan.get(id) == pipeline.map(seats_of).as_ref()
        };
        let (same, changed): (Vec<_>, Vec<_>) = idle.into_iter().partition(stays);
        for id in changed {
            self.break_pipeline(id);
        }
        for id in &same {
            if let Some(pipeline) = self.pipelines.get_mut(*id) {
                // Each is to have its share of what is left of the run.
                pipeline.phase = Phase::Forming;
            }
        }
        for id in same {
            self.begin(now, id);
        }
    }

    /// Line-ups of those that sit in no pipeline at work: of all pipelines between two rounds, else of those that broke.
    fn plan(&self, now: Time, is_between_rounds: bool, links: &Links) -> Result<LineUps, String> {
        let is_free = |it: &Pipeline| is_between_rounds && it.phase == Phase::Boundary;
        let is_busy = |peer| self.pipelines.of(peer).is_some_and(|it| !is_free(it));
        let newest = self.history.newest();
        let candidates: Vec<_> = self
            .roster
            .iter()
            .filter(|volunteer| volunteer.is_placeable(now) && !is_busy(volunteer.peer))
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
        let free = self.pipelines.iter().filter(|it| is_free(it));
        let mut old: LineUps = free.map(|it| (it.place.pipeline, seats_of(it))).collect();
        for (id, line_up) in &self.given_up {
            old.entry(*id).or_insert_with(|| line_up.clone());
        }
        let schedule = &self.config().schedule;
        let busy = self.pipelines.ids(|it| !is_free(it));
        let most = usize::from(schedule.pipelines_max).saturating_sub(busy.len());
        let wanted = if is_between_rounds || self.pipelines.is_empty() {
            most
        } else {
            self.given_up.len().min(most)
        };
        let given = Given {
            volunteers: &candidates,
            costs: &self.start.costs,
            links,
            seats_min: usize::from(schedule.seats_min),
        };
        let wanted = u16::try_from(wanted).expect("at most a run's pipelines");
        let plan =
            placement::assign_all(&given, &old, wanted).map_err(|error| error.to_string())?;
        let busy: BTreeSet<PipelineId> = busy.into_iter().collect();
        let plan = numbered(plan, &old, &busy);
        Ok(self.mergeable(plan, links, &busy))
    }

    /// Leaves out line-ups that could not merge with the others: two that hold the same stage are apart.
    fn mergeable(&self, mut plan: LineUps, links: &Links, busy: &BTreeSet<PipelineId>) -> LineUps {
        let apart = links.apart();
        if apart.is_empty() {
            return plan;
        }
        let mut seats: BTreeMap<PeerId, (PipelineId, StageRange)> = BTreeMap::new();
        for (id, line_up) in &plan {
            let of_it = line_up.seats.iter();
            seats.extend(of_it.map(|(peer, stages)| (*peer, (*id, *stages))));
        }
        for pipeline in busy.iter().filter_map(|id| self.pipelines.get(*id)) {
            let id = pipeline.place.pipeline;
            let rows = pipeline.seats.iter().map(|seat| seat.row);
            seats.extend(rows.map(|row| (row.peer, (id, row.stages))));
        }
        for (a, b) in apart {
            let (Some((one, stages)), Some((other, others))) = (seats.get(&a), seats.get(&b))
            else {
                continue;
            };
            let share_stages = stages.first < others.end && others.first < stages.end;
            let both = |id: &PipelineId| plan.contains_key(id) || busy.contains(id);
            if one != other && share_stages && both(one) && both(other) {
                let later = if plan.contains_key(one.max(other)) {
                    one.max(other)
                } else {
                    one.min(other)
                };
                plan.remove(later);
            }
        }
        plan
    }

    /// Where only pairs that could not connect keep a line-up from being formed, they try again after a while: a
    /// router that was in the way may be back. Gives what is waited for, if it is that.
    fn reunite(&mut self, now: Time) -> Option<String> {
        let mut links = self.links.clone();
        links.reunite();
        let (a, b) = *self.links.apart().first()?;
        self.plan(now, true, &links).ok()?;
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

    /// Ends the line-up of a volunteer, if it has a seat.
    pub(super) fn break_pipeline_of(&mut self, peer: PeerId) {
        if let Some(id) = self.pipelines.id_of(peer) {
            self.break_pipeline(id);
        }
    }

    /// Ends a line-up: its leases come again, its seats wait for a new one. A merge that it takes part in is void.
    pub(super) fn break_pipeline(&mut self, id: PipelineId) {
        let is_journaling = self.is_journaling();
        let Some(pipeline) = self.pipelines.get_mut(id) else {
            return;
        };
        if is_journaling {
            // Its leases may be part of the commit that is on its way to the disk.
            pipeline.broken = true;
            return;
        }
        if pipeline.phase == Phase::Merging {
            self.void_merge();
        }
        let Some(pipeline) = self.pipelines.remove(id) else {
            return;
        };
        if pipeline.phase == Phase::Forming && self.awaiting.is_some() {
            // It was waited for: once is enough.
            for peer in pipeline.peers() {
                if let Some(volunteer) = self.roster.get_mut(peer) {
                    volunteer.overtaken = false;
                }
            }
        }
        self.return_leases(&pipeline.leases);
        self.given_up.insert(id, seats_of(&pipeline));
        for peer in pipeline.peers() {
            self.tell(
                peer,
                Down::Spare {
                    place: pipeline.place,
                },
            );
        }
    }

    /// Forms the line-ups of `plan` that are not there, at the newest round, if its state is to be had.
    fn form(&mut self, now: Time, plan: LineUps, is_between_rounds: bool) {
        let missing: LineUps = plan
            .into_iter()
            .filter(|(id, _)| self.pipelines.get(*id).is_none())
            .collect();
        if !missing.is_empty() && self.lost_stages(self.history.newest()).next().is_some() {
            if self.pipelines.is_empty() {
                self.wait_or_rewind(now);
            }
            return;
        }
        self.lost_since = None;
        let round = self.history.newest();
        if is_between_rounds || self.pipelines.is_empty() {
            self.dissolve(&missing);
        }
        for (id, line_up) in missing {
            self.given_up.remove(&id);
            let place = Place {
                pipeline: id,
                epoch: self.issue(),
                round,
            };
            let seats = line_up.seats.iter();
            let seats: Vec<SeatRow> = seats
                .filter_map(|(peer, stages)| self.seat_row(*peer, *stages))
                .collect();
            let row = Row::LineUp {
                place,
                seats: seats.clone(),
            };
            self.pipelines.insert(Pipeline::new(now, place, seats));
            self.history
                .apply(&row)
                .expect("a line-up never breaks the rule");
            self.journal(row, Awaited::LineUp(id));
        }
    }

    /// Pipelines that are not to be formed again are no more, after a restart of the host either.
    fn dissolve(&mut self, formed: &LineUps) {
        let is_gone =
            |id: &PipelineId| !formed.contains_key(id) && self.pipelines.get(*id).is_none();
        let journaled = self.history.line_ups().iter();
        let gone: Vec<Place> = journaled
            .filter(|(id, _)| is_gone(id))
            .map(|(_, (place, _))| *place)
            .collect();
        for place in gone {
            self.given_up.remove(&place.pipeline);
            let seats = Vec::new();
            self.note(Row::LineUp { place, seats });
        }
        self.tell_spares();
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
    pub(super) fn line_up_journaled(&mut self, now: Time, id: PipelineId) {
        let Some(pipeline) = self.pipelines.get_mut(id) else {
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
        let seat = self.pipelines.at(place).and_then(|it| it.seat(peer));
        let Some(seat) = seat else { return };
        // Said again after a connection broke, it names the states of the round at which the line-up began.
        let named = stages.iter().filter(|held| held.round == place.round);
        let is_other = |held: &Held| held.agreed != self.agreed(held.round, held.stage);
        let is_of_seat = |held: &&Held| seat.row.stages.contains(held.stage);
        if !seat.ready && named.filter(is_of_seat).any(is_other) {
            return self.seat_is_wrong(now, peer, place.round);
        }
        let Some(pipeline) = self.pipelines.at_mut(place) else {
            return;
        };
        if let Some(seat) = pipeline.seat_mut(peer) {
            seat.ready = true;
        }
        let all_ready = pipeline.seats.iter().all(|seat| seat.ready);
        if pipeline.phase == Phase::Forming && all_ready {
            let peers: BTreeSet<PeerId> = pipeline.peers().collect();
            self.link_failures
                .retain(|(a, b), _| !(peers.contains(a) && peers.contains(b)));
            self.begin(now, place.pipeline);
        }
    }

    /// Looks at the pipelines' clocks: not ready in time, no step for too long, a round too long.
    pub(super) fn check_pipelines(&mut self, now: Time) {
        if self.is_journaling() {
            return;
        }
        let round_max = self.config().schedule.round_max;
        for id in self.pipelines.ids(|_| true) {
            let Some(pipeline) = self.pipelines.get(id) else {
                continue;
            };
            match pipeline.phase {
                Phase::Forming if now.since(pipeline.began) > READY_MAX => self.not_ready(now, id),
                Phase::Training | Phase::Evaluating
                    if pipeline.agreed_steps().is_none()
                        && now.since(pipeline.progressed) > pipeline.stall_after() =>
                {
                    self.break_pipeline(id);
                }
                Phase::Training if now.since(pipeline.began) > round_max => self.close_round(),
                Phase::Journaling
                | Phase::Forming
                | Phase::Evaluating
                | Phase::Training
                | Phase::Merging
                | Phase::Committing
                | Phase::Boundary
                | Phase::Resuming { .. } => {}
            }
        }
        self.check_merge(now);
    }

    /// A line-up was not ready in time: whoever kept it waiting gets no seat for a while.
    fn not_ready(&mut self, now: Time, id: PipelineId) {
        let text = "your seat was not ready in time; another one follows";
        self.bench(now, id, |seat| !seat.ready, text);
    }

    /// Ends a line-up for what some of its seats did: they get none for a while, and are told why.
    pub(super) fn bench(
        &mut self,
        now: Time,
        id: PipelineId,
        is_at_fault: impl Fn(&Seat) -> bool,
        text: &str,
    ) {
        let seats = self.pipelines.get(id).into_iter().flat_map(|it| &it.seats);
        let at_fault = seats
            .filter(|seat| is_at_fault(seat))
            .map(|seat| seat.row.peer);
        for peer in at_fault.collect::<Vec<PeerId>>() {
            if let Some(volunteer) = self.roster.get_mut(peer) {
                volunteer.benched_until = Some(now + BENCH);
                volunteer.overtaken = false;
            }
            self.reason(peer, text.to_owned());
        }
        self.break_pipeline(id);
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

/// A plan whose new pipelines have numbers that nobody has.
fn numbered(plan: LineUps, old: &LineUps, busy: &BTreeSet<PipelineId>) -> LineUps {
    let (mut known, new): (LineUps, LineUps) =
        plan.into_iter().partition(|(id, _)| old.contains_key(id));
    let mut number = 0;
    for line_up in new.into_values() {
        while known.contains_key(&PipelineId(number)) || busy.contains(&PipelineId(number)) {
            number += 1;
        }
        known.insert(PipelineId(number), line_up);
    }
    known
}
