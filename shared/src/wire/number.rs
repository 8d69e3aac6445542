//! Number formats: how the numbers of a stage border are packed for the network.
//!
//! A tensor `[rows, width]` (a row is a token) becomes [`payload_bytes`] bytes, row after row:
//! `f32` and `f16` little-endian; `int8` a bf16 scale, then `width` signed bytes; `int4` for each tile of 32 a bf16
//! scale, then 16 bytes, the lower half of each first, of the tile's Hadamard transform (`number/int4`). A scale is the absolute
//! maximum over 127 or 7, rounded **up**, so that no value needs more than that.
//!
//! Forward rounds to nearest. Gradients round **stochastically**, from a counter-based generator
//! keyed by [`Noise`]: a replay gives the same bytes, and replicas do not share their noise.
//!
//! Invariants: [`unpack`] takes any bytes without panic and allocates `rows * width` values at most;
//! packing then unpacking errs by at most half a step (stochastically: one step), in `int4` of the transform.
//! The same bytes on every machine: all of it is plain arithmetic on single numbers, in an order that compilers keep.
//! Knows nothing of frames, nor of what the numbers mean.

mod half_precision;
mod int4;
mod int8;
mod scale;
mod shares;

use crate::config::model::NumberFormat;
use shares::{SHARES_AT_ONCE, Shares};

/// Which way across a border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Activations.
    Forward,
    /// Gradients.
    Backward,
}

/// What the stochastic rounding of one payload depends on, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    /// Seed of the run.
    pub run_seed: u64,
    /// Round of the step.
    pub round: u64,
    /// Number of the microbatch's first sample.
    pub first_sample: u64,
    /// The border after this stage.
    pub border: u64,
    /// Which way across the border.
    pub direction: Direction,
}

/// How [`pack`] rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest representable number.
    Nearest,
    /// Up or down with odds that make the mean exact.
    Stochastic(Noise),
}

/// Why packed numbers were refused. Refuse the frame; never stop the run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NumberError {
    /// The payload has not the length that its shape needs.
    #[error("a border of {rows} tokens takes {expected} bytes, got {found}")]
    Length {
        /// Tokens.
        rows: usize,
        /// Bytes that they take.
        expected: usize,
        /// Bytes that came.
        found: usize,
    },
    /// The scale of a row is negative, infinite or not a number.
    #[error("scale of token {row} is not a finite positive number")]
    Scale {
        /// The token's row.
        row: usize,
    },
}

/// Bytes that `rows` tokens of `width` numbers take in `format`, scales included.
#[must_use]
pub const fn payload_bytes(format: NumberFormat, rows: usize, width: usize) -> usize {
    rows * format.row_bytes(width)
}

/// Packs `values`, `[rows, width]` row after row.
///
/// Finite values beyond the range of f16 saturate. Values that are not finite stay so in f32 and f16, and
/// make a scale that [`unpack`] refuses in int8 and int4: whoever packs should have looked before.
///
/// # Panics
/// If `values` does not consist of whole rows, or `width` is zero.
#[must_use]
pub fn pack(format: NumberFormat, values: &[f32], width: usize, rounding: Rounding) -> Vec<u8> {
    assert!(
        width > 0 && values.len().is_multiple_of(width),
        "whole rows of {width}"
    );
    let mut bytes = Vec::with_capacity(payload_bytes(format, values.len() / width, width));
    let mut shares = Shares::new(rounding);
    match format {
        NumberFormat::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        NumberFormat::F16 => half_precision::pack(values, &mut shares, &mut bytes),
        NumberFormat::Int8 => {
            for row in values.chunks_exact(width) {
                int8::pack_row(row, &mut shares, &mut bytes);
            }
        }
        NumberFormat::Int4 => {
            for row in values.chunks_exact(width) {
                int4::pack_row(row, &mut shares, &mut bytes);
            }
        }
    }
    bytes
}

/// Unpacks `rows` tokens of `width` numbers; in int8 and int4 all of them are finite.
///
/// # Errors
/// If the length is not [`payload_bytes`], or a scale is not a finite positive number or zero.
///
/// # Panics
/// If `width` is zero.
pub fn unpack(
    format: NumberFormat,
    bytes: &[u8],
    rows: usize,
    width: usize,
) -> Result<Vec<f32>, NumberError> {
    let expected = payload_bytes(format, rows, width);
    assert!(width > 0, "rows have a width");
    if bytes.len() != expected {
        return Err(NumberError::Length {
            rows,
            expected,
            found: bytes.len(),
        });
    }
    let mut values = Vec::with_capacity(rows * width);
    let mut packed = bytes.chunks_exact(format.row_bytes(width)).enumerate();
    match format {
        NumberFormat::F32 => {
            let (words, _) = bytes.as_chunks::<4>();
            values.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
        }
        NumberFormat::F16 => half_precision::unpack(bytes, &mut values),
        NumberFormat::Int8 => packed.try_for_each(|(row, packed)| {
            int8::unpack_row(packed, &mut values).ok_or(NumberError::Scale { row })
        })?,
        NumberFormat::Int4 => packed.try_for_each(|(row, packed)| {
            int4::unpack_row(packed, width, &mut values).ok_or(NumberError::Scale { row })
        })?,
    }
    Ok(values)
}

#[cfg(test)]
mod tests;
