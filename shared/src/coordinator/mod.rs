//! The host's state machine: who sits where, what is trained next, and what is committed.
//!
//! Owns the decisions of a run. Told what happened (`handle_*`), it says what to do
//! ([`Coordinator::poll_output`]) and when to be called back ([`Coordinator::poll_timeout`]). It sees no activation
//! and no gradient, reads no clock and touches no disk.
//!
//! Invariant: a line-up is used, and a commit is told, only after its row is synced
//! ([`Coordinator::handle_journaled`]). So a host that is killed at any moment goes on from its journal.
//!
//! [`history`] is what the journal says, [`roster`] who is here, [`incident`] what a person is told of
//! them, [`pipelines`] the line-ups at work. The rules stand in
//! `door`, `lineups`, `rounds`, `merging`, `commits`, `durability`, `missing` and `conduct`; `resuming` is for those who come back, `waiting` for those
//! who wait or go, `texts` what the model writes. What a volunteer says costs no look at all of them. Begin reading at [`Coordinator::handle_up`].

pub mod history;
pub mod incident;
pub mod pipeline;
pub mod pipelines;
pub mod roster;
pub mod texts;
pub mod view;

mod commits;
mod conduct;
mod door;
mod durability;
mod lineups;
mod merging;
mod missing;
mod orders;
mod proposing;
mod resuming;
mod rounds;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeMap, VecDeque};

use crate::config::run::RunConfig;
use crate::limits::{KEEPALIVE, PING_TURNS_MAX, PINGS_AT_ONCE, SILENCE_MAX, TICK};
use crate::schedule::placement::{LineUp, Links, StageCosts};
use crate::units::{Digest, Issue, PeerId, PipelineId, Round, SampleRange, Span, Time};
use crate::wire::report::Proposal;
use crate::wire::signal::{DataInfo, Down, Held, Up};

use conduct::Conduct;
use durability::Securing;
use history::{History, HistoryError, Row};
use incident::{Incident, What};
use merging::Merging;
use missing::Missing;
use pipeline::Pipeline;
use pipelines::Pipelines;
use proposing::Proposing;
use roster::{ConnectionId, Roster};
use texts::{TextNews, Texts};

/// A checkpoint in the store: everything it takes to go on from a round.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Manifest {
    /// The round.
    pub round: Round,
    /// The round it was trained from.
    pub parent: Round,
    /// Name of the run's configuration.
    pub config: Digest,
    /// Name of the run's data.
    pub data: Digest,
    /// Hashes of all stages, in order; a blob is stored under its hash.
    pub stages: Vec<Held>,
}

/// What the host is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send this to a volunteer.
    Send(ConnectionId, Down),
    /// Close a connection.
    Close(ConnectionId),
    /// Write this row, sync it, then say [`Coordinator::handle_journaled`]. Rows are written in order.
    Journal {
        /// Number of the row in this incarnation.
        seq: u64,
        /// The row.
        row: Row,
    },
    /// An upload with this ticket may come, until the deadline; then say [`Coordinator::handle_stored`].
    ExpectUpload {
        /// Good for one upload.
        ticket: String,
        /// What it must be.
        held: Held,
        /// When it expires.
        deadline: Time,
    },
    /// All blobs of this manifest are stored: write it, then say [`Coordinator::handle_manifest`].
    WriteManifest(Manifest),
    /// Tell the person who hosts the run.
    Tell(Incident),
    /// Tell the person who hosts the run that another number of microbatches is better.
    Propose(Proposal),
    /// News of a text, for whoever wanted it.
    Text {
        /// The number that it was given.
        number: u64,
        /// What is new.
        news: TextNews,
    },
}

/// Payload bytes that crossed the border behind a first seat, as heads reported them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireBytes {
    /// Towards the loss.
    pub forward: u64,
    /// Back from it.
    pub backward: u64,
}

/// What waits for a row to be synced.
#[derive(Clone, Debug, PartialEq)]
enum Awaited {
    LineUp(PipelineId),
    Commit(Row),
    Rewind(Row),
    Note(Row),
}

/// What the coordinator was started with.
#[derive(Clone, Debug)]
pub struct Start {
    /// The run.
    pub config: RunConfig,
    /// Its data.
    pub data: DataInfo,
    /// Hash of what must follow from the seed.
    pub seed_hash: Digest,
    /// Drawn at random at each start: nonces and tickets are made from it.
    pub secret: [u8; 32],
    /// What placement must know of the model's stages.
    pub costs: StageCosts,
    /// Whether a run that paused itself goes on.
    pub resume: bool,
}

