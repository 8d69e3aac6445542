//! [`Transport`] through the page: steps go there, events come from there. Messages go and come by the channels that the
//! page handed over ([`End`]); where a browser hands none over, they go through the page, too.
//!
//! Whether a message fits is known here without asking ([`Outflow`]). What comes in is
//! not held back, as a browser's data channels cannot be: how much a neighbour sends is bounded by the credit that
//! it was granted, and [`shared::driver`] refuses what exceeds it.
//!
//! Invariants: events of a connection that was replaced or closed never come out; nor do messages before the page has
//! said that their link is open.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use futures_channel::mpsc;
use futures_util::StreamExt;
use js_sys::{ArrayBuffer, Uint8Array};
use shared::transport::{
    Channel, Flow, IceServer, LinkEvent, LinkStep, NetEvent, Transport, TransportStopped,
};

use super::ends::End;
use super::port;
use crate::flow::Outflow;
use crate::js::buffer;
use crate::messages::{LinkId, Parcel, Rtc, ToPage};

/// What was told of connections, by the page or by a channel, on its way to the transport.
#[derive(Debug)]
pub(super) enum Told {
    Event(Rtc<LinkEvent>),
    Parcel(Parcel<ArrayBuffer>),
    Sent {
        at: LinkId,
        channel: Channel,
        sent_bytes: u64,
    },
    /// A channel was handed over.
    Channel(LinkId, Channel, End),
    ChannelOpen(LinkId),
    ChannelClosed(LinkId),
    /// The browser holds little more of what was given to a channel.
    ChannelLow(LinkId, Channel),
}

/// Where it is put; the transport of the session under way reads it.
#[derive(Clone, Debug, Default)]
pub(super) struct Inlet(Rc<RefCell<Option<mpsc::UnboundedSender<Told>>>>);

impl Inlet {
    /// Passes on what was heard; nobody listens between two sessions.
    pub(super) fn put(&self, told: Told) {
        if let Some(inlet) = &*self.0.borrow() {
            // A session that has just ended does not want to know.
            drop(inlet.unbounded_send(told));
        }
    }
}

/// One connection as the worker sees it.
struct Link {
    number: u32,
    stand: Stand,
    control: Way,
    tensors: Way,
}

/// How far a connection is.
enum Stand {
    /// The page has not said that it is open; what came before waits.
    Opening(Vec<NetEvent>),
    Open,
    Down,
}

/// The way out by one channel.
struct Way {
    outflow: Outflow,
    /// The channel; else its messages go to the page.
    end: Option<End>,
}

impl Way {
    fn new(channel: Channel) -> Self {
        Self {
            outflow: Outflow::new(channel),
            end: None,
        }
    }
}

impl Link {
    fn new(number: u32) -> Self {
        Self {
            number,
            stand: Stand::Opening(Vec::new()),
            control: Way::new(Channel::Control),
            tensors: Way::new(Channel::Tensors),
        }
    }

    fn way(&mut self, channel: Channel) -> &mut Way {
        match channel {
            Channel::Control => &mut self.control,
            Channel::Tensors => &mut self.tensors,
        }
    }

    /// Tells the page once both channels are here and open: it knows the rest.
    fn tell_if_open(&self, at: LinkId) {
        let mut ends = [&self.control, &self.tensors].into_iter();
        if ends.all(|way| way.end.as_ref().is_some_and(End::is_open)) {
            port::say(&ToPage::ChannelsOpen(at));
        }
    }
}

/// The network of one volunteer.
pub(super) struct PageTransport {
    told: mpsc::UnboundedReceiver<Told>,
    /// What is to come out next.
    next: VecDeque<NetEvent>,
    links: BTreeMap<Flow, Link>,
    numbers: u32,
    relay_only: bool,
}

impl PageTransport {
    /// A network without links, which hears through `inlet` from now on.
    pub(super) fn new(inlet: &Inlet, relay_only: bool) -> Self {
        let (sender, told) = mpsc::unbounded();
        inlet.0.replace(Some(sender));
        Self {
            told,
            next: VecDeque::new(),
            links: BTreeMap::new(),
            numbers: 0,
            relay_only,
        }
    }

    /// The connection that `at` names, if it is the current try of it.
    fn current(&mut self, at: LinkId) -> Option<&mut Link> {
        self.links
            .get_mut(&at.flow)
            .filter(|link| link.number == at.number)
    }

