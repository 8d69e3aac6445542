//! Knocking at a run's door: up to `welcome`, and away again.
//!
//! Whoever looks joins as one who rests by choice and lends no memory, so that the host gives it neither a seat nor
//! a copy, nor counts on it; and leaves in the same breath. It has a session of its own: a tab of this browser that
//! contributes under the same key keeps its place.

use ed25519_dalek::{Signer, SigningKey};
use shared::units::{Digest, Span};
use shared::wire::frame::VERSION;
use shared::wire::signal::{
    Capabilities, Down, Join, Pause, Up, VolunteerKind, Welcome, join_message,
};

use super::clock::within;
use super::host::socket_url;
use super::jobs::Made;
use super::socket::{HostSocket, SocketEvent};
use super::storage;
use crate::messages::{Settings, Verdict};

/// How long the host may take for hello and welcome together.
const WELCOME_MAX: Span = Span::from_secs(15);

/// Who knocks, and what it has found out about itself.
pub(super) struct Visitor<'a> {
    pub(super) key: SigningKey,
    pub(super) settings: &'a Settings,
    /// What the device is called.
    pub(super) device: &'a str,
    pub(super) made: &'a Made,
}

/// Knocks, and gives what the host says to a volunteer that it lets in.
///
/// # Errors
/// The host cannot be reached, says nothing, or does not let this browser in.
pub(super) async fn visit(link: &str, visitor: &Visitor<'_>) -> Result<Welcome, Verdict> {
    let mut socket = HostSocket::open(socket_url(link));
    let outcome = within(WELCOME_MAX, knock(&mut socket, visitor)).await;
    if matches!(outcome, Some(Ok(_))) {
        socket.send(Up::Leave { may_return: false });
    }
    socket.close().await;
    outcome.unwrap_or_else(|| {
        let what = "the host did not let us in within 15 s";
        Err(Verdict::cannot(
            what,
            "Look again; if it stays so, tell whoever hosts this run.",
        ))
    })
}

async fn knock(socket: &mut HostSocket, visitor: &Visitor<'_>) -> Result<Welcome, Verdict> {
    loop {
        let message = match socket.next().await {
            SocketEvent::Open => continue,
            SocketEvent::Lost { reason, .. } => {
                let remedy = "Check that the host is up, and look again.";
                return Err(Verdict::cannot(
                    format!("the host broke off: {reason}"),
                    remedy,
                ));
            }
            SocketEvent::Message(message) => *message,
        };
        if let Down::Hello { nonce, .. } = message {
            socket.send(Up::Join(Box::new(visitor.join(&nonce))));
        } else if let Down::Welcome(welcome) = message {
            return Ok(*welcome);
        } else if let Down::Refuse { text, remedy, .. } = message {
            return Err(Verdict::cannot(text, remedy));
        }
    }
}

impl Visitor<'_> {
    fn join(&self, nonce: &Digest) -> Join {
        let key = Digest(self.key.verifying_key().to_bytes());
        let session = u64::from_le_bytes(storage::random());
        let proof = self.key.sign(&join_message(nonce, session)).to_bytes();
        Join {
            version: VERSION,
            key,
            proof: hex::encode(proof),
            session,
            name: format!("a look by {}", &key.to_string()[..6]),
            seed_hash: self.made.seed_hash,
            capabilities: Capabilities {
                kind: VolunteerKind::Browser,
                device: self.device.to_owned(),
                memory_bytes: 0,
                speed: self.made.speed,
                throttle_percent: self.settings.throttle_percent.clamp(10, 100),
                relay_only: self.settings.relay_only,
                hidden: false,
            },
            paused: Some(Pause::Asked),
            kept: Vec::new(),
            resume: None,
            invite: self.settings.invite.clone(),
        }
    }
}
