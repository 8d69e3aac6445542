//! One volunteer alone: what it says to a host that a test plays.

mod closing;
mod greed;
mod links;

#[cfg(feature = "sim")]
mod merging;

use ed25519_dalek::{Signer, SigningKey};

use super::*;
use crate::compute::Snapshot;
use crate::limits::FINISH_AWAY_MAX;
use crate::transport::{LinkEvent, LinkSignal};
use crate::units::{Issue, Span, StageRange, Step};
use crate::wire::frame::{Header, Slot, VERSION};
use crate::wire::signal::{
    Down, Fetch, Lease, Neighbour, Source, Speed, Suspicion, VolunteerKind, Welcome, hello_message,
    join_message, verifies,
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

/// What comes of a job at the only seat of a pipeline.
fn done(job: Job) -> Done {
    match job {
        Job::Seat { stages, .. } => seated(stages),
        Job::Forward { slot, .. } => Done::Forward {
            slot,
            boundary: None,
            loss_sum: None,
        },
        Job::Backward {
            slot, step_tokens, ..
        } => Done::Backward {
            slot,
            gradient: None,
            loss_sum: Some(1.0),
            norm_squared: step_tokens.map(|_| 1.0),
        },
        Job::Apply { step, .. } => Done::Applied { step },
        Job::Snapshot { round } => Done::Snapshot {
            round,
            stages: vec![Snapshot {
                stage: StageId(0),
                agreed: Digest::default(),
                blob: Bytes::from_static(b"weights"),
                gradient: Bytes::new(),
            }],
        },
        Job::Generate(portion) => Done::Generated {
            request: portion.request,
            written: crate::compute::Written::Token(portion.drawn),
        },
        Job::Forget { request } => Done::Forgotten { request },
        Job::Contribute { .. }
        | Job::Average { .. }
        | Job::OuterStep { .. }
        | Job::Norm { .. }
        | Job::GradientStep { .. } => {
            panic!("nobody is here to merge with")
        }
    }
}

/// A compute has taken those stages.
fn seated(stages: StageRange) -> Done {
    let agreed = vec![Digest::default(); stages.count()];
    Done::Seated { agreed }
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
                speed: Speed::default(),
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
        self.peer
            .handle_prepared(self.now, seed_hash, Speed::of(1_000));
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
            sources: vec![Source::Peer {
                peer,
                blob: held.blob,
            }],
        };
        let key = public(from);
        let keys = vec![Neighbour { peer, key }];
        self.say(Down::Copy { fetch, keys });
    }

    /// A seat between two neighbours, 9 and 10, that has begun its round; and the microbatches it takes.
    fn at_work() -> (Self, Place, u64) {
        let mut alone = Self::joined(1);
        alone.link(9);
        alone.link(10);
        let place = alone.seat(Some(9), Some(10));
        alone.outputs();
        let stages = StageRange { first: 1, end: 2 };
        alone.peer.handle_done(alone.now, seated(stages));
        alone.begin(place, 1);
        let granted = alone.outputs().into_iter().find_map(|output| {
            let Output::Frame(PeerId(9), frame) = output else {
                return None;
            };
            let Header::Credit { granted, .. } = frame.header else {
                return None;
            };
            Some(granted)
        });
        (alone, place, granted.unwrap())
    }

    fn begin(&mut self, place: Place, attempt: u32) {
        self.say(Down::Begin {
            place,
            mode: Mode::Train,
            attempt: Issue {
                incarnation: 1,
                counter: attempt,
            },
            result: place.round.next(),
            samples_done: 0,
        });
    }

    fn forward(&self, slot: Slot) -> Frame {
        let header = Header::Forward {
            slot,
            mode: Mode::Train,
            microbatches: self.config.training.microbatches,
            sequences: self.config.microbatch_sequences(),
            first_sample: 0,
            previous: None,
        };
        let payload = vec![0; self.config.forward_payload_bytes()].into();
        Frame { header, payload }
    }

    fn backward(&self, slot: Slot) -> Frame {
        let header = Header::Backward {
            slot,
            mode: Mode::Train,
            loss_sum: 1.0,
            norm_squared: None,
        };
        let payload = vec![0; self.config.boundary_bytes()].into();
        Frame { header, payload }
    }

    /// Whether a link was refused since this was asked last, and whose.
    fn refused(&mut self) -> Vec<u64> {
        let suspect = |up| {
            let Up::Suspect {
                peer, suspicion, ..
            } = up
            else {
                return None;
            };
            (suspicion == Suspicion::Malformed).then_some(peer.0)
        };
        self.ups().into_iter().filter_map(suspect).collect()
    }

    /// Computes what there is to compute, without any mathematics; what the host hears meanwhile.
    fn compute(&mut self) -> Vec<Up> {
        self.compute_while(|_, _| ())
    }

    /// The same; `meanwhile` is called while each job is under way.
    fn compute_while(&mut self, mut meanwhile: impl FnMut(&mut Self, &Job)) -> Vec<Up> {
        let mut heard = Vec::new();
        while let Some(output) = self.peer.poll_output() {
            if let Output::Tokens { mode, samples } = output {
                let row = self.config.model.context + 1;
                let tokens = vec![0; samples.count as usize * row];
                self.peer.handle_tokens(self.now, mode, samples, &tokens);
            } else if let Output::Compute(job) = output {
                meanwhile(self, &job);
                self.peer.handle_done(self.now, done(job));
            } else if let Output::Host(up) = output {
                heard.push(up);
            }
        }
        heard
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

/// Asks for a piece of a stage's state in round 1.
fn state_request(offset: u64) -> Frame {
    let (round, stage) = (Round(1), StageId(0));
    Frame::from(Header::StateRequest {
        round,
        stage,
        offset,
    })
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
    assert_eq!(alone.peer.stats().reason, "", "it had nothing to lose");
    alone.open(2);
    assert_eq!(alone.ups(), Vec::new());
    alone.prepared();
    let ups = alone.ups();
    let [Up::Join(join)] = &ups[..] else {
        panic!("{ups:?}");
    };
    let message = join_message(&Digest([2; 32]), join.session);
    let proof = hex::decode(&join.proof).unwrap();
    assert!(verifies(&join.key, &message, &proof), "the newest nonce");
}

/// A volunteer that was let in, whose host then went away.
fn without_host() -> Alone {
    let mut alone = Alone::joined(1);
    alone.after(Span::from_secs(100));
    alone.peer.handle_host_closed(alone.now);
    alone.outputs();
    alone
}

fn exit(alone: &mut Alone) -> Option<Exit> {
    alone.outputs().into_iter().find_map(|output| {
        let Output::Exit(exit) = output else {
            return None;
        };
        Some(exit)
    })
}

#[test]
fn who_finishes_waits_so_long_for_a_host_that_is_away() {
    let mut alone = without_host();
    alone.after(Span::from_secs(3_600));
    assert_eq!(exit(&mut alone), None, "nobody asked it to leave");
    alone.peer.finish(alone.now);
    let due = alone.now + FINISH_AWAY_MAX;
    assert!(alone.peer.poll_timeout().unwrap() <= due);
    alone.after(Span::from_micros(FINISH_AWAY_MAX.as_micros() - 1));
    assert_eq!(exit(&mut alone), None);
    alone.after(Span::from_micros(1));
    assert_eq!(exit(&mut alone), Some(Exit::HostAway));
}

#[test]
fn who_finishes_leaves_by_the_host_if_that_is_back_in_time() {
    let mut alone = without_host();
    alone.peer.finish(alone.now);
    alone.after(Span::from_secs(29));
    alone.open(2);
    alone.welcome(1, true);
    alone.after(Span::from_secs(60));
    assert!(alone.ups().contains(&Up::Finish));
    // It goes away again: the wait begins anew.
    alone.peer.handle_host_closed(alone.now);
    alone.after(Span::from_secs(29));
    assert_eq!(exit(&mut alone), None);
    alone.open(3);
    alone.welcome(1, true);
    alone.say(Down::Released);
    assert_eq!(exit(&mut alone), Some(Exit::Finished));
}

#[test]
fn a_result_is_said_again_under_a_newer_attempt_and_not_under_an_older_one() {
    let mut alone = Alone::joined(1);
    let place = alone.seat(None, None);
    alone.compute();
    alone.begin(place, 2);
    let samples = SampleRange {
        first: 0,
        count: alone.config.training.batch,
    };
    alone.say(Down::Lease(Lease {
        place,
        step: Step(0),
        samples,
        last: true,
    }));
    let holds = |alone: &mut Alone| {
        let holds = |up| {
            let Up::Holds(holds) = up else { return None };
            Some(holds)
        };
        let said: Vec<_> = alone.compute().into_iter().filter_map(holds).collect();
        said
    };
    let first = holds(&mut alone);
    assert_eq!(first.len(), 1, "{first:?}");
    for older in [1, 2] {
        alone.begin(place, older);
        assert_eq!(holds(&mut alone), Vec::new());
    }
    alone.begin(place, 3);
    let mut expected = first;
    expected[0].attempt.counter = 3;
    assert_eq!(holds(&mut alone), expected);
    // Only the newest can be committed.
    for (attempt, ours) in [(2, false), (3, true)] {
        alone.say(Down::Commit {
            round: place.round.next(),
            place,
            attempt: Issue {
                incarnation: 1,
                counter: attempt,
            },
            stages: expected[0].stages.clone(),
        });
        let is_ours = alone.outputs().iter().any(|output| {
            let commit = Event::Commit {
                round: place.round.next(),
                ours: true,
            };
            *output == Output::Event(commit)
        });
        assert_eq!(is_ours, ours, "attempt {attempt}");
    }
}
