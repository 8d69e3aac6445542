//! Rules of the coordinator one at a time: volunteers that say exactly what a test wants.

mod conduct;
mod cost;
mod door;
mod durability;
mod missing;
mod pipelines;
mod resuming;
mod size;
mod texts;

use ed25519_dalek::{Signer, SigningKey};

use super::history::Row;
use super::pipeline::Pipeline;
use super::roster::ConnectionId;
use super::texts::TextNews;
use super::{Coordinator, Manifest, Output, Start};
use crate::config::run::RunConfig;
use crate::limits::TICK;
use crate::schedule::placement::StageCosts;
use crate::units::{Attempt, Digest, PeerId, Round, Span, Time};
use crate::wire::frame::{Mode, Place, VERSION};
use crate::wire::signal::{
    Capabilities, DataInfo, Down, Held, Holds, Join, Lease, Report, SeatOrder, Speed, Up,
    VolunteerKind, join_message,
};

/// A host whose disk is fast unless a test says otherwise, and volunteers that do as they are told when they are told to.
pub(super) struct Desk {
    pub(super) host: Coordinator,
    pub(super) now: Time,
    pub(super) rows: Vec<Row>,
    pub(super) sent: Vec<(ConnectionId, Down)>,
    tickets: Vec<String>,
    pub(super) manifests: Vec<Manifest>,
    /// News of texts.
    pub(super) news: Vec<(u64, TextNews)>,
    connections: u64,
    /// The rows that are not synced yet, while the disk is slow.
    unsynced: Option<Vec<u64>>,
    /// How slow those are who join.
    pub(super) block_us: u64,
}

pub(super) fn config() -> RunConfig {
    let mut config = RunConfig::preset("tiny").expect("a preset");
    config.schedule.eval_rounds = 0;
    config.schedule.round_steps = 2;
    config
}

fn start(config: RunConfig, resume: bool) -> Start {
    Start {
        costs: StageCosts::new(&config),
        config,
        data: DataInfo {
            digest: Digest::default(),
            train_tokens: 1 << 20,
            validation_tokens: 1 << 10,
        },
        seed_hash: Digest::default(),
        secret: [3; 32],
        resume,
    }
}

/// The key of a volunteer's name.
fn key_of(name: u8) -> SigningKey {
    SigningKey::from_bytes(&[name; 32])
}

impl Desk {
    pub(super) fn new(config: RunConfig) -> Self {
        Self::over(config, Vec::new(), false)
    }

    /// A host started over a journal.
    pub(super) fn over(config: RunConfig, rows: Vec<Row>, resume: bool) -> Self {
        let now = Time::from_micros(1);
        let host = Coordinator::new(now, start(config, resume), &rows).expect("a history");
        let mut desk = Self {
            host,
            now,
            rows,
            sent: Vec::new(),
            tickets: Vec::new(),
            manifests: Vec::new(),
            news: Vec::new(),
            connections: 0,
            unsynced: None,
            block_us: 50_000,
        };
        desk.settle();
        desk
    }

    /// From now on rows stay unsynced, until [`Desk::sync`].
    pub(super) fn slow_disk(&mut self) {
        self.unsynced = Some(Vec::new());
    }

    /// The disk is fast again: all rows are synced.
    pub(super) fn sync(&mut self) {
        for seq in self.unsynced.take().into_iter().flatten() {
            self.host.handle_journaled(self.now, seq);
        }
        self.settle();
    }

    /// Carries out what the host wants.
    pub(super) fn settle(&mut self) {
        while let Some(output) = self.host.poll_output() {
            match output {
                Output::Send(connection, message) => self.sent.push((connection, message)),
                Output::Close(_) | Output::Tell(_) | Output::Propose(_) => {}
                Output::Journal { seq, row } => {
                    self.rows.push(row);
                    match &mut self.unsynced {
                        Some(unsynced) => unsynced.push(seq),
                        None => self.host.handle_journaled(self.now, seq),
                    }
                }
                Output::ExpectUpload { ticket, .. } => self.tickets.push(ticket),
                Output::WriteManifest(manifest) => self.manifests.push(manifest),
                Output::Text { number, news } => self.news.push((number, news)),
            }
        }
    }

