//! How a volunteer stands at one moment, for whoever draws it.

use serde::{Deserialize, Serialize};
use shared::units::{PeerId, Round, StageId, StageRange};

/// What a volunteer does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The device is opened and measured, the run's fixed numbers are derived.
    #[default]
    Preparing,
    /// The host is asked to let us in; also when its connection broke before there was a seat.
    Joining,
    /// In the run without a seat: keeps copies, takes over when somebody leaves.
    Spare,
    /// A seat was given; its state is fetched, links are opened.
    Gathering,
    /// At work.
    Training,
    /// At work on what is leased, while the connection to the host is down.
    HostAway,
    /// Rests: because the person wants it, on battery, or at the day's cap. `reason` says which.
    Paused,
    /// Leaves after this round's commit.
    Finishing,
    /// The device was lost; another try follows by itself.
    Recovering,
}

/// How a volunteer stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What it does.
    pub phase: Phase,
    /// Why it waits, or what it does: always one sentence, in the host's words where they are the host's.
    pub reason: String,
    /// What it is called in the run.
    pub name: String,
    /// Its number in the run, once it has one.
    pub peer: Option<PeerId>,
    /// What computes: `WebGPU`, `CPU (SIMD)`.
    pub device: String,
    /// Its seat.
    pub seat: Option<Seat>,
    /// Newest committed round.
    pub round: Option<Round>,
    /// Mean token loss of the newest step that this volunteer knows of, in nats: the head knows each.
    pub loss: Option<f64>,
    /// Microbatches computed since the start (backwards done), committed or not.
    pub microbatches: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// What was committed of them.
    pub accepted: Accepted,
    /// How fast it works.
    pub rates: Rates,
    /// What was sent and received.
    pub traffic: Traffic,
    /// Share of the time that the person lends, in percent.
    pub asked_percent: u8,
    /// Share of the time that the device worked, of busy and rest since the last change of the throttle, in
    /// percent; `None` until there was a rest to measure.
    pub measured_percent: Option<f64>,
    /// Whether the page is hidden.
    pub hidden: bool,
    /// Jobs handed to the device since the start: stands still within one microbatch of a stop.
    pub jobs: u64,
    /// Why the browser did not keep a state that a reload would need, the last time that happened.
    pub not_kept: Option<String>,
}

/// A volunteer's seat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Its stages.
    pub stages: StageRange,
    /// Stages of the model.
    pub of: u16,
    /// Which pipeline.
    pub pipeline: u32,
    /// The seat before; `None` at the head.
    pub previous: Option<Neighbour>,
    /// The seat after; `None` at the end.
    pub next: Option<Neighbour>,
    /// Steps done in the round under way; the head knows them first.
    pub steps: u32,
}

/// A neighbour in the pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its number.
    pub peer: PeerId,
    /// Whether packets go through a relay; `None` while there is no link.
    pub relayed: Option<bool>,
}

/// Work that is in committed rounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Microbatches.
    pub microbatches: u64,
    /// Stages that they were for, as ranges in order: earlier seats' too, whatever the seat is now.
    pub stages: Vec<StageRange>,
    /// The first round that holds some of them.
    pub first_round: Option<Round>,
    /// The last.
    pub last_round: Option<Round>,
}

/// Stages in order as ranges: those in a row together.
#[must_use]
pub fn ranges(stages: impl IntoIterator<Item = StageId>) -> Vec<StageRange> {
    let mut ranges: Vec<StageRange> = Vec::new();
    for StageId(stage) in stages {
        match ranges.last_mut() {
            Some(last) if last.end == stage => last.end += 1,
            Some(_) | None => ranges.push(StageRange {
                first: stage,
                end: stage + 1,
            }),
        }
    }
    ranges
}

/// How fast a volunteer works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Tokens a second lately, rests included.
    pub tokens_per_second: Option<f64>,
    /// Tokens a second of busy time while the page was visible.
    pub visible: Option<f64>,
    /// The same while it was hidden.
    pub hidden: Option<f64>,
}

/// What was sent and received, in bytes, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Sent, everything: to volunteers and to the host.
    pub up_bytes: u64,
    /// Received, everything.
    pub down_bytes: u64,
    /// Payloads of forward and backward frames that were sent.
    pub boundary_bytes: u64,
    /// What the same would have been at full width in f16.
    pub dense_bytes: u64,
    /// Sent and received today (UTC), this browser's earlier visits included.
    pub today_bytes: u64,
}
