//! One volunteer alone: what it says to a host that a test plays.

use ed25519_dalek::SigningKey;

use super::*;
use crate::units::Span;
use crate::wire::frame::VERSION;
use crate::wire::signal::{Down, VolunteerKind, Welcome, join_message, verifies};

/// A volunteer, a clock, and a host that says what a test wants.
struct Alone {
    peer: Peer,
    now: Time,
    config: RunConfig,
}

impl Alone {
    /// A volunteer whose process has just started.
    fn new() -> Self {
        let identity = Identity {
            key: SigningKey::from_bytes(&[7; 32]),
            session: 1,
            name: "somebody".to_owned(),
            capabilities: Capabilities {
                kind: VolunteerKind::Native,
                device: "none".to_owned(),
                memory_bytes: 1 << 30,
                block_us: 0,
                throttle_percent: 100,
                relay_only: false,
                hidden: false,
            },
        };
        Self {
            peer: Peer::new(identity),
            now: Time::ZERO,
            config: RunConfig::preset("tiny").unwrap(),
        }
    }

    /// ... that was let in under that number.
    fn joined(me: u64) -> Self {
        let mut alone = Self::new();
        alone.open(1);
        alone.prepared();
        alone.welcome(me, false);
        alone.outputs();
        alone
    }

    fn say(&mut self, message: Down) {
        self.peer.handle_host(self.now, message);
    }

    /// The connection opens, and the host greets with that nonce.
    fn open(&mut self, nonce: u8) {
        self.peer.handle_host_open();
        self.hello(nonce);
    }

    fn hello(&mut self, nonce: u8) {
        self.say(Down::Hello {
            version: VERSION,
            nonce: Digest([nonce; 32]),
            config: Box::new(self.config.clone()),
        });
    }

    fn prepared(&mut self) {
        let seed_hash = Digest::default();
        self.peer.handle_prepared(self.now, seed_hash, 1_000);
    }

    fn welcome(&mut self, me: u64, resumed: bool) {
        let welcome = Welcome {
            peer: PeerId(me),
            config: self.config.clone(),
            data: DataInfo {
                digest: Digest::default(),
                train_tokens: 1 << 20,
                validation_tokens: 1 << 10,
            },
            ice_servers: Vec::new(),
            round: Round(0),
            resumed,
        };
        self.say(Down::Welcome(Box::new(welcome)));
    }

    fn after(&mut self, span: Span) {
        self.now = self.now + span;
        self.peer.handle_timeout(self.now);
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.peer.poll_output()).collect()
    }

    /// What the host hears.
    fn ups(&mut self) -> Vec<Up> {
        let to_host = |output| {
            let Output::Host(up) = output else {
                return None;
            };
            Some(up)
        };
        self.outputs().into_iter().filter_map(to_host).collect()
    }
}

#[test]
fn before_join_a_host_hears_nothing_at_all() {
    let mut alone = Alone::joined(5);
    alone.peer.handle_host_closed(alone.now);
    alone.peer.handle_host_open();
    alone.peer.pause(Pause::Battery);
    alone.peer.throttle(alone.now, 50);
    alone.peer.finish(alone.now);
    alone.after(Span::from_secs(20));
    assert_eq!(alone.ups(), Vec::new());
    alone.hello(2);
    let ups = alone.ups();
    let [Up::Join(join)] = &ups[..] else {
        panic!("{ups:?}");
    };
    assert_eq!(join.paused, Some(Pause::Battery));
    assert_eq!(join.capabilities.throttle_percent, 50);
    alone.welcome(5, true);
    assert_eq!(alone.ups(), vec![Up::Finish]);
}

#[test]
fn what_a_person_wants_between_join_and_welcome_reaches_the_host() {
    let mut alone = Alone::new();
    alone.open(1);
    alone.prepared();
    alone.outputs();
    alone.peer.pause(Pause::Asked);
    let ups = alone.ups();
    assert!(
        matches!(
            &ups[..],
            [Up::Update {
                paused: Some(Pause::Asked),
                ..
            }]
        ),
        "{ups:?}"
    );
}

#[test]
fn a_connection_that_breaks_while_the_model_is_prepared_costs_nothing() {
    let mut alone = Alone::new();
    alone.open(1);
    alone.peer.handle_host_closed(alone.now);
    alone.open(2);
    assert_eq!(alone.ups(), Vec::new());
    alone.prepared();
    let ups = alone.ups();
    let [Up::Join(join)] = &ups[..] else {
        panic!("{ups:?}");
    };
    let message = join_message(&Digest([2; 32]), join.session);
    let proof: Vec<u8> = (0..64)
        .map(|at| u8::from_str_radix(&join.proof[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    assert!(verifies(&join.key, &message, &proof), "the newest nonce");
}
