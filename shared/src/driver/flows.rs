//! Further connections of one link, where its first one carries less than the line would.
//!
//! SCTP takes a lost packet for congestion. At a loss of `p` a connection carries about `MSS / RTT * sqrt(3 / 2p)` (Mathis and
//! others, "The macroscopic behavior of the TCP congestion avoidance algorithm", 1997), which is 7 Mbit/s at 50 ms and 0.1 %
//! whatever the line; several carry several times that. [`demand`] says when to open more. They carry `tensors`, whose messages
//! come in any order, each as much as its own [window](super::window) admits, and on their `control` words of what arrived.
//! They are opened over the link's own `control`: both ends have signed for that, so the certificate in a description is the
//! other end's own, and the host has no part in it.
//!
//! One that is open is not closed before its link is, so that nothing on its way by it is lost. One whose path breaks is
//! restarted, as the link itself; one that does not come back takes the link with it if something was on its way.
//!
//! Invariant: an offer, an answer or a candidate of an older generation changes nothing.

mod demand;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::limits::{
    CANDIDATES_EARLY_MAX, FLOW_RESTART_MAX, FLOWS_MAX, LINK_OPEN_MAX, RESTART_GRACE,
};
use crate::transport::{FlowName, LinkEvent, LinkSignal, LinkStep};
use crate::units::Time;
use demand::Demand;

/// What to do for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// A step of the connection of that number, for the transport.
    Step(u8, LinkStep),
    /// To the other end, of a connection.
    Signal(FlowName, LinkSignal),
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Opening {
        since: Time,
    },
    Open,
    /// ICE lost its path.
    Disturbed {
        since: Time,
        /// Whether a restart was begun, or asked for.
        is_asked: bool,
    },
}

/// One connection beside the first.
#[derive(Debug)]
struct Further {
    name: FlowName,
    /// Of its opening, or of its newest restart.
    generation: u32,
    stand: Stand,
    /// Whether the other end was told our description of that generation, and candidates that were found before.
    is_said: bool,
    found: Vec<String>,
    /// Whether the other end's is known, and its candidates that came before.
    is_described: bool,
    early: Vec<(u32, String)>,
}

/// All connections of one link but the first.
#[derive(Debug, Default)]
pub(super) struct Flows {
    /// By their numbers here.
    further: BTreeMap<u8, Further>,
    /// How many this end has opened, ever.
    opened: u8,
    /// What the other end has offered, ever.
    offered: BTreeSet<u8>,
    /// Those that were open and are over.
    ended: Vec<u8>,
    demand: Demand,
    acts: VecDeque<Act>,
    /// Whether the link's first connection goes through a relay: a direct path was tried and broke, or there is none.
    relayed: bool,
}

/// Its number here: the other end may have opened one of the same number.
const fn here(name: FlowName) -> u8 {
    2 * name.number + if name.opened_here { 1 } else { 2 }
}

/// The same connection, as the other end sees it.
const fn seen_from_there(name: FlowName) -> FlowName {
    FlowName {
        opened_here: !name.opened_here,
        ..name
    }
}

impl Flows {
    /// Numbers of the connections that messages can go by, the first one among them.
    pub(super) fn usable(&self) -> Vec<u8> {
        let further = self.further.iter();
        let open = further.filter(|(_, it)| it.stand == Stand::Open);
        std::iter::once(0).chain(open.map(|(at, _)| *at)).collect()
    }

    /// Numbers of connections that were open and are over: what was on its way by them is lost.
    pub(super) fn ended(&self) -> &[u8] {
        &self.ended
    }

    /// Whether bulk has waited for long.
    pub(super) fn has_waited(&self) -> bool {
        self.demand.has_waited()
    }

    /// Whether the link's first connection goes through a relay.
    pub(super) fn set_relayed(&mut self, relayed: bool) {
        self.relayed = relayed;
    }

    /// The other end tells what arrives.
    pub(super) fn told(&mut self) {
        self.demand.told();
    }

    /// Opens more if bulk waits and they would bring something; so many bytes have arrived at the other end.
    pub(super) fn look(&mut self, now: Time, waits: bool, arrived_bytes: u64) {
        self.demand.look(now, waits, arrived_bytes);
        let is_opening =
            |it: &Further| it.name.opened_here && matches!(it.stand, Stand::Opening { .. });
        let is_opening = self.further.values().any(is_opening);
        let open = u8::try_from(1 + self.further.len()).unwrap_or(FLOWS_MAX);
        for _ in 0..self.demand.wants(open, is_opening) {
            self.open(now);
        }
    }

