//! The world: events in order of time, a host that may die, processes that may too.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::Dice;
use super::audit::{Auditor, Objection};
use super::faults::OfKind;
use super::network::{Network, ProcessId};
use super::setup;
use super::summary::{Failure, Summary};
use super::texts::Askers;
use super::volunteer::Process;
use crate::config::run::RunConfig;
use crate::coordinator::history::Row;
use crate::coordinator::roster::ConnectionId;
use crate::coordinator::{self, BrokenRules, Coordinator, Start};
use crate::peer;
use crate::schedule::placement::StageCosts;
use crate::transport::LinkEvent;
use crate::units::{Digest, PeerId, Round, SampleRange, Span, Time};
use crate::wire::frame::{Frame, Mode};
use crate::wire::signal::{DataInfo, Down, Held, Up};

/// Rules broken on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sabotage {
    /// In the coordinator.
    pub host: BrokenRules,
    /// In the volunteers.
    pub peer: peer::BrokenRules,
}

/// Something that happens at its time.
#[derive(Clone, Debug)]
pub(super) enum Event {
    HostStart,
    HostTimer {
        incarnation: u32,
    },
    Synced {
        incarnation: u32,
        seq: u64,
        row: Box<Row>,
        crash: bool,
    },
    Stored {
        incarnation: u32,
        ticket: String,
        blob: Bytes,
    },
    Manifest {
        incarnation: u32,
        round: Round,
    },
    ToHost {
        connection: ConnectionId,
        message: Box<Up>,
    },
    HostSees {
        connection: ConnectionId,
    },
    Connect {
        process: ProcessId,
    },
    ToVolunteer {
        process: ProcessId,
        connection: ConnectionId,
        message: Box<Down>,
    },
    Disconnected {
        process: ProcessId,
        connection: ConnectionId,
    },
    Timer {
        process: ProcessId,
        at: Time,
    },
    Prepared {
        process: ProcessId,
    },
    /// A state is on its disk, or (`None`) gone from there.
    Shelved {
        process: ProcessId,
        held: Held,
        blob: Option<Bytes>,
    },
    Done {
        process: ProcessId,
    },
    Measured {
        process: ProcessId,
    },
    Tokens {
        process: ProcessId,
        mode: Mode,
        samples: SampleRange,
    },
    Downloaded {
        process: ProcessId,
        held: Held,
        blob: Option<Bytes>,
    },
    Link {
        process: ProcessId,
        peer: PeerId,
        event: LinkEvent,
    },
    Frame {
        from: PeerId,
        /// The number of whom it is for: a connection ends where that one joins under another.
        to: PeerId,
        process: ProcessId,
        generation: u32,
        frame: Box<Frame>,
    },
    Fault,
    Wanted,
}

impl Event {
    /// The process that it happens to.
    fn process(&self) -> Option<ProcessId> {
        match self {
            Self::Connect { process }
            | Self::ToVolunteer { process, .. }
            | Self::Disconnected { process, .. }
            | Self::Timer { process, .. }
            | Self::Prepared { process }
            | Self::Shelved { process, .. }
            | Self::Done { process }
            | Self::Measured { process }
            | Self::Tokens { process, .. }
            | Self::Downloaded { process, .. }
            | Self::Link { process, .. }
            | Self::Frame { process, .. } => Some(*process),
            Self::HostStart
            | Self::HostTimer { .. }
            | Self::Synced { .. }
            | Self::Stored { .. }
            | Self::Manifest { .. }
            | Self::ToHost { .. }
            | Self::HostSees { .. }
            | Self::Fault
            | Self::Wanted => None,
        }
    }
}

/// A coordinator, volunteers, a network, a clock.
#[derive(Debug)]
pub struct World {
    pub(super) seed: u64,
    sabotage: Sabotage,
    pub(super) dice: Dice,
    pub(super) now: Time,
    pub(super) events: BTreeMap<(Time, u64), Event>,
    pub(super) scheduled: u64,
    pub(super) config: RunConfig,

    pub(super) host: Option<Coordinator>,
    pub(super) incarnation: u32,
    pub(super) rows: Vec<Row>,
    pub(super) auditor: Auditor,
    pub(super) blobs: BTreeMap<Digest, Bytes>,
    /// What each session's disk holds, whether a process of it runs or not.
    pub(super) shelves: BTreeMap<u64, BTreeMap<Held, Bytes>>,
    sessions: u64,
    /// Rounds whose manifests are in the store.
    pub(super) stored: BTreeSet<Round>,
    tickets: BTreeMap<String, Held>,
    pub(super) connections: BTreeMap<ConnectionId, ProcessId>,
    pub(super) connected: u64,

