//! What the page is told of how things stand: one [`Snapshot`], put together from what the driver tells.

use std::cell::RefCell;
use std::rc::Rc;

use shared::peer::tally::{Activity, SeatStats, Stats};
use shared::peer::{Event, Peer};
use shared::units::{PeerId, Time};

use super::port;
use crate::lending::Lending;
use crate::messages::{Accepted, Neighbour, Phase, Seat, Snapshot, ToPage, Traffic, ranges};
use crate::meter::Meter;

/// Puts snapshots together and posts those that differ from the last one.
pub(super) struct Board {
    snapshot: Snapshot,
    posted: Option<Snapshot>,
    stats: Option<Stats>,
    finishing: bool,
    host_away: bool,
    steps: u32,
    meter: Rc<RefCell<Meter>>,
    lending: Rc<RefCell<Lending>>,
    /// Bytes that the day's data knows of.
    counted_bytes: u64,
}

impl Board {
    pub(super) fn new(
        name: String,
        device: String,
        meter: Rc<RefCell<Meter>>,
        lending: Rc<RefCell<Lending>>,
    ) -> Self {
        let snapshot = Snapshot {
            name,
            device,
            reason: "getting ready: the device is measured".to_owned(),
            ..Snapshot::default()
        };
        Self {
            snapshot,
            posted: None,
            stats: None,
            finishing: false,
            host_away: false,
            steps: 0,
            meter,
            lending,
            counted_bytes: 0,
        }
    }

    /// The person asked to leave after the round.
    pub(super) fn finish(&mut self, now: Time) {
        self.finishing = true;
        self.post(now);
    }

    /// Something happened.
    pub(super) fn watch(&mut self, peer: &Peer, now: Time, event: Event) {
        match event {
            Event::Stats(stats) => self.count(*stats),
            Event::Step { steps, loss, .. } => {
                self.steps = steps;
                self.snapshot.loss = Some(loss);
            }
            Event::Commit { round, .. } => {
                self.steps = 0;
                self.snapshot.round = Some(round);
            }
            Event::Welcome { round, .. } => {
                self.count(peer.stats());
                self.host_away = false;
                self.snapshot.round = Some(round);
            }
            Event::HostLost => self.host_away = true,
            Event::Reason(text) => self.snapshot.reason = text,
            Event::NothingKept(reason) => self.snapshot.not_kept = Some(reason),
            // News that do not wait for the next figures.
            Event::Seated(_) | Event::Spare => self.count(peer.stats()),
            Event::FirstMicrobatch => {
                self.count(peer.stats());
                self.snapshot.microbatches = self.snapshot.microbatches.max(1);
            }
            Event::LinkUp { .. } | Event::LinkDisturbed { .. } | Event::LinkLost { .. } => {}
        }
        if let Some((_, steps, Some(loss))) = peer.progress(now) {
            self.steps = steps;
            self.snapshot.loss = Some(loss);
        }
        self.snapshot.seat = self.seat(peer);
        self.post(now);
    }

    /// New figures; the day's data grows by what was moved since the last ones.
    fn count(&mut self, stats: Stats) {
        let snapshot = &mut self.snapshot;
        let all = [stats.tensors, stats.state, stats.host];
        snapshot.traffic = Traffic {
            up_bytes: all.iter().map(|one| one.up_bytes).sum(),
            down_bytes: all.iter().map(|one| one.down_bytes).sum(),
            boundary_bytes: stats.tensors.up_bytes,
            dense_bytes: stats.dense_f16.up_bytes,
            today_bytes: 0,
        };
        let moved = snapshot.traffic.up_bytes + snapshot.traffic.down_bytes;
        self.lending
            .borrow_mut()
            .moved(today(), moved.saturating_sub(self.counted_bytes));
        self.counted_bytes = moved;
        // Once it was let in, "getting ready" is over, whether the host says anything else or not.
        if !stats.reason.is_empty() || stats.activity != Activity::Joining {
            snapshot.reason.clone_from(&stats.reason);
        }
        snapshot.peer = stats.peer;
        snapshot.round = snapshot.round.max(Some(stats.round));
        snapshot.microbatches = stats.microbatches;
        snapshot.tokens = stats.tokens;
        snapshot.asked_percent = stats.throttle_percent;
        snapshot.measured_percent = stats.measured_percent;
        snapshot.accepted = Accepted {
            microbatches: stats.accepted.microbatches,
            stages: ranges(stats.accepted.stages.iter().copied()),
            first_round: stats.accepted.rounds.map(|(first, _)| first),
            last_round: stats.accepted.rounds.map(|(_, last)| last),
        };
        self.stats = Some(stats);
    }

    fn seat(&self, peer: &Peer) -> Option<Seat> {
        let SeatStats {
            place,
            stages,
            previous,
            next,
            ..
        } = self.stats.as_ref()?.seat?;
        let of = peer.config()?.model.stages;
        Some(Seat {
            stages,
            of: u16::try_from(of).unwrap_or(u16::MAX),
            pipeline: u32::from(place.pipeline.0),
            previous: previous.map(|peer| self.neighbour(peer)),
            next: next.map(|peer| self.neighbour(peer)),
            steps: self.steps,
        })
    }

    fn neighbour(&self, peer: PeerId) -> Neighbour {
        let links = self.stats.iter().flat_map(|stats| &stats.links);
        let link = links.into_iter().find(|link| link.peer == peer);
        Neighbour {
            peer,
            relayed: link.filter(|link| link.is_up).map(|link| link.relayed),
        }
    }

    fn phase(&self) -> Phase {
        let Some(stats) = &self.stats else {
            return Phase::Joining;
        };
        if self.finishing {
            return Phase::Finishing;
        }
        match stats.activity {
            Activity::Joining => Phase::Joining,
            Activity::Spare => Phase::Spare,
            Activity::Gathering => Phase::Gathering,
            Activity::Working if self.host_away => Phase::HostAway,
            Activity::Working => Phase::Training,
            Activity::Paused => Phase::Paused,
        }
    }

    /// Posts how things stand, if that is news.
    pub(super) fn post(&mut self, now: Time) {
        let phase = self.phase();
        let mut meter = self.meter.borrow_mut();
        self.snapshot.phase = phase;
        self.snapshot.hidden = meter.hidden();
        self.snapshot.jobs = meter.jobs();
        self.snapshot.rates = meter.rates(now);
        self.snapshot.traffic.today_bytes = self.lending.borrow().day().bytes;
        if self.posted.as_ref() != Some(&self.snapshot) {
            port::say(&ToPage::Snapshot(Box::new(self.snapshot.clone())));
            self.posted = Some(self.snapshot.clone());
        }
    }
}

/// Tells the page that the device is gone, and another try follows.
pub(super) fn recovering(reason: &str) {
    port::say(&ToPage::Snapshot(Box::new(Snapshot {
        phase: Phase::Recovering,
        reason: format!("the device was lost, trying again in a moment: {reason}"),
        ..Snapshot::default()
    })));
}

/// Days since 1970, UTC.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "days since 1970"
)]
pub(super) fn today() -> u64 {
    (js_sys::Date::now() / 86_400_000.0) as u64
}
