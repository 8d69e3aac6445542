//! What a volunteer learns of its speed and its links while it takes part, and when the host hears of it.
//!
//! Told is what changed notably, and not often: placement moves state for it. What was learned of a link that is closed
//! is told on: else the host would take it for an unknown one, which it supposes to be good.
//!
//! Here a volunteer notices, too, that its own device does not answer: the links live on then, and nobody else can
//! tell it from one that waits. It gives up its seat until the device is back.

use std::collections::BTreeMap;

use super::{Output, Peer};
use crate::compute::Job;
use crate::config::run::RunConfig;
use crate::limits::{
    HUNG_MAX, HUNG_TIMES, LINKS_MAX, LINKS_TOLD_EVERY, MEASURE_EVERY, SPEED_TOLD_EVERY,
};
use crate::schedule::placement::StageCosts;
use crate::units::{PeerId, Span, Time};
use crate::wire::signal::{LinkFigures, Pause, SeatOrder, Up};

use super::work::Pace;

/// Delays that differ by less than this are the same to placement.
const DELAY_NOISE_US: u64 = 2_000;

/// What is known, and what was told.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    links: BTreeMap<PeerId, LinkFigures>,
    told: BTreeMap<PeerId, LinkFigures>,
    links_told: Option<Time>,
    speed_told: Option<Time>,
    /// When the device was measured last, or worked.
    measured: Option<Time>,
    /// Whether it is being measured.
    measuring: bool,
    /// Time of the seat's stages, in thousandths of a block.
    milliblocks: u64,
    /// Whether the device does not answer.
    hung: bool,
}

/// Whether two figures differ by a quarter or more.
fn differ(a: u64, b: u64) -> bool {
    a.abs_diff(b) > a.min(b) / 4
}

fn differ_notably(known: &LinkFigures, told: &LinkFigures) -> bool {
    let rates = match (known.bytes_per_second, told.bytes_per_second) {
        (Some(known), Some(told)) => differ(known, told),
        (known, told) => known != told,
    };
    let delays = differ(known.delay_us, told.delay_us)
        && known.delay_us.abs_diff(told.delay_us) > DELAY_NOISE_US;
    rates || delays || known.relayed != told.relayed
}

impl Figures {
    /// The host is another one, or numbers us anew: it knows nothing.
    pub(super) fn forget_told(&mut self) {
        self.told.clear();
        self.links_told = None;
    }

    /// The device is another one as it were: what it was last told to be like says nothing.
    pub(super) fn forget_speed(&mut self) {
        self.speed_told = None;
    }

    /// All links are closed, and numbers of before mean nothing any more.
    pub(super) fn forget_links(&mut self) {
        self.links.clear();
        self.forget_told();
    }

    /// Why there can be no seat, beside what a person wants.
    pub(super) fn pause(&self) -> Option<Pause> {
        self.hung.then_some(Pause::Hung)
    }

    fn are_news(&self) -> bool {
        self.links.len() != self.told.len()
            || self.links.iter().any(|(peer, known)| {
                let told = self.told.get(peer);
                told.is_none_or(|told| differ_notably(known, told))
            })
    }
}

impl Peer {
    /// What this seat takes: measured once there were some microbatches, and before as its block promises.
    pub(super) fn pace(&self, order: &SeatOrder) -> Pace {
        let Some(config) = &self.config else {
            return Pace::default();
        };
        let measured = self.rhythm.microbatch().map(Span::as_micros);
        let busy_us = measured.unwrap_or_else(|| self.promised_us());
        let percent = u64::from(self.duty.percent());
        let wire_us = |to: Option<PeerId>, bytes: usize| {
            let link = to.and_then(|to| self.links.get(&to));
            link.map_or(0, |link| link.meter().wire_us(bytes))
        };
        Pace {
            microbatch_us: busy_us.saturating_mul(100) / percent,
            next_us: wire_us(order.next.map(|it| it.peer), config.forward_payload_bytes()),
            previous_us: wire_us(order.previous.map(|it| it.peer), config.boundary_bytes()),
        }
    }

    /// Microseconds of a microbatch at the seat, as one block promises, without rests.
    fn promised_us(&self) -> u64 {
        let sequences = self
            .config
            .as_ref()
            .map_or(0, RunConfig::microbatch_sequences);
        let blocks = self
            .figures
            .milliblocks
            .saturating_mul(u64::from(sequences));
        blocks.saturating_mul(self.identity.capabilities.speed.block_us) / 1_000
    }

    /// A seat is taken: what its stages cost.
    pub(super) fn count_blocks(&mut self, order: &SeatOrder) {
        if let Some(config) = &self.config {
            self.figures.milliblocks = StageCosts::new(config).milliblocks_of(order.stages);
        }
    }

    /// Lets the seat know what was measured since.
    pub(super) fn update_pace(&mut self) {
        let Some(order) = self.work.as_ref().map(|work| work.order().clone()) else {
            return;
        };
        let pace = self.pace(&order);
        if let Some(work) = &mut self.work {
            work.set_pace(pace);
        }
    }

    /// Tells the host what it must know, if it is time.
    pub(super) fn pump_figures(&mut self, now: Time) {
        if !self.may_tell() {
            return;
        }
        let is_due = |told: Option<Time>, every: Span| told.is_none_or(|at| now.since(at) >= every);
        if is_due(self.figures.links_told, LINKS_TOLD_EVERY) {
            self.figures.links_told = Some(now);
            self.tell_links();
        }
        if is_due(self.figures.speed_told, SPEED_TOLD_EVERY)
            && let Some(block_us) = self.seat_block_us()
        {
            self.learn_speed(now, block_us);
        }
        self.pump_measure(now);
    }

