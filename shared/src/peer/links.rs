//! Whom a volunteer is linked to: at most [`LINKS_MAX`] others, and whoever is of least use makes room.
//!
//! Links stay after their use, for the next one: opening takes seconds. At the limit a new one takes the place of one
//! that is of less use than itself. Who asks for a link through the host, unknown to us, is of as much use as somebody
//! who takes a state from us, so strangers replace nobody but each other.
//!
//! Knows nothing of how a link is opened ([`link`](super::link)), and decides nothing about line-ups.

use super::link::Link;
use super::{Event, Output, Peer};
use crate::limits::{FETCH_SILENCE_MAX, LINKS_MAX};
use crate::transport::LinkStep;
use crate::units::{Digest, PeerId, Time};
use crate::wire::frame::{Frame, Header};

/// What a link that makes room is told, and its person.
const MAKES_ROOM: &str = "it makes room for another link";

/// What a link is good for, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// Nothing now.
    Free,
    /// The other end takes a state from us.
    Taker,
    /// We take a state from the other end.
    Source,
    /// Microbatches go over it, or slices of a merge.
    Neighbour,
}

impl Peer {
    /// Whether microbatches go over a link to `peer`, or are to.
    pub(super) fn is_neighbour(&self, peer: PeerId) -> bool {
        self.order().is_some_and(|order| {
            let mut sides = order.previous.iter().chain(&order.next);
            sides.any(|neighbour| neighbour.peer == peer)
        })
    }

    fn use_of(&self, now: Time, peer: PeerId) -> Use {
        let asked = self.links.get(&peer).and_then(Link::asked);
        if self.is_neighbour(peer) || self.merge.involves(peer) {
            Use::Neighbour
        } else if self.transfers.values().any(|it| it.is_from(peer)) {
            Use::Source
        } else if asked.is_some_and(|at| now.since(at) < FETCH_SILENCE_MAX) {
            Use::Taker
        } else {
            Use::Free
        }
    }

    /// The link to `peer`, made if there is room or something of less use makes some. `None` before the host gave us
    /// a number.
    pub(super) fn link_mut(
        &mut self,
        now: Time,
        peer: PeerId,
        key: Option<Digest>,
    ) -> Option<&mut Link> {
        let me = self.me.filter(|me| *me != peer)?;
        if !self.links.contains_key(&peer) && self.links.len() >= LINKS_MAX {
            self.make_room(now, peer)?;
        }
        let generation = self.generation;
        let link = self
            .links
            .entry(peer)
            .or_insert_with(|| Link::new(me, peer, key).after(generation));
        if let Some(key) = key {
            link.set_key(key);
        }
        link.set_relays(self.relays);
        Some(link)
    }

    /// Closes the link that is of least use, if it is of less use than one to `newcomer`.
    fn make_room(&mut self, now: Time, newcomer: PeerId) -> Option<()> {
        let wanted = self.use_of(now, newcomer).max(Use::Taker);
        let uses = self.links.iter().map(|(peer, link)| {
            let (use_now, is_busy, used) = (self.use_of(now, *peer), link.is_busy(), link.used());
            (use_now, is_busy, used, *peer)
        });
        let (_, _, _, least) = uses.min().filter(|(of, ..)| *of < wanted)?;
        let link = self.links.remove(&least)?;
        // The other end may remember how often this link was offered.
        self.generation = self.generation.max(link.generation());
        if link.is_up() {
            self.send(now, least, Frame::from(Header::bye(MAKES_ROOM)));
            self.out(Output::Event(Event::LinkLost {
                peer: least,
                reason: MAKES_ROOM.to_owned(),
            }));
        }
        self.out(Output::Link(least, LinkStep::Close));
        self.tally.forget_link(least);
        self.forget_frames(now, least);
        Some(())
    }

    /// Nothing more comes over the link to `peer` of what was under way.
    pub(super) fn forget_frames(&mut self, now: Time, peer: PeerId) {
        self.early.retain(|(from, _)| *from != peer);
        self.credits.remove(&peer);
        self.serving.remove(&peer);
        self.merge.handle_lost(peer);
        for transfer in self.transfers.values_mut() {
            transfer.handle_lost(now, peer);
        }
    }

    /// Closes all links, for good or because numbers of before mean nothing any more.
    pub(super) fn close_links(&mut self) {
        self.tally.forget_links();
        self.figures.forget_links();
        self.early.clear();
        self.credits.clear();
        self.serving.clear();
        self.merge.forget_slices();
        for (peer, _) in std::mem::take(&mut self.links) {
            self.out(Output::Link(peer, LinkStep::Close));
        }
    }
}
