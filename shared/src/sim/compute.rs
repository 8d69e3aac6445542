//! Compute without mathematics: weights are a hash of everything that went into them.
//!
//! A stage's boundary is a hash of its weights, its input and the line-up that computes it, its gradient a hash of weights,
//! input and what came back, its update a hash of weights, gradients, clip scale and samples done. So two runs end with
//! equal weights exactly when they did the same work in the same order, wherever the model was cut, and a frame of an
//! older line-up leaves a trace even if it holds the right numbers; [`Fold`] says what that is for a journal.
//!
//! Boundaries, gradients and parts of a merge are as long as the model's, and where it is asked for states, too
//! ([`FakeCompute::at_length`]): then it also takes a device's place where only what moves between machines is looked at.

mod fold;
mod parts;
mod texts;

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::compute::{Change, Done, Input, Job, Snapshot, StageState};
use crate::config::run::{MergeKind, RunConfig};
use crate::units::{Digest, Epoch, RequestId, Round, SampleRange, StageId, StageRange};
use crate::wire::frame::{Mode, Slot};
use crate::wire::merge::Shape;
use crate::wire::payload;
use parts::{average_part, fill, gathered, in_field};

pub use fold::Fold;
pub use texts::next_token;

/// A hash of a sequence of byte strings, each with its length.
fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// One stage's weights, what goes with them, and the gradients of the step under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stage {
    weights: [u8; 32],
    /// As moments: a replica's own, and nothing follows from it.
    carried: [u8; 32],
    gradients: [u8; 32],
    /// Those of the last step.
    last: [u8; 32],
}

impl Stage {
    fn initial(seed: u64, stage: StageId) -> Self {
        let weights = hash(&[b"seed", &seed.to_le_bytes(), &stage.0.to_le_bytes()]);
        Self {
            weights,
            carried: [0; 32],
            gradients: [0; 32],
            last: [0; 32],
        }
    }

    fn of_blob(blob: &[u8]) -> Option<Self> {
        Some(Self {
            weights: blob.get(..32)?.try_into().ok()?,
            carried: blob.get(32..64)?.try_into().ok()?,
            gradients: [0; 32],
            last: [0; 32],
        })
    }

    fn of_state(seed: u64, stage: StageId, state: &StageState) -> Option<Self> {
        match state {
            StageState::Seed => Some(Self::initial(seed, stage)),
            StageState::Blob(blob) => Self::of_blob(blob),
        }
    }

    /// With zeros behind it up to that length.
    fn blob(&self, bytes: usize) -> Bytes {
        let mut blob = [self.weights, self.carried].concat();
        blob.resize(bytes.max(blob.len()), 0);
        blob.into()
    }

    /// The weights that a round's merge makes of these.
    fn outer_step(&self, average: &[u8; 32]) -> [u8; 32] {
        hash(&[b"outer", &self.weights, average])
    }

    fn forward(&self, epoch: Epoch, input: &[u8]) -> [u8; 32] {
        let (incarnation, counter) = (epoch.incarnation.to_le_bytes(), epoch.counter.to_le_bytes());
        hash(&[b"forward", &self.weights, input, &incarnation, &counter])
    }

    fn backward(&mut self, input: &[u8], gradient: &[u8]) -> [u8; 32] {
        self.gradients = hash(&[&self.gradients, input, gradient]);
        hash(&[b"backward", &self.weights, input, gradient])
    }

    fn norm_squared(&self) -> f64 {
        norm_squared(&self.gradients)
    }

    fn apply(&mut self, scale: f32, samples_done: u64) {
        self.weights = hash(&[
            b"apply",
            &self.weights,
            &self.gradients,
            &scale.to_le_bytes(),
            &samples_done.to_le_bytes(),
        ]);
        self.carried = hash(&[&self.carried, &self.gradients]);
        self.last = std::mem::take(&mut self.gradients);
    }

    fn agreed(&self, kind: MergeKind) -> Digest {
        match kind {
            MergeKind::Outer => Digest::of(&self.weights),
            MergeKind::Gradient => Digest::of(&self.blob(0)),
        }
    }
}

/// A multiple of 1/64, so that sums are exact in any order.
fn norm_squared(gradients: &[u8; 32]) -> f64 {
    f64::from(gradients[0]) / 64.0
}

/// Tokens of samples, `[count, context + 1]`: any fixed function will do.
pub fn tokens(config: &RunConfig, mode: Mode, samples: SampleRange) -> Vec<u32> {
    let row = config.model.context as u64 + 1;
    let vocabulary = config.model.vocabulary as u64;
    let salt = match mode {
        Mode::Train => 0,
        Mode::Evaluate => 77,
    };
    (samples.first..samples.end())
        .flat_map(|sample| (0..row).map(move |at| sample * 31 + at * 7 + salt))
        .map(|value| u32::try_from(value % vocabulary).expect("a vocabulary fits u32"))
        .collect()
}

fn token_bytes(config: &RunConfig, tokens: &[u32]) -> [u8; 32] {
    hash(&[&payload::encode_tokens(tokens, config.model.vocabulary)])
}

