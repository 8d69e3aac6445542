//! The generic loop that a client runs: peer + transport + compute + host + clock. No decisions.
//!
//! Carries out what [`Peer`] says and tells it what came of it. Both clients run this loop; what differs between
//! a browser and a headless machine stands behind the traits here, in [`transport`](crate::transport) and in
//! [`compute`](crate::compute).
//!
//! Invariant: the loop waits for everything at once and for nothing in particular: a slow download,
//! a full channel or a long job holds nothing else up.

mod flows;
mod links;
pub mod measure;
mod outbox;
pub mod sent;
pub mod shelf;
pub mod tokens;
pub mod trace;
mod way;
mod window;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;

use bytes::Bytes;
use futures_util::future::{Fuse, join};
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use futures_util::{FutureExt, select_biased};

use crate::compute::{Compute, Done, Job};
use crate::config::run::RunConfig;
use crate::peer::{Event, Exit, Output, Peer};
use crate::transport::{MaybeSend, NetEvent, Transport, TransportStopped};
use crate::units::{Digest, PeerId, SampleRange, Time};
use crate::wire::frame::Mode;
use crate::wire::signal::{DataInfo, Down, Held, Pause, Speed, Up};

use outbox::Outbox;
use sent::Sent;
use shelf::{Changed, Queue, Shelf};
use trace::Tracer;

/// News from the host's side.
#[derive(Clone, Debug, PartialEq)]
pub enum HostEvent {
    /// The connection is open; the host speaks first.
    Open,
    /// The host says something.
    Message(Box<Down>),
    /// The connection broke; it is being opened again.
    Closed,
}

/// The way to the host: a socket for messages, requests for files.
pub trait Host: MaybeSend + 'static {
    /// Requests for files: shared by requests that run at the same time.
    type Files: Files;

    /// Queues a message; it is lost if the connection is down.
    fn send(&mut self, message: Up);

    /// Next news. Cancel safe.
    fn next_event(&mut self) -> impl Future<Output = HostEvent> + MaybeSend;

    /// Requests for files.
    fn files(&self) -> Self::Files;

    /// Sends what is queued, then closes.
    fn close(self) -> impl Future<Output = ()> + MaybeSend;
}

/// What the host serves and takes over HTTP. Implementations try again by themselves.
pub trait Files: Clone + MaybeSend + 'static {
    /// Tokens of samples, `[count, context + 1]`. Tries until it has them.
    fn tokens(
        &self,
        config: &RunConfig,
        data: &DataInfo,
        mode: Mode,
        samples: SampleRange,
    ) -> impl Future<Output = Vec<u32>> + MaybeSend;

    /// A state from the store; `None` when the store does not have it.
    fn download(&self, held: Held, path: &str) -> impl Future<Output = Option<Bytes>> + MaybeSend;

    /// Sends a state to the store; whether it arrived.
    fn upload(&self, ticket: &str, blob: Bytes) -> impl Future<Output = bool> + MaybeSend;
}

/// A compute that fits a run, and what was learned in making it.
#[derive(Debug)]
pub struct Prepared<C> {
    /// Does the work of a seat.
    pub compute: C,
    /// What this machine derives from the run's seed.
    pub seed_hash: Digest,
    /// How fast it is.
    pub speed: Speed,
}

/// Makes a compute for a run, once its model is known.
pub trait Workshop: MaybeSend + 'static {
    /// What it makes.
    type Compute: Compute;

    /// Makes the compute, derives the seed's hash, measures a block.
    ///
    /// # Errors
    /// The device cannot run this model: why, in words.
    fn prepare(
        self,
        config: RunConfig,
    ) -> impl Future<Output = Result<Prepared<Self::Compute>, String>> + MaybeSend;
}

/// Monotonic time.
pub trait Clock: MaybeSend + 'static {
    /// Time since the process started.
    fn now(&self) -> Time;

    /// Waits. Cancel safe.
    fn sleep_until(&self, at: Time) -> impl Future<Output = ()> + MaybeSend;
}

