//! The bases of a stage's borders, where they are learned: the stage owns the one behind it, and lifts by a copy of the
//! one before it.
//!
//! The own basis is one of the parameters, and moves, merges and is hashed with them; but no optimizer touches it
//! ([`crate::model::basis`] steps it). Where the other one comes from is the seat's business.

use burn::tensor::Tensor;

use super::Stage;

/// A learned basis that waits for its step; all of it row by row.
#[derive(Debug)]
pub(in crate::model) struct BasisDue {
    pub(in crate::model) rank: usize,
    pub(in crate::model) basis: Tensor<1>,
    pub(in crate::model) momentum: Tensor<1>,
    pub(in crate::model) gradient: Tensor<1>,
}

impl Stage {
    /// The basis of the border before the stage, once it came.
    pub(in crate::model) fn entering(&self) -> Option<Tensor<2>> {
        self.entering.clone()
    }

    /// What the border before the stage is lifted by from now on.
    pub(in crate::model) fn set_entering(&mut self, basis: Option<Tensor<2>>) {
        self.entering = basis;
    }

    /// The basis of the border after the stage.
    pub(in crate::model) fn basis(&self) -> Option<Tensor<2>> {
        self.layers.basis()
    }

    fn basis_position(&self) -> Option<usize> {
        let mut parameters = self.parameters.iter();
        parameters.position(|parameter| parameter.basis_rank().is_some())
    }

    /// Adds to the gradient of the stage's basis what came of whoever lifts by it. After a backward of the stage's own.
    pub(in crate::model) fn add_basis_gradient(&mut self, gradient: Tensor<2>) {
        if let Some(position) = self.basis_position()
            && let Some(sums) = &mut self.gradients
        {
            sums[position] = sums[position].clone() + gradient.flatten(0, 1);
        }
    }

    /// The basis and what it is to be stepped by, after an update.
    pub(in crate::model) fn take_basis_due(&mut self) -> Option<BasisDue> {
        let gradient = self.basis_due.take()?;
        let position = self.basis_position()?;
        Some(BasisDue {
            rank: self.parameters[position].basis_rank()?,
            basis: self.basis()?.flatten(0, 1),
            momentum: self.moments[position].first.clone(),
            gradient,
        })
    }

    /// What became of basis and momentum.
    pub(in crate::model) fn set_basis(&mut self, basis: &[f32], momentum: &[f32]) {
        let position = self.basis_position().expect("it had a basis");
        let device = self.device();
        let upload = |values: &[f32]| Tensor::<1>::from_floats(values, &device);
        self.moments[position].first = upload(momentum);
        let first_block = self.config.blocks_of(self.index).start;
        let mut slots = self.layers.slots(first_block).into_iter();
        let (_, slot) = slots.nth(position).expect("a slot for each parameter");
        slot.replace(upload(basis));
    }
}
