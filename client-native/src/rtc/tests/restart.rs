//! A path that breaks under an open link, and the restart that finds another one.
//!
//! The link is opened through two sockets in between ([`Detour`]), which then swallow everything. The restart's
//! candidates are told as they are, so that a direct path is found.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;

use super::*;

/// A datagram is never longer.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;

/// What stands for each end towards the other: what comes to one socket leaves from the other one.
struct Detour {
    /// By end: where it is reached by the other one.
    sockets: [Arc<UdpSocket>; 2],
    /// By end: where it really is.
    ends: [std::sync::OnceLock<SocketAddr>; 2],
    broken: AtomicBool,
}

impl Detour {
    async fn new() -> Arc<Self> {
        let socket = async || Arc::new(UdpSocket::bind("0.0.0.0:0").await.unwrap());
        let detour = Arc::new(Self {
            sockets: [socket().await, socket().await],
            ends: Default::default(),
            broken: AtomicBool::new(false),
        });
        for end in 0..2 {
            let detour = Arc::downgrade(&detour);
            tokio::spawn(async move {
                let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
                while let Some(detour) = detour.upgrade() {
                    let received = detour.sockets[end].recv_from(&mut datagram).await;
                    let (Ok((len, _)), Some(to)) = (received, detour.ends[end].get()) else {
                        continue;
                    };
                    if !detour.broken.load(Ordering::Relaxed) {
                        let out = detour.sockets[1 - end].send_to(&datagram[..len], to);
                        assert_eq!(out.await.unwrap(), len);
                    }
                }
            });
        }
        detour
    }

    /// The only candidate that the other end is told: this detour's. `None` for all others.
    fn disguise(&self, end: usize, candidate: &str) -> Option<String> {
        let mut init: serde_json::Value = serde_json::from_str(candidate).unwrap();
        let line = init["candidate"].as_str().unwrap().to_owned();
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let address = words[4].parse::<Ipv4Addr>().ok()?;
        if self.ends[end].get().is_some() {
            return None;
        }
        let real = (address, words[5].parse().unwrap()).into();
        self.ends[end].set(real).unwrap();
        words[5] = self.sockets[end].local_addr().unwrap().port().to_string();
        init["candidate"] = words.join(" ").into();
        Some(init.to_string())
    }
}

/// Two transports, and what the host between them does to their signals.
struct Mended {
    transports: [RtcTransport; 2],
    detour: Arc<Detour>,
    /// Whether candidates are told as they are.
    direct: bool,
}

const IDS: [Flow; 2] = [LEFT, RIGHT];

impl Mended {
    /// Passes signals on until something else happens; which end it happens to.
    async fn next(&mut self) -> (usize, NetEvent) {
        loop {
            let [left, right] = &mut self.transports;
            let (end, event) = tokio::select! {
                event = left.next_event() => (0, event.unwrap()),
                event = right.next_event() => (1, event.unwrap()),
            };
            let NetEvent::Link { event, flow } = event else {
                return (end, event);
            };
            let step = match event {
                LinkEvent::Description { generation, sdp } => {
                    let lines = sdp.lines().filter(|line| !line.contains("candidate"));
                    let sdp = lines.map(|line| format!("{line}\r\n")).collect();
                    match (end, generation) {
                        (0, 1) => LinkStep::Answer { generation, sdp },
                        (0, _) => LinkStep::AnswerRestart { generation, sdp },
                        (_, _) => LinkStep::Accept { generation, sdp },
                    }
                }
                LinkEvent::Candidate {
                    generation,
                    candidate,
                } => {
                    let told = match self.direct {
                        true => Some(candidate),
                        false => self.detour.disguise(end, &candidate),
                    };
                    let Some(candidate) = told else { continue };
                    LinkStep::Candidate {
                        generation,
                        candidate,
                    }
                }
                event @ (LinkEvent::Open { .. }
                | LinkEvent::Disturbed { .. }
                | LinkEvent::Resumed { .. }
                | LinkEvent::Down { .. }) => return (end, NetEvent::Link { flow, event }),
            };
            self.transports[1 - end].link(IDS[end], step);
        }
    }

    /// The next thing that happens to a link; messages are dropped.
    async fn next_of_link(&mut self) -> (usize, LinkEvent) {
        loop {
            if let (end, NetEvent::Link { event, .. }) = self.next().await {
                return (end, event);
            }
        }
    }

    fn push(&mut self, end: usize, sent: usize) -> usize {
        push(&mut self.transports[end], IDS[1 - end], sent)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_finds_another_path_and_no_message_is_lost_or_comes_twice() {
    let whole = async {
        let mut pair = Mended {
            transports: [loopback(), loopback()],
            detour: Detour::new().await,
            direct: false,
        };
        let first = LinkStep::Offer {
            generation: 1,
            relay_only: false,
        };
        pair.transports[0].link(RIGHT, first);
        for _ in 0..2 {
            let (_, event) = pair.next_of_link().await;
            assert!(matches!(event, LinkEvent::Open { .. }), "{event:?}");
        }

        // In the middle of a transfer in both directions nothing gets through any more.
        let mut sent = [pair.push(0, 0), pair.push(1, 0)];
        let mut seen = [BTreeSet::new(), BTreeSet::new()];
        let mut resumed = [false; 2];
        while seen.iter().any(|numbers| numbers.len() < MESSAGES) || resumed != [true; 2] {
            let (end, event) = pair.next().await;
            match event {
                NetEvent::Message { bytes, .. } => {
                    let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                    let number = usize::try_from(number).unwrap();
                    assert_eq!(bytes, message(number));
                    assert!(seen[end].insert(number), "message {number} came twice");
                    if seen[end].len() == 100 {
                        pair.detour.broken.store(true, Ordering::Relaxed);
                    }
                }
                NetEvent::Drained { .. } => sent[end] = pair.push(end, sent[end]),
                NetEvent::Link { event, .. } => match event {
                    LinkEvent::Disturbed { generation } if !pair.direct => {
                        assert_eq!(generation, 1);
                        pair.direct = true;
                        pair.transports[0].link(RIGHT, LinkStep::Restart { generation: 2 });
                    }
                    LinkEvent::Resumed {
                        generation,
                        relayed,
                    } => {
                        assert_eq!((generation, relayed), (2, false));
                        resumed[end] = true;
                    }
                    LinkEvent::Disturbed { .. } => {}
                    other @ (LinkEvent::Open { .. }
                    | LinkEvent::Down { .. }
                    | LinkEvent::Description { .. }
                    | LinkEvent::Candidate { .. }) => panic!("{end} met {other:?}"),
                },
            }
        }
    };
    tokio::time::timeout(TEST_MAX, whole)
        .await
        .expect("within a minute");
}
