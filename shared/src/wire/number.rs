//! Number formats: how the numbers of a stage border are packed for the network.
//!
//! A tensor `[rows, width]` (a row is a token) becomes [`payload_bytes`] bytes, row after row:
//! `f32` and `f16` little-endian; `int8` a bf16 scale, then `width` signed bytes. The scale is the
//! row's absolute maximum over 127, rounded **up**, so that no value needs more than 127.
//!
//! Forward rounds to nearest. Gradients round **stochastically**, from a counter-based generator
//! keyed by [`Noise`]: a replay gives the same bytes, and replicas do not share their noise.
//!
//! Invariants: [`unpack`] takes any bytes without panic and allocates `rows * width` values at most;
//! packing then unpacking errs by at most half a step (stochastically: one step).
//! Knows nothing of frames, nor of what the numbers mean.

use half::f16;

use crate::config::model::NumberFormat;
use crate::random::Words;

/// Largest quantised magnitude of `int8`; -128 is never written.
const INT8_MAX: f32 = 127.0;

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
/// make a scale that [`unpack`] refuses in int8: whoever packs should have looked before.
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
        NumberFormat::F32 => values
            .iter()
            .for_each(|value| bytes.extend(value.to_le_bytes())),
        NumberFormat::F16 => {
            for &value in values {
                bytes.extend(to_f16(value, &mut shares).to_le_bytes());
            }
        }
        NumberFormat::Int8 => {
            for row in values.chunks_exact(width) {
                pack_int8_row(row, &mut shares, &mut bytes);
            }
        }
    }
    bytes
}

/// Unpacks `rows` tokens of `width` numbers; in int8 all of them are finite.
///
/// # Errors
/// If the length is not [`payload_bytes`], or a scale is not a finite positive number or zero.
pub fn unpack(
    format: NumberFormat,
    bytes: &[u8],
    rows: usize,
    width: usize,
) -> Result<Vec<f32>, NumberError> {
    let expected = payload_bytes(format, rows, width);
    if bytes.len() != expected {
        return Err(NumberError::Length {
            rows,
            expected,
            found: bytes.len(),
        });
    }
    match format {
        NumberFormat::F32 => {
            let (words, _) = bytes.as_chunks::<4>();
            Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
        }
        NumberFormat::F16 => {
            let (words, _) = bytes.as_chunks::<2>();
            Ok(words
                .iter()
                .map(|word| f16::from_le_bytes(*word).to_f32())
                .collect())
        }
        NumberFormat::Int8 => {
            let mut values = Vec::with_capacity(rows * width);
            for (row, packed) in bytes.chunks_exact(format.row_bytes(width)).enumerate() {
                let scale = half::bf16::from_le_bytes([packed[0], packed[1]]).to_f32();
                if !scale.is_finite() || scale.is_sign_negative() {
                    return Err(NumberError::Scale { row });
                }
                let number = |byte: &u8| f32::from(byte.cast_signed()) * scale;
                values.extend(
                    packed[2..]
                        .iter()
                        .map(|byte| number(byte).clamp(f32::MIN, f32::MAX)),
                );
            }
            Ok(values)
        }
    }
}

/// Appends scale and bytes of one row.
fn pack_int8_row(row: &[f32], shares: &mut Shares, bytes: &mut Vec<u8>) {
    let larger = |most: f32, value: &f32| {
        // NaN stays: the receiver refuses the row.
        if most.is_nan() || value.abs() <= most {
            most
        } else {
            value.abs()
        }
    };
    let absmax = row.iter().fold(0.0, larger);
    let scale_bits = bf16_not_below(absmax / INT8_MAX, absmax > 0.0);
    bytes.extend(scale_bits.to_le_bytes());
    let scale = f64::from(half::bf16::from_bits(scale_bits).to_f32());
    for &value in row {
        let share = shares.next();
        let steps = if scale > 0.0 {
            f64::from(value) / scale
        } else {
            0.0
        };
        bytes.push(quantise(steps, share).cast_unsigned());
    }
}

/// `steps` rounded up if its fraction plus `share` reaches one: a share of a half rounds to nearest.
#[expect(
    clippy::cast_possible_truncation,
    reason = "clamped to [-127, 127] before the cast; NaN becomes 0"
)]
fn quantise(steps: f64, share: f64) -> i8 {
    // Adding 128 makes all sums positive, where truncation is floor and needs no library call.
    let floor = f64::from((steps + 128.0 + share) as i32 - 128);
    floor.clamp(f64::from(-INT8_MAX), f64::from(INT8_MAX)) as i8
}

