//! Frames that are cut, mixed, repeated and joined; messages that no correct peer sends.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A frame whose bytes tell its length, and where they stand.
fn frame_of(len_bytes: usize) -> Bytes {
    (0..len_bytes)
        .map(|at| (at * 31 + at / CHUNK_BYTES_MAX + len_bytes).to_le_bytes()[0])
        .collect()
}

fn message(frame: u32, index: u16, total: u32, piece: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u32_le(frame);
    message.put_u16_le(index);
    message.put_u32_le(total);
    message.put_slice(piece);
    message.freeze()
}

#[test]
fn a_message_is_frame_index_total_and_the_piece() {
    let mut chunker = Chunker::default();
    let _first = chunker.cut(Bytes::from_static(b"x")).count();
    let messages: Vec<Bytes> = chunker.cut(frame_of(CHUNK_BYTES_MAX + 2)).collect();
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[0].len(), CHUNK_BYTES_MAX + CHUNK_HEADER_BYTES);
    assert_eq!(messages[1][..10], [1, 0, 0, 0, 1, 0, 2, 128, 0, 0]);
    assert_eq!(messages[1].len(), 12);
}

#[test]
fn the_longest_frame_crosses_backwards_and_leaves_nothing_behind() {
    let frame = frame_of(FRAME_BYTES_MAX);
    let mut messages: Vec<Bytes> = Chunker::default().cut(frame.clone()).collect();
    messages.reverse();
    let mut joiner = Joiner::default();
    let last = messages.pop().expect("at least one message");
    for message in messages {
        assert_eq!(joiner.push(message), Ok(None));
    }
    assert_eq!(joiner.push(last), Ok(Some(frame)));
    assert_eq!(joiner.half_bytes(), 0);
}

#[test]
fn frames_are_numbered_on_through_the_end_of_u32() {
    let mut chunker = Chunker {
        next_frame: u32::MAX,
    };
    let mut joiner = Joiner {
        oldest: u32::MAX,
        ..Joiner::default()
    };
    let messages: Vec<Bytes> = (1..4).flat_map(|len| chunker.cut(frame_of(len))).collect();
    for at in [2, 0, 1] {
        let frame = joiner.push(messages[at].clone());
        assert_eq!(frame, Ok(Some(frame_of(at + 1))));
    }
    for repeated in messages {
        assert_eq!(joiner.push(repeated), Ok(None));
    }
    assert_eq!(joiner.oldest, 2);
    assert!(joiner.whole.is_empty());
}

#[test]
fn messages_that_do_not_fit_their_frame_are_refused() {
    let refused = |message: Bytes| Joiner::default().push(message).expect_err("refused");
    let whole = vec![0; CHUNK_BYTES_MAX];
    let piece = |index, len_bytes, total_bytes| ChunkError::Piece {
        index,
        len_bytes,
        total_bytes,
    };
    assert_eq!(
        refused(Bytes::from_static(&[0; 9])),
        ChunkError::Truncated { len_bytes: 9 }
    );
    assert_eq!(
        refused(message(0, 0, 0, b"")),
        ChunkError::Total { total_bytes: 0 }
    );
    assert_eq!(
        refused(message(0, 0, u32::MAX, &whole)),
        ChunkError::Total {
            total_bytes: u32::MAX as usize
        }
    );
    assert_eq!(refused(message(0, 1, 3, b"")), piece(1, 0, 3));
    assert_eq!(refused(message(0, 0, 3, b"four")), piece(0, 4, 3));
    assert_eq!(refused(message(0, 0, 40_000, b"four")), piece(0, 4, 40_000));
    assert_eq!(
        refused(message(0, u16::MAX, 40_000, &whole)),
        piece(u16::MAX, CHUNK_BYTES_MAX, 40_000)
    );
    let mut joiner = Joiner::default();
    assert_eq!(joiner.push(message(0, 0, 40_000, &whole)), Ok(None));
    assert_eq!(
        joiner.push(message(0, 0, 40_001, &whole)),
        Err(ChunkError::Inconsistent {
            frame: 0,
            before_bytes: 40_000,
            now_bytes: 40_001
        })
    );
}

