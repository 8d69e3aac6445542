//! What volunteers do that nobody should: silence, broken frames, NaN; and what the run does about it.
//!
//! Deeds are booked by key, not by session: whoever comes again is known. One neighbour's word costs nobody its place:
//! a suspect is asked, broken frames must be told of by two that had a link to it (where one tells twice, the two are
//! placed apart, for either may be the liar), and NaN is what a volunteer says of itself.
//!
//! Here the run pauses itself, too: where two unrelated volunteers compute NaN without a commit in between, or a loss
//! jumps twice in a row, going on would only spoil more. A pause is journaled, so that it outlasts a restart that
//! nobody meant as an answer; it ends when a person starts the host with the wish to go on.

use std::collections::{BTreeMap, BTreeSet};

use super::Coordinator;
use super::history::Row;
use super::incident::{Sequel, What};
use crate::limits::{LINK_TRIES_MAX, MALFORMED_ACCUSERS, STRIKES_MAX, SUSPECT_ANSWER_MAX};
use crate::units::{Digest, PeerId, StageId, Time};
use crate::wire::frame::Place;
use crate::wire::signal::{Down, Suspicion};

/// Keys whose deeds are remembered, of each kind: whoever makes up keys pushes out others' deeds, not memory.
const KEYS_MAX: usize = 10_000;
/// What a person who looked into a pause is to do.
pub(super) const GO_ON: &str = "then start the host again with --resume";

/// Deeds, by key.
#[derive(Clone, Debug, Default)]
pub(super) struct Conduct {
    /// Times that NaN came of finite input.
    non_finite: BTreeMap<Digest, u32>,
    /// ... since the newest commit.
    non_finite_lately: BTreeMap<Digest, u32>,
    /// Those that got what no correct build sends.
    malformed: BTreeMap<Digest, BTreeSet<Digest>>,
    /// Whom each was told to open a link to, or to expect: only they can have received anything.
    met: BTreeMap<PeerId, BTreeSet<PeerId>>,
}

/// What is remembered of `key`.
fn of<T: Default>(deeds: &mut BTreeMap<Digest, T>, key: Digest) -> &mut T {
    if deeds.len() >= KEYS_MAX && !deeds.contains_key(&key) {
        deeds.pop_first();
    }
    deeds.entry(key).or_default()
}

fn count(times: &mut BTreeMap<Digest, u32>, key: Digest) -> u32 {
    let times = of(times, key);
    *times += 1;
    *times
}

impl Conduct {
    /// Whether it gets no seat any more.
    pub(super) fn is_struck(&self, key: &Digest) -> bool {
        self.non_finite
            .get(key)
            .is_some_and(|times| *times >= STRIKES_MAX)
    }

    /// Whether it is not let in any more.
    pub(super) fn is_refused(&self, key: &Digest) -> bool {
        self.malformed
            .get(key)
            .is_some_and(|accusers| accusers.len() >= MALFORMED_ACCUSERS)
    }

    /// The two are told of each other, as neighbours or as source and taker of a state.
    pub(super) fn introduce(&mut self, one: PeerId, other: PeerId) {
        self.met.entry(one).or_default().insert(other);
        self.met.entry(other).or_default().insert(one);
    }

    fn have_met(&self, one: PeerId, other: PeerId) -> bool {
        self.met.get(&one).is_some_and(|met| met.contains(&other))
    }

    /// A volunteer's session is over.
    pub(super) fn forget(&mut self, peer: PeerId) {
        for other in self.met.remove(&peer).unwrap_or_default() {
            if let Some(met) = self.met.get_mut(&other) {
                met.remove(&peer);
            }
        }
    }

    /// A round was committed: the run itself is sound.
    pub(super) fn committed(&mut self) {
        self.non_finite_lately.clear();
    }

    /// Those who made NaN as often as costs a seat, without a commit in between.
    fn diverging(&self) -> usize {
        let times = self.non_finite_lately.values();
        times.filter(|times| **times >= STRIKES_MAX).count()
    }
}

