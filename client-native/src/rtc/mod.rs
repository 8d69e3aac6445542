//! Data channels between volunteers: [`shared::transport::Transport`] over the `webrtc` crate.
//!
//! [`RtcTransport`] keeps one task for each connection ([`link`]). A task carries out the steps that
//! [`shared::peer`]'s link machine decides on, and says what came of them; which step comes next,
//! glare, retries and time limits are not its business. Messages wait in bounded boxes
//! ([`outbox`]) on their way out and in one bounded queue on their way in: when nobody reads that,
//! SCTP's window closes and the other end waits.
//!
//! Invariant: an event of a connection that was replaced by a newer try never comes out of
//! [`Transport::next_event`]. Begin reading at [`RtcTransport::link`].

mod channel;
mod connection;
pub mod ice;
mod link;
mod outbox;
mod socket;
pub mod traffic;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use bytes::Bytes;
use shared::transport::{
    Channel, Flow, LinkEvent, LinkStep, NetEvent, Transport, TransportStopped,
};
use shared::wire::signal::IceServer;
use tokio::sync::mpsc;

use crate::pace::Pacer;
use link::LinkTask;
use outbox::Outbox;
use traffic::Traffic;

/// Bytes that wait on the `tensors` channel of one connection before `try_send` says no: a message that the pacer holds, and
/// one that follows it. What is urgent waits behind them, so what can wait does so where it is put in order.
pub const TENSORS_BYTES_MAX: usize = 72 << 10;
/// Bytes that wait on the `control` channel of one connection: thousands of small frames.
pub const CONTROL_BYTES_MAX: usize = 256 << 10;
/// Bytes of one channel inside the SCTP stack: one bandwidth-delay product of 80 Mbit/s at 100 ms.
pub(crate) const STACK_BYTES_MAX: usize = 1 << 20;
/// Events and messages that wait to be read: with messages of 32 KiB, 16 MiB.
const EVENTS_MAX: usize = 512;
/// Steps that wait for one link's task: a few descriptions and both ends' candidates.
const STEPS_MAX: usize = 128;

/// What all links of a volunteer have in common.
#[derive(Clone, Debug, Default)]
pub struct RtcConfig {
    /// STUN and TURN servers, as the host gave them.
    pub ice_servers: Vec<IceServer>,
    /// Whether only relayed connections are made, so that no peer learns this machine's address.
    pub relay_only: bool,
    /// Whether peers may be on this machine: then the loopback address is a candidate where there is no other.
    pub loopback: bool,
    /// What paces everything that leaves on the `tensors` channels.
    pub pacer: Option<Arc<Pacer>>,
    /// Counts what the sockets of all links carry.
    pub traffic: Arc<Traffic>,
    /// Where troubles with relays are told, in words for a person. Without it relays are not tried beforehand.
    pub troubles: Option<mpsc::Sender<String>>,
}

impl RtcConfig {
    /// Addresses to bind a socket to. A wildcard stands for all interfaces but loopback.
    fn bind_addresses(&self) -> Vec<String> {
        let mut list = Vec::new();
        // A documentation address: nothing is sent, but the system says what it would send from.
        let routed = [
            (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), "0.0.0.0:0"),
            (
                IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
                "[::]:0",
            ),
        ];
        for (target, wildcard) in routed {
            let local = UdpSocket::bind(wildcard)
                .and_then(|socket| {
                    socket.connect(SocketAddr::new(target, 9))?;
                    socket.local_addr()
                })
                .map(|address| address.ip());
            if local.is_ok_and(|ip| !ip.is_loopback() && !ip.is_unspecified()) {
                list.push(wildcard.to_owned());
            }
        }
        if list.is_empty() {
            // Only then: Firefox answers checks that come from loopback and makes none to it, so that a pair with it,
            // once nominated here, is never one over there.
            let last = if self.loopback {
                "127.0.0.1:0"
            } else {
                "0.0.0.0:0"
            };
            list.push(last.to_owned());
        }
        list
    }
}

/// An event, and which try of a connection it comes from.
type Tagged = (u64, NetEvent);

/// A step for a link's task, and what all links have in common by now.
struct Order {
    step: LinkStep,
    config: Arc<RtcConfig>,
}

/// One connection as its owner sees it. Dropping it ends the connection's task, which closes it.
struct Link {
    instance: u64,
    steps: mpsc::Sender<Order>,
    outboxes: Outboxes,
}

/// What waits to be sent, by channel.
#[derive(Clone)]
struct Outboxes {
    control: Arc<Outbox>,
    tensors: Arc<Outbox>,
}

impl Outboxes {
    fn new() -> Self {
        Self {
            control: Arc::new(Outbox::new(CONTROL_BYTES_MAX)),
            tensors: Arc::new(Outbox::new(TENSORS_BYTES_MAX)),
        }
    }