    pub(super) processes: BTreeMap<ProcessId, Process>,
    pub(super) spawned: ProcessId,
    /// Which process a number belongs to, dead ones included.
    pub(super) numbers: BTreeMap<PeerId, ProcessId>,
    pub(super) network: Network,
    /// The next message of the host to this process that is of this kind is lost.
    pub(super) lost: Option<(ProcessId, OfKind)>,
    /// How often each process told of its links, and what it said last.
    #[cfg(test)]
    pub(super) links_told: BTreeMap<ProcessId, (u32, Vec<crate::wire::signal::LinkFigures>)>,
    /// Numbers of microbatches that the host's person was told of, in order.
    pub(super) proposed: Vec<u16>,
    pub(super) faults_until: Time,
    /// Whether states are as long as the model's, and so take their time on a wire.
    pub(super) states_at_length: bool,
    pub(super) summary: Summary,
    pub(super) askers: Askers,
}

impl World {
    /// A world that has not begun.
    pub fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut dice = Dice::new(seed);
        let config = setup::config(seed, &mut dice);
        let mut world = Self {
            seed,
            sabotage,
            now: Time::ZERO,
            events: BTreeMap::new(),
            scheduled: 0,
            host: None,
            incarnation: 0,
            rows: Vec::new(),
            auditor: Auditor::new(config.clone()),
            config,
            blobs: BTreeMap::new(),
            shelves: BTreeMap::new(),
            sessions: 0,
            stored: BTreeSet::new(),
            tickets: BTreeMap::new(),
            connections: BTreeMap::new(),
            connected: 0,
            processes: BTreeMap::new(),
            spawned: 0,
            numbers: BTreeMap::new(),
            network: Network::default(),
            lost: None,
            #[cfg(test)]
            links_told: BTreeMap::new(),
            proposed: Vec::new(),
            faults_until: Time::ZERO + Span::from_secs(dice.between(120, 300)),
            states_at_length: false,
            summary: Summary::default(),
            askers: Askers::new(seed),
            dice,
        };
        world.after(Span::ZERO, Event::HostStart);
        for _ in 0..world.dice.between(3, 7) {
            world.spawn();
        }
        world.after(Span::from_secs(10), Event::Fault);
        world.after(Span::from_secs(5), Event::Wanted);
        world
    }

    pub(super) fn after(&mut self, span: Span, event: Event) {
        self.at(self.now + span, event);
    }

    pub(super) fn at(&mut self, at: Time, event: Event) {
        self.scheduled += 1;
        self.events.insert((at, self.scheduled), event);
    }

    /// A newcomer.
    pub(super) fn spawn(&mut self) {
        let pace_ms = self.dice.between(5, 40);
        let session = self.new_session();
        self.start(session, pace_ms);
    }

    /// A session that nobody had.
    pub(super) fn new_session(&mut self) -> u64 {
        self.sessions += 1;
        self.sessions
    }

    /// A new process, of a session that was there before or not.
    pub(super) fn start(&mut self, session: u64, pace_ms: u64) {
        let id = self.spawned;
        self.spawned += 1;
        let mut process = Process::new(session, pace_ms);
        process.peer.break_rules(self.sabotage.peer);
        self.processes.insert(id, process);
        let wait = self.dice.millis(0, 3_000);
        self.after(wait, Event::Connect { process: id });
    }

    pub(super) fn failure(&self, what: impl ToString) -> Failure {
        Failure {
            seed: self.seed,
            at_ms: self.now.as_micros() / 1_000,
            what: what.to_string(),
        }
    }

    /// Runs to its end: faults, then peace, in which rounds must be committed.
    ///
    /// # Errors
    /// The first rule that was broken.
    pub fn run(mut self) -> Result<Summary, Failure> {
        let bound = Span::from_secs(300);
        let mut peace: Option<(Time, u32)> = None;
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            self.happen(event)?;
            let commits = self.summary.rounds;
            match peace {
                None if self.now >= self.faults_until => {
                    self.make_peace();
                    peace = Some((self.now, commits));
                }
                None => {}
                Some((_, before)) if commits >= before + 3 => return Ok(self.summary),
                Some((since, _)) if self.now > since + bound => {
                    let state = self.host.as_ref().map(|host| host.view());
                    return Err(self.failure(format!(
                        "no three commits in {} s of peace: {state:#?}",
                        bound.as_secs_f64()
                    )));
                }
                Some(_) => {}
            }
        }
        Err(self.failure("nothing happens any more"))
    }

    pub(super) fn happen(&mut self, event: Event) -> Result<(), Failure> {
        self.echo(&event);
        if let Some(id) = event.process() {
            match self.processes.get(&id) {
                None => return Ok(()),
                Some(Process {
                    frozen_until: Some(until),
                    ..
                }) if self.now < *until => {
                    // What comes while it is frozen waits in its sockets.
                    let until = *until;
                    self.at(until, event);
                    return Ok(());
                }
                Some(_) => {}
            }
            self.happen_to_process(id, event);
            self.settle_process(id)?;
        } else {
            self.happen_to_host(event)?;
        }
        self.settle_host()
    }

    fn happen_to_host(&mut self, event: Event) -> Result<(), Failure> {
        let (now, current) = (self.now, self.incarnation);
        match event {
            Event::HostStart => self.start_host()?,
            Event::Synced {
                incarnation,
                seq,
                row,
                crash,
            } if incarnation == current => {
                if self.host.is_some() {
                    self.sync(seq, &row, crash)?;
                }
            }
            Event::Fault => self.fault()?,
            Event::Wanted => self.want()?,
            Event::ToHost {
                connection,
                message,
            } => {
                if let Some(host) = &mut self.host {
                    host.handle_up(now, connection, *message);
                }
            }
            Event::HostSees { connection } => {
                if let Some(host) = &mut self.host {
                    host.handle_closed(now, connection);
                }
            }
            Event::HostTimer { incarnation } if incarnation == current => {
                if let Some(host) = &mut self.host {
                    host.handle_timeout(now);
                    let wait = crate::limits::TICK;
                    self.after(wait, Event::HostTimer { incarnation });
                }
            }
            Event::Stored {
                incarnation,
                ticket,
                blob,
            } if incarnation == current => {
                if let (Some(host), Some(held)) = (&mut self.host, self.tickets.remove(&ticket)) {
                    assert_eq!(
                        Digest::of(&blob),
                        held.blob,
                        "a peer uploads what it was asked for"
                    );
                    let peaceful = now >= self.faults_until;
                    if !peaceful && self.dice.once_in(20) {
                        // On its way it became something else.
                        host.handle_not_held(now, &ticket);
                    } else {
                        self.blobs.insert(held.blob, blob);
                        host.handle_stored(now, &ticket);
                    }
                }
            }
            Event::Manifest { incarnation, round } if incarnation == current => {
                self.end_manifest(round);
            }
            // Of a host that is dead.
            Event::Synced { .. }
            | Event::HostTimer { .. }
            | Event::Stored { .. }
            | Event::Manifest { .. } => {}
            Event::Connect { .. }
            | Event::ToVolunteer { .. }
            | Event::Disconnected { .. }
            | Event::Timer { .. }
            | Event::Prepared { .. }
            | Event::Shelved { .. }
            | Event::Done { .. }
            | Event::Measured { .. }
            | Event::Tokens { .. }
            | Event::Downloaded { .. }
            | Event::Link { .. }
            | Event::Frame { .. } => unreachable!("it happens to a process"),
        }
        Ok(())
    }

    fn start_host(&mut self) -> Result<(), Failure> {
        let start = Start {
            config: self.config.clone(),
            data: DataInfo {
                digest: Digest::default(),
                train_tokens: 1 << 20,
                validation_tokens: 1 << 10,
            },
            seed_hash: Digest::default(),
            secret: [3; 32],
            costs: StageCosts::new(&self.config),
            resume: false,
        };
        self.incarnation += 1;
        self.summary.incarnations += 1;
        let rows = self.stored_rows();
        let mut host =
            Coordinator::new(self.now, start, &rows).map_err(|error| self.failure(error))?;
        host.break_rules(self.sabotage.host);
        self.host = Some(host);
        self.after(
            crate::limits::TICK,
            Event::HostTimer {
                incarnation: self.incarnation,
            },
        );
        Ok(())
    }

    /// A row reached the disk; `crash`: the host dies before it learns of it.
    fn sync(&mut self, seq: u64, row: &Row, crash: bool) -> Result<(), Failure> {
        self.auditor
            .row(row)
            .map_err(|objection| self.failure(objection))?;
        self.rows.push(row.clone());
        match row {
            Row::Commit(commit) => {
                self.summary.rounds += 1;
                self.summary.merges += u32::from(commit.members.len() > 1);
            }
            Row::Rewind { .. } => self.summary.rewinds += 1,
            Row::LineUp { .. } => self.summary.line_ups += 1,
            Row::Started { .. }
            | Row::Evaluated { .. }
            | Row::Manifest { .. }
            | Row::Paused { .. }
            | Row::Resumed => {}
        }
        if crash {
            self.crash_host();
        } else if let Some(host) = &mut self.host {
            host.handle_journaled(self.now, seq);
        }
        Ok(())
    }

    /// The host dies; it comes back after a while.
    pub(super) fn crash_host(&mut self) {
        self.host = None;
        self.tickets.clear();
        self.askers.forget();
        for (connection, process) in std::mem::take(&mut self.connections) {
            let wait = self.dice.millis(1, 200);
            self.after(
                wait,
                Event::Disconnected {
                    process,
                    connection,
                },
            );
        }
        let wait = self.dice.millis(500, 12_000);
        self.after(wait, Event::HostStart);
    }

    fn settle_host(&mut self) -> Result<(), Failure> {
        while let Some(output) = self.host.as_mut().and_then(Coordinator::poll_output) {
            self.carry_out_for_host(output)?;
        }
        if let Some(host) = &self.host {
            let lowest_open = host.lowest_open_sample();
            self.auditor
                .open(lowest_open)
                .map_err(|objection| self.failure(objection))?;
        }
        Ok(())
    }

    fn carry_out_for_host(&mut self, output: coordinator::Output) -> Result<(), Failure> {
        let incarnation = self.incarnation;
        match output {
            coordinator::Output::Send(connection, message) => {
                if let Down::Commit { round, .. } = &message {
                    self.auditor
                        .told(*round)
                        .map_err(|objection| self.failure(objection))?;
                }
                if let Some(&process) = self.connections.get(&connection) {
                    if self.is_lost(process, &message) {
                        return Ok(());
                    }
                    let wait = self.one_way();
                    let message = Box::new(message);
                    self.after(
                        wait,
                        Event::ToVolunteer {
                            process,
                            connection,
                            message,
                        },
                    );
                }
            }
            coordinator::Output::Close(connection) => {
                if let Some(process) = self.connections.remove(&connection) {
                    let wait = self.one_way() + Span::from_micros(1);
                    self.after(
                        wait,
                        Event::Disconnected {
                            process,
                            connection,
                        },
                    );
                }
            }
            coordinator::Output::Journal { seq, row } => {
                let is_commit = matches!(row, Row::Commit(_));
                let peaceful = self.now >= self.faults_until;
                let crash = is_commit && !peaceful && self.dice.once_in(25);
                let row = Box::new(row);
                // Rows are written in order: each takes as long as any.
                let wait = Span::from_millis(8);
                self.after(
                    wait,
                    Event::Synced {
                        incarnation,
                        seq,
                        row,
                        crash,
                    },
                );
            }
            coordinator::Output::ExpectUpload { ticket, held, .. } => {
                self.tickets.insert(ticket, held);
            }
            coordinator::Output::Tell(_) => {}
            coordinator::Output::Propose(proposal) => self.proposed.push(proposal.microbatches),
            coordinator::Output::Text { number, news } => self.text_news(number, news)?,
            coordinator::Output::WriteManifest(manifest) => {
                let round = manifest.round;
                let all = manifest
                    .stages
                    .iter()
                    .all(|held| self.blobs.contains_key(&held.blob));
                if !all {
                    let what = format!("manifest of round {round} without all its blobs");
                    return Err(self.failure(what));
                }
                let wait = self.dice.millis(5, 100);
                self.after(wait, Event::Manifest { incarnation, round });
            }
        }
        Ok(())
    }

    /// To the host and back messages keep their order, as in a WebSocket.
    pub(super) fn one_way(&self) -> Span {
        Span::from_millis(20)
    }
}

impl From<Objection> for String {
    fn from(objection: Objection) -> Self {
        objection.to_string()
    }
}
