//! The host's end of its session with one gateway: gives it one, keeps it alive, and says when it is over.
//!
//! Speaks the grammar of state machines, as [`front`](super::front) does. The number of a session is drawn anew for each,
//! so that packets of a session that is over, of this host or of one before it, are known for what they are.

use std::collections::VecDeque;

use shared::limits::{GATEWAY_PACKET_BYTES, GATEWAY_SILENCE_MAX};
use shared::units::Time;
use shared::wire::frame::VERSION;
use shared::wire::gateway::{Fall, GatewayEvent, GatewayOrder, Rise};

use super::link::Link;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send this to the gateway.
    Send(Fall),
    /// This happened at one of the gateway's sockets.
    Event(GatewayEvent),
    /// The session is over: all its connections are closed.
    Over {
        /// Why.
        reason: String,
    },
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Back {
    signal_bytes_max: usize,
    open: Option<(u64, Link)>,
    /// When a gateway without a session said something last.
    heard: Time,
    outputs: VecDeque<Output>,
}

/// The longest packet of a run whose messages have so many bytes.
#[must_use]
pub fn packet_bytes(signal_bytes_max: usize) -> usize {
    signal_bytes_max + GATEWAY_PACKET_BYTES
}

impl Back {
    /// A gateway that was just heard of, at a host that reads messages of so many bytes.
    #[must_use]
    pub fn new(now: Time, signal_bytes_max: usize) -> Self {
        Self {
            signal_bytes_max,
            open: None,
            heard: now,
            outputs: VecDeque::new(),
        }
    }

    /// The session that is open.
    #[must_use]
    pub fn session(&self) -> Option<u64> {
        self.open.as_ref().map(|(session, _)| *session)
    }

    /// Whether one more order may be said; without a session it goes nowhere.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.open.as_ref().is_none_or(|(_, link)| link.has_room())
    }

    /// Whether the gateway is forgotten: it has no session and is quiet.
    #[must_use]
    pub fn is_gone(&self, now: Time) -> bool {
        self.open.is_none() && now >= self.heard + GATEWAY_SILENCE_MAX
    }

    /// Tells the gateway what to do with a socket.
    pub fn say(&mut self, now: Time, order: GatewayOrder) {
        self.send(now, Some(order));
    }

    /// The session can't go on.
    pub fn end(&mut self, now: Time, reason: String) {
        self.over(now, reason, true);
    }

    /// Something came from the gateway; `fresh` is a number that was just drawn, and the host's own NATS server carries
    /// packets of `carried` bytes.
    pub fn handle_rise(&mut self, now: Time, rise: Rise, fresh: u64, carried: usize) {
        self.heard = now;
        match rise {
            Rise::Open {
                attempt,
                version,
                packet_bytes_max,
            } => {
                self.over(now, "the gateway asked for a new one".to_owned(), false);
                let fall = match self.refusal(version, packet_bytes_max, carried) {
                    Some(text) => Fall::Refused { attempt, text },
                    None => {
                        self.open = Some((fresh, Link::new(now)));
                        Fall::Opened {
                            attempt,
                            session: fresh,
                            signal_bytes_max: self.signal_bytes_max,
                        }
                    }
                };
                self.outputs.push_back(Output::Send(fall));
            }
            Rise::Packet {
                session,
                stamp,
                event,
            } => match &mut self.open {
                Some((own, link)) if *own == session => {
                    if let Err(error) = link.take(now, stamp) {
                        self.over(now, error.to_string(), true);
                    } else {
                        self.outputs.extend(event.map(Output::Event));
                        self.speak_up(now);
                    }
                }
                Some(_) | None => self.outputs.push_back(Output::Send(Fall::Over { session })),
            },
            Rise::Over { session } => {
                if self.session() == Some(session) {
                    self.over(now, "the gateway says so".to_owned(), false);
                }
            }
        }
    }

    /// When to call [`Back::handle_timeout`]; `all_read` says whether everything that came was taken.
    #[must_use]
    pub fn poll_timeout(&self, all_read: bool) -> Time {
        match &self.open {
            None => self.heard + GATEWAY_SILENCE_MAX,
            Some((_, link)) if all_read => link.word_at().min(link.silent_at()),
            Some((_, link)) => link.word_at(),
        }
    }

    /// Time has come. Nobody is taken for dead whose packets were not all read.
    pub fn handle_timeout(&mut self, now: Time, all_read: bool) {
        let Some((_, link)) = &self.open else { return };
        match link.check(now) {
            Err(error) if all_read => self.over(now, error.to_string(), true),
            Ok(()) | Err(_) => self.speak_up(now),
        }
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn refusal(&self, version: u8, packet_bytes_max: usize, carried: usize) -> Option<String> {
        let needed = packet_bytes(self.signal_bytes_max);
        let short = |whose: &str, bytes: usize| {
            Some(format!(
                "the {whose}'s NATS server takes messages of {bytes} bytes at most, and this run needs {needed}: set \
                 max_payload: {needed} in its configuration"
            ))
        };
        if version != VERSION {
            Some(format!(
                "the gateway speaks wire version {version}, the host {VERSION}: run both from one release"
            ))
        } else if packet_bytes_max < needed {
            short("gateway", packet_bytes_max)
        } else if carried < needed {
            short("host", carried)
        } else {
            None
        }
    }

    fn speak_up(&mut self, now: Time) {
        if self
            .open
            .as_ref()
            .is_some_and(|(_, link)| link.owes_word(now))
        {
            self.send(now, None);
        }
    }

    fn send(&mut self, now: Time, order: Option<GatewayOrder>) {
        if let Some((session, link)) = &mut self.open {
            let packet = Fall::Packet {
                session: *session,
                stamp: link.stamp(now),
                order,
            };
            self.outputs.push_back(Output::Send(packet));
        }
    }

    fn over(&mut self, now: Time, reason: String, tell: bool) {
        let Some((session, _)) = self.open.take() else {
            return;
        };
        self.heard = now;
        // First what is done here: saying it may take its time.
        self.outputs.push_back(Output::Over { reason });
        if tell {
            self.outputs.push_back(Output::Send(Fall::Over { session }));
        }
    }
}
