//! The one task that owns the coordinator: events in, outputs carried out.
//!
//! Decides nothing. Rows go to the journal's task and come back as `handle_journaled` once they are synced; a manifest is
//! written in the background and comes back as `handle_manifest`. A volunteer whose outbox is full is disconnected
//! rather than waited for, so no volunteer can hold up the run.
//!
//! Invariant: outputs are carried out in the order in which the coordinator gave them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use shared::config::run::RunConfig;
use shared::coordinator::history::Row;
use shared::coordinator::roster::ConnectionId;
use shared::coordinator::texts::TextNews;
use shared::coordinator::{Coordinator, Manifest, Output};
use shared::units::{Digest, Round, Span, Time};
use shared::wire::report::{RunReport, SampleReport};
use shared::wire::signal::Down;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

use crate::announce::Announce;
use crate::app::{Clock, Event, Telling, Ticket, Tickets};
use crate::data::Data;
use crate::journal::{Journal, JournalError, Record};
use crate::metrics::Metrics;
use crate::report;
use crate::store::Store;
use crate::turn::{IceServers, Renewals};

/// Rows that wait for the disk; then the run waits, too.
pub const ROWS_WAITING_MAX: usize = 1_024;
/// Rows in one transaction.
const ROWS_BATCH_MAX: usize = 256;
/// Between two tries to write rows that the disk refused.
const JOURNAL_RETRY: Duration = Duration::from_secs(2);
/// Events that are handled before the clocks are looked at again: a few milliseconds of them.
const EVENTS_BATCH_MAX: usize = 256;
/// Between two reports: a page needs no more.
const REPORT_EVERY: Span = Span::from_millis(250);
/// ... and at least so many times what one takes, where thousands are in it: volunteers' messages wait meanwhile.
const REPORT_COST_TIMES: u64 = 20;

/// What background work tells the conductor.
#[derive(Debug)]
enum Done {
    /// Rows up to this one are on the disk.
    Journaled(u64),
    /// A manifest was written, or not.
    Manifest(Round, Result<(), String>),
    /// The store is to keep the manifests of these rounds and no others.
    Keep(BTreeSet<Round>),
}

/// What the conductor is made of.
pub struct Parts {
    /// The run's state machine, just made.
    pub coordinator: Coordinator,
    /// The run.
    pub config: RunConfig,
    /// Its data.
    pub data: Data,
    /// Its store.
    pub store: Arc<Store>,
    /// Uploads that may come.
    pub tickets: Arc<Tickets>,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For welcomes.
    pub ice: IceServers,
    /// Now.
    pub clock: Clock,
    /// Held while outputs are carried out.
    pub telling: Telling,
    /// Where commits are announced.
    pub announce: Announce,
    /// From the journal's task: why rows can't be written.
    pub trouble: watch::Receiver<Option<String>>,
    /// To whoever looks at the run.
    pub report: watch::Sender<Arc<RunReport>>,
    /// What the model wrote by itself.
    pub sample: watch::Receiver<Option<SampleReport>>,
    /// Whether people can ask for texts.
    pub takes_prompts: bool,
}

struct Connection {
    outbox: mpsc::Sender<Down>,
    since: Time,
}

/// See the module's documentation.
pub struct Conductor {
    parts: Parts,
    connections: BTreeMap<u64, Connection>,
    /// Where news of texts go.
    texts: BTreeMap<u64, mpsc::Sender<TextNews>>,
    /// TURN credentials that expire.
    renewals: Renewals,
    rows: mpsc::Sender<(u64, Record)>,
    done_sender: mpsc::Sender<Done>,
    done: mpsc::Receiver<Done>,
    /// Rows that are announced once they are synced.
    news: BTreeMap<u64, Row>,
    /// Blobs of uploads that no manifest names yet.
    expected: BTreeSet<(Round, Digest)>,
    line_ups: u64,
    reported: Time,
    report_every: Span,
    changed: bool,
    /// Why the last checkpoint was not written.
    checkpoint_trouble: Option<String>,
    /// What the person was told last that does not work.
    told_trouble: Option<String>,
}

