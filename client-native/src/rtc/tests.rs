//! Two transports in one process, over real sockets on loopback.

mod restart;

use std::collections::BTreeSet;
use std::time::Duration;

use shared::units::PeerId;

use super::*;

const LEFT: Flow = Flow::first(PeerId(1));
const RIGHT: Flow = Flow::first(PeerId(2));
const MESSAGE_BYTES: usize = 32 << 10;
const MESSAGES: usize = 1_000;
const TEST_MAX: Duration = Duration::from_secs(60);

fn loopback() -> RtcTransport {
    RtcTransport::new(RtcConfig {
        loopback: true,
        ..RtcConfig::default()
    })
}

#[test]
fn loopback_is_bound_where_there_is_nothing_else() {
    let config = RtcConfig {
        loopback: true,
        ..RtcConfig::default()
    };
    let addresses = config.bind_addresses();
    let is_alone = addresses == ["127.0.0.1:0"];
    let others = ["0.0.0.0:0", "[::]:0"];
    let are_others = addresses.iter().all(|it| others.contains(&it.as_str()));
    assert!(is_alone || are_others, "{addresses:?}");
    assert!(!addresses.is_empty());
}

/// Takes one side's news to the other, as the host would. Returns what is not signaling.
fn relay(from: Flow, event: NetEvent, offers: bool, other: &mut RtcTransport) -> Option<NetEvent> {
    let NetEvent::Link { event, flow } = event else {
        return Some(event);
    };
    let step = match event {
        LinkEvent::Description { generation, sdp } if offers => {
            LinkStep::Answer { generation, sdp }
        }
        LinkEvent::Description { generation, sdp } => LinkStep::Accept { generation, sdp },
        LinkEvent::Candidate {
            generation,
            candidate,
        } => LinkStep::Candidate {
            generation,
            candidate,
        },
        event @ (LinkEvent::Open { .. }
        | LinkEvent::Disturbed { .. }
        | LinkEvent::Resumed { .. }
        | LinkEvent::Down { .. }) => {
            return Some(NetEvent::Link { flow, event });
        }
    };
    other.link(from, step);
    None
}

/// Next event of either side that is neither signaling nor a moment without packets (a busy machine has some), and
/// whose it is. `left` offers.
async fn step(left: &mut RtcTransport, right: &mut RtcTransport) -> (Flow, NetEvent) {
    loop {
        let news = tokio::select! {
            event = left.next_event() => relay(LEFT, event.unwrap(), true, right).map(|e| (LEFT, e)),
            event = right.next_event() => relay(RIGHT, event.unwrap(), false, left).map(|e| (RIGHT, e)),
        };
        if let Some(news) = news.filter(|(_, event)| !is_hiccup(event)) {
            return news;
        }
    }
}

fn is_hiccup(event: &NetEvent) -> bool {
    let NetEvent::Link { event, .. } = event else {
        return false;
    };
    matches!(
        event,
        LinkEvent::Disturbed { .. } | LinkEvent::Resumed { .. }
    )
}

/// Opens a link that `left` offers; returns the fingerprints, `(local, remote)` of each side.
async fn open(left: &mut RtcTransport, right: &mut RtcTransport) -> [(String, String); 2] {
    left.link(
        RIGHT,
        LinkStep::Offer {
            generation: 1,
            relay_only: false,
        },
    );
    let mut found: [Option<(String, String)>; 2] = [None, None];
    while found.iter().any(Option::is_none) {
        let (side, event) = step(left, right).await;
        let NetEvent::Link {
            event:
                LinkEvent::Open {
                    generation: 1,
                    local_fingerprint,
                    remote_fingerprint,
                    relayed: false,
                },
            ..
        } = event
        else {
            panic!("{side} met {event:?} instead of an open link");
        };
        let place = usize::from(side == RIGHT);
        assert!(found[place].is_none(), "opened twice");
        found[place] = Some((local_fingerprint, remote_fingerprint));
    }
    found.map(|side| side.unwrap())
}

fn message(number: usize) -> Bytes {
    let mut bytes = vec![u8::try_from(number % 251).unwrap(); MESSAGE_BYTES];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    Bytes::from(bytes)
}

/// Pushes as many as the box takes; returns how many were sent in all.
fn push(transport: &mut RtcTransport, to: Flow, mut sent: usize) -> usize {
    while sent < MESSAGES && transport.try_send(to, Channel::Tensors, message(sent)) {
        sent += 1;
    }
    sent
}

