//! Who is here: volunteers, their connections, what they keep, and whether they are still alive.
//!
//! Decides nothing about seats. A volunteer is *away* while its connection is broken: its seat is kept for
//! a moment, since most broken connections come back.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use crate::limits::{NAME_CHARS_MAX, VOLUNTEERS_MAX};
use crate::schedule::placement::Candidate;
use crate::units::{Digest, PeerId, Round, Span, StageId, Time};
use crate::wire::signal::{Capabilities, Held, Pause};

/// A delay that differs by less than one part in so many from the known one is the same.
const DELAY_NOISE_PARTS: u64 = 16;

/// One WebSocket to a volunteer, numbered by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConnectionId(pub u64);

/// One session of one volunteer.
#[derive(Clone, Debug)]
pub struct Volunteer {
    /// Its number.
    pub peer: PeerId,
    /// Its public key.
    pub key: Digest,
    /// Its session.
    pub session: u64,
    /// What to call it.
    pub name: String,
    /// What it is and lends.
    pub capabilities: Capabilities,
    /// Its connection; `None` while it is away.
    pub connection: Option<ConnectionId>,
    /// When it is given up, while it is away.
    pub away_until: Option<Time>,
    /// When anything was last heard of it.
    pub heard: Time,
    /// When it must have answered a ping, because a neighbour suspects it.
    pub answer_by: Option<Time>,
    /// Microseconds one way between it and the host, once it answered a ping.
    pub delay_us: Option<u64>,
    /// Payload bytes a second that it sent to the host, once it did.
    pub bytes_per_second: Option<u64>,
    /// Who suspects it.
    pub suspected_by: BTreeSet<PeerId>,
    /// States it keeps, of which the agreed part is the run's: hash of its own blob. Changed through the roster, which knows who keeps what.
    pub(super) kept: BTreeMap<(Round, StageId), Digest>,
    /// The copy it was asked to make, and until when.
    pub copying: Option<(Held, Time)>,
    /// Whether it wants to leave after the round.
    pub finishing: bool,
    /// Whether it was told that it may leave.
    pub released: bool,
    /// Whether it said that it leaves and may come back at once.
    pub returning: bool,
    /// Whether it gets no seat any more, for what no working device computes.
    pub struck: bool,
    /// Why it rests, if it does.
    pub paused: Option<Pause>,
    /// Until when it gets no seat.
    pub benched_until: Option<Time>,
    /// Whether a round was committed while it was fetching the one before: the next one waits for its line-up.
    pub overtaken: bool,
    /// Microbatches of it in committed rounds.
    pub accepted: u64,
    /// What it was told last.
    pub reason: String,
}

impl Volunteer {
    /// Whether it may be given a seat now.
    pub fn is_placeable(&self, now: Time) -> bool {
        self.connection.is_some()
            && !self.wants_out()
            && !self.struck
            && self.benched_until.is_none_or(|until| now >= until)
    }

    /// Takes over what must not be lost by coming again.
    ///
    /// Speed, too, if the device is the same: what its seat took says more than what is measured while a page loads,
    /// and placement has no reason to give it another seat.
    pub fn inherit(&mut self, before: &Self) {
        self.accepted = before.accepted;
        self.benched_until = before.benched_until;
        self.overtaken = before.overtaken;
        self.delay_us = before.delay_us;
        self.bytes_per_second = before.bytes_per_second;
        if self.capabilities.device == before.capabilities.device {
            self.capabilities.speed = before.capabilities.speed;
        }
    }

    /// Whether it wants no seat.
    pub fn wants_out(&self) -> bool {
        self.finishing || self.returning || self.paused.is_some()
    }

    /// Whether it keeps that state, whatever it carries along with it.
    pub fn keeps(&self, held: &Held) -> bool {
        self.kept.contains_key(&(held.round, held.stage))
    }