/// The journal's task; it ends once the conductor has ended and all rows are written.
pub struct Writer(tokio::task::JoinHandle<()>);

impl Writer {
    /// The writer whose task that is.
    #[cfg(test)]
    pub(crate) fn of(task: tokio::task::JoinHandle<()>) -> Self {
        Self(task)
    }

    /// Waits until the task ends before anybody wants it to; why, if it failed.
    pub(crate) async fn failed(&mut self) -> Option<String> {
        let ended = (&mut self.0).await;
        ended.err().map(|error| error.to_string())
    }

    /// Waits until all rows are written and the file is closed.
    pub async fn finish(self) {
        if let Err(error) = self.0.await {
            tracing::error!(%error, "the journal's task failed");
        }
    }
}

impl Conductor {
    /// Takes the coordinator over and starts the journal's task.
    pub fn new(
        parts: Parts,
        journal: Journal,
        trouble: watch::Sender<Option<String>>,
    ) -> (Self, Writer) {
        let (rows, waiting) = mpsc::channel(ROWS_WAITING_MAX);
        let (done_sender, done) = mpsc::channel(ROWS_WAITING_MAX);
        let writer = tokio::spawn(write_rows(journal, waiting, done_sender.clone(), trouble));
        let conductor = Self {
            parts,
            connections: BTreeMap::new(),
            texts: BTreeMap::new(),
            renewals: Renewals::default(),
            rows,
            done_sender,
            done,
            news: BTreeMap::new(),
            expected: BTreeSet::new(),
            line_ups: 0,
            reported: Time::ZERO,
            report_every: REPORT_EVERY,
            changed: true,
            checkpoint_trouble: None,
            told_trouble: None,
        };
        (conductor, Writer(writer))
    }

    /// Carries out what the coordinator wants before anybody is let in: this start is on the disk then.
    pub async fn prepare(&mut self) {
        self.carry_out().await;
        if let Some(done) = self.done.recv().await {
            self.handle_done(done).await;
        }
        self.publish();
    }

    /// Runs until `stop` is true.
    pub async fn run(mut self, mut inbox: mpsc::Receiver<Event>, mut stop: watch::Receiver<bool>) {
        let mut trouble = self.parts.trouble.clone();
        let mut events = Vec::with_capacity(EVENTS_BATCH_MAX);
        loop {
            let clock = self.parts.clock;
            let timeout = self.parts.coordinator.poll_timeout();
            let report_at = self.changed.then(|| self.reported + self.report_every);
            let now = clock.now();
            let renew_at = self.renewals.next();
            let wake = [timeout, report_at, renew_at].into_iter().flatten().min();
            let wake = clock.instant(wake.unwrap_or(now + Span::from_secs(3_600)));
            tokio::select! {
                count = inbox.recv_many(&mut events, EVENTS_BATCH_MAX) => {
                    if count == 0 {
                        return;
                    }
                    for event in events.drain(..) {
                        self.handle_event(event);
                        self.carry_out().await;
                    }
                }
                Some(done) = self.done.recv() => self.handle_done(done).await,
                changed = trouble.changed() => self.changed |= changed.is_ok(),
                () = tokio::time::sleep_until(wake) => {}
                () = stopped(&mut stop) => return,
            }
            let now = clock.now();
            if self
                .parts
                .coordinator
                .poll_timeout()
                .is_some_and(|at| at <= now)
            {
                self.parts.coordinator.handle_timeout(now);
                self.changed = true;
            }
            self.renew(now);
            self.carry_out().await;
            if self.changed && self.reported + self.report_every <= now {
                self.publish();
            }
        }
    }

