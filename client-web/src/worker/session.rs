//! One time of taking part, from opening the device to leaving: the driver with everything that a browser gives it.
//!
//! Decides nothing about the run; that is [`shared::peer`]'s. Passes the person's wishes on, and tells why it ended.

use std::cell::RefCell;
use std::rc::Rc;

use futures_channel::mpsc;
use futures_util::{FutureExt, StreamExt, pin_mut, select_biased};
use shared::driver::sent::Sent;
use shared::driver::trace::Tracer;
use shared::driver::{self, Clock, Command, World};
use shared::peer::{Exit, Identity as PeerIdentity, Peer};
use shared::transport::TransportStopped;
use shared::units::Digest;
use shared::wire::signal::{Capabilities, Speed, VolunteerKind};
use wasm_bindgen_futures::spawn_local;

use super::board::{Board, today};
use super::clock::WorkerClock;
use super::host::WebHost;
use super::remote::{Fitted, Remote, WebWorkshop};
use super::shelf::BrowserShelf;
use super::storage::Storage;
use super::transport::{Inlet, PageTransport};
use crate::lending::{DayKeeper, Lending};
use crate::messages::{Ended, Settings, ToWorker};
use crate::meter::Meter;

/// Memory to lend when nobody said how much: what a phone's browser still gives a tab.
pub(super) const MEMORY_BYTES: u64 = 1_000_000_000;

/// What is known of the page's surroundings.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Around {
    pub(super) hidden: bool,
    pub(super) on_mains: Option<bool>,
}

impl Around {
    /// Notes what the page tells of it.
    pub(super) fn hear(&mut self, message: &ToWorker) {
        if let ToWorker::Visibility { hidden } = message {
            self.hidden = *hidden;
        }
        if let ToWorker::Power { on_mains } = message {
            self.on_mains = Some(*on_mains);
        }
    }
}

/// What a session begins with.
pub(super) struct Beginning {
    pub(super) link: String,
    pub(super) settings: Settings,
    pub(super) remote: Remote,
    /// What the device is called.
    pub(super) device: String,
    /// What a preflight made.
    pub(super) fitted: Option<Fitted>,
}

/// How a session went.
pub(super) struct Outcome {
    pub(super) ended: Ended,
    /// Whether the device did any work.
    pub(super) worked: bool,
}

/// What a person wants, on its way to the driver.
struct Wishes {
    commands: mpsc::UnboundedSender<Command>,
    lending: Rc<RefCell<Lending>>,
    meter: Rc<RefCell<Meter>>,
    board: Rc<RefCell<Board>>,
    storage: Storage,
    keeper: RefCell<DayKeeper>,
}

/// Takes part until it is over. What the page says meanwhile comes through `heard`.
pub(super) async fn take_part(
    beginning: Beginning,
    storage: &Storage,
    inlet: &Inlet,
    around: &mut Around,
    heard: &mut mpsc::UnboundedReceiver<ToWorker>,
) -> Outcome {
    let Beginning {
        link,
        settings,
        remote,
        device,
        fitted,
    } = beginning;
    let identity = storage.identity().await;
    let public = Digest(identity.key.verifying_key().to_bytes());
    let name = match settings.name.trim() {
        "" => format!("tab {}", &public.to_string()[..6]),
        name => name.to_owned(),
    };
    let memory_bytes = settings.memory_bytes.unwrap_or(MEMORY_BYTES);
    let capabilities = Capabilities {
        kind: VolunteerKind::Browser,
        device: device.clone(),
        memory_bytes,
        // Measured when the run's model is known.
        speed: Speed::default(),
        throttle_percent: settings.throttle_percent.clamp(10, 100),
        relay_only: settings.relay_only,
        hidden: around.hidden,
    };
    let peer = Peer::new(PeerIdentity {
        key: identity.key,
        session: identity.session,
        name: name.clone(),
        capabilities,
    });
    let meter = Rc::new(RefCell::new(Meter::default()));
    meter.borrow_mut().set_hidden(around.hidden);
    let mut day = storage.day().await;
    let keeper = RefCell::new(DayKeeper::new(WorkerClock.now(), day));
    // What was moved yesterday says nothing of today's cap.
    day.add(today(), 0);
    let lending = Rc::new(RefCell::new(Lending::new(&settings, around.on_mains, day)));
    let board = Board::new(name, device, Rc::clone(&meter), Rc::clone(&lending));
    let board = Rc::new(RefCell::new(board));
    let (host, given_up) = WebHost::open(&link);
    let world = World {
        transport: PageTransport::new(inlet, settings.relay_only),
        host,
        workshop: WebWorkshop {
            remote,
            fitted,
            meter: Rc::clone(&meter),
        },
        clock: WorkerClock,
        sent: Sent::default(),
        shelf: BrowserShelf::new(storage.clone(), memory_bytes),
        tracer: Tracer::default(),
    };
    let (commands, told) = mpsc::unbounded();
    let wishes = Wishes {
        commands,
        lending,
        meter,
        board: Rc::clone(&board),
        storage: storage.clone(),
        keeper,
    };
    wishes.lend();
    let watch = |peer: &Peer, now, event| {
        board.borrow_mut().watch(peer, now, event);
        // The day's data may have reached its cap.
        let is_news = wishes.lend();
        wishes.keep_day(is_news);
    };
    let driving = driver::run(peer, world, watch, told).fuse();
    let mut given_up = given_up.fuse();
    pin_mut!(driving);
    let ended = loop {
        select_biased! {
            exit = driving => break outcome(exit),
            reason = given_up => if let Ok(reason) = reason {
                break Ended::Unreachable { reason };
            },
            message = heard.next() => if let Some(message) = message {
                around.hear(&message);
                wishes.hear(message);
            },
        }
    };
    let day = wishes.lending.borrow().day();
    storage.keep_day(day).await;
    let worked = wishes.meter.borrow().has_worked();
    Outcome { ended, worked }
}

