//! Orthonormal columns by Gram-Schmidt, in f64 and in one fixed order of operations.
//!
//! Each column is made orthogonal to those before it twice ("twice is enough": the second pass
//! removes what rounding left of the first), then divided by its length. Sums run from the first
//! row to the last in a single chain, so that no compiler or machine regroups them.

use super::round;

/// Makes `columns` (column after column, each `rows` long) orthonormal.
///
/// # Shapes
/// - returns `[rows, rank]`, row by row, rounded to f32
///
/// `None` if a column lies in the span of those before it, or is not finite: random columns with `rank <= rows` do not.
#[must_use]
pub fn orthonormal_columns(mut columns: Vec<f64>, rows: usize, rank: usize) -> Option<Vec<f32>> {
    assert_eq!(columns.len(), rows * rank, "columns of {rows} rows");
    for index in 0..rank {
        let (before, rest) = columns.split_at_mut(index * rows);
        let column = &mut rest[..rows];
        for _pass in 0..2 {
            for other in before.chunks_exact(rows) {
                let along = dot(column, other);
                for (value, other) in column.iter_mut().zip(other) {
                    *value -= along * other;
                }
            }
        }
        let length = dot(column, column).sqrt();
        // Neither is what is not a number.
        if !(length > 1e-6 && length.is_finite()) {
            return None;
        }
        for value in column {
            *value /= length;
        }
    }
    let rounded =
        (0..rows * rank).map(|element| round(columns[element % rank * rows + element / rank]));
    Some(rounded.collect())
}

/// Sum of products, from first to last.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b)
}