    fn of(&self, channel: Channel) -> &Arc<Outbox> {
        match channel {
            Channel::Control => &self.control,
            Channel::Tensors => &self.tensors,
        }
    }
}

/// Waits for the end of a transport's connections.
pub struct TransportEnd(mpsc::Receiver<()>);

impl TransportEnd {
    /// Returns when the transport is gone and the last connection is closed.
    pub async fn wait(mut self) {
        while self.0.recv().await.is_some() {}
    }
}

/// The network of one volunteer.
pub struct RtcTransport {
    config: Arc<RtcConfig>,
    links: BTreeMap<Flow, Link>,
    instances: u64,
    events: mpsc::Receiver<Tagged>,
    report: mpsc::Sender<Tagged>,
    alive: mpsc::Sender<()>,
}

impl RtcTransport {
    /// A network without links. Must be used within a tokio runtime.
    pub fn new(config: RtcConfig) -> Self {
        Self::with_end(config).0
    }

    /// The same, and what tells when it was dropped and all its connections are closed.
    pub fn with_end(config: RtcConfig) -> (Self, TransportEnd) {
        let (report, events) = mpsc::channel(EVENTS_MAX);
        let (alive, end) = mpsc::channel(1);
        let transport = Self {
            config: Arc::new(config),
            links: BTreeMap::new(),
            instances: 0,
            events,
            report,
            alive,
        };
        (transport, TransportEnd(end))
    }

    /// Makes a new connection; an older one ends without a word.
    fn open(&mut self, flow: Flow, generation: u32, relay_only: bool, first: LinkStep) {
        self.instances += 1;
        let instance = self.instances;
        let (steps, mailbox) = mpsc::channel(STEPS_MAX);
        let outboxes = Outboxes::new();
        let mut config = Arc::clone(&self.config);
        if relay_only {
            Arc::make_mut(&mut config).relay_only = true;
        }
        let task = LinkTask {
            flow,
            generation,
            instance,
            config,
            report: self.report.clone(),
            outboxes: outboxes.clone(),
        };
        let alive = self.alive.clone();
        tokio::spawn(async move {
            task.run(first, mailbox).await;
            drop(alive);
        });
        let link = Link {
            instance,
            steps,
            outboxes,
        };
        if let Some(older) = self.links.insert(flow, link) {
            older.outboxes.control.close();
            older.outboxes.tensors.close();
        }
    }
}

impl Transport for RtcTransport {
    fn link(&mut self, flow: Flow, step: LinkStep) {
        match step {
            LinkStep::Offer {
                generation,
                relay_only,
            } => self.open(flow, generation, relay_only, step),
            LinkStep::Answer { generation, .. } => self.open(flow, generation, false, step),
            LinkStep::Accept { .. }
            | LinkStep::Candidate { .. }
            | LinkStep::Restart { .. }
            | LinkStep::AnswerRestart { .. } => {
                let Some(link) = self.links.get(&flow) else {
                    return;
                };
                let config = Arc::clone(&self.config);
                if link.steps.try_send(Order { step, config }).is_err() {
                    tracing::debug!(%flow, "a step of a link was dropped: it has ended, or too many wait");
                }
            }
            LinkStep::Close => {
                if let Some(link) = self.links.remove(&flow) {
                    // What waits on `control` (a `bye`) still goes out; see `LinkTask::run`.
                    link.outboxes.tensors.close();
                }
            }
        }
    }

    fn set_ice_servers(&mut self, servers: Vec<IceServer>) {
        let config = Arc::make_mut(&mut self.config);
        config.ice_servers.clone_from(&servers);
        let Some(troubles) = config.troubles.clone() else {
            return;
        };
        let relay_only = config.relay_only;
        tokio::spawn(async move {
            let tried = ice::try_servers(&servers).await;
            if let Some(trouble) = ice::trouble(&tried, relay_only) {
                // Fails only when nobody wants to know.
                let _ = troubles.send(trouble).await;
            }
        });
    }

    fn try_send(&mut self, by: Flow, channel: Channel, message: Bytes) -> bool {
        self.links
            .get(&by)
            .is_some_and(|link| link.outboxes.of(channel).push(message))
    }

    async fn next_event(&mut self) -> Result<NetEvent, TransportStopped> {
        loop {
            let Some((instance, event)) = self.events.recv().await else {
                return Err(TransportStopped {
                    reason: "no task is left that could report".to_owned(),
                });
            };
            let flow = match &event {
                NetEvent::Link { flow, .. }
                | NetEvent::Message { flow, .. }
                | NetEvent::Drained { flow, .. } => *flow,
            };
            let current = self
                .links
                .get(&flow)
                .is_some_and(|link| link.instance == instance);
            if current {
                return Ok(event);
            }
        }
    }
}

/// An event of a connection.
fn link_event(flow: Flow, event: LinkEvent) -> NetEvent {
    NetEvent::Link { flow, event }
}

#[cfg(test)]
mod tests;
