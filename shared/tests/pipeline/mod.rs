//! A pipeline of engines on the CPU over a model of a few thousand values, and text that it learns in no time.

use burn::tensor::Device;
use bytes::Bytes;
use pollster::block_on;
use shared::compute::{Compute, Done, Input, Job, Snapshot, StageState as Source, clip_scale};
use shared::config::model::{Basis, Codec, ModelConfig, NumberFormat};
use shared::config::run::{MergeConfig, MergeKind, RunConfig, ScheduleConfig, TrainingConfig};
use shared::model::engine::Engine;
use shared::units::{Digest, Microbatch, PipelineId, Round, Span, StageRange, Step};
use shared::wire::frame::{Mode, Place, Slot};

pub(crate) const SUBSPACE: Codec = Codec::fixed_subspace(4);
pub(crate) const ADAPTED: Codec = Codec::Subspace {
    rank: 4,
    adapt_rounds: 1,
};
pub(crate) const PROJECTOR: Codec = projector(Basis::Fixed);
pub(crate) const LEARNED: Codec = projector(Basis::Learned);
/// All codecs.
pub(crate) const CODECS: [Codec; 5] = [Codec::Dense, SUBSPACE, ADAPTED, PROJECTOR, LEARNED];
/// All number formats.
pub(crate) const FORMATS: [NumberFormat; 4] = [
    NumberFormat::F32,
    NumberFormat::F16,
    NumberFormat::Int8,
    NumberFormat::Int4,
];

const fn projector(basis: Basis) -> Codec {
    Codec::Projector {
        rank: 4,
        anchor: 3,
        basis,
    }
}

pub(crate) fn run_config(codec: Codec, format: NumberFormat, seed: u64) -> RunConfig {
    RunConfig {
        name: "test".into(),
        seed,
        model: ModelConfig {
            d_model: 16,
            heads: 2,
            d_ff: 24,
            blocks: 5,
            stages: 4,
            vocabulary: 11,
            context: 8,
            codec,
        },
        format,
        training: TrainingConfig {
            batch: 4,
            microbatches: 2,
            learning_rate: 1e-2,
            clip: 1.0,
            samples: 4000,
            warmup_samples: 0,
        },
        schedule: ScheduleConfig {
            round_steps: 4,
            round_max: Span::from_secs(60),
            seats_min: 1,
            pipelines_max: 1,
            eval_rounds: 0,
            eval_microbatches: 0,
            checkpoint: Span::from_secs(300),
            rewind_wait: Span::from_secs(15),
        },
        merge: MergeConfig {
            kind: MergeKind::Outer,
            format,
            learning_rate: 0.7,
            momentum: 0.9,
            group_max: 16,
        },
    }
}

/// Engines in a row that cover the model, and what they do together.
pub(crate) struct Pipeline {
    pub(crate) run: RunConfig,
    pub(crate) seats: Vec<(StageRange, Engine)>,
    pub(crate) round: u32,
    pub(crate) step: u32,
    /// Samples of all pipelines before the next step: sets the learning rate.
    pub(crate) samples_done: u64,
    /// Border bytes that crossed between engines.
    pub(crate) border_bytes: usize,
}

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StepResult {
    pub(crate) loss: f64,
    pub(crate) norm_squared: f64,
}

impl Pipeline {
    /// Seats cut before each of `cuts`, from the seed or from snapshots.
    pub(crate) fn new(run: &RunConfig, cuts: &[u16], states: Option<&[Snapshot]>) -> Self {
        let stages = u16::try_from(run.model.stages).expect("few");
        let bounds: Vec<u16> = [0]
            .into_iter()
            .chain(cuts.iter().copied())
            .chain([stages])
            .collect();
        let seats = bounds.windows(2).map(|pair| {
            let range = StageRange {
                first: pair[0],
                end: pair[1],
            };
            (range, Engine::new(run.clone(), Device::flex()))
        });
        let mut pipeline = Self {
            run: run.clone(),
            seats: seats.collect(),
            round: 0,
            step: 0,
            samples_done: 0,
            border_bytes: 0,
        };
        pipeline.take(states);
        pipeline
    }

