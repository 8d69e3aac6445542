//! One gateway at the host.
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

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{pending, poll_immediate};
use futures_util::stream::{BoxStream, SelectAll, poll_fn};
use shared::limits::GATEWAY_TOLD_AT_ONCE;
use shared::units::Time;
use shared::wire::gateway::{Fall, GatewayEvent, GatewayOrder, Rise};
use shared::wire::signal::{self, Down};
use tokio::sync::{RwLock, mpsc, oneshot};
use tokio::task::unconstrained;
use tokio::time::sleep_until;

use super::back::{Back, Output, packet_bytes};
use super::bridge::stopped;
use super::nats;
use super::told::{self, ForSocket};
use crate::app::{Entrance, Event, Telling};
use crate::door::OUTBOX_MESSAGES_MAX;

/// One gateway at the host.
pub(super) struct Desk {
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
    /// A desk for a gateway that was just heard of, which is told things under that subject.
    pub(super) fn new(
        entrance: Arc<Entrance>,
        telling: Telling,
        client: Client,
        gateway: String,
        subject: String,
    ) -> Self {
        let back = Back::new(entrance.clock.now(), entrance.signal_bytes_max);
        Self {
            entrance,
            telling,
            client,
            gateway,
            subject,
            back,
            connections: BTreeMap::new(),
            pending: VecDeque::new(),
            outboxes: SelectAll::new(),
            said: Vec::new(),
            orders: VecDeque::new(),
        }
    }

    fn now(&self) -> Time {
        self.entrance.clock.now()
    }

    /// Runs until the gateway is forgotten, it is cut off, or the host stops.
    pub(super) async fn run(
        mut self,
        mut packets: mpsc::Receiver<Bytes>,
        mut cut: oneshot::Receiver<&'static str>,
    ) {
        let inbox = self.entrance.inbox.clone();
        let mut stop = self.entrance.stop.clone();
        let mut is_cut_off = false;
        loop {
            let all_read = self.pending.is_empty() && packets.is_empty();
            let wake = self.back.poll_timeout(all_read);
            let wake = self.entrance.clock.instant(wake);
            tokio::select! {
                // Packets come last: none is taken of a gateway that is cut off, and they keep nothing else from happening.
                biased;
                () = stopped(&mut stop) => return self.host_stops().await,
                reason = &mut cut, if !is_cut_off => {
                    is_cut_off = true;
                    let reason = reason.unwrap_or("the host lets go of it");
                    self.back.end(self.now(), reason.to_owned());
                }
                permit = inbox.reserve(), if !self.pending.is_empty() => {
                    // The coordinator's task has ended: so does the host.
                    let Ok(permit) = permit else { return self.host_stops().await };
                    permit.send(self.pending.pop_front().expect("it is not empty"));
                }
                () = sleep_until(wake), if self.back.session().is_some() || self.pending.is_empty() => {
                    let all_read = self.pending.is_empty() && packets.is_empty();
                    self.back.handle_timeout(self.now(), all_read);
                }
                () = gather(&mut self.outboxes, &mut self.said, &self.telling), if self.orders.is_empty() => {
                    self.sort();
                }
                Some(packet) = packets.recv(), if self.pending.is_empty() && !is_cut_off => self.take(&packet),
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
            Ok(fresh) => {
                // The server of now: it may be another one than that which the host began with.
                let carried = self.client.max_payload();
                self.back.handle_rise(now, rise, fresh, carried);
            }
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
