//! Random words from a key and a position: a counter-based generator (ChaCha, eight rounds).
//!
//! The same key and position give the same word on every machine, natively and in WASM, in any
//! order and however many are asked for at once. That is what lets volunteers derive fixed
//! numbers instead of sending them, and lets a replayed microbatch round its gradients alike.
//!
//! Knows nothing of what the words are used for: [`Words::new`] takes a purpose, so that no two
//! uses share a stream. This is no source of secrets: the keys are public.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Context string of the key derivation; a change of it changes every derived number.
const CONTEXT: &str = "shoal 2026-11-20 counter-based words";

/// A stream of uniform 32-bit words that can be entered anywhere.
#[derive(Clone, Debug)]
pub struct Words {
    generator: ChaCha8Rng,
}

impl Words {
    /// The stream of `purpose` under `numbers`, at its first word.
    ///
    /// Different purposes or numbers, or more of them, give unrelated streams.
    #[must_use]
    pub fn new(purpose: &str, numbers: &[u64]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&(numbers.len() as u64).to_le_bytes());
        hasher.update(purpose.as_bytes());
        Self {
            generator: ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()),
        }
    }

    /// Moves to word `index` of the stream.
    pub fn seek(&mut self, index: u64) {
        self.generator.set_word_pos(u128::from(index));
    }

    /// Halves of the next words, lower ones first, as many as there is room for: much faster than one by one. Half a word
    /// that is left over is nobody's.
    pub fn fill(&mut self, halves: &mut [u16]) {
        /// So many at once.
        const CHUNK: usize = 256;
        let mut bytes = [0; 2 * CHUNK];
        for halves in halves.chunks_mut(CHUNK) {
            let bytes = &mut bytes[..2 * halves.len()];
            self.generator.fill_bytes(bytes);
            for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
                *half = u16::from_le_bytes(*bytes);
            }
        }
    }

    /// The word at the present position, which moves on by one.
    #[inline]
    pub fn next_word(&mut self) -> u32 {
        self.generator.next_u32()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_words<const N: usize>(mut words: Words) -> [u32; N] {
        std::array::from_fn(|_| words.next_word())
    }

    #[test]
    fn a_stream_entered_in_the_middle_goes_on_as_if_read_from_its_start() {
        let whole: [u32; 300] = first_words(Words::new("test", &[7]));
        for start in [0_usize, 1, 15, 16, 63, 64, 65, 255] {
            let mut words = Words::new("test", &[7]);
            words.next_word();
            words.seek(start as u64);
            let part: [u32; 40] = first_words(words);
            assert_eq!(part[..], whole[start..start + 40]);
        }
    }

    #[test]
    fn many_at_once_are_the_halves_of_those_that_come_one_by_one() {
        let expected: [u32; 350] = first_words(Words::new("test", &[7]));
        let expected = expected.iter().flat_map(|word| {
            let [a, b, c, d] = word.to_le_bytes();
            [[a, b], [c, d]].map(u16::from_le_bytes)
        });
        let expected: Vec<u16> = expected.collect();
        let mut words = Words::new("test", &[7]);
        let mut halves = [0; 700];
        let (first, rest) = halves.split_at_mut(4);
        words.fill(first);
        words.fill(rest);
        assert_eq!(halves[..], expected);
        // Of the next word half is left over.
        let mut one = [0];
        words.fill(&mut one);
        let next = words.next_word();
        words.seek(351);
        assert_eq!(words.next_word(), next);
    }

    #[test]
    fn streams_of_other_purposes_or_numbers_differ() {
        let reference: [u32; 4] = first_words(Words::new("test", &[7]));
        for other in [
            Words::new("rest", &[7]),
            Words::new("test", &[8]),
            Words::new("test", &[7, 0]),
        ] {
            assert_ne!(first_words::<4>(other), reference);
        }
    }
}