/// What a person at the terminal or page wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Leave after this round's commit, without loss.
    Finish,
    /// Leave now.
    Stop,
    /// Give up the seat after this round's commit, stay connected, and rest.
    Pause(Pause),
    /// Rest no more.
    Resume,
    /// Work for this share of the time, in percent, 10 to 100: rests between microbatches see to it.
    Throttle(u8),
    /// The page is hidden (`true`) or seen again.
    Hidden(bool),
    /// The page is being left, perhaps to be loaded again: the host keeps the seat for a moment, and whoever
    /// joins with the same key and session gets it back.
    Reload,
}

/// The world of one volunteer.
#[derive(Debug)]
pub struct World<T, H, W, K, S> {
    /// Links to other volunteers.
    pub transport: T,
    /// The way to the host.
    pub host: H,
    /// Makes the compute.
    pub workshop: W,
    /// The clock.
    pub clock: K,
    /// Where what goes out to other volunteers is counted.
    pub sent: Sent,
    /// Keeps states over restarts.
    pub shelf: S,
    /// Hears what is done when; [`Tracer::default`] for nobody.
    pub tracer: Tracer,
}

/// A request for files that came back.
enum Filed {
    Tokens {
        mode: Mode,
        samples: SampleRange,
        tokens: Vec<u32>,
    },
    Downloaded {
        held: Held,
        blob: Option<Bytes>,
    },
    Uploaded {
        held: Held,
        ticket: String,
        arrived: bool,
    },
}

/// A request for files.
enum Request {
    Tokens {
        mode: Mode,
        samples: SampleRange,
    },
    Download {
        held: Held,
        path: String,
    },
    Upload {
        held: Held,
        ticket: String,
        blob: Bytes,
    },
}

async fn file<F: Files>(
    files: F,
    config: Option<RunConfig>,
    data: Option<DataInfo>,
    request: Request,
) -> Filed {
    match (request, config, data) {
        (Request::Tokens { mode, samples }, Some(config), Some(data)) => {
            let tokens = files.tokens(&config, &data, mode, samples).await;
            Filed::Tokens {
                mode,
                samples,
                tokens,
            }
        }
        (Request::Tokens { mode, samples }, ..) => Filed::Tokens {
            mode,
            samples,
            tokens: Vec::new(),
        },
        (Request::Download { held, path }, ..) => Filed::Downloaded {
            held,
            blob: files.download(held, &path).await,
        },
        (Request::Upload { held, ticket, blob }, ..) => {
            let arrived = files.upload(&ticket, blob).await;
            Filed::Uploaded {
                held,
                ticket,
                arrived,
            }
        }
    }
}

/// A compute, and the states that an earlier process kept.
type Ready<C> = (Prepared<C>, Vec<(Held, Bytes)>);

/// Makes the compute, and reads what was kept of this run before.
async fn prepare<W: Workshop, S: Shelf>(
    workshop: W,
    shelf: S,
    config: RunConfig,
    room_bytes: u64,
) -> Result<Ready<W::Compute>, String> {
    let kept = shelf::load(shelf, config.digest(), room_bytes);
    let (prepared, kept) = join(workshop.prepare(config), kept).await;
    Ok((prepared?, kept))
}

async fn compute<C: Compute>(mut compute: C, job: Job) -> (C, Done) {
    let done = compute.run(job).await;
    (compute, done)
}

/// Everything that the loop holds beside the peer.
struct Loop<T, H: Host, C> {
    shelf: Queue,
    transport: T,
    host: H,
    sent: Sent,
    tracer: Tracer,
    outboxes: BTreeMap<PeerId, Outbox>,
    idle: Option<C>,
    job: Option<Job>,
    requests: Vec<Request>,
    prepare: Option<RunConfig>,
    /// Whether the device is to be measured again.
    measure: bool,
}

