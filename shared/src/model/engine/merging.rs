//! The jobs of a merge: blobs and parts in, packed parts and a new blob out.
//!
//! They need no seat and no device, and leave the seat as it is: what merges are copies of a stage at the round's
//! beginning and end. Of each blob only what the job needs is read and checked. The mathematics is
//! [`crate::model::merge`].

use bytes::Bytes;

use super::Engine;
use crate::compute::{Done, Snapshot, StageState as Source};
use crate::model::merge::{self, MergeError};
use crate::model::state::{Blob, StageState, StateError, zeros};
use crate::units::Round;
use crate::wire::merge::Shape;

/// Why a job of a merge was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// There is no such stage.
    #[error("the model has {stages} stages")]
    Stage {
        /// Stages that there are.
        stages: usize,
    },
    /// A blob is not the state of its stage.
    #[error("at the round's {when}: {error}")]
    State {
        /// Of which of the two moments.
        when: &'static str,
        /// What is wrong with it.
        error: StateError,
    },
    /// Parts, states and group do not fit each other, or the result is not finite.
    #[error(transparent)]
    Merge(#[from] MergeError),
}

impl Engine {
    /// [`crate::compute::Job::Contribute`].
    pub(super) fn contribute(
        &self,
        shape: &Shape,
        start: &Source,
        end: &[u8],
        residual: &[u8],
    ) -> Result<Done, Refusal> {
        let stage = self.stage(shape)?;
        let start = match start {
            Source::Seed => self.initial(stage),
            Source::Blob(blob) => at(
                "start",
                self.open(stage, blob).and_then(|blob| blob.weights()),
            )?,
        };
        let end = at("end", self.open(stage, end).and_then(|blob| blob.weights()))?;
        let done = merge::contribute(shape, &start, &end, residual)?;
        Ok(Done::Contributed {
            stage: shape.stage,
            parts: done.parts,
            residual: done.residual,
        })
    }

    /// [`crate::compute::Job::Average`].
    pub(super) fn average(
        &self,
        shape: &Shape,
        parts: &[Bytes],
        residual: &[u8],
    ) -> Result<Done, Refusal> {
        let model = &self.run.model;
        let expected = model.parameter_count_of(self.stage(shape)?);
        if shape.values != expected as u64 {
            let found = shape.values;
            return Err(MergeError::Values { expected, found }.into());
        }
        let done = merge::average(shape, parts, residual)?;
        Ok(Done::Averaged {
            stage: shape.stage,
            part: done.part,
            residual: done.residual,
        })
    }

    /// [`crate::compute::Job::OuterStep`].
    pub(super) fn outer_step(
        &self,
        shape: &Shape,
        round: Round,
        start: &Source,
        end: &[u8],
        parts: &[Bytes],
    ) -> Result<Done, Refusal> {
        let stage = self.stage(shape)?;
        let (mut weights, outer) = match start {
            Source::Seed => (self.initial(stage), None),
            Source::Blob(blob) => at("start", self.open(stage, blob).and_then(agreed))?,
        };
        let mut momentum = outer.unwrap_or_else(|| zeros(&weights));
        let config = &self.run.merge;
        merge::outer_step(shape, config, &mut weights, &mut momentum, parts)?;
        let (first, second, updates) = at("end", self.open(stage, end).and_then(carried))?;
        let state = StageState {
            weights,
            first,
            second,
            updates,
            outer: Some(momentum),
        };
        let snapshot = Snapshot {
            stage: shape.stage,
            agreed: state.agreed_digest(),
            blob: state.to_blob(&self.run.model, stage).into(),
        };
        Ok(Done::Merged { round, snapshot })
    }

    /// The number of the stage that merges.
    fn stage(&self, shape: &Shape) -> Result<usize, Refusal> {
        let (stage, stages) = (usize::from(shape.stage.0), self.run.model.stages);
        if stage >= stages {
            return Err(Refusal::Stage { stages });
        }
        Ok(stage)
    }

    fn initial(&self, stage: usize) -> Vec<Vec<f32>> {
        let weights = self.derivation.initial_weights(stage);
        weights.map(|(_, values)| values).collect()
    }

    fn open<'a>(&self, stage: usize, blob: &'a [u8]) -> Result<Blob<'a>, StateError> {
        Blob::parse(&self.run.model, stage, blob)
    }
}

/// Weights, parameter by parameter, and such lists of moments.
type Lists = Vec<Vec<f32>>;

/// What all replicas have alike.
fn agreed(blob: Blob<'_>) -> Result<(Lists, Option<Lists>), StateError> {
    Ok((blob.weights()?, blob.outer()?))
}

/// What each replica goes on with by itself.
fn carried(blob: Blob<'_>) -> Result<(Lists, Lists, u64), StateError> {
    Ok((blob.first()?, blob.second()?, blob.updates()?))
}

/// Says of which moment a state is that was refused.
fn at<T>(when: &'static str, read: Result<T, StateError>) -> Result<T, Refusal> {
    read.map_err(|error| Refusal::State { when, error })
}