    /// All uploads that are expected come, and the manifest is written.
    pub(super) fn store_all(&mut self) {
        for ticket in std::mem::take(&mut self.tickets) {
            self.host.handle_stored(self.now, &ticket);
            self.settle();
        }
        for manifest in std::mem::take(&mut self.manifests) {
            self.host.handle_manifest(self.now, manifest.round, true);
            self.settle();
        }
    }

    /// Time passes; whoever is connected answers pings.
    pub(super) fn pass(&mut self, span: Span) {
        let until = self.now + span;
        while self.now < until {
            self.now = self.now + TICK;
            self.host.handle_timeout(self.now);
            self.settle();
            for connection in 1..=self.connections {
                let nonce = self.now.as_micros();
                self.say(ConnectionId(connection), Up::Pong { nonce });
            }
        }
    }

    /// Somebody of that name joins; its connection.
    pub(super) fn join(&mut self, name: u8) -> ConnectionId {
        self.join_as(name, |_| {})
    }

    /// Somebody of that name joins, and says of itself what a test changes; its connection.
    pub(super) fn join_as(&mut self, name: u8, change: impl FnOnce(&mut Join)) -> ConnectionId {
        self.join_in(u64::from(name), name, change)
    }

    /// The same in a session of its own.
    pub(super) fn join_in(
        &mut self,
        session: u64,
        name: u8,
        change: impl FnOnce(&mut Join),
    ) -> ConnectionId {
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        self.host.handle_connected(connection);
        self.settle();
        let Some((_, Down::Hello { nonce, .. })) = self.sent.last() else {
            panic!("the host speaks first")
        };
        let key = key_of(name);
        let proof = key.sign(&join_message(nonce, session)).to_bytes();
        let mut join = Join {
            version: VERSION,
            key: Digest(key.verifying_key().to_bytes()),
            proof: hex::encode(proof),
            session,
            name: format!("volunteer {name}"),
            seed_hash: Digest::default(),
            capabilities: Capabilities {
                kind: VolunteerKind::Native,
                device: String::new(),
                memory_bytes: 1 << 40,
                speed: Speed::of(self.block_us),
                throttle_percent: 100,
                relay_only: false,
                hidden: false,
            },
            paused: None,
            kept: Vec::new(),
            resume: None,
            invite: None,
        };
        change(&mut join);
        self.say(connection, Up::Join(Box::new(join)));
        connection
    }

    pub(super) fn say(&mut self, connection: ConnectionId, message: Up) {
        self.host.handle_up(self.now, connection, message);
        self.settle();
    }

    /// The last message to a connection that `pick` wants.
    pub(super) fn heard<T>(
        &self,
        connection: ConnectionId,
        pick: impl Fn(&Down) -> Option<T>,
    ) -> Option<T> {
        let of_it = self.sent.iter().rev().filter(|(to, _)| *to == connection);
        of_it.filter_map(|(_, message)| pick(message)).next()
    }

    /// The last reason that a volunteer was told.
    pub(super) fn reason(&self, connection: ConnectionId) -> String {
        let reason = self.heard(connection, |message| {
            if let Down::Reason { text } = message {
                Some(text.clone())
            } else {
                None
            }
        });
        reason.unwrap_or_default()
    }

    /// Why a volunteer was refused, if it was.
    pub(super) fn refusal(&self, connection: ConnectionId) -> Option<String> {
        self.heard(connection, |message| {
            if let Down::Refuse { code, text, .. } = message {
                Some(format!("{code:?}: {text}"))
            } else {
                None
            }
        })
    }

