//! The host's side of its gateways: one task that listens to all of them, and one desk for each.
//!
//! A desk is to the coordinator's task what a WebSocket is: it sends events into the inbox, and gives an outbox for each
//! connection, which it empties itself: what many are told at once goes in few packets ([`told`]). While the inbox is full a
//! desk takes no packets, and says that it is there. While NATS is slow outboxes fill, and the coordinator's task
//! disconnects those volunteers, as any that read nothing.
//!
//! Invariant: the coordinator's task is told of each connection that opened, and once that it closed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{pending, poll_immediate};
use futures_util::stream::{BoxStream, SelectAll, poll_fn};
use shared::limits::{GATEWAY_PACKETS_AHEAD, GATEWAY_TOLD_AT_ONCE, GATEWAYS_MAX};
use shared::units::Time;
use shared::wire::gateway::{Fall, GatewayEvent, GatewayOrder, Rise};
use shared::wire::signal::{self, Down};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{RwLock, mpsc, watch};
use tokio::task::{JoinSet, unconstrained};
use tokio::time::{interval, sleep_until};

use super::back::{Back, Output, packet_bytes};
use super::nats::{self, NatsError, Servers, Subjects};
use super::told::{self, ForSocket};
use crate::app::{Entrance, Event, Telling};
use crate::door::OUTBOX_MESSAGES_MAX;

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
    pub async fn run(mut self, entrance: Arc<Entrance>, telling: Telling) -> Result<(), NatsError> {
        let mut desks: BTreeMap<u64, mpsc::Sender<Bytes>> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        let mut stop = entrance.stop.clone();
        let mut claims = interval(CLAIM_EVERY);
        let ended = loop {
            tokio::select! {
                packet = self.packets.next() => match packet {
                    Some(packet) => self.pass_on(packet, (&entrance, &telling), &mut desks, &mut tasks),
                    None => break Err(NatsError::Failed { reason: "the client ended".to_owned() }),
                },
                Some(heard) = self.questions.next() => if !self.answer(heard).await {
                    break Err(NatsError::Taken { run: self.run.clone() });
                },
                // Whoever asked while nobody answered, or NATS was away, finds out so.
                _ = claims.tick() => {
                    let (subject, claim) = (self.subjects.host(), self.claim.clone());
                    if let Err(reason) = nats::publish(&self.client, subject, claim).await {
                        tracing::debug!(reason, "NATS");
                    }
                }
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a gateway's task failed");
                    }
                    desks.retain(|_, desk| !desk.is_closed());
                }
                () = stopped(&mut stop) => break Ok(()),
            }
        };
        // Desks see the same word, and tell their gateways.
        drop(desks);
        while tasks.join_next().await.is_some() {}
        if let Err(error) = self.client.flush().await {
            tracing::debug!(%error, "NATS");
        }
        ended
    }

    fn pass_on(
        &self,
        packet: Message,
        host: (&Arc<Entrance>, &Telling),
        desks: &mut BTreeMap<u64, mpsc::Sender<Bytes>>,
        tasks: &mut JoinSet<()>,
    ) {
        let Some(gateway) = self.subjects.gateway(&packet.subject) else {
            return;
        };
        let payload = match desks.get(&gateway) {
            None => packet.payload,
            Some(desk) => match desk.try_send(packet.payload) {
                Ok(()) => return,
                Err(TrySendError::Full(_)) => {
                    // More than it may have under way: its desk ends without it.
                    desks.remove(&gateway);
                    return;
                }
                Err(TrySendError::Closed(payload)) => payload,
            },
        };
        self.begin(gateway, payload, host, desks, tasks);
    }

    /// A gateway was heard of for the first time, or again.
    fn begin(
        &self,
        gateway: u64,
        payload: Bytes,
        (entrance, telling): (&Arc<Entrance>, &Telling),
        desks: &mut BTreeMap<u64, mpsc::Sender<Bytes>>,
        tasks: &mut JoinSet<()>,
    ) {
        desks.retain(|_, desk| !desk.is_closed());
        if desks.len() >= GATEWAYS_MAX {
            tracing::warn!(
                "more than {GATEWAYS_MAX} gateways want to serve this run; this one waits"
            );
            return;
        }
        let (sender, packets) = mpsc::channel(WAITING_MAX);
        sender.try_send(payload).expect("a new channel has room");
        desks.insert(gateway, sender);
        let desk = Desk {
            entrance: entrance.clone(),
            telling: telling.clone(),
            client: self.client.clone(),
            gateway: format!("{gateway:016x}"),
            subject: self.subjects.down(gateway),
            back: Back::new(entrance.clock.now(), entrance.signal_bytes_max),
            connections: BTreeMap::new(),
            pending: VecDeque::new(),
            outboxes: SelectAll::new(),
            said: Vec::new(),
            orders: VecDeque::new(),
        };
        tasks.spawn(desk.run(packets));
    }

    /// Another host asks, or says that it is there. Whether this one may go on.
    async fn answer(&self, heard: Message) -> bool {
        let Some(reply) = heard.reply else {
            let is_claim = heard.payload.len() == self.claim.len();
            return !is_claim || heard.payload >= self.claim;
        };
        let here = Bytes::from_static(b"here");
        // Who asked finds out for itself, or asks again.
        if let Err(reason) = nats::publish(&self.client, reply.to_string(), here).await {
            tracing::debug!(reason, "NATS");
        }
        true
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

/// One gateway at the host.
struct Desk {
    entrance: Arc<Entrance>,
    telling: Telling,
    client: Client,
    gateway: String,
    subject: String,
    back: Back,
    /// Numbers of the session's connections: the gateway's, and the host's.
    connections: BTreeMap<u64, u64>,
    /// What the coordinator's task is to be told next.
    pending: VecDeque<Event>,
    /// Of the session's connections.
    outboxes: SelectAll<Outbox>,
    /// What was taken out of them.
    said: Vec<ForSocket>,
    /// What the gateway is told next, as soon as its link has room.
    orders: VecDeque<GatewayOrder>,
}

impl Desk {
    fn now(&self) -> Time {
        self.entrance.clock.now()
    }

    /// Runs until the gateway is forgotten, or the host stops.
    async fn run(mut self, mut packets: mpsc::Receiver<Bytes>) {
        let inbox = self.entrance.inbox.clone();
        let mut stop = self.entrance.stop.clone();
        let mut is_cut_off = false;
        loop {
            let all_read = self.pending.is_empty() && packets.is_empty();
            let wake = self.back.poll_timeout(all_read);
            let wake = self.entrance.clock.instant(wake);
            tokio::select! {
                permit = inbox.reserve(), if !self.pending.is_empty() => {
                    // The coordinator's task has ended: so does the host.
                    let Ok(permit) = permit else { return self.host_stops().await };
                    permit.send(self.pending.pop_front().expect("it is not empty"));
                }
                packet = packets.recv(), if self.pending.is_empty() && !is_cut_off => match packet {
                    Some(packet) => self.take(&packet),
                    None => {
                        is_cut_off = true;
                        self.back.end(self.now(), "it sends more than it may".to_owned());
                    }
                },
                () = gather(&mut self.outboxes, &mut self.said, &self.telling), if self.orders.is_empty() => {
                    self.sort();
                }
                () = sleep_until(wake), if self.back.session().is_some() || self.pending.is_empty() => {
                    let all_read = self.pending.is_empty() && packets.is_empty();
                    self.back.handle_timeout(self.now(), all_read);
                }
                () = stopped(&mut stop) => return self.host_stops().await,
            }
            while self.back.has_room()
                && let Some(order) = self.orders.pop_front()
            {
                self.back.say(self.now(), order);
            }
            self.carry_out().await;
            if self.pending.is_empty() && (is_cut_off || self.back.is_gone(self.now())) {
                return;
            }
        }
    }

    /// The gateway hears of it at once.
    async fn host_stops(&mut self) {
        self.back.end(self.now(), "the host stops".to_owned());
        self.carry_out().await;
    }

    fn take(&mut self, packet: &Bytes) {
        let now = self.now();
        let len_max = packet_bytes(self.entrance.signal_bytes_max);
        let rise: Rise = match serde_json::from_slice(packet) {
            Ok(rise) if packet.len() <= len_max => rise,
            Ok(_) => return self.back.end(now, "a packet of it is too long".to_owned()),
            Err(error) => return self.back.end(now, format!("no packet of it: {error}")),
        };
        match getrandom::u64() {
            Ok(fresh) => self.back.handle_rise(now, rise, fresh),
            Err(error) => tracing::error!(%error, "the system gives no random numbers"),
        }
    }

    /// Makes orders of what was taken out of the outboxes.
    fn sort(&mut self) {
        let (connections, pending) = (&mut self.connections, &mut self.pending);
        let is_open = |(connection, message): &ForSocket| match message {
            Some(_) => connections.contains_key(connection),
            None => {
                let own = connections.remove(connection);
                pending.extend(own.map(|connection| Event::Closed { connection }));
                own.is_some()
            }
        };
        let said = self.said.drain(..).filter(is_open);
        self.orders = told::orders(said, packet_bytes(self.entrance.signal_bytes_max));
    }

    async fn carry_out(&mut self) {
        while let Some(output) = self.back.poll_output() {
            match output {
                Output::Send(fall) => {
                    let packet = encode(&fall, packet_bytes(self.entrance.signal_bytes_max));
                    let subject = self.subject.clone();
                    if let Err(reason) = nats::publish(&self.client, subject, packet).await {
                        self.back.end(self.now(), reason);
                    }
                }
                Output::Event(event) => self.happened(event),
                Output::Over { reason } => {
                    let (gateway, volunteers) = (&self.gateway, self.connections.len());
                    tracing::warn!(gateway, volunteers, "a gateway's session is over: {reason}");
                    let closed = std::mem::take(&mut self.connections).into_values();
                    self.pending
                        .extend(closed.map(|connection| Event::Closed { connection }));
                    self.outboxes.clear();
                    self.said.clear();
                    self.orders.clear();
                }
            }
        }
    }

    fn happened(&mut self, event: GatewayEvent) {
        let own =
            |connections: &BTreeMap<u64, u64>, connection| connections.get(connection).copied();
        match event {
            GatewayEvent::Connected { connection } => {
                if self.connections.contains_key(&connection) {
                    let reason = "it opened a socket twice".to_owned();
                    return self.back.end(self.now(), reason);
                }
                let own = self.entrance.next_connection();
                self.connections.insert(connection, own);
                let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES_MAX);
                self.outboxes.push(outbox_of(connection, messages));
                self.pending.push_back(Event::Connected {
                    connection: own,
                    outbox,
                });
            }
            GatewayEvent::Message {
                connection,
                message,
            } => self
                .pending
                .extend(
                    own(&self.connections, &connection).map(|connection| Event::Message {
                        connection,
                        message,
                    }),
                ),
            GatewayEvent::Malformed { connection, reason } => {
                let own = own(&self.connections, &connection);
                self.pending
                    .extend(own.map(|connection| Event::Malformed { connection, reason }));
            }
            GatewayEvent::Closed { connection } => {
                let own = self.connections.remove(&connection);
                self.pending
                    .extend(own.map(|connection| Event::Closed { connection }));
            }
        }
    }
}

