//! What the weights of all stages must be after some steps and merges, whoever computed them: the judge of a journal.

use super::parts::{average, in_field};
use super::{Stage, hash, token_bytes, tokens};
use crate::config::run::{MergeKind, RunConfig};
use crate::units::{Digest, Epoch, SampleRange, StageId};
use crate::wire::frame::Mode;

/// What the weights of all stages must be after some steps, whoever computed them.
#[derive(Clone, Debug)]
pub struct Fold {
    stages: Vec<Stage>,
    samples_done: u64,
}

impl Fold {
    /// Weights as they follow from the seed.
    pub fn new(config: &RunConfig) -> Self {
        let count = u16::try_from(config.model.stages).expect("stages fit u16");
        let stages = (0..count).map(|stage| Stage::initial(config.seed, StageId(stage)));
        Self {
            stages: stages.collect(),
            samples_done: 0,
        }
    }

    /// Goes on by these steps' samples, computed by the line-up of that epoch.
    pub fn steps(&mut self, config: &RunConfig, epoch: Epoch, steps: &[SampleRange]) {
        let sequences = u64::from(config.microbatch_sequences());
        for samples in steps {
            for microbatch in 0..u64::from(config.training.microbatches) {
                let part = SampleRange {
                    first: samples.first + microbatch * sequences,
                    count: u32::from(config.microbatch_sequences()),
                };
                let tokens = tokens(config, Mode::Train, part);
                fold_microbatch(&mut self.stages, epoch, &token_bytes(config, &tokens));
            }
            self.apply(config.training.clip, u64::from(samples.count));
        }
    }

    /// The update with the gradients of all stages.
    fn apply(&mut self, clip: f64, samples: u64) {
        let norms = self.stages.iter().map(Stage::norm_squared);
        let scale = scale(clip, norms.sum::<f64>().sqrt());
        for stage in &mut self.stages {
            stage.apply(scale, self.samples_done);
        }
        self.samples_done += samples;
    }

    /// Goes on by what several pipelines made of these weights, each given with its samples, in order of pipelines.
    pub fn merge(&mut self, config: &RunConfig, members: &[(u64, Self)]) {
        let samples = members.iter().map(|(samples, _)| samples).sum::<u64>();
        let averages = (0..self.stages.len()).map(|stage| {
            let of = |(samples, fold): &(u64, Self)| {
                let stage = fold.stages[stage];
                let changed = match config.merge.kind {
                    MergeKind::Outer => stage.weights,
                    MergeKind::Gradient => stage.last,
                };
                (*samples, in_field(&changed))
            };
            average(members.iter().map(of))
        });
        let averages: Vec<[u8; 32]> = averages.collect();
        match config.merge.kind {
            MergeKind::Outer => {
                for (stage, average) in self.stages.iter_mut().zip(&averages) {
                    stage.weights = stage.outer_step(average);
                }
                self.samples_done += samples;
            }
            MergeKind::Gradient => {
                for (stage, average) in self.stages.iter_mut().zip(averages) {
                    stage.gradients = average;
                }
                self.apply(config.training.clip, samples);
            }
        }
    }

    /// Hashes of what replicas of each stage agree on.
    pub fn digests(&self, config: &RunConfig) -> Vec<Digest> {
        let agreed = |stage: &Stage| stage.agreed(config.merge.kind);
        self.stages.iter().map(agreed).collect()
    }
}

fn fold_microbatch(stages: &mut [Stage], epoch: Epoch, entering: &[u8; 32]) {
    let mut inputs = vec![*entering];
    for stage in stages.iter() {
        let last = inputs[inputs.len() - 1];
        inputs.push(stage.forward(epoch, &last));
    }
    let mut back = hash(&[b"loss", &inputs[stages.len()]]);
    for (stage, input) in stages.iter_mut().zip(&inputs).rev() {
        back = stage.backward(input, &back);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the optimizer multiplies in f32"
)]
fn scale(clip: f64, norm: f64) -> f32 {
    if norm > clip {
        (clip / norm) as f32
    } else {
        1.0
    }
}
