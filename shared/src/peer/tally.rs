//! What a volunteer did and moved since it started: for the person who lends the machine.
//!
//! Counts; decides nothing. Work counts as accepted only when a commit says so, and no longer when the run
//! goes back before it. Bytes are those of frames and files; what a channel adds to them is not counted.
//!
//! Begin reading at [`Stats`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Peer;
use super::work::Work;
use crate::config::run::RunConfig;
use crate::limits::{ACCEPTED_ROUNDS_MAX, STATS_EVERY};
use crate::units::{PeerId, Round, StageId, StageRange, Time};
use crate::wire::frame::{Frame, Header, Place};
use crate::wire::signal::{Pause, SeatOrder};

/// What a volunteer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// It has not been let in yet.
    Joining,
    /// It has no seat and keeps copies.
    Spare,
    /// It fetches its seat's state and opens links.
    Gathering,
    /// It computes.
    Working,
    /// It rests, as its person wants.
    Paused,
}

/// Bytes that went both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Sent.
    pub up_bytes: u64,
    /// Received.
    pub down_bytes: u64,
}

/// A seat, as its volunteer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatStats {
    /// Line-up and round.
    pub place: Place,
    /// Its stages.
    pub stages: StageRange,
    /// Who sits before; `None` at the head.
    pub previous: Option<PeerId>,
    /// Who sits behind; `None` at the last seat.
    pub next: Option<PeerId>,
    /// Seats behind this one.
    pub seats_behind: u16,
}

/// A link to another volunteer, since it was opened first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStats {
    /// The other end.
    pub peer: PeerId,
    /// Whether frames get through now.
    pub is_up: bool,
    /// Whether packets go through a TURN server.
    pub relayed: bool,
    /// What went over it.
    pub traffic: Traffic,
}

/// What of a volunteer's work is in committed rounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Microbatches.
    pub microbatches: u64,
    /// First and last round that it is in.
    pub rounds: Option<(Round, Round)>,
    /// Stages that it trained in them.
    pub stages: BTreeSet<StageId>,
}

/// What a volunteer does, did and moved since it started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// What it does.
    pub activity: Activity,
    /// Its number, once the host has let it in.
    pub peer: Option<PeerId>,
    /// Why it waits or what it does: one sentence, mostly the host's.
    pub reason: String,
    /// Why it rests, if it was told to; it may still have a seat until the round is committed.
    pub paused: Option<Pause>,
    /// Its seat, if it has one or prepares one.
    pub seat: Option<SeatStats>,
    /// Newest committed round.
    pub round: Round,
    /// Microbatches computed, forward and backward.
    pub microbatches: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// What of them is in committed rounds.
    pub accepted: Accepted,
    /// Links to other volunteers.
    pub links: Vec<LinkStats>,
    /// Packed activations and gradients, token ids included.
    pub tensors: Traffic,
    /// What those activations and gradients would have been: the full width in f16.
    pub dense_f16: Traffic,
    /// Weights and moments, for seats and copies, to and from other volunteers.
    pub state: Traffic,
    /// Slices of merges, to and from other volunteers.
    pub merge: Traffic,
    /// Tokens, checkpoints and states to and from the host.
    pub host: Traffic,
    /// Share of the time that it is to work, in percent.
    pub throttle_percent: u8,
    /// Share that was measured, in percent; `None` before the first microbatch.
    pub measured_percent: Option<f64>,
    /// Whether it is a tab that nobody looks at.
    pub hidden: bool,
    /// Microseconds that forward and backward of one block take for one sequence, as placement knows it.
    pub block_us: u64,
}

/// The counters behind [`Stats`].
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    microbatches: u64,
    /// Microbatches by committed round; of many rounds the newest ones.
    accepted: BTreeMap<Round, u64>,
    /// First round, and microbatches of those that stand no longer in `accepted`.
    before: Option<(Round, u64)>,
    stages: BTreeSet<StageId>,
    links: BTreeMap<PeerId, LinkStats>,
    tensors: Traffic,
    dense_f16: Traffic,
    state: Traffic,
    merge: Traffic,
    host: Traffic,
    pub(super) reason: String,
    told: Option<Time>,
}

impl Tally {
    /// A microbatch's backward is done.
    pub(super) fn microbatch(&mut self) {
        self.microbatches += 1;
    }

    /// A round is committed with so many microbatches of ours, of these stages.
    pub(super) fn accept(&mut self, round: Round, microbatches: u64, stages: StageRange) {
        self.stages.extend(stages.iter());
        self.accepted.insert(round, microbatches);
        if self.accepted.len() > ACCEPTED_ROUNDS_MAX
            && let Some((oldest, count)) = self.accepted.pop_first()
        {
            let (first, sum) = self.before.unwrap_or((oldest, 0));
            self.before = Some((first, sum + count));
        }
    }

    /// Rounds after `to` are void.
    pub(super) fn rewind(&mut self, to: Round) {
        self.accepted.retain(|round, _| *round <= to);
    }

    fn accepted(&self) -> Accepted {
        let first = self.before.map(|(first, _)| first);
        let first = first.or(self.accepted.keys().next().copied());
        let last = self.accepted.keys().next_back().copied();
        let before = self.before.map_or(0, |(_, sum)| sum);
        Accepted {
            microbatches: before + self.accepted.values().sum::<u64>(),
            rounds: first.zip(last),
            stages: self.stages.clone(),
        }
    }