/// Rules that a test breaks on purpose, to show that the simulation notices.
#[cfg(any(test, feature = "sim"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BrokenRules {
    /// Says `commit` before the row is synced.
    pub commit_before_sync: bool,
    /// Gives a lease's samples out again while they are leased, and does not look before it commits.
    pub lease_twice: bool,
    /// Uses a manifest of a round that is void.
    pub void_manifest: bool,
    /// Commits what one replica of a merge holds, whatever the others do.
    pub any_replica: bool,
}

/// The coordinator of one run.
#[derive(Debug)]
pub struct Coordinator {
    start: Start,
    history: History,
    roster: Roster,
    pipelines: Pipelines,
    /// The merge under way.
    merging: Option<Merging>,
    /// Since when the round waits for line-ups that were overtaken, if it does.
    awaiting: Option<Time>,
    /// Whether a round was committed since all line-ups were looked at.
    plan_due: bool,
    links: Links,
    /// Line-ups that ended and were not formed again: who returns gets its seat again.
    given_up: BTreeMap<PipelineId, LineUp>,
    link_failures: BTreeMap<(PeerId, PeerId), u32>,
    /// When those that are apart may try again, while nothing goes without them.
    reunion: Option<Time>,
    /// Samples to lease before fresh ones.
    queue: VecDeque<SampleRange>,
    /// First sample that was never leased.
    fresh: u64,
    safe: Round,
    securing: Option<Securing>,
    manifest_tried: Option<Time>,
    /// When a checkpoint could not be written, if the last one could not.
    manifest_failed: Option<Time>,
    missing: Missing,
    /// Uploads that each volunteer left undone since it did one: others are asked first.
    undone_uploads: BTreeMap<PeerId, u32>,
    /// Since when the newest round's state is not to be had.
    lost_since: Option<Time>,
    jumps_in_a_row: u32,
    wire_bytes: WireBytes,
    conduct: Conduct,
    /// Whose stage made NaN last, in words, until the next commit.
    named: Option<String>,
    /// What is waited for, in words, while there is no line-up.
    waits_for: Option<String>,
    /// Into how many microbatches a step would better be cut.
    proposing: Proposing,
    /// Texts that are being written.
    texts: Texts,
    over: bool,

    issues: u32,
    peers: u32,
    tickets: u64,
    rows: u64,
    awaited: VecDeque<(u64, Awaited)>,
    next_tick: Time,
    next_ping: Time,
    /// Who was pinged last; `None` before the first one.
    pinged: Option<PeerId>,
    /// When all volunteers may be looked at again.
    next_look: Time,
    outputs: VecDeque<Output>,
    #[cfg(any(test, feature = "sim"))]
    broken: BrokenRules,
}

impl Coordinator {
    /// Starts over a journal, empty for a new run.
    ///
    /// # Errors
    /// The journal is not a run's history: nothing should be done with it before a person has looked.
    pub fn new(now: Time, start: Start, rows: &[Row]) -> Result<Self, HistoryError> {
        let history = History::replay(rows)?;
        let (waiting, fresh) = history.waiting(start.config.training.batch);
        let incarnation = history.incarnation() + 1;
        let safe = history.newest_manifest();
        let mut coordinator = Self {
            queue: waiting.into(),
            fresh,
            safe,
            pipelines: Pipelines::default(),
            merging: None,
            plan_due: false,
            given_up: BTreeMap::new(),
            start,
            history,
            roster: Roster::default(),
            links: Links::default(),
            link_failures: BTreeMap::new(),
            reunion: None,
            awaiting: None,
            securing: None,
            manifest_tried: None,
            manifest_failed: None,
            missing: Missing::default(),
            undone_uploads: BTreeMap::new(),
            lost_since: None,
            jumps_in_a_row: 0,
            wire_bytes: WireBytes::default(),
            conduct: Conduct::default(),
            named: None,
            waits_for: None,
            proposing: Proposing::default(),
            texts: Texts::default(),
            over: false,
            issues: 0,
            peers: 0,
            tickets: 0,
            rows: 0,
            awaited: VecDeque::new(),
            next_tick: now + TICK,
            next_ping: now + KEEPALIVE,
            pinged: None,
            next_look: now,
            outputs: VecDeque::new(),
            #[cfg(any(test, feature = "sim"))]
            broken: BrokenRules::default(),
        };
        let line_ups = coordinator.history.line_ups().values();
        let resumed = line_ups.filter_map(|it| Pipeline::resumed(now, &coordinator.history, it));
        for pipeline in resumed.collect::<Vec<_>>() {
            let peers: Vec<PeerId> = pipeline.peers().collect();
            let pairs = peers.windows(2);
            pairs.for_each(|pair| coordinator.conduct.introduce(pair[0], pair[1]));
            coordinator.pipelines.insert(pipeline);
        }
        coordinator.note(Row::Started { incarnation });
        if coordinator.start.resume && coordinator.history.paused().is_some() {
            coordinator.note(Row::Resumed);
        }
        Ok(coordinator)
    }

