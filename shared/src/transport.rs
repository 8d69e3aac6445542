//! The one boundary to the network: moves opaque messages between peers.
//!
//! Implemented over WebRTC by the native and the browser client. The order of the steps that
//! open a connection is decided by [`crate::peer::link`]; an implementation carries out one
//! [`LinkStep`] at a time and says what came of it. It never sees a frame: the driver cuts
//! frames into messages of at most [`CHUNK_BYTES_MAX`](crate::limits::CHUNK_BYTES_MAX) plus
//! a few bytes of header, and joins them again. A link is one connection, or several [`Flow`]s where the driver finds that
//! more carry more; to an implementation they have nothing to do with each other.
//!
//! Invariant: a peer that goes away is an event, never an error.

use std::fmt;
use std::future::Future;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::units::PeerId;

/// `Send` natively, where a runtime moves futures between threads; nothing in a browser, where
/// JavaScript's objects stay on their thread.
#[cfg(not(target_arch = "wasm32"))]
pub trait MaybeSend: Send {}
#[cfg(not(target_arch = "wasm32"))]
impl<T: Send> MaybeSend for T {}
/// `Send` natively, where a runtime moves futures between threads; nothing in a browser, where
/// JavaScript's objects stay on their thread.
#[cfg(target_arch = "wasm32")]
pub trait MaybeSend {}
#[cfg(target_arch = "wasm32")]
impl<T> MaybeSend for T {}

/// An ICE server, as `RTCIceServer` in a browser.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IceServer {
    /// `stun:` or `turn:` addresses.
    pub urls: Vec<String>,
    /// User name of a TURN server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
}

impl IceServer {
    /// Whether it is a TURN server: one that packets can go through.
    #[must_use]
    pub fn is_relay(&self) -> bool {
        let is_turn = |url: &String| url.starts_with("turn:") || url.starts_with("turns:");
        self.urls.iter().any(is_turn)
    }
}

/// One connection of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Flow {
    /// The other end.
    pub peer: PeerId,
    /// 0 for the connection that opens and closes the link. The ends number further ones each for itself; those carry tensors,
    /// and on `control` nothing but what has arrived.
    pub number: u8,
}

impl Flow {
    /// The first connection of the link to `peer`.
    #[must_use]
    pub const fn first(peer: PeerId) -> Self {
        Self { peer, number: 0 }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            0 => write!(to, "{}", self.peer),
            number => write!(to, "{} ({number})", self.peer),
        }
    }
}

/// A further connection of a link, as the end that speaks of it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlowName {
    /// Counts those that the same end opened, from 0.
    pub number: u8,
    /// Whether that is the end that speaks.
    pub opened_here: bool,
}

/// Which data channel of a connection carries a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// Ordered and reliable: small messages whose order matters.
    Control,
    /// Reliable, unordered: tensors and state.
    Tensors,
}

/// What two ends of a future connection tell each other: through the host, or over the link that it is to be part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkSignal {
    /// A session description that asks for an answer. `generation` counts the offerer's tries.
    Offer {
        /// Number of this try; answers and candidates to an older one are dropped.
        generation: u32,
        /// The session description.
        sdp: String,
    },
    /// The answer to the offer of that generation.
    Answer {
        /// The try that is answered.
        generation: u32,
        /// The session description.
        sdp: String,
    },
    /// One ICE candidate, as a browser's `RTCIceCandidateInit` in JSON.
    Candidate {
        /// The try it belongs to.
        generation: u32,
        /// `RTCIceCandidateInit` in JSON.
        candidate: String,
    },
    /// From the end that does not offer: please try again with an offer of a newer generation.
    Again {
        /// The try that failed.
        generation: u32,
    },
    /// From the end that does not offer: nothing gets through any more, please restart ICE.
    Disturbed {
        /// The newest generation of the connection.
        generation: u32,
    },
    /// An offer that restarts ICE on an open connection; it is answered with [`LinkSignal::Answer`].
    Restart {
        /// The generation that the connection was opened with.
        connection: u32,
        /// Number of this restart, counted on with the tries.
        generation: u32,
        /// The session description. Its certificate is the one that the connection was opened with.
        sdp: String,
    },
}

/// One step of opening a connection or of mending one, for the transport to carry out.
///
/// Every step that makes a description bears a new generation. A connection that is restarted goes on under the
/// newest one: later events and candidates bear that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkStep {
    /// Make a new connection with both data channels, and a local offer. Ends any older one.
    Offer {
        /// Number of this try.
        generation: u32,
        /// Whether to use relayed candidates only: direct ones were tried and broke.
        relay_only: bool,
    },
    /// Make a new connection from the other end's offer, and a local answer. Ends any older one.
    Answer {
        /// Number of this try.
        generation: u32,
        /// The other end's session description.
        sdp: String,
    },
    /// Take the other end's answer to the offer, or to the restart, of that generation.
    Accept {
        /// Number of this try.
        generation: u32,
        /// The other end's session description.
        sdp: String,
    },
    /// Add a candidate of the other end. Never comes before the other end's description.
    Candidate {
        /// Number of this try.
        generation: u32,
        /// `RTCIceCandidateInit` in JSON.
        candidate: String,
    },
    /// Restart ICE on the open connection (`createOffer({ iceRestart: true })`), with the newest ICE servers. Its
    /// channels and what waits in them stay.
    Restart {
        /// Number of this restart.
        generation: u32,
    },
    /// Apply the other end's restart to the open connection, with the newest ICE servers, and make an answer.
    AnswerRestart {
        /// Number of this restart.
        generation: u32,
        /// The other end's session description.
        sdp: String,
    },
    /// Close the connection and forget it.
    Close,
}

