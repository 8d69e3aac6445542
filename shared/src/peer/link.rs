//! Opening a connection to one other volunteer, noticing its end, and opening it again.
//!
//! Owns the order of the steps (offer, answer, candidates, retry, restart) and who takes them: the end with the
//! lower number always offers, so two offers never cross; the other end asks with [`LinkSignal::Again`] or
//! [`LinkSignal::Disturbed`]. Every try and every restart has a generation, and what belongs to an older one is
//! dropped. A link that breaks is first mended ([`restart`]: nothing is lost), then opened through a relay if
//! there is one, and at last given up.
//!
//! Knows neither WebRTC nor the host: steps go to a [`Transport`](crate::transport::Transport), signals go
//! out as values. A link counts as up once both ends have signed for both DTLS certificates,
//! so that whoever relays the signals can't stand in between.

mod restart;

use std::collections::VecDeque;

use ed25519_dalek::{Signer, SigningKey};

use super::meter::Meter;
use super::pulse::Pulse;
use crate::limits::{CANDIDATES_EARLY_MAX, KEEPALIVE, LINK_OPEN_MAX, LINK_TRIES_MAX};
use crate::transport::{LinkEvent, LinkSignal, LinkStep};
use crate::units::{Digest, PeerId, Time};
use crate::wire::frame::{Echo, Header};
use crate::wire::signal::{Suspicion, hello_message, verifies};
use restart::{Restarts, Trouble};

