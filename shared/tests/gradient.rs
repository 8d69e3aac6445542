//! Pipelines that merge their gradients, on real engines: two of them are one with twice the batch.

#![cfg(feature = "compute")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "any answer but the expected one fails the test"
)]

#[allow(dead_code, reason = "each test uses what it needs of it")]
mod pipeline;

use bytes::Bytes;
use pollster::block_on;
use shared::compute::{Change, Compute, Done, Job, Snapshot, StageState as Source, clip_scale};
use shared::config::model::{Codec, NumberFormat};
use shared::config::run::{MergeKind, RunConfig};
use shared::model::engine::Engine;
use shared::model::state::StageState;
use shared::units::{Digest, Round, StageId};
use shared::wire::merge::{Level, Shape};

use pipeline::{LEARNED, Pipeline, SUBSPACE, counting, run_config};

/// Steps of a run here.
const STEPS: u32 = 20;
/// How much two ways to the same sum in f32 may differ, as a share, after all steps.
const SHARE_MAX: f64 = 1e-5;

/// Two pipelines, cut otherwise, and where each stage's replicas begin the next step.
struct Two {
    run: RunConfig,
    pipelines: [Pipeline; 2],
    starts: Vec<Option<Snapshot>>,
    /// What packing lost, by pipeline and stage.
    residuals: [Vec<Bytes>; 2],
}

impl Two {
    fn new(run: &RunConfig) -> Self {
        Self {
            run: run.clone(),
            pipelines: [
                Pipeline::new(run, &[1], None),
                Pipeline::new(run, &[2], None),
            ],
            starts: vec![None; run.model.stages],
            residuals: [(); 2].map(|()| vec![Bytes::new(); run.model.stages]),
        }
    }

    fn shape(&self, stage: usize, own: u16) -> Shape {
        Shape {
            stage: StageId(u16::try_from(stage).expect("few")),
            values: self.run.model.parameter_count_of(stage) as u64,
            format: self.run.merge.format,
            samples: 2 * u64::from(self.run.training.batch),
            levels: vec![Level {
                weights: vec![u64::from(self.run.training.batch); 2],
                shares: vec![2, 3],
                own,
            }],
        }
    }

    /// A step of both, on these tokens, and the merge of their gradients; their mean loss.
    fn step(&mut self, round: u32, tokens: &[Vec<u32>; 2]) -> f64 {
        let samples_done = self.pipelines[0].samples_done;
        let losses = [0, 1].map(|own| self.pipelines[own].train(&tokens[own]).loss);
        let ends = [0, 1].map(|own: usize| self.pipelines[own].snapshot());
        let stages = 0..self.run.model.stages;
        let averages: Vec<Vec<Bytes>> = stages.clone().map(|at| self.average(at, &ends)).collect();
        // From the last stage to the first, as the norm goes up a pipe.
        let norms = stages.clone().rev().map(|stage| {
            let job = Job::Norm {
                shape: self.shape(stage, 0),
                parts: averages[stage].clone(),
            };
            match run_job(&mut self.pipelines[0], job) {
                Done::Normed { norm_squared, .. } => norm_squared,
                other => panic!("{other:?}"),
            }
        });
        let norm = norms.collect::<Vec<f64>>().iter().sum::<f64>().sqrt();
        let scale = clip_scale(self.run.training.clip, norm);
        for stage in stages {
            let stepped = [0, 1].map(|own: u16| {
                let job = Job::GradientStep {
                    shape: self.shape(stage, own),
                    round: Round(round),
                    start: self.start(stage),
                    parts: averages[stage].clone(),
                    scale,
                    samples_done,
                };
                match run_job(&mut self.pipelines[usize::from(own)], job) {
                    Done::Merged { snapshot, .. } => snapshot,
                    other => panic!("{other:?}"),
                }
            });
            assert_eq!(stepped[0], stepped[1], "moments and all");
            self.starts[stage] = Some(stepped[0].clone());
        }
        let states: Vec<Snapshot> = self.starts.iter().flatten().cloned().collect();
        let agreed: Vec<Digest> = states.iter().map(|it| it.agreed).collect();
        for pipeline in &mut self.pipelines {
            assert_eq!(pipeline.take(Some(&states)), agreed);
            pipeline.samples_done = samples_done + 2 * u64::from(self.run.training.batch);
        }
        f64::midpoint(losses[0], losses[1])
    }