    fn open(&mut self, now: Time) {
        let number = self.opened;
        if number >= FLOWS_MAX {
            return;
        }
        self.opened += 1;
        let name = FlowName {
            number,
            opened_here: true,
        };
        let at = self.begin(now, name, 1);
        let offer = LinkStep::Offer {
            generation: 1,
            relay_only: self.relayed,
        };
        self.acts.push_back(Act::Step(at, offer));
    }

    fn begin(&mut self, now: Time, name: FlowName, generation: u32) -> u8 {
        let further = Further {
            name,
            generation,
            stand: Stand::Opening { since: now },
            is_said: false,
            found: Vec::new(),
            is_described: !name.opened_here,
            early: Vec::new(),
        };
        self.further.insert(here(name), further);
        here(name)
    }

    /// The other end says something of what it calls so.
    pub(super) fn handle_signal(&mut self, now: Time, theirs: FlowName, signal: LinkSignal) {
        let name = seen_from_there(theirs);
        let (at, opened_here) = (here(name), name.opened_here);
        if let LinkSignal::Offer { generation, sdp } = signal {
            if !opened_here && self.offered.insert(name.number) {
                self.begin(now, name, generation);
                let answer = LinkStep::Answer { generation, sdp };
                self.acts.push_back(Act::Step(at, answer));
            }
            return;
        }
        let Some(further) = self.further.get_mut(&at) else {
            return;
        };
        match signal {
            LinkSignal::Answer { generation, sdp } => {
                if opened_here && generation == further.generation && !further.is_described {
                    let accept = LinkStep::Accept { generation, sdp };
                    self.acts.push_back(Act::Step(at, accept));
                    self.describe(at);
                }
            }
            LinkSignal::Restart {
                generation, sdp, ..
            } => {
                if !opened_here && generation > further.generation {
                    further.renew(generation);
                    let answer = LinkStep::AnswerRestart { generation, sdp };
                    self.acts.push_back(Act::Step(at, answer));
                    self.describe(at);
                }
            }
            LinkSignal::Candidate {
                generation,
                candidate,
            } => {
                if generation == further.generation && further.is_described {
                    self.candidate(at, generation, candidate);
                } else if generation >= further.generation
                    && further.early.len() < CANDIDATES_EARLY_MAX
                {
                    further.early.push((generation, candidate));
                }
            }
            LinkSignal::Disturbed { generation } => {
                if opened_here && generation == further.generation {
                    match further.stand {
                        Stand::Opening { .. } => {}
                        // Where nothing is amiss here, no news would say that it is mended.
                        Stand::Open => self.restart(at),
                        // What was begun came to nothing.
                        Stand::Disturbed { .. } => self.ask(at),
                    }
                }
            }
            LinkSignal::Offer { .. } | LinkSignal::Again { .. } => {}
        }
    }

    fn candidate(&mut self, at: u8, generation: u32, candidate: String) {
        let step = LinkStep::Candidate {
            generation,
            candidate,
        };
        self.acts.push_back(Act::Step(at, step));
    }

    /// The other end's description is on its way to the transport: its early candidates may follow.
    fn describe(&mut self, at: u8) {
        let Some(further) = self.further.get_mut(&at) else {
            return;
        };
        further.is_described = true;
        let current = further.generation;
        for (generation, candidate) in std::mem::take(&mut further.early) {
            if generation == current {
                self.candidate(at, generation, candidate);
            }
        }
    }

