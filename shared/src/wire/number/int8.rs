//! Rows of bytes under one scale.

use super::scale::{quantise, read_scale, scale_of};
use super::{SHARES_AT_ONCE, Shares};

/// Largest magnitude; -128 is never written.
const MOST: f32 = 127.0;

/// Appends scale and bytes of one row.
pub(super) fn pack_row(row: &[f32], shares: &mut Shares, bytes: &mut Vec<u8>) {
    let scale = scale_of(row, MOST);
    bytes.extend(scale.to_le_bytes());
    let scale = scale.to_f32();
    for values in row.chunks(SHARES_AT_ONCE) {
        let shares = shares.next(values.len());
        if scale > 0.0 {
            let numbers = values.iter().zip(shares);
            bytes.extend(
                numbers.map(|(value, share)| quantise(*value, scale, *share).cast_unsigned()),
            );
        } else {
            bytes.resize(bytes.len() + values.len(), 0);
        }
    }
}

/// Appends the values of one row, all of them finite; `None` if its scale is not.
pub(super) fn unpack_row(packed: &[u8], values: &mut Vec<f32>) -> Option<()> {
    let (scale, numbers) = packed.split_first_chunk()?;
    let scale = read_scale(*scale)?;
    let value = |number: &u8| f32::from(number.cast_signed()) * scale;
    values.extend(
        numbers
            .iter()
            .map(|number| value(number).clamp(f32::MIN, f32::MAX)),
    );
    Some(())
}
