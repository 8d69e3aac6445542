//! The host's side of its gateways with a real NATS, and a test in the place of the coordinator's task and of the gateway.
//!
//! So it is the test that says when the inbox is read, and what is told at once. Waiting is always for something to
//! happen, with a limit.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are tests: what is not as it should be ends them"
)]

#[allow(dead_code, reason = "other tests use the rest of it")]
mod nats;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures_util::StreamExt as _;
use shared::units::Round;
use shared::wire::frame::VERSION;
use shared::wire::gateway::{Fall, GatewayEvent, GatewayOrder, Rise, Stamp};
use shared::wire::signal::{self, Down, Up};
use signaling::app::{Clock, Entrance, Event, Telling};
use signaling::gateway::bridge::Bridge;
use signaling::gateway::nats::{NatsError, Servers};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use nats::Nats;

const LIMIT: Duration = Duration::from_secs(60);
const RUN: &str = "school";
const BYTES_MAX: usize = 1 << 16;

/// A host whose inbox the test reads.
struct Host {
    inbox: mpsc::Receiver<Event>,
    telling: Telling,
    stop: watch::Sender<bool>,
    bridge: JoinHandle<Result<(), NatsError>>,
}

impl Host {
    async fn start(nats: &Nats, inbox_max: usize) -> Self {
        let servers = Servers::new(&[nats.url()], None).unwrap();
        let bridge = Bridge::join(&servers, RUN, BYTES_MAX).await.unwrap();
        let (sender, inbox) = mpsc::channel(inbox_max);
        let (stop_sender, stop) = watch::channel(false);
        let entrance = Entrance {
            inbox: sender,
            door: Arc::default(),
            clock: Clock::start(),
            stop,
            signal_bytes_max: BYTES_MAX,
            trust_proxy: false,
            connections: AtomicU64::new(0),
        };
        let telling = Telling::default();
        Self {
            inbox,
            telling: telling.clone(),
            stop: stop_sender,
            bridge: tokio::spawn(bridge.run(Arc::new(entrance), telling)),
        }
    }

    async fn event(&mut self) -> Event {
        let event = timeout(LIMIT, self.inbox.recv()).await;
        event.expect("an event").expect("the bridge lives")
    }

    async fn end(self) {
        self.stop.send_replace(true);
        timeout(LIMIT, self.bridge).await.unwrap().unwrap().unwrap();
    }
}

/// A gateway that says what the test wants.
struct Gateway {
    client: Client,
    falls: Subscriber,
    session: u64,
    said: u64,
    taken: u64,
}

impl Gateway {
    async fn open(nats: &Nats) -> Self {
        let client = async_nats::connect(nats.url()).await.unwrap();
        let falls = client.subscribe("shoal.school.down.000000000000beef");
        let mut gateway = Self {
            falls: falls.await.unwrap(),
            client,
            session: 0,
            said: 0,
            taken: 0,
        };
        gateway.open_again(1).await;
        gateway
    }

    /// Asks for a session and waits until it has it.
    async fn open_again(&mut self, attempt: u64) {
        let packet_bytes_max = 1 << 20;
        let version = VERSION;
        let open = Rise::Open {
            attempt,
            version,
            packet_bytes_max,
        };
        self.send(&open).await;
        loop {
            if let Fall::Opened {
                attempt: of,
                session,
                ..
            } = self.fall().await
                && of == attempt
            {
                (self.session, self.said, self.taken) = (session, 0, 0);
                return;
            }
        }
    }

    async fn send(&self, rise: &Rise) {
        let packet = signal::encode(rise).into();
        let subject = "shoal.school.up.000000000000beef";
        self.client.publish(subject, packet).await.unwrap();
    }

    async fn say(&mut self, event: GatewayEvent) {
        let (seq, taken) = (self.said, self.taken);
        self.said += 1;
        let packet = Rise::Packet {
            session: self.session,
            stamp: Stamp { seq, taken },
            event: Some(event),
        };
        self.send(&packet).await;
    }

    async fn fall(&mut self) -> Fall {
        let packet = timeout(LIMIT, self.falls.next()).await;
        let packet = packet.expect("a packet").expect("NATS lives");
        serde_json::from_slice(&packet.payload).unwrap()
    }

