//! Many volunteers in one process: each a task with a WebSocket of its own, which joins as a real one does and computes nothing.
//!
//! A client answers pings, says that it has made the copies it is asked for, and takes a seat with made-up results when
//! it gets one, so that the run moves on beneath the crowd. What happens to it goes to whoever drives the crowd
//! ([`News`]). A relay carries the moment at which it was sent, so its time is known where it arrives.
//!
//! Each [`CLIENTS_AN_ADDRESS`] clients come from a loopback address of their own: the host counts joins by address.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ed25519_dalek::{Signer as _, SigningKey};
use futures_util::{SinkExt as _, StreamExt as _};
use shared::derive::seed_hash;
use shared::transport::LinkSignal;
use shared::units::{Attempt, Digest, PeerId, Round, StageRange};
use shared::wire::frame::{Mode, Place, VERSION};
use shared::wire::signal::{
    self, Capabilities, Down, Held, Holds, Join, Lease, Report, Speed, Up, VolunteerKind,
    join_message,
};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Fewer than the host lets an address open at once.
const CLIENTS_AN_ADDRESS: u32 = 32;
/// What a client's socket reads at once: the crowd's own memory is not to be the limit.
const READ_BYTES: usize = 4 << 10;
/// How long a made-up step takes: with it rounds are of seconds, shorter than most runs'. Each ends with messages to all.
const STEP: Duration = Duration::from_millis(500);
/// Bytes of a relayed session description: what a browser's has.
const SDP_BYTES: usize = 2_000;

/// What happened to a client.
#[derive(Debug)]
pub(crate) enum News {
    /// It was welcomed, so long after it began to connect.
    Joined {
        /// Its number at the host.
        peer: PeerId,
        /// Where to tell it to send relays.
        orders: mpsc::Sender<PeerId>,
        /// From the first packet to the welcome.
        took: Duration,
    },
    /// Another client's relay came, so long after it was sent.
    Relayed(Duration),
    /// It answered a ping.
    Pinged,
    /// Its connection ended, or never came to be.
    Ended(String),
}

/// What all clients share.
#[derive(Debug)]
pub(crate) struct Crowd {
    /// Where the host listens.
    pub(crate) host: SocketAddr,
    /// To whoever drives the crowd.
    pub(crate) news: mpsc::UnboundedSender<News>,
    /// When this process began: what relays count from.
    pub(crate) began: Instant,
    /// What follows from the run's seed, once a client has derived it.
    seed_hash: OnceLock<Digest>,
    /// The round that a head has finished: attempt and steps.
    finished: watch::Sender<Option<(Attempt, u32)>>,
}

type Socket = WebSocketStream<TcpStream>;

impl Crowd {
    pub(crate) fn new(host: SocketAddr, news: mpsc::UnboundedSender<News>) -> Self {
        Self {
            host,
            news,
            began: Instant::now(),
            seed_hash: OnceLock::new(),
            finished: watch::Sender::new(None),
        }
    }

    fn tell(&self, news: News) {
        // Nobody listens any more: the crowd is at its end.
        let _ = self.news.send(news);
    }
}

/// Connects, joins, and takes part until the connection ends.
pub(crate) async fn take_part(crowd: Arc<Crowd>, index: u32) {
    let reason = match join(&crowd, index).await {
        Ok((client, peer, took)) => {
            let (orders, relays) = mpsc::channel(16);
            crowd.tell(News::Joined { peer, orders, took });
            client.run(relays).await
        }
        Err(reason) => reason,
    };
    crowd.tell(News::Ended(reason));
}

async fn join(crowd: &Arc<Crowd>, index: u32) -> Result<(Client, PeerId, Duration), String> {
    let began = Instant::now();
    let socket = connect(crowd.host, index).await?;
    let mut client = Client {
        crowd: crowd.clone(),
        socket,
        seat: None,
    };
    let Some(Down::Hello { nonce, config, .. }) = client.next().await? else {
        return Err("the host did not speak first".to_owned());
    };
    let seed_hash = *crowd
        .seed_hash
        .get_or_init(|| Digest(seed_hash(&config.model, config.seed)));
    let key = SigningKey::from_bytes(&Digest::of(&index.to_le_bytes()).0);
    let session = u64::from(index);
    let proof = key.sign(&join_message(&nonce, session)).to_bytes();
    let join = Join {
        version: VERSION,
        key: Digest(key.verifying_key().to_bytes()),
        proof: hex::encode(proof),
        session,
        name: format!("client {index}"),
        capabilities: Capabilities {
            kind: VolunteerKind::Native,
            device: "crowd".to_owned(),
            memory_bytes: 1 << 33,
            speed: Speed::of(1_000 + u64::from(index % 97)),
            throttle_percent: 100,
            relay_only: false,
            hidden: false,
        },
        seed_hash,
        paused: None,
        kept: Vec::new(),
        resume: None,
        invite: None,
    };
    client.send(&Up::Join(Box::new(join))).await?;
    match client.next().await? {
        Some(Down::Welcome(welcome)) => Ok((client, welcome.peer, began.elapsed())),
        other => Err(format!("not welcomed: {other:?}")),
    }
}

async fn connect(host: SocketAddr, index: u32) -> Result<Socket, String> {
    let address =
        Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + index / CLIENTS_AN_ADDRESS);
    let connecting = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((address, 0).into())?;
        socket.connect(host).await
    };
    let stream = connecting
        .await
        .map_err(|error| format!("from {address}: {error}"))?;
    // A relay is not to wait for the packet before it.
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0);
    let url = format!("ws://{host}/ws");
    let (socket, _) = tokio_tungstenite::client_async_with_config(url, stream, Some(config))
        .await
        .map_err(|error| error.to_string())?;
    Ok(socket)
}

