//! A learned basis of a border: momentum in the tangent space, and orthonormal columns again after each step.
//!
//! What a border carries depends on the span of its basis `A` alone: turning the columns among themselves changes nothing.
//! So of a gradient only what leaves the span is a direction, `(1 - A A^T) g`. All is plain f64 in a fixed order,
//! rounded to f32 at the end: replicas that merge end with the same bits on any machine.
//!
//! # Source
//! The step is that of the Grassmann manifold (Edelman, Arias and Smith, arXiv physics/9806030, section 2.5), with
//! Gram-Schmidt as retraction; that receivers' bases are learned at all: MAPL, arXiv 2606.05484.

use super::block::narrow;
use crate::derive::orthonormal_columns;

/// Of the model's learning rate, what a basis moves by.
const RATE_SHARE: f64 = 0.1;
/// What stays of the momentum at each step.
const MOMENTUM: f64 = 0.9;

/// One step of a basis down its gradient, at the model's `learning_rate`. A step that would leave no basis is not made.
///
/// # Shapes
/// - `basis`, `momentum`, `gradient`: `[d_model, rank]`, row by row
pub(super) fn step(
    basis: &mut [f32],
    momentum: &mut [f32],
    gradient: &[f32],
    rank: usize,
    learning_rate: f64,
) {
    let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&it| f64::from(it)).collect() };
    let columns = wide(basis);
    let mut fresh = wide(momentum);
    for (momentum, gradient) in fresh.iter_mut().zip(gradient) {
        *momentum = MOMENTUM * *momentum + f64::from(*gradient);
    }
    leave_span(&columns, &mut fresh, rank);
    let moved = columns
        .iter()
        .zip(&fresh)
        .map(|(value, momentum)| value - RATE_SHARE * learning_rate * momentum)
        .collect();
    let Some(mut next) = orthonormal(moved, rank) else {
        momentum.fill(0.0);
        return;
    };
    // Where the basis is now, the momentum is a direction, too.
    leave_span(&wide(&next), &mut fresh, rank);
    basis.swap_with_slice(&mut next);
    for (momentum, fresh) in momentum.iter_mut().zip(fresh) {
        *momentum = narrow(fresh);
    }
}

/// Makes the columns of what is to be a basis orthonormal; `false`, and nothing is changed, if they are none.
pub(super) fn restore(basis: &mut [f32], rank: usize) -> bool {
    let moved = basis.iter().map(|&value| f64::from(value)).collect();
    let restored = orthonormal(moved, rank);
    if let Some(restored) = &restored {
        basis.copy_from_slice(restored);
    }
    restored.is_some()
}

/// Takes from each column of `values` what lies in the span of `basis`.
fn leave_span(basis: &[f64], values: &mut [f64], rank: usize) {
    let mut along = vec![0.0; rank * rank];
    for (basis, values) in basis.chunks_exact(rank).zip(values.chunks_exact(rank)) {
        for (along, basis) in along.chunks_exact_mut(rank).zip(basis) {
            for (along, value) in along.iter_mut().zip(values) {
                *along += basis * value;
            }
        }
    }
    for (basis, values) in basis.chunks_exact(rank).zip(values.chunks_exact_mut(rank)) {
        for (along, basis) in along.chunks_exact(rank).zip(basis) {
            for (value, along) in values.iter_mut().zip(along) {
                *value -= basis * along;
            }
        }
    }
}

