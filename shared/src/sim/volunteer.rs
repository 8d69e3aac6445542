//! One volunteer's process in the simulation: the real peer, fake compute, and what a process holds.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;

use super::compute::FakeCompute;
use crate::compute::Job;
use crate::coordinator::roster::ConnectionId;
use crate::peer::{Identity, Peer};
use crate::units::{PeerId, Span, Time};
use crate::wire::signal::{Capabilities, Speed, VolunteerKind};

/// One end of a link, as a transport holds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkEnd {
    /// What the connection was opened with: frames belong to it.
    pub(super) connection: u32,
    /// Of the connection's newest restart.
    pub(super) generation: u32,
    pub(super) open: bool,
}

/// A volunteer's process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) peer: Peer,
    pub(super) compute: Option<FakeCompute>,
    pub(super) connection: Option<ConnectionId>,
    pub(super) job: Option<Job>,
    pub(super) links: BTreeMap<PeerId, LinkEnd>,
    pub(super) frozen_until: Option<Time>,
    /// Until when its device does not answer.
    pub(super) hung_until: Option<Time>,
    /// When its next timer event comes: an older one is out of date.
    pub(super) timer: Option<Time>,
    /// Milliseconds that a unit of work takes.
    pub(super) pace_ms: u64,
    /// Milliseconds of what is no microbatch, where that is not a unit of work.
    pub(super) job_ms: Option<u64>,
    /// What its person keeps when its page is loaded again.
    pub(super) session: u64,
    /// How many times as long as it should a measurement takes: the machine does something else, too.
    pub(super) busy_times: u64,
    /// Microseconds that a microbatch costs in each block, whatever its size.
    pub(super) fixed_us: u64,
    /// Stages of the seat that its compute holds.
    pub(super) seat_stages: u64,
    /// When its disk has done what it was told.
    pub(super) disk_free: Time,
}

impl Process {
    /// Whether it stands still now.
    pub(super) fn is_frozen(&self, now: Time) -> bool {
        self.frozen_until.is_some_and(|until| now < until)
    }

    /// Microseconds of a block and a sequence, besides what each microbatch costs.
    pub(super) fn block_us(&self) -> u64 {
        750 * self.pace_ms
    }

    /// Microseconds of a block and a microbatch of so many sequences.
    pub(super) fn microbatch_us(&self, sequences: u64) -> u64 {
        self.block_us() * sequences + self.fixed_us
    }

    /// What it finds when it measures itself, in a run whose microbatches have so many sequences.
    pub(super) fn speed(&self, sequences: u64) -> Speed {
        Speed {
            block_us: self.busy_times * self.microbatch_us(sequences) / sequences,
            alone_us: (sequences > 1).then(|| self.busy_times * self.microbatch_us(1)),
        }
    }

    /// How long so many units of what is no microbatch take: an update, a part of a merge.
    pub(super) fn job(&self, units: u64) -> Span {
        Span::from_millis(units * self.job_ms.unwrap_or(self.pace_ms))
    }

    /// A process of `session`, with the session's key.
    pub(super) fn new(session: u64, pace_ms: u64) -> Self {
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&session.to_le_bytes());
        let identity = Identity {
            key: SigningKey::from_bytes(&seed),
            session,
            name: format!("volunteer {session}"),
            capabilities: Capabilities {
                kind: VolunteerKind::Native,
                device: "hashes".to_owned(),
                memory_bytes: 1 << 30,
                speed: Speed::of(1_000 * pace_ms),
                throttle_percent: 100,
                relay_only: false,
                hidden: false,
            },
        };
        Self {
            peer: Peer::new(identity),
            compute: None,
            connection: None,
            job: None,
            links: BTreeMap::new(),
            frozen_until: None,
            hung_until: None,
            timer: None,
            pace_ms,
            job_ms: None,
            session,
            busy_times: 1,
            fixed_us: 0,
            seat_stages: 1,
            disk_free: Time::ZERO,
        }
    }
}
