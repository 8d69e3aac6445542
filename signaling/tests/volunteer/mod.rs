//! A volunteer by script: joins, takes every stage, and answers each lease with made-up results.

use std::time::Duration;

use ed25519_dalek::{Signer as _, SigningKey};
use futures_util::{SinkExt as _, StreamExt as _};
use shared::derive::seed_hash;
use shared::units::{Digest, Round, StageId};
use shared::wire::frame::{Mode, Place, VERSION};
use shared::wire::signal::{
    self, Capabilities, Down, Held, Holds, Join, Lease, RefuseCode, Report, Speed, Up,
    VolunteerKind, Welcome, join_message,
};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const LIMIT: Duration = Duration::from_secs(30);

/// For requests beside the WebSocket. TLS needs a provider even where it is not used.
pub(crate) fn http() -> reqwest::Client {
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

pub(crate) struct Volunteer {
    url: String,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Uploads that are still to be something else than what was asked for.
    pub(crate) spoiled_uploads: u32,
    /// Uploads that a test sends itself: what, and with which ticket.
    pub(crate) kept_uploads: Option<Vec<(Held, String)>>,
    /// The stages of the newest commit that it was told.
    pub(crate) committed: Vec<Held>,
}

impl Volunteer {
    pub(crate) async fn try_connect(url: &str) -> Result<Self, Error> {
        Self::through(url, url).await
    }

    /// Connects to the gateway at `entrance`, and for all else to the host at `url`.
    pub(crate) async fn through(entrance: &str, url: &str) -> Result<Self, Error> {
        let address = format!("{}/ws", entrance.replace("http://", "ws://"));
        let (socket, _) = tokio_tungstenite::connect_async(address).await?;
        let url = url.to_owned();
        Ok(Self {
            url,
            socket,
            spoiled_uploads: 0,
            kept_uploads: None,
            committed: Vec::new(),
        })
    }

    pub(crate) async fn connect(url: &str) -> Self {
        Self::try_connect(url).await.unwrap()
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &'static [u8]) {
        self.socket.send(Message::binary(bytes)).await.unwrap();
    }

    pub(crate) async fn send(&mut self, message: &Up) {
        self.send_text(&signal::encode(message)).await;
    }

    /// The next message; `None` once the host has closed.
    pub(crate) async fn next(&mut self) -> Option<Down> {
        loop {
            match timeout(LIMIT, self.socket.next()).await.expect("a message") {
                Some(Ok(Message::Text(text))) => return Some(signal::decode(&text).unwrap()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(_)) | None | Some(Err(_)) => return None,
            }
        }
    }

    pub(crate) async fn wait_for<T>(&mut self, mut wanted: impl FnMut(Down) -> Option<T>) -> T {
        loop {
            let message = self.next().await.expect("the host closed");
            if let Down::Ping { nonce } = message {
                self.send(&Up::Pong { nonce }).await;
            } else if let Some(found) = wanted(message) {
                return found;
            }
        }
    }

    pub(crate) async fn hello(&mut self) -> (Digest, Digest) {
        match self.next().await {
            Some(Down::Hello { nonce, config, .. }) => {
                (nonce, Digest(seed_hash(&config.model, config.seed)))
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn join_after_hello(&mut self, name: &str) -> Box<Join> {
        let (nonce, seed_hash) = self.hello().await;
        let key = SigningKey::from_bytes(&Digest::of(name.as_bytes()).0);
        let session = 7;
        let proof = key.sign(&join_message(&nonce, session)).to_bytes();
        Box::new(Join {
            version: VERSION,
            key: Digest(key.verifying_key().to_bytes()),
            proof: hex::encode(proof),
            session,
            name: name.to_owned(),
            capabilities: Capabilities {
                kind: VolunteerKind::Native,
                device: "script".to_owned(),
                memory_bytes: 1 << 33,
                speed: Speed::of(1_000),
                throttle_percent: 100,
                relay_only: false,
                hidden: false,
            },
            seed_hash,
            paused: None,
            kept: Vec::new(),
            resume: None,
            invite: None,
        })
    }

    pub(crate) async fn join(&mut self, name: &str) {
        self.join_as(name, |_| {}).await;
    }

    /// Joins with something else than what a newcomer says.
    pub(crate) async fn join_as(&mut self, name: &str, alter: impl FnOnce(&mut Join)) -> Welcome {
        let mut join = self.join_after_hello(name).await;
        alter(&mut join);
        self.send(&Up::Join(join)).await;
        self.wait_for(|message| {
            let Down::Welcome(welcome) = message else {
                return None;
            };
            Some(*welcome)
        })
        .await
    }

    /// The host refuses with that code, then closes.
    pub(crate) async fn refused(&mut self, expected: RefuseCode) {
        match self.next().await {
            Some(Down::Refuse { code, text, remedy }) => {
                assert_eq!(code, expected, "{text}");
                assert!(!text.is_empty() && !remedy.is_empty());
            }
            other => panic!("{other:?}"),
        }
        self.closed().await;
    }

    pub(crate) async fn closed(&mut self) {
        assert_eq!(self.next().await, None);
    }

    /// Takes part alone until that round is committed and a checkpoint of it or an earlier one was sent.
    pub(crate) async fn train_until(&mut self, round: u32) {
        let (mut committed, mut stored) = (false, false);
        let mut work = Work::default();
        while !(committed && stored) {
            match self.next().await.expect("the host closed") {
                Down::Ping { nonce } => self.send(&Up::Pong { nonce }).await,
                Down::Seat(seat) => {
                    let stages = seat.state.iter().map(|fetch| fetch.held).collect();
                    let place = seat.place;
                    work.stages = seat.stages.count();
                    self.send(&Up::Ready { place, stages }).await;
                }
                Down::Begin {
                    place,
                    mode: Mode::Evaluate,
                    ..
                } => self.send(&Up::Evaluated { place, loss: 3.5 }).await,
                Down::Begin {
                    attempt, result, ..
                } => {
                    work.attempt = attempt;
                    work.result = result;
                }
                Down::Lease(lease) => self.step(&work, lease).await,
                Down::Commit {
                    round: newest,
                    place,
                    stages,
                    ..
                } => {
                    committed |= newest.0 >= round;
                    self.committed.clone_from(&stages);
                    let place = Place {
                        round: newest,
                        ..place
                    };
                    self.send(&Up::Ready { place, stages }).await;
                }
                Down::Upload { held, ticket } => {
                    let is_last = usize::from(held.stage.0) + 1 == work.stages;
                    stored |= self.upload(held, &ticket).await && is_last;
                }
                Down::Hello { .. }
                | Down::Welcome(_)
                | Down::Refuse { .. }
                | Down::Released
                | Down::Spare { .. }
                | Down::Signal { .. }
                | Down::Close { .. }
                | Down::Merge(_)
                | Down::Generate(_)
                | Down::Forget { .. }
                | Down::Safe { .. }
                | Down::Rewind { .. }
                | Down::Copy { .. }
                | Down::IceServers { .. }
                | Down::Reason { .. } => {}
            }
        }
    }

    async fn step(&mut self, work: &Work, lease: Lease) {
        let (place, steps) = (lease.place, lease.step.0 + 1);
        let report = Report {
            place,
            steps,
            loss: 4.0,
            round_loss: 4.0,
            elapsed_us: 1_000,
            forward_bytes: 100,
            backward_bytes: 80,
        };
        self.send(&Up::Report(report)).await;
        if lease.last {
            let holds = Holds {
                place,
                attempt: work.attempt,
                steps,
                stages: work.held(),
            };
            self.send(&Up::Holds(holds)).await;
        }
    }

    /// Whether it is done, as far as this volunteer is to do it.
    async fn upload(&mut self, held: Held, ticket: &str) -> bool {
        if let Some(kept) = &mut self.kept_uploads {
            kept.push((held, ticket.to_owned()));
            return true;
        }
        let url = format!("{}/store/upload/{ticket}", self.url);
        let put = |body: Vec<u8>| http().put(&url).body(body).send();
        if self.spoiled_uploads > 0 {
            self.spoiled_uploads -= 1;
            let answer = put(b"something else".to_vec()).await.unwrap();
            assert_eq!(answer.status(), 422);
            return false;
        }
        let bytes = state(held.round, held.stage);
        assert_eq!(put(bytes.clone()).await.unwrap().status(), 201);
        assert_eq!(
            put(bytes).await.unwrap().status(),
            403,
            "a ticket is good for one upload"
        );
        let (round, stage) = (held.round, held.stage);
        let ticket = ticket.to_owned();
        self.send(&Up::Uploaded {
            round,
            stage,
            ticket,
        })
        .await;
        true
    }
}

/// What was told of the round under way.
#[derive(Default)]
struct Work {
    stages: usize,
    attempt: shared::units::Attempt,
    result: Round,
}

impl Work {
    fn held(&self) -> Vec<Held> {
        (0..u16::try_from(self.stages).unwrap())
            .map(|stage| {
                let (round, stage) = (self.result, StageId(stage));
                let blob = Digest::of(&state(round, stage));
                Held {
                    round,
                    stage,
                    agreed: blob,
                    blob,
                }
            })
            .collect()
    }
}

/// The made-up state of a stage.
pub(crate) fn state(round: Round, stage: StageId) -> Vec<u8> {
    format!("state of stage {stage} at round {round}").into_bytes()
}