impl Wishes {
    fn command(&self, command: Command) {
        // A driver that has ended needs no telling.
        drop(self.commands.unbounded_send(command));
    }

    /// Tells the driver to rest or to work, where that is news. Whether it is.
    fn lend(&self) -> bool {
        let news = self.lending.borrow_mut().news();
        match news {
            Some(Some(pause)) => self.command(Command::Pause(pause)),
            Some(None) => self.command(Command::Resume),
            None => {}
        }
        news.is_some()
    }

    /// Writes the day's data down where that is due; nobody waits for it. `at_once` where no moment may be lost.
    fn keep_day(&self, at_once: bool) {
        let day = self.lending.borrow().day();
        if self
            .keeper
            .borrow_mut()
            .due(WorkerClock.now(), day, at_once)
        {
            let storage = self.storage.clone();
            spawn_local(async move { storage.keep_day(day).await });
        }
    }

    fn hear(&self, message: ToWorker) {
        // The tab may be gone in a moment.
        self.keep_day(matches!(message, ToWorker::PageHide { .. }));
        match message {
            ToWorker::Pause => self.lending.borrow_mut().ask(true),
            ToWorker::Resume => self.lending.borrow_mut().ask(false),
            ToWorker::Power { on_mains } => self.lending.borrow_mut().power(on_mains),
            ToWorker::Settings { settings } => {
                self.lending.borrow_mut().set(&settings);
                self.command(Command::Throttle(settings.throttle_percent.clamp(10, 100)));
            }
            ToWorker::Visibility { hidden } => {
                self.meter.borrow_mut().set_hidden(hidden);
                self.command(Command::Hidden(hidden));
            }
            ToWorker::Finish => {
                self.board.borrow_mut().finish(WorkerClock.now());
                self.command(Command::Finish);
            }
            ToWorker::Stop => self.command(Command::Stop),
            ToWorker::PageHide { may_return: true } => self.command(Command::Reload),
            ToWorker::PageHide { may_return: false } => self.command(Command::Stop),
            // Looked at and started already; connections go their own way.
            ToWorker::Preflight { .. }
            | ToWorker::Start { .. }
            | ToWorker::Rtc(_)
            | ToWorker::Sent { .. }
            | ToWorker::DeviceFailed { .. }
            | ToWorker::Reached(_) => return,
        }
        self.lend();
    }
}

/// What the driver's end means to a person.
fn outcome(exit: Result<Exit, TransportStopped>) -> Ended {
    match exit {
        Ok(Exit::Finished) => Ended::Finished,
        Ok(Exit::Stopped) => Ended::Stopped,
        Ok(Exit::HostAway) => Ended::HostAway,
        Ok(Exit::RunOver) => Ended::RunOver,
        Ok(Exit::Refused { code, text, remedy }) => Ended::Refused { code, text, remedy },
        Ok(Exit::Device { reason }) => Ended::Device { reason },
        Err(stopped) => Ended::Unreachable {
            reason: stopped.reason,
        },
    }
}