    /// The transport reports of the connection that this end numbers so.
    pub(super) fn handle_event(&mut self, now: Time, at: u8, event: LinkEvent) {
        let Some(further) = self.further.get_mut(&at) else {
            return;
        };
        let (name, current) = (further.name, further.generation);
        let tell = |signal| Act::Signal(name, signal);
        match event {
            LinkEvent::Description { generation, sdp } if generation == current => {
                self.acts.push_back(tell(if !name.opened_here {
                    LinkSignal::Answer { generation, sdp }
                } else if generation == 1 {
                    LinkSignal::Offer { generation, sdp }
                } else {
                    LinkSignal::Restart {
                        connection: 1,
                        generation,
                        sdp,
                    }
                }));
                further.is_said = true;
                for candidate in std::mem::take(&mut further.found) {
                    self.acts.push_back(tell(LinkSignal::Candidate {
                        generation,
                        candidate,
                    }));
                }
            }
            LinkEvent::Candidate {
                generation,
                candidate,
            } if generation == current => {
                if further.is_said {
                    self.acts.push_back(tell(LinkSignal::Candidate {
                        generation,
                        candidate,
                    }));
                } else {
                    further.found.push(candidate);
                }
            }
            LinkEvent::Open { .. } | LinkEvent::Resumed { .. } => {
                further.stand = Stand::Open;
            }
            LinkEvent::Disturbed { generation } => match &further.stand {
                Stand::Open => {
                    further.stand = Stand::Disturbed {
                        since: now,
                        is_asked: false,
                    };
                }
                // The restart came to nothing.
                Stand::Disturbed { is_asked: true, .. } if generation == current => self.ask(at),
                Stand::Opening { .. } | Stand::Disturbed { .. } => {}
            },
            LinkEvent::Down { .. } => self.end(at),
            LinkEvent::Description { .. } | LinkEvent::Candidate { .. } => {}
        }
    }

    /// Begins a restart of what is disturbed, or asks for one.
    fn ask(&mut self, at: u8) {
        let Some(further) = self.further.get_mut(&at) else {
            return;
        };
        if let Stand::Disturbed { is_asked, .. } = &mut further.stand {
            *is_asked = true;
        }
        if further.name.opened_here {
            self.restart(at);
        } else {
            let generation = further.generation;
            let signal = LinkSignal::Disturbed { generation };
            self.acts.push_back(Act::Signal(further.name, signal));
        }
    }

    /// Begins a restart of what this end has opened.
    fn restart(&mut self, at: u8) {
        if let Some(further) = self.further.get_mut(&at) {
            let generation = further.generation + 1;
            further.renew(generation);
            further.is_described = false;
            let restart = LinkStep::Restart { generation };
            self.acts.push_back(Act::Step(at, restart));
        }
    }

    /// Nothing more comes of it.
    fn end(&mut self, at: u8) {
        if let Some(further) = self.further.remove(&at) {
            if !matches!(further.stand, Stand::Opening { .. }) {
                self.ended.push(at);
            }
            self.acts.push_back(Act::Step(at, LinkStep::Close));
        }
    }

    /// The link is closed, or opened anew.
    pub(super) fn close(&mut self) {
        let all = std::mem::take(&mut self.further);
        // What is over is not to stay open in the transport.
        let is_close = |act: &Act| matches!(act, Act::Step(_, LinkStep::Close));
        self.acts.retain(is_close);
        let close = all.into_keys().map(|at| Act::Step(at, LinkStep::Close));
        self.acts.extend(close);
    }

    /// What to do next; `None` when there is nothing more.
    pub(super) fn poll(&mut self) -> Option<Act> {
        self.acts.pop_front()
    }

    /// When to call [`Flows::handle_timeout`].
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.further.values().filter_map(Further::timeout).min()
    }

    /// Time has come.
    pub(super) fn handle_timeout(&mut self, now: Time) {
        let due = self.further.iter();
        let due = due.filter(|(_, it)| it.timeout().is_some_and(|at| now >= at));
        let due: Vec<(u8, Stand)> = due.map(|(at, it)| (*at, it.stand)).collect();
        for (at, stand) in due {
            match stand {
                Stand::Disturbed {
                    is_asked: false, ..
                } => self.ask(at),
                Stand::Opening { .. } | Stand::Open | Stand::Disturbed { .. } => self.end(at),
            }
        }
    }
}

impl Further {
    /// From now on everything is about a restart.
    fn renew(&mut self, generation: u32) {
        self.generation = generation;
        self.is_said = false;
        self.found.clear();
    }

    fn timeout(&self) -> Option<Time> {
        match self.stand {
            Stand::Opening { since } => Some(since + LINK_OPEN_MAX),
            Stand::Open => None,
            Stand::Disturbed {
                since,
                is_asked: false,
            } => Some(since + RESTART_GRACE),
            Stand::Disturbed { since, .. } => Some(since + FLOW_RESTART_MAX),
        }
    }
}

#[cfg(test)]
mod tests;