    /// Hash of its blob of a state that it keeps.
    pub fn blob_of(&self, round: Round, stage: StageId) -> Option<Digest> {
        self.kept.get(&(round, stage)).copied()
    }

    /// An answer to a ping came after so many microseconds.
    ///
    /// The figure follows slowly, and only where the way became another one: placement is not to change for noise.
    pub fn take_round_trip(&mut self, round_trip: Span) {
        let new_us = round_trip.as_micros() / 2;
        let Some(known_us) = self.delay_us else {
            self.delay_us = Some(new_us);
            return;
        };
        let blended_us = known_us - known_us / 4 + new_us / 4;
        if blended_us.abs_diff(known_us) > known_us / DELAY_NOISE_PARTS {
            self.delay_us = Some(blended_us);
        }
    }

    /// What placement must know of it.
    pub fn candidate(&self, holds: BTreeSet<StageId>) -> Candidate {
        Candidate {
            peer: self.peer,
            block_us: self.capabilities.speed.block_us,
            throttle_percent: self.capabilities.throttle_percent,
            memory_bytes: self.capabilities.memory_bytes,
            relay_only: self.capabilities.relay_only,
            delay_us: self.delay_us.unwrap_or(0),
            bytes_per_second: self.bytes_per_second,
            holds,
        }
    }
}

/// All volunteers of a run.
///
/// What one message needs is found in time that grows with the logarithm of their number; only [`Roster::iter`] and
/// [`Roster::iter_mut`] look at all of them.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    volunteers: BTreeMap<PeerId, Volunteer>,
    connections: BTreeMap<ConnectionId, Option<PeerId>>,
    /// Who keeps a state, by round and stage, whatever its hash.
    keepers: BTreeMap<(Round, StageId), BTreeSet<PeerId>>,
    /// Who a key and a session belong to.
    sessions: BTreeMap<(Digest, u64), PeerId>,
    finishing: BTreeSet<PeerId>,
    /// States that sessions had when they left: they may bring them back.
    departed: BTreeMap<(Digest, u64), BTreeSet<(Round, StageId)>>,
    /// States that a session left with and came back without.
    unreturned: BTreeSet<(Round, StageId)>,
    /// Volunteers looked at one after another: what a test counts.
    #[cfg(any(test, feature = "sim"))]
    looks: std::cell::Cell<u64>,
}

impl Roster {
    /// A connection that has not joined yet.
    pub fn connect(&mut self, connection: ConnectionId) {
        self.connections.insert(connection, None);
    }

    /// Forgets a connection; the volunteer that it belonged to, if it was its current one.
    pub fn disconnect(&mut self, connection: ConnectionId) -> Option<PeerId> {
        let peer = self.connections.remove(&connection)??;
        let volunteer = self.volunteers.get_mut(&peer)?;
        if volunteer.connection != Some(connection) {
            return None;
        }
        volunteer.connection = None;
        Some(peer)
    }

    /// Whether the connection is open and has not joined.
    pub fn is_waiting(&self, connection: ConnectionId) -> bool {
        self.connections.get(&connection) == Some(&None)
    }

    /// Who speaks on that connection.
    pub fn speaker(&self, connection: ConnectionId) -> Option<PeerId> {
        self.connections.get(&connection).copied().flatten()
    }

    /// Adds a volunteer, or one that came back, on `connection`. Returns an older connection of it.
    pub fn join(
        &mut self,
        connection: ConnectionId,
        mut volunteer: Volunteer,
    ) -> Option<ConnectionId> {
        let peer = volunteer.peer;
        let before = self.take(peer);
        let older = before.as_ref().and_then(|before| before.connection);
        if let Some(before) = before {
            volunteer.inherit(&before);
        }
        volunteer.connection = Some(connection);
        self.connections.insert(connection, Some(peer));
        if let Some(older) = older {
            self.connections.remove(&older);
        }
        for &(round, stage) in volunteer.kept.keys() {
            self.keepers.entry((round, stage)).or_default().insert(peer);
        }
        let session = (volunteer.key, volunteer.session);
        let left_with = self.departed.remove(&session).unwrap_or_default();
        let is_back = |at: &(Round, StageId)| volunteer.kept.contains_key(at);
        self.unreturned
            .extend(left_with.into_iter().filter(|at| !is_back(at)));
        self.sessions.insert(session, peer);
        self.volunteers.insert(peer, volunteer);
        older
    }

