//! IEEE half precision, by the bits of f32: the same on every machine, many numbers at once.

use half::f16;

use super::{SHARES_AT_ONCE, Shares};

/// The largest finite f16, 65504, as f32.
const LARGEST: i32 = 0x477f_e000;
/// The smallest normal f16, 2^-14, as f32.
const NORMAL: i32 = 0x3880_0000;
/// Infinity as f32; NaN lies above.
const INFINITE: i32 = 0x7f80_0000;
/// Bits of an f32's fraction that f16 has no room for.
const DROPPED: u32 = 13;
/// How much larger an f32's exponent is written.
const REBIASED: u32 = (127 - 15) << 10;
/// What the smallest f16 goes into one.
const SUBNORMAL_STEPS: f32 = 16_777_216.0;

/// Appends f16 of all values; finite ones beyond its range saturate, others stay what they are.
pub(super) fn pack(values: &[f32], shares: &mut Shares, bytes: &mut Vec<u8>) {
    let first = bytes.len();
    bytes.resize(first + 2 * values.len(), 0);
    let (words, _) = bytes[first..].as_chunks_mut::<2>();
    let parts = words.chunks_mut(SHARES_AT_ONCE);
    for (values, words) in values.chunks(SHARES_AT_ONCE).zip(parts) {
        let numbers = words.iter_mut().zip(values);
        match shares.drawn(values.len()) {
            None => numbers.for_each(|(word, value)| {
                *word = rounded(*value, nearest, 0.0).to_le_bytes();
            }),
            Some(drawn) => numbers.zip(drawn).for_each(|((word, value), drawn)| {
                *word = stochastic(*value, *drawn).to_le_bytes();
            }),
        }
    }
}

/// Bits of a value's f16, rounded up or down by random bits.
#[inline]
pub(super) fn stochastic(value: f32, drawn: u16) -> u16 {
    let normal = |bits| bits + u32::from(drawn >> (16 - DROPPED));
    // As many bits: a thousand steps and a share of more would not fit an f32.
    let share = (i32::from(drawn >> (16 - DROPPED)) * 2 + 1) as f32 / 16_384.0 - 0.5;
    rounded(value, normal, share)
}

/// Appends the values of f16.
pub(super) fn unpack(bytes: &[u8], values: &mut Vec<f32>) {
    let (words, _) = bytes.as_chunks::<2>();
    values.extend(words.iter().map(|word| f16::from_le_bytes(*word).to_f32()));
}

/// Bits of a value's f16. What `normal` adds to the bits of a normal number before they are cut off, and the share of a step
/// that is added to a subnormal one before it is rounded to the nearest, say how it is rounded.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the sign, and at most the bits of a NaN"
)]
#[inline]
fn rounded(value: f32, normal: impl Fn(u32) -> u32, share: f32) -> u16 {
    let bits = value.to_bits();
    let sign = bits >> 16 & 0x8000;
    // All below 2^31: signed numbers are compared faster.
    let magnitude = (bits & 0x7fff_ffff).cast_signed();
    let finite = magnitude.min(LARGEST).cast_unsigned();
    let large = (normal(finite) >> DROPPED).wrapping_sub(REBIASED);
    // Between 2^23 and 2^24 an f32 has no fraction, and its bits end with the number of steps; from the middle a share below
    // zero leads nowhere else.
    let steps = f32::from_bits(finite) * SUBNORMAL_STEPS + share;
    let small = (steps + 12_582_912.0).to_bits() & 0x7ff;
    let is_small = finite.cast_signed() < NORMAL;
    let number = if is_small { small } else { large };
    let not_finite = 0x7c00 | u32::from(magnitude > INFINITE) << 9;
    let is_finite = magnitude < INFINITE;
    let number = if is_finite { number } else { not_finite };
    (sign | number) as u16
}

/// Half a step more, and to even where it is in the middle.
fn nearest(bits: u32) -> u32 {
    bits + 0xfff + (bits >> DROPPED & 1)
}