    /// A link is up.
    pub(super) fn link_up(&mut self, peer: PeerId, relayed: bool) {
        let link = self.links.entry(peer).or_insert(LinkStats {
            peer,
            is_up: true,
            relayed,
            traffic: Traffic::default(),
        });
        (link.is_up, link.relayed) = (true, relayed);
    }

    /// A link is lost.
    pub(super) fn link_lost(&mut self, peer: PeerId) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.is_up = false;
        }
    }

    /// A link is closed for good.
    pub(super) fn forget_link(&mut self, peer: PeerId) {
        self.links.remove(&peer);
    }

    /// All links are closed: numbers of before mean nothing any more.
    pub(super) fn forget_links(&mut self) {
        self.links.clear();
    }

    /// A frame goes to `peer` (`is_up`), or came from it.
    pub(super) fn frame(
        &mut self,
        peer: PeerId,
        frame: &Frame,
        is_up: bool,
        config: Option<&RunConfig>,
    ) {
        let bytes = frame.encoded_bytes() as u64;
        if let Some(link) = self.links.get_mut(&peer) {
            link.traffic.add(is_up, bytes);
        }
        match &frame.header {
            Header::Forward { .. } | Header::Backward { .. } if !frame.payload.is_empty() => {
                self.tensors.add(is_up, frame.payload.len() as u64);
                self.dense_f16.add(is_up, config.map_or(0, dense_f16_bytes));
            }
            Header::StateChunk { .. } => self.state.add(is_up, frame.payload.len() as u64),
            Header::Merge { .. } => self.merge.add(is_up, frame.payload.len() as u64),
            Header::Hello { .. }
            | Header::Forward { .. }
            | Header::Backward { .. }
            | Header::Apply { .. }
            | Header::StateRequest { .. }
            | Header::Credit { .. }
            | Header::Keepalive { .. }
            | Header::Bye { .. }
            | Header::Received { .. }
            | Header::MergeNorm { .. }
            | Header::MergeScale { .. }
            | Header::Arrived { .. }
            | Header::Flow(_)
            | Header::MergeTaken { .. }
            | Header::Text { .. }
            | Header::Drawn { .. }
            | Header::Forget { .. } => {}
        }
    }

    /// So many bytes went to the host's files (`is_up`), or came from there.
    pub(super) fn file(&mut self, bytes: u64, is_up: bool) {
        self.host.add(is_up, bytes);
    }
}

impl Traffic {
    fn add(&mut self, is_up: bool, bytes: u64) {
        match is_up {
            true => self.up_bytes += bytes,
            false => self.down_bytes += bytes,
        }
    }
}

/// A microbatch's boundary at full width in f16.
fn dense_f16_bytes(config: &RunConfig) -> u64 {
    let tokens = usize::from(config.microbatch_sequences()) * config.model.context;
    (2 * tokens * config.model.d_model) as u64
}

impl Peer {
    /// What this volunteer does, did and moved since it started.
    pub fn stats(&self) -> Stats {
        let seat = self.order().map(|order| SeatStats {
            place: order.place,
            stages: order.stages,
            previous: order.previous.map(|neighbour| neighbour.peer),
            next: order.next.map(|neighbour| neighbour.peer),
            seats_behind: order.seats_behind,
        });
        let activity = match (self.me, &self.work, &self.gathering, self.paused) {
            (None, ..) => Activity::Joining,
            (_, Some(_), ..) => Activity::Working,
            (_, _, Some(_), _) => Activity::Gathering,
            (.., Some(_)) => Activity::Paused,
            (.., None) => Activity::Spare,
        };
        let tally = &self.tally;
        let tokens = self.config.as_ref().map_or(0, |config| {
            config.step_tokens() / u64::from(config.training.microbatches)
        });
        let capabilities = &self.identity.capabilities;
        Stats {
            activity,
            peer: self.me,
            reason: tally.reason.clone(),
            paused: self.paused,
            seat,
            round: self.newest,
            microbatches: tally.microbatches,
            tokens: tally.microbatches * tokens,
            accepted: tally.accepted(),
            links: tally.links.values().copied().collect(),
            tensors: tally.tensors,
            dense_f16: tally.dense_f16,
            state: tally.state,
            merge: tally.merge,
            host: tally.host,
            throttle_percent: capabilities.throttle_percent,
            measured_percent: self.duty.measured_percent(),
            hidden: capabilities.hidden,
            block_us: capabilities.speed.block_us,
        }
    }

    /// The seat's order, at work or being prepared.
    pub(super) fn order(&self) -> Option<&SeatOrder> {
        let gathering = || self.gathering.as_ref().map(|gathering| &gathering.order);
        self.work.as_ref().map(Work::order).or_else(gathering)
    }

    /// Tells the person how things stand, at most once in [`STATS_EVERY`].
    pub(super) fn tell_stats(&mut self, now: Time) {
        let is_due = self
            .tally
            .told
            .is_none_or(|told| now.since(told) >= STATS_EVERY);
        if is_due {
            self.tally.told = Some(now);
            let stats = Box::new(self.stats());
            self.out(super::Output::Event(super::Event::Stats(stats)));
        }
    }
}
