//! The conversation with the host: one WebSocket, opened again whenever it breaks.
//!
//! A task of its own connects, passes messages both ways as [`shared::wire::signal`] types, notices silence, and tries
//! again with growing, jittered pauses. What is said while there is no connection is lost; the host
//! learns what it must know when the volunteer joins again.
//!
//! Invariant: `Closed` comes once after each `Open`, and no message between a `Closed` and the next `Open`.

use std::cell::RefCell;

use futures_channel::mpsc;
use futures_util::future::{Either, select};
use futures_util::{FutureExt, StreamExt, pin_mut, select_biased};
use shared::limits::SILENCE_MAX;
use shared::units::Span;
use shared::wire::signal::{self, Down, Up};
use wasm_bindgen::JsCast;
use web_sys::{CloseEvent, MessageEvent, WebSocket};

use super::clock::pause;
use crate::js::{Listener, words};

/// How long opening the WebSocket may take.
const CONNECT_MAX: Span = Span::from_secs(10);
/// Pause before the first new try: a restarted host is back within a second or two.
const RETRY_MIN_MS: u64 = 250;
/// Longest pause between tries: 1,000 volunteers then knock 100 times a second at most.
const RETRY_MAX_MS: u64 = 10_000;
/// How long a last message may take to leave when the owner is done.
const FAREWELL_MAX: Span = Span::from_secs(1);

thread_local! {
    /// The open socket, for a last word when the module breaks.
    static OPEN: RefCell<Option<WebSocket>> = const { RefCell::new(None) };
}

/// Says to the host that we leave, from a module that is about to stop: it can wait for nothing.
pub(super) fn farewell() {
    if let Some(socket) = OPEN.take() {
        let text = signal::encode(&Up::Leave { may_return: false });
        // Closed in between: then the host knows as much.
        drop(socket.send_with_str(&text));
        drop(socket.close());
    }
}

/// News of the conversation.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum SocketEvent {
    Open,
    Message(Box<Down>),
    /// No connection: it broke, or could not be opened. Another try follows by itself.
    Lost {
        reason: String,
        /// Tries that failed since the last connection.
        failures: u32,
    },
}

/// The owner's end. Dropping it ends the conversation.
pub(super) struct HostSocket {
    up: mpsc::UnboundedSender<Up>,
    events: mpsc::UnboundedReceiver<SocketEvent>,
    over: futures_channel::oneshot::Receiver<()>,
}

impl HostSocket {
    /// Begins to connect to `url`, a `ws:` or `wss:` address.
    pub(super) fn open(url: String) -> Self {
        let (up, outgoing) = mpsc::unbounded();
        let (report, events) = mpsc::unbounded();
        let (ended, over) = futures_channel::oneshot::channel();
        wasm_bindgen_futures::spawn_local(async move {
            converse(&url, outgoing, report).await;
            drop(ended);
        });
        Self { up, events, over }
    }

    /// Queues a message.
    pub(super) fn send(&self, message: Up) {
        // The task ends only with its owner.
        drop(self.up.unbounded_send(message));
    }

    /// What happens next. Cancel safe.
    pub(super) async fn next(&mut self) -> SocketEvent {
        match self.events.next().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Sends what is queued, closes the connection and waits for that, a second at most.
    pub(super) async fn close(self) {
        let Self { up, events, over } = self;
        drop(up);
        let limit = pause(FAREWELL_MAX);
        pin_mut!(limit);
        select(over, limit).await;
        drop(events);
    }
}

/// What an open WebSocket tells.
enum Heard {
    Open,
    Text(String),
    Bytes,
    Closed(String),
}

/// A WebSocket with its listeners.
struct Connection {
    socket: WebSocket,
    heard: mpsc::UnboundedReceiver<Heard>,
    _listeners: [Listener; 3],
}

impl Connection {
    fn open(url: &str) -> Result<Self, String> {
        let socket = WebSocket::new(url).map_err(|error| words(&error))?;
        let (tell, heard) = mpsc::unbounded();
        let (tell_text, tell_close) = (tell.clone(), tell.clone());
        // Nobody listens any more once the connection was given up.
        let opened = Listener::new(&socket, "open", move |_| {
            drop(tell.unbounded_send(Heard::Open));
        });
        let message = Listener::new(&socket, "message", move |event| {
            let data = event.unchecked_into::<MessageEvent>().data();
            let heard = data.as_string().map_or(Heard::Bytes, Heard::Text);
            drop(tell_text.unbounded_send(heard));
        });
        let closed = Listener::new(&socket, "close", move |event| {
            let event: CloseEvent = event.unchecked_into();
            let reason = match event.reason() {
                reason if reason.is_empty() => "the host closed the connection".to_owned(),
                reason => format!("the host closed the connection: {reason}"),
            };
            drop(tell_close.unbounded_send(Heard::Closed(reason)));
        });
        Ok(Self {
            socket,
            heard,
            _listeners: [opened, message, closed],
        })
    }

