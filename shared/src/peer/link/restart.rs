//! A link that is up and lets nothing through: restarting ICE on it before it is given up.
//!
//! Whoever notices (the transport by ICE, or the link by silence) asks for a restart through the host, unless the
//! path comes back by itself within [`RESTART_GRACE`]. An answer
//! from there shows that the other end lives, so that the path between the two is at fault; no answer within
//! [`RESTART_ANSWER_MAX`] means that the other end is gone. A path that is not back within [`RESTART_MAX`] is
//! given up, and the next connection is tried through a relay.
//!
//! Invariant: a restart never changes who is at the other end: its description names the certificate that
//! both ends signed for.

use super::{Link, LinkOutput, State};
use crate::limits::{RESTART_ANSWER_MAX, RESTART_CALM, RESTART_GRACE, RESTART_MAX, RESTARTS_MAX};
use crate::peer::meter::Meter;
use crate::transport::{LinkSignal, LinkStep, certificate};
use crate::units::Time;

/// What is known since nothing got through any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    since: Time,
    /// When a restart was asked for or begun; `None` while it may come back by itself.
    asked: Option<Time>,
    /// Whether the other end has spoken since, through the host.
    answered: bool,
    /// Whether both descriptions of a restart are known: what is heard from here on came over a working path.
    described: bool,
}

impl Trouble {
    /// When to ask for a restart, or to give up.
    pub(super) fn timeout(&self) -> Time {
        match self.asked {
            None => self.since + RESTART_GRACE,
            Some(asked) if self.answered => asked + RESTART_MAX,
            Some(asked) => asked + RESTART_ANSWER_MAX,
        }
    }
}

/// How often a link was restarted of late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Restarts {
    count: u32,
    last: Time,
}

impl Restarts {
    /// Counts one; `false` when it would be one too many.
    fn admit(&mut self, now: Time) -> bool {
        if self.count > 0 && now.since(self.last) >= RESTART_CALM {
            self.count = 0;
        }
        self.last = now;
        self.count += 1;
        self.count <= RESTARTS_MAX
    }
}

impl Link {
    /// Nothing gets through any more.
    pub(super) fn disturbed(&mut self, now: Time) {
        if self.state != State::Up || self.trouble.is_some() {
            return;
        }
        self.trouble = Some(Trouble {
            since: now,
            asked: None,
            answered: false,
            described: false,
        });
        self.outputs.push_back(LinkOutput::Disturbed);
    }

    /// Time has come for a link in trouble.
    pub(super) fn trouble_timeout(&mut self, now: Time) {
        match self.trouble {
            Some(trouble) if now < trouble.timeout() => {}
            Some(Trouble { asked: None, .. }) => self.ask(now),
            Some(Trouble {
                answered: false, ..
            }) => {
                self.lose(
                    now,
                    "nothing is heard of it, neither directly nor through the host",
                );
            }
            Some(_) => self.lose(now, "no path leads there any more, though it lives"),
            None => {}
        }
    }

    /// Asks for a restart, or begins one, unless that was done.
    pub(super) fn ask(&mut self, now: Time) {
        let Some(trouble) = self.trouble.as_mut().filter(|one| one.asked.is_none()) else {
            return;
        };
        trouble.asked = Some(now);
        if !self.restarts.admit(now) {
            return self.lose(now, "its path breaks again and again");
        }
        if self.offers() {
            self.generation += 1;
            self.forget_try();
            self.step(LinkStep::Restart {
                generation: self.generation,
            });
        } else {
            self.signal(LinkSignal::Disturbed {
                generation: self.generation,
            });
        }
    }

    /// The other end says that nothing gets through.
    pub(super) fn handle_disturbed(&mut self, now: Time, generation: u32) {
        if !self.offers() || generation > self.generation {
            return;
        }
        match self.state {
            State::Up if self.is_ours(generation) => {
                // An older one crossed our restart.
                if generation == self.generation {
                    self.disturbed(now);
                    self.ask(now);
                }
                if let Some(trouble) = &mut self.trouble {
                    trouble.answered = true;
                }
            }
            // What it wants mended is gone here.
            State::Idle => self.want(now),
            State::Up | State::Asking | State::Opening | State::Greeting { .. } => {}
        }
    }

    /// The other end restarts ICE.
    pub(super) fn handle_restart(
        &mut self,
        now: Time,
        connection: u32,
        generation: u32,
        sdp: String,
    ) {
        if self.offers() || generation <= self.generation {
            return;
        }
        if self.state != State::Up || connection != self.connection {
            // What it wants mended is gone here.
            if self.state == State::Idle {
                self.signal(LinkSignal::Again { generation });
            }
            return;
        }
        if !self.names_the_other(&sdp) {
            return self.refuse("another certificate in a restart");
        }
        let since = self.trouble.map_or(now, |trouble| trouble.since);
        let asked = self.trouble.and_then(|trouble| trouble.asked);
        self.trouble = Some(Trouble {
            since,
            asked: asked.or(Some(now)),
            answered: true,
            described: true,
        });
        self.generation = generation;
        self.forget_try();
        self.step(LinkStep::AnswerRestart { generation, sdp });
        self.describe();
    }

    /// The other end answers a restart.
    pub(super) fn handle_restart_answer(&mut self, sdp: String) {
        let waits = self.trouble.is_some_and(|trouble| !trouble.described);
        if self.generation == self.connection || !waits {
            return;
        }
        if !self.names_the_other(&sdp) {
            return self.refuse("another certificate in a restart");
        }
        if let Some(trouble) = &mut self.trouble {
            (trouble.answered, trouble.described) = (true, true);
        }
        self.step(LinkStep::Accept {
            generation: self.generation,
            sdp,
        });
        self.describe();
    }

    /// Whether a description names the certificate that the other end signed for.
    fn names_the_other(&self, sdp: &str) -> bool {
        let named = certificate(sdp);
        named.is_some() && named == self.certificate
    }

    /// ICE has a path again, or another one.
    pub(super) fn resumed(&mut self, now: Time, relayed: bool) {
        if self.state != State::Up {
            return;
        }
        let moved = self.relayed != relayed;
        self.relayed = relayed;
        if moved {
            self.meter = Meter::default();
        }
        if self.trouble.is_some() {
            self.recover(now);
        } else if moved {
            self.outputs.push_back(LinkOutput::Up { relayed });
        }
    }

    /// Anything that is heard before a restart, or once both ends know of it, came over a path that works.
    pub(super) fn recover_if_heard(&mut self, now: Time) {
        if self
            .trouble
            .is_some_and(|trouble| trouble.described || trouble.asked.is_none())
        {
            self.recover(now);
        }
    }

    fn recover(&mut self, now: Time) {
        self.trouble = None;
        self.pulse.resume(now);
        let relayed = self.relayed;
        self.outputs.push_back(LinkOutput::Up { relayed });
    }
}
