//! Bases that change: how they step, and what their columns become of each other.
//!
//! A learned basis of a border has momentum in the tangent space; the subspace that all borders share, where it is adapted,
//! turns to where the loss depends most on the stream. Both have orthonormal columns again after each step.
//!
//! What a border carries depends on the span of its basis `A` alone: turning the columns among themselves changes nothing.
//! So of a gradient only what leaves the span is a direction, `(1 - A A^T) g`. All is plain f64 in a fixed order,
//! rounded to f32 at the end: replicas that merge end with the same bits on any machine.
//!
//! # Source
//! The step is that of the Grassmann manifold (Edelman, Arias and Smith, arXiv physics/9806030, section 2.5), with
//! Gram-Schmidt as retraction; that receivers' bases are learned at all: MAPL, arXiv 2606.05484; that the shared one
//! follows the energy of the last stage's gradients: "Protocol Models", arXiv 2506.01260.

use super::block::narrow;
use crate::derive::orthonormal_columns;

/// Of the model's learning rate, what a basis moves by.
const RATE_SHARE: f64 = 0.1;
/// What stays of the momentum at each step.
const MOMENTUM: f64 = 0.9;
/// How far the subspace turns to what its power method would give: 1 takes all of it.
const TURN: f64 = 0.1;
/// How far a direction of the subspace turns at most: the tangent of the angle.
const TURN_MAX: f64 = 0.5;

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

/// The subspace's basis turned by what the stream's gradients say; none where they say nothing that a basis follows from.
///
/// Of gradients g, a row a token, it makes `sum |g - g U U^T|^2` smaller: by a step down its slope `-2 (1 - U U^T) E U`,
/// with E the sum of `g^T g`. The step is [`TURN`] times that by which the mean direction of the basis would take what the
/// power method gives it, so it does not depend on how large gradients are.
///
/// # Shapes
/// - `basis`, `energy` (E U): `[d_model, rank]`, row by row
pub(super) fn turned(basis: &[f32], energy: &[f64], rank: usize) -> Option<Vec<f32>> {
    let columns = wide(basis);
    let kept: f64 = columns.iter().zip(energy).map(|(a, b)| a * b).sum();
    let mut outside = energy.to_vec();
    leave_span(&columns, &mut outside, rank);
    let column = |at: usize| -> f64 {
        let rows = outside.chunks_exact(rank);
        rows.map(|row| row[at] * row[at]).sum::<f64>().sqrt()
    };
    let longest = (0..rank).map(column).fold(0.0, f64::max);
    let step = (TURN * rank as f64 / kept).min(TURN_MAX / longest);
    if !(step > 0.0 && step.is_finite()) {
        return None;
    }
    let moved = columns.iter().zip(&outside);
    orthonormal(
        moved
            .map(|(value, outside)| value + step * outside)
            .collect(),
        rank,
    )
}

/// `U^T V`: coordinates in `from`, times it, are those in `to` of the nearest vector there.
///
/// # Shapes
/// - `from`, `to`: `[d_model, rank]`, row by row
/// - returns `[rank, rank]`, row by row
pub(super) fn rotation(from: &[f32], to: &[f32], rank: usize) -> Vec<f32> {
    products(&wide(from), &wide(to), rank)
        .into_iter()
        .map(narrow)
        .collect()
}

/// What mean squares of coordinates become by a rotation: of those that a new coordinate is made of, the mean by their share.
///
/// # Shapes
/// - `rotation`: `[rank, rank]`, row by row; so is what it returns
pub(super) fn shares(rotation: &[f32], rank: usize) -> Vec<f32> {
    let squares: Vec<f64> = rotation.iter().map(|&it| f64::from(it).powi(2)).collect();
    let sums: Vec<f64> = (0..rank)
        .map(|column| squares.iter().skip(column).step_by(rank).sum())
        .collect();
    let shares = squares.chunks_exact(rank).flat_map(|row| {
        row.iter().zip(&sums).map(|(square, sum)| {
            // A direction that is new altogether is taken for one like all others.
            if *sum > 0.0 {
                square / sum
            } else {
                1.0 / rank as f64
            }
        })
    });
    shares.map(narrow).collect()
}

/// Rows of coordinates, `[rows, rank]`, times a rotation.
pub(super) fn turn_rows(values: &mut [f32], rotation: &[f32], rank: usize) {
    let mut turned = vec![0.0_f64; rank];
    for row in values.chunks_exact_mut(rank) {
        turned.fill(0.0);
        for (value, rotation) in row.iter().zip(rotation.chunks_exact(rank)) {
            for (turned, share) in turned.iter_mut().zip(rotation) {
                *turned += f64::from(*value) * f64::from(*share);
            }
        }
        for (value, turned) in row.iter_mut().zip(&turned) {
            *value = narrow(*turned);
        }
    }
}