    /// Waits until it is open.
    async fn opened(&mut self) -> Result<(), String> {
        let limit = pause(CONNECT_MAX);
        pin_mut!(limit);
        match select(self.heard.next(), limit).await {
            Either::Left((Some(Heard::Open), _)) => Ok(()),
            Either::Left(_) => Err("the host does not answer".to_owned()),
            Either::Right(_) => Err("no answer from the host in 10 s".to_owned()),
        }
    }

    fn send(&self, message: &Up) {
        // Not open any more: the listener hears of it next.
        drop(self.socket.send_with_str(&signal::encode(message)));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Closed already, mostly.
        drop(self.socket.close());
    }
}

async fn converse(
    url: &str,
    mut outgoing: mpsc::UnboundedReceiver<Up>,
    report: mpsc::UnboundedSender<SocketEvent>,
) {
    let mut failures = 0;
    loop {
        let reason = match connect(url).await {
            Ok(connection) => {
                failures = 0;
                // What was said before the connection belongs to an older one.
                while outgoing.try_recv().is_ok() {}
                if report.unbounded_send(SocketEvent::Open).is_err() {
                    return;
                }
                OPEN.set(Some(connection.socket.clone()));
                let served = serve(connection, &mut outgoing, &report).await;
                OPEN.take();
                match served {
                    Some(reason) => reason,
                    None => return,
                }
            }
            Err(reason) => reason,
        };
        failures += 1;
        let lost = SocketEvent::Lost { reason, failures };
        if report.unbounded_send(lost).is_err() {
            return;
        }
        let waited = pause(retry_after(failures, js_sys::Math::random())).fuse();
        pin_mut!(waited);
        loop {
            select_biased! {
                () = waited => break,
                message = outgoing.next() => if message.is_none() { return },
            }
        }
    }
}

async fn connect(url: &str) -> Result<Connection, String> {
    let mut connection = Connection::open(url)?;
    connection.opened().await?;
    Ok(connection)
}

/// Passes messages until the connection breaks (why) or the owner is done (`None`).
async fn serve(
    mut connection: Connection,
    outgoing: &mut mpsc::UnboundedReceiver<Up>,
    report: &mpsc::UnboundedSender<SocketEvent>,
) -> Option<String> {
    loop {
        let heard = {
            let silence = pause(SILENCE_MAX).fuse();
            pin_mut!(silence);
            loop {
                select_biased! {
                    heard = connection.heard.next() => break heard,
                    message = outgoing.next() => connection.send(&message?),
                    () = silence => {
                        let seconds = SILENCE_MAX.as_secs_f64();
                        return Some(format!("the host was silent for {seconds} s"));
                    }
                }
            }
        };
        let text = match heard {
            Some(Heard::Text(text)) => text,
            Some(Heard::Open) => continue,
            Some(Heard::Bytes) => {
                return Some("the host sent bytes where text belongs".to_owned());
            }
            Some(Heard::Closed(reason)) => return Some(reason),
            None => return Some("the host closed the connection".to_owned()),
        };
        let event = match signal::decode::<Down>(&text) {
            Ok(message) => SocketEvent::Message(Box::new(message)),
            Err(error) => return Some(error.to_string()),
        };
        if report.unbounded_send(event).is_err() {
            return None;
        }
    }
}

/// Twice as long after each failure, within bounds, and between half of that and all of it.
fn retry_after(failures: u32, random: f64) -> Span {
    let doubled = RETRY_MIN_MS << failures.saturating_sub(1).min(10);
    let most = doubled.min(RETRY_MAX_MS);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few seconds in milliseconds"
    )]
    let jittered = (most as f64 * (0.5 + 0.5 * random)) as u64;
    Span::from_millis(jittered)
}
