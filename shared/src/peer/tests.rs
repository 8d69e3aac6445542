//! One volunteer alone: what it says to a host that a test plays.

use ed25519_dalek::{Signer, SigningKey};

use super::*;
use crate::limits::{FETCH_SILENCE_MAX, LINKS_MAX};
use crate::transport::{LinkEvent, LinkSignal};
use crate::units::{Issue, Span, StageRange};
use crate::wire::frame::{Header, VERSION};
use crate::wire::signal::{
    Down, Fetch, Neighbour, Source, VolunteerKind, Welcome, hello_message, join_message, verifies,
};

/// A volunteer, a clock, and a host that says what a test wants.
struct Alone {
    peer: Peer,
    now: Time,
    config: RunConfig,
    /// Of the newest line-up.
    epoch: u32,
}

/// The key of the volunteer with that number.
fn private(of: u64) -> SigningKey {
    let mut seed = [1; 32];
    seed[..8].copy_from_slice(&of.to_le_bytes());
    SigningKey::from_bytes(&seed)
}

fn public(of: u64) -> Digest {
    Digest(private(of).verifying_key().to_bytes())
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
            epoch: 0,
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

    /// Somebody signals, through the host.
    fn signal(&mut self, from: u64, signal: LinkSignal) {
        let (from, key) = (PeerId(from), public(from));
        self.say(Down::Signal { from, key, signal });
    }

    /// Somebody with a higher number than ours opens a link.
    fn link(&mut self, other: u64) {
        self.signal(other, LinkSignal::Again { generation: 0 });
        let generation = self.peer.links[&PeerId(other)].generation();
        let sdp = String::new();
        self.signal(other, LinkSignal::Answer { generation, sdp });
        let fingerprint = |of: u64| format!("AA:{of}");
        let (me, peer) = (self.peer.id().unwrap(), PeerId(other));
        let event = LinkEvent::Open {
            generation,
            local_fingerprint: fingerprint(me.0),
            remote_fingerprint: fingerprint(other),
            relayed: false,
        };
        self.peer.handle_link_event(self.now, peer, event);
        let message = hello_message(peer, &fingerprint(other), me, &fingerprint(me.0));
        let signature = private(other).sign(&message).to_bytes().to_vec();
        self.frame(other, Frame::from(Header::Hello { peer, signature }));
        assert!(self.peer.is_linked(peer));
    }

    fn frame(&mut self, from: u64, frame: Frame) {
        self.peer.handle_frame(self.now, PeerId(from), frame);
    }

    /// A seat of all stages or, between neighbours, of one.
    fn seat(&mut self, previous: Option<u64>, next: Option<u64>) -> Place {
        let neighbour = |other| Neighbour {
            peer: PeerId(other),
            key: public(other),
        };
        let last = u16::try_from(self.config.model.stages).unwrap();
        let first = u16::from(previous.is_some());
        let end = if next.is_some() { first + 1 } else { last };
        let stages = StageRange { first, end };
        let fetch = |stage| Fetch {
            held: Held {
                round: Round(0),
                stage,
                agreed: Digest::default(),
                blob: Digest::default(),
            },
            sources: vec![Source::Seed],
        };
        self.epoch += 1;
        let place = Place {
            pipeline: PipelineId(0),
            epoch: Issue {
                incarnation: 1,
                counter: self.epoch,
            },
            round: Round(0),
        };
        self.say(Down::Seat(Box::new(SeatOrder {
            place,
            stages,
            previous: previous.map(neighbour),
            next: next.map(neighbour),
            seats_behind: u16::from(next.is_some()),
            state: stages.iter().map(fetch).collect(),
            keys: Vec::new(),
        })));
        place
    }

    /// Orders a copy that somebody has.
    fn copy(&mut self, stage: u16, from: u64) {
        let peer = PeerId(from);
        let held = Held {
            round: Round(1),
            stage: StageId(stage),
            agreed: Digest::default(),
            blob: Digest([9; 32]),
        };
        let fetch = Fetch {
            held,
            sources: vec![Source::Peer(peer)],
        };
        let key = public(from);
        let keys = vec![Neighbour { peer, key }];
        self.say(Down::Copy { fetch, keys });
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

/// Asks for a piece of a stage's state in round 1.
fn state_request(offset: u64) -> Frame {
    let (round, stage) = (Round(1), StageId(0));
    Frame::from(Header::StateRequest {
        round,
        stage,
        offset,
    })
}

/// As many links as there may be, all to strangers.
fn full(alone: &mut Alone) {
    for stranger in 100.. {
        if alone.peer.links.len() == LINKS_MAX {
            return;
        }
        alone.signal(stranger, LinkSignal::Again { generation: 0 });
    }
}

#[test]
fn neighbours_and_sources_replace_links_of_no_use() {
    let mut alone = Alone::joined(1);
    alone.link(7);
    full(&mut alone);
    alone.outputs();
    alone.after(Span::from_micros(1));
    alone.signal(100, LinkSignal::Again { generation: 0 });
    alone.copy(0, 8);
    alone.seat(Some(9), Some(10));
    let is_linked = |alone: &Alone, peer| alone.peer.links.contains_key(&PeerId(peer));
    assert!([8, 9, 10].iter().all(|peer| is_linked(&alone, *peer)));
    assert_eq!(alone.peer.links.len(), LINKS_MAX);
    let outputs = alone.outputs();
    // Those that were not used for longest.
    for gone in [7, 101, 102] {
        assert!(outputs.contains(&Output::Link(PeerId(gone), LinkStep::Close)));
        assert!(!is_linked(&alone, gone));
    }
    let byes = outputs.iter().filter(|output| {
        let Output::Frame(to, frame) = output else {
            return false;
        };
        *to == PeerId(7) && frame.header.kind() == "bye"
    });
    assert_eq!(byes.count(), 1, "the link that was up");
    assert!(alone.peer.stats().links.is_empty(), "nor is it counted on");
}

#[test]
fn strangers_replace_no_link_that_is_of_use() {
    let mut alone = Alone::joined(1);
    alone.seat(Some(9), Some(10));
    alone.copy(0, 8);
    alone.link(7);
    full(&mut alone);
    alone.after(Span::from_secs(1));
    alone.frame(7, state_request(0));
    let stranger = |alone: &mut Alone, number| {
        alone.signal(number, LinkSignal::Again { generation: 0 });
        assert!(alone.peer.links.contains_key(&PeerId(number)), "{number}");
    };
    for number in 1_000..1_200 {
        stranger(&mut alone, number);
    }
    let linked = |alone: &Alone| [7, 8, 9, 10].map(|it| alone.peer.links.contains_key(&PeerId(it)));
    assert_eq!(linked(&alone), [true; 4]);
    assert_eq!(alone.peer.links.len(), LINKS_MAX);
    // Who has not asked for anything for a while takes nothing.
    alone.now = alone.now + FETCH_SILENCE_MAX;
    for number in 2_000..2_200 {
        stranger(&mut alone, number);
    }
    assert_eq!(linked(&alone), [false, true, true, true]);
}

#[test]
fn where_all_links_are_of_use_a_stranger_gets_none() {
    let mut alone = Alone::joined(1);
    alone.link(7);
    alone.frame(7, state_request(0));
    for (stage, source) in (0..).zip(200..263) {
        alone.copy(stage, source);
    }
    assert_eq!(alone.peer.links.len(), LINKS_MAX);
    let is_linked = |alone: &Alone, peer| alone.peer.links.contains_key(&PeerId(peer));
    alone.signal(100, LinkSignal::Again { generation: 0 });
    assert!(!is_linked(&alone, 100) && is_linked(&alone, 7));
    // A source goes before who takes from us, a neighbour before both.
    alone.copy(63, 263);
    assert!(is_linked(&alone, 263) && !is_linked(&alone, 7));
    alone.copy(64, 264);
    assert!(!is_linked(&alone, 264));
    alone.seat(Some(9), Some(10));
    assert!(is_linked(&alone, 9) && is_linked(&alone, 10));
    assert_eq!(alone.peer.links.len(), LINKS_MAX);
}

#[test]
fn a_link_that_made_room_is_offered_under_a_new_number() {
    let mut alone = Alone::joined(1);
    for _ in 0..3 {
        alone.link(7);
    }
    let before = alone.peer.links[&PeerId(7)].generation();
    full(&mut alone);
    alone.after(Span::from_micros(1));
    for number in 100..163 {
        alone.signal(number, LinkSignal::Again { generation: 0 });
    }
    alone.signal(99, LinkSignal::Again { generation: 0 });
    assert!(!alone.peer.links.contains_key(&PeerId(7)));
    alone.outputs();
    alone.seat(Some(7), None);
    let offered = alone.outputs().into_iter().find_map(|output| {
        let Output::Link(PeerId(7), LinkStep::Offer { generation, .. }) = output else {
            return None;
        };
        Some(generation)
    });
    assert!(offered.unwrap() > before, "{offered:?} after {before}");
}