    /// Removes a volunteer; its connection, if it has one.
    pub fn remove(&mut self, peer: PeerId) -> Option<ConnectionId> {
        let connection = self.take(peer)?.connection?;
        self.connections.remove(&connection);
        Some(connection)
    }

    fn take(&mut self, peer: PeerId) -> Option<Volunteer> {
        let volunteer = self.volunteers.remove(&peer)?;
        self.finishing.remove(&peer);
        let session = (volunteer.key, volunteer.session);
        if self.sessions.get(&session) == Some(&peer) {
            self.sessions.remove(&session);
        }
        for &at in volunteer.kept.keys() {
            self.forget_keeper(at, peer);
        }
        if self.departed.len() < VOLUNTEERS_MAX && !volunteer.kept.is_empty() {
            let kept = volunteer.kept.keys().copied().collect();
            self.departed.insert(session, kept);
        }
        Some(volunteer)
    }

    /// Whether somebody who is away, or gone and not back, had that state, which nobody has who is here.
    pub fn is_elsewhere(&self, at: (Round, StageId)) -> bool {
        self.keepers.contains_key(&at) || self.departed.values().any(|states| states.contains(&at))
    }

    /// Whether somebody who had that state is back without it.
    pub fn came_back_without(&self, at: (Round, StageId)) -> bool {
        self.unreturned.contains(&at)
    }

    fn forget_keeper(&mut self, at: (Round, StageId), peer: PeerId) {
        if let Some(keepers) = self.keepers.get_mut(&at) {
            keepers.remove(&peer);
            if keepers.is_empty() {
                self.keepers.remove(&at);
            }
        }
    }

    /// A volunteer by its number.
    pub fn get(&self, peer: PeerId) -> Option<&Volunteer> {
        self.volunteers.get(&peer)
    }

    /// Who has that key and that session.
    pub fn of_session(&self, key: &Digest, session: u64) -> Option<PeerId> {
        self.sessions.get(&(*key, session)).copied()
    }

    /// Sessions of that key whose connection broke without a word.
    pub fn away_of(&self, key: &Digest) -> impl Iterator<Item = PeerId> {
        let sessions = self.sessions.range((*key, 0)..=(*key, u64::MAX));
        let is_away = |peer: &PeerId| {
            let volunteer = self.get(*peer);
            volunteer.is_some_and(|it| it.connection.is_none() && !it.returning)
        };
        sessions.map(|(_, peer)| *peer).filter(is_away)
    }

    /// A volunteer by its number.
    pub fn get_mut(&mut self, peer: PeerId) -> Option<&mut Volunteer> {
        self.volunteers.get_mut(&peer)
    }

    fn look_at_all(&self) {
        #[cfg(any(test, feature = "sim"))]
        self.looks.set(self.looks.get() + self.len() as u64);
    }

    fn look_at_one(&self) {
        #[cfg(any(test, feature = "sim"))]
        self.looks.set(self.looks.get() + 1);
    }

    /// How many volunteers were looked at one after another so far.
    #[cfg(any(test, feature = "sim"))]
    pub fn looks(&self) -> u64 {
        self.looks.get()
    }

