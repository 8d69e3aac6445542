//! All line-ups at work, and who sits in which.
//!
//! Holds and finds; decides nothing. A volunteer sits in one seat at most, so a message is brought to its pipeline in
//! time that grows with the logarithm of what there is.
//!
//! Invariant: whoever sits in a pipeline is found by [`Pipelines::of`], and nobody else.

use std::collections::BTreeMap;

use super::pipeline::{Phase, Pipeline, Seat};
use crate::units::{PeerId, PipelineId};
use crate::wire::frame::Place;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Pipelines {
    all: BTreeMap<PipelineId, Pipeline>,
    seated: BTreeMap<PeerId, PipelineId>,
}

impl Pipelines {
    /// Adds a line-up whose number nobody has.
    pub fn insert(&mut self, pipeline: Pipeline) {
        let id = pipeline.place.pipeline;
        self.seated.extend(pipeline.peers().map(|peer| (peer, id)));
        let before = self.all.insert(id, pipeline);
        assert!(before.is_none(), "a line-up is ended before it is renewed");
    }

    /// Ends a line-up.
    pub fn remove(&mut self, id: PipelineId) -> Option<Pipeline> {
        let pipeline = self.all.remove(&id)?;
        for peer in pipeline.peers() {
            self.seated.remove(&peer);
        }
        Some(pipeline)
    }

    /// A pipeline by its number.
    pub fn get(&self, id: PipelineId) -> Option<&Pipeline> {
        self.all.get(&id)
    }

    /// A pipeline by its number.
    pub fn get_mut(&mut self, id: PipelineId) -> Option<&mut Pipeline> {
        self.all.get_mut(&id)
    }

    /// The pipeline that is just there: the same line-up, in the same round.
    pub fn at(&self, place: Place) -> Option<&Pipeline> {
        self.get(place.pipeline).filter(|it| it.place == place)
    }

    /// The pipeline that is just there.
    pub fn at_mut(&mut self, place: Place) -> Option<&mut Pipeline> {
        self.get_mut(place.pipeline).filter(|it| it.place == place)
    }

    /// In which pipeline a volunteer sits.
    pub fn id_of(&self, peer: PeerId) -> Option<PipelineId> {
        self.seated.get(&peer).copied()
    }

    /// The pipeline in which a volunteer sits.
    pub fn of(&self, peer: PeerId) -> Option<&Pipeline> {
        self.get(self.id_of(peer)?)
    }

    /// The pipeline in which a volunteer sits.
    pub fn of_mut(&mut self, peer: PeerId) -> Option<&mut Pipeline> {
        let id = self.id_of(peer)?;
        self.get_mut(id)
    }

    /// The seat of a volunteer.
    pub fn seat(&self, peer: PeerId) -> Option<&Seat> {
        self.of(peer)?.seat(peer)
    }

    /// The seat of a volunteer.
    pub fn seat_mut(&mut self, peer: PeerId) -> Option<&mut Seat> {
        self.of_mut(peer)?.seat_mut(peer)
    }

    /// Whether a volunteer has a seat.
    pub fn is_seated(&self, peer: PeerId) -> bool {
        self.seated.contains_key(&peer)
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Pipeline> {
        self.all.values()
    }

    /// All, by number.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Pipeline> {
        self.all.values_mut()
    }

    /// Numbers of those that `is_wanted` wants.
    pub fn ids(&self, is_wanted: impl Fn(&Pipeline) -> bool) -> Vec<PipelineId> {
        let wanted = self.all.iter().filter(|(_, pipeline)| is_wanted(pipeline));
        wanted.map(|(id, _)| *id).collect()
    }

    /// Those that are at the round's steps, and those that merge.
    pub fn in_round(&self) -> impl Iterator<Item = &Pipeline> {
        let is_in_round = |it: &&Pipeline| matches!(it.phase, Phase::Training | Phase::Merging);
        self.iter().filter(is_in_round)
    }

    /// Everybody who has a seat.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.seated.keys().copied()
    }

    /// Number of pipelines.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}