async fn exchange(left: &mut RtcTransport, right: &mut RtcTransport) {
    let mut sent = [push(left, RIGHT, 0), push(right, LEFT, 0)];
    assert!(sent[0] < MESSAGES, "32 MB must not fit into the box");
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    while seen.iter().any(|numbers| numbers.len() < MESSAGES) {
        let (side, event) = step(left, right).await;
        let place = usize::from(side == RIGHT);
        match event {
            NetEvent::Message {
                channel: Channel::Tensors,
                bytes,
                ..
            } => {
                let number = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
                let number = number.unwrap();
                assert_eq!(bytes, message(number));
                assert!(seen[place].insert(number), "message {number} came twice");
            }
            NetEvent::Drained {
                channel: Channel::Tensors,
                ..
            } if side == LEFT => sent[0] = push(left, RIGHT, sent[0]),
            NetEvent::Drained {
                channel: Channel::Tensors,
                ..
            } => sent[1] = push(right, LEFT, sent[1]),
            other @ (NetEvent::Link { .. }
            | NetEvent::Message { .. }
            | NetEvent::Drained { .. }) => {
                panic!("{side} met {other:?}")
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_of_a_link_pass_messages_and_one_notices_the_others_loss() {
    let whole = async {
        let (mut left, mut right) = (loopback(), loopback());
        assert!(!left.try_send(RIGHT, Channel::Control, Bytes::from_static(b"early")));
        let [of_left, of_right] = open(&mut left, &mut right).await;
        assert_eq!(of_left.0, of_right.1);
        assert_eq!(of_left.1, of_right.0);
        assert_eq!(of_left.0.len(), 32 * 3 - 1, "{}", of_left.0);

        assert!(left.try_send(RIGHT, Channel::Control, Bytes::from_static(b"hello")));
        let (side, event) = step(&mut left, &mut right).await;
        assert_eq!(side, RIGHT);
        assert!(
            matches!(&event, NetEvent::Message { channel: Channel::Control, bytes, .. } if bytes == "hello"),
            "{event:?}"
        );
        exchange(&mut left, &mut right).await;

        let carried = left.config.traffic.datagrams();
        let least = (MESSAGES * MESSAGE_BYTES) as u64;
        for bytes in [carried.sent_bytes, carried.received_bytes] {
            assert!((least..2 * least).contains(&bytes), "{carried:?}");
        }
        assert!(carried.sent > least / 1_500, "{carried:?}");

        drop(right);
        let began = std::time::Instant::now();
        let mut event = left.next_event().await.unwrap();
        while is_hiccup(&event) {
            event = left.next_event().await.unwrap();
        }
        assert!(
            matches!(
                event,
                NetEvent::Link {
                    flow: RIGHT,
                    event: LinkEvent::Down { generation: 1 }
                }
            ),
            "{event:?}"
        );
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        assert!(!left.try_send(RIGHT, Channel::Control, Bytes::from_static(b"late")));
    };
    tokio::time::timeout(TEST_MAX, whole)
        .await
        .expect("within a minute");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_on_control_still_arrives_when_a_link_is_closed() {
    let whole = async {
        let (mut left, mut right) = (loopback(), loopback());
        open(&mut left, &mut right).await;
        assert!(left.try_send(RIGHT, Channel::Control, Bytes::from_static(b"bye")));
        left.link(RIGHT, LinkStep::Close);
        let mut heard = Vec::new();
        loop {
            match right.next_event().await.unwrap() {
                NetEvent::Message { bytes, .. } => heard.push(bytes),
                NetEvent::Link {
                    event: LinkEvent::Down { .. },
                    ..
                } => break,
                NetEvent::Link { .. } | NetEvent::Drained { .. } => {}
            }
        }
        assert_eq!(heard, [Bytes::from_static(b"bye")]);
    };
    tokio::time::timeout(TEST_MAX, whole)
        .await
        .expect("within a minute");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_description_that_is_none_takes_the_link_down_and_nothing_else() {
    let mut transport = loopback();
    let bad = LinkStep::Answer {
        generation: 7,
        sdp: "v=0 and so on".to_owned(),
    };
    transport.link(RIGHT, bad);
    let event = tokio::time::timeout(TEST_MAX, transport.next_event()).await;
    assert_eq!(
        event.expect("at once"),
        Ok(NetEvent::Link {
            flow: RIGHT,
            event: LinkEvent::Down { generation: 7 }
        })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stun_server_that_swallows_packets_adds_nothing_to_the_opening_of_a_link() {
    let whole = async {
        let dead = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = IceServer {
            urls: vec![format!("stun:{}", dead.local_addr().unwrap())],
            username: None,
            credential: None,
        };
        // The same twice, beside each other on the same machine: once without the server.
        let mut took = Vec::new();
        for servers in [vec![], vec![server]] {
            let (mut left, mut right) = (loopback(), loopback());
            left.set_ice_servers(servers.clone());
            right.set_ice_servers(servers);
            let began = std::time::Instant::now();
            open(&mut left, &mut right).await;
            took.push(began.elapsed());
        }
        assert!(took[1] < took[0] + Duration::from_secs(2), "{took:?}");
    };
    tokio::time::timeout(TEST_MAX, whole)
        .await
        .expect("within a minute");
}