/// A seat and the round at work in it.
struct Seat {
    place: Place,
    stages: StageRange,
    attempt: Attempt,
    result: Round,
}

struct Client {
    crowd: Arc<Crowd>,
    socket: Socket,
    seat: Option<Seat>,
}

impl Client {
    async fn send(&mut self, message: &Up) -> Result<(), String> {
        let text = Message::text(signal::encode(message));
        let sent = self.socket.send(text).await;
        sent.map_err(|error| error.to_string())
    }

    /// The next message; `None` once the host has closed. Cancel safe.
    async fn next(&mut self) -> Result<Option<Down>, String> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    return signal::decode(&text)
                        .map(Some)
                        .map_err(|error| error.to_string());
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(_) | Err(Error::ConnectionClosed)) | None => return Ok(None),
                Some(Err(error)) => return Err(error.to_string()),
            }
        }
    }

    /// Takes part until the connection ends; why it did.
    async fn run(mut self, mut relays: mpsc::Receiver<PeerId>) -> String {
        let mut finished = self.crowd.finished.subscribe();
        let mut leases: Vec<Lease> = Vec::new();
        let mut step_ends = None;
        loop {
            if step_ends.is_none() && !leases.is_empty() {
                step_ends = Some(tokio::time::Instant::now() + STEP);
            }
            let step = async {
                match step_ends {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let done = tokio::select! {
                message = self.next() => match message {
                    Ok(Some(message)) => self.hear(message, &mut leases).await,
                    Ok(None) => return "the host closed".to_owned(),
                    Err(reason) => return reason,
                },
                Some(to) = relays.recv() => self.relay(to).await,
                () = step => {
                    step_ends = None;
                    let lease = leases.remove(0);
                    self.step(lease).await
                }
                Ok(()) = finished.changed(), if self.seat.is_some() => {
                    let round = *finished.borrow_and_update();
                    self.finish(round).await
                }
            };
            if let Err(reason) = done {
                return reason;
            }
        }
    }

    async fn hear(&mut self, message: Down, leases: &mut Vec<Lease>) -> Result<(), String> {
        match message {
            Down::Ping { nonce } => {
                self.send(&Up::Pong { nonce }).await?;
                self.crowd.tell(News::Pinged);
            }
            Down::Signal { signal, .. } => {
                if let LinkSignal::Offer { sdp, .. } = signal
                    && let Some(sent) = sdp.split(' ').next().and_then(|text| text.parse().ok())
                {
                    let took = self.crowd.began.elapsed();
                    let took = took.saturating_sub(Duration::from_micros(sent));
                    self.crowd.tell(News::Relayed(took));
                }
            }
            Down::Copy { fetch, .. } => self.send(&Up::Copied { held: fetch.held }).await?,
            Down::Seat(order) => {
                leases.clear();
                let place = order.place;
                self.seat = Some(Seat {
                    place,
                    stages: order.stages,
                    attempt: Attempt::default(),
                    result: Round(0),
                });
                let stages = order.state.iter().map(|fetch| fetch.held).collect();
                self.send(&Up::Ready { place, stages }).await?;
            }
            Down::Spare { .. } => {
                leases.clear();
                self.seat = None;
            }
            Down::Begin {
                place,
                mode: Mode::Train,
                attempt,
                result,
                ..
            } => {
                if let Some(seat) = &mut self.seat {
                    (seat.place, seat.attempt, seat.result) = (place, attempt, result);
                }
            }
            Down::Lease(lease) => leases.push(lease),
            Down::Hello { .. }
            | Down::Welcome(_)
            | Down::Refuse { .. }
            | Down::Begin { .. }
            | Down::Close { .. }
            | Down::Merge(_)
            | Down::Generate(_)
            | Down::Forget { .. }
            | Down::Commit { .. }
            | Down::Safe { .. }
            | Down::Rewind { .. }
            | Down::Upload { .. }
            | Down::Released
            | Down::IceServers { .. }
            | Down::Reason { .. } => {}
        }
        Ok(())
    }

    async fn relay(&mut self, to: PeerId) -> Result<(), String> {
        let sent = self.crowd.began.elapsed().as_micros();
        let sdp = format!("{sent} {}", "a".repeat(SDP_BYTES));
        let signal = LinkSignal::Offer { generation: 1, sdp };
        self.send(&Up::Signal { to, signal }).await
    }

    /// As head: a step is done.
    async fn step(&mut self, lease: Lease) -> Result<(), String> {
        let steps = lease.step.0 + 1;
        let report = Report {
            place: lease.place,
            steps,
            loss: 4.0,
            round_loss: 4.0,
            elapsed_us: 1_000,
            forward_bytes: 100,
            backward_bytes: 80,
        };
        self.send(&Up::Report(report)).await?;
        if let (true, Some(seat)) = (lease.last, &self.seat) {
            self.crowd
                .finished
                .send_replace(Some((seat.attempt, steps)));
        }
        Ok(())
    }

    /// As a seat: the head has done the round's last step.
    async fn finish(&mut self, round: Option<(Attempt, u32)>) -> Result<(), String> {
        let (Some(seat), Some((attempt, steps))) = (&self.seat, round) else {
            return Ok(());
        };
        if seat.attempt != attempt {
            return Ok(());
        }
        let held = |stage| {
            let agreed = Digest::of(format!("{stage} {} {attempt}", seat.result).as_bytes());
            Held {
                round: seat.result,
                stage,
                agreed,
                blob: agreed,
            }
        };
        let holds = Holds {
            place: seat.place,
            attempt,
            steps,
            stages: seat.stages.iter().map(held).collect(),
        };
        self.send(&Up::Holds(holds)).await
    }
}
