//! The volunteer's state machine: one session of one volunteer, from the door to its last commit.
//!
//! Owns what a volunteer decides: whom to be linked to ([`link`]), which states to hold ([`kept`], [`fetch`]), what
//! to compute next ([`work`]). It is told what happened (`handle_*`), and says what to do
//! ([`Peer::poll_output`]) and when to be called back ([`Peer::poll_timeout`]).
//!
//! Knows no sockets, no clock, no mathematics. Everything that comes from a neighbour or from the host is
//! believed only as far as its numbers fit: an older epoch, round or attempt has no effect, a newer one
//! waits until the host makes it current.
//!
//! Begin reading at [`Peer::handle_host`] and [`Peer::handle_frame`].

pub mod duty;
pub mod fetch;
pub mod kept;
pub mod link;
pub mod merging;
pub mod meter;
pub mod tally;
pub mod waiting;
pub mod work;

mod behind;
mod evaluation;
mod figures;
mod host;
mod links;
mod net;
mod person;
mod pulse;
mod replicas;
mod rhythm;
mod serving;
mod texts;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use ed25519_dalek::SigningKey;

use crate::compute::{Done, Job};
use crate::config::run::RunConfig;
use crate::transport::LinkStep;
use crate::units::{Attempt, Digest, Epoch, PeerId, PipelineId, Round, SampleRange, StageId, Time};
use crate::wire::frame::{Behind, Frame, Mode, Place};
use crate::wire::payload;
use crate::wire::signal::{Capabilities, DataInfo, Held, IceServer, Pause, SeatOrder, Up};

use behind::Ahead;
use duty::Duty;
use fetch::Transfer;
use figures::Figures;
use kept::Kept;
use link::Link;
use replicas::Merge;
use rhythm::Rhythm;
use serving::Serving;
use tally::{Stats, Tally};
use work::Work;

/// Who a volunteer is in one process.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The volunteer's key pair.
    pub key: SigningKey,
    /// Number of this session: two processes with one key never share it.
    pub session: u64,
    /// What to call it.
    pub name: String,
    /// What it is, and what it lends; its speed is measured when the run's model is known.
    pub capabilities: Capabilities,
}

/// What a volunteer wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Tell the host.
    Host(Up),
    /// Send this to a peer.
    Frame(PeerId, Frame),
    /// A step of opening or closing a link.
    Link(PeerId, LinkStep),
    /// Learn the run's model: derive what its seed gives, measure a block, make a compute ready for it.
    Prepare(Box<RunConfig>),
    /// Do a job. There is never more than one under way.
    Compute(Job),
    /// Measure the device again, in as short a time as will do; then say [`Peer::handle_measured`]. A job that is asked
    /// for meanwhile comes after it.
    Measure,
    /// Get samples' tokens from the host's data.
    Tokens {
        /// Training or held-out data.
        mode: Mode,
        /// Which samples.
        samples: SampleRange,
    },
    /// Get a state from the host's store.
    Download {
        /// What it must be.
        held: Held,
        /// Path under the host's address.
        path: String,
    },
    /// Send a state to the host's store.
    Upload {
        /// What it is.
        held: Held,
        /// Good for one upload.
        ticket: String,
        /// The state.
        blob: Bytes,
    },
    /// Links are opened and restarted with these ICE servers from now on.
    IceServers(Vec<IceServer>),
    /// Keep this state over a restart, after what was asked for before.
    Shelve(Held, Bytes),
    /// This state need not be kept over a restart any more.
    Unshelve(Held),
    /// Something that a person may want to know.
    Event(Event),
    /// It is over: close everything.
    Exit(Exit),
}

