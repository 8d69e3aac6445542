//! Strangers at the host's door: whoever does not fit is refused in words, and nobody else suffers.
//!
//! Speaks to a real host over a bare WebSocket, as a client of another version or a hostile one
//! would. After each, an honest volunteer is still let in.

use std::net::TcpStream;
use std::time::Duration;

use ed25519_dalek::{Signer as _, SigningKey};
use shared::config::run::RunConfig;
use shared::derive;
use shared::units::Digest;
use shared::wire::frame::VERSION;
use shared::wire::signal::{
    self, Capabilities, Down, Join, RefuseCode, Speed, Up, VolunteerKind, join_message,
};
use tests::community::{Community, Small};
use tungstenite::{Message, WebSocket};

/// A host that does not answer within this is not well.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// One connection to the host, after its `hello`.
struct Stranger {
    socket: WebSocket<TcpStream>,
    nonce: Digest,
    config: RunConfig,
}

impl Stranger {
    fn knock(community: &Community) -> Self {
        let address = community
            .host
            .url()
            .strip_prefix("http://")
            .expect("an http address");
        let stream = TcpStream::connect(address).expect("the host listens");
        stream
            .set_read_timeout(Some(ANSWER_MAX))
            .expect("a socket takes a limit");
        let (mut socket, _) =
            tungstenite::client(format!("ws://{address}/ws"), stream).expect("the host answers");
        let Down::Hello { nonce, config, .. } = hear(&mut socket) else {
            panic!("the host's first message is `hello`");
        };
        Self {
            socket,
            nonce,
            config: *config,
        }
    }

    /// What an honest volunteer would say.
    fn join(&self) -> Join {
        let key = SigningKey::from_bytes(&[7; 32]);
        let session = 1;
        let proof = key.sign(&join_message(&self.nonce, session));
        Join {
            version: VERSION,
            key: Digest(key.verifying_key().to_bytes()),
            proof: hex::encode(proof.to_bytes()),
            session,
            name: "stranger".to_owned(),
            seed_hash: Digest(derive::seed_hash(&self.config.model, self.config.seed)),
            capabilities: Capabilities {
                kind: VolunteerKind::Native,
                device: "none".to_owned(),
                memory_bytes: 1 << 30,
                speed: Speed::of(1_000),
                throttle_percent: 100,
                relay_only: false,
                hidden: false,
            },
            paused: None,
            kept: vec![],
            resume: None,
            invite: None,
        }
    }

    fn say(mut self, message: Message) -> Down {
        // A host may close before all of a message is sent that is too large; its answer counts.
        drop(self.socket.send(message));
        hear(&mut self.socket)
    }
}

fn hear(socket: &mut WebSocket<TcpStream>) -> Down {
    loop {
        match socket.read().expect("the host says something") {
            Message::Text(text) => return signal::decode(&text).expect("it is a message"),
            Message::Ping(_) | Message::Pong(_) => {}
            other @ (Message::Binary(_) | Message::Close(_) | Message::Frame(_)) => {
                panic!("the host says {other:?}")
            }
        }
    }
}

/// Lets `change` spoil an honest join and asserts that the host refuses with `code` and says what to do.
fn check_refused(code: RefuseCode, change: impl FnOnce(&mut Join)) {
    check_answer(code, |stranger| {
        let mut join = stranger.join();
        change(&mut join);
        Message::text(signal::encode(&Up::Join(Box::new(join))))
    });
}

/// Asserts that the host refuses a message with `code`, and that it lets an honest volunteer in after it.
fn check_answer(code: RefuseCode, message: impl FnOnce(&Stranger) -> Message) {
    let community = Community::gather(&Small::default(), &[]).expect("a host starts");
    let stranger = Stranger::knock(&community);
    let said = message(&stranger);
    let Down::Refuse {
        code: found,
        text,
        remedy,
    } = stranger.say(said)
    else {
        panic!("it is let in");
    };
    assert_eq!(found, code, "{text}");
    assert!(!text.is_empty() && !remedy.is_empty(), "{text}; {remedy}");
    let honest = Stranger::knock(&community);
    let join = Message::text(signal::encode(&Up::Join(Box::new(honest.join()))));
    let answer = honest.say(join);
    assert!(
        matches!(answer, Down::Welcome(_)),
        "an honest volunteer hears {answer:?}"
    );
}

#[test]
fn another_version_is_refused() {
    check_refused(RefuseCode::Version, |join| join.version = VERSION + 1);
}

#[test]
fn whoever_derives_other_numbers_from_the_seed_is_refused() {
    check_refused(RefuseCode::SeedHash, |join| join.seed_hash.0[0] ^= 1);
}

#[test]
fn a_proof_by_another_key_is_refused() {
    check_refused(RefuseCode::Proof, |join| join.key.0[0] ^= 1);
    check_refused(RefuseCode::Proof, |join| {
        join.proof = "no digits".to_owned()
    });
}

#[test]
fn a_proof_for_another_session_is_refused() {
    check_refused(RefuseCode::Proof, |join| join.session += 1);
}

#[test]
fn what_is_no_message_is_refused() {
    check_answer(RefuseCode::Malformed, |_| {
        Message::text("{\"type\":\"join\"")
    });
    check_answer(RefuseCode::Malformed, |_| {
        Message::text("{\"type\":\"obey\"}")
    });
    check_answer(RefuseCode::Malformed, |_| Message::binary(vec![0; 100]));
}

#[test]
fn a_message_beyond_the_limit_is_refused() {
    check_answer(RefuseCode::Malformed, |_| {
        let limit_bytes = RunConfig::preset("tiny").unwrap().signal_bytes_max();
        Message::text("x".repeat(limit_bytes + 1))
    });
}

#[test]
fn speaking_before_joining_is_refused() {
    check_answer(RefuseCode::Malformed, |_| {
        Message::text(signal::encode(&Up::Leave { may_return: false }))
    });
}
