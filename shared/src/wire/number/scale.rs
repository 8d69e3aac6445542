//! The scale of numbers that become integers, and their rounding.

use half::bf16;

/// The scale by which numbers divided have magnitudes of `most` at most: their absolute maximum over `most`, rounded up to a
/// bf16, and positive unless all are zero. Not finite if one of them is not.
pub(super) fn scale_of(values: &[f32], most: f32) -> bf16 {
    // Without their signs floats are ordered as integers are, infinity and NaN last.
    let magnitude = |value: &f32| (value.to_bits() & 0x7fff_ffff).cast_signed();
    let absmax = values.iter().map(magnitude).fold(0, i32::max);
    let absmax = f32::from_bits(absmax.cast_unsigned());
    if absmax.is_nan() {
        return bf16::NAN;
    }
    let bits = (absmax / most).to_bits();
    // A subnormal quotient may have been rounded down itself.
    let is_less = bits & 0xffff != 0 || absmax > 0.0 && bits < 0x80_0000;
    let up = (bits >> 16) + u32::from(is_less);
    let up = u16::try_from(up).expect("sixteen bits remain");
    bf16::from_bits(up.max(u16::from(absmax > 0.0)))
}

/// A scale from the network: finite and not negative, or refused.
pub(super) fn read_scale(bytes: [u8; 2]) -> Option<f32> {
    let scale = bf16::from_le_bytes(bytes).to_f32();
    (scale.is_finite() && !scale.is_sign_negative()).then_some(scale)
}

/// `value / scale + share` rounded to the nearest integer. The quotient is 127 at most and the share below a half, unless
/// the scale is no number: then so is this, and no receiver takes it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "an integer of 127 at most lies in the lowest byte"
)]
#[inline]
pub(super) fn quantise(value: f32, scale: f32, share: f32) -> i8 {
    // From 2^23 on an f32 has no fraction: its bits end with the integer.
    const WHOLE: f32 = 12_582_912.0;
    (value / scale + share + WHOLE).to_bits() as i8
}

#[cfg(test)]
mod tests {
    use super::scale_of;

    #[test]
    fn no_value_needs_more_than_the_scale_has_room_for_down_to_the_smallest() {
        for most in [127.0, 7.0] {
            // Every exponent, and significands about those that a bf16 has.
            for upper in 0..0x7f80_u32 {
                for lower in [0, 1, 3, 0x7fff, 0x8000, 0xffff] {
                    let value = f32::from_bits(upper << 16 | lower);
                    let scale = scale_of(&[0.0, -value], most).to_f32();
                    assert_eq!(scale > 0.0, value > 0.0);
                    assert!(
                        value == 0.0 || value / scale <= most,
                        "{value:e} by {scale:e}"
                    );
                }
            }
        }
    }
}