    /// Queues what it means to the driver, if anything.
    fn take(&mut self, told: Told) -> Option<()> {
        match told {
            Told::Event(Rtc { at, what: event }) => {
                let link = self.current(at)?;
                let mut waited = Vec::new();
                match event {
                    LinkEvent::Open { .. } => {
                        let before = std::mem::replace(&mut link.stand, Stand::Open);
                        if let Stand::Opening(early) = before {
                            waited = early;
                        }
                    }
                    LinkEvent::Down { .. } => link.stand = Stand::Down,
                    LinkEvent::Description { .. }
                    | LinkEvent::Candidate { .. }
                    | LinkEvent::Disturbed { .. }
                    | LinkEvent::Resumed { .. } => {}
                }
                let flow = at.flow;
                self.next.push_back(NetEvent::Link { flow, event });
                self.next.extend(waited);
            }
            Told::Parcel(Parcel { at, channel, load }) => {
                let message = NetEvent::Message {
                    flow: at.flow,
                    channel,
                    bytes: Uint8Array::new(&load).to_vec().into(),
                };
                match &mut self.current(at)?.stand {
                    Stand::Opening(early) => early.push(message),
                    Stand::Open => self.next.push_back(message),
                    Stand::Down => {}
                }
            }
            Told::Sent {
                at,
                channel,
                sent_bytes,
            } => {
                let way = self.current(at)?.way(channel);
                let drained = way.outflow.sent(sent_bytes);
                self.drained(at.flow, channel, drained);
            }
            Told::Channel(at, channel, end) => {
                let link = self.current(at)?;
                link.way(channel).end = Some(end);
                link.tell_if_open(at);
            }
            Told::ChannelOpen(at) => self.current(at)?.tell_if_open(at),
            Told::ChannelClosed(at) => {
                self.current(at)?;
                port::say(&ToPage::ChannelClosed(at));
            }
            Told::ChannelLow(at, channel) => {
                let way = self.current(at)?.way(channel);
                let buffered = way.end.as_ref()?.buffered();
                let drained = way.outflow.holds(buffered);
                self.drained(at.flow, channel, drained);
            }
        }
        Some(())
    }

    fn drained(&mut self, flow: Flow, channel: Channel, is_due: bool) {
        if is_due {
            self.next.push_back(NetEvent::Drained { flow, channel });
        }
    }
}

impl Transport for PageTransport {
    fn link(&mut self, flow: Flow, step: LinkStep) {
        if let LinkStep::Offer { .. } | LinkStep::Answer { .. } = step {
            self.numbers += 1;
            self.links.insert(flow, Link::new(self.numbers));
        }
        let Some(link) = self.links.get(&flow) else {
            return;
        };
        let at = LinkId {
            flow,
            number: link.number,
        };
        if step == LinkStep::Close {
            self.links.remove(&flow);
        }
        port::say(&ToPage::Rtc(Rtc { at, what: step }));
    }

    fn try_send(&mut self, by: Flow, channel: Channel, message: Bytes) -> bool {
        let Some(link) = self.links.get_mut(&by) else {
            return false;
        };
        if !matches!(link.stand, Stand::Open) {
            return false;
        }
        let at = LinkId {
            flow: by,
            number: link.number,
        };
        let Way { outflow, end } = link.way(channel);
        if let Some(end) = end {
            // Whoever asks needs no word of room.
            outflow.holds(end.buffered());
        }
        let admitted = outflow.admit(message.len() as u64);
        match end {
            _ if !admitted => {}
            Some(end) => {
                if !end.send(&message) {
                    // Closed in between, or the browser's own limit: what was lost is lost for good.
                    port::say(&ToPage::ChannelClosed(at));
                }
            }
            None => port::pass(&Parcel {
                at,
                channel,
                load: buffer(&message),
            }),
        }
        admitted
    }

    fn bounds_links(&self) -> bool {
        // A browser's slow start ends where a queue on the way does.
        false
    }

    fn set_ice_servers(&mut self, servers: Vec<IceServer>) {
        port::say(&ToPage::IceServers {
            servers,
            relay_only: self.relay_only,
        });
    }

    async fn next_event(&mut self) -> Result<NetEvent, TransportStopped> {
        loop {
            if let Some(event) = self.next.pop_front() {
                return Ok(event);
            }
            let told = self.told.next().await.ok_or_else(|| TransportStopped {
                reason: "another session took the page's connections over".to_owned(),
            })?;
            self.take(told);
        }
    }
}