    fn handle_event(&mut self, event: Event) {
        self.changed = true;
        let now = self.parts.clock.now();
        let coordinator = &mut self.parts.coordinator;
        match event {
            Event::Connected { connection, outbox } => {
                let since = now;
                self.connections
                    .insert(connection, Connection { outbox, since });
                coordinator.handle_connected(ConnectionId(connection));
            }
            Event::Message {
                connection,
                message,
            } => {
                coordinator.handle_up(now, ConnectionId(connection), message);
            }
            Event::Malformed { connection, reason } => {
                tracing::info!(connection, reason, "malformed");
                coordinator.handle_malformed(now, ConnectionId(connection), reason);
            }
            Event::Closed { connection } => {
                self.connections.remove(&connection);
                self.renewals.remove(connection);
                coordinator.handle_closed(now, ConnectionId(connection));
            }
            Event::Stored { ticket } => coordinator.handle_stored(now, &ticket),
            Event::Wanted {
                number,
                wanted,
                news,
            } => {
                self.texts.insert(number, news);
                coordinator.handle_wanted(now, number, wanted);
            }
            Event::Unwanted { number } => {
                self.texts.remove(&number);
                coordinator.handle_unwanted(now, number);
            }
            Event::NotHeld { ticket } => coordinator.handle_not_held(now, &ticket),
            Event::NotStored { ticket, reason } => {
                coordinator.handle_not_stored(now, &ticket);
                self.checkpoint_failed(&reason);
            }
        }
    }

    async fn handle_done(&mut self, done: Done) {
        self.changed = true;
        let now = self.parts.clock.now();
        match done {
            Done::Journaled(seq) => {
                self.parts.coordinator.handle_journaled(now, seq);
                let later = self.news.split_off(&(seq + 1));
                let news = std::mem::replace(&mut self.news, later);
                for row in news.into_values() {
                    self.tell(&row);
                }
            }
            Done::Manifest(round, written) => {
                let is_written = written.is_ok();
                self.parts
                    .coordinator
                    .handle_manifest(now, round, is_written);
                match written {
                    Ok(()) => {
                        self.checkpoint_trouble = None;
                        self.expected.retain(|(of, _)| *of > round);
                        self.choose_manifests();
                    }
                    Err(reason) => self.checkpoint_failed(&reason),
                }
            }
            Done::Keep(kept) => {
                self.parts.coordinator.handle_manifests_kept(&kept);
                self.tidy_store(kept);
            }
        }
        self.carry_out().await;
    }

    async fn carry_out(&mut self) {
        let telling = self.parts.telling.clone();
        let mut is_telling = None;
        while let Some(output) = self.parts.coordinator.poll_output() {
            if is_telling.is_none() {
                is_telling = Some(telling.write().await);
            }
            match output {
                Output::Send(connection, message) => self.send(connection, message),
                Output::Close(connection) => {
                    self.connections.remove(&connection.0);
                    self.renewals.remove(connection.0);
                }
                Output::Journal { seq, row } => {
                    let record = record_of(&row);
                    self.news.insert(seq, row);
                    if self.rows.send((seq, record)).await.is_err() {
                        tracing::error!(
                            "the journal's task has ended; nothing is committed any more"
                        );
                    }
                }
                Output::ExpectUpload {
                    ticket,
                    held,
                    deadline,
                } => {
                    self.expected.insert((held.round, held.blob));
                    let now = self.parts.clock.now();
                    self.parts
                        .tickets
                        .add(now, ticket, Ticket { held, deadline });
                }
                Output::WriteManifest(manifest) => self.write_manifest(manifest),
                Output::Tell(incident) => self.parts.announce.incident(&incident),
                Output::Propose(proposal) => self.parts.announce.proposal(&proposal),
                Output::Text { number, news } => self.tell_text(number, news),
            }
        }
    }

    /// Tells whoever wants a text; there is room for all that can be told of it.
    fn tell_text(&mut self, number: u64, news: TextNews) {
        let is_end = !matches!(news, TextNews::Token(_));
        if let Some(to) = self.texts.get(&number) {
            // Who is gone has an `Unwanted` on the way.
            let _ = to.try_send(news);
        }
        if is_end {
            self.texts.remove(&number);
        }
    }

