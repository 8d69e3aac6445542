//! The host's side of its gateways: one task that listens to all of them, and one desk ([`desk`](super::desk)) for each.
//!
//! A packet is passed on at once, and never waits for another gateway, or for NATS. A gateway that sends more than it may is cut
//! off: its desk ends its session without another look at what came.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use shared::limits::{GATEWAY_PACKETS_AHEAD, GATEWAYS_MAX};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::interval;

use super::back::packet_bytes;
use super::desk::Desk;
use super::nats::{self, NatsError, Servers, Subjects};
use crate::app::{Entrance, Telling};

/// How often a host says that it is there.
const CLAIM_EVERY: Duration = Duration::from_secs(5);
/// Packets of one gateway that wait for its desk: what it may have under way, and keepalives of minutes.
const WAITING_MAX: usize = 2 * GATEWAY_PACKETS_AHEAD;

/// A host that is joined to NATS, and listens to nobody yet.
pub struct Bridge {
    client: Client,
    subjects: Subjects,
    packets: Subscriber,
    questions: Subscriber,
    run: String,
    /// When this host came, and a number of its own: of two that came at once the later one ends.
    claim: Bytes,
}

impl Bridge {
    /// Joins NATS as the host of that run, whose messages have so many bytes at most.
    ///
    /// # Errors
    /// No server is in reach, it does not carry the run's messages, or another host of that name is there.
    pub async fn join(
        servers: &Servers,
        run: &str,
        signal_bytes_max: usize,
    ) -> Result<Self, NatsError> {
        let client = servers
            .connect("shoal-host", GATEWAYS_MAX * WAITING_MAX)
            .await?;
        let (bytes, needed) = (client.max_payload(), packet_bytes(signal_bytes_max));
        if bytes < needed {
            return Err(NatsError::Payload { bytes, needed });
        }
        let subjects = Subjects::new(run);
        if nats::is_served(&client, &subjects).await {
            let run = run.to_owned();
            return Err(NatsError::Taken { run });
        }
        let questions = nats::subscribe(&client, subjects.host()).await?;
        let packets = nats::subscribe(&client, subjects.all_up()).await?;
        Ok(Self {
            client,
            subjects,
            packets,
            questions,
            run: run.to_owned(),
            claim: claim(),
        })
    }

    /// Carries between gateways and the coordinator's task until the host stops. Anything else is an error.
    ///
    /// # Errors
    /// The client gave up, or another host of that name came first.
    pub async fn run(self, entrance: Arc<Entrance>, telling: Telling) -> Result<(), NatsError> {
        let Self {
            client,
            subjects,
            mut packets,
            questions,
            run,
            claim,
        } = self;
        let mut stop = entrance.stop.clone();
        // Beside the packets: none is to wait until NATS takes an answer.
        let mut presence = pin!(presence(&client, subjects.host(), questions, claim));
        let mut desks = Desks {
            client: client.clone(),
            subjects,
            entrance,
            telling,
            ways: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        let ended = loop {
            tokio::select! {
                packet = packets.next() => match packet {
                    Some(packet) => desks.pass_on(packet),
                    None => break Err(NatsError::Failed { reason: "the client ended".to_owned() }),
                },
                () = &mut presence => break Err(NatsError::Taken { run }),
                Some(ended) = desks.tasks.join_next(), if !desks.tasks.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a gateway's task failed");
                    }
                    desks.forget();
                }
                () = stopped(&mut stop) => break Ok(()),
            }
        };
        // Desks see the same word, or are cut off, and tell their gateways.
        desks.ways.clear();
        while desks.tasks.join_next().await.is_some() {}
        if let Err(error) = client.flush().await {
            tracing::debug!(%error, "NATS");
        }
        ended
    }
}

/// The way to one gateway's desk.
struct Way {
    packets: mpsc::Sender<Bytes>,
    /// Cuts the desk off, for a reason; so does its end.
    cut: oneshot::Sender<&'static str>,
}

/// A desk for each gateway that was heard of.
struct Desks {
    client: Client,
    subjects: Subjects,
    entrance: Arc<Entrance>,
    telling: Telling,
    ways: BTreeMap<u64, Way>,
    tasks: JoinSet<()>,
}

impl Desks {
    fn pass_on(&mut self, packet: Message) {
        let Some(gateway) = self.subjects.gateway(&packet.subject) else {
            return;
        };
        let payload = match self.ways.get(&gateway) {
            None => packet.payload,
            Some(way) => match way.packets.try_send(packet.payload) {
                Ok(()) => return,
                Err(TrySendError::Full(_)) => {
                    // More than it may have under way: whoever answers it next knows nothing of its session.
                    if let Some(way) = self.ways.remove(&gateway) {
                        // One that has ended needs no word.
                        let _ = way.cut.send("it sends more than it may");
                    }
                    return;
                }
                Err(TrySendError::Closed(payload)) => payload,
            },
        };
        self.begin(gateway, payload);
    }

    /// A gateway was heard of for the first time, or again.
    fn begin(&mut self, gateway: u64, payload: Bytes) {
        self.forget();
        if self.ways.len() >= GATEWAYS_MAX {
            tracing::warn!(
                "more than {GATEWAYS_MAX} gateways want to serve this run; this one waits"
            );
            return;
        }
        let (sender, packets) = mpsc::channel(WAITING_MAX);
        sender.try_send(payload).expect("a new channel has room");
        let (cut, is_cut) = oneshot::channel();
        let way = Way {
            packets: sender,
            cut,
        };
        self.ways.insert(gateway, way);
        let desk = Desk::new(
            self.entrance.clone(),
            self.telling.clone(),
            self.client.clone(),
            format!("{gateway:016x}"),
            self.subjects.down(gateway),
        );
        self.tasks.spawn(desk.run(packets, is_cut));
    }

    /// Forgets those whose desks have ended.
    fn forget(&mut self) {
        self.ways.retain(|_, way| !way.packets.is_closed());
    }
}

/// Says that this host is there, to whoever asks and now and then by itself, until one of its name turns out to have come
/// first. Whoever asked while nobody answered, or NATS was away, finds out so.
async fn presence(client: &Client, subject: String, mut questions: Subscriber, claim: Bytes) {
    let mut claims = interval(CLAIM_EVERY);
    loop {
        let (to, word) = tokio::select! {
            Some(heard) = questions.next() => match heard.reply {
                Some(reply) => (reply.to_string(), Bytes::from_static(b"here")),
                None if heard.payload.len() == claim.len() && heard.payload < claim => return,
                None => continue,
            },
            _ = claims.tick() => (subject.clone(), claim.clone()),
        };
        // Who asked does not wait any longer, and asks again.
        if let Err(reason) = nats::publish_within(client, to, word, nats::ANSWER_MAX).await {
            tracing::debug!(reason, "NATS");
        }
    }
}

/// Earlier ones are smaller; no two are the same.
fn claim() -> Bytes {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let milliseconds = since.map_or(0, |since| since.as_millis());
    // Without a random number two of the same millisecond take each other for themselves.
    let number = getrandom::u64().unwrap_or(0);
    format!("{milliseconds:032x}{number:016x}").into()
}

/// Waits until the host is to stop, or whoever would say so is gone.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
