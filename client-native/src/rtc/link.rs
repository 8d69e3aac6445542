//! One connection to one peer, from its first description to its end: a task of its own.
//!
//! The task owns the `webrtc` peer connection. It takes steps from the transport, notices from the
//! connection's callbacks (which never wait), and reports [`LinkEvent`]s. Each data
//! channel has a reader and a sender beside it; both end with the task.
//!
//! A connection whose path breaks is kept: ICE may find another one by itself, or when the owner asks for
//! a restart, and what waits in the channels goes on from there.
//!
//! Invariant: `Open` comes before the first message, `Down` exactly once and last, and neither
//! comes after the owner closed or replaced the link.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rtc::peer_connection::configuration::RTCOfferOptions;
use shared::transport::{Channel, Flow, LinkEvent, LinkStep, certificate};
use shared::wire::signal::IceServer;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use webrtc::data_channel::{DataChannel, RTCDataChannelInit};
use webrtc::peer_connection::{
    PeerConnection, RTCIceCandidateInit, RTCPeerConnectionState, RTCSessionDescription,
};

use super::channel::ChannelEnds;
use super::connection::{configuration, connect, has_relays, is_relayed};
use super::outbox::Outbox;
use super::socket::Rounds;
use super::{Order, Outboxes, RtcConfig, Tagged, link_event};

/// Notices from a connection's callbacks that wait for its task.
const NOTICES_MAX: usize = 256;
/// How long a link that is being closed may still bring out what waits on `control`.
const LINGER_MAX: Duration = Duration::from_millis(300);
/// Between looks at whether it is out.
const LINGER_STEP: Duration = Duration::from_millis(5);
/// How long closing may take before the connection is dropped as it is.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Between rounds for what a relayed connection sends by itself: handshakes, repetitions.
const RELAY_ROUND: Duration = Duration::from_millis(20);

/// Labels of the two channels on the wire.
const CONTROL: &str = "control";
const TENSORS: &str = "tensors";

/// What a connection's callbacks and channel tasks tell its task.
pub(super) enum Notice {
    Candidate(RTCIceCandidateInit),
    State(RTCPeerConnectionState),
    Channel(Arc<dyn DataChannel>),
    Opened(Channel),
    Ended(Channel),
}

/// Why a connection ended. All of them mean the same to the peer: `Down`.
#[derive(Debug, thiserror::Error)]
enum LinkFailure {
    #[error(transparent)]
    Stack(#[from] webrtc::error::Error),
    #[error("the connection is {0}")]
    State(RTCPeerConnectionState),
    #[error("the data channel {0:?} ended")]
    ChannelEnded(Channel),
    #[error("a session description does not name exactly one certificate by SHA-256")]
    NoFingerprint,
    #[error("a task inside the connection panicked")]
    Panicked,
}

/// What a link's task starts with.
pub(super) struct LinkTask {
    pub(super) flow: Flow,
    pub(super) generation: u32,
    pub(super) instance: u64,
    pub(super) config: Arc<RtcConfig>,
    pub(super) report: mpsc::Sender<Tagged>,
    pub(super) outboxes: Outboxes,
}

/// A connection at work.
struct Live {
    /// Of its opening, or of its newest restart.
    generation: u32,
    connection: Arc<dyn PeerConnection>,
    /// ICE servers that the connection knows.
    connection_servers: Vec<IceServer>,
    notices: mpsc::Sender<Notice>,
    control: Option<Arc<dyn DataChannel>>,
    tensors: Option<Arc<dyn DataChannel>>,
    open: [bool; 2],
    gate: watch::Sender<bool>,
    tasks: JoinSet<()>,
    rounds: Arc<Rounds>,
}

impl LinkTask {
    /// Drives the connection until it fails or `steps` ends.
    pub(super) async fn run(self, first: LinkStep, steps: mpsc::Receiver<Order>) {
        let driven = AssertUnwindSafe(self.drive(first, steps)).catch_unwind();
        let outcome = driven.await.unwrap_or(Err(LinkFailure::Panicked));
        self.outboxes.control.close();
        self.outboxes.tensors.close();
        if let Err(failure) = outcome {
            let flow = self.flow;
            tracing::debug!(%flow, generation = self.generation, %failure, "link down");
            self.tell(LinkEvent::Down {
                generation: self.generation,
            })
            .await;
        }
    }

    async fn tell(&self, event: LinkEvent) {
        let event = link_event(self.flow, event);
        // Fails only when the transport is gone, and then nobody wants to know.
        let _ = self.report.send((self.instance, event)).await;
    }

