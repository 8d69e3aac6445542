//! `shoal-gateway`: a process that serves volunteers' WebSockets and keeps nothing else.
//!
//! Volunteers are let in while a session with the host is open; each session has an [`Entrance`] of its own, so that its
//! end closes every socket of it. Without one, whoever knocks is told to come again. The way to the host is looked for for
//! ever; only a host that says that this gateway can't serve its run ends the process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_nats::{Client, Subscriber};
use axum::Router;
use axum::extract::{ConnectInfo, State, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use shared::limits::GATEWAY_PACKETS_AHEAD;
use shared::units::Time;
use shared::wire::frame::VERSION;
use shared::wire::gateway::{Fall, GatewayEvent, GatewayOrder, Rise};
use shared::wire::signal::{self, Down};
use tokio::net::TcpListener;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::sleep_until;

use super::args::GatewayArgs;
use super::back::packet_bytes;
use super::front::{Front, Output};
use super::nats::{self, NatsError, Servers, Subjects};
use crate::announce::Announce;
use crate::app::{Clock, Entrance, Event};
use crate::args::{PortError, port};
use crate::door::{Door, INBOX_MESSAGES_MAX};
use crate::http;

/// Packets of the host that wait to be taken: what it may have under way, and keepalives.
const WAITING_MAX: usize = 2 * GATEWAY_PACKETS_AHEAD;
/// Sockets that are woken at once where many are told something.
const TOLD_AT_ONCE: usize = 32;
/// How long connections may take to end when the gateway stops.
const STOP_MAX: Duration = Duration::from_secs(1);

/// Why a gateway did not start, or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// See [`PortError`].
    #[error(transparent)]
    Port(#[from] PortError),
    /// See [`NatsError`].
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// Somebody else listens there, or the address is not ours.
    #[error(
        "cannot listen on {address}: {reason}. Choose another --port (0 takes a free one) or --host"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// The host takes nothing from this gateway.
    #[error("the host refuses this gateway: {text}")]
    Refused {
        /// Why, and what to do.
        text: String,
    },
    /// The system gives no random numbers, or a task failed.
    #[error("{what} failed: {reason}. Start again")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

impl GatewayError {
    /// 2 for what was asked for and can't be done, 1 for what failed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Nats(error) if !error.is_wrong_use() => 1,
            Self::Port(_) | Self::Nats(_) | Self::Listen { .. } | Self::Refused { .. } => 2,
            Self::System { .. } => 1,
        }
    }
}

/// Whether volunteers may come.
#[derive(Clone)]
enum Way {
    Open(Arc<Entrance>),
    /// Why not.
    Closed(String),
}

/// A gateway that listens.
pub struct Gateway {
    stop: watch::Sender<bool>,
    server: JoinHandle<std::io::Result<()>>,
    runner: JoinHandle<Result<(), GatewayError>>,
}

impl Gateway {
    /// Waits until something ends that should not before [`Gateway::stop`].
    pub async fn failed(&mut self) -> GatewayError {
        let (what, reason) = tokio::select! {
            ended = &mut self.runner => match ended {
                Ok(Err(error)) => return error,
                Ok(Ok(())) => ("the session's task", None),
                Err(error) => ("the session's task", Some(error.to_string())),
            },
            ended = &mut self.server => ("the server's task", match ended {
                Ok(served) => served.err().map(|error| error.to_string()),
                Err(error) => Some(error.to_string()),
            }),
        };
        let reason = reason.unwrap_or_else(|| "it ended by itself".to_owned());
        GatewayError::System { what, reason }
    }

    /// Ends in good order: the host is told, and sockets are closed.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let ended = async {
            let (runner, server) = tokio::join!(self.runner, self.server);
            tracing::debug!(?runner, ?server, "ended");
        };
        // Whoever still hangs is cut off.
        let _ = tokio::time::timeout(STOP_MAX, ended).await;
    }
}

