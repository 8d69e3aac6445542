//! Opening a connection to one other volunteer, noticing its end, and opening it again.
//!
//! Owns the order of the steps (offer, answer, candidates, retry) and who takes them: the end with the
//! lower number always offers, so two offers never cross; the other end asks with
//! [`LinkSignal::Again`]. Every try has a generation, and what belongs to an older one is dropped.
//!
//! Knows neither WebRTC nor the host: steps go to a [`Transport`](crate::transport::Transport), signals go
//! out as values. A link counts as up once both ends have signed for both DTLS certificates,
//! so that whoever relays the signals can't stand in between.

use std::collections::VecDeque;

use ed25519_dalek::{Signer, SigningKey};

use super::pulse::Pulse;
use crate::limits::{CANDIDATES_EARLY_MAX, KEEPALIVE, LINK_OPEN_MAX, LINK_TRIES_MAX};
use crate::transport::{LinkEvent, LinkSignal, LinkStep};
use crate::units::{Digest, PeerId, Time};
use crate::wire::signal::{Suspicion, hello_message, verifies};

/// What a link wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkOutput {
    /// For the transport.
    Step(LinkStep),
    /// For the other end, through the host.
    Signal(LinkSignal),
    /// Send a `Hello` frame with this signature, on `control`.
    Hello(Vec<u8>),
    /// Send a `Keepalive` frame, on `control`.
    Keepalive,
    /// Send a `Bye` frame with this reason, on `control`.
    Bye(String),
    /// Frames may be sent from now on.
    Up {
        /// Whether packets go through a TURN server.
        relayed: bool,
    },
    /// Nothing gets through any more: why, for the host and in words.
    Lost(Suspicion, String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// Waiting for the other end: our offer is out, or we asked for one.
    Asking,
    /// Both descriptions are known; ICE and DTLS are at work.
    Opening,
    /// Channels are open; the other end's signature is missing.
    Greeting {
        local: String,
        remote: String,
        relayed: bool,
    },
    Up,
}

/// One end of a connection to one other volunteer.
#[derive(Clone, Debug)]
pub struct Link {
    me: PeerId,
    other: PeerId,
    key: Option<Digest>,
    generation: u32,
    state: State,
    tries: u32,
    try_ends: Option<Time>,
    /// A hello that came before our own channels reported themselves open.
    early_hello: Option<Vec<u8>>,
    early_candidates: Vec<(u32, String)>,
    described: bool,
    pulse: Pulse,
    next_keepalive: Time,
    outputs: VecDeque<LinkOutput>,
}

impl Link {
    /// A link that is not opened yet. `key` is the other end's public key, once it is known.
    pub fn new(me: PeerId, other: PeerId, key: Option<Digest>) -> Self {
        Self {
            me,
            other,
            key,
            generation: 0,
            state: State::Idle,
            tries: 0,
            try_ends: None,
            early_hello: None,
            early_candidates: Vec::new(),
            described: false,
            pulse: Pulse::default(),
            next_keepalive: Time::ZERO,
            outputs: VecDeque::new(),
        }
    }

    /// Whether frames may be sent.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Learns the other end's public key from the host.
    pub fn set_key(&mut self, key: Digest) {
        self.key = Some(key);
    }

    /// Opens the link unless it is up or being opened.
    pub fn want(&mut self, now: Time) {
        if self.state == State::Idle {
            self.tries = 0;
            self.begin_try(now);
        }
    }

    fn offers(&self) -> bool {
        self.me < self.other
    }

    fn begin_try(&mut self, now: Time) {
        self.tries += 1;
        self.try_ends = Some(now + LINK_OPEN_MAX);
        self.state = State::Asking;
        if self.offers() {
            self.generation += 1;
            self.forget_try();
            self.step(LinkStep::Offer {
                generation: self.generation,
            });
        } else {
            self.signal(LinkSignal::Again {
                generation: self.generation,
            });
        }
    }

    fn forget_try(&mut self) {
        self.described = false;
        self.early_hello = None;
        let generation = self.generation;
        self.early_candidates.retain(|(of, _)| *of >= generation);
    }

    fn step(&mut self, step: LinkStep) {
        self.outputs.push_back(LinkOutput::Step(step));
    }

    fn signal(&mut self, signal: LinkSignal) {
        self.outputs.push_back(LinkOutput::Signal(signal));
    }

