//! States that could not be had: who failed to get which from whom.
//!
//! One volunteer's word drops nobody's state: its own network may be at fault. It gets other sources, somebody else
//! makes the copy, and a seat's state goes to the store, where hashes are checked. Only what several keys say of one
//! holder, or the holder of itself, is believed.
//!
//! Invariant: only who was told to fetch a state is heard, and only of rounds that are newest or being secured; so the
//! books are bounded by the seats and copies of those.

use std::collections::{BTreeMap, BTreeSet};

use super::Coordinator;
use crate::limits::{BENCH, MISSING_MAX, SEAT_FAILURES_MAX};
use crate::units::{Digest, PeerId, Round, StageId, StageRange, Time};
use crate::wire::signal::{Held, Source};

/// A state, whatever its hash.
type At = (Round, StageId);

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct Missing {
    /// Keys of those who could not get a state, by the state and who should have given it.
    failed: BTreeMap<At, BTreeMap<PeerId, BTreeSet<Digest>>>,
    /// How often a volunteer could not get its seat's states, since the newest commit.
    seats: BTreeMap<PeerId, u32>,
}

impl Missing {
    /// Whether the volunteer with that key could not get that state from `source`.
    pub(super) fn has_failed(&self, at: At, source: PeerId, key: &Digest) -> bool {
        let of_source = self.failed.get(&at).and_then(|failed| failed.get(&source));
        of_source.is_some_and(|keys| keys.contains(key))
    }

    /// Whether anybody could not get that state from `source`.
    pub(super) fn is_doubted(&self, at: At, source: PeerId) -> bool {
        let failed = self.failed.get(&at);
        failed.is_some_and(|failed| failed.contains_key(&source))
    }

    /// Somebody got that state.
    pub(super) fn found(&mut self, at: At) {
        self.failed.remove(&at);
    }

    /// A round is committed: seats go on.
    pub(super) fn committed(&mut self) {
        self.seats.clear();
    }

    /// Forgets the states of rounds that `is_wanted` does not want.
    pub(super) fn retain_rounds(&mut self, is_wanted: impl Fn(Round) -> bool) {
        self.failed.retain(|(round, _), _| is_wanted(*round));
    }

    /// A volunteer's session is over.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.seats.remove(&peer);
        for failed in self.failed.values_mut() {
            failed.remove(&peer);
        }
    }
}

impl Coordinator {
    /// A volunteer could not get a state from anyone it was told, or does not have what it was to upload.
    pub(super) fn missing(&mut self, now: Time, peer: PeerId, round: Round, stage: StageId) {
        let at = (round, stage);
        let Some(volunteer) = self.roster.get_mut(peer) else {
            return;
        };
        let is_at = |held: &Held| (held.round, held.stage) == at;
        let copying = &mut volunteer.copying;
        let was_copying = copying.take_if(|(held, _)| is_at(held)).is_some();
        // Of itself it knows.
        self.roster.drop_kept(peer, round, stage);
        self.upload_is_missing(peer, at);
        let is_for_seat = self.pipelines.of(peer).is_some_and(|pipeline| {
            pipeline.place.round == round
                && pipeline
                    .seat(peer)
                    .is_some_and(|seat| !seat.ready && seat.row.stages.contains(stage))
        });
        if was_copying || is_for_seat {
            self.doubt_sources(peer, at);
        }
        if is_for_seat {
            self.break_pipeline_of(peer);
            self.seat_failed(now, peer);
        }
    }

    /// Books that `peer` got the state from none of those it was told, and disbelieves whom several keys failed with.
    fn doubt_sources(&mut self, peer: PeerId, at: At) {
        let Some(key) = self.roster.get(peer).map(|volunteer| volunteer.key) else {
            return;
        };
        let (round, stage) = at;
        for source in self.fetch(round, stage, peer).sources {
            let Source::Peer { peer: source, .. } = source else {
                continue;
            };
            let of_state = self.missing.failed.entry(at).or_default();
            let keys = of_state.entry(source).or_default();
            keys.insert(key);
            if keys.len() >= MISSING_MAX {
                of_state.remove(&source);
                self.roster.drop_kept(source, round, stage);
            }
        }
    }

    /// A volunteer has other states in its seat than it should: it gets them again, from others.
    pub(super) fn seat_is_wrong(&mut self, now: Time, peer: PeerId, round: Round) {
        let seat = self.pipelines.seat(peer).map(|seat| seat.row.stages);
        for stage in seat.into_iter().flat_map(StageRange::iter) {
            self.roster.drop_kept(peer, round, stage);
        }
        self.break_pipeline_of(peer);
        let text = "your seat's state is not the run's; you get it again";
        self.reason(peer, text.to_owned());
        self.seat_failed(now, peer);
    }

    /// A volunteer could not get its seat's states. After a few times in a row it waits, and the state goes to the
    /// store: either it can be had there then, or its holder shows that it has it not.
    fn seat_failed(&mut self, now: Time, peer: PeerId) {
        let count = self.missing.seats.entry(peer).or_default();
        *count += 1;
        if *count < SEAT_FAILURES_MAX {
            return;
        }
        self.missing.seats.remove(&peer);
        if let Some(volunteer) = self.roster.get_mut(peer) {
            volunteer.benched_until = Some(now + BENCH);
        }
        let text = "the state of your seat could not be had from those who hold it; you get a seat again in a minute";
        self.reason(peer, text.to_owned());
        if !self.has_manifest(self.history.newest()) {
            self.secure(now, true);
        }
    }
}