/// Does what [`crate::model`] would, without mathematics.
#[derive(Clone, Debug)]
pub struct FakeCompute {
    config: RunConfig,
    first: u16,
    stages: Vec<Stage>,
    kept: BTreeMap<Slot, [u8; 32]>,
    /// Of each text that is being written, what was read.
    texts: BTreeMap<RequestId, Vec<u32>>,
    /// Whether its next outer step is a wrong one.
    slips: bool,
    /// Whether states are as long as the model's.
    at_length: bool,
}

impl FakeCompute {
    /// A compute that holds no stages yet.
    pub fn new(config: RunConfig) -> Self {
        Self {
            config,
            first: 0,
            stages: Vec::new(),
            kept: BTreeMap::new(),
            texts: BTreeMap::new(),
            slips: false,
            at_length: false,
        }
    }

    /// The same, with states as long as the model's instead of 64 bytes.
    pub fn at_length(config: RunConfig) -> Self {
        Self {
            at_length: true,
            ..Self::new(config)
        }
    }

    fn snapshot(&self, stage: StageId, state: &Stage) -> Snapshot {
        let bytes = match self.at_length {
            true => self.config.stage_state_bytes(usize::from(stage.0)),
            false => 0,
        };
        Snapshot {
            stage,
            agreed: state.agreed(self.kind()),
            blob: state.blob(usize::try_from(bytes).expect("a stage's state fits memory")),
            gradient: match self.kind() {
                MergeKind::Outer => Bytes::new(),
                MergeKind::Gradient => Bytes::copy_from_slice(&state.last),
            },
        }
    }

    /// The next outer step is to be wrong.
    pub(crate) fn slip(&mut self) {
        self.slips = true;
    }

    /// Does a job, at once.
    pub fn run(&mut self, job: &Job) -> Done {
        match job {
            Job::Seat {
                stages,
                states,
                keeps_texts,
            } => self.seat(*stages, states, *keeps_texts),
            Job::Forward { slot, mode, input } => self.forward(*slot, *mode, input),
            Job::Generate(portion) => self.generate(portion),
            Job::Forget { request } => {
                self.texts.remove(request);
                Done::Forgotten { request: *request }
            }
            Job::Backward {
                slot,
                gradient,
                step_tokens,
            } => self.backward(*slot, gradient.as_ref(), *step_tokens),
            Job::Apply {
                step,
                scale,
                samples_done,
                ..
            } => {
                for stage in &mut self.stages {
                    stage.apply(*scale, *samples_done);
                }
                Done::Applied { step: *step }
            }
            Job::Snapshot { round } => {
                let stages = (self.first..).zip(&self.stages);
                let snapshot = |(stage, state)| self.snapshot(StageId(stage), state);
                Done::Snapshot {
                    round: *round,
                    stages: stages.map(snapshot).collect(),
                }
            }
            Job::Contribute { shape, change, .. } => self.contribute(shape, change),
            Job::Average {
                shape,
                level,
                parts,
                ..
            } => average_part(shape, *level, parts),
            Job::OuterStep {
                shape,
                round,
                start,
                end,
                parts,
            } => self.outer_step(shape, *round, (start, end), parts),
            Job::Norm { shape, parts } => Done::Normed {
                stage: shape.stage,
                norm_squared: norm_squared(&gathered(shape, parts)),
            },
            Job::GradientStep {
                shape,
                round,
                start,
                parts,
                scale,
                samples_done,
            } => self.gradient_step(shape, *round, start, parts, (*scale, *samples_done)),
        }
    }

    fn kind(&self) -> MergeKind {
        self.config.merge.kind
    }

    /// What changed is the weights at the end, or the gradient.
    fn contribute(&self, shape: &Shape, change: &Change) -> Done {
        let changed = match change {
            Change::Round { start, end } => {
                let start = Stage::of_state(self.config.seed, shape.stage, start);
                let (Some(_), Some(end)) = (start, Stage::of_blob(end)) else {
                    return refused("no states");
                };
                end.weights
            }
            Change::Gradient(gradient) => match first(gradient) {
                Some(gradient) => gradient,
                None => return refused("no gradient"),
            },
        };
        let value = in_field(&changed);
        let parts = shape.parts(0).into_iter();
        Done::Contributed {
            stage: shape.stage,
            parts: parts.map(|tiles| fill(shape, tiles, &value)).collect(),
            residual: Bytes::new(),
        }
    }

    fn outer_step(
        &mut self,
        shape: &Shape,
        round: Round,
        (start, end): (&StageState, &Bytes),
        parts: &[Bytes],
    ) -> Done {
        let start = Stage::of_state(self.config.seed, shape.stage, start);
        let (Some(start), Some(end)) = (start, Stage::of_blob(end)) else {
            return refused("no states");
        };
        let merged = Stage {
            weights: start.outer_step(&gathered(shape, parts)),
            ..end
        };
        self.merged(shape, round, merged)
    }

