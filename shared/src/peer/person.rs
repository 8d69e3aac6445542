//! What the person who lends the machine wants: pause, resume, a smaller share, finish, stop.
//!
//! A pause and a finish take nothing back: the seat is kept until the round is committed. What is lent is told to
//! the host whenever it changes, and again by the next `join`.

use super::rhythm::Rhythm;
use super::{Exit, Leaving, Peer};
use crate::limits::FINISH_AWAY_MAX;
use crate::units::Time;
use crate::wire::signal::{Pause, Up};

impl Peer {
    /// Asks to leave after this round's commit, once somebody else has what we hold.
    ///
    /// A host that is away, and stays away for [`FINISH_AWAY_MAX`], is not waited for.
    pub fn finish(&mut self, now: Time) {
        if self.leaving == Leaving::No {
            self.leaving = Leaving::AfterCommit(now);
            if self.me.is_none() {
                return self.exit(Exit::Finished);
            }
            self.up(Up::Finish);
        }
    }

    /// When we leave without the host's word, if it does not come back before.
    pub(super) fn leaves_alone_at(&self) -> Option<Time> {
        let (Leaving::AfterCommit(since), Some(away)) = (self.leaving, self.host_away) else {
            return None;
        };
        (!self.over).then(|| since.max(away) + FINISH_AWAY_MAX)
    }

    /// Leaves without the host's word, if it is time.
    pub(super) fn leave_alone(&mut self, now: Time) {
        if self.leaves_alone_at().is_some_and(|at| now >= at) {
            self.close_links();
            self.exit(Exit::HostAway);
        }
    }

    /// Leaves now.
    pub fn stop(&mut self) {
        self.leave(false);
    }

    /// Leaves now, and may come back at once under the same key and session: a page that is loaded again.
    /// The host keeps the seat for a moment.
    pub fn reload(&mut self) {
        self.leave(true);
    }

    fn leave(&mut self, may_return: bool) {
        self.up(Up::Leave { may_return });
        self.close_links();
        self.exit(Exit::Stopped);
    }

    /// Gives up the seat after this round's commit, and rests until [`Peer::resume`].
    pub fn pause(&mut self, reason: Pause) {
        if self.paused != Some(reason) {
            self.paused = Some(reason);
            self.tell_update();
        }
    }

    /// Is there for a seat again.
    pub fn resume(&mut self) {
        if self.paused.take().is_some() {
            self.tell_update();
        }
    }

    /// Changes the share of the time that the device works, in percent, 10 to 100.
    pub fn throttle(&mut self, now: Time, percent: u8) {
        let percent = percent.clamp(10, 100);
        if self.identity.capabilities.throttle_percent != percent {
            self.identity.capabilities.throttle_percent = percent;
            self.duty.set_percent(percent);
            self.tell_update();
            self.pump(now);
        }
    }

    /// The page is hidden, or seen again. A browser gives a hidden one another share of the machine: its speed is measured
    /// anew, and told as soon as it is known.
    pub fn hide(&mut self, hidden: bool) {
        if self.identity.capabilities.hidden != hidden {
            self.identity.capabilities.hidden = hidden;
            self.rhythm = Rhythm::default();
            self.figures.forget_speed();
            self.tell_update();
        }
    }

    /// Why there can be no seat now: what a person wants, or that the device does not answer.
    pub(super) fn pause_now(&self) -> Option<Pause> {
        self.figures.pause().or(self.paused)
    }

    /// Tells the host what is lent now. Until it knows us, `join` will tell.
    pub(super) fn tell_update(&mut self) {
        let capabilities = self.identity.capabilities.clone();
        self.up(Up::Update {
            capabilities,
            paused: self.pause_now(),
        });
    }
}
