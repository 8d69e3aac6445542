//! What a forward frame carries, and a text's: token ids, then the packed boundary.
//!
//! The tokens ride with the boundary because the last stage takes its targets from them, and every
//! `subspace` stage its fixed rows. They are two bytes each, four when the vocabulary exceeds 65,536,
//! the same as in the host's data shards. How the boundary is packed is [`super::number`]'s business;
//! here it is opaque bytes of a length that the caller knows.
//!
//! Invariant: what [`decode_forward`] returns has exactly the run's sizes, and every token is in the
//! vocabulary.

use bytes::Bytes;

use super::frame::DecodeError;
pub use crate::config::model::token_bytes;

/// Length of a forward payload whose packed boundary has `boundary_bytes`.
#[must_use]
pub const fn forward_bytes(
    sequences: usize,
    context: usize,
    vocabulary: usize,
    boundary_bytes: usize,
) -> usize {
    sequences * (context + 1) * token_bytes(vocabulary) + boundary_bytes
}

/// Token ids as data shards and forward payloads hold them: little-endian, [`token_bytes`] each.
///
/// # Panics
/// If a token is not below `vocabulary`.
#[must_use]
pub fn encode_tokens(tokens: &[u32], vocabulary: usize) -> Vec<u8> {
    let width = token_bytes(vocabulary);
    let mut bytes = Vec::with_capacity(tokens.len() * width);
    for &token in tokens {
        assert!(
            (token as usize) < vocabulary,
            "token {token} of {vocabulary}"
        );
        bytes.extend_from_slice(&token.to_le_bytes()[..width]);
    }
    bytes
}

/// Reads what [`encode_tokens`] wrote.
///
/// # Errors
/// A length that is no multiple of [`token_bytes`], or a token that is not in the vocabulary.
pub fn decode_tokens(bytes: &[u8], vocabulary: usize) -> Result<Vec<u32>, DecodeError> {
    let width = token_bytes(vocabulary);
    if !bytes.len().is_multiple_of(width) {
        return Err(DecodeError::Length {
            len_bytes: bytes.len(),
            expected_bytes: bytes.len() / width * width,
        });
    }
    bytes
        .chunks_exact(width)
        .map(|id| {
            let mut four = [0; 4];
            four[..width].copy_from_slice(id);
            let token = u32::from_le_bytes(four);
            if (token as usize) < vocabulary {
                Ok(token)
            } else {
                Err(DecodeError::Token { token, vocabulary })
            }
        })
        .collect()
}

/// The payload of a forward frame.
///
/// # Shapes
/// - `tokens`: `[sequences, context + 1]`, row after row, each below `vocabulary`
/// - `boundary`: packed in the run's number format
#[must_use]
pub fn encode_forward(tokens: &[u32], vocabulary: usize, boundary: &[u8]) -> Bytes {
    let mut bytes = encode_tokens(tokens, vocabulary);
    bytes.extend_from_slice(boundary);
    bytes.into()
}

/// Reads what [`encode_forward`] wrote; the boundary shares the payload's memory.
///
/// # Shapes
/// - returns tokens `[sequences, context + 1]` and `boundary_bytes` bytes
///
/// # Errors
/// Any length but [`forward_bytes`], or a token that is not in the vocabulary.
pub fn decode_forward(
    payload: &Bytes,
    sequences: usize,
    context: usize,
    vocabulary: usize,
    boundary_bytes: usize,
) -> Result<(Vec<u32>, Bytes), DecodeError> {
    let expected_bytes = forward_bytes(sequences, context, vocabulary, boundary_bytes);
    if payload.len() != expected_bytes {
        return Err(DecodeError::Length {
            len_bytes: payload.len(),
            expected_bytes,
        });
    }
    let boundary_at = expected_bytes - boundary_bytes;
    let tokens = decode_tokens(&payload[..boundary_at], vocabulary)?;
    Ok((tokens, payload.slice(boundary_at..)))
}