    /// Whether the host knows us and hears us.
    fn may_tell(&self) -> bool {
        self.me.is_some() && self.joined && !self.over
    }

    fn tell_links(&mut self) {
        for (&peer, link) in self.links.iter().filter(|(_, link)| link.is_up()) {
            let Some(delay_us) = link.meter().delay_us() else {
                continue;
            };
            let before = self.figures.links.get(&peer);
            let bytes_per_second = link.meter().bytes_per_second();
            let figures = LinkFigures {
                peer,
                delay_us,
                bytes_per_second: bytes_per_second.or(before.and_then(|it| it.bytes_per_second)),
                relayed: link.is_relayed(),
            };
            self.figures.links.insert(peer, figures);
        }
        while self.figures.links.len() > LINKS_MAX {
            let closed = |peer: &&PeerId| !self.links.get(peer).is_some_and(|link| link.is_up());
            let Some(peer) = self.figures.links.keys().find(closed).copied() else {
                break;
            };
            self.figures.links.remove(&peer);
        }
        if self.figures.are_news() {
            self.figures.told.clone_from(&self.figures.links);
            let links = self.figures.links.values().copied().collect();
            self.up(Up::Links {
                // Nothing that goes to the host is timed yet.
                host_bytes_per_second: None,
                links,
            });
        }
    }

    /// Microseconds of a block and a sequence, as the seat's microbatches say.
    fn seat_block_us(&self) -> Option<u64> {
        let sequences = u64::from(self.config.as_ref()?.microbatch_sequences());
        self.work.as_ref()?;
        let microbatch_us = self.rhythm.microbatch()?.as_micros();
        let milliblocks = self.figures.milliblocks.max(1);
        Some((microbatch_us.saturating_mul(1_000) / (milliblocks * sequences)).max(1))
    }

    /// A block takes so long now. The host hears of it if that is half as much again, or as little, as it knows.
    fn learn_speed(&mut self, now: Time, block_us: u64) {
        let known = self.identity.capabilities.speed;
        let known_us = known.block_us;
        let (low, high) = (known_us.min(block_us), known_us.max(block_us));
        if high > low.saturating_add(low / 2) {
            self.figures.speed_told = Some(now);
            self.identity.capabilities.speed = known.scaled_to(block_us);
            self.tell_update();
        }
    }

    fn is_idle_spare(&self) -> bool {
        let has_seat = self.work.is_some() || self.gathering.is_some();
        !has_seat && self.job.is_none() && self.paused.is_none()
    }

    /// Now and then a spare measures its device again: it may have been busy the last time.
    fn pump_measure(&mut self, now: Time) {
        if !self.is_idle_spare() {
            self.figures.measured = None;
            return;
        }
        let last = *self.figures.measured.get_or_insert(now);
        if !self.figures.measuring && now.since(last) >= MEASURE_EVERY {
            self.figures.measuring = true;
            self.out(Output::Measure);
        }
    }

    /// The device was measured again, as [`Output::Measure`] asked; `None` when that was not possible.
    pub fn handle_measured(&mut self, now: Time, block_us: Option<u64>) {
        self.figures.measuring = false;
        self.figures.measured = Some(now);
        // Whoever got a seat meanwhile learns more from that.
        if let (Some(block_us), true) = (block_us, self.is_idle_spare()) {
            self.learn_speed(now, block_us);
        }
        self.pump(now);
    }

    /// When the device is taken for hung, if it does not answer before.
    fn hung_at(&self) -> Option<Time> {
        let running = self.job.as_ref()?;
        // Loading a seat, copying its weights out and merging them take their own time.
        let is_known = match &running.job {
            Job::Forward { .. } | Job::Backward { .. } | Job::Apply { .. } | Job::Forget { .. } => {
                true
            }
            // A device may compile all anew for single rows.
            Job::Generate(_) => false,
            Job::Seat { .. }
            | Job::Snapshot { .. }
            | Job::Contribute { .. }
            | Job::Average { .. }
            | Job::OuterStep { .. }
            | Job::Norm { .. }
            | Job::GradientStep { .. } => false,
        };
        let known = self.rhythm.hung_after().filter(|_| is_known);
        // What a block promises is no measure of a seat, but a slow device is none that hangs.
        let promised = Span::from_micros(self.promised_us()).times(HUNG_TIMES);
        Some(running.began + known.unwrap_or(HUNG_MAX.max(promised)))
    }

    /// When something is due here.
    pub(super) fn figures_timeout(&self) -> Option<Time> {
        let hung_at = self.hung_at().filter(|_| !self.figures.hung);
        let measure_at = self
            .figures
            .measured
            .filter(|_| self.may_tell() && self.is_idle_spare() && !self.figures.measuring)
            .map(|last| last + MEASURE_EVERY);
        hung_at.into_iter().chain(measure_at).min()
    }

    /// Time has come: does the device still answer?
    pub(super) fn check_device(&mut self, now: Time) {
        if !self.figures.hung && self.hung_at().is_some_and(|at| now >= at) {
            self.figures.hung = true;
            self.tell_update();
        }
    }

    /// The device answered.
    pub(super) fn device_answered(&mut self) {
        if std::mem::take(&mut self.figures.hung) {
            self.tell_update();
        }
    }
}
