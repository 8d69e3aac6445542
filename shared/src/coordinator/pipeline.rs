//! One pipeline's line-up and how far it is in its round, as the host knows it.
//!
//! Holds what seats said; decides nothing. Steps of a round are known by their leases, in order: a lease is
//! done when the head's report counts it.

use std::collections::VecDeque;

use crate::limits::{HUNG_TIMES, RESUME_MAX, STALL_MAX, STALL_MIN};
use crate::units::{Attempt, PeerId, Round, SampleRange, Span, Time};
use crate::wire::frame::Place;
use crate::wire::signal::{Holds, Lease, Report};

use super::history::{CommitRow, History, SeatRow};

/// A seat, as the host knows it.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Who sits there, and its stages.
    pub row: SeatRow,
    /// Whether links are up and states in place.
    pub ready: bool,
    /// Whether it came back after the host's restart.
    pub resumed: bool,
    /// Its result of the round.
    pub holds: Option<Holds>,
    /// What the merge under way made of it and of others.
    pub merged: Option<Holds>,
}

/// How far a pipeline is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The line-up is on its way to the disk.
    Journaling,
    /// Seats fetch states and open links.
    Forming,
    /// Held-out data goes through the pipe.
    Evaluating,
    /// The round is under way.
    Training,
    /// What it trained is being merged with what others did.
    Merging,
    /// The commit is on its way to the disk.
    Committing,
    /// Between a commit and the next round.
    Boundary,
    /// The host restarted: who of the line-up comes back?
    Resuming {
        /// How long it is waited for.
        until: Time,
    },
}

/// One pipeline.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Line-up, and the round it trains from.
    pub place: Place,
    /// Its seats, head first.
    pub seats: Vec<Seat>,
    /// How far it is.
    pub phase: Phase,
    /// The attempt at this round's end.
    pub attempt: Option<Attempt>,
    /// The number that the round's result gets.
    pub result: Round,
    /// Leases of this round, by step.
    pub leases: Vec<Lease>,
    /// Steps that this round is to have.
    pub steps_target: u32,
    /// The head's last report in this round.
    pub report: Option<Report>,
    /// Whether the head was told to end the round early.
    pub closing: bool,
    /// Whether it is to end once what is being journaled is synced.
    pub broken: bool,
    /// When the phase or round began.
    pub began: Time,
    /// When anything last went forward.
    pub progressed: Time,
    /// What the line-up's last steps took.
    step_spans: VecDeque<Span>,
}

/// Steps whose median says what one takes.
const STEPS_TIMED: usize = 16;

impl Pipeline {
    /// A line-up that is about to be journaled.
    pub fn new(now: Time, place: Place, seats: Vec<SeatRow>) -> Self {
        let seats = seats
            .into_iter()
            .map(|row| Seat {
                row,
                ready: false,
                resumed: true,
                holds: None,
                merged: None,
            })
            .collect();
        Self {
            place,
            seats,
            phase: Phase::Journaling,
            attempt: None,
            result: place.round.next(),
            leases: Vec::new(),
            steps_target: 0,
            report: None,
            closing: false,
            broken: false,
            began: now,
            progressed: now,
            step_spans: VecDeque::new(),
        }
    }

    /// A line-up of the journal, after a restart of the host. `None` if the newest round went on without it.
    pub fn resumed(
        now: Time,
        history: &History,
        (place, seats): &(Place, Vec<SeatRow>),
    ) -> Option<Self> {
        let newest = history.newest();
        let took_part = |commit: &CommitRow| commit.member(place.pipeline, place.epoch).is_some();
        if place.round != newest && !history.get(newest).is_some_and(took_part) {
            return None;
        }
        // Commits since the line-up was journaled moved its round on.
        let place = Place {
            round: newest,
            ..*place
        };
        let mut pipeline = Self::new(now, place, seats.clone());
        pipeline.phase = Phase::Resuming {
            until: now + RESUME_MAX,
        };
        pipeline.result = history.next_round();
        pipeline
            .seats
            .iter_mut()
            .for_each(|seat| seat.resumed = false);
        Some(pipeline)
    }

    /// The first seat's volunteer.
    pub fn head(&self) -> PeerId {
        self.seats[0].row.peer
    }

    /// The seat of a volunteer.
    pub fn seat_mut(&mut self, peer: PeerId) -> Option<&mut Seat> {
        self.seats.iter_mut().find(|seat| seat.row.peer == peer)
    }

    /// The seat of a volunteer.
    pub fn seat(&self, peer: PeerId) -> Option<&Seat> {
        self.seats.iter().find(|seat| seat.row.peer == peer)
    }