/// Something that a person may want to know.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The host let us in.
    Welcome {
        /// Our number.
        peer: PeerId,
        /// Newest committed round.
        round: Round,
    },
    /// We took a seat.
    Seated(Box<SeatOrder>),
    /// We gave up our seat.
    Spare,
    /// We computed our first microbatch of this line-up.
    FirstMicrobatch,
    /// As head: a step is done.
    Step {
        /// Line-up and round.
        place: Place,
        /// Steps done in the round.
        steps: u32,
        /// Mean token loss of the last one, in nats.
        loss: f64,
    },
    /// A round is committed.
    Commit {
        /// The new round.
        round: Round,
        /// Whether our own work is in it.
        ours: bool,
    },
    /// A link is up, or is mended, or goes another way.
    LinkUp {
        /// The other end.
        peer: PeerId,
        /// Whether packets go through a TURN server.
        relayed: bool,
    },
    /// Nothing gets through a link for now; it is being restarted, and nothing is lost yet.
    LinkDisturbed {
        /// The other end.
        peer: PeerId,
    },
    /// A link is lost.
    LinkLost {
        /// The other end.
        peer: PeerId,
        /// Why, in words.
        reason: String,
    },
    /// Why we wait, or what we do, in the host's words.
    Reason(String),
    /// The connection to the host broke; what is leased goes on.
    HostLost,
    /// States cannot be kept over a restart now, and why. Training goes on.
    NothingKept(String),
    /// How things stand, about once a second.
    Stats(Box<Stats>),
}

/// Why it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// We left as we wanted to, and nothing is lost.
    Finished,
    /// We left at once.
    Stopped,
    /// We wanted to leave, and the host stayed away: what became of the round's end is not known here.
    HostAway,
    /// The run has reached its length.
    RunOver,
    /// The host does not want us.
    Refused {
        /// Why, for a program.
        code: crate::wire::signal::RefuseCode,
        /// What happened and why.
        text: String,
        /// What to do.
        remedy: String,
    },
    /// The device failed.
    Device {
        /// What happened.
        reason: String,
    },
}

/// Rules that a test breaks on purpose, to show that the simulation notices.
#[cfg(any(test, feature = "sim"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BrokenRules {
    /// Takes frames of an older epoch for current ones.
    pub ignore_epoch: bool,
    /// Applies a step with the clip scale of the one before.
    pub stale_scale: bool,
    /// Runs no further ahead the slower the links are.
    pub blind: bool,
}

/// How a volunteer wants to leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Leaving {
    #[default]
    No,
    /// Since then.
    AfterCommit(Time),
}

/// A seat that is not ready yet: states and links are being gathered.
#[derive(Clone, Debug)]
struct Gathering {
    order: SeatOrder,
    /// Whether the compute was asked to take the states.
    loading: bool,
    /// Whether it has taken them.
    loaded: bool,
}

/// The job under way.
#[derive(Clone, Debug)]
struct Running {
    /// The line-up that it is for.
    epoch: Epoch,
    /// ... and of a merge's job its attempt.
    merge: Option<Attempt>,
    job: Job,
    began: Time,
}

/// A volunteer, as a state machine.
#[derive(Debug)]
pub struct Peer {
    identity: Identity,
    config: Option<RunConfig>,
    data: Option<DataInfo>,
    seed_hash: Option<Digest>,
    /// Of the open connection, until `join` answers it.
    nonce: Option<Digest>,
    /// Whether `join` was said on the open connection: before, the host takes nothing else.
    joined: bool,
    me: Option<PeerId>,
    /// Since when there has been no connection to the host; `None` while there is one, and before the first.
    host_away: Option<Time>,
    leaving: Leaving,
    paused: Option<Pause>,
    over: bool,

    links: BTreeMap<PeerId, Link>,
    /// The newest generation of links that made room for others.
    generation: u32,
    /// Keys of those that running transfers name.
    keys: BTreeMap<PeerId, Digest>,
    /// Whether the host named a TURN server.
    relays: bool,
    /// Credit that came before the seat it is for was known.
    credits: BTreeMap<PeerId, (PipelineId, Epoch, u64, Behind)>,
    kept: Kept,
    /// What others take from us.
    serving: BTreeMap<PeerId, Serving>,
    transfers: BTreeMap<(Round, StageId), Transfer>,
    /// Copies that the host asked for, among the transfers.
    copies: std::collections::BTreeSet<(Round, StageId)>,

    newest: Round,
    safe: Round,
    securing: Option<Round>,
    gathering: Option<Gathering>,
    work: Option<Work>,
    merge: Merge,
    /// Neighbours' frames of a line-up or round that the host has not told us of yet.
    early: VecDeque<(PeerId, Frame)>,
    job: Option<Running>,
    computed_in: Option<Epoch>,
    duty: Duty,
    /// Of the seat's microbatches.
    rhythm: Rhythm,
    figures: Figures,
    ahead: Ahead,
    tally: Tally,

    outputs: VecDeque<Output>,
    #[cfg(any(test, feature = "sim"))]
    broken: BrokenRules,
    #[cfg(any(test, feature = "sim"))]
    stale: f32,
}