    async fn drive(
        &self,
        first: LinkStep,
        mut steps: mpsc::Receiver<Order>,
    ) -> Result<(), LinkFailure> {
        let (notices, mut heard) = mpsc::channel(NOTICES_MAX);
        let (connection, rounds) = connect(&self.config, notices.clone()).await?;
        let mut live = Live {
            generation: self.generation,
            connection,
            connection_servers: self.config.ice_servers.clone(),
            notices,
            control: None,
            tensors: None,
            open: [false; 2],
            gate: watch::Sender::new(false),
            tasks: JoinSet::new(),
            rounds,
        };
        let outcome = self.serve(&mut live, first, &mut steps, &mut heard).await;
        if outcome.is_ok() {
            live.linger(&self.outboxes.control).await;
        }
        live.tasks.abort_all();
        match tokio::time::timeout(CLOSE_MAX, live.connection.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "closing a connection"),
            Err(_) => tracing::debug!("closing a connection took too long; dropped"),
        }
        outcome
    }

    async fn serve(
        &self,
        live: &mut Live,
        first: LinkStep,
        steps: &mut mpsc::Receiver<Order>,
        heard: &mut mpsc::Receiver<Notice>,
    ) -> Result<(), LinkFailure> {
        self.begin(live, first).await?;
        let mut round = tokio::time::interval(RELAY_ROUND);
        loop {
            tokio::select! {
                _ = round.tick(), if live.rounds.enabled() => live.rounds.kick(),
                step = steps.recv() => match step {
                    Some(order) => self.carry_out(live, order).await?,
                    None => return Ok(()),
                },
                notice = heard.recv() => match notice {
                    Some(notice) => self.hear(live, notice).await?,
                    None => return Err(LinkFailure::Panicked),
                },
            }
        }
    }

    /// The first step: makes the local description.
    async fn begin(&self, live: &mut Live, first: LinkStep) -> Result<(), LinkFailure> {
        let connection = Arc::clone(&live.connection);
        let description = match first {
            LinkStep::Answer { sdp, .. } => {
                let offer = RTCSessionDescription::offer(sdp)?;
                connection.set_remote_description(offer).await?;
                connection.create_answer(None).await?
            }
            LinkStep::Offer { .. } => {
                for (label, ordered) in [(CONTROL, true), (TENSORS, false)] {
                    let init = RTCDataChannelInit {
                        ordered,
                        ..Default::default()
                    };
                    let channel = connection.create_data_channel(label, Some(init)).await?;
                    self.adopt(live, channel).await?;
                }
                connection.create_offer(None).await?
            }
            LinkStep::Accept { .. }
            | LinkStep::Candidate { .. }
            | LinkStep::Restart { .. }
            | LinkStep::AnswerRestart { .. }
            | LinkStep::Close => {
                unreachable!("a link's task begins with an offer or an answer")
            }
        };
        self.describe(live, description).await
    }

    /// Sets the local description and says it.
    async fn describe(
        &self,
        live: &Live,
        description: RTCSessionDescription,
    ) -> Result<(), LinkFailure> {
        let made = description.sdp.clone();
        live.connection.set_local_description(description).await?;
        let current = live.connection.local_description().await;
        let sdp = current.map_or(made, |description| description.sdp);
        self.tell(LinkEvent::Description {
            generation: live.generation,
            sdp,
        })
        .await;
        Ok(())
    }

    async fn carry_out(&self, live: &mut Live, order: Order) -> Result<(), LinkFailure> {
        match order.step {
            LinkStep::Accept { sdp, .. } => {
                let answer = RTCSessionDescription::answer(sdp)?;
                live.connection.set_remote_description(answer).await?;
            }
            LinkStep::Candidate { candidate, .. } => live.add_candidate(&candidate).await,
            LinkStep::Restart { generation } => {
                self.prepare_restart(live, generation, &order.config)
                    .await?;
                let options = RTCOfferOptions { ice_restart: true };
                let offer = live.connection.create_offer(Some(options)).await?;
                self.describe(live, offer).await?;
            }
            LinkStep::AnswerRestart { generation, sdp } => {
                self.prepare_restart(live, generation, &order.config)
                    .await?;
                let offer = RTCSessionDescription::offer(sdp)?;
                live.connection.set_remote_description(offer).await?;
                let answer = live.connection.create_answer(None).await?;
                self.describe(live, answer).await?;
            }
            LinkStep::Offer { .. } | LinkStep::Answer { .. } | LinkStep::Close => {
                unreachable!("the transport makes a new task, or ends this one, for such a step")
            }
        }
        Ok(())
    }

    /// From now on everything is about the restart, which gathers from the newest ICE servers.
    async fn prepare_restart(
        &self,
        live: &mut Live,
        generation: u32,
        newest: &RtcConfig,
    ) -> Result<(), LinkFailure> {
        live.generation = generation;
        let config = RtcConfig {
            relay_only: self.config.relay_only,
            ..newest.clone()
        };
        if config.ice_servers != live.connection_servers {
            live.connection_servers.clone_from(&config.ice_servers);
            live.connection
                .set_configuration(configuration(&config))
                .await?;
        }
        // The path to come may be relayed.
        live.rounds.enable(has_relays(&config));
        Ok(())
    }