/// Bits of the smallest bf16 that is not below `value`, and not zero if it `must_be_positive`.
fn bf16_not_below(value: f32, must_be_positive: bool) -> u16 {
    if value.is_nan() {
        return half::bf16::NAN.to_bits();
    }
    let bits = value.to_bits();
    let up = (bits >> 16) + u32::from(bits & 0xffff != 0);
    u16::try_from(up)
        .expect("sixteen bits remain")
        .max(u16::from(must_be_positive))
}

/// `value` as f16, saturating if it is finite.
fn to_f16(value: f32, shares: &mut Shares) -> f16 {
    if !value.is_finite() {
        return f16::from_f32(value);
    }
    let limit = f16::MAX.to_f32();
    let value = value.clamp(-limit, limit);
    let nearest = f16::from_f32(value);
    let Some(share) = shares.next_stochastic() else {
        return nearest;
    };
    let past = nearest.to_f32().abs() > value.abs();
    let inner = f16::from_bits(nearest.to_bits() - u16::from(past));
    let outer = f16::from_bits(inner.to_bits() + 1);
    // Differences of neighbours are exact, and never infinite: 65504 itself is its own `inner`.
    let missing = f64::from((value - inner.to_f32()).abs());
    if missing == 0.0 {
        return inner;
    }
    let step = f64::from((outer.to_f32() - inner.to_f32()).abs());
    if missing / step + share >= 1.0 {
        outer
    } else {
        inner
    }
}

/// What is added before rounding down: a half, or uniform in `[0, 1)`, one for each element.
struct Shares {
    words: Option<Words>,
}

impl Shares {
    fn new(rounding: Rounding) -> Self {
        let words = match rounding {
            Rounding::Nearest => None,
            Rounding::Stochastic(noise) => {
                let direction = match noise.direction {
                    Direction::Forward => 0,
                    Direction::Backward => 1,
                };
                let Noise {
                    run_seed,
                    round,
                    first_sample,
                    border,
                    ..
                } = noise;
                Some(Words::new(
                    "rounding",
                    &[run_seed, round, first_sample, border, direction],
                ))
            }
        };
        Self { words }
    }

    fn next(&mut self) -> f64 {
        self.next_stochastic().unwrap_or(0.5)
    }

