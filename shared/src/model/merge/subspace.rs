//! A merge where the subspace is adapted: the round's beginning is told in the coordinates of its end.
//!
//! All pipelines turned alike when the round began, so the basis of any end is that of all; what they chose for the next
//! one differs, and is averaged. What packing lost before the turn is carried on as it is: little of little.

use crate::config::model::{ModelConfig, Parameter, SUBSPACE, SUBSPACE_NEXT};
use crate::model::basis;

/// Tells coordinates of `stage` in the basis `to`, `[d_model, rank]`: weights, and outer momentum, if there is one.
pub fn turn(
    model: &ModelConfig,
    stage: usize,
    to: &[f32],
    weights: &mut [Vec<f32>],
    outer: Option<&mut [Vec<f32>]>,
) {
    let parameters = model.parameters_of(stage);
    let Some((rank, own)) = model.adapted_rank().zip(position(&parameters, SUBSPACE)) else {
        return;
    };
    let rotation = basis::rotation(&weights[own], to, rank);
    let turned = |lists: &mut [Vec<f32>]| {
        for (parameter, values) in parameters.iter().zip(lists) {
            if model.holds_coordinates(stage, parameter) {
                basis::turn_rows(values, &rotation, rank);
            }
        }
    };
    turned(weights);
    outer.map(turned);
    for (parameter, values) in parameters.iter().zip(weights) {
        if parameter.is_subspace() {
            values.copy_from_slice(to);
        }
    }
}

/// After the outer step: the round's basis `to` stays, and what comes next is the mean of what the pipelines chose, without
/// momentum. `false` if that is no basis.
pub fn settle(
    parameters: &[Parameter],
    rank: usize,
    to: &[f32],
    weights: &mut [Vec<f32>],
    momentum: &mut [Vec<f32>],
) -> bool {
    if let Some(own) = position(parameters, SUBSPACE) {
        weights[own].copy_from_slice(to);
        momentum[own].fill(0.0);
    }
    let Some(next) = position(parameters, SUBSPACE_NEXT) else {
        return true;
    };
    // It began as `to` and without momentum: that is the mean of the changes now.
    if momentum[next].iter().all(|change| *change == 0.0) {
        weights[next].copy_from_slice(to);
        return true;
    }
    for ((value, begun), change) in weights[next].iter_mut().zip(to).zip(&momentum[next]) {
        *value = begun - change;
    }
    momentum[next].fill(0.0);
    basis::restore(&mut weights[next], rank)
}

fn position(parameters: &[Parameter], name: &str) -> Option<usize> {
    parameters.iter().position(|it| it.name == name)
}