    async fn hear(&self, live: &mut Live, notice: Notice) -> Result<(), LinkFailure> {
        match notice {
            Notice::Candidate(candidate) => {
                let candidate = serde_json::to_string(&candidate)
                    .expect("a candidate has string keys and plain values");
                self.tell(LinkEvent::Candidate {
                    generation: live.generation,
                    candidate,
                })
                .await;
            }
            Notice::State(state) => self.hear_state(live, state).await?,
            Notice::Channel(channel) => self.adopt(live, channel).await?,
            Notice::Opened(channel) => {
                live.open[index(channel)] = true;
                if live.open == [true; 2] && !*live.gate.borrow() {
                    self.announce(live).await?;
                }
            }
            Notice::Ended(channel) => return Err(LinkFailure::ChannelEnded(channel)),
        }
        Ok(())
    }

    async fn hear_state(
        &self,
        live: &Live,
        state: RTCPeerConnectionState,
    ) -> Result<(), LinkFailure> {
        tracing::debug!(flow = %self.flow, generation = live.generation, %state, "connection state");
        let (generation, is_open) = (live.generation, *live.gate.borrow());
        let failed = state == RTCPeerConnectionState::Failed;
        let closed = state == RTCPeerConnectionState::Closed;
        if closed || (failed && !is_open) {
            return Err(LinkFailure::State(state));
        }
        if is_open && (failed || state == RTCPeerConnectionState::Disconnected) {
            self.tell(LinkEvent::Disturbed { generation }).await;
        } else if is_open && state == RTCPeerConnectionState::Connected {
            let relayed = live.learn_path().await;
            self.tell(LinkEvent::Resumed {
                generation,
                relayed,
            })
            .await;
        }
        Ok(())
    }

    /// Takes a data channel in: ours, or the other end's. One of each kind; others are closed.
    async fn adopt(
        &self,
        live: &mut Live,
        channel: Arc<dyn DataChannel>,
    ) -> Result<(), LinkFailure> {
        let (kind, place) = match channel.label().await?.as_str() {
            CONTROL => (Channel::Control, &mut live.control),
            TENSORS => (Channel::Tensors, &mut live.tensors),
            _ => return Ok(channel.close().await?),
        };
        if place.is_some() {
            return Ok(channel.close().await?);
        }
        *place = Some(Arc::clone(&channel));
        let ends = ChannelEnds {
            flow: self.flow,
            instance: self.instance,
            kind,
            channel,
            report: self.report.clone(),
            notices: live.notices.clone(),
            rounds: Arc::clone(&live.rounds),
        };
        live.tasks.spawn(ends.clone().read(live.gate.subscribe()));
        let pacer = match kind {
            Channel::Control => None,
            Channel::Tensors => self.config.pacer.clone(),
        };
        live.tasks
            .spawn(ends.send(Arc::clone(self.outboxes.of(kind)), pacer));
        Ok(())
    }

    /// Both channels are open: says so, then lets messages through.
    async fn announce(&self, live: &Live) -> Result<(), LinkFailure> {
        let connection = &live.connection;
        let local = connection.local_description().await;
        let remote = connection.remote_description().await;
        let read = |description: Option<RTCSessionDescription>| {
            description
                .and_then(|description| certificate(&description.sdp))
                .ok_or(LinkFailure::NoFingerprint)
        };
        let relayed = live.learn_path().await;
        self.outboxes.control.open();
        self.outboxes.tensors.open();
        self.tell(LinkEvent::Open {
            generation: live.generation,
            local_fingerprint: read(local)?,
            remote_fingerprint: read(remote)?,
            relayed,
        })
        .await;
        live.gate.send_replace(true);
        Ok(())
    }
}

impl Live {
    async fn add_candidate(&self, candidate: &str) {
        // One bad candidate is no reason to give up: there are others.
        match serde_json::from_str::<RTCIceCandidateInit>(candidate) {
            Ok(candidate) => {
                if let Err(error) = self.connection.add_ice_candidate(candidate).await {
                    tracing::debug!(%error, "a candidate of the other end was not taken");
                }
            }
            Err(error) => tracing::debug!(%error, "not a candidate"),
        }
    }

    /// Whether the path in use is relayed; only then its loop needs help.
    async fn learn_path(&self) -> bool {
        let relayed = is_relayed(self.connection.as_ref()).await;
        self.rounds.enable(relayed);
        relayed
    }

    /// Gives what waits on `control` a moment to leave: a `bye` should arrive.
    async fn linger(&self, outbox: &Outbox) {
        let Some(control) = &self.control else {
            return;
        };
        let emptied = async {
            while !outbox.is_empty() || control.outstanding_bytes().await.is_ok_and(|n| n > 0) {
                tokio::time::sleep(LINGER_STEP).await;
            }
        };
        // Late is as good as never: the other end notices by silence.
        let _ = tokio::time::timeout(LINGER_MAX, emptied).await;
    }
}

const fn index(channel: Channel) -> usize {
    match channel {
        Channel::Control => 0,
        Channel::Tensors => 1,
    }
}