    /// The first pipeline.
    pub(super) fn pipeline(&self) -> &Pipeline {
        self.host.pipelines.iter().next().expect("a line-up")
    }

    /// The seats of the present line-ups, head first.
    pub(super) fn seats(&self) -> Vec<(ConnectionId, SeatOrder)> {
        self.host
            .pipelines
            .iter()
            .flat_map(|it| self.seats_of(it))
            .collect()
    }

    fn seats_of(&self, pipeline: &Pipeline) -> Vec<(ConnectionId, SeatOrder)> {
        let seat = |(index, peer): (usize, PeerId)| {
            let connection = self.host.roster.get(peer)?.connection?;
            let told = self.heard(connection, |message| {
                if let Down::Seat(order) = message {
                    Some((**order).clone())
                } else {
                    None
                }
            });
            // Whoever was seated before the host restarted is not told again.
            let order = told.unwrap_or_else(|| self.host.seat_order(pipeline, index));
            Some((connection, order))
        };
        pipeline.peers().enumerate().filter_map(seat).collect()
    }

    /// All seats have their states and links.
    pub(super) fn ready(&mut self) {
        for (connection, order) in self.seats() {
            let stages = order.state.iter().map(|fetch| fetch.held).collect();
            let place = order.place;
            self.say(connection, Up::Ready { place, stages });
        }
    }

    /// The place at which the line-up trains.
    pub(super) fn place(&self) -> Place {
        self.pipeline().place
    }

    fn begun(&self, connection: ConnectionId) -> (Attempt, Round) {
        let begun = self.heard(connection, |message| {
            if let Down::Begin {
                attempt,
                result,
                mode: Mode::Train,
                ..
            } = message
            {
                Some((*attempt, *result))
            } else {
                None
            }
        });
        let resumed = |pipeline: &Pipeline| Some((pipeline.attempt?, pipeline.result));
        let begun = begun.or_else(|| self.host.pipelines.iter().find_map(resumed));
        begun.expect("the round has begun")
    }

    fn leases(&self) -> Vec<Lease> {
        self.pipeline().leases.clone()
    }

    /// The line-up trains its round to the end, with that loss.
    pub(super) fn train(&mut self, loss: f64) {
        let place = self.place();
        let seats = self.seats();
        let (attempt, result) = self.begun(seats[0].0);
        let mut steps = 0;
        loop {
            steps += 1;
            let report = Report {
                place,
                steps,
                loss,
                round_loss: loss,
                elapsed_us: 1,
                forward_bytes: 100,
                backward_bytes: 80,
            };
            self.say(seats[0].0, Up::Report(report));
            if self.leases()[steps as usize - 1].last {
                break;
            }
        }
        for (connection, order) in seats {
            let held = |stage| {
                let text = format!("{stage} {result} {attempt}");
                let agreed = Digest::of(text.as_bytes());
                Held {
                    round: result,
                    stage,
                    agreed,
                    blob: agreed,
                }
            };
            let stages = order.stages.iter().map(held).collect();
            let holds = Holds {
                place,
                attempt,
                steps,
                stages,
            };
            self.say(connection, Up::Holds(holds));
        }
    }

    /// So many rounds with a loss that is no news.
    pub(super) fn rounds(&mut self, count: u32) {
        for _ in 0..count {
            self.pass(TICK);
            self.ready();
            self.train(4.0);
        }
    }

    pub(super) fn newest(&self) -> Round {
        self.host.history().newest()
    }

    pub(super) fn reason_of_run(&self) -> String {
        self.host.view().reason.unwrap_or_default()
    }
}

#[test]
fn a_host_with_one_volunteer_commits_rounds() {
    let mut desk = Desk::new(config());
    desk.join(1);
    desk.rounds(3);
    assert_eq!(desk.newest(), Round(3));
    assert_eq!(desk.host.wire_bytes().forward, 6 * 100 / 2);
}