#[test]
fn a_peer_that_finishes_no_frame_reaches_a_limit() {
    let whole = vec![0; CHUNK_BYTES_MAX];
    let total = u32::try_from(FRAME_BYTES_MAX).expect("fits");

    let mut joiner = Joiner::default();
    let refused = (0..).find_map(|frame| joiner.push(message(frame, 0, total, &whole)).err());
    assert_eq!(refused, Some(ChunkError::HalfFrames));
    assert_eq!(joiner.half_bytes(), HALF_FRAMES_MAX * CHUNK_BYTES_MAX);

    let mut joiner = Joiner::default();
    let refused = (0..3)
        .flat_map(|frame| (0..1023).map(move |index| (frame, index)))
        .find_map(|(frame, index)| joiner.push(message(frame, index, total, &whole)).err());
    assert_eq!(refused, Some(ChunkError::Bytes));
    assert_eq!(joiner.half_bytes(), REASSEMBLY_BYTES_MAX);

    let mut joiner = Joiner::default();
    let refused = (1..).find_map(|frame| joiner.push(message(frame, 0, 1, b"x")).err());
    let frame = FRAMES_AHEAD_MAX + 1;
    assert_eq!(refused, Some(ChunkError::Ahead { frame, oldest: 0 }));
}

/// Lengths around the borders of pieces.
fn any_length() -> impl Strategy<Value = usize> {
    let around = (0_usize..4, 0_usize..5)
        .prop_map(|(pieces, more)| (pieces * CHUNK_BYTES_MAX + more).saturating_sub(2).max(1));
    prop_oneof![1_usize..200, around]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_come_out_once_each_whatever_the_order_and_however_often_repeated(
        lengths in vec(any_length(), 1..12),
        repeats in 1_usize..3,
        shuffle in any::<u64>(),
    ) {
        let frames: Vec<Bytes> = lengths.iter().map(|&len| frame_of(len)).collect();
        let mut chunker = Chunker::default();
        let once: Vec<Bytes> = frames.iter().flat_map(|frame| chunker.cut(frame.clone())).collect();
        let mut messages: Vec<Bytes> = std::iter::repeat_n(once, repeats).flatten().collect();
        let mut random = crate::random::Words::new("test shuffle", &[shuffle]);
        for at in (1..messages.len()).rev() {
            messages.swap(at, random.next_word() as usize % (at + 1));
        }
        let mut joiner = Joiner::default();
        let mut joined = Vec::new();
        for message in messages {
            joined.extend(joiner.push(message).expect("sound messages"));
        }
        let sorted = |mut frames: Vec<Bytes>| {
            frames.sort();
            frames
        };
        prop_assert_eq!(sorted(joined), sorted(frames));
        prop_assert_eq!(joiner.half_bytes(), 0);
        prop_assert!(joiner.half.is_empty() && joiner.whole.is_empty());
    }

    #[test]
    fn any_bytes_are_a_piece_or_refused(
        messages in vec((0_u32..9, 0_u16..3, 1_u32..70_000, any_length(), 0_usize..12), 0..60),
    ) {
        let mut joiner = Joiner::default();
        for (frame, index, total, len_bytes, cut) in messages {
            let mut message = message(frame, index, total, &frame_of(len_bytes));
            message.truncate(message.len() - cut.min(message.len()));
            let _either = joiner.push(message);
            let kept: usize = joiner
                .half
                .values()
                .flat_map(|half| half.pieces.values())
                .map(Bytes::len)
                .sum();
            prop_assert_eq!(kept, joiner.half_bytes());
            prop_assert!(joiner.half.len() <= HALF_FRAMES_MAX);
        }
    }

    #[test]
    fn a_frame_without_one_of_its_messages_never_comes_out(
        len_bytes in 1_usize..4 * CHUNK_BYTES_MAX,
        missing in any::<prop::sample::Index>(),
    ) {
        let mut messages: Vec<Bytes> = Chunker::default().cut(frame_of(len_bytes)).collect();
        messages.remove(missing.index(messages.len()));
        let mut joiner = Joiner::default();
        for message in messages {
            prop_assert_eq!(joiner.push(message), Ok(None));
        }
    }
}
