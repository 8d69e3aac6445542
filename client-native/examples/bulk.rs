//! One end of a link, by the product's own transport, for `cargo xtask figures slow_link`.
//!
//! Orders come as JSON, a line each: steps of opening the link, bulk to send, frames to time. What happens is said the
//! same way. It stands for the driver: on `tensors` it gives the transport as much as that takes, and a frame that is timed
//! goes before bulk. The other end answers such a frame on `control`. Ends with its input.

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use client_native::pace::Pacer;
use client_native::rtc::{RtcConfig, RtcTransport};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::limits::CHUNK_BYTES_MAX;
use shared::transport::{Channel, Flow, IceServer, LinkStep, NetEvent, Transport as _};
use shared::units::PeerId;
use shared::wire::chunk::CHUNK_HEADER_BYTES;
use tokio::sync::mpsc;

/// Between two tellings of how much has arrived.
const TELL: Duration = Duration::from_millis(50);
/// First byte of a message: what it is.
const BULK: u8 = 0;
const TIMED: u8 = 1;
const ANSWER: u8 = 2;
const TIMED_BYTES: usize = 10_000;

/// What one may be told.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// First of all.
    Begin(Begin),
    /// One step of opening the link.
    Step { way: u8, step: LinkStep },
    /// Sends bulk from now on, or stops.
    Bulk(bool),
    /// Sends a frame and times it.
    Time,
}

/// At most so many bytes a second are sent, if there is a bound, over so many connections, and through a relay if one is named.
#[derive(Debug, Deserialize)]
struct Begin {
    upload_max: Option<u64>,
    ways: u8,
    relay: Option<IceServer>,
}

/// The end at work.
struct End {
    transport: RtcTransport,
    ways: u8,
    turn: u8,
    bulk: bool,
    timed: VecDeque<Bytes>,
    answers: VecDeque<Bytes>,
    sent: VecDeque<Instant>,
    got_bytes: u64,
    told: Instant,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut lines = lines();
    let mut end: Option<End> = None;
    loop {
        let event = async {
            match &mut end {
                Some(end) => end.transport.next_event().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            line = lines.recv() => {
                let Some(line) = line else { return Ok(()) };
                let order: Order = serde_json::from_str(&line)?;
                match (order, &mut end) {
                    (Order::Begin(begin), _) => end = Some(End::new(begin)),
                    (order, Some(end)) => end.obey(order),
                    (order, None) => anyhow::bail!("{order:?} comes before the beginning"),
                }
            }
            event = event => {
                let event = event?;
                end.as_mut().expect("events are an end's").hear(event);
            }
        }
    }
}

/// Lines of the input, until its end.
fn lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut read = std::io::stdin().lines().map_while(Result::ok);
        read.try_for_each(|line| sender.send(line))
    });
    lines
}

impl End {
    fn new(begin: Begin) -> Self {
        let Begin {
            upload_max,
            ways,
            relay,
        } = begin;
        let config = RtcConfig {
            relay_only: relay.is_some(),
            ice_servers: relay.into_iter().collect(),
            pacer: upload_max.map(|rate| Pacer::new(rate).into()),
            ..RtcConfig::default()
        };
        Self {
            transport: RtcTransport::new(config),
            ways,
            turn: 0,
            bulk: false,
            timed: VecDeque::new(),
            answers: VecDeque::new(),
            sent: VecDeque::new(),
            got_bytes: 0,
            told: Instant::now(),
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Begin(_) => unreachable!("it makes the end"),
            Order::Step { way, step } => self.transport.link(flow(way), step),
            Order::Bulk(bulk) => self.bulk = bulk,
            Order::Time => {
                self.sent.push_back(Instant::now());
                self.timed.push_back(message(TIMED, TIMED_BYTES));
            }
        }
        self.flush();
    }

    /// Gives the transport what it takes.
    fn flush(&mut self) {
        while let Some(message) = self.answers.front() {
            if !self
                .transport
                .try_send(flow(0), Channel::Control, message.clone())
            {
                break;
            }
            self.answers.pop_front();
        }
        while let Some(message) = self.timed.front() {
            let message = message.clone();
            if !self.try_any(message) {
                return;
            }
            self.timed.pop_front();
        }
        while self.bulk {
            let bulk = message(BULK, CHUNK_HEADER_BYTES + CHUNK_BYTES_MAX);
            if !self.try_any(bulk) {
                break;
            }
        }
    }

    fn try_any(&mut self, message: Bytes) -> bool {
        for _ in 0..self.ways {
            self.turn = (self.turn + 1) % self.ways;
            if self
                .transport
                .try_send(flow(self.turn), Channel::Tensors, message.clone())
            {
                return true;
            }
        }
        false
    }

    fn hear(&mut self, event: NetEvent) {
        match event {
            NetEvent::Link { flow, event } => {
                say(&json!({ "event": "link", "way": flow.number, "link": event }))
            }
            NetEvent::Drained { .. } => self.flush(),
            NetEvent::Message { bytes, .. } => match bytes.first() {
                Some(&TIMED) => {
                    self.answers.push_back(message(ANSWER, 1));
                    self.flush();
                }
                Some(&ANSWER) => {
                    let sent = self.sent.pop_front();
                    let passed = sent.expect("what is answered was sent").elapsed();
                    say(&json!({ "event": "timed", "seconds": passed.as_secs_f64() }));
                }
                Some(_) | None => self.count(bytes.len()),
            },
        }
    }

    fn count(&mut self, bytes: usize) {
        self.got_bytes += bytes as u64;
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            say(&json!({ "event": "got", "bytes": self.got_bytes }));
        }
    }
}

/// One of the link's connections.
fn flow(number: u8) -> Flow {
    Flow {
        peer: PeerId(0),
        number,
    }
}

fn message(kind: u8, bytes: usize) -> Bytes {
    let mut message = vec![0; bytes];
    message[0] = kind;
    message.into()
}

fn say(event: &Value) {
    let mut output = std::io::stdout().lock();
    // Nobody listens any more: the end of the input is next.
    drop(writeln!(output, "{event}"));
}
