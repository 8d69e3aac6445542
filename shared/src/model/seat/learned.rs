//! Bases that are learned, where a seat meets the network and between its stages.
//!
//! The stage before a border owns its basis; the stage behind it has a copy, and a part of its gradient. With each step's first
//! forward the basis goes on to the next seat, so that both compute with the same bits from there on; with the step's
//! last backward the part of the gradient comes back, summed over the step, before the norm is taken.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};

use super::{Seat, SeatError, read, refuse};
use crate::config::model::ModelConfig;
use crate::model::basis;
use crate::model::block::tensor;
use crate::model::stage::{BasisDue, Stage};
use crate::model::state::DeviceLost;

/// No value of orthonormal columns is larger than one, but for rounding.
pub(super) const VALUE_MAX: f32 = 1.001;

/// What stages that lift by a basis add to its gradient, summed over a step apart from what the stage adds that learns it:
/// so the sum is the same to the bit wherever the model is cut.
#[derive(Debug, Default)]
pub(super) struct Learned {
    /// By the number of the stage that learns.
    sums: BTreeMap<usize, Tensor<2>>,
}

impl Learned {
    /// `stage` learns by this, too.
    pub(super) fn add(&mut self, stage: usize, gradient: Option<Tensor<2>>) {
        if let Some(gradient) = gradient {
            let sum = match self.sums.remove(&stage) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            self.sums.insert(stage, sum);
        }
    }

    /// At the end of a step: the seat's stages get what they learn by. What is left is the seat before's.
    pub(super) fn end_step(&mut self, stages: &mut [Stage]) -> Option<Tensor<2>> {
        let sums = std::mem::take(&mut self.sums);
        let first = stages.first()?.index();
        let mut before = None;
        for (number, sum) in sums {
            match number.checked_sub(first) {
                Some(position) => stages[position].add_basis_gradient(sum),
                None => before = Some(sum),
            }
        }
        before
    }
}

impl Seat {
    /// Whether the basis that lifts what enters the seat has still to come, with the first microbatch.
    pub(super) fn lacks_basis(&self) -> bool {
        let is_learned = self.run.model.learned_basis_bytes() > 0;
        is_learned && self.first() > 0 && self.stages[0].entering().is_none()
    }
}

/// Cuts off a basis, or what changes one, of so many bytes that follow the packed numbers of a border.
pub(super) fn cut_basis(bytes: &[u8], wanted: usize) -> Result<(&[u8], Vec<f32>), SeatError> {
    let Some((packed, basis)) = bytes.len().checked_sub(wanted).map(|at| bytes.split_at(at)) else {
        return refuse(format!("{} bytes hold no basis of {wanted}", bytes.len()));
    };
    let (words, _) = basis.as_chunks::<4>();
    Ok((
        packed,
        words.iter().map(|word| f32::from_le_bytes(*word)).collect(),
    ))
}

/// The basis that came with a border lifts it from now on; empty where none came.
pub(super) fn enter_first(
    stages: &mut [Stage],
    model: &ModelConfig,
    values: Vec<f32>,
    device: &Device,
) {
    if let Some((basis, first)) = uploaded(model, values, device).zip(stages.first_mut()) {
        first.set_entering(Some(basis));
    }
}

/// Inside the seat each stage lifts by the basis of the one before it.
pub(super) fn enter_inner(stages: &mut [Stage]) {
    for behind in 1..stages.len() {
        let basis = stages[behind - 1].basis();
        stages[behind].set_entering(basis);
    }
}

/// A step of each basis that waits for one.
pub(super) async fn step_bases(stages: &mut [Stage], learning_rate: f64) -> Result<(), DeviceLost> {
    for stage in stages.iter_mut() {
        let Some(due) = stage.take_basis_due() else {
            continue;
        };
        let BasisDue {
            rank,
            basis,
            momentum,
            gradient,
        } = due;
        let mut lists = read(vec![basis, momentum, gradient]).await?;
        if let [basis, momentum, gradient] = &mut lists[..] {
            basis::step(basis, momentum, gradient, rank, learning_rate);
            stage.set_basis(basis, momentum);
        }
    }
    enter_inner(stages);
    Ok(())
}

/// `[d_model, rank]`; none of nothing.
pub(super) fn uploaded(
    model: &ModelConfig,
    values: Vec<f32>,
    device: &Device,
) -> Option<Tensor<2>> {
    let shape = [model.d_model, model.boundary_width()];
    (!values.is_empty()).then(|| tensor(values, shape, device))
}
