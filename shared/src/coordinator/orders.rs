//! What a seat's volunteer is told: its stages, its neighbours, and where to get the state of each stage.
//!
//! Decides nothing: where a state is to be had follows from who keeps it and from the store.

use std::collections::BTreeSet;

use super::Coordinator;
use super::history::SeatRow;
use super::pipeline::Pipeline;
use crate::units::{Digest, PeerId, Round, StageId, StageRange};
use crate::wire::signal::{Fetch, Held, Neighbour, SeatOrder, Source};

/// Volunteers named as sources of one state.
const SOURCES_MAX: usize = 4;

impl Coordinator {
    pub(super) fn seat_row(&self, peer: PeerId, stages: StageRange) -> Option<SeatRow> {
        let volunteer = self.roster.get(peer)?;
        Some(SeatRow {
            peer,
            key: volunteer.key,
            session: volunteer.session,
            stages,
        })
    }

    pub(super) fn seat_order(&self, pipeline: &Pipeline, index: usize) -> SeatOrder {
        let SeatRow { peer, stages, .. } = pipeline.seats[index].row;
        let neighbour = |index: usize| {
            let row = pipeline.seats.get(index)?.row;
            Some(Neighbour {
                peer: row.peer,
                key: row.key,
            })
        };
        let state: Vec<Fetch> = stages
            .iter()
            .map(|stage| self.fetch(pipeline.place.round, stage, peer))
            .collect();
        SeatOrder {
            place: pipeline.place,
            stages,
            previous: index.checked_sub(1).and_then(neighbour),
            next: neighbour(index + 1),
            seats_behind: u16::try_from(pipeline.seats.len() - 1 - index)
                .expect("fewer seats than stages"),
            keys: self.keys(&state),
            state,
        }
    }

    /// Hash of the agreed part of a stage's state at `round`; of none, where it follows from the seed.
    pub(super) fn agreed(&self, round: Round, stage: StageId) -> Digest {
        let commit = self.history.get(round);
        commit.map_or_else(Digest::default, |it| it.stages[usize::from(stage.0)].agreed)
    }

    /// What a stage's state is at `round`, and where `peer` can get it.
    pub(super) fn fetch(&self, round: Round, stage: StageId, peer: PeerId) -> Fetch {
        let Some(commit) = self.history.get(round) else {
            let (agreed, blob) = (Digest::default(), Digest::default());
            return Fetch {
                held: Held {
                    round,
                    stage,
                    agreed,
                    blob,
                },
                sources: vec![Source::Seed],
            };
        };
        let held = commit.stages[usize::from(stage.0)];
        let key = self.roster.get(peer).map(|volunteer| volunteer.key);
        let has_failed = |source: &PeerId| {
            key.is_some_and(|key| self.missing.has_failed((round, stage), *source, &key))
        };
        let holders = self.roster.holders(&held).map(|volunteer| volunteer.peer);
        let (failed, mut others): (Vec<PeerId>, Vec<PeerId>) = holders
            .filter(|source| *source != peer)
            .partition(has_failed);
        // Whoever comes at the same time begins with another one: the first alone could not serve them all within a round.
        let turn = peer.0.checked_rem(others.len() as u64).unwrap_or(0);
        others.rotate_left(usize::try_from(turn).expect("below a length"));
        let failed = failed
            .into_iter()
            .take(SOURCES_MAX.saturating_sub(others.len()));
        let peer = |peer: PeerId| {
            let blob = self.roster.get(peer)?.blob_of(round, stage)?;
            Some(Source::Peer { peer, blob })
        };
        let others = others.into_iter().take(SOURCES_MAX).filter_map(peer);
        let stored = self
            .has_manifest(round)
            .then(|| self.stored_blob(round, stage).unwrap_or(held.blob))
            .map(|blob| Source::Store {
                path: format!("/store/blobs/{blob}"),
                blob,
            });
        Fetch {
            held,
            // Whom it could not get it from before may have it all the same, when there is nobody else.
            sources: others
                .chain(stored)
                .chain(failed.filter_map(peer))
                .collect(),
        }
    }

    /// Keys of all peers named as sources.
    pub(super) fn keys(&self, state: &[Fetch]) -> Vec<Neighbour> {
        let peers: BTreeSet<PeerId> = state
            .iter()
            .flat_map(|fetch| &fetch.sources)
            .filter_map(|source| match source {
                Source::Peer { peer, .. } => Some(*peer),
                Source::Seed | Source::Store { .. } => None,
            })
            .collect();
        let key = |peer: PeerId| {
            Some(Neighbour {
                peer,
                key: self.roster.get(peer)?.key,
            })
        };
        peers.into_iter().filter_map(key).collect()
    }
}
