//! What HTTP handlers share: ways to the coordinator's task, the store, and what the run looks like.
//!
//! Handlers decide nothing about the run. They pass on what came ([`Event`]) and show the last [`RunReport`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use shared::coordinator::texts::{TextNews, Wanted};
use shared::units::Time;
use shared::wire::report::RunReport;
use shared::wire::signal::{Down, Held, Up};
use tokio::sync::{RwLock, Semaphore, mpsc, watch};

use crate::data::Data;
use crate::door::Door;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::texts::Texts;
use crate::web::Web;

/// Time since this process's start, as the coordinator counts it.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since then.
    #[must_use]
    pub fn now(self) -> Time {
        Time::from_micros(u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// The same moment for tokio's timers.
    #[must_use]
    pub fn instant(self, time: Time) -> tokio::time::Instant {
        (self.0 + std::time::Duration::from_micros(time.as_micros())).into()
    }
}

/// What the coordinator's task is told.
#[derive(Debug)]
pub enum Event {
    /// A WebSocket opened.
    Connected {
        /// Its number.
        connection: u64,
        /// Where to put messages for it; dropping it closes the connection once they are sent.
        outbox: mpsc::Sender<Down>,
    },
    /// A message came.
    Message {
        /// The connection.
        connection: u64,
        /// What was said.
        message: Up,
    },
    /// Something came that is no message.
    Malformed {
        /// The connection.
        connection: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A WebSocket closed.
    Closed {
        /// The connection.
        connection: u64,
    },
    /// The store could not take an upload.
    NotStored {
        /// The ticket it came with.
        ticket: String,
        /// Why.
        reason: String,
    },
    /// What came as an upload is not what its ticket was made for.
    NotHeld {
        /// The ticket it came with.
        ticket: String,
    },
    /// An upload is in the store, its hash checked.
    Stored {
        /// The ticket it came with.
        ticket: String,
    },
    /// Somebody wants a text.
    Wanted {
        /// Its number.
        number: u64,
        /// What is wanted.
        wanted: Wanted,
        /// Where its news go; with room for all of them.
        news: mpsc::Sender<TextNews>,
    },
    /// Nobody wants a text any more.
    Unwanted {
        /// Its number.
        number: u64,
    },
}

/// An upload that may come.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// What it must be.
    pub held: Held,
    /// When it expires.
    pub deadline: Time,
}

/// Uploads that may come, by ticket. Taking one out is what makes it good for one upload.
#[derive(Debug, Default)]
pub struct Tickets(Mutex<BTreeMap<String, Ticket>>);

impl Tickets {
    /// Lets an upload come; forgets those that expired.
    pub fn add(&self, now: Time, text: String, ticket: Ticket) {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.retain(|_, ticket| ticket.deadline > now);
        tickets.insert(text, ticket);
    }

    /// Whether an upload with this ticket would be taken.
    pub fn is_good(&self, now: Time, text: &str) -> bool {
        let tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tickets
            .get(text)
            .is_some_and(|ticket| ticket.deadline > now)
    }

    /// Takes a ticket that has not expired.
    pub fn take(&self, now: Time, text: &str) -> Option<Ticket> {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.remove(text).filter(|ticket| ticket.deadline > now)
    }
}

/// What a volunteer's WebSocket needs, in the host's own process as in a gateway.
pub struct Entrance {
    /// To the coordinator's task, or to whatever carries events there.
    pub inbox: mpsc::Sender<Event>,
    /// Who may connect.
    pub door: Arc<Door>,
    /// Now.
    pub clock: Clock,
    /// True once all connections are to end.
    pub stop: watch::Receiver<bool>,
    /// Longest message of a volunteer that is read.
    pub signal_bytes_max: usize,
    /// Whether `X-Forwarded-For` is believed.
    pub trust_proxy: bool,
    /// Connections so far.
    pub connections: AtomicU64,
}

impl Entrance {
    /// A number that no other connection has.
    pub fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }
}

/// Held while the coordinator's outputs are carried out. Whoever takes messages out of many outboxes waits for it, and so
/// finds all of what everybody is told at once.
pub type Telling = Arc<RwLock<()>>;

/// What all handlers share.
pub struct App {
    /// For volunteers.
    pub entrance: Arc<Entrance>,
    /// The run as it stands.
    pub report: watch::Receiver<Arc<RunReport>>,
    /// Why the host can't do its work, if it can't.
    pub trouble: watch::Receiver<Option<String>>,
    /// True once the host is to stop.
    pub stop: watch::Receiver<bool>,
    /// Blobs, manifests, token files.
    pub store: Arc<Store>,
    /// Which token files.
    pub data: Data,
    /// Uploads that may come.
    pub tickets: Arc<Tickets>,
    /// Most bytes of one upload.
    pub upload_bytes_max: u64,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Now.
    pub clock: Clock,
    /// The link that people use.
    pub link: String,
    /// The built web client.
    pub web: Web,
    /// Pages that may still follow.
    pub followers: Arc<Semaphore>,
    /// Uploads that may still begin.
    pub uploads: Arc<Semaphore>,
    /// Between people's words and the model's.
    pub texts: Arc<Texts>,
}
