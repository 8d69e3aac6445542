//! What a merge exchanges where nothing is computed: each tile holds the value, and which tile of the stage it is.
//!
//! Values are numbers of a field, so a mean of means is exactly the mean of all, in any order, however a stage is cut and
//! whoever averaged some of it before; and a part in another one's place is seen.

use std::ops::Range;

use bytes::Bytes;

use super::{refused, repeated};
use crate::compute::Done;
use crate::wire::merge::{Shape, TILE};

/// A prime below 2^48.
const FIELD: u128 = (1 << 48) - 59;
/// Of a byte: so all of them are finite numbers in every format.
const DIGIT_BITS: usize = 6;

/// Four numbers of the field, each of eight digits.
type Value = [u8; 32];

/// A hash in the field.
pub(super) fn in_field(hash: &[u8; 32]) -> Value {
    let (words, _) = hash.as_chunks::<8>();
    digits(std::array::from_fn(|at| {
        u128::from(u64::from_le_bytes(words[at])) % FIELD
    }))
}

fn digits(numbers: [u128; 4]) -> Value {
    std::array::from_fn(|at| {
        let digit = numbers[at / 8] >> (DIGIT_BITS * (at % 8)) & 0x3f;
        u8::try_from(digit).expect("six bits")
    })
}

fn numbers(digits: &Value) -> [u128; 4] {
    std::array::from_fn(|at| {
        let digits = &digits[8 * at..8 * (at + 1)];
        let number = |number: u128, digit: &u8| number << DIGIT_BITS | u128::from(*digit);
        digits.iter().rev().fold(0, number) % FIELD
    })
}

/// By Fermat: `number^(FIELD - 2)`.
fn inverse(number: u128) -> u128 {
    let (mut power, mut product) = (number % FIELD, 1);
    let mut exponent = FIELD - 2;
    while exponent > 0 {
        if exponent % 2 == 1 {
            product = product * power % FIELD;
        }
        power = power * power % FIELD;
        exponent /= 2;
    }
    product
}

/// The mean of values, weighted by samples.
pub(super) fn average(weighted: impl IntoIterator<Item = (u64, Value)>) -> Value {
    let (mut samples, mut sums) = (0, [0; 4]);
    for (weight, value) in weighted {
        samples += u128::from(weight);
        for (sum, number) in sums.iter_mut().zip(numbers(&value)) {
            *sum = (*sum + number * u128::from(weight)) % FIELD;
        }
    }
    let share = inverse(samples);
    digits(sums.map(|sum| sum * share % FIELD))
}

/// A value in these tiles.
pub(super) fn fill(shape: &Shape, tiles: Range<usize>, value: &Value) -> Bytes {
    let row_bytes = shape.format.row_bytes(TILE);
    let mut part = Vec::with_capacity(tiles.len() * row_bytes);
    for tile in tiles {
        part.extend(repeated(&moved(value, tile as u128), row_bytes));
    }
    part.into()
}

/// As many further.
fn moved(value: &Value, by: u128) -> Value {
    digits(numbers(value).map(|number| (number + by) % FIELD))
}

/// The value in these tiles, if they hold one; none of them hold any.
fn read(shape: &Shape, tiles: Range<usize>, part: &Bytes) -> Option<Value> {
    let first: Value = part.get(..32)?.try_into().ok()?;
    let value = moved(&first, FIELD - tiles.start as u128);
    (fill(shape, tiles, &value) == *part).then_some(value)
}

/// What all averages of a merge hold.
///
/// # Panics
/// If they do not hold the same, in their places.
pub(super) fn gathered(shape: &Shape, parts: &[Bytes]) -> Value {
    let ranges = shape.parts(0);
    assert_eq!(parts.len(), ranges.len(), "one part a member");
    let cut = ranges.into_iter().zip(parts);
    let values = cut.filter(|(range, part)| !(range.is_empty() && part.is_empty()));
    let values: Vec<Option<Value>> = values
        .map(|(range, part)| read(shape, range, part))
        .collect();
    let value = values[0].expect("tiles in their places");
    assert!(
        values.iter().all(|it| *it == Some(value)),
        "all averaged the same"
    );
    value
}

/// [`crate::compute::Job::Average`].
pub(super) fn average_part(shape: &Shape, level: usize, parts: &[Bytes]) -> Done {
    let group = &shape.levels[level];
    let own = &shape.parts(level)[group.own()];
    assert!(
        parts.len() == group.members() && parts.iter().all(|part| part.len() == shape.bytes(own)),
        "one part of each member, as cut"
    );
    let values = parts.iter().map(|part| read(shape, own.clone(), part));
    let Some(values) = values.collect::<Option<Vec<Value>>>() else {
        return refused("garbage");
    };
    let average = average(group.weights.iter().copied().zip(values));
    let parts = shape.parts_of_average(level).into_iter();
    Done::Averaged {
        stage: shape.stage,
        parts: parts.map(|tiles| fill(shape, tiles, &average)).collect(),
        residual: Bytes::new(),
    }
}