/// What a link wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkOutput {
    /// For the transport.
    Step(LinkStep),
    /// For the other end, through the host.
    Signal(LinkSignal),
    /// Send a `Hello` frame with this signature, on `control`.
    Hello(Vec<u8>),
    /// Send a `Keepalive` frame, on `control`: what [`Link::keepalive`] gives.
    Keepalive,
    /// Send a `Bye` frame with this reason, on `control`.
    Bye(String),
    /// Frames may be sent from now on; after [`LinkOutput::Disturbed`]: they get through again. Said once more when
    /// the path has changed.
    Up {
        /// Whether packets go through a TURN server.
        relayed: bool,
    },
    /// Nothing gets through for now: a restart is under way. Frames may be sent, and wait.
    Disturbed,
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
    /// Of the newest try or restart.
    generation: u32,
    /// The generation that the connection was opened with.
    connection: u32,
    state: State,
    tries: u32,
    try_ends: Option<Time>,
    /// Whether there are relays to try.
    relays: bool,
    /// Whether the next try goes through a relay, if there is one.
    relay_next: bool,
    /// Whether the open connection does.
    relayed: bool,
    /// The certificate that the other end signed for.
    certificate: Option<String>,
    /// Since nothing gets through the open connection.
    trouble: Option<Trouble>,
    restarts: Restarts,
    /// A hello that came before our own channels reported themselves open.
    early_hello: Option<Vec<u8>>,
    early_candidates: Vec<(u32, String)>,
    described: bool,
    pulse: Pulse,
    /// When it was last wanted, or anything came of the other end.
    used: Time,
    /// When the other end last asked us for a state.
    asked: Option<Time>,
    next_keepalive: Time,
    /// The other end's newest keepalive that is not answered: its stamp, and when it came.
    unanswered: Option<(u64, Time)>,
    /// What the open connection is like, on its present path.
    meter: Meter,
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
            connection: 0,
            state: State::Idle,
            tries: 0,
            try_ends: None,
            relays: false,
            relay_next: false,
            relayed: false,
            certificate: None,
            trouble: None,
            restarts: Restarts::default(),
            early_hello: None,
            early_candidates: Vec::new(),
            described: false,
            pulse: Pulse::default(),
            used: Time::ZERO,
            asked: None,
            next_keepalive: Time::ZERO,
            unanswered: None,
            meter: Meter::default(),
            outputs: VecDeque::new(),
        }
    }

    /// ... of which there was one before that is forgotten: tries are numbered on from that generation.
    #[must_use]
    pub fn after(mut self, generation: u32) -> Self {
        // Whoever does not offer takes the offerer's number.
        if self.offers() {
            self.generation = generation;
            self.connection = generation;
        }
        self
    }

    /// Of the newest try or restart.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether it is open or being opened.
    pub fn is_busy(&self) -> bool {
        self.state != State::Idle
    }

    /// When it was last wanted, or anything came of the other end.
    pub fn used(&self) -> Time {
        self.used
    }

    /// When the other end last asked us for a state.
    pub fn asked(&self) -> Option<Time> {
        self.asked
    }

    /// The other end asks us for a state.
    pub fn handle_asked(&mut self, now: Time) {
        self.asked = Some(now);
    }

    /// Whether frames may be sent, even if they have to wait for a restart.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Learns the other end's public key from the host.
    pub fn set_key(&mut self, key: Digest) {
        self.key = Some(key);
    }

    /// Learns whether there are TURN servers to go through where direct paths fail.
    pub fn set_relays(&mut self, relays: bool) {
        self.relays = relays;
    }

    /// Opens the link unless it is up or being opened.
    pub fn want(&mut self, now: Time) {
        self.used = now;
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
            self.connection = self.generation;
            self.forget_try();
            self.step(LinkStep::Offer {
                generation: self.generation,
                relay_only: self.relays && self.relay_next,
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
        self.used = now;
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
                    self.connection = generation;
                    self.forget_try();
                    self.try_ends = Some(now + LINK_OPEN_MAX);
                    self.state = State::Opening;
                    self.step(LinkStep::Answer { generation, sdp });
                    self.describe();
                }
            }
            LinkSignal::Answer { generation, sdp } => {
                if !self.offers() || generation != self.generation {
                    return;
                }
                if self.state == State::Asking {
                    self.state = State::Opening;
                    self.step(LinkStep::Accept { generation, sdp });
                    self.describe();
                } else if self.state == State::Up {
                    self.handle_restart_answer(sdp);
                }
            }
            LinkSignal::Disturbed { generation } => self.handle_disturbed(now, generation),
            LinkSignal::Restart {
                connection,
                generation,
                sdp,
            } => self.handle_restart(now, connection, generation, sdp),
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
        self.become_idle();
    }

    fn become_idle(&mut self) {
        self.state = State::Idle;
        self.trouble = None;
    }

    /// Whether a generation is one of the connection that is open or being opened.
    fn is_ours(&self, generation: u32) -> bool {
        (self.connection..=self.generation).contains(&generation)
    }

    /// The transport reports. `identity` signs our hello.
    pub fn handle_event(&mut self, now: Time, event: LinkEvent, identity: &SigningKey) {
        match event {
            LinkEvent::Description { generation, sdp } if generation == self.generation => {
                self.signal(if !self.offers() {
                    LinkSignal::Answer { generation, sdp }
                } else if generation == self.connection {
                    LinkSignal::Offer { generation, sdp }
                } else {
                    LinkSignal::Restart {
                        connection: self.connection,
                        generation,
                        sdp,
                    }
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
            LinkEvent::Disturbed { generation } if self.is_ours(generation) => self.disturbed(now),
            LinkEvent::Resumed {
                generation,
                relayed,
            } if generation == self.generation => self.resumed(now, relayed),
            // It may have ended before it learned of its restart.
            LinkEvent::Down { generation } if self.is_ours(generation) => {
                self.lose(now, "the connection broke");
            }
            LinkEvent::Description { .. }
            | LinkEvent::Candidate { .. }
            | LinkEvent::Open { .. }
            | LinkEvent::Disturbed { .. }
            | LinkEvent::Resumed { .. }
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
                let (relayed, remote) = (*relayed, remote.to_ascii_uppercase());
                if self
                    .key
                    .is_some_and(|key| verifies(&key, &message, signature))
                {
                    self.state = State::Up;
                    self.relayed = relayed;
                    self.certificate = Some(remote);
                    self.tries = 0;
                    self.try_ends = None;
                    self.pulse = Pulse::beginning(now);
                    self.next_keepalive = now + KEEPALIVE;
                    self.unanswered = None;
                    self.meter = Meter::default();
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
        self.used = now;
        self.pulse.beat(now);
        self.recover_if_heard(now);
    }

    /// The other end is there, and may answer our keepalive.
    pub fn handle_keepalive(&mut self, now: Time, stamp_us: u64, echo: Option<Echo>) {
        self.unanswered = Some((stamp_us, now));
        if let Some(Echo { stamp_us, held_us }) = echo
            && let Some(sent_us) = stamp_us.checked_add(held_us)
            && sent_us <= now.as_micros()
        {
            let took = now.since(Time::from_micros(sent_us));
            self.meter.round_trip(now, took);
        }
    }

    /// The keepalive to send now.
    pub fn keepalive(&mut self, now: Time) -> Header {
        let echo = self.unanswered.take().map(|(stamp_us, came)| Echo {
            stamp_us,
            held_us: now.since(came).as_micros(),
        });
        Header::Keepalive {
            stamp_us: now.as_micros(),
            echo,
        }
    }

    /// What the connection is like.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// What the connection is like, to be told what went over it.
    pub fn meter_mut(&mut self) -> &mut Meter {
        &mut self.meter
    }

    /// Whether packets of the open connection go through a TURN server.
    pub fn is_relayed(&self) -> bool {
        self.relayed
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
        self.become_idle();
        self.outputs.push_back(LinkOutput::Lost(suspicion, reason));
    }

    fn lose(&mut self, now: Time, reason: &str) {
        match self.state {
            State::Up => {
                // A path that no restart brought back is not tried first again.
                self.relay_next |= self.trouble.is_some();
                self.give_up(Suspicion::Silent, reason.to_owned());
            }
            State::Asking | State::Opening | State::Greeting { .. } => self.retry(now),
            State::Idle => {}
        }
    }

    fn retry(&mut self, now: Time) {
        self.relay_next = !self.relay_next;
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
            let noticed = self
                .trouble
                .map_or(self.pulse.silent_at(), |trouble| trouble.timeout());
            Some(self.next_keepalive.min(noticed))
        } else {
            self.try_ends
        }
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.is_up() {
            if self.trouble.is_none() && now >= self.pulse.silent_at() {
                // It has been silent for long enough not to wait any more.
                self.disturbed(now);
                self.ask(now);
            }
            self.trouble_timeout(now);
            if self.is_up() && now >= self.next_keepalive {
                self.next_keepalive = now + KEEPALIVE;
                self.outputs.push_back(LinkOutput::Keepalive);
            }
        } else if self.try_ends.is_some_and(|end| now >= end) {
            self.retry(now);
        }
    }
}

#[cfg(test)]
mod tests;