/// What the coordinator's task says to one connection.
type Outbox = BoxStream<'static, ForSocket>;

/// That of a connection; its end, when the coordinator's task lets go of it, closes the connection.
fn outbox_of(connection: u64, mut messages: mpsc::Receiver<Down>) -> Outbox {
    let mut is_over = false;
    let next = move |context: &mut Context<'_>| {
        if is_over {
            return Poll::Ready(None);
        }
        let next = messages.poll_recv(context);
        next.map(|message| {
            is_over = message.is_none();
            Some((connection, message))
        })
    };
    poll_fn(next).boxed()
}

/// Waits until something is in the outboxes, and for the end of what is being told: then takes all that there is, so that
/// what everybody is told stays together. Cancel safe.
async fn gather(outboxes: &mut SelectAll<Outbox>, said: &mut Vec<ForSocket>, telling: &RwLock<()>) {
    if said.is_empty() {
        match outboxes.next().await {
            Some(first) => said.push(first),
            None => pending().await,
        }
    }
    let _is_whole = telling.read().await;
    // As much as it may, whatever a task may do at a time.
    let take = async {
        while said.len() < GATEWAY_TOLD_AT_ONCE
            && let Some(Some(next)) = poll_immediate(outboxes.next()).await
        {
            said.push(next);
        }
    };
    unconstrained(take).await;
}

/// A packet as it is sent. What is too long for it closes the connection: no correct host says so much.
fn encode(fall: &Fall, len_max: usize) -> Bytes {
    let text = signal::encode(fall);
    let Fall::Packet {
        session,
        stamp,
        order: Some(GatewayOrder::Message { connections, .. }),
    } = fall
    else {
        return text.into();
    };
    if text.len() <= len_max {
        return text.into();
    }
    tracing::error!(len_bytes = text.len(), len_max, "a message does not fit");
    let close = Fall::Packet {
        session: *session,
        stamp: *stamp,
        order: Some(GatewayOrder::Close {
            connections: connections.clone(),
        }),
    };
    signal::encode(&close).into()
}

/// Waits until the host is to stop, or whoever would say so is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
