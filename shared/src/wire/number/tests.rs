use proptest::prelude::*;

use super::*;
use crate::random::Words;

const ROUNDED: [NumberFormat; 3] = [NumberFormat::F16, NumberFormat::Int8, NumberFormat::Int4];
const ALL: [NumberFormat; 4] = [
    NumberFormat::F32,
    NumberFormat::F16,
    NumberFormat::Int8,
    NumberFormat::Int4,
];

fn noise(first_sample: u64) -> Rounding {
    Rounding::Stochastic(Noise {
        run_seed: 1,
        round: 2,
        first_sample,
        border: 0,
        direction: Direction::Backward,
    })
}

/// The distance between neighbours of `format` around `value`, where that is the scale.
fn step(format: NumberFormat, value: f32, scale: f32) -> f64 {
    match format {
        NumberFormat::F32 => 0.0,
        NumberFormat::F16 => f64::from(value.abs().max(6.2e-5)) / 1024.0,
        NumberFormat::Int8 | NumberFormat::Int4 => f64::from(scale),
    }
}

fn scale_at(bytes: &[u8], at: usize) -> f32 {
    half::bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn check_error(format: NumberFormat, values: &[f32], width: usize, rounding: Rounding, steps: f64) {
    let bytes = pack(format, values, width, rounding);
    let rows = values.len() / width;
    assert_eq!(bytes.len(), payload_bytes(format, rows, width));
    let back = unpack(format, &bytes, rows, width).expect("own bytes");
    for (row, (before, after)) in values.chunks(width).zip(back.chunks(width)).enumerate() {
        let row = &bytes[row * format.row_bytes(width)..];
        if format == NumberFormat::Int4 {
            check_tiles(before, after, row, steps);
            continue;
        }
        let scale = scale_at(row, 0);
        for (&before, &after) in before.iter().zip(after) {
            let error = (f64::from(before) - f64::from(after)).abs();
            let bound = steps * step(format, before, scale) * (1.0 + 2e-5);
            assert!(
                error <= bound,
                "{format:?}: {before} became {after}, scale {scale}"
            );
        }
    }
}

/// Of each tile the root of the sum of squared errors: rotated back, 32 errors of so many steps are 32 times that at most.
fn check_tiles(before: &[f32], after: &[f32], packed: &[u8], steps: f64) {
    let tiles = before.chunks(32).zip(after.chunks(32)).enumerate();
    for (tile, (before, after)) in tiles {
        let scale = f64::from(scale_at(packed, tile * 18));
        let square = |(one, other): (&f32, &f32)| (f64::from(*one) - f64::from(*other)).powi(2);
        let error = before.iter().zip(after).map(square).sum::<f64>().sqrt();
        let largest = before
            .iter()
            .fold(0.0, |most: f64, it| most.max(f64::from(it.abs())));
        // Sums of f32 are off by a few of its steps, and the smallest ones have none.
        let bound = 32.0 * steps * scale * (1.0 + 2e-5) + largest * 1e-6 + 1e-37;
        assert!(error <= bound, "{before:?} became {after:?}, scale {scale}");
    }
}

proptest! {
    #[test]
    fn nearest_errs_by_half_a_step_and_stochastic_by_one(
        width in 1_usize..40, values in prop::collection::vec(-6e4_f32..6e4, 40..120), shift in -30_i32..3,
    ) {
        let whole = values.len() / width * width;
        let scaled: Vec<f32> = values[..whole].iter().map(|value| value * 2_f32.powi(shift)).collect();
        for format in ALL {
            let scaled: Vec<f32> = scaled.iter().map(|&value| match format {
                NumberFormat::F16 => value.clamp(-65_504.0, 65_504.0),
                NumberFormat::F32 | NumberFormat::Int8 | NumberFormat::Int4 => value,
            }).collect();
            check_error(format, &scaled, width, Rounding::Nearest, 0.5);
            check_error(format, &scaled, width, noise(3), 1.0);
        }
    }

    #[test]
    fn any_finite_row_survives_int8_and_int4(
        values in prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO, 1..70),
    ) {
        check_error(NumberFormat::Int8, &values, values.len(), Rounding::Nearest, 0.5);
        check_error(NumberFormat::Int8, &values, values.len(), noise(3), 1.0);
        check_error(NumberFormat::Int4, &values, values.len(), Rounding::Nearest, 0.5);
        check_error(NumberFormat::Int4, &values, values.len(), noise(3), 1.0);
    }

    #[test]
    fn any_bytes_unpack_or_are_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200), rows in 0_usize..20, width in 1_usize..20,
    ) {
        for format in ALL {
            match unpack(format, &bytes, rows, width) {
                Ok(values) => prop_assert_eq!(values.len(), rows * width),
                Err(NumberError::Length { .. }) => {
                    prop_assert_ne!(bytes.len(), payload_bytes(format, rows, width));
                }
                Err(_) => prop_assert!(matches!(format, NumberFormat::Int8 | NumberFormat::Int4)),
            }
        }
    }

    #[test]
    fn bytes_of_the_right_length_unpack_to_finite_int8_and_int4(
        bytes in prop::collection::vec(any::<u8>(), 36..=36),
    ) {
        for (format, width) in [(NumberFormat::Int8, 16), (NumberFormat::Int4, 30)] {
            if let Ok(values) = unpack(format, &bytes, 2, width) {
                prop_assert!(values.iter().all(|value| value.is_finite()));
            }
        }
    }
}