    fn next_stochastic(&mut self) -> Option<f64> {
        let words = self.words.as_mut()?;
        Some(f64::from(words.next_word()) / 4_294_967_296.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMATS: [NumberFormat; 3] = [NumberFormat::F32, NumberFormat::F16, NumberFormat::Int8];

    fn noise(first_sample: u64) -> Rounding {
        Rounding::Stochastic(Noise {
            run_seed: 1,
            round: 2,
            first_sample,
            border: 0,
            direction: Direction::Backward,
        })
    }

    /// The distance between neighbours of `format` around `value`, in a row with this scale.
    fn step(format: NumberFormat, value: f32, scale: f32) -> f64 {
        match format {
            NumberFormat::F32 => 0.0,
            NumberFormat::F16 => f64::from(value.abs().max(6.2e-5)) / 1024.0,
            NumberFormat::Int8 => f64::from(scale),
        }
    }

    fn check_error(
        format: NumberFormat,
        values: &[f32],
        width: usize,
        rounding: Rounding,
        steps: f64,
    ) {
        let bytes = pack(format, values, width, rounding);
        let rows = values.len() / width;
        assert_eq!(bytes.len(), payload_bytes(format, rows, width));
        let back = unpack(format, &bytes, rows, width).expect("own bytes");
        for (row, (before, after)) in values.chunks(width).zip(back.chunks(width)).enumerate() {
            let scale = match format {
                NumberFormat::Int8 => {
                    let at = row * (width + 2);
                    half::bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
                }
                NumberFormat::F32 | NumberFormat::F16 => 0.0,
            };
            for (&before, &after) in before.iter().zip(after) {
                let error = (f64::from(before) - f64::from(after)).abs();
                let bound = steps * step(format, before, scale) * (1.0 + 1e-6);
                assert!(
                    error <= bound,
                    "{format:?}: {before} became {after}, scale {scale}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn nearest_errs_by_half_a_step_and_stochastic_by_one(
            width in 1_usize..40, values in prop::collection::vec(-6e4_f32..6e4, 40..120), shift in -30_i32..3,
        ) {
            let whole = values.len() / width * width;
            let scaled: Vec<f32> = values[..whole].iter().map(|value| value * 2_f32.powi(shift)).collect();
            for format in FORMATS {
                let scaled: Vec<f32> = scaled.iter().map(|&value| match format {
                    NumberFormat::F16 => value.clamp(-65_504.0, 65_504.0),
                    NumberFormat::F32 | NumberFormat::Int8 => value,
                }).collect();
                check_error(format, &scaled, width, Rounding::Nearest, 0.5);
                check_error(format, &scaled, width, noise(3), 1.0);
            }
        }

        #[test]
        fn any_finite_row_survives_int8(
            values in prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO, 1..20),
        ) {
            check_error(NumberFormat::Int8, &values, values.len(), Rounding::Nearest, 0.5);
        }

        #[test]
        fn any_bytes_unpack_or_are_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200), rows in 0_usize..20, width in 1_usize..20,
        ) {
            for format in FORMATS {
                match unpack(format, &bytes, rows, width) {
                    Ok(values) => prop_assert_eq!(values.len(), rows * width),
                    Err(NumberError::Length { .. }) => {
                        prop_assert_ne!(bytes.len(), payload_bytes(format, rows, width));
                    }
                    Err(_) => prop_assert_eq!(format, NumberFormat::Int8),
                }
            }
        }

        #[test]
        fn bytes_of_the_right_length_unpack_to_finite_int8(
            bytes in prop::collection::vec(any::<u8>(), 12..=12),
        ) {
            if let Ok(values) = unpack(NumberFormat::Int8, &bytes, 2, 4) {
                prop_assert!(values.iter().all(|value| value.is_finite()));
            }
        }
    }

    #[test]
    fn stochastic_rounding_is_unbiased_over_ten_thousand_draws() {
        for format in [NumberFormat::F16, NumberFormat::Int8] {
            // A row whose other numbers fix the int8 scale; odds are far from a half.
            let row = [1.0, 0.3137, -0.7211, 0.000_123, -0.000_04];
            let scale = 1.0 / 127.0;
            let mut sums = [0.0_f64; 5];
            for draw in 0..10_000 {
                let bytes = pack(format, &row, row.len(), noise(draw));
                let back = unpack(format, &bytes, 1, row.len()).expect("own bytes");
                sums.iter_mut()
                    .zip(back)
                    .for_each(|(sum, value)| *sum += f64::from(value));
            }
            for (sum, value) in sums.into_iter().zip(row) {
                // Five standard deviations of the mean of draws that differ by at most a step.
                let bound = 5.0 * 0.5 * step(format, value, scale * 1.01) / 100.0;
                let bias = (sum / 1e4 - f64::from(value)).abs();
                assert!(
                    bias <= bound,
                    "{format:?}: {value} is off by {bias}, more than {bound}"
                );
            }
        }
    }

    #[test]
    fn a_replay_gives_the_same_bytes_and_another_microbatch_other_ones() {
        let values: Vec<f32> = (0..64).map(|element| (element as f32).sqrt()).collect();
        for format in [NumberFormat::F16, NumberFormat::Int8] {
            let bytes = pack(format, &values, 32, noise(5));
            assert_eq!(bytes, pack(format, &values, 32, noise(5)));
            assert_ne!(bytes, pack(format, &values, 32, noise(6)));
        }
    }

    #[test]
    fn f16_saturates_instead_of_becoming_infinite() {
        let bytes = pack(NumberFormat::F16, &[1e6, -1e6], 2, noise(0));
        assert_eq!(
            unpack(NumberFormat::F16, &bytes, 1, 2),
            Ok(vec![65_504.0, -65_504.0])
        );
    }

    #[test]
    fn a_row_that_is_not_finite_is_refused_by_the_receiver() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let bytes = pack(
                NumberFormat::Int8,
                &[1.0, 2.0, value, 1.0],
                2,
                Rounding::Nearest,
            );
            assert_eq!(
                unpack(NumberFormat::Int8, &bytes, 2, 2),
                Err(NumberError::Scale { row: 1 })
            );
        }
    }
}