    /// Breaks rules, for a test that must notice.
    #[cfg(any(test, feature = "sim"))]
    pub fn break_rules(&mut self, broken: BrokenRules) {
        self.broken = broken;
    }

    fn config(&self) -> &RunConfig {
        &self.start.config
    }

    /// The history that stands.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Bytes that heads reported since this host started.
    pub fn wire_bytes(&self) -> WireBytes {
        self.wire_bytes
    }

    /// The lowest sample that is leased or waiting: below it, the history must be complete.
    pub fn lowest_open_sample(&self) -> u64 {
        let waiting = self.queue.iter().map(|samples| samples.first);
        let leased = self
            .pipelines
            .iter()
            .flat_map(|pipeline| pipeline.leased_samples());
        waiting
            .chain(leased.map(|samples| samples.first))
            .min()
            .unwrap_or(self.fresh)
            .min(self.fresh)
    }

    fn out(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    fn tell(&mut self, peer: PeerId, message: Down) {
        if let Some(connection) = self
            .roster
            .get(peer)
            .and_then(|volunteer| volunteer.connection)
        {
            self.out(Output::Send(connection, message));
        }
    }

    /// Tells the host's person what happened to a volunteer that is still on the roster.
    fn incident(&mut self, peer: PeerId, what: What) {
        if let Some(volunteer) = self.roster.get(peer) {
            let name = volunteer.name.clone();
            self.out(Output::Tell(Incident { peer, name, what }));
        }
    }

    fn tell_all(&mut self, message: &Down) {
        let connections: Vec<ConnectionId> = self
            .roster
            .iter()
            .filter_map(|volunteer| volunteer.connection)
            .collect();
        for connection in connections {
            self.out(Output::Send(connection, message.clone()));
        }
    }

    fn issue(&mut self) -> Issue {
        let counter = self.issues;
        self.issues += 1;
        Issue {
            incarnation: self.history.incarnation().max(1),
            counter,
        }
    }

    fn journal(&mut self, row: Row, awaited: Awaited) {
        self.rows += 1;
        let seq = self.rows;
        self.awaited.push_back((seq, awaited));
        self.out(Output::Journal { seq, row });
    }

    /// Journals a row that holds up nothing. It counts at once: nothing irrevocable follows from it.
    fn note(&mut self, row: Row) {
        self.history
            .apply(&row)
            .expect("notes never break the rule");
        self.journal(row.clone(), Awaited::Note(row));
    }

    /// Whether a line-up, a commit or a rewind is on its way to the disk: everything else waits for it.
    fn is_journaling(&self) -> bool {
        self.awaited
            .iter()
            .any(|(_, awaited)| !matches!(awaited, Awaited::Note(_)))
    }

    /// All rows up to `seq` are synced.
    pub fn handle_journaled(&mut self, now: Time, seq: u64) {
        while self.awaited.front().is_some_and(|(first, _)| *first <= seq) {
            let Some((_, awaited)) = self.awaited.pop_front() else {
                break;
            };
            match awaited {
                Awaited::LineUp(id) => self.line_up_journaled(now, id),
                Awaited::Commit(row) => self.commit_journaled(now, &row),
                Awaited::Rewind(row) => self.rewind_journaled(&row),
                Awaited::Note(_) => {}
            }
        }
        self.reconsider(now);
    }

    /// A volunteer says something.
    pub fn handle_up(&mut self, now: Time, connection: ConnectionId, message: Up) {
        if let Up::Join(join) = message {
            self.join(now, connection, *join);
            return self.reconsider(now);
        }
        let Some(peer) = self.roster.speaker(connection) else {
            return self.refuse_silent(connection);
        };
        if let Some(volunteer) = self.roster.get_mut(peer) {
            volunteer.heard = now;
        }
        match message {
            Up::Join(_) => {}
            Up::Signal { to, signal } => {
                if let Some(key) = self.roster.get(peer).map(|volunteer| volunteer.key) {
                    self.tell(
                        to,
                        Down::Signal {
                            from: peer,
                            key,
                            signal,
                        },
                    );
                }
            }
            Up::Ready { place, stages } => self.ready(now, peer, place, &stages),
            Up::Report(report) => self.report(now, peer, report),
            Up::Holds(holds) => self.holds(now, peer, holds),
            Up::Evaluated { place, loss } => self.evaluated(now, peer, place, loss),
            Up::Copied { held } => self.copied(peer, held),
            Up::Missing { round, stage } => self.missing(now, peer, round, stage),
            // The store itself says when an upload is complete.
            Up::Uploaded { .. } => {}
            Up::Update {
                capabilities,
                paused,
            } => self.update(peer, capabilities, paused),
            Up::Suspect {
                place,
                peer: suspect,
                suspicion,
            } => {
                self.suspect(now, peer, place, suspect, suspicion);
            }
            Up::Ask { place } => self.asked(peer, place),
            Up::NonFinite { place, stage, own } => self.non_finite(peer, place, stage, own),
            Up::MergeFailed { place, attempt } => self.merge_failed(now, peer, place, attempt),
            Up::Written {
                request,
                drawn,
                token,
                ..
            } => self.written(now, peer, request, (drawn, token)),
            Up::NotWritten { request, .. } => self.not_written(now, peer, request),
            Up::Finish => {
                if self.roster.finish(peer) {
                    self.incident(peer, What::Finishing);
                }
            }
            Up::Leave { may_return } => self.leave(now, peer, may_return),
            Up::Links {
                host_bytes_per_second,
                links,
            } => self.measured(peer, host_bytes_per_second, &links),
            Up::Pong { nonce } => self.answered(now, peer, Time::from_micros(nonce)),
        }
        self.reconsider(now);
    }

    /// A connection was closed by the other end, or broke.
    pub fn handle_closed(&mut self, now: Time, connection: ConnectionId) {
        if let Some(peer) = self.roster.disconnect(connection) {
            self.away(now, peer);
        }
        self.reconsider(now);
    }

    /// When to call [`Coordinator::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        let is_idle = self.roster.is_empty() && self.pipelines.is_empty() && self.texts.is_empty();
        (!is_idle).then_some(self.next_tick.min(self.next_ping))
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Time) {
        if now >= self.next_ping {
            self.ping(now);
        }
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        let gone: Vec<PeerId> = self
            .roster
            .iter()
            .filter(|volunteer| {
                let is_due = |at: Option<Time>| at.is_some_and(|at| now >= at);
                is_due(volunteer.away_until)
                    || is_due(volunteer.answer_by)
                    || (volunteer.connection.is_some() && now.since(volunteer.heard) > SILENCE_MAX)
            })
            .map(|volunteer| volunteer.peer)
            .collect();
        for peer in gone {
            let was_away = self
                .roster
                .get(peer)
                .is_some_and(|it| it.connection.is_none());
            let what = if was_away { What::Gone } else { What::Silent };
            self.lose(peer, what);
        }
        self.check_pipelines(now);
        self.check_durability(now);
        self.check_texts(now);
        self.release_finished();
        self.reconsider(now);
    }

    /// Pings everybody once in [`KEEPALIVE`]: a few at once, many in turns.
    fn ping(&mut self, now: Time) {
        let count = self.roster.len();
        let turns = (count / PINGS_AT_ONCE).clamp(1, PING_TURNS_MAX);
        self.next_ping = now + Span::from_micros(KEEPALIVE.as_micros() / turns as u64);
        let at_once = count.div_ceil(turns);
        let due: Vec<_> = self
            .roster
            .after(self.pinged)
            .take(at_once)
            .map(|volunteer| (volunteer.peer, volunteer.connection))
            .collect();
        let is_through = due.len() < at_once || turns == 1;
        self.pinged = due.last().map(|last| last.0).filter(|_| !is_through);
        let nonce = now.as_micros();
        for connection in due.into_iter().filter_map(|(_, connection)| connection) {
            self.out(Output::Send(connection, Down::Ping { nonce }));
        }
    }

    /// What to do next; `None` when there is nothing more.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
}
