//! The model behind [`Compute`]: jobs in, results out, on one device.
//!
//! Translates between jobs and [`Seat`], and [`super::merge`] for what pipelines make of each other's. Decides nothing:
//! whatever does not fit is refused with a reason, and a device that is lost is told as such. The futures do their work between awaits without yielding, so
//! give an engine a thread of its own (natively) or a worker (in a browser).

mod merging;

use burn::tensor::Device;
use bytes::Bytes;

use self::merging::Refusal;
use super::codec::BorderCodec;
use super::learning_rate::learning_rate;
use super::merge::norm_squared;
use super::seat::{Seat, SeatError};
use super::state::{StageState, StateError};
use crate::compute::{Compute, Done, Input, Job, Portion, StageState as Source};
use crate::config::model::SUBSPACE;
use crate::config::run::RunConfig;
use crate::derive::Derivation;
use crate::units::{Digest, StageId, StageRange};
use crate::wire::frame::{Mode, Slot};
use crate::wire::merge::Shape;

/// Does the work of a seat on a device.
#[derive(Debug)]
pub struct Engine {
    run: RunConfig,
    derivation: Derivation,
    codec: BorderCodec,
    device: Device,
    seat: Option<Seat>,
}

impl Engine {
    /// An engine without a seat yet. Derives the run's basis, which takes a moment at `base`.
    #[must_use]
    pub fn new(run: RunConfig, device: Device) -> Self {
        let derivation = Derivation::new(run.model.clone(), run.seed);
        let codec = BorderCodec::from_seed(&derivation, &device);
        Self {
            run,
            derivation,
            codec,
            device,
            seat: None,
        }
    }

    /// Takes `stages` from their states, dropping what was there before, but for texts if they are kept. Gives the hash of each one's agreed part.
    ///
    /// # Errors
    /// If the stages are not the model's, or a blob is not the state of its stage.
    pub fn take_seat(
        &mut self,
        stages: StageRange,
        sources: &[Source],
        keeps_texts: bool,
    ) -> Result<Vec<Digest>, String> {
        let count = self.run.model.stages;
        if stages.first >= stages.end || usize::from(stages.end) > count {
            return Err(format!("{stages} of a model with {count} stages"));
        }
        if sources.len() != stages.count() {
            return Err(format!("{} states for {stages}", sources.len()));
        }
        let state = |(stage, source): (StageId, &Source)| match source {
            Source::Seed => Ok(StageState::initial(&self.derivation, usize::from(stage.0))),
            Source::Blob(blob) => self
                .state(stage, blob)
                .map_err(|error| format!("stage {stage}: {error}")),
        };
        let states = stages
            .iter()
            .zip(sources)
            .map(state)
            .collect::<Result<Vec<_>, _>>()?;
        let subspace = |(stage, state): (StageId, &StageState)| {
            let model = &self.run.model;
            let basis = state.parameter(model, usize::from(stage.0), SUBSPACE);
            basis.map(<[f32]>::to_vec)
        };
        let mut subspaces = stages.iter().zip(&states).map(subspace);
        let first = subspaces.next();
        if subspaces.any(|other| Some(other) != first) {
            return Err(format!("the states of {stages} are of different subspaces"));
        }
        let kind = self.run.merge.kind;
        let agreed = states.iter().map(|it| it.agreed_digest(kind)).collect();
        // The old seat goes first: both at once may not fit into the device.
        let texts = self.seat.take().map(Seat::into_texts);
        let range = usize::from(stages.first)..usize::from(stages.end);
        let mut seat = Seat::new(&self.run, self.codec.clone(), range, states, &self.device);
        if let Some(texts) = texts.filter(|_| keeps_texts) {
            seat.remember(texts);
        }
        self.seat = Some(seat);
        Ok(agreed)
    }

    /// The seat, once taken.
    #[must_use]
    pub fn seat(&self) -> Option<&Seat> {
        self.seat.as_ref()
    }

    /// Makes a weight of the seat NaN, as a faulty device would; see [`crate::faults`].
    #[cfg(feature = "faults")]
    pub fn spoil(&mut self) {
        if let Some(seat) = &mut self.seat {
            seat.spoil();
        }
    }

    fn state(&self, stage: StageId, blob: &[u8]) -> Result<StageState, StateError> {
        StageState::from_blob(&self.run.model, usize::from(stage.0), blob)
    }