impl Coordinator {
    /// One volunteer suspects another. Broken frames count whenever they came; else it is a neighbour that is silent:
    /// it is asked, and whoever is silent to two is gone.
    pub(super) fn suspect(
        &mut self,
        now: Time,
        by: PeerId,
        place: Option<Place>,
        suspect: PeerId,
        suspicion: Suspicion,
    ) {
        if suspicion == Suspicion::Malformed {
            if self.conduct.have_met(by, suspect) {
                self.malformed_frame(by, suspect);
            }
            return;
        }
        let current = self
            .pipelines
            .of(by)
            .filter(|pipeline| place.is_some_and(|place| pipeline.place.epoch == place.epoch));
        // In a merge those of a group have to do with each other.
        let sit = current.is_some_and(|pipeline| {
            pipeline.seat(suspect).is_some() || self.are_merging(by, suspect)
        });
        if !sit {
            return;
        }
        let pair = (by.min(suspect), by.max(suspect));
        let Some(volunteer) = self.roster.get_mut(suspect) else {
            return;
        };
        volunteer.suspected_by.insert(by);
        let is_gone = volunteer.connection.is_none() || volunteer.suspected_by.len() > 1;
        volunteer.answer_by.get_or_insert(now + SUSPECT_ANSWER_MAX);
        let failures = self.link_failures.entry(pair).or_default();
        *failures += 1;
        if suspicion == Suspicion::Unreachable || *failures >= LINK_TRIES_MAX {
            self.links.separate(by, suspect);
        }
        if is_gone {
            self.lose(suspect, What::Silent);
        } else {
            self.tell(
                suspect,
                Down::Ping {
                    nonce: now.as_micros(),
                },
            );
        }
    }

    /// Somebody says that a volunteer sent it what no correct build sends.
    fn malformed_frame(&mut self, by: PeerId, suspect: PeerId) {
        let (Some(accuser), Some(accused)) = (self.roster.get(by), self.roster.get(suspect)) else {
            return;
        };
        let (to, key, connection) = (accuser.name.clone(), accused.key, accused.connection);
        let line_up = self.pipelines.of(by);
        let are_neighbours = line_up.is_some_and(|it| it.are_neighbours(by, suspect))
            || self.are_merging(by, suspect);
        let accusers = of(&mut self.conduct.malformed, key);
        let sequel = match (accusers.insert(accuser.key), accusers.len()) {
            (_, MALFORMED_ACCUSERS..) => Sequel::Removed,
            (true, _) => Sequel::Again,
            (false, _) if are_neighbours => Sequel::Apart,
            // Known, and nothing hangs on their link.
            (false, _) => return,
        };
        self.incident(suspect, What::MalformedFrame { to, sequel });
        if are_neighbours {
            self.break_pipeline_of(suspect);
        }
        match sequel {
            Sequel::Again => {}
            Sequel::Apart => self.links.separate(by, suspect),
            Sequel::Removed => {
                if let Some(connection) = connection {
                    self.refuse_for_conduct(connection);
                }
                self.forget(suspect);
            }
        }
    }

    /// A pong came: a suspect that answers is not gone; then the link between the two is at fault.
    pub(super) fn answered(&mut self, now: Time, peer: PeerId, asked: Time) {
        let Some(volunteer) = self.roster.get_mut(peer) else {
            return;
        };
        volunteer.take_round_trip(now.since(asked));
        if volunteer.answer_by.take().is_some() {
            // What is broken between two is broken for both: one pipeline's round is enough.
            for by in std::mem::take(&mut volunteer.suspected_by) {
                if let Some(other) = self.roster.get_mut(by) {
                    other.suspected_by.remove(&peer);
                    other.answer_by.take_if(|_| other.suspected_by.is_empty());
                }
            }
            self.break_pipeline_of(peer);
        }
    }

    /// A stage made NaN or infinity: the round starts again. Who makes it of finite input is named, and loses its seat
    /// the second time; where two do so without a commit in between, the run itself diverges and pauses.
    pub(super) fn non_finite(&mut self, by: PeerId, place: Place, stage: StageId, own: bool) {
        let seat = self.pipelines.at(place).and_then(|it| it.seat(by));
        let Some(key) = seat
            .filter(|seat| seat.row.stages.contains(stage))
            .map(|seat| seat.row.key)
        else {
            return;
        };
        if own {
            let strikes = count(&mut self.conduct.non_finite, key);
            count(&mut self.conduct.non_finite_lately, key);
            self.incident(by, What::NonFinite { stage, strikes });
            if let Some(volunteer) = self.roster.get_mut(by) {
                volunteer.struck = strikes >= STRIKES_MAX;
                let name = &volunteer.name;
                self.named = Some(format!(
                    "the round starts again: stage {stage} made NaN of finite numbers at {name}"
                ));
            }
            let text = "the round starts again: your device made NaN of finite numbers";
            self.reason(by, text.to_owned());
        } else {
            self.incident(by, What::MetNonFinite { stage });
        }
        if self.conduct.diverging() >= 2 {
            self.pause(format!(
                "paused: two volunteers made NaN of finite numbers, in stage {stage} the last time: the run itself \
                 diverges; look into it (a lower learning rate?), {GO_ON}"
            ));
        }
        self.break_pipeline(place.pipeline);
    }

    /// Stops the run until a person wants it to go on.
    pub(super) fn pause(&mut self, reason: String) {
        self.note(Row::Paused { reason });
    }
}
