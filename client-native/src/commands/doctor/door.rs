//! Knocking at a run's door: up to `welcome`, and away again.
//!
//! Whoever looks joins as one who rests by choice and lends no memory, so that the host gives it neither a seat nor
//! a copy, nor counts on it; and leaves in the same breath. The run's line-up never hears of it.

use std::time::Duration;

use shared::config::run::RunConfig;
use shared::units::Digest;
use shared::wire::frame::VERSION;
use shared::wire::signal::{
    Capabilities, Down, Join, Pause, Speed, Up, VolunteerKind, Welcome, join_message,
};

use crate::failure::{Code, Failure};
use crate::host::HostLink;
use crate::host::socket::{HostSocket, SocketEvent};
use crate::identity::Identity;

/// How long the host may take for hello and welcome together.
const WELCOME_MAX: Duration = Duration::from_secs(15);

/// Who knocks, and what it has found out about itself.
pub(super) struct Visitor<'a> {
    pub(super) identity: &'a Identity,
    pub(super) seed_hash: Digest,
    pub(super) device: String,
    pub(super) speed: Speed,
    pub(super) relay_only: bool,
}

/// Knocks, and gives what the host says to a volunteer that it lets in.
///
/// # Errors
/// The host cannot be reached, says nothing, or does not let this machine in.
pub(super) async fn visit(link: &HostLink, visitor: &Visitor<'_>) -> Result<Welcome, Failure> {
    let mut socket = HostSocket::open(link);
    let outcome = tokio::time::timeout(WELCOME_MAX, knock(&mut socket, link, visitor)).await;
    if matches!(outcome, Ok(Ok(_))) {
        socket.send(Up::Leave { may_return: false });
    }
    socket.close().await;
    outcome.unwrap_or_else(|_| {
        let what = format!(
            "{link} did not let us in within {} s",
            WELCOME_MAX.as_secs()
        );
        Err(Failure::new(
            Code::Network,
            what,
            "Try again; if it stays so, tell the host.",
        ))
    })
}

async fn knock(
    socket: &mut HostSocket,
    link: &HostLink,
    visitor: &Visitor<'_>,
) -> Result<Welcome, Failure> {
    loop {
        let message = match socket.next().await {
            SocketEvent::Connected => continue,
            SocketEvent::Lost { reason, .. } => {
                return Err(Failure::new(
                    Code::Network,
                    format!("the host broke off: {reason}"),
                    "Try again; if it stays so, tell the host.",
                ));
            }
            SocketEvent::Message(message) => *message,
        };
        if let Down::Hello { nonce, .. } = message {
            socket.send(Up::Join(Box::new(visitor.join(link, &nonce))));
        } else if let Down::Welcome(welcome) = message {
            return Ok(*welcome);
        } else if let Down::Refuse { code, text, remedy } = message {
            return Err(Failure::refused(code, text, remedy));
        }
    }
}

impl Visitor<'_> {
    fn join(&self, link: &HostLink, nonce: &Digest) -> Join {
        let key = self.identity.public();
        let session = self.identity.session;
        let proof = self.identity.sign(&join_message(nonce, session));
        Join {
            version: VERSION,
            key,
            proof: hex::encode(proof),
            session,
            name: format!("shoal doctor {}", &key.to_string()[..6]),
            seed_hash: self.seed_hash,
            capabilities: Capabilities {
                kind: VolunteerKind::Native,
                device: self.device.clone(),
                memory_bytes: 0,
                speed: self.speed,
                throttle_percent: 100,
                relay_only: self.relay_only,
                hidden: false,
            },
            paused: Some(Pause::Asked),
            kept: Vec::new(),
            resume: None,
            invite: link.invite.clone(),
        }
    }
}

/// What a volunteer that lends so much can hold of the run: stages in a row, and all there are.
pub(super) fn stages_that_fit(config: &RunConfig, memory_bytes: u64) -> (usize, usize) {
    use shared::schedule::placement::StageCosts;
    use shared::units::StageRange;
    let costs = StageCosts::new(config);
    let all = costs.all();
    let longest = (all.first..all.end).map(|first| {
        let fits = |end: &u16| {
            let end = *end;
            costs.memory_of(StageRange { first, end }) <= memory_bytes
        };
        (first + 1..=all.end).take_while(fits).count()
    });
    (longest.max().unwrap_or(0), all.count())
}