/// Reads what [`encode_forward`] wrote of a text, a token and a packed row of `row_bytes` each.
///
/// # Errors
/// A length that is no such rows, none or more than `context` of them, or a token that is not in the vocabulary.
pub fn decode_text(
    payload: &Bytes,
    context: usize,
    vocabulary: usize,
    row_bytes: usize,
) -> Result<(Vec<u32>, Bytes), DecodeError> {
    let each = token_bytes(vocabulary) + row_bytes;
    let rows = (payload.len() / each).clamp(1, context);
    if payload.len() != rows * each {
        return Err(DecodeError::Length {
            len_bytes: payload.len(),
            expected_bytes: rows * each,
        });
    }
    let boundary_at = rows * token_bytes(vocabulary);
    let tokens = decode_tokens(&payload[..boundary_at], vocabulary)?;
    Ok((tokens, payload.slice(boundary_at..)))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_forward_payload_is_token_ids_then_the_boundary() {
        let payload = encode_forward(&[1, 2, 0x0304], 50_304, &[9, 8]);
        assert_eq!(payload[..], [1, 0, 2, 0, 4, 3, 9, 8]);
        let payload = encode_forward(&[1, 0x1_0000], 65_537, &[9]);
        assert_eq!(payload[..], [1, 0, 0, 0, 0, 0, 1, 0, 9]);
    }

    #[test]
    fn a_payload_of_another_length_or_with_an_unknown_token_is_refused() {
        let payload = encode_forward(&[1, 2, 3, 255], 256, &[7; 10]);
        assert_eq!(
            decode_forward(&payload, 2, 1, 256, 9),
            Err(DecodeError::Length {
                len_bytes: 18,
                expected_bytes: 17
            })
        );
        assert_eq!(
            decode_forward(&payload, 2, 1, 255, 10),
            Err(DecodeError::Token {
                token: 255,
                vocabulary: 255
            })
        );
    }

    proptest! {
        #[test]
        fn a_forward_payload_reads_back_what_was_written(
            rows in vec(vec(0_u32..70_000, 5), 1..4),
            wide in any::<bool>(),
            boundary in vec(any::<u8>(), 0..40),
        ) {
            let vocabulary = if wide { 70_000 } else { 50_000 };
            let tokens: Vec<u32> = rows.concat().iter().map(|token| token % vocabulary).collect();
            let size = vocabulary as usize;
            let payload = encode_forward(&tokens, size, &boundary);
            prop_assert_eq!(payload.len(), forward_bytes(rows.len(), 4, size, boundary.len()));
            let read = decode_forward(&payload, rows.len(), 4, size, boundary.len());
            prop_assert_eq!(read, Ok((tokens, Bytes::from(boundary))));
        }

        #[test]
        fn any_bytes_are_a_text_or_refused(
            bytes in vec(any::<u8>(), 0..64),
            context in 1_usize..6,
            vocabulary in 2_usize..70_000,
            row_bytes in 1_usize..16,
        ) {
            let payload = Bytes::from(bytes);
            if let Ok((tokens, boundary)) = decode_text(&payload, context, vocabulary, row_bytes) {
                prop_assert!((1..=context).contains(&tokens.len()));
                prop_assert_eq!(boundary.len(), tokens.len() * row_bytes);
                prop_assert_eq!(encode_forward(&tokens, vocabulary, &boundary), payload);
            }
        }

        #[test]
        fn any_bytes_are_a_payload_or_refused(
            bytes in vec(any::<u8>(), 0..64),
            sequences in 0_usize..4,
            context in 0_usize..6,
            vocabulary in 2_usize..70_000,
            boundary_bytes in 0_usize..32,
        ) {
            let payload = Bytes::from(bytes);
            if let Ok((tokens, boundary)) =
                decode_forward(&payload, sequences, context, vocabulary, boundary_bytes)
            {
                prop_assert_eq!(tokens.len(), sequences * (context + 1));
                prop_assert_eq!(encode_forward(&tokens, vocabulary, &boundary), payload);
            }
        }
    }
}