/// Runs one volunteer until it is over; tells `watch` what a person may want to know.
///
/// # Errors
/// The network stack stopped, or the device cannot run the model (as [`Exit::Device`]).
pub async fn run<T, H, W, K, S>(
    mut peer: Peer,
    world: World<T, H, W, K, S>,
    mut watch: impl FnMut(&Peer, Time, Event),
    commands: impl Stream<Item = Command>,
) -> Result<Exit, TransportStopped>
where
    T: Transport,
    H: Host,
    W: Workshop,
    K: Clock,
    S: Shelf,
{
    let World {
        transport,
        host,
        workshop,
        clock,
        sent,
        shelf,
        tracer,
    } = world;
    let mut workshop = Some(workshop);
    let mut state = Loop::<T, H, W::Compute> {
        shelf: Queue::default(),
        transport,
        host,
        sent,
        tracer,
        outboxes: BTreeMap::new(),
        idle: None,
        job: None,
        requests: Vec::new(),
        prepare: None,
        measure: false,
    };
    let mut computing = FuturesUnordered::new();
    let mut measuring = FuturesUnordered::new();
    let mut filing = FuturesUnordered::new();
    let mut shelving = FuturesUnordered::new();
    let mut preparing = pin!(Fuse::terminated());
    let mut commands = pin!(commands.fuse());
    loop {
        let mut exit = None;
        loop {
            state.tell_state_left(&mut peer, clock.now());
            let Some(output) = peer.poll_output() else {
                break;
            };
            exit = exit.or(state.carry_out(&peer, clock.now(), output, &mut watch));
        }
        if let Some(exit) = exit {
            state.host.close().await;
            return Ok(exit);
        }
        if let Some(config) = state.prepare.take()
            && let Some(workshop) = workshop.take()
        {
            let (shelf, room_bytes) = (shelf.clone(), peer.memory_bytes());
            let prepared = prepare(workshop, shelf, config, room_bytes);
            preparing.set(prepared.fuse());
        }
        if let (Some(change), Some(config)) = (state.shelf.next(), peer.config()) {
            shelving.push(shelf::change(shelf.clone(), config.digest(), change));
        }
        if let Some(job) = state.job.take_if(|_| state.idle.is_some())
            && let Some(free) = state.idle.take()
        {
            state.tracer.begins(clock.now(), &job);
            computing.push(compute(free, job));
        }
        if let (true, Some(config)) = (state.measure && state.idle.is_some(), peer.config())
            && let Some(free) = state.idle.take()
        {
            state.measure = false;
            measuring.push(measure::again(free, &clock, config.clone()));
        }
        for request in state.requests.drain(..) {
            let (config, data) = (peer.config().cloned(), peer.data().cloned());
            filing.push(file(state.host.files(), config, data, request));
        }
        state.tracer.waits(clock.now(), peer.waits_for());
        let happened = {
            let timeout = [peer.poll_timeout(), state.poll_timeout()];
            let timeout = timeout.into_iter().flatten().min();
            let mut sleep = pin!(sleep_until(&clock, timeout).fuse());
            let mut net = pin!(state.transport.next_event().fuse());
            let mut said = pin!(state.host.next_event().fuse());
            select_biased! {
                command = commands.select_next_some() => Happened::Command(command),
                event = said => Happened::Host(event),
                done = computing.select_next_some() => Happened::Done(done),
                (free, block_us) = measuring.select_next_some() => Happened::Measured(free, block_us),
                event = net => Happened::Net(event?),
                filed = filing.select_next_some() => Happened::Filed(filed),
                changed = shelving.select_next_some() => Happened::Shelved(changed),
                prepared = preparing => Happened::Prepared(prepared),
                () = sleep => Happened::Timeout,
            }
        };
        let now = clock.now();
        match happened {
            Happened::Command(command) => obey(&mut peer, now, command),
            Happened::Host(HostEvent::Open) => peer.handle_host_open(),
            Happened::Host(HostEvent::Closed) => peer.handle_host_closed(now),
            Happened::Host(HostEvent::Message(message)) => peer.handle_host(now, *message),
            Happened::Done((free, done)) => {
                state.idle = Some(free);
                state.tracer.ends(now);
                peer.handle_done(now, done);
            }
            Happened::Measured(free, block_us) => {
                state.idle = Some(free);
                peer.handle_measured(now, block_us);
            }
            Happened::Net(event) => state.handle_net(&mut peer, now, event),
            Happened::Filed(filed) => handle_filed(&mut peer, now, filed),
            Happened::Prepared(Ok((prepared, kept))) => {
                state.idle = Some(prepared.compute);
                kept.iter().for_each(|(held, _)| state.shelf.found(held));
                peer.handle_kept(kept);
                peer.handle_prepared(now, prepared.seed_hash, prepared.speed);
            }
            Happened::Prepared(Err(reason)) => return Ok(Exit::Device { reason }),
            Happened::Shelved(changed) => {
                if let Some(reason) = state.shelf.changed(changed) {
                    watch(&peer, now, Event::NothingKept(reason));
                }
            }
            Happened::Timeout => {
                peer.handle_timeout(now);
                state.handle_timeout(&mut peer, now);
            }
        }
    }
}

