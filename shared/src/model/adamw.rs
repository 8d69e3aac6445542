//! AdamW over a stage's tensors, with moments that can be read, sent and restored.
//!
//! burn's own optimizer cannot give its moments away asynchronously, and a stage that changes hands
//! must keep them. All tensors are flat here; order and names are the stage's.
//!
//! # Source
//! arXiv 1711.05101. Decay acts on two-dimensional tensors only, embedding tables included.

use burn::tensor::Tensor;

use super::block::narrow;

/// The optimizer's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the second moment's root.
    pub epsilon: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
}

/// Both moments of one tensor, flat.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Running mean of gradients, m.
    pub first: Tensor<1>,
    /// Running mean of squared gradients, v.
    pub second: Tensor<1>,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
        }
    }
}

impl AdamW {
    /// One update of one flat tensor: its new weights.
    ///
    /// `update` counts from 1. `gradient` is clipped already.
    #[must_use]
    pub fn step(
        &self,
        weights: Tensor<1>,
        gradient: Tensor<1>,
        moments: &mut Moments,
        update: u64,
        learning_rate: f64,
        decays: bool,
    ) -> Tensor<1> {
        let scalar = |value: f64| narrow(value);
        let first = moments.first.clone() * scalar(self.beta1)
            + gradient.clone() * scalar(1.0 - self.beta1);
        let second = moments.second.clone() * scalar(self.beta2)
            + gradient.clone() * gradient * scalar(1.0 - self.beta2);
        *moments = Moments {
            first: first.clone(),
            second: second.clone(),
        };

        // beta^update vanishes long before the exponent's type could overflow.
        let power = |beta: f64| beta.powi(i32::try_from(update).unwrap_or(i32::MAX));
        let root = (second * scalar(1.0 / (1.0 - power(self.beta2)))).sqrt();
        let step = first * scalar(learning_rate / (1.0 - power(self.beta1)))
            / (root + scalar(self.epsilon));
        let kept = if decays {
            1.0 - learning_rate * self.weight_decay
        } else {
            1.0
        };
        weights * scalar(kept) - step
    }

    /// The same on lists: plain f32 in a fixed order, so that all replicas end with the same bits on any machine.
    pub(super) fn step_lists(
        &self,
        lists: Lists<'_>,
        gradient: &[f32],
        update: u64,
        learning_rate: f64,
        decays: bool,
    ) {
        let scalar = |value: f64| narrow(value);
        let (correction1, correction2) = (
            1.0 - power(self.beta1, update),
            1.0 - power(self.beta2, update),
        );
        let (rate, root_factor) = (
            scalar(learning_rate / correction1),
            scalar(1.0 / correction2),
        );
        let kept = if decays {
            scalar(1.0 - learning_rate * self.weight_decay)
        } else {
            1.0
        };
        let (beta1, rest1) = (scalar(self.beta1), scalar(1.0 - self.beta1));
        let (beta2, rest2) = (scalar(self.beta2), scalar(1.0 - self.beta2));
        let epsilon = scalar(self.epsilon);
        let moments = lists.first.iter_mut().zip(lists.second);
        for ((weight, (first, second)), gradient) in
            lists.weights.iter_mut().zip(moments).zip(gradient)
        {
            *first = *first * beta1 + gradient * rest1;
            *second = *second * beta2 + gradient * gradient * rest2;
            let root = (*second * root_factor).sqrt();
            *weight = *weight * kept - *first * rate / (root + epsilon);
        }
    }
}

/// One tensor's weights and moments, as lists.
pub(super) struct Lists<'a> {
    pub(super) weights: &'a mut [f32],
    pub(super) first: &'a mut [f32],
    pub(super) second: &'a mut [f32],
}

/// `beta` to the number of an update, by multiplication alone: what a platform's `pow` gives is not the same everywhere.
fn power(beta: f64, update: u64) -> f64 {
    let mut power = 1.0;
    for _ in 0..update {
        if power < f64::EPSILON * f64::EPSILON {
            // One less this is one.
            break;
        }
        power *= beta;
    }
    power
}