    /// The other end said something, through the host.
    pub fn handle_signal(&mut self, now: Time, signal: LinkSignal) {
        match signal {
            LinkSignal::Again { generation } => {
                let asked_already = matches!(self.state, State::Asking | State::Opening)
                    && self.generation > generation;
                if self.offers() && !asked_already && generation <= self.generation {
                    self.lose_silently();
                    self.begin_try(now);
                }
            }
            LinkSignal::Offer { generation, sdp } => {
                if !self.offers() && generation > self.generation {
                    self.lose_silently();
                    self.generation = generation;
                    self.forget_try();
                    self.try_ends = Some(now + LINK_OPEN_MAX);
                    self.state = State::Opening;
                    self.step(LinkStep::Answer { generation, sdp });
                    self.describe();
                }
            }
            LinkSignal::Answer { generation, sdp } => {
                if self.offers() && generation == self.generation && self.state == State::Asking {
                    self.state = State::Opening;
                    self.step(LinkStep::Accept { generation, sdp });
                    self.describe();
                }
            }
            LinkSignal::Candidate {
                generation,
                candidate,
            } => {
                if generation == self.generation && self.described {
                    self.step(LinkStep::Candidate {
                        generation,
                        candidate,
                    });
                } else if generation >= self.generation
                    && self.early_candidates.len() < CANDIDATES_EARLY_MAX
                {
                    self.early_candidates.push((generation, candidate));
                }
            }
        }
    }

    /// The other end's description is set: its early candidates may follow.
    fn describe(&mut self) {
        self.described = true;
        let generation = self.generation;
        for (of, candidate) in std::mem::take(&mut self.early_candidates) {
            if of == generation {
                self.step(LinkStep::Candidate {
                    generation,
                    candidate,
                });
            }
        }
    }

    /// A new try replaces an open link: its owner must know that frames in flight are gone.
    fn lose_silently(&mut self) {
        if self.state == State::Up {
            let reason = "it is opened anew".to_owned();
            self.outputs
                .push_back(LinkOutput::Lost(Suspicion::Silent, reason));
        }
        self.state = State::Idle;
    }

    /// The transport reports. `identity` signs our hello.
    pub fn handle_event(&mut self, now: Time, event: LinkEvent, identity: &SigningKey) {
        match event {
            LinkEvent::Description { generation, sdp } if generation == self.generation => {
                self.signal(if self.offers() {
                    LinkSignal::Offer { generation, sdp }
                } else {
                    LinkSignal::Answer { generation, sdp }
                });
            }
            LinkEvent::Candidate {
                generation,
                candidate,
            } if generation == self.generation => {
                self.signal(LinkSignal::Candidate {
                    generation,
                    candidate,
                });
            }
            LinkEvent::Open {
                generation,
                local_fingerprint,
                remote_fingerprint,
                relayed,
            } if generation == self.generation && self.state == State::Opening => {
                let message =
                    hello_message(self.me, &local_fingerprint, self.other, &remote_fingerprint);
                let signature = identity.sign(&message).to_bytes().to_vec();
                self.outputs.push_back(LinkOutput::Hello(signature));
                self.state = State::Greeting {
                    local: local_fingerprint,
                    remote: remote_fingerprint,
                    relayed,
                };
                if let Some(signature) = self.early_hello.take() {
                    self.handle_hello(now, &signature);
                }
            }
            LinkEvent::Down { generation } if generation == self.generation => {
                self.lose(now, "the connection broke");
            }
            LinkEvent::Description { .. }
            | LinkEvent::Candidate { .. }
            | LinkEvent::Open { .. }
            | LinkEvent::Down { .. } => {}
        }
    }

    /// The other end's signature over both certificates.
    pub fn handle_hello(&mut self, now: Time, signature: &[u8]) {
        match &self.state {
            State::Greeting {
                local,
                remote,
                relayed,
            } => {
                let message = hello_message(self.other, remote, self.me, local);
                let relayed = *relayed;
                if self
                    .key
                    .is_some_and(|key| verifies(&key, &message, signature))
                {
                    self.state = State::Up;
                    self.tries = 0;
                    self.try_ends = None;
                    self.pulse = Pulse::beginning(now);
                    self.next_keepalive = now + KEEPALIVE;
                    self.outputs.push_back(LinkOutput::Up { relayed });
                } else {
                    self.refuse("the signature in `hello` does not fit key and certificates");
                }
            }
            State::Idle | State::Asking | State::Opening => {
                self.early_hello = Some(signature.to_vec());
            }
            State::Up => {}
        }
    }

    /// Anything at all arrived from the other end.
    pub fn heard(&mut self, now: Time) {
        self.pulse.beat(now);
    }