    fn send(&mut self, connection: ConnectionId, mut message: Down) {
        let Some(open) = self.connections.get(&connection.0) else {
            return;
        };
        if let Down::Welcome(welcome) = &mut message {
            welcome.ice_servers = self.parts.ice.for_peer(welcome.peer, SystemTime::now());
            let now = self.parts.clock.now();
            if let Some(span) = self.parts.ice.renewal() {
                self.renewals.add(connection.0, welcome.peer, now + span);
            }
            let waited = now.since(open.since);
            self.parts.metrics.observe_join(waited.as_secs_f64());
        }
        match open.outbox.try_send(message) {
            Ok(()) => {}
            // Its `Closed` is on the way.
            Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => {
                tracing::warn!(connection = connection.0, "reads nothing: disconnected");
                self.connections.remove(&connection.0);
                self.renewals.remove(connection.0);
                let now = self.parts.clock.now();
                self.parts.coordinator.handle_closed(now, connection);
            }
        }
    }

    /// Gives new TURN credentials to those whose old ones will not last.
    fn renew(&mut self, now: Time) {
        let Some(span) = self.parts.ice.renewal() else {
            return;
        };
        while let Some((connection, peer)) = self.renewals.take(now) {
            self.renewals.add(connection, peer, now + span);
            let ice_servers = self.parts.ice.for_peer(peer, SystemTime::now());
            self.send(ConnectionId(connection), Down::IceServers { ice_servers });
        }
    }

    fn write_manifest(&self, manifest: Manifest) {
        let (store, done) = (self.parts.store.clone(), self.done_sender.clone());
        tokio::spawn(async move {
            let round = manifest.round;
            let written = store.write_manifest(manifest).await;
            if let Err(error) = &written {
                tracing::error!(%round, %error, "no checkpoint was written");
            }
            let written = written.map_err(|error| error.to_string());
            // An error means that the host stops: the next start finds the manifest or does not.
            let _ = done.send(Done::Manifest(round, written)).await;
        });
    }

    /// Finds out which checkpoints are old: the run hears of it before they are cleared away.
    fn choose_manifests(&self) {
        let (store, done) = (self.parts.store.clone(), self.done_sender.clone());
        let history = self.parts.coordinator.history();
        let standing: BTreeSet<Round> = history.manifests().keys().copied().collect();
        tokio::spawn(async move {
            match store.manifests_to_keep(&standing).await {
                // An error means that the host stops: the next start looks at the store itself.
                Ok(kept) => drop(done.send(Done::Keep(kept)).await),
                Err(error) => tracing::warn!(%error, "old checkpoints could not be looked at"),
            }
        });
    }

    fn tidy_store(&self, kept: BTreeSet<Round>) {
        let store = self.parts.store.clone();
        let spared = self.expected.iter().map(|(_, blob)| *blob).collect();
        tokio::spawn(async move {
            if let Err(error) = store.collect_garbage(&kept, &spared).await {
                tracing::warn!(%error, "old checkpoints could not be cleared away");
            }
        });
    }

    /// Says what is on the disk now.
    fn tell(&mut self, row: &Row) {
        let Parts {
            announce,
            coordinator,
            metrics,
            ..
        } = &self.parts;
        match row {
            Row::Commit(commit) => {
                let history = coordinator.history();
                let validation = history.newest_validation();
                announce.commit(
                    commit,
                    validation,
                    history.samples(),
                    coordinator.volunteer_count(),
                );
            }
            Row::Evaluated { round, loss } => announce.evaluated(*round, *loss),
            Row::Manifest { round, .. } => announce.checkpoint(*round),
            Row::Rewind { to } => {
                metrics.add_recovery("rewind");
                announce.rewind(*to);
            }
            Row::Paused { reason } => tracing::warn!("{reason}"),
            Row::Resumed => tracing::info!("the run goes on: a person wants it to"),
            Row::LineUp { place, .. } => {
                tracing::info!(epoch = %place.epoch, round = %place.round, "new line-up");
                self.line_ups += 1;
                if self.line_ups > 1 {
                    metrics.add_recovery("line_up");
                }
            }
            Row::Started { incarnation } => {
                if *incarnation > 1 {
                    metrics.add_recovery("host_restart");
                }
            }
        }
    }

    /// A checkpoint was given up. What is there of it goes again: the journal may need the room.
    fn checkpoint_failed(&mut self, reason: &str) {
        self.checkpoint_trouble = Some(format!(
            "training goes on, but the last checkpoint was not written: {reason}; the next one is tried by itself"
        ));
        self.expected.clear();
        self.choose_manifests();
    }

