//! What a WebSocket gateway and the host say to each other, through a message system that may lose, repeat or
//! exchange messages.
//!
//! A gateway asks for a session ([`Rise::Open`]), the host draws its number ([`Fall::Opened`]). Each packet of a session
//! then bears a [`Stamp`]: its number in its direction, and how many of the other direction were taken. Whoever sees a
//! number out of turn, or a session it does not know, says `over`, and nothing of that session is acted on any more.
//!
//! Packets are JSON, as what they carry ([`signal`](super::signal)). Who speaks is in the subject, not in the packet.

use serde::{Deserialize, Serialize};

use super::signal::{Down, Up};

/// Where a packet stands in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its number in its direction, from 0 on.
    pub seq: u64,
    /// How many packets of the other direction its sender has taken.
    pub taken: u64,
}

/// Gateway to host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rise {
    /// I want a session; what you knew of me is over.
    Open {
        /// Number of this question.
        attempt: u64,
        /// [`VERSION`](super::frame::VERSION) of the gateway's build: it reads what passes through it.
        version: u8,
        /// Longest packet that can reach it, in bytes.
        packet_bytes_max: usize,
    },
    /// Within a session.
    Packet {
        /// The session.
        session: u64,
        /// Where it stands.
        stamp: Stamp,
        /// What happened; `None` says only that the gateway is there.
        event: Option<GatewayEvent>,
    },
    /// I don't know that session, or it is over.
    Over {
        /// The session.
        session: u64,
    },
}

/// What happened at a gateway's sockets. Connections are numbered by the gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GatewayEvent {
    /// A WebSocket opened.
    Connected {
        /// Its number.
        connection: u64,
    },
    /// A volunteer said something.
    Message {
        /// The connection.
        connection: u64,
        /// What it said.
        message: Up,
    },
    /// It said what is no message.
    Malformed {
        /// The connection.
        connection: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A WebSocket closed.
    Closed {
        /// The connection.
        connection: u64,
    },
}

/// Host to gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fall {
    /// The session that you asked for.
    Opened {
        /// Number of the question.
        attempt: u64,
        /// Number of the session, drawn for it.
        session: u64,
        /// Longest message of a volunteer that is read.
        signal_bytes_max: usize,
    },
    /// You can't serve this run.
    Refused {
        /// Number of the question.
        attempt: u64,
        /// Why, and what to do.
        text: String,
    },
    /// Within a session.
    Packet {
        /// The session.
        session: u64,
        /// Where it stands.
        stamp: Stamp,
        /// What to do; `None` says only that the host is there.
        order: Option<GatewayOrder>,
    },
    /// I don't know that session, or it is over.
    Over {
        /// The session.
        session: u64,
    },
}

/// What a gateway is to do with its sockets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GatewayOrder {
    /// Tell these volunteers this: one packet, however many there are.
    Message {
        /// The connections.
        connections: Vec<u64>,
        /// What to tell them.
        message: Down,
    },
    /// Close them once everything is sent.
    Close {
        /// The connections.
        connections: Vec<u64>,
    },
}