    /// The other end sent what no correct build sends: tells it what, and closes.
    pub fn refuse(&mut self, reason: &str) {
        self.outputs.push_back(LinkOutput::Bye(reason.to_owned()));
        self.give_up(
            Suspicion::Malformed,
            format!("it sent what no correct build sends: {reason}"),
        );
    }

    /// The other end closes the link, for a reason that it tells.
    pub fn handle_bye(&mut self, reason: &str) {
        let words: String = reason.chars().filter(|c| !c.is_control()).collect();
        self.give_up(Suspicion::Silent, format!("it closed the link: {words}"));
    }

    fn give_up(&mut self, suspicion: Suspicion, reason: String) {
        self.step(LinkStep::Close);
        self.try_ends = None;
        self.state = State::Idle;
        self.outputs.push_back(LinkOutput::Lost(suspicion, reason));
    }

    fn lose(&mut self, now: Time, reason: &str) {
        match self.state {
            State::Up => self.give_up(Suspicion::Silent, reason.to_owned()),
            State::Asking | State::Opening | State::Greeting { .. } => self.retry(now),
            State::Idle => {}
        }
    }

    fn retry(&mut self, now: Time) {
        if self.tries >= LINK_TRIES_MAX {
            let reason = format!("no connection could be opened in {LINK_TRIES_MAX} tries");
            self.give_up(Suspicion::Unreachable, reason);
        } else {
            self.begin_try(now);
        }
    }

    /// What to do next; `None` when there is nothing more.
    pub fn poll_output(&mut self) -> Option<LinkOutput> {
        self.outputs.pop_front()
    }