/// What the loop waited for.
enum Happened<C> {
    Shelved(Changed),
    Command(Command),
    Host(HostEvent),
    Done((C, Done)),
    Measured(C, Option<u64>),
    Net(NetEvent),
    Filed(Filed),
    Prepared(Result<Ready<C>, String>),
    Timeout,
}

async fn sleep_until<K: Clock>(clock: &K, at: Option<Time>) {
    match at {
        Some(at) => clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn obey(peer: &mut Peer, now: Time, command: Command) {
    match command {
        Command::Finish => peer.finish(now),
        Command::Stop => peer.stop(),
        Command::Pause(reason) => peer.pause(reason),
        Command::Resume => peer.resume(),
        Command::Throttle(percent) => peer.throttle(now, percent),
        Command::Hidden(hidden) => peer.hide(hidden),
        Command::Reload => peer.reload(),
    }
}

fn handle_filed(peer: &mut Peer, now: Time, filed: Filed) {
    match filed {
        Filed::Tokens {
            mode,
            samples,
            tokens,
        } => peer.handle_tokens(now, mode, samples, &tokens),
        Filed::Downloaded { held, blob } => peer.handle_download(now, &held, blob),
        // An upload that did not arrive is noticed by its ticket's deadline.
        Filed::Uploaded { arrived: false, .. } => {}
        Filed::Uploaded {
            held,
            ticket,
            arrived: true,
        } => {
            peer.handle_uploaded(now, &held, ticket);
        }
    }
}

impl<T: Transport, H: Host, C> Loop<T, H, C> {
    fn carry_out(
        &mut self,
        peer: &Peer,
        now: Time,
        output: Output,
        watch: &mut impl FnMut(&Peer, Time, Event),
    ) -> Option<Exit> {
        match output {
            Output::Host(message) => self.host.send(message),
            Output::Frame(to, frame) => self.send(now, to, &frame),
            Output::Link(to, step) => {
                self.link(to, step);
            }
            Output::Prepare(config) => self.prepare = Some(*config),
            Output::Compute(job) => self.job = Some(job),
            Output::Measure => self.measure = true,
            Output::Tokens { mode, samples } => {
                self.requests.push(Request::Tokens { mode, samples });
            }
            Output::Download { held, path } => {
                self.requests.push(Request::Download { held, path });
            }
            Output::Upload { held, ticket, blob } => {
                self.requests.push(Request::Upload { held, ticket, blob });
            }
            Output::IceServers(servers) => self.transport.set_ice_servers(servers),
            Output::Shelve(held, blob) => self.shelf.put(held, blob),
            Output::Unshelve(held) => self.shelf.remove(held),
            Output::Event(event) => watch(peer, now, event),
            Output::Exit(exit) => return Some(exit),
        }
        None
    }
}
