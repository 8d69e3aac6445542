//! Who waits, and why; who may go; and the end of the run.
//!
//! Every wait has a reason, in the same words for the volunteer, the page and the log.

use super::{Coordinator, Output};
use crate::units::{PeerId, Time};
use crate::wire::signal::Down;

/// What a volunteer without a seat is told.
const SPARE: &str = "spare: you keep copies until a seat is free";
/// What a volunteer is told whose device is not to be trusted with a seat.
const STRUCK: &str = "no seat for you: this device made numbers that are not finite, twice; you keep copies. \
                      See `shoal doctor`, and start again with another --gpu";

impl Coordinator {
    /// A paused or finished run has no line-up.
    pub(super) fn rest(&mut self, now: Time) {
        self.break_all();
        if let Some(reason) = self.history.paused().map(str::to_owned)
            && self.may_look_at_all(now)
        {
            self.everyone_waits(&reason);
        }
    }

    fn break_all(&mut self) {
        for id in self.pipelines.ids(|_| true) {
            self.break_pipeline(id);
        }
    }

    /// There is no line-up, and why: for those who are here, and for whoever looks at the run.
    pub(super) fn everyone_waits(&mut self, reason: &str) {
        self.waits_for = Some(reason.to_owned());
        let peers: Vec<PeerId> = self.roster.iter().map(|volunteer| volunteer.peer).collect();
        for peer in peers {
            self.wait_reason(peer, reason);
        }
    }

    /// Those without a seat hear what they are for.
    pub(super) fn tell_spares(&mut self) {
        if self.pipelines.is_empty() {
            return;
        }
        let spares: Vec<PeerId> = self
            .roster
            .iter()
            .map(|volunteer| volunteer.peer)
            .filter(|peer| !self.pipelines.is_seated(*peer))
            .collect();
        for peer in spares {
            self.wait_reason(peer, SPARE);
        }
    }

    /// Tells a volunteer without a seat why it has none: what all wait for, or what is wrong with itself.
    fn wait_reason(&mut self, peer: PeerId, common: &str) {
        let is_struck = self.roster.get(peer).is_some_and(|it| it.struck);
        let text = if is_struck { STRUCK } else { common };
        self.reason(peer, text.to_owned());
    }

    /// Tells a volunteer why it waits or what it does, when that changed. Whoever rests knows why.
    pub(super) fn reason(&mut self, peer: PeerId, text: String) {
        let is_seated = self.is_seated(peer);
        let Some(volunteer) = self.roster.get_mut(peer) else {
            return;
        };
        let resting = volunteer.paused.filter(|_| !is_seated);
        let text = resting.map_or(text, |pause| pause.words().to_owned());
        if volunteer.reason != text {
            volunteer.reason.clone_from(&text);
            self.tell(peer, Down::Reason { text });
        }
    }

    /// Lets a volunteer go that wants to, once all that it alone holds of the newest round is elsewhere.
    pub(super) fn release_finished(&mut self) {
        let newest = self.history.newest();
        let commit = self.history.get(newest);
        let is_needed = |peer: PeerId| {
            let stored = self.has_manifest(newest);
            commit.is_some_and(|commit| {
                !stored
                    && commit.stages.iter().any(|held| {
                        let mut holders = self.roster.holders(held).map(|holder| holder.peer);
                        let mut others = self.roster.holders(held).filter(|v| v.peer != peer);
                        holders.any(|holder| holder == peer) && others.all(|v| v.finishing)
                    })
            })
        };
        let free: Vec<PeerId> = self
            .roster
            .finishing()
            .filter(|volunteer| !volunteer.released)
            .map(|volunteer| volunteer.peer)
            .filter(|peer| !self.pipelines.is_seated(*peer) && !is_needed(*peer))
            .collect();
        for peer in free {
            if let Some(volunteer) = self.roster.get_mut(peer) {
                volunteer.released = true;
            }
            self.tell(peer, Down::Released);
        }
    }

    /// The run has its length: once the last round is in the store, everybody may go.
    pub(super) fn over_when_stored(&mut self, now: Time) {
        let newest = self.history.newest();
        if !self.has_manifest(newest) {
            self.everyone_waits("the run is complete; its last state goes to the store");
            return self.secure(now, true);
        }
        self.over = true;
        self.break_all();
        let connections: Vec<_> = self
            .roster
            .iter()
            .filter_map(|volunteer| volunteer.connection)
            .collect();
        for connection in connections {
            self.out(Output::Send(
                connection,
                Down::Refuse {
                    code: crate::wire::signal::RefuseCode::Over,
                    text: "the run has reached its length".to_owned(),
                    remedy: "export the model from the host's page".to_owned(),
                },
            ));
        }
    }
}