    async fn work(&mut self, job: Job) -> Result<Done, (Option<Slot>, SeatError)> {
        match job {
            Job::Seat {
                stages,
                states,
                keeps_texts,
            } => {
                let taken = self.take_seat(stages, &states, keeps_texts);
                Ok(taken.map_or_else(
                    |reason| Done::Refused { reason },
                    |agreed| Done::Seated { agreed },
                ))
            }
            Job::Forward { slot, mode, input } => {
                let done = self.forward(slot, mode, &input).await;
                done.map_err(|error| (Some(slot), error))
            }
            Job::Generate(portion) => {
                let done = self.generate(&portion).await;
                done.map_err(|error| (None, error))
            }
            Job::Forget { request } => {
                if let Some(seat) = &mut self.seat {
                    seat.forget(request);
                }
                Ok(Done::Forgotten { request })
            }
            Job::Backward {
                slot,
                gradient,
                step_tokens,
            } => {
                let done = self.backward(slot, gradient, step_tokens).await;
                done.map_err(|error| (Some(slot), error))
            }
            Job::Apply {
                step,
                scale,
                samples_done,
                step_tokens,
            } => {
                let rate = learning_rate(&self.run.training, samples_done);
                let seat = self.taken().map_err(|error| (None, error))?;
                seat.apply(scale, rate, step_tokens)
                    .await
                    .map_err(|error| (None, error.into()))?;
                Ok(Done::Applied { step })
            }
            Job::Snapshot { round } => {
                let seat = self.taken().map_err(|error| (None, error))?;
                let stages = seat
                    .snapshot()
                    .await
                    .map_err(|error| (None, error.into()))?;
                Ok(Done::Snapshot { round, stages })
            }
            Job::Contribute {
                shape,
                change,
                residual,
            } => Ok(merged(&shape, self.contribute(&shape, &change, &residual))),
            Job::Average {
                shape,
                level,
                parts,
                residual,
            } => {
                let done = self.average(&shape, level, &parts, &residual);
                Ok(merged(&shape, done))
            }
            Job::OuterStep {
                shape,
                round,
                start,
                end,
                parts,
            } => {
                let done = self.outer_step(&shape, round, &start, &end, &parts);
                Ok(merged(&shape, done))
            }
            Job::Norm { shape, parts } => {
                let done = norm_squared(&shape, &parts).map(|norm_squared| Done::Normed {
                    stage: shape.stage,
                    norm_squared,
                });
                Ok(merged(&shape, done.map_err(Refusal::from)))
            }
            Job::GradientStep {
                shape,
                round,
                start,
                parts,
                scale,
                samples_done,
            } => {
                let update = (scale, samples_done);
                let done = self.gradient_step(&shape, round, &start, update, &parts);
                Ok(merged(&shape, done))
            }
        }
    }

    /// The seat, for a job that needs one.
    fn taken(&mut self) -> Result<&mut Seat, SeatError> {
        let none = || SeatError::Refused {
            reason: "no seat was taken yet".to_owned(),
        };
        self.seat.as_mut().ok_or_else(none)
    }

    async fn forward(&mut self, slot: Slot, mode: Mode, input: &Input) -> Result<Done, SeatError> {
        let done = self.taken()?.forward(slot, mode, input).await?;
        Ok(Done::Forward {
            slot,
            boundary: done.boundary.map(Bytes::from),
            loss_sum: done.loss_sum,
        })
    }

    async fn generate(&mut self, portion: &Portion) -> Result<Done, SeatError> {
        let written = self.taken()?.generate(portion).await?;
        let request = portion.request;
        Ok(Done::Generated { request, written })
    }

    async fn backward(
        &mut self,
        slot: Slot,
        gradient: Option<Bytes>,
        step_tokens: Option<u64>,
    ) -> Result<Done, SeatError> {
        let seat = self.taken()?;
        let done = seat
            .backward(slot, gradient.as_deref(), step_tokens)
            .await?;
        Ok(Done::Backward {
            slot,
            gradient: done.gradient.map(Bytes::from),
            loss_sum: done.loss_sum,
            norm_squared: done.norm_squared,
        })
    }
}

/// What a job of a merge gave, or why not, in words.
fn merged(shape: &Shape, done: Result<Done, Refusal>) -> Done {
    done.unwrap_or_else(|refusal| Done::Refused {
        reason: format!("merge of stage {}: {refusal}", shape.stage),
    })
}

impl Compute for Engine {
    async fn run(&mut self, job: Job) -> Done {
        match self.work(job).await {
            Ok(done) => done,
            Err((_, SeatError::Refused { reason })) => Done::Refused { reason },
            Err((Some(slot), SeatError::NonFinite { stage, own })) => {
                Done::NonFinite { slot, stage, own }
            }
            Err((None, error @ SeatError::NonFinite { .. })) => Done::Failed {
                reason: error.to_string(),
            },
            Err((_, SeatError::Device(lost))) => Done::Failed {
                reason: lost.to_string(),
            },
        }
    }
}