    /// The next thing that it is to do.
    async fn order(&mut self) -> GatewayOrder {
        loop {
            if let Fall::Packet {
                session,
                stamp,
                order,
            } = self.fall().await
                && session == self.session
            {
                assert_eq!(stamp.seq, self.taken, "out of turn");
                self.taken += 1;
                if let Some(order) = order {
                    return order;
                }
            }
        }
    }
}

fn safe(round: u32) -> Down {
    let (round, securing) = (Round(round), None);
    Down::Safe { round, securing }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_host_tells_everybody_at_once_is_one_packet_to_a_gateway() {
    let volunteers = 1_000;
    let nats = Nats::start("").await;
    let mut host = Host::start(&nats, 64).await;
    let mut gateway = Gateway::open(&nats).await;
    let mut outboxes = Vec::new();
    for connection in 0..volunteers {
        gateway.say(GatewayEvent::Connected { connection }).await;
        let Event::Connected { outbox, .. } = host.event().await else {
            panic!("it connected");
        };
        outboxes.push(outbox);
    }
    for round in 1..=20 {
        let is_telling = host.telling.write().await;
        for outbox in &outboxes {
            outbox.try_send(safe(round)).unwrap();
            // The desk has every opportunity to look.
            tokio::task::yield_now().await;
        }
        outboxes[7].try_send(Down::Ping { nonce: 5 }).unwrap();
        drop(is_telling);
        let GatewayOrder::Message {
            mut connections,
            message,
        } = gateway.order().await
        else {
            panic!("everybody is told");
        };
        connections.sort_unstable();
        let everybody: Vec<u64> = (0..volunteers).collect();
        assert_eq!((connections, message), (everybody, safe(round)));
        // What else one of them was told comes after it.
        let connections = vec![7];
        let message = Down::Ping { nonce: 5 };
        let order = GatewayOrder::Message {
            connections,
            message,
        };
        assert_eq!(gateway.order().await, order);
    }
    // Whom the host lets go of is closed after all that it was told.
    outboxes[3].try_send(safe(21)).unwrap();
    drop(outboxes.remove(3));
    let connections = vec![3];
    let message = safe(21);
    let told = GatewayOrder::Message {
        connections: connections.clone(),
        message,
    };
    assert_eq!(gateway.order().await, told);
    assert_eq!(gateway.order().await, GatewayOrder::Close { connections });
    host.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_gateway_that_is_cut_off_nothing_more_is_acted_on() {
    let nats = Nats::start("").await;
    let mut host = Host::start(&nats, 1).await;
    let mut gateway = Gateway::open(&nats).await;
    let connection = 1;
    gateway.say(GatewayEvent::Connected { connection }).await;
    // The host reads nothing: its inbox is full, then the desk's pocket, then the desk's queue.
    let before = gateway.session;
    for nonce in 0..3_000 {
        let message = Up::Pong { nonce };
        let event = GatewayEvent::Message {
            connection,
            message,
        };
        gateway.say(event).await;
    }
    // What came once the queue was full is of no session, for whoever answers now.
    while gateway.fall().await != (Fall::Over { session: before }) {}
    gateway.open_again(2).await;
    assert_ne!(gateway.session, before);
    gateway.say(GatewayEvent::Connected { connection }).await;

    let Event::Connected {
        connection: old,
        outbox: _open,
    } = host.event().await
    else {
        panic!("it connected");
    };
    let mut outboxes = Vec::new();
    let (mut said, mut is_closed, mut is_new) = (0, false, false);
    while !(is_closed && is_new) {
        match host.event().await {
            Event::Message { connection, .. } => {
                assert_eq!((connection, is_closed), (old, false));
                said += 1;
            }
            Event::Closed { connection } => {
                assert_eq!(connection, old);
                is_closed = true;
            }
            Event::Connected { connection, outbox } => {
                assert_ne!(connection, old);
                outboxes.push(outbox);
                is_new = true;
            }
            other @ (Event::Malformed { .. }
            | Event::NotStored { .. }
            | Event::NotHeld { .. }
            | Event::Wanted { .. }
            | Event::Unwanted { .. }
            | Event::Stored { .. }) => panic!("{other:?}"),
        }
    }
    // Only what was on its way to the inbox when it was cut off.
    assert!(said <= 2, "{said} of its messages were acted on");
    host.end().await;
}
