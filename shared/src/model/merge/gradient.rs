//! Where a round is one step, what replicas merge is its gradient: contributed and averaged like a pseudo-gradient, then
//! clipped by its norm over all stages, then the optimizer's update that one pipeline with all samples would make.
//!
//! Weights, moments and updates end with the same bits at all members, as in [`super`].

use bytes::Bytes;

use super::{Contribution, Cut, MergeError, check_finite};
use crate::config::model::Parameter;
use crate::model::adamw::{AdamW, Lists};
use crate::model::basis;
use crate::model::state::StageState;
use crate::wire::merge::Shape;

/// What clipping and schedule make of a merged gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// What clipping multiplies all gradients by.
    pub scale: f32,
    /// The step's learning rate.
    pub learning_rate: f64,
}

/// The own gradient, all values in name order as f32 little-endian, and what packing lost before, packed for each member.
///
/// # Errors
/// If shape, gradient and residual do not fit each other, or the gradient is not finite.
pub fn contribute_gradient(
    shape: &Shape,
    gradient: &[u8],
    residual: &[u8],
) -> Result<Contribution, MergeError> {
    let cut = Cut::of(shape, 0)?;
    let (words, rest) = gradient.as_chunks::<4>();
    if words.len() != cut.values || !rest.is_empty() {
        return Err(MergeError::Values {
            expected: words.len(),
            found: shape.values,
        });
    }
    let mut values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    values.resize(cut.filled(), 0.0);
    cut.pack_parts(values, residual)
}

/// Sum of the merged gradient's squares, in f64, in name order.
///
/// # Errors
/// If shape and parts do not fit each other, or a part is not finite.
pub fn norm_squared(shape: &Shape, parts: &[Bytes]) -> Result<f64, MergeError> {
    let gradient = Cut::of(shape, 0)?.gathered(parts)?;
    let squares = gradient.iter().map(|value| f64::from(*value).powi(2));
    Ok(squares.sum())
}

/// The optimizer's update of a stage with its merged gradient.
///
/// # Errors
/// If shape, state and parts do not fit each other, or a result is not finite. Then the state is spoilt.
pub fn gradient_step(
    shape: &Shape,
    parameters: &[Parameter],
    state: &mut StageState,
    update: Update,
    parts: &[Bytes],
) -> Result<(), MergeError> {
    let cut = Cut::of(shape, 0)?;
    cut.check_values(&state.weights)?;
    let mut gradient = cut.gathered(parts)?;
    gradient.iter_mut().for_each(|value| *value *= update.scale);
    let mut rest = gradient.as_slice();
    let moments = state.first.iter_mut().zip(&mut state.second);
    state.updates += 1;
    for ((parameter, weights), (first, second)) in
        parameters.iter().zip(&mut state.weights).zip(moments)
    {
        let (own, after) = rest.split_at(weights.len());
        let (rate, decays) = (update.learning_rate, parameter.decays());
        if let Some(rank) = parameter.basis_rank() {
            basis::step(weights, first, own, rank, rate);
        } else {
            let lists = Lists {
                weights,
                first,
                second,
            };
            AdamW::default().step_lists(lists, own, state.updates, rate, decays);
        }
        check_finite("a first moment", first)?;
        check_finite("a second moment", second)?;
        check_finite("the merged stage", weights)?;
        rest = after;
    }
    // A round whose gradients were merged carries no outer momentum.
    state.outer = None;
    Ok(())
}