impl Peer {
    /// A volunteer that has not reached the host yet.
    pub fn new(identity: Identity) -> Self {
        Self {
            duty: Duty::new(identity.capabilities.throttle_percent),
            rhythm: Rhythm::default(),
            figures: Figures::default(),
            ahead: Ahead::default(),
            tally: Tally::default(),
            identity,
            config: None,
            data: None,
            seed_hash: None,
            nonce: None,
            joined: false,
            me: None,
            host_away: None,
            leaving: Leaving::No,
            paused: None,
            over: false,
            links: BTreeMap::new(),
            generation: 0,
            keys: BTreeMap::new(),
            relays: false,
            credits: BTreeMap::new(),
            kept: Kept::default(),
            serving: BTreeMap::new(),
            transfers: BTreeMap::new(),
            copies: std::collections::BTreeSet::new(),
            newest: Round(0),
            safe: Round(0),
            securing: None,
            gathering: None,
            work: None,
            merge: Merge::default(),
            early: VecDeque::new(),
            job: None,
            computed_in: None,
            outputs: VecDeque::new(),
            #[cfg(any(test, feature = "sim"))]
            broken: BrokenRules::default(),
            #[cfg(any(test, feature = "sim"))]
            stale: 1.0,
        }
    }

    /// Breaks rules, for a test that must notice.
    #[cfg(any(test, feature = "sim"))]
    pub fn break_rules(&mut self, broken: BrokenRules) {
        self.broken = broken;
    }

    /// The run's configuration, once the host has told it.
    pub fn config(&self) -> Option<&RunConfig> {
        self.config.as_ref()
    }

    /// The run's data, once the host has told it.
    pub fn data(&self) -> Option<&DataInfo> {
        self.data.as_ref()
    }

    /// Our number, once the host has given one.
    pub fn id(&self) -> Option<PeerId> {
        self.me
    }