    /// Whether two volunteers sit next to each other.
    pub fn are_neighbours(&self, one: PeerId, other: PeerId) -> bool {
        self.seats.windows(2).any(|pair| {
            let pair = [pair[0].row.peer, pair[1].row.peer];
            pair == [one, other] || pair == [other, one]
        })
    }

    /// Volunteers of the line-up, head first.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.seats.iter().map(|seat| seat.row.peer)
    }

    /// Steps that the head reported as done.
    pub fn steps_done(&self) -> u32 {
        self.report.map_or(0, |report| report.steps)
    }

    /// Samples of all leases of the round.
    pub fn leased_samples(&self) -> impl Iterator<Item = SampleRange> {
        self.leases.iter().map(|lease| lease.samples)
    }

    /// Takes a report; whether it says anything new. Reports are cumulative.
    pub fn take_report(&mut self, now: Time, report: Report) -> bool {
        let is_news = report.steps > self.steps_done()
            && usize::try_from(report.steps).is_ok_and(|steps| steps <= self.leases.len());
        if is_news {
            if self.step_spans.len() == STEPS_TIMED {
                self.step_spans.pop_front();
            }
            let new_steps = u64::from(report.steps - self.steps_done());
            let span = now.since(self.progressed).as_micros() / new_steps;
            self.step_spans.push_back(Span::from_micros(span));
            self.report = Some(report);
            self.progressed = now;
        }
        is_news
    }

    /// How long nothing may go forward before the line-up is renewed: where a step is due, by what steps took.
    pub fn stall_after(&self) -> Span {
        let steps_done = usize::try_from(self.steps_done()).expect("a round's steps fit usize");
        let is_step_due =
            self.phase == Phase::Training && !self.closing && steps_done < self.leases.len();
        let mut spans: Vec<Span> = self.step_spans.iter().copied().collect();
        spans.sort_unstable();
        match spans.get(spans.len() / 2) {
            Some(median) if is_step_due => median.times(HUNG_TIMES).max(STALL_MIN),
            Some(_) | None => STALL_MAX,
        }
    }

    /// The number of steps in the round's result, when all seats hold one and agree with the report.
    pub fn agreed_steps(&self) -> Option<u32> {
        let steps = self.seats.first()?.holds.as_ref()?.steps;
        let all = self.seats.iter().all(|seat| {
            seat.holds
                .as_ref()
                .is_some_and(|holds| Some(holds.attempt) == self.attempt && holds.steps == steps)
        });
        (all && steps > 0 && steps == self.steps_done()).then_some(steps)
    }

    /// Whether all its steps of the round are done.
    pub fn has_done_all(&self) -> bool {
        self.steps_target > 0 && self.steps_done() >= self.steps_target
    }

    /// Begins the next round from a commit, with the same line-up.
    pub fn advance(&mut self, now: Time, round: Round) {
        self.place.round = round;
        self.phase = Phase::Boundary;
        self.attempt = None;
        self.leases.clear();
        self.report = None;
        self.closing = false;
        self.began = now;
        self.progressed = now;
        for seat in &mut self.seats {
            seat.holds = None;
            seat.merged = None;
            // What it holds is what was committed.
            seat.ready = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, PipelineId, Step};

    #[test]
    fn a_step_that_is_due_is_waited_for_as_long_as_steps_took() {
        let place = Place {
            pipeline: PipelineId(0),
            epoch: Epoch::default(),
            round: Round(0),
        };
        let mut pipeline = Pipeline::new(Time::ZERO, place, Vec::new());
        pipeline.phase = Phase::Training;
        let lease = |step| Lease {
            place,
            step: Step(step),
            samples: SampleRange { first: 0, count: 8 },
            last: step == 3,
        };
        pipeline.leases = (0..4).map(lease).collect();
        assert_eq!(pipeline.stall_after(), STALL_MAX, "nothing was timed");
        let report = |pipeline: &mut Pipeline, steps, at| {
            let report = Report {
                place,
                steps,
                loss: 1.0,
                round_loss: 1.0,
                elapsed_us: 0,
                forward_bytes: 0,
                backward_bytes: 0,
            };
            pipeline.take_report(Time::ZERO + Span::from_secs(at), report);
            pipeline.stall_after()
        };
        assert_eq!(report(&mut pipeline, 1, 1), STALL_MIN, "quick steps");
        // Two steps in a report that came late took 20 s each.
        assert_eq!(
            report(&mut pipeline, 3, 41),
            Span::from_secs(20 * HUNG_TIMES)
        );
        assert_eq!(report(&mut pipeline, 4, 61), STALL_MAX, "no step is due");
    }
}
