//! What a stage costs whoever holds it: time, memory, and the bytes that move with it.

use std::collections::BTreeSet;

use super::Border;
use crate::config::run::RunConfig;
use crate::units::{StageId, StageRange};

/// Bytes a trained value takes: weight, gradient, both moments, and two copies of weight and moments (the
/// newest committed round and the newest safe one).
const VALUE_BYTES: u64 = 4 + 4 + 8 + 2 * 12;
/// ... and what a merge adds: the outer momentum in both copies; the state at the round's end, the merged one, and what
/// packing lost; on the way our own parts, everybody's of ours, and the averages (in f32 where all own alike, in int8
/// also where one owns the whole stage for ten); and what the outer step computes with: weights, momentum, average and
/// both moments.
const MERGE_VALUE_BYTES: u64 = 2 * 4 + 12 + 16 + 4 + 3 * 4 + 5 * 4;
/// Activations of a block that its backward keeps, in widths of `d_model` a token.
const ACTIVATION_WIDTHS: u64 = 12;
/// ... and in widths of `d_ff`.
const ACTIVATION_INNER_WIDTHS: u64 = 4;
/// Copies of the attention's scores and of the head's logits that a backward keeps.
const SCORE_COPIES: u64 = 3;

/// Costs of each stage of a run. Sums over ranges take constant time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageCosts {
    /// Thousandths of a block's time in the stages before each one; one more entry than stages.
    milliblocks: Vec<u64>,
    /// Bytes of memory, likewise.
    memory: Vec<u64>,
    /// Bytes of state that move with a stage, likewise.
    state: Vec<u64>,
    border: Border,
}

/// Costs of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageCost {
    /// Time in thousandths of a block of the run.
    pub milliblocks: u64,
    /// Memory that a volunteer needs for it, in bytes: weights, gradients, moments, copies, activations.
    pub memory_bytes: u64,
    /// State that moves with it, in bytes: weights and moments, the outer one too where pipelines merge.
    pub state_bytes: u64,
}

impl StageCosts {
    /// The costs of a run's stages. Memory is an estimate on the large side.
    #[must_use]
    pub fn new(config: &RunConfig) -> Self {
        let model = &config.model;
        let wide = |size: usize| size as u64;
        let (d_model, d_ff, context) = (wide(model.d_model), wide(model.d_ff), wide(model.context));
        let tokens = u64::from(config.microbatch_sequences()) * context;
        let scores = SCORE_COPIES * wide(model.heads) * context;
        let block_bytes =
            4 * tokens * (ACTIVATION_WIDTHS * d_model + ACTIVATION_INNER_WIDTHS * d_ff + scores);
        // Multiplications a token of a block of full width, and of the head.
        let block_work = 4 * d_model * d_model + 3 * d_model * d_ff + 2 * context * d_model;
        let head_work = d_model * wide(model.vocabulary);
        let value_bytes = if config.merges() {
            VALUE_BYTES + MERGE_VALUE_BYTES
        } else {
            VALUE_BYTES
        };
        let stages = (0..model.stages).map(|stage| {
            let blocks = wide(model.blocks_of(stage).len());
            let (head_milliblocks, logit_bytes) = if model.is_last(stage) {
                let logits = 4 * tokens * SCORE_COPIES * wide(model.vocabulary);
                (head_work * 1000 / block_work, logits)
            } else {
                (0, 0)
            };
            StageCost {
                milliblocks: 1000 * blocks + head_milliblocks,
                memory_bytes: model.parameter_count_of(stage) as u64 * value_bytes
                    + blocks * block_bytes
                    + logit_bytes,
                state_bytes: config.stage_state_bytes(stage),
            }
        });
        Self::from_stages(stages).with_border(Border {
            bytes: (config.forward_payload_bytes() + config.boundary_bytes()) as u64,
            sequences: u64::from(config.microbatch_sequences()),
            microbatches: u64::from(config.training.microbatches),
        })
    }

    /// Costs that were found otherwise; nothing goes over borders.
    ///
    /// # Panics
    /// If there is no stage, or more than 65,535.
    #[must_use]
    pub fn from_stages(stages: impl IntoIterator<Item = StageCost>) -> Self {
        let mut costs = Self {
            milliblocks: vec![0],
            memory: vec![0],
            state: vec![0],
            border: Border::default(),
        };
        let push = |sums: &mut Vec<u64>, value: u64| {
            let sum = sums.last().expect("sums begin with 0");
            sums.push(sum.saturating_add(value));
        };
        for stage in stages {
            push(&mut costs.milliblocks, stage.milliblocks);
            push(&mut costs.memory, stage.memory_bytes);
            push(&mut costs.state, stage.state_bytes);
        }
        assert!(costs.memory.len() > 1, "a model has at least one stage");
        assert!(
            costs.memory.len() <= usize::from(u16::MAX),
            "stages are numbered in 16 bits"
        );
        costs
    }

    /// All stages.
    #[must_use]
    pub fn all(&self) -> StageRange {
        let end = u16::try_from(self.memory.len() - 1).expect("checked when made");
        StageRange { first: 0, end }
    }

    /// Time of a seat, in thousandths of a block.
    #[must_use]
    pub fn milliblocks_of(&self, stages: StageRange) -> u64 {
        difference(&self.milliblocks, stages)
    }

    /// Memory that a seat needs, in bytes.
    #[must_use]
    pub fn memory_of(&self, stages: StageRange) -> u64 {
        difference(&self.memory, stages)
    }

    /// State of one stage, in bytes.
    #[must_use]
    pub fn state_bytes(&self, stage: StageId) -> u64 {
        self.state_of(StageRange::one(stage))
    }

    /// State of a seat, in bytes.
    #[must_use]
    pub fn state_of(&self, stages: StageRange) -> u64 {
        difference(&self.state, stages)
    }

    /// What goes over each border between two seats.
    #[must_use]
    pub fn border(&self) -> &Border {
        &self.border
    }

    /// The same stages with other borders between them.
    #[must_use]
    pub fn with_border(self, border: Border) -> Self {
        Self { border, ..self }
    }

    /// State of some stages, in bytes; stages that the model does not have count nothing.
    pub(super) fn held_bytes(&self, holds: &BTreeSet<StageId>) -> u64 {
        let ours = holds.iter().filter(|stage| self.all().contains(**stage));
        ours.map(|stage| self.state_bytes(*stage)).sum()
    }
}

fn difference(sums: &[u64], stages: StageRange) -> u64 {
    sums[usize::from(stages.end)] - sums[usize::from(stages.first)]
}