/// What came of a step, or happened to a connection by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkEvent {
    /// The local offer or answer that a step asked for.
    Description {
        /// The try it belongs to.
        generation: u32,
        /// The session description.
        sdp: String,
    },
    /// A local ICE candidate.
    Candidate {
        /// The try it belongs to.
        generation: u32,
        /// `RTCIceCandidateInit` in JSON.
        candidate: String,
    },
    /// Both data channels are open.
    Open {
        /// The try it belongs to.
        generation: u32,
        /// SHA-256 fingerprint of our DTLS certificate, as in SDP.
        local_fingerprint: String,
        /// SHA-256 fingerprint of the other end's, as in SDP.
        remote_fingerprint: String,
        /// Whether packets go through a TURN server.
        relayed: bool,
    },
    /// ICE lost the open connection (`disconnected` or `failed`): nothing gets through for now. It may come back by
    /// itself or by a restart; until then channels keep what is sent. Only after `Open`.
    Disturbed {
        /// Newest generation of the connection.
        generation: u32,
    },
    /// ICE has a working path again, after `Disturbed` or a restart, or has moved to another one.
    Resumed {
        /// Newest generation of the connection.
        generation: u32,
        /// Whether packets go through a TURN server.
        relayed: bool,
    },
    /// The connection is closed, or failed before it was open; its channels carry nothing any more.
    Down {
        /// A generation of the connection: of its opening, or of a restart.
        generation: u32,
    },
}

/// The SHA-256 fingerprint of the DTLS certificate that a session description names, in upper case.
///
/// `None` if it names none, or several: then nobody could say whose certificate was agreed on.
#[must_use]
pub fn certificate(sdp: &str) -> Option<String> {
    let mut found = sdp
        .lines()
        .filter_map(|line| line.trim().strip_prefix("a=fingerprint:"))
        .map(|value| {
            let (algorithm, pairs) = value.split_once(' ')?;
            let pairs = pairs.trim().to_ascii_uppercase();
            algorithm.eq_ignore_ascii_case("sha-256").then_some(pairs)
        });
    let first = found.next()?;
    found.all(|other| other == first).then_some(first)?
}

/// Something that the network did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// News of a connection.
    Link {
        /// Which.
        flow: Flow,
        /// What happened.
        event: LinkEvent,
    },
    /// A message arrived.
    Message {
        /// By which connection.
        flow: Flow,
        /// On which channel.
        channel: Channel,
        /// What it holds: untrusted.
        bytes: Bytes,
    },
    /// A channel that had been full takes messages again.
    Drained {
        /// Of which connection.
        flow: Flow,
        /// Which channel.
        channel: Channel,
    },
}

/// The network as a whole is gone: nothing can be sent or received ever again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the network stack stopped: {reason}")]
pub struct TransportStopped {
    /// What the stack said.
    pub reason: String,
}

/// Moves opaque messages between peers. A peer going away is an event; `Err` means the network is gone.
pub trait Transport: MaybeSend + 'static {
    /// Begins one step of opening or closing a connection; never waits.
    fn link(&mut self, flow: Flow, step: LinkStep);

    /// Queues `message`, never waits; `false` when the channel's buffer is full (again on
    /// [`NetEvent::Drained`]) or the connection is not open (then there is a [`LinkEvent::Down`]).
    fn try_send(&mut self, by: Flow, channel: Channel, message: Bytes) -> bool;

    /// Whether it sees to it that no more is under way on a link than that carries; else the driver does.
    fn bounds_links(&self) -> bool {
        true
    }

    /// ICE servers for links that are opened or restarted from now on: their credentials expire.
    fn set_ice_servers(&mut self, servers: Vec<IceServer>);

    /// Next event. Cancel safe: dropping the future loses nothing.
    fn next_event(
        &mut self,
    ) -> impl Future<Output = Result<NetEvent, TransportStopped>> + MaybeSend;
}

#[cfg(test)]
mod tests {
    use super::certificate;

    #[test]
    fn a_description_names_one_certificate_or_none() {
        let check = |lines: &[&str], expected: Option<&str>| {
            let sdp = format!("v=0\r\n{}\r\n", lines.join("\r\n"));
            assert_eq!(certificate(&sdp).as_deref(), expected, "{sdp}");
        };
        check(&["a=fingerprint:SHA-256 ab:cd"], Some("AB:CD"));
        let twice = [
            "a=fingerprint:sha-256 AB:CD",
            "m=application",
            "a=fingerprint:sha-256 ab:cd",
        ];
        check(&twice, Some("AB:CD"));
        check(&[], None);
        check(&["a=fingerprint:sha-1 ab:cd"], None);
        check(
            &["a=fingerprint:sha-256 AB:CD", "a=fingerprint:sha-256 AB:CE"],
            None,
        );
        check(
            &["a=fingerprint:sha-256 AB:CD", "a=fingerprint:sha-512 AB:CE"],
            None,
        );
    }
}
