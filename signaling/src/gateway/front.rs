//! The gateway's end of its session with the host: asks for one, keeps it alive, and says when it is over.
//!
//! Speaks the grammar of state machines: `handle_*` something happened, [`Front::poll_output`] what to do,
//! [`Front::poll_timeout`] when to call back. A session that is over never comes back; the next one has another number.

use std::collections::VecDeque;

use shared::limits::{GATEWAY_OPEN_MAX, KEEPALIVE, SIGNAL_BYTES_MAX};
use shared::units::Time;
use shared::wire::gateway::{Fall, GatewayEvent, GatewayOrder, Rise};

use super::link::Link;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Ask the host for a session.
    Ask {
        /// Number of the question.
        attempt: u64,
    },
    /// Send this to the host.
    Send(Rise),
    /// A session is open: volunteers may come.
    Opened {
        /// Longest message of a volunteer that is read.
        signal_bytes_max: usize,
    },
    /// The host wants this of a socket.
    Order(GatewayOrder),
    /// The session is over: all sockets are to be closed.
    Over {
        /// Why.
        reason: String,
    },
    /// The host takes no events from this gateway.
    Refused {
        /// Why, and what to do.
        text: String,
    },
}

#[derive(Clone, Debug)]
enum State {
    Away {
        again: Time,
    },
    Asking {
        until: Time,
    },
    Open {
        session: u64,
        since: Time,
        link: Link,
    },
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Front {
    attempt: u64,
    state: State,
    outputs: VecDeque<Output>,
}

impl Front {
    /// A gateway without a session, which asks for one at once.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self {
            attempt: 0,
            state: State::Away { again: now },
            outputs: VecDeque::new(),
        }
    }

    /// The session that is open.
    #[must_use]
    pub fn session(&self) -> Option<u64> {
        match self.state {
            State::Open { session, .. } => Some(session),
            State::Away { .. } | State::Asking { .. } => None,
        }
    }

    /// Whether one more event may be said.
    #[must_use]
    pub fn has_room(&self) -> bool {
        match &self.state {
            State::Open { link, .. } => link.has_room(),
            State::Away { .. } | State::Asking { .. } => false,
        }
    }

    /// Tells the host what happened; without a session there is nobody to tell.
    pub fn say(&mut self, now: Time, event: GatewayEvent) {
        self.send(now, Some(event));
    }

    /// The gateway ends.
    pub fn end(&mut self, now: Time) {
        self.over(now, "the gateway ends".to_owned(), true);
    }

    /// Something came from the host.
    pub fn handle_fall(&mut self, now: Time, fall: Fall) {
        match fall {
            Fall::Opened {
                attempt,
                session,
                signal_bytes_max,
            } => {
                // One that comes late or twice was for a question that does not count any more.
                if !matches!(self.state, State::Asking { .. }) || attempt != self.attempt {
                    return;
                }
                if signal_bytes_max > SIGNAL_BYTES_MAX {
                    let text = format!(
                        "it reads messages of {signal_bytes_max} bytes, and no run needs more than {SIGNAL_BYTES_MAX}: run \
                         both from one release"
                    );
                    self.outputs.push_back(Output::Refused { text });
                } else {
                    let (since, link) = (now, Link::new(now));
                    self.state = State::Open {
                        session,
                        since,
                        link,
                    };
                    self.outputs.push_back(Output::Opened { signal_bytes_max });
                }
            }
            Fall::Refused { attempt, text } => {
                if matches!(self.state, State::Asking { .. }) && attempt == self.attempt {
                    self.outputs.push_back(Output::Refused { text });
                }
            }
            Fall::Packet {
                session,
                stamp,
                order,
            } => {
                let State::Open {
                    session: own, link, ..
                } = &mut self.state
                else {
                    self.outputs.push_back(Output::Send(Rise::Over { session }));
                    return;
                };
                if *own != session {
                    self.outputs.push_back(Output::Send(Rise::Over { session }));
                } else if let Err(error) = link.take(now, stamp) {
                    self.over(now, error.to_string(), true);
                } else {
                    self.outputs.extend(order.map(Output::Order));
                    self.speak_up(now);
                }
            }
            Fall::Over { session } => {
                if self.session() == Some(session) {
                    let reason = "the host knows nothing of this gateway any more";
                    self.over(now, reason.to_owned(), false);
                }
            }
        }
    }

    /// When to call [`Front::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        match &self.state {
            State::Away { again } => *again,
            State::Asking { until } => *until,
            State::Open { link, .. } => link.word_at().min(link.silent_at()),
        }
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Time) {
        match &self.state {
            State::Away { again: due } | State::Asking { until: due } => {
                if now >= *due {
                    self.attempt += 1;
                    self.state = State::Asking {
                        until: now + GATEWAY_OPEN_MAX,
                    };
                    let attempt = self.attempt;
                    self.outputs.push_back(Output::Ask { attempt });
                }
            }
            State::Open { link, .. } => match link.check(now) {
                Ok(()) => self.speak_up(now),
                Err(error) => self.over(now, error.to_string(), true),
            },
        }
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn speak_up(&mut self, now: Time) {
        if let State::Open { link, .. } = &self.state
            && link.owes_word(now)
        {
            self.send(now, None);
        }
    }

    fn send(&mut self, now: Time, event: Option<GatewayEvent>) {
        if let State::Open { session, link, .. } = &mut self.state {
            let packet = Rise::Packet {
                session: *session,
                stamp: link.stamp(now),
                event,
            };
            self.outputs.push_back(Output::Send(packet));
        }
    }

    /// Ends the session, if there is one. The next question follows at once, unless this one was over before it began.
    fn over(&mut self, now: Time, reason: String, tell: bool) {
        let State::Open { session, since, .. } = self.state else {
            return;
        };
        let is_short = now < since + KEEPALIVE;
        self.state = State::Away {
            again: if is_short { now + KEEPALIVE } else { now },
        };
        // First what is done here: saying it may take its time.
        self.outputs.push_back(Output::Over { reason });
        if tell {
            self.outputs.push_back(Output::Send(Rise::Over { session }));
        }
    }
}
