//! The jobs of a merge: blobs and parts in, packed parts and a new blob out.
//!
//! They need no seat and no device, and leave the seat as it is: what merges are copies of a stage at the round's
//! beginning and end. Of each blob only what the job needs is read and checked. The mathematics is
//! [`crate::model::merge`].

use bytes::Bytes;

use super::Engine;
use crate::compute::{Change, Done, Snapshot, StageState as Source};
use crate::config::model::SUBSPACE;
use crate::model::learning_rate::learning_rate;
use crate::model::merge::{self, MergeError, Update, subspace};
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
        change: &Change,
        residual: &[u8],
    ) -> Result<Done, Refusal> {
        let stage = self.stage(shape)?;
        let done = match change {
            Change::Round { start, end } => {
                let mut start = match start {
                    Source::Seed => self.initial(stage),
                    Source::Blob(blob) => at("start", self.weights(stage, blob))?,
                };
                let end = at("end", self.open(stage, end))?;
                if let Some(basis) = at("end", self.subspace(&end))? {
                    subspace::turn(&self.run.model, stage, &basis, &mut start, None);
                }
                let end = at("end", end.weights())?;
                merge::contribute(shape, &start, &end, residual)?
            }
            Change::Gradient(gradient) => merge::contribute_gradient(shape, gradient, residual)?,
        };
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
        level: usize,
        parts: &[Bytes],
        residual: &[u8],
    ) -> Result<Done, Refusal> {
        let model = &self.run.model;
        let expected = model.parameter_count_of(self.stage(shape)?);
        if shape.values != expected as u64 {
            let found = shape.values;
            return Err(MergeError::Values { expected, found }.into());
        }
        let done = merge::average(shape, level, parts, residual)?;
        Ok(Done::Averaged {
            stage: shape.stage,
            parts: done.parts,
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
        let (config, model) = (&self.run.merge, &self.run.model);
        let end = at("end", self.open(stage, end))?;
        let basis = at("end", self.subspace(&end))?;
        if let Some(basis) = &basis {
            subspace::turn(model, stage, basis, &mut weights, Some(&mut momentum));
        }
        merge::outer_step(shape, config, &mut weights, &mut momentum, parts)?;
        let parameters = model.parameters_of(stage);
        merge::restore_bases(&parameters, &mut weights)?;
        if let Some((rank, basis)) = model.adapted_rank().zip(basis)
            && !subspace::settle(&parameters, rank, &basis, &mut weights, &mut momentum)
        {
            return Err(MergeError::Basis.into());
        }
        let (first, second, updates) = at("end", carried(end))?;
        let state = StageState {
            weights,
            first,
            second,
            updates,
            outer: Some(momentum),
        };
        let snapshot = self.snapshot(shape, &state);
        Ok(Done::Merged { round, snapshot })
    }

    /// [`crate::compute::Job::GradientStep`].
    pub(super) fn gradient_step(
        &self,
        shape: &Shape,
        round: Round,
        start: &Source,
        (scale, samples_done): (f32, u64),
        parts: &[Bytes],
    ) -> Result<Done, Refusal> {
        let stage = self.stage(shape)?;
        let model = &self.run.model;
        let mut state = match start {
            Source::Seed => StageState::initial(&self.derivation, stage),
            Source::Blob(blob) => at("start", StageState::from_blob(model, stage, blob))?,
        };
        // As of one step with the samples of all.
        let training = &self.run.training;
        let ahead = shape.samples.saturating_sub(u64::from(training.batch));
        let update = Update {
            scale,
            learning_rate: learning_rate(training, samples_done.saturating_add(ahead)),
        };
        let parameters = model.parameters_of(stage);
        merge::gradient_step(shape, &parameters, &mut state, update, parts)?;
        let snapshot = self.snapshot(shape, &state);
        Ok(Done::Merged { round, snapshot })
    }

    fn snapshot(&self, shape: &Shape, state: &StageState) -> Snapshot {
        let (model, stage) = (&self.run.model, usize::from(shape.stage.0));
        Snapshot {
            stage: shape.stage,
            agreed: state.agreed_digest(self.run.merge.kind),
            blob: state.to_blob(model, stage).into(),
            gradient: Bytes::new(),
        }
    }

    fn weights(&self, stage: usize, blob: &[u8]) -> Result<Lists, StateError> {
        self.open(stage, blob)?.weights()
    }

    /// What the coordinates of a state are in, where the subspace is adapted.
    fn subspace(&self, blob: &Blob<'_>) -> Result<Option<Vec<f32>>, StateError> {
        let adapted = self.run.model.adapted_rank();
        adapted.map(|_| blob.parameter(SUBSPACE)).transpose()
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