    /// Takes all seats, from the seed or from snapshots; the hashes of all stages' agreed parts.
    pub(crate) fn take(&mut self, states: Option<&[Snapshot]>) -> Vec<Digest> {
        let mut all = Vec::new();
        for (stages, engine) in &mut self.seats {
            let states = stages.iter().map(|stage| match states {
                None => Source::Seed,
                Some(snapshots) => Source::Blob(snapshots[usize::from(stage.0)].blob.clone()),
            });
            let job = Job::Seat {
                stages: *stages,
                states: states.collect(),
                keeps_texts: false,
            };
            match block_on(engine.run(job)) {
                Done::Seated { agreed } => all.extend(agreed),
                other => panic!("{other:?}"),
            }
        }
        all
    }

    pub(crate) fn slot(&self, microbatch: u16) -> Slot {
        let place = Place {
            pipeline: PipelineId(0),
            epoch: Default::default(),
            round: Round(self.round),
        };
        Slot {
            place,
            step: Step(self.step),
            microbatch: Microbatch(microbatch),
        }
    }

    pub(crate) fn forward(&mut self, slot: Slot, mode: Mode, tokens: &[u32]) -> Option<f64> {
        let mut boundary = None;
        let mut loss = None;
        for (_, engine) in &mut self.seats {
            let input = Input {
                tokens: tokens.to_vec(),
                boundary,
                first_sample: 7,
            };
            match block_on(engine.run(Job::Forward { slot, mode, input })) {
                Done::Forward {
                    boundary: out,
                    loss_sum,
                    ..
                } => {
                    self.border_bytes += out.as_ref().map_or(0, Bytes::len);
                    boundary = out;
                    loss = loss_sum;
                }
                other => panic!("{other:?}"),
            }
        }
        loss
    }

    /// One step over all microbatches, clipped as the head would.
    pub(crate) fn train(&mut self, tokens: &[u32]) -> StepResult {
        let microbatches = usize::from(self.run.training.microbatches);
        let step_tokens = self.run.step_tokens();
        let mut result = StepResult {
            loss: 0.0,
            norm_squared: 0.0,
        };
        for (index, tokens) in tokens.chunks(tokens.len() / microbatches).enumerate() {
            let slot = self.slot(u16::try_from(index).expect("few"));
            self.forward(slot, Mode::Train, tokens);
            let mut gradient = None;
            let step_tokens = (index + 1 == microbatches).then_some(step_tokens);
            for (_, engine) in self.seats.iter_mut().rev() {
                match block_on(engine.run(Job::Backward {
                    slot,
                    gradient,
                    step_tokens,
                })) {
                    Done::Backward {
                        gradient: out,
                        loss_sum,
                        norm_squared,
                        ..
                    } => {
                        self.border_bytes += out.as_ref().map_or(0, Bytes::len);
                        gradient = out;
                        result.loss += loss_sum.unwrap_or(0.0);
                        result.norm_squared += norm_squared.unwrap_or(0.0);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        result.loss /= step_tokens as f64;
        let scale = clip_scale(self.run.training.clip, result.norm_squared.sqrt());
        let samples_done = self.samples_done;
        for (_, engine) in &mut self.seats {
            let step = Step(self.step);
            let job = Job::Apply {
                step,
                scale,
                samples_done,
                step_tokens,
            };
            assert_eq!(block_on(engine.run(job)), Done::Applied { step });
        }
        self.step += 1;
        self.samples_done += u64::from(self.run.training.batch);
        result
    }

    /// A round ended, without any merge.
    pub(crate) fn next_round(&mut self) {
        self.round += 1;
        self.step = 0;
    }

    pub(crate) fn snapshot(&mut self) -> Vec<Snapshot> {
        let mut all = Vec::new();
        for (_, engine) in &mut self.seats {
            match block_on(engine.run(Job::Snapshot { round: Round(1) })) {
                Done::Snapshot { stages, .. } => all.extend(stages),
                other => panic!("{other:?}"),
            }
        }
        all
    }
}

/// Sequences that count up from somewhere, `[batch, context + 1]`: easy to learn.
pub(crate) fn counting(run: &RunConfig, salt: u32) -> Vec<u32> {
    let vocabulary = u32::try_from(run.model.vocabulary).expect("small");
    let context = u32::try_from(run.model.context).expect("small");
    let rows = (0..run.training.batch).map(|row| (row * 5 + salt * 3) % vocabulary);
    rows.flat_map(|start| (0..=context).map(move |at| (start + at) % vocabulary))
        .collect()
}