/// Row by row in, row by row out.
fn orthonormal(values: Vec<f64>, rank: usize) -> Option<Vec<f32>> {
    let rows = values.len() / rank;
    let columns = (0..rows * rank).map(|at| values[at % rows * rank + at / rows]);
    orthonormal_columns(columns.collect(), rows, rank)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::model::{Basis, Codec, ModelConfig};
    use crate::derive::Derivation;

    const RANK: usize = 6;
    const WIDTH: usize = 20;

    fn seeded(seed: u64) -> Vec<f32> {
        let config = ModelConfig {
            d_model: WIDTH,
            heads: 2,
            codec: Codec::Projector {
                rank: RANK,
                anchor: 4,
                basis: Basis::Learned,
            },
            ..ModelConfig::tiny()
        };
        Derivation::new(config, seed)
            .border_basis(0)
            .expect("a projector")
    }

    /// How far `A^T A` is from one.
    fn error(basis: &[f32]) -> f64 {
        let pairs = (0..RANK).flat_map(|a| (0..RANK).map(move |b| (a, b)));
        let errors = pairs.map(|(a, b)| {
            let rows = basis.chunks_exact(RANK);
            let dot: f64 = rows.map(|row| f64::from(row[a]) * f64::from(row[b])).sum();
            (dot - f64::from(u8::from(a == b))).abs()
        });
        errors.fold(0.0, f64::max)
    }

    /// Of rows of `data`, the squared length that the basis does not keep.
    fn lost(basis: &[f32], data: &[f32]) -> f64 {
        data.chunks_exact(WIDTH)
            .map(|row| {
                let kept = (0..RANK).map(|column| {
                    let along = row.iter().enumerate();
                    let along =
                        along.map(|(at, value)| f64::from(value * basis[at * RANK + column]));
                    along.sum::<f64>().powi(2)
                });
                let all: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
                all - kept.sum::<f64>()
            })
            .sum()
    }

    /// Gradient of [`lost`]: `-2 X^T X A`.
    fn gradient(basis: &[f32], data: &[f32]) -> Vec<f32> {
        let mut gradient = vec![0.0; WIDTH * RANK];
        for row in data.chunks_exact(WIDTH) {
            for column in 0..RANK {
                let along: f32 = (0..WIDTH)
                    .map(|at| row[at] * basis[at * RANK + column])
                    .sum();
                for at in 0..WIDTH {
                    gradient[at * RANK + column] -= 2.0 * row[at] * along;
                }
            }
        }
        gradient
    }

    #[test]
    fn a_basis_turns_to_where_the_gradient_leads_and_stays_orthonormal() {
        let mut basis = seeded(1);
        let mut momentum = vec![0.0; WIDTH * RANK];
        // All of it lies in as many directions as the basis has.
        let directions = seeded(2);
        let rows = (0..30).flat_map(|row| {
            let directions = &directions;
            (0..WIDTH).map(move |at| {
                let weight = |column: usize| ((row * 7 + column * 3) % 11) as f32 - 5.0;
                (0..RANK)
                    .map(|column| weight(column) * directions[at * RANK + column])
                    .sum()
            })
        });
        let data: Vec<f32> = rows.collect();
        let before = lost(&basis, &data);
        for _ in 0..1_000 {
            let gradient = gradient(&basis, &data);
            step(&mut basis, &mut momentum, &gradient, RANK, 1e-3);
            assert!(error(&basis) < 1e-6, "{}", error(&basis));
        }
        let after = lost(&basis, &data);
        assert!(after < 1e-4 * before, "{before} became {after}");
    }

    #[test]
    fn what_is_no_basis_any_more_is_left_as_it_was() {
        let mut basis = seeded(1);
        let kept = basis.clone();
        let mut momentum = vec![1.0; WIDTH * RANK];
        let gradient = vec![f32::NAN; WIDTH * RANK];
        step(&mut basis, &mut momentum, &gradient, RANK, 1e-3);
        assert_eq!(basis, kept);
        assert!(momentum.iter().all(|value| *value == 0.0));
        let mut nothing = vec![0.0; WIDTH * RANK];
        assert!(!restore(&mut nothing, RANK));
    }

    proptest! {
        #[test]
        fn a_thousand_steps_of_any_gradients_leave_columns_orthonormal(
            seed in any::<u64>(),
            size in 1e-3_f32..1e3,
            rate in 1e-4_f64..1e-1,
        ) {
            let mut basis = seeded(seed);
            let mut momentum = vec![0.0; WIDTH * RANK];
            let mut words = crate::random::Words::new("test", &[seed]);
            for _ in 0..1_000 {
                let mut draw = || (words.next_word() >> 8) as f32 / (1 << 24) as f32 - 0.5;
                let gradient: Vec<f32> = (0..WIDTH * RANK).map(|_| size * draw()).collect();
                step(&mut basis, &mut momentum, &gradient, RANK, rate);
            }
            prop_assert!(error(&basis) < 1e-6, "{}", error(&basis));
            let mut restored = basis.clone();
            prop_assert!(restore(&mut restored, RANK));
            let apart = basis.iter().zip(&restored).map(|(a, b)| (a - b).abs());
            prop_assert!(apart.fold(0.0, f32::max) < 1e-6);
        }
    }
}
