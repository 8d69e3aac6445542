//! Rows of half bytes, a scale for each tile, after a Hadamard rotation: an outlier is spread over its tile, where it would
//! take all of the scale for itself.
//!
//! The rotation of a tile `x` is `H x / 32`, of which `H` makes `x` again: sums, and a power of two. So of integers it is exact,
//! and no value is larger than the tile's largest.

use std::ops::{Add, Sub};

use super::scale::{quantise, read_scale, scale_of};
use super::{SHARES_AT_ONCE, Shares};
use crate::config::model::INT4_TILE;

/// Largest magnitude; -8 is never written.
const MOST: f32 = 7.0;
const HALF: usize = INT4_TILE / 2;

/// Appends scales and half bytes of one row.
pub(super) fn pack_row(row: &[f32], shares: &mut Shares, bytes: &mut Vec<u8>) {
    for values in row.chunks(SHARES_AT_ONCE) {
        let tiles = values.len().div_ceil(INT4_TILE);
        let (shares, _) = shares.next(tiles * INT4_TILE).as_chunks();
        for (values, shares) in values.chunks(INT4_TILE).zip(shares) {
            pack_tile(values, shares, bytes);
        }
    }
}

fn pack_tile(values: &[f32], shares: &[f32; INT4_TILE], bytes: &mut Vec<u8>) {
    const PART: f32 = 1.0 / INT4_TILE as f32;
    let mut tile = [0.0; INT4_TILE];
    tile[..values.len()].copy_from_slice(values);
    tile.iter_mut().for_each(|value| *value *= PART);
    rotate(&mut tile);
    let scale = scale_of(&tile, MOST);
    bytes.extend(scale.to_le_bytes());
    let scale = scale.to_f32();
    if scale == 0.0 {
        return bytes.extend([0; HALF]);
    }
    let number = |at: usize| quantise(tile[at], scale, shares[at]).cast_unsigned();
    let halves: [u8; HALF] = std::array::from_fn(|at| number(at) & 0xf | number(at + HALF) << 4);
    bytes.extend(halves);
}

/// Appends the values of one row of that width, all of them finite; `None` if a scale is not.
pub(super) fn unpack_row(packed: &[u8], width: usize, values: &mut Vec<f32>) -> Option<()> {
    let end = values.len() + width;
    for packed in packed.chunks_exact(2 + HALF) {
        let (scale, halves) = packed.split_first_chunk()?;
        let scale = read_scale(*scale)?;
        let mut tile = [0_i16; INT4_TILE];
        let (first, second) = tile.split_at_mut(HALF);
        for ((low, high), byte) in first.iter_mut().zip(second).zip(halves) {
            *low = i16::from((byte << 4).cast_signed() >> 4);
            *high = i16::from(byte.cast_signed() >> 4);
        }
        rotate(&mut tile);
        let count = INT4_TILE.min(end - values.len());
        let value = |number: &i16| (f32::from(*number) * scale).clamp(f32::MIN, f32::MAX);
        values.extend(tile[..count].iter().map(value));
    }
    Some(())
}

/// The Walsh-Hadamard transform, not normalised: sums and differences of pairs ever nearer. Each step takes pairs that are half
/// the tile apart and leaves them side by side, so that those of the next one are there again (Pease, "An Adaptation of the Fast
/// Fourier Transform for Parallel Processing", 1968): five times the same step, which compilers make vectors of.
#[inline]
fn rotate<T: Copy + Default + Add<Output = T> + Sub<Output = T>>(tile: &mut [T; INT4_TILE]) {
    for _ in 0..INT4_TILE.ilog2() {
        let mut next = [T::default(); INT4_TILE];
        for at in 0..HALF {
            let (one, other) = (tile[at], tile[at + HALF]);
            next[2 * at] = one + other;
            next[2 * at + 1] = one - other;
        }
        *tile = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_is_rotated_by_sylvesters_matrix() {
        // Its entry is negative where row and column share an odd number of bits.
        let is_negative = |row: usize, column: usize| (row & column).count_ones() % 2 == 1;
        for column in 0..INT4_TILE {
            let mut tile = [0_i16; INT4_TILE];
            tile[column] = 1;
            rotate(&mut tile);
            let expected: [i16; INT4_TILE] =
                std::array::from_fn(|row| if is_negative(row, column) { -1 } else { 1 });
            assert_eq!(tile, expected, "column {column}");
        }
    }

    #[test]
    fn sums_begin_with_what_is_farthest_apart() {
        // 2^24 takes up a 1 only together with another one.
        let mut tile = [0.0_f32; INT4_TILE];
        (tile[0], tile[1], tile[1 + HALF]) = (16_777_216.0, 1.0, 1.0);
        rotate(&mut tile);
        assert_eq!(tile[0], 16_777_218.0);
    }
}