/// Makes the columns of what is to be a basis orthonormal; `false`, and nothing is changed, if they are none.
pub(super) fn restore(basis: &mut [f32], rank: usize) -> bool {
    let restored = orthonormal(wide(basis), rank);
    if let Some(restored) = &restored {
        basis.copy_from_slice(restored);
    }
    restored.is_some()
}

/// Takes from each column of `values` what lies in the span of `basis`.
fn leave_span(basis: &[f64], values: &mut [f64], rank: usize) {
    let along = products(basis, values, rank);
    for (basis, values) in basis.chunks_exact(rank).zip(values.chunks_exact_mut(rank)) {
        for (along, basis) in along.chunks_exact(rank).zip(basis) {
            for (value, along) in values.iter_mut().zip(along) {
                *value -= basis * along;
            }
        }
    }
}

/// Of all columns of both, `[rank, rank]`.
fn products(a: &[f64], b: &[f64], rank: usize) -> Vec<f64> {
    let mut products = vec![0.0; rank * rank];
    for (a, b) in a.chunks_exact(rank).zip(b.chunks_exact(rank)) {
        for (products, a) in products.chunks_exact_mut(rank).zip(a) {
            for (product, b) in products.iter_mut().zip(b) {
                *product += a * b;
            }
        }
    }
    products
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
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

    /// `E U` for E the sum over rows of `data`.
    fn energy(basis: &[f32], data: &[f32]) -> Vec<f64> {
        gradient(basis, data)
            .into_iter()
            .map(|it| f64::from(it) / -2.0)
            .collect()
    }

    #[test]
    fn a_subspace_turns_to_where_most_of_the_energy_is() {
        let mut basis = seeded(1);
        let directions = seeded(2);
        let mut words = crate::random::Words::new("test", &[3]);
        let mut draw = || (words.next_word() >> 8) as f32 / (1 << 24) as f32 - 0.5;
        // Most of it in as many directions as the basis has, of very different size; a little everywhere.
        let data: Vec<f32> = (0..200)
            .flat_map(|_| {
                let weights: Vec<f32> = (1..=RANK).map(|at| draw() * 2.0 * at as f32).collect();
                let row = (0..WIDTH).map(|at| {
                    let along = weights.iter().enumerate();
                    let along =
                        along.map(|(column, weight)| weight * directions[at * RANK + column]);
                    along.sum::<f32>()
                });
                let row: Vec<f32> = row.collect();
                row.into_iter()
                    .map(|it| it + 0.01 * draw())
                    .collect::<Vec<_>>()
            })
            .collect();
        let (before, best) = (lost(&basis, &data), lost(&directions, &data));
        for _ in 0..1_000 {
            let next = turned(&basis, &energy(&basis, &data), RANK).expect("there is energy");
            assert!(error(&next) < 1e-6, "{}", error(&next));
            // However large gradients are, it is the same turn.
            let large: Vec<f64> = energy(&basis, &data).iter().map(|it| it * 1e9).collect();
            let again = turned(&basis, &large, RANK).expect("there is energy");
            assert!(next.iter().zip(again).all(|(a, b)| (a - b).abs() < 1e-6));
            // But for what f32 sums lose.
            assert!(lost(&next, &data) <= lost(&basis, &data) + 1e-5 * before);
            basis = next;
        }
        let after = lost(&basis, &data);
        assert!(
            after < 0.01 * before,
            "{before} became {after}, at best {best}"
        );
    }

    #[test]
    fn no_energy_turns_nothing() {
        let basis = seeded(1);
        for nothing in [0.0, f64::NAN, f64::INFINITY] {
            assert_eq!(turned(&basis, &vec![nothing; WIDTH * RANK], RANK), None);
        }
        // All of it is inside already.
        let inside: Vec<f64> = basis.iter().map(|it| f64::from(*it)).collect();
        if let Some(same) = turned(&basis, &inside, RANK) {
            assert!(basis.iter().zip(&same).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }

    #[test]
    fn mean_squares_stay_mean_squares() {
        let (from, to) = (seeded(1), seeded(2));
        let rotation = rotation(&from, &to, RANK);
        let mut ones = vec![1.0; 3 * RANK];
        turn_rows(&mut ones, &shares(&rotation, RANK), RANK);
        assert!(ones.iter().all(|it| (it - 1.0).abs() < 1e-6), "{ones:?}");
        let none = shares(&[0.0; RANK * RANK], RANK);
        assert!(none.iter().all(|it| (it - 1.0 / RANK as f32).abs() < 1e-6));
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