/// Starts a gateway; returns once it listens and has said so. The host need not be there yet.
///
/// # Errors
/// See [`GatewayError`].
pub async fn start(
    args: GatewayArgs,
    port_variable: Option<&str>,
) -> Result<Gateway, GatewayError> {
    let servers = Servers::new(&args.nats, args.nats_credentials.clone())?;
    let address = SocketAddr::new(args.host, port(args.port, port_variable)?);
    let refused = |error: std::io::Error| GatewayError::Listen {
        address,
        reason: error.to_string(),
    };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let url = format!("http://{}", listener.local_addr().map_err(refused)?);
    let gateway = getrandom::u64().map_err(|error| GatewayError::System {
        what: "drawing random numbers",
        reason: error.to_string(),
    })?;
    let client = servers.connect("shoal-gateway", WAITING_MAX).await?;
    let subjects = Subjects::new(&args.run);
    let falls = nats::subscribe(&client, subjects.down(gateway)).await?;
    let (stop_sender, stop) = watch::channel(false);
    let (way_sender, way) = watch::channel(Way::Closed("no host of this run was heard yet".into()));
    let announce = match args.json {
        true => Announce::Json,
        false => Announce::Text,
    };
    let clock = Clock::start();
    let runner = Runner {
        client,
        subject: subjects.up(gateway),
        front: Front::new(clock.now()),
        clock,
        door: Arc::default(),
        trust_proxy: args.trust_proxy,
        announce,
        way: way_sender,
        session: None,
        sockets: BTreeMap::new(),
    };
    let router = Router::new()
        .route("/ws", get(open))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(way);
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let server = tokio::spawn(http::serve(listener, router, stop.clone()));
    announce.gateway_listening(&url, &args.run);
    Ok(Gateway {
        stop: stop_sender,
        server,
        runner: tokio::spawn(runner.run(falls, stop)),
    })
}

async fn open(
    State(way): State<watch::Receiver<Way>>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let way = way.borrow().clone();
    match way {
        Way::Open(entrance) => http::socket::open(entrance, address, &headers, upgrade),
        Way::Closed(text) => closed(&text),
    }
}

/// Able to let volunteers in.
async fn ready(State(way): State<watch::Receiver<Way>>) -> Response {
    let way = way.borrow().clone();
    match way {
        Way::Open(_) => "ready\n".into_response(),
        Way::Closed(text) => closed(&text),
    }
}

