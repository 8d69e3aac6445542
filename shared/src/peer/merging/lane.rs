//! Slices on their way to one peer: never more than agreed that it has not taken.
//!
//! Counts both ways, so that it is known when nothing more must go or come: a link that breaks afterwards harms nobody.

use std::collections::VecDeque;

use bytes::Bytes;

use super::part::Part;
use crate::limits::MERGE_SLICES_AHEAD;
use crate::units::{Attempt, StageId};
use crate::wire::frame::{Frame, Header};
use crate::wire::merge::Leg;

/// One attempt's slices to and from one peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Lane {
    /// Whether frames may be sent.
    is_open: bool,
    queue: VecDeque<Frame>,
    sent: u64,
    /// ... of which the other end has taken so many.
    taken_there: u64,
    taken_here: u64,
    /// How many there will be in all, to it and from it.
    to_send: u64,
    to_take: u64,
}

impl Lane {
    /// A part of so many bytes goes to the peer, one of so many comes from it.
    pub(super) fn expect(&mut self, (sent_bytes, taken_bytes): (usize, usize)) {
        self.to_send += Part::count(sent_bytes);
        self.to_take += Part::count(taken_bytes);
    }

    /// Whether nothing more must go or come.
    pub(super) fn is_done(&self) -> bool {
        (self.taken_there, self.taken_here) == (self.to_send, self.to_take)
    }

    /// The link is up.
    pub(super) fn open(&mut self) {
        self.is_open = true;
    }

    /// Queues a part, cut into slices.
    pub(super) fn push(&mut self, attempt: Attempt, stage: StageId, leg: Leg, part: &Bytes) {
        self.queue.extend(Part::cut(part).map(|(offset, payload)| {
            let header = Header::Merge {
                attempt,
                stage,
                leg,
                offset,
            };
            Frame { header, payload }
        }));
    }

    /// The next slice that may be sent now.
    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        let may_send = self.is_open && self.sent - self.taken_there < u64::from(MERGE_SLICES_AHEAD);
        let frame = self.queue.pop_front_if(|_| may_send)?;
        self.sent += 1;
        Some(frame)
    }

    /// The other end has taken so many in all; `false` if that is more than it was sent.
    pub(super) fn taken(&mut self, taken: u64) -> bool {
        self.taken_there = self.taken_there.max(taken.min(self.sent));
        taken <= self.sent
    }

    /// One of the other end's is taken here. Returns how many in all.
    pub(super) fn take(&mut self) -> u64 {
        self.taken_here += 1;
        self.taken_here
    }
}