    /// All volunteers, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Volunteer> {
        self.look_at_all();
        self.volunteers.values()
    }

    /// All volunteers, by number.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Volunteer> {
        self.look_at_all();
        self.volunteers.values_mut()
    }

    /// Those with higher numbers than that one, by number.
    pub fn after(&self, peer: Option<PeerId>) -> impl Iterator<Item = &Volunteer> {
        let from = peer.map_or(Bound::Unbounded, Bound::Excluded);
        let volunteers = self.volunteers.range((from, Bound::Unbounded));
        volunteers
            .inspect(|_| self.look_at_one())
            .map(|(_, volunteer)| volunteer)
    }

    /// Number of volunteers, away ones included.
    pub fn len(&self) -> usize {
        self.volunteers.len()
    }

    /// Whether nobody is here.
    pub fn is_empty(&self) -> bool {
        self.volunteers.is_empty()
    }

    /// A volunteer wants to leave after the round. Whether that is news.
    pub fn finish(&mut self, peer: PeerId) -> bool {
        let Some(volunteer) = self.volunteers.get_mut(&peer) else {
            return false;
        };
        volunteer.finishing = true;
        self.finishing.insert(peer)
    }

    /// Those who want to leave.
    pub fn finishing(&self) -> impl Iterator<Item = &Volunteer> {
        self.finishing.iter().filter_map(|peer| self.get(*peer))
    }

    /// A volunteer keeps a state.
    pub fn keep(&mut self, peer: PeerId, held: &Held) {
        if let Some(volunteer) = self.volunteers.get_mut(&peer) {
            let at = (held.round, held.stage);
            volunteer.kept.insert(at, held.blob);
            self.keepers.entry(at).or_default().insert(peer);
        }
    }

    /// A volunteer has lost a state.
    pub fn drop_kept(&mut self, peer: PeerId, round: Round, stage: StageId) {
        if let Some(volunteer) = self.volunteers.get_mut(&peer) {
            volunteer.kept.remove(&(round, stage));
            self.forget_keeper((round, stage), peer);
        }
    }

    /// Nobody is believed to keep that state any more.
    pub fn drop_kept_of_all(&mut self, round: Round, stage: StageId) {
        for peer in self.keepers.remove(&(round, stage)).into_iter().flatten() {
            if let Some(volunteer) = self.volunteers.get_mut(&peer) {
                volunteer.kept.remove(&(round, stage));
            }
        }
    }

    /// Everybody drops the states of rounds that `is_wanted` does not want.
    pub fn retain_rounds(&mut self, is_wanted: impl Fn(Round) -> bool) {
        let dropped: Vec<(Round, StageId)> = self
            .keepers
            .keys()
            .copied()
            .filter(|(round, _)| !is_wanted(*round))
            .collect();
        for (round, stage) in dropped {
            self.drop_kept_of_all(round, stage);
        }
        self.unreturned.retain(|(round, _)| is_wanted(*round));
        self.departed.retain(|_, states| {
            states.retain(|(round, _)| is_wanted(*round));
            !states.is_empty()
        });
    }

    /// Volunteers that keep a stage of a round, away ones included.
    pub fn keepers(&self, round: Round, stage: StageId) -> impl Iterator<Item = &Volunteer> {
        let keepers = self.keepers.get(&(round, stage));
        let peers = keepers.into_iter().flatten();
        let looked = peers.inspect(|_| self.look_at_one());
        looked.filter_map(|peer| self.get(*peer))
    }

    /// Connected volunteers that keep `held`.
    pub fn holders<'a>(&'a self, held: &'a Held) -> impl Iterator<Item = &'a Volunteer> {
        self.keepers(held.round, held.stage)
            .filter(|volunteer| volunteer.connection.is_some() && volunteer.keeps(held))
    }
}

/// A name fit to be shown to strangers: no control characters, not too long, never empty.
pub fn presentable(name: &str) -> String {
    let name: String = name
        .chars()
        .filter(|c| !c.is_control())
        .take(NAME_CHARS_MAX)
        .collect();
    let name = name.trim();
    if name.is_empty() {
        "anonymous".to_owned()
    } else {
        name.to_owned()
    }
}