    /// What is kept now: for figures and checks.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Memory that is lent, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.identity.capabilities.memory_bytes
    }

    /// States that an earlier process of this volunteer kept, each with the hash that its name says: before
    /// [`Peer::handle_prepared`].
    pub fn handle_kept(&mut self, states: Vec<(Held, Bytes)>) {
        self.kept.found(states.iter().map(|(held, _)| *held));
        for (held, blob) in states {
            self.kept.insert(held, blob);
        }
    }

    /// What changed in what is kept is to change on the shelf.
    fn pump_shelf(&mut self) {
        let (added, dropped) = self.kept.changes();
        for (held, blob) in added {
            self.out(Output::Shelve(held, blob));
        }
        for held in dropped {
            self.out(Output::Unshelve(held));
        }
    }

    fn out(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    fn up(&mut self, message: Up) {
        // Until the host has been told who speaks nothing is queued: what still matters is told by `join`, or
        // after it.
        if self.joined {
            self.out(Output::Host(message));
        }
    }

    fn exit(&mut self, exit: Exit) {
        if !self.over {
            self.over = true;
            self.out(Output::Exit(exit));
        }
    }

    /// A job is done.
    pub fn handle_done(&mut self, now: Time, done: Done) {
        let running = self.job.take().expect("a result follows a job");
        let Running { epoch, job, .. } = running;
        self.device_answered();
        self.worked(now, &job, running.began);
        self.update_pace();
        if let Done::Failed { reason } = done {
            self.up(Up::Leave { may_return: false });
            return self.exit(Exit::Device { reason });
        }
        let is_current = |place: Place| place.epoch == epoch;
        let is_gathering = |it: &Gathering| is_current(it.order.place);
        if let Some(attempt) = running.merge {
            self.merge.handle_done(attempt, &job, done);
        } else if self.gathering.as_ref().is_some_and(is_gathering) {
            self.gathered(done);
        } else if let Some(work) = self.work.as_mut().filter(|work| is_current(work.place())) {
            if self.computed_in != Some(epoch) && matches!(job, Job::Forward { .. }) {
                self.computed_in = Some(epoch);
                self.outputs
                    .push_back(Output::Event(Event::FirstMicrobatch));
            }
            work.handle_done(now, &job, done);
        }
        self.pump(now);
    }

    /// Samples' tokens came, `[count, context + 1]`.
    pub fn handle_tokens(&mut self, now: Time, mode: Mode, samples: SampleRange, tokens: &[u32]) {
        let token_bytes = self
            .config
            .as_ref()
            .map_or(0, |config| payload::token_bytes(config.model.vocabulary));
        self.tally.file((tokens.len() * token_bytes) as u64, false);
        if let Some(work) = &mut self.work {
            work.handle_tokens(mode, samples, tokens);
        }
        self.pump(now);
    }

    /// The store answered a download; `None` when it could not.
    pub fn handle_download(&mut self, now: Time, held: &Held, blob: Option<Bytes>) {
        let bytes = blob.as_ref().map_or(0, |blob| blob.len() as u64);
        self.tally.file(bytes, false);
        if let Some(transfer) = self.transfers.get_mut(&(held.round, held.stage)) {
            transfer.handle_download(now, blob);
        }
        self.pump(now);
    }

    /// An upload is over; the host hears of it from its own store when it was complete.
    pub fn handle_uploaded(&mut self, now: Time, held: &Held, ticket: String) {
        self.up(Up::Uploaded {
            round: held.round,
            stage: held.stage,
            ticket,
        });
        self.pump(now);
    }

    /// Carries everything on as far as it goes: outputs of the parts, the next job.
    fn pump(&mut self, now: Time) {
        while self.pump_links(now)
            || self.pump_transfers(now)
            || self.pump_gathering(now)
            || self.pump_work(now)
            || self.pump_merge(now)
        {}
        self.pump_jobs(now);
        self.pump_shelf();
        self.pump_ahead(now);
        self.pump_figures(now);
        self.tell_stats(now);
    }

    /// A job ended: a microbatch's, an update's and a token's time counts as work, and is followed by its rest.
    fn worked(&mut self, now: Time, job: &Job, began: Time) {
        match job {
            Job::Forward { .. } | Job::Apply { .. } | Job::Generate(_) => {}
            Job::Backward { .. } => self.tally.microbatch(),
            Job::Seat { .. }
            | Job::Forget { .. }
            | Job::Snapshot { .. }
            | Job::Contribute { .. }
            | Job::Average { .. }
            | Job::OuterStep { .. }
            | Job::Norm { .. }
            | Job::GradientStep { .. } => return,
        }
        let span = now.since(began);
        self.duty.worked(now, self.rhythm.worked(job, span));
        self.rhythm.took(job, span);
    }

    fn pump_jobs(&mut self, now: Time) {
        // Asked first: a rest ends in its time whatever else goes on.
        let may_work = self.duty.may_work(now);
        if self.job.is_some() || self.over {
            return;
        }
        let Some(work) = &mut self.work else { return };
        let epoch = work.place().epoch;
        // Other pipelines wait for a merge, and it takes no device.
        let next = match self.merge.next_job() {
            Some((attempt, job)) => Some((Some(attempt), job)),
            None if may_work => work.next_job().map(|job| (None, job)),
            None => None,
        };
        if let Some((merge, job)) = next {
            self.run(now, epoch, merge, job);
        }
    }

    fn run(&mut self, now: Time, epoch: Epoch, merge: Option<Attempt>, job: Job) {
        self.out(Output::Compute(job.clone()));
        self.job = Some(Running {
            epoch,
            merge,
            job,
            began: now,
        });
    }

    /// What to do next; `None` when there is nothing more.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Peer::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        let links = self.links.values().filter_map(Link::poll_timeout);
        let transfers = self.transfers.values().filter_map(Transfer::poll_timeout);
        links
            .chain(transfers)
            .chain(self.duty.rests_until())
            .chain(self.figures_timeout())
            .chain(self.ahead_timeout())
            .chain(self.leaves_alone_at())
            .min()
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Time) {
        for link in self.links.values_mut() {
            link.handle_timeout(now);
        }
        for transfer in self.transfers.values_mut() {
            transfer.handle_timeout(now);
        }
        self.check_device(now);
        self.forget_idle_texts(now);
        self.leave_alone(now);
        self.pump(now);
    }

    /// For people: steps done in the round, the last step's loss as head, time since the round began.
    pub fn progress(&self, now: Time) -> Option<(SeatOrder, u32, Option<f64>)> {
        let work = self.work.as_ref()?;
        let (steps, loss, _) = work.progress(now);
        Some((work.order().clone(), steps, loss))
    }
}

#[cfg(test)]
mod tests;
