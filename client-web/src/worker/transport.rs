//! [`Transport`] through the page: steps and messages go there, events and messages come from there.
//!
//! Whether a message fits is known here without asking ([`Outflow`]). What comes in is
//! not held back, as a browser's data channels cannot be: how much a neighbour sends is bounded by the credit that
//! it was granted, and [`shared::driver`] refuses what exceeds it.
//!
//! Invariant: events of a connection that was replaced or closed never come out.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use futures_channel::mpsc;
use futures_util::StreamExt;
use js_sys::{ArrayBuffer, Uint8Array};
use shared::transport::{
    Channel, IceServer, LinkEvent, LinkStep, NetEvent, Transport, TransportStopped,
};
use shared::units::PeerId;

use super::port;
use crate::flow::Outflow;
use crate::js::buffer;
use crate::messages::{LinkId, Parcel, Rtc, ToPage};

/// What the page told of connections, on its way to the transport.
#[derive(Debug)]
pub(super) enum FromPage {
    Event(Rtc<LinkEvent>),
    Parcel(Parcel<ArrayBuffer>),
    Sent {
        at: LinkId,
        channel: Channel,
        sent_bytes: u64,
    },
}

/// Where the port puts what it hears of connections; the transport of the session under way reads it.
#[derive(Clone, Debug, Default)]
pub(super) struct Inlet(Rc<RefCell<Option<mpsc::UnboundedSender<FromPage>>>>);

impl Inlet {
    /// Passes on what was heard; nobody listens between two sessions.
    pub(super) fn put(&self, heard: FromPage) {
        if let Some(inlet) = &*self.0.borrow() {
            // A session that has just ended does not want to know.
            drop(inlet.unbounded_send(heard));
        }
    }
}

/// One connection as the worker sees it.
struct Link {
    number: u32,
    open: bool,
    control: Outflow,
    tensors: Outflow,
}

impl Link {
    fn outflow(&mut self, channel: Channel) -> &mut Outflow {
        match channel {
            Channel::Control => &mut self.control,
            Channel::Tensors => &mut self.tensors,
        }
    }
}

/// The network of one volunteer.
pub(super) struct PageTransport {
    heard: mpsc::UnboundedReceiver<FromPage>,
    links: BTreeMap<PeerId, Link>,
    numbers: u32,
    relay_only: bool,
}

impl PageTransport {
    /// A network without links, which hears through `inlet` from now on.
    pub(super) fn new(inlet: &Inlet, relay_only: bool) -> Self {
        let (sender, heard) = mpsc::unbounded();
        inlet.0.replace(Some(sender));
        Self {
            heard,
            links: BTreeMap::new(),
            numbers: 0,
            relay_only,
        }
    }

    /// The link that `at` names, if it is the current one to that peer.
    fn current(&mut self, at: LinkId) -> Option<&mut Link> {
        self.links
            .get_mut(&at.peer)
            .filter(|link| link.number == at.number)
    }

    /// What the page's word means to the driver; `None` if nothing.
    fn translate(&mut self, heard: FromPage) -> Option<NetEvent> {
        match heard {
            FromPage::Event(Rtc { at, what: event }) => {
                let link = self.current(at)?;
                match event {
                    LinkEvent::Open { .. } => link.open = true,
                    LinkEvent::Down { .. } => link.open = false,
                    LinkEvent::Description { .. }
                    | LinkEvent::Candidate { .. }
                    | LinkEvent::Disturbed { .. }
                    | LinkEvent::Resumed { .. } => {}
                }
                let peer = at.peer;
                Some(NetEvent::Link { peer, event })
            }
            FromPage::Parcel(Parcel { at, channel, bytes }) => {
                self.current(at)?;
                Some(NetEvent::Message {
                    peer: at.peer,
                    channel,
                    bytes: Uint8Array::new(&bytes).to_vec().into(),
                })
            }
            FromPage::Sent {
                at,
                channel,
                sent_bytes,
            } => {
                let peer = at.peer;
                let drained = self.current(at)?.outflow(channel).sent(sent_bytes);
                drained.then_some(NetEvent::Drained { peer, channel })
            }
        }
    }
}

impl Transport for PageTransport {
    fn link(&mut self, peer: PeerId, step: LinkStep) {
        if let LinkStep::Offer { .. } | LinkStep::Answer { .. } = step {
            self.numbers += 1;
            let link = Link {
                number: self.numbers,
                open: false,
                control: Outflow::new(Channel::Control),
                tensors: Outflow::new(Channel::Tensors),
            };
            self.links.insert(peer, link);
        }
        let Some(link) = self.links.get(&peer) else {
            return;
        };
        let at = LinkId {
            peer,
            number: link.number,
        };
        if step == LinkStep::Close {
            self.links.remove(&peer);
        }
        port::say(&ToPage::Rtc(Rtc { at, what: step }));
    }

    fn try_send(&mut self, to: PeerId, channel: Channel, message: Bytes) -> bool {
        let Some(link) = self.links.get_mut(&to).filter(|link| link.open) else {
            return false;
        };
        let admitted = link.outflow(channel).admit(message.len() as u64);
        if admitted {
            let at = LinkId {
                peer: to,
                number: link.number,
            };
            let bytes = buffer(&message);
            port::pass(&Parcel { at, channel, bytes });
        }
        admitted
    }

    fn set_ice_servers(&mut self, servers: Vec<IceServer>) {
        port::say(&ToPage::IceServers {
            servers,
            relay_only: self.relay_only,
        });
    }

    async fn next_event(&mut self) -> Result<NetEvent, TransportStopped> {
        loop {
            let heard = self.heard.next().await.ok_or_else(|| TransportStopped {
                reason: "another session took the page's connections over".to_owned(),
            })?;
            if let Some(event) = self.translate(heard) {
                return Ok(event);
            }
        }
    }
}
