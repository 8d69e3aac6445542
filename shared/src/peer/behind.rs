//! Asking the host again, where neighbours show that one of its messages passed us by.
//!
//! A frame or a credit of a newer line-up or round than the host has told is kept, unread; mostly the host's message
//! is on its way. If it does not come, the host is asked for the seat's state, again and again. So it is where
//! microbatches come and the host never said `begin`: nothing could end the round; and where slices come of a merge that
//! it never ordered.

use super::Peer;
use super::work::Work;
use crate::limits::ASK_AFTER;
use crate::units::{Epoch, Round, Time};
use crate::wire::frame::Place;
use crate::wire::signal::Up;

/// What neighbours are at, as far as the host has not told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ahead {
    /// Newest line-up that the host told anything of.
    told: Epoch,
    /// Newest line-up, and round where that is known, that a neighbour is at.
    seen: Option<(Epoch, Option<Round>)>,
    /// Since when something is missing, or was asked for last.
    since: Option<Time>,
}

impl Peer {
    /// The host told us of a line-up.
    pub(super) fn told_of(&mut self, place: Place) {
        self.ahead.told = self.ahead.told.max(place.epoch);
    }

    /// A neighbour is at that line-up, and at that round where it says so.
    pub(super) fn seen_at(&mut self, epoch: Epoch, round: Option<Round>) {
        if self.is_ahead((epoch, round)) {
            self.ahead.seen = self.ahead.seen.max(Some((epoch, round)));
        }
    }

    fn is_ahead(&self, (epoch, round): (Epoch, Option<Round>)) -> bool {
        let Some(place) = self.order().map(|order| order.place) else {
            return epoch > self.ahead.told;
        };
        epoch > place.epoch || epoch == place.epoch && round > Some(place.round)
    }

    /// Asks the host, if something has been missing for long enough.
    pub(super) fn pump_ahead(&mut self, now: Time) {
        let seen = self.ahead.seen;
        self.ahead.seen = seen.filter(|seen| self.is_ahead(*seen));
        let lacks =
            |work: &Work| work.lacks_begin() || work.waits_for_commit() && self.merge.is_behind();
        let is_missing = self.ahead.seen.is_some() || self.work.as_ref().is_some_and(lacks);
        if !is_missing {
            self.ahead.since = None;
        } else if now >= *self.ahead.since.get_or_insert(now) + ASK_AFTER {
            self.ahead.since = Some(now);
            let place = self.order().map(|order| order.place);
            self.up(Up::Ask { place });
        }
    }

    /// When the host is asked, if nothing comes before.
    pub(super) fn ahead_timeout(&self) -> Option<Time> {
        self.ahead.since.map(|since| since + ASK_AFTER)
    }
}