    /// What all members' parts of a stage's gradient average to.
    fn average(&mut self, stage: usize, ends: &[Vec<Snapshot>; 2]) -> Vec<Bytes> {
        let said = [0, 1].map(|own: u16| {
            let at = usize::from(own);
            let job = Job::Contribute {
                shape: self.shape(stage, own),
                change: Change::Gradient(ends[at][stage].gradient.clone()),
                residual: self.residuals[at][stage].clone(),
            };
            match run_job(&mut self.pipelines[at], job) {
                Done::Contributed {
                    parts, residual, ..
                } => (parts, residual),
                other => panic!("{other:?}"),
            }
        });
        let averages = [0, 1].map(|own: u16| {
            let at = usize::from(own);
            let job = Job::Average {
                shape: self.shape(stage, own),
                level: 0,
                parts: said.iter().map(|(parts, _)| parts[at].clone()).collect(),
                residual: said[at].1.clone(),
            };
            match run_job(&mut self.pipelines[at], job) {
                Done::Averaged {
                    mut parts,
                    residual,
                    ..
                } => {
                    self.residuals[at][stage] = residual;
                    parts.swap_remove(0)
                }
                other => panic!("{other:?}"),
            }
        });
        averages.to_vec()
    }

    fn start(&self, stage: usize) -> Source {
        let kept = self.starts[stage].as_ref();
        kept.map_or(Source::Seed, |kept| Source::Blob(kept.blob.clone()))
    }

    fn states(&self) -> Vec<StageState> {
        let read = |(stage, kept): (usize, &Option<Snapshot>)| {
            let blob = &kept.as_ref().expect("a step was made").blob;
            StageState::from_blob(&self.run.model, stage, blob).expect("our own")
        };
        self.starts.iter().enumerate().map(read).collect()
    }
}

/// Jobs of a merge need no seat: any engine of the pipeline will do.
fn run_job(pipeline: &mut Pipeline, job: Job) -> Done {
    let engine: &mut Engine = &mut pipeline.seats[0].1;
    block_on(engine.run(job))
}

fn two_merge(codec: Codec, format: NumberFormat) -> RunConfig {
    let mut run = run_config(codec, NumberFormat::F32, 3);
    run.schedule.pipelines_max = 2;
    run.schedule.round_steps = 1;
    run.merge.kind = MergeKind::Gradient;
    run.merge.format = format;
    run.training.warmup_samples = 10 * u64::from(run.training.batch);
    // So low that most steps are clipped.
    run.training.clip = 0.5;
    run
}

/// By what share of the second one they differ.
fn difference(a: impl Iterator<Item = f32>, b: impl Iterator<Item = f32>) -> f64 {
    let (mut apart, mut whole) = (0.0, 0.0);
    for (a, b) in a.zip(b) {
        apart += (f64::from(a) - f64::from(b)).powi(2);
        whole += f64::from(b).powi(2);
    }
    (apart / whole).sqrt()
}

#[test]
fn two_pipelines_whose_gradients_are_merged_are_one_with_twice_the_batch() {
    for codec in [SUBSPACE, LEARNED] {
        check_twice_the_batch(codec);
    }
}

fn check_twice_the_batch(codec: Codec) {
    let run = two_merge(codec, NumberFormat::F32);
    let mut twice = run.clone();
    twice.training.batch *= 2;
    twice.training.microbatches *= 2;
    let mut one = Pipeline::new(&twice, &[], None);
    let mut two = Two::new(&run);
    let mut worst: f64 = 0.0;
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let tokens = [2 * step, 2 * step + 1].map(|salt| counting(&run, salt));
        let alone = one.train(&tokens.concat());
        let loss = two.step(step + 1, &tokens);
        worst = worst.max((loss - alone.loss).abs() / alone.loss);
        losses.push(loss);
    }
    assert!(worst <= SHARE_MAX, "{codec:?}: losses differ by {worst:e}");
    assert!(losses[19] < 0.9 * losses[0], "{codec:?}: {losses:.3?}");
    for (stage, (merged, alone)) in two.states().iter().zip(one.snapshot()).enumerate() {
        let alone = StageState::from_blob(&run.model, stage, &alone.blob).expect("our own");
        assert_eq!(merged.updates, u64::from(STEPS));
        let lists = [
            (&merged.weights, &alone.weights),
            (&merged.first, &alone.first),
            (&merged.second, &alone.second),
        ];
        for (what, (merged, alone)) in lists.into_iter().enumerate() {
            let values = |lists: &Vec<Vec<f32>>| lists.concat().into_iter();
            let share = difference(values(merged), values(alone));
            assert!(
                share <= SHARE_MAX,
                "{codec:?}, stage {stage}, list {what}: {share:e}"
            );
        }
    }
}

#[test]
fn gradients_of_eight_bits_learn_what_exact_ones_do() {
    let train = |format| {
        let run = two_merge(SUBSPACE, format);
        let mut two = Two::new(&run);
        let losses = (0..40).map(|step| {
            let tokens = [2 * step, 2 * step + 1].map(|salt| counting(&run, salt));
            two.step(step + 1, &tokens)
        });
        losses.collect::<Vec<f64>>()
    };
    let (exact, packed) = (train(NumberFormat::F32), train(NumberFormat::Int8));
    let mean = |losses: &[f64]| losses[30..].iter().sum::<f64>() / 10.0;
    let (exact, packed) = (mean(&exact), mean(&packed));
    assert!(
        packed < 1.05 * exact,
        "{packed} with eight bits, exact {exact}"
    );
}
