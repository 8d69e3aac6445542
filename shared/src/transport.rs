//! The one boundary to the network: moves opaque messages between peers.
//!
//! Implemented over WebRTC by the native and the browser client. The order of the steps that
//! open a connection is decided by [`crate::peer::link`]; an implementation carries out one
//! [`LinkStep`] at a time and says what came of it. It never sees a frame: the driver cuts
//! frames into messages of at most [`CHUNK_BYTES_MAX`](crate::limits::CHUNK_BYTES_MAX) plus
//! a few bytes of header, and joins them again.
//!
//! Invariant: a peer that goes away is an event, never an error.

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

/// Which data channel of a link carries a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// Ordered and reliable: small messages whose order matters.
    Control,
    /// Reliable, unordered: tensors and state.
    Tensors,
}

/// What two ends of a future link tell each other through the host.
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
}

/// One step of opening a connection, for the transport to carry out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkStep {
    /// Make a new connection with both data channels, and a local offer. Ends any older one.
    Offer {
        /// Number of this try.
        generation: u32,
    },
    /// Make a new connection from the other end's offer, and a local answer. Ends any older one.
    Answer {
        /// Number of this try.
        generation: u32,
        /// The other end's session description.
        sdp: String,
    },
    /// Take the other end's answer to the offer of that generation.
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
    /// Close the connection and forget the peer.
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
    /// The connection failed or closed; its channels carry nothing any more.
    Down {
        /// The try it belongs to.
        generation: u32,
    },
}

/// Something that the network did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// News of a connection.
    Link {
        /// The other end.
        peer: PeerId,
        /// What happened.
        event: LinkEvent,
    },
    /// A message arrived.
    Message {
        /// Who sent it.
        peer: PeerId,
        /// On which channel.
        channel: Channel,
        /// What it holds: untrusted.
        bytes: Bytes,
    },
    /// A channel that had been full takes messages again.
    Drained {
        /// The other end.
        peer: PeerId,
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
    /// Begins one step of opening or closing the connection to `peer`; never waits.
    fn link(&mut self, peer: PeerId, step: LinkStep);

    /// Queues `message`, never waits; `false` when the channel's buffer is full (again on
    /// [`NetEvent::Drained`]) or the link is not open (then there is a [`LinkEvent::Down`]).
    fn try_send(&mut self, to: PeerId, channel: Channel, message: Bytes) -> bool;

    /// ICE servers for links that are opened from now on: their credentials expire.
    fn set_ice_servers(&mut self, servers: Vec<IceServer>);

    /// Next event. Cancel safe: dropping the future loses nothing.
    fn next_event(
        &mut self,
    ) -> impl Future<Output = Result<NetEvent, TransportStopped>> + MaybeSend;
}