fn closed(text: &str) -> Response {
    let text =
        format!("this gateway has no way to the run's host: {text}; try again in a moment\n");
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// A session that is open.
struct Session {
    events: mpsc::Receiver<Event>,
    /// Its end closes all sockets.
    stop: watch::Sender<bool>,
    packet_bytes_max: usize,
}

/// The one task between the sockets and NATS.
struct Runner {
    client: Client,
    subject: String,
    front: Front,
    clock: Clock,
    door: Arc<Door>,
    trust_proxy: bool,
    announce: Announce,
    way: watch::Sender<Way>,
    session: Option<Session>,
    /// Outboxes of the session's sockets.
    sockets: BTreeMap<u64, mpsc::Sender<Down>>,
}

impl Runner {
    fn now(&self) -> Time {
        self.clock.now()
    }

    async fn run(
        mut self,
        mut falls: Subscriber,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), GatewayError> {
        loop {
            let wake = self.clock.instant(self.front.poll_timeout());
            let events = async {
                match &mut self.session {
                    Some(session) => session.events.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Nobody is taken for dead whose packets were not all read.
                biased;
                fall = falls.next() => match fall {
                    Some(fall) => self.take(&fall.payload),
                    None => return Err(NatsError::Failed { reason: "the client ended".into() }.into()),
                },
                Some(event) = events, if self.front.has_room() => self.happened(event),
                () = sleep_until(wake) => self.front.handle_timeout(self.clock.now()),
                () = stopped(&mut stop) => {
                    self.front.end(self.now());
                    self.carry_out().await?;
                    // What can't be told now, the host finds out.
                    let _ = self.client.flush().await;
                    return Ok(());
                }
            }
            self.carry_out().await?;
        }
    }

    fn take(&mut self, packet: &Bytes) {
        match serde_json::from_slice::<Fall>(packet) {
            Ok(fall) => self.front.handle_fall(self.now(), fall),
            // It counts as lost: the next one ends the session.
            Err(error) => tracing::warn!(%error, "the host said what is no packet"),
        }
    }

    fn happened(&mut self, event: Event) {
        let event = match event {
            Event::Connected { connection, outbox } => {
                self.sockets.insert(connection, outbox);
                GatewayEvent::Connected { connection }
            }
            // What was closed, by the host or for reading nothing, has nothing more to say.
            Event::Message { connection, .. } | Event::Malformed { connection, .. }
                if !self.sockets.contains_key(&connection) =>
            {
                return;
            }
            Event::Message {
                connection,
                message,
            } => GatewayEvent::Message {
                connection,
                message,
            },
            Event::Malformed { connection, reason } => {
                GatewayEvent::Malformed { connection, reason }
            }
            Event::Closed { connection } => {
                if self.sockets.remove(&connection).is_none() {
                    return;
                }
                GatewayEvent::Closed { connection }
            }
            // No socket says so.
            Event::NotStored { .. }
            | Event::NotHeld { .. }
            | Event::Stored { .. }
            | Event::Wanted { .. }
            | Event::Unwanted { .. } => return,
        };
        self.front.say(self.now(), event);
    }

    async fn carry_out(&mut self) -> Result<(), GatewayError> {
        while let Some(output) = self.front.poll_output() {
            match output {
                Output::Ask { attempt } => {
                    let open = Rise::Open {
                        attempt,
                        version: VERSION,
                        packet_bytes_max: self.client.max_payload(),
                    };
                    // Questions that wait for NATS would all be asked at once.
                    if nats::is_connected(&self.client) {
                        self.send(&open).await;
                    }
                }
                Output::Send(rise) => self.send(&rise).await,
                Output::Opened { signal_bytes_max } => self.opened(signal_bytes_max),
                Output::Order(order) => self.obey(order).await,
                Output::Over { reason } => self.over(reason),
                Output::Refused { text } => return Err(GatewayError::Refused { text }),
            }
        }
        Ok(())
    }

    async fn send(&mut self, rise: &Rise) {
        let len_max = self
            .session
            .as_ref()
            .map(|session| session.packet_bytes_max);
        let packet = encode(rise, len_max.unwrap_or(usize::MAX));
        let subject = self.subject.clone();
        if let Err(reason) = nats::publish(&self.client, subject, packet).await {
            tracing::warn!(reason, "nothing reaches the host");
            self.front.end(self.now());
        }
    }

    fn opened(&mut self, signal_bytes_max: usize) {
        let (inbox, events) = mpsc::channel(INBOX_MESSAGES_MAX);
        let (stop_sender, stop) = watch::channel(false);
        let entrance = Entrance {
            inbox,
            door: self.door.clone(),
            clock: self.clock,
            stop,
            signal_bytes_max,
            trust_proxy: self.trust_proxy,
            connections: AtomicU64::new(0),
        };
        self.session = Some(Session {
            events,
            stop: stop_sender,
            packet_bytes_max: packet_bytes(signal_bytes_max),
        });
        self.way.send_replace(Way::Open(Arc::new(entrance)));
        self.announce.way(None);
    }

    async fn obey(&mut self, order: GatewayOrder) {
        match order {
            GatewayOrder::Message {
                connections,
                message,
            } => {
                for some in connections.chunks(TOLD_AT_ONCE) {
                    for &connection in some {
                        self.tell(connection, message.clone());
                    }
                    // Those sockets write, and others are read, before more are woken.
                    if some.len() == TOLD_AT_ONCE {
                        yield_now().await;
                    }
                }
            }
            GatewayOrder::Close { connections } => {
                for connection in connections {
                    self.sockets.remove(&connection);
                }
            }
        }
    }

    fn tell(&mut self, connection: u64, message: Down) {
        let Some(socket) = self.sockets.get(&connection) else {
            return;
        };
        match socket.try_send(message) {
            Ok(()) => {}
            // Its `Closed` is on the way.
            Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => {
                tracing::warn!(connection, "reads nothing: disconnected");
                self.sockets.remove(&connection);
                let closed = GatewayEvent::Closed { connection };
                self.front.say(self.now(), closed);
            }
        }
    }

    fn over(&mut self, reason: String) {
        if let Some(session) = self.session.take() {
            session.stop.send_replace(true);
        }
        self.sockets.clear();
        self.announce.way(Some(&reason));
        self.way.send_replace(Way::Closed(reason));
    }
}

/// Waits until the gateway is to stop, or whoever would say so is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A packet as it is sent. What is too long for it, once it is written anew, counts as no message.
fn encode(rise: &Rise, len_max: usize) -> Bytes {
    let text = signal::encode(rise);
    let Rise::Packet {
        session,
        stamp,
        event:
            Some(
                GatewayEvent::Message { connection, .. }
                | GatewayEvent::Malformed { connection, .. },
            ),
    } = rise
    else {
        return text.into();
    };
    if text.len() <= len_max {
        return text.into();
    }
    let refused = Rise::Packet {
        session: *session,
        stamp: *stamp,
        event: Some(GatewayEvent::Malformed {
            connection: *connection,
            reason: "the message is too long".to_owned(),
        }),
    };
    signal::encode(&refused).into()
}