#[test]
fn stochastic_rounding_is_unbiased_over_ten_thousand_draws() {
    for format in ROUNDED {
        // A row whose other numbers fix the int8 scale; odds are far from a half.
        let row = [1.0, 0.3137, -0.7211, 0.000_123, -0.000_04];
        let scale = match format {
            NumberFormat::F32 | NumberFormat::F16 | NumberFormat::Int8 => 1.0 / 127.0,
            // Each number is a sum of 32 that are rounded by themselves, of a transform of 1.4 / 32 at most.
            NumberFormat::Int4 => 32_f32.sqrt() * 2.1 / 32.0 / 7.0,
        };
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

/// Over all 65,536 values of the random bits: what no sample of draws would find.
#[test]
fn f16_rounds_stochastically_without_bias_down_to_zero() {
    let step = 2_f64.powi(-24);
    let small = [1e-9, 1e-8, 2e-8, 5.9e-8, 6.103e-5, 6.103_6e-5, 0.3];
    for value in small.into_iter().chain(
        [0.0, 1.0, 1.5, 1023.0, 1024.0, 65_504.0 / 2.0_f32.powi(-24)]
            .map(|steps| steps * 2.0_f32.powi(-24)),
    ) {
        for value in [value, -value] {
            let mut sum = 0.0;
            for drawn in 0..=u16::MAX {
                let rounded = half_precision::stochastic(value, drawn);
                let after = f64::from(half::f16::from_bits(rounded).to_f32());
                let apart = (after - f64::from(value)).abs();
                let most = step.max(f64::from(value.abs()) / 1024.0);
                assert!(apart < most, "{value} became {after}");
                sum += after;
            }
            let bias = (sum / 65_536.0 - f64::from(value)).abs();
            let bound = step.max(f64::from(value.abs()) / 1024.0) / 8_000.0;
            assert!(bias <= bound, "{value} is off by {bias} of {bound}");
        }
    }
}

#[test]
fn what_is_zero_stays_zero() {
    for format in ALL {
        for draw in 0..200 {
            let bytes = pack(format, &[0.0, -0.0, 0.0, 0.0], 2, noise(draw));
            let back = unpack(format, &bytes, 2, 2).expect("own bytes");
            assert!(
                back.iter().all(|value| *value == 0.0),
                "{format:?}: {back:?}"
            );
        }
    }
}

#[test]
fn a_replay_gives_the_same_bytes_and_another_microbatch_other_ones() {
    let values: Vec<f32> = (0..64).map(|element| (element as f32).sqrt()).collect();
    for format in ROUNDED {
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
    for format in [NumberFormat::Int8, NumberFormat::Int4] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for rounding in [Rounding::Nearest, noise(1)] {
                let bytes = pack(format, &[1.0, 2.0, value, 1.0], 2, rounding);
                let refused = Err(NumberError::Scale { row: 1 });
                assert_eq!(unpack(format, &bytes, 2, 2), refused);
            }
        }
    }
}

/// Another program's, for each f16, what lies half way to the next one, and their neighbours.
#[test]
fn f16_rounds_to_nearest_as_others_do() {
    let mut values = Vec::new();
    for bits in 0..0x7c00_u16 {
        let [one, next] = [bits, bits + 1].map(|bits| half::f16::from_bits(bits).to_f32());
        let next = if next.is_finite() { next } else { one };
        let middle = f32::midpoint(one, next);
        for value in [
            one,
            one.next_up(),
            middle.next_down(),
            middle,
            middle.next_up(),
        ] {
            values.extend([value, -value]);
        }
    }
    let bytes = pack(NumberFormat::F16, &values, 1, Rounding::Nearest);
    let expected = values.iter().flat_map(|value| {
        let value = value.clamp(-65_504.0, 65_504.0);
        half::f16::from_f32(value).to_le_bytes()
    });
    assert!(bytes.iter().copied().eq(expected));
    let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    for rounding in [Rounding::Nearest, noise(1)] {
        let bytes = pack(NumberFormat::F16, &special, 1, rounding);
        let [nan, most, least] = unpack(NumberFormat::F16, &bytes, 3, 1).expect("own")[..] else {
            panic!("three")
        };
        assert!(nan.is_nan());
        assert_eq!([most, least], [f32::INFINITY, f32::NEG_INFINITY]);
    }
}

#[test]
fn int4_spreads_an_outlier_over_its_tile() {
    let mut words = Words::new("outliers", &[1]);
    let mut normal = || {
        let sum: f64 = (0..12)
            .map(|_| f64::from(words.next_word()) / 4_294_967_296.0)
            .sum();
        sum - 6.0
    };
    let error = |values: &[f32]| {
        let bytes = pack(NumberFormat::Int4, values, 256, Rounding::Nearest);
        assert_eq!(8 * bytes.len(), values.len() * 9 / 2, "4.5 bits a number");
        let back = unpack(NumberFormat::Int4, &bytes, values.len() / 256, 256).expect("own bytes");
        let square = |(one, other): (&f32, f32)| (f64::from(*one) - f64::from(other)).powi(2);
        let sum: f64 = values.iter().zip(back).map(square).sum();
        (sum / values.len() as f64).sqrt()
    };
    #[expect(clippy::cast_possible_truncation, reason = "random f32 values")]
    let mut values: Vec<f32> = (0..256 * 64).map(|_| normal() as f32).collect();
    let plain = error(&values);
    assert!((0.08..0.11).contains(&plain), "{plain} of a deviation of 1");
    // One of 32 is 20 times as large: by itself it would make steps of 20 / 7, and most others zero.
    values
        .iter_mut()
        .step_by(32)
        .for_each(|value| *value = 20.0);
    let with_outliers = error(&values);
    assert!(with_outliers < 0.25, "{with_outliers}");
}