    /// When to call [`Link::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.is_up() {
            Some(self.next_keepalive.min(self.pulse.silent_at()))
        } else {
            self.try_ends
        }
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.is_up() {
            if now >= self.pulse.silent_at() {
                self.lose(now, "nothing was heard of it for too long");
            } else if now >= self.next_keepalive {
                self.next_keepalive = now + KEEPALIVE;
                self.outputs.push_back(LinkOutput::Keepalive);
            }
        } else if self.try_ends.is_some_and(|end| now >= end) {
            self.retry(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{SILENCE_MAX, SILENCE_MIN};
    use crate::units::Span;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn public(key: &SigningKey) -> Digest {
        Digest(key.verifying_key().to_bytes())
    }

    /// Two ends, joined by a network that answers each step at once.
    struct Pair {
        ends: [(Link, SigningKey); 2],
        log: Vec<String>,
        /// Whether the host in between shows each end its own certificates.
        intercepted: bool,
    }

    impl Pair {
        fn new() -> Self {
            let (low, high) = (key(1), key(2));
            Self {
                ends: [
                    (
                        Link::new(PeerId(1), PeerId(2), Some(public(&high))),
                        low.clone(),
                    ),
                    (
                        Link::new(PeerId(2), PeerId(1), Some(public(&low))),
                        high.clone(),
                    ),
                ],
                log: Vec::new(),
                intercepted: false,
            }
        }

        fn settle(&mut self, now: Time) {
            while let Some((side, output)) =
                (0..2).find_map(|side| Some((side, self.ends[side].0.poll_output()?)))
            {
                self.log.push(format!("{side} {}", name(&output)));
                self.carry_out(now, side, output);
            }
        }

        fn carry_out(&mut self, now: Time, side: usize, output: LinkOutput) {
            let intercepted = self.intercepted;
            let fingerprint = |of: usize| match intercepted {
                true => format!("AA:{}", 7 + side + of),
                false => format!("AA:{of}"),
            };
            let open = |generation| LinkEvent::Open {
                generation,
                local_fingerprint: fingerprint(side),
                remote_fingerprint: fingerprint(1 - side),
                relayed: false,
            };
            match output {
                LinkOutput::Step(LinkStep::Offer { generation }) => {
                    let sdp = "offer".to_owned();
                    self.event(now, side, LinkEvent::Description { generation, sdp });
                }
                LinkOutput::Step(LinkStep::Answer { generation, .. }) => {
                    let sdp = "answer".to_owned();
                    self.event(now, side, LinkEvent::Description { generation, sdp });
                    let open = open(generation);
                    self.event(now, side, open);
                }
                LinkOutput::Step(LinkStep::Accept { generation, .. }) => {
                    let open = open(generation);
                    self.event(now, side, open);
                }
                LinkOutput::Signal(signal) => self.ends[1 - side].0.handle_signal(now, signal),
                LinkOutput::Hello(signature) => {
                    self.ends[1 - side].0.handle_hello(now, &signature);
                }
                LinkOutput::Step(_)
                | LinkOutput::Keepalive
                | LinkOutput::Up { .. }
                | LinkOutput::Bye(_)
                | LinkOutput::Lost(..) => {}
            }
        }

        fn event(&mut self, now: Time, side: usize, event: LinkEvent) {
            let (link, identity) = &mut self.ends[side];
            link.handle_event(now, event, identity);
        }
    }

    fn name(output: &LinkOutput) -> &'static str {
        match output {
            LinkOutput::Step(LinkStep::Offer { .. }) => "makes an offer",
            LinkOutput::Step(LinkStep::Answer { .. }) => "makes an answer",
            LinkOutput::Step(LinkStep::Accept { .. }) => "takes the answer",
            LinkOutput::Step(LinkStep::Candidate { .. }) => "adds a candidate",
            LinkOutput::Step(LinkStep::Close) => "closes",
            LinkOutput::Signal(LinkSignal::Again { .. }) => "asks for an offer",
            LinkOutput::Signal(LinkSignal::Offer { .. }) => "sends the offer",
            LinkOutput::Signal(LinkSignal::Answer { .. }) => "sends the answer",
            LinkOutput::Signal(LinkSignal::Candidate { .. }) => "sends a candidate",
            LinkOutput::Hello(_) => "signs",
            LinkOutput::Keepalive => "keeps alive",
            LinkOutput::Up { .. } => "is up",
            LinkOutput::Bye(_) => "says good-bye",
            LinkOutput::Lost(..) => "is lost",
        }
    }

    #[test]
    fn both_ends_wanting_it_open_one_connection() {
        let mut pair = Pair::new();
        pair.ends[0].0.want(Time::ZERO);
        pair.ends[1].0.want(Time::ZERO);
        pair.settle(Time::ZERO);
        assert!(
            pair.ends.iter().all(|(link, _)| link.is_up()),
            "{:#?}",
            pair.log
        );
        expect_test::expect![[r#"
            0 makes an offer
            0 sends the offer
            1 asks for an offer
            1 makes an answer
            1 sends the answer
            0 takes the answer
            0 signs
            1 signs
            0 is up
            1 is up"#]]
        .assert_eq(&pair.log.join("\n"));
    }

    #[test]
    fn the_higher_end_alone_gets_its_link_by_asking() {
        let mut pair = Pair::new();
        pair.ends[1].0.want(Time::ZERO);
        pair.settle(Time::ZERO);
        assert!(
            pair.ends.iter().all(|(link, _)| link.is_up()),
            "{:#?}",
            pair.log
        );
    }

    #[test]
    fn someone_in_between_with_other_certificates_is_not_believed() {
        let mut pair = Pair::new();
        pair.intercepted = true;
        pair.ends[0].0.want(Time::ZERO);
        pair.settle(Time::ZERO);
        assert!(
            pair.ends.iter().all(|(link, _)| !link.is_up()),
            "{:#?}",
            pair.log
        );
    }

    #[test]
    fn an_end_that_never_answers_is_given_up_after_the_last_try() {
        let mut link = Link::new(PeerId(1), PeerId(2), None);
        let mut now = Time::ZERO;
        link.want(now);
        let mut lost = None;
        while let Some(at) = link.poll_timeout() {
            now = at;
            link.handle_timeout(now);
            while let Some(output) = link.poll_output() {
                if let LinkOutput::Lost(suspicion, _) = output {
                    lost = Some(suspicion);
                }
            }
        }
        assert_eq!(lost, Some(Suspicion::Unreachable));
        assert_eq!(
            now.since(Time::ZERO),
            LINK_OPEN_MAX.times(u64::from(LINK_TRIES_MAX))
        );
    }

    #[test]
    fn silence_is_noticed_within_its_bounds() {
        let mut pair = Pair::new();
        pair.ends[0].0.want(Time::ZERO);
        pair.settle(Time::ZERO);
        let link = &mut pair.ends[0].0;
        for second in 1..20 {
            link.heard(Time::ZERO + Span::from_secs(second));
        }
        let last = Time::ZERO + Span::from_secs(19);
        let silent_at = link.pulse.silent_at();
        assert!(silent_at >= last + SILENCE_MIN && silent_at <= last + SILENCE_MAX);
        link.handle_timeout(silent_at);
        assert!(!link.is_up());
    }
}
