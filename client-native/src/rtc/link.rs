//! One connection to one peer, from its first description to its end: a task of its own.
//!
//! The task owns the `webrtc` peer connection. It takes steps from the transport, notices from the
//! connection's callbacks (which never wait), and reports [`LinkEvent`]s. Each data
//! channel has a reader and a sender beside it; both end with the task.
//!
//! Invariant: `Open` comes before the first message, `Down` exactly once and last, and neither
//! comes after the owner closed or replaced the link.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use shared::transport::{Channel, LinkEvent, LinkStep};
use shared::units::PeerId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use webrtc::data_channel::{DataChannel, RTCDataChannelInit};
use webrtc::peer_connection::{
    PeerConnection, RTCIceCandidateInit, RTCPeerConnectionState, RTCSessionDescription,
};

use super::channel::ChannelEnds;
use super::connection::{connect, is_relayed};
use super::outbox::Outbox;
use super::socket::Rounds;
use super::{Outboxes, RtcConfig, Tagged, fingerprint, link_event};

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
    #[error("a session description bears no SHA-256 fingerprint")]
    NoFingerprint,
    #[error("a task inside the connection panicked")]
    Panicked,
}

/// What a link's task starts with.
pub(super) struct LinkTask {
    pub(super) peer: PeerId,
    pub(super) generation: u32,
    pub(super) instance: u64,
    pub(super) config: Arc<RtcConfig>,
    pub(super) report: mpsc::Sender<Tagged>,
    pub(super) outboxes: Outboxes,
}

/// A connection at work.
struct Live {
    connection: Arc<dyn PeerConnection>,
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
    pub(super) async fn run(self, first: LinkStep, steps: mpsc::Receiver<LinkStep>) {
        let driven = AssertUnwindSafe(self.drive(first, steps)).catch_unwind();
        let outcome = driven.await.unwrap_or(Err(LinkFailure::Panicked));
        self.outboxes.control.close();
        self.outboxes.tensors.close();
        if let Err(failure) = outcome {
            let peer = self.peer;
            tracing::debug!(%peer, generation = self.generation, %failure, "link down");
            self.tell(LinkEvent::Down {
                generation: self.generation,
            })
            .await;
        }
    }

    async fn tell(&self, event: LinkEvent) {
        let event = link_event(self.peer, event);
        // Fails only when the transport is gone, and then nobody wants to know.
        let _ = self.report.send((self.instance, event)).await;
    }

    async fn drive(
        &self,
        first: LinkStep,
        mut steps: mpsc::Receiver<LinkStep>,
    ) -> Result<(), LinkFailure> {
        let (notices, mut heard) = mpsc::channel(NOTICES_MAX);
        let (connection, rounds) = connect(&self.config, notices.clone()).await?;
        let mut live = Live {
            connection,
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
        steps: &mut mpsc::Receiver<LinkStep>,
        heard: &mut mpsc::Receiver<Notice>,
    ) -> Result<(), LinkFailure> {
        self.begin(live, first).await?;
        let mut round = tokio::time::interval(RELAY_ROUND);
        loop {
            tokio::select! {
                _ = round.tick(), if live.rounds.enabled() => live.rounds.kick(),
                step = steps.recv() => match step {
                    Some(step) => live.carry_out(step).await?,
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
            LinkStep::Accept { .. } | LinkStep::Candidate { .. } | LinkStep::Close => {
                unreachable!("a link's task begins with an offer or an answer")
            }
        };
        let made = description.sdp.clone();
        connection.set_local_description(description).await?;
        let sdp = connection.local_description().await.map_or(made, |d| d.sdp);
        self.tell(LinkEvent::Description {
            generation: self.generation,
            sdp,
        })
        .await;
        Ok(())
    }

    async fn hear(&self, live: &mut Live, notice: Notice) -> Result<(), LinkFailure> {
        match notice {
            Notice::Candidate(candidate) => {
                let candidate = serde_json::to_string(&candidate)
                    .expect("a candidate has string keys and plain values");
                self.tell(LinkEvent::Candidate {
                    generation: self.generation,
                    candidate,
                })
                .await;
            }
            Notice::State(
                state @ (RTCPeerConnectionState::Failed | RTCPeerConnectionState::Closed),
            ) => return Err(LinkFailure::State(state)),
            Notice::State(state) => {
                tracing::debug!(peer = %self.peer, %state, "connection state");
            }
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
            peer: self.peer,
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
                .and_then(|description| fingerprint(&description.sdp))
                .ok_or(LinkFailure::NoFingerprint)
        };
        let relayed = is_relayed(connection.as_ref()).await;
        if !relayed {
            live.rounds.disable();
        }
        self.outboxes.control.open();
        self.outboxes.tensors.open();
        self.tell(LinkEvent::Open {
            generation: self.generation,
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
    async fn carry_out(&mut self, step: LinkStep) -> Result<(), LinkFailure> {
        match step {
            LinkStep::Accept { sdp, .. } => {
                let answer = RTCSessionDescription::answer(sdp)?;
                self.connection.set_remote_description(answer).await?;
            }
            LinkStep::Candidate { candidate, .. } => {
                // One bad candidate is no reason to give up: there are others.
                match serde_json::from_str::<RTCIceCandidateInit>(&candidate) {
                    Ok(candidate) => {
                        if let Err(error) = self.connection.add_ice_candidate(candidate).await {
                            tracing::debug!(%error, "a candidate of the other end was not taken");
                        }
                    }
                    Err(error) => tracing::debug!(%error, "not a candidate"),
                }
            }
            LinkStep::Offer { .. } | LinkStep::Answer { .. } | LinkStep::Close => {
                unreachable!("the transport makes a new task, or ends this one, for such a step")
            }
        }
        Ok(())
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