    fn gradient_step(
        &mut self,
        shape: &Shape,
        round: Round,
        start: &StageState,
        parts: &[Bytes],
        (scale, samples_done): (f32, u64),
    ) -> Done {
        let start = Stage::of_state(self.config.seed, shape.stage, start);
        let Some(mut merged) = start else {
            return refused("no state");
        };
        merged.gradients = gathered(shape, parts);
        merged.apply(scale, samples_done);
        self.merged(shape, round, merged)
    }

    fn merged(&mut self, shape: &Shape, round: Round, mut merged: Stage) -> Done {
        if std::mem::take(&mut self.slips) {
            // Two devices that err do not err alike: what it holds of its own goes in.
            let own = self.stages.first().map_or([0; 32], |stage| stage.weights);
            merged.weights = hash(&[b"slipped", &merged.weights, &own]);
        }
        Done::Merged {
            round,
            snapshot: self.snapshot(shape.stage, &merged),
        }
    }

    fn seat(&mut self, stages: StageRange, states: &[StageState], keeps_texts: bool) -> Done {
        if !keeps_texts {
            self.texts.clear();
        }
        self.first = stages.first;
        self.kept.clear();
        self.stages.clear();
        for (stage, state) in stages.iter().zip(states) {
            let Some(state) = Stage::of_state(self.config.seed, stage, state) else {
                return refused("less than 64 bytes");
            };
            self.stages.push(state);
        }
        let agreed = self
            .stages
            .iter()
            .map(|it| it.agreed(self.kind()))
            .collect();
        Done::Seated { agreed }
    }

    fn is_last(&self) -> bool {
        usize::from(self.first) + self.stages.len() == self.config.model.stages
    }

    /// The first 32 bytes of a boundary, or of what the tokens hash to.
    fn entering(&self, input: &Input) -> Option<[u8; 32]> {
        match &input.boundary {
            None => Some(token_bytes(&self.config, &input.tokens)),
            Some(boundary) => boundary.get(..32)?.try_into().ok(),
        }
    }

    /// What came is as long as it must be.
    fn fits(came: Option<&Bytes>, bytes: usize) -> bool {
        came.is_none_or(|came| came.len() == bytes)
    }

    fn forward(&mut self, slot: Slot, mode: Mode, input: &Input) -> Done {
        let bytes = self.config.forward_boundary_bytes(mode.opens(slot));
        let entering = self.entering(input);
        let Some(entering) = entering.filter(|_| Self::fits(input.boundary.as_ref(), bytes)) else {
            return refused("a boundary of another length");
        };
        if mode == Mode::Train {
            self.kept.insert(slot, entering);
            if self.is_last() {
                return Done::Forward {
                    slot,
                    boundary: None,
                    loss_sum: None,
                };
            }
        }
        let value = self.stages.iter().fold(entering, |value, stage| {
            stage.forward(slot.place.epoch, &value)
        });
        let tokens =
            f64::from(self.config.microbatch_sequences()) * self.config.model.context as f64;
        match self.is_last() {
            true => Done::Forward {
                slot,
                boundary: None,
                loss_sum: Some(tokens),
            },
            false => Done::Forward {
                slot,
                boundary: Some(repeated(&value, bytes)),
                loss_sum: None,
            },
        }
    }

    fn backward(&mut self, slot: Slot, gradient: Option<&Bytes>, step_tokens: Option<u64>) -> Done {
        let bytes = self
            .config
            .backward_payload_bytes(slot.place.round, slot.microbatch);
        if !Self::fits(gradient, bytes) {
            return refused("a gradient of another length");
        }
        let entering = self
            .kept
            .remove(&slot)
            .expect("a backward follows its forward");
        let mut inputs = vec![entering];
        for stage in &self.stages {
            let last = inputs[inputs.len() - 1];
            inputs.push(stage.forward(slot.place.epoch, &last));
        }
        let loss_sum =
            f64::from(self.config.microbatch_sequences()) * self.config.model.context as f64;
        let (mut back, loss_sum) = match gradient {
            None => (hash(&[b"loss", &inputs[self.stages.len()]]), Some(loss_sum)),
            Some(gradient) => match gradient.get(..32).and_then(|bytes| bytes.try_into().ok()) {
                Some(back) => (back, None),
                None => {
                    return Done::Refused {
                        reason: "gradient too short".to_owned(),
                    };
                }
            },
        };
        for (stage, input) in self.stages.iter_mut().zip(&inputs).rev() {
            back = stage.backward(input, &back);
        }
        let norm_squared = step_tokens.map(|_| self.stages.iter().map(Stage::norm_squared).sum());
        let gradient = (self.first > 0).then(|| repeated(&back, bytes));
        Done::Backward {
            slot,
            gradient,
            loss_sum,
            norm_squared,
        }
    }
}

fn refused(reason: &str) -> Done {
    Done::Refused {
        reason: reason.to_owned(),
    }
}

fn repeated(value: &[u8; 32], bytes: usize) -> Bytes {
    let mut repeated = value.repeat(bytes.div_ceil(value.len()));
    repeated.truncate(bytes);
    repeated.into()
}

/// The first 32 bytes.
fn first(bytes: &Bytes) -> Option<[u8; 32]> {
    bytes.get(..32)?.try_into().ok()
}
