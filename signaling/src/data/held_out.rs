//! What is held out for validation: about 2 %, in contiguous ranges spread over the text.
//!
//! Contiguous, so that held-out samples are whole passages; spread, so that every part of the text is
//! judged. The ranges follow from the length alone: in bytes of text, which are cut before a tokenizer sees
//! them, or in tokens where shards hold nothing else.
//!
//! Invariant: ranges are in order, disjoint, and each is at least one sequence long.

use std::ops::Range;

/// One byte or token in so many is held out.
const SHARE: u64 = 50;
/// Most ranges that are cut out: each ends a passage of training text, too.
const RANGES_MAX: u64 = 64;
/// Sequences in a range, where there is text enough.
const SEQUENCES_A_RANGE: u64 = 8;

/// The held-out ranges of a whole of that length; `sequence` is one sample's length in the same unit. Empty if
/// there are not two sequences.
pub fn ranges(whole: u64, sequence: u64) -> Vec<Range<u64>> {
    if whole < 2 * sequence {
        return Vec::new();
    }
    let wanted = (whole / SHARE).max(sequence);
    let count = (wanted / (SEQUENCES_A_RANGE * sequence)).clamp(1, RANGES_MAX);
    let (segment, length) = (whole / count, wanted / count);
    (0..count)
        .map(|index| {
            let start = index * segment + (segment - length) / 2;
            start..start + length
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_percent_are_held_out_in_ranges_spread_over_the_text() {
        let ranges = ranges(50_000_000, 129);
        assert_eq!(ranges.len(), 64);
        let held: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert_eq!(held, 50_000_000 / 50 / 64 * 64);
        assert!(ranges[0].start < 1_000_000 && ranges[63].end > 49_000_000);
    }

    #[test]
    fn ranges_are_disjoint_and_hold_a_sequence_each_whatever_the_size() {
        for tokens in (0..200_000).step_by(97) {
            for sequence in [9, 129, 1025] {
                let mut end = 0;
                for range in ranges(tokens, sequence) {
                    assert!(range.start >= end && range.end <= tokens);
                    assert!(range.end - range.start >= sequence);
                    end = range.end;
                }
                assert_eq!(end == 0, tokens < 2 * sequence);
            }
        }
    }
}