    /// Tells the person what does not work, when that changes. Without the journal nothing else matters.
    fn tell_trouble(&mut self, journal: Option<&String>) {
        let now = journal.or(self.checkpoint_trouble.as_ref());
        if self.told_trouble.as_ref() != now {
            self.told_trouble = now.cloned();
            self.parts.announce.trouble(self.told_trouble.as_deref());
        }
    }

    fn publish(&mut self) {
        let began = self.parts.clock.now();
        let view = self.parts.coordinator.view();
        let copies = view.stage_copies.clone();
        let trouble = self.parts.trouble.borrow().clone();
        self.tell_trouble(trouble.as_ref());
        let mut report = report::of_run(
            &self.parts.config,
            &self.parts.data,
            &self.parts.coordinator,
            view,
            trouble,
            self.checkpoint_trouble.as_deref(),
        );
        report.sample = self.parts.sample.borrow().clone();
        report.takes_prompts = self.parts.takes_prompts;
        let wire_bytes = self.parts.coordinator.wire_bytes();
        self.parts.metrics.observe(&report, &copies, wire_bytes);
        self.changed = false;
        self.parts.report.send_if_modified(|before| {
            let changed = **before != report;
            if changed {
                *before = Arc::new(report);
            }
            changed
        });
        self.reported = self.parts.clock.now();
        let took = self.reported.since(began);
        self.report_every = REPORT_EVERY.max(took.times(REPORT_COST_TIMES));
    }
}

/// Waits until the host is to stop, or whoever would say so is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A row as the journal keeps it.
#[must_use]
pub fn record_of(row: &Row) -> Record {
    let kind = match row {
        Row::Started { .. } => "started",
        Row::LineUp { .. } => "line_up",
        Row::Commit(_) => "commit",
        Row::Evaluated { .. } => "evaluated",
        Row::Manifest { .. } => "manifest",
        Row::Rewind { .. } => "rewind",
        Row::Paused { .. } => "paused",
        Row::Resumed => "resumed",
    };
    Record {
        kind: kind.to_owned(),
        json: serde_json::to_string(row).expect("rows have string keys"),
    }
}

/// Ends the process as `kill -9` would, where a test asks for it; see [`shared::faults`].
#[cfg(feature = "faults")]
fn abort_as_asked(records: &[Record]) {
    use shared::faults::{Point, is_due};
    let commits = records.iter().filter(|record| record.kind == "commit");
    if commits.fold(false, |due, _| due | is_due(Point::AbortAfterCommitRow)) {
        std::process::abort();
    }
}

/// Writes rows in their order, as many at once as are waiting; tries again when the disk refuses them.
async fn write_rows(
    mut journal: Journal,
    mut rows: mpsc::Receiver<(u64, Record)>,
    done: mpsc::Sender<Done>,
    trouble: watch::Sender<Option<String>>,
) {
    let mut batch = Vec::new();
    while rows.recv_many(&mut batch, ROWS_BATCH_MAX).await > 0 {
        let (numbers, records): (Vec<u64>, Vec<Record>) = batch.drain(..).unzip();
        while let Err(error) = journal.append(&records).await {
            let text = Some(format!("paused: {error}"));
            let is_news = *trouble.borrow() != text;
            if is_news {
                tracing::error!(%error, "rows wait for the disk; nothing is committed meanwhile");
                trouble.send_replace(text);
            }
            // Another host's rows stand where these should: nothing of this one may follow.
            let is_lost = matches!(error, JournalError::Diverged { .. });
            if is_lost || rows.is_closed() {
                return;
            }
            tokio::time::sleep(JOURNAL_RETRY).await;
        }
        #[cfg(feature = "faults")]
        abort_as_asked(&records);
        trouble.send_if_modified(|trouble| trouble.take().is_some());
        let Some(last) = numbers.last() else { continue };
        // An error means that the conductor has ended: rows are written all the same.
        let _ = done.send(Done::Journaled(*last)).await;
    }
    if let Err(error) = journal.close().await {
        tracing::warn!(%error, "the journal was not closed in good order; its rows are safe");
    }
}
