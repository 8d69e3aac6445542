//! Which tokens make sample i: a pure function of the data's length, the run's seed, and i.
//!
//! Tokens are cut into windows of one context, each read with the token behind it as a last target. An **epoch**
//! visits each window once. Within it, windows come in an order that looks random to the optimizer and
//! kind to the network: neighbouring windows form a chunk, the chunks are shuffled, and [`GROUP_CHUNKS`] of
//! them at a time are shuffled into each other. So a volunteer that works through samples in number
//! order reads a few chunks at a time, whole, wherever the data lies.
//!
//! Invariant: in every epoch each window comes exactly once; nobody needs more than (seed, i) to know where.

use std::ops::Range;

use crate::random::Words;

/// Windows in a chunk: what is fetched at once, 64 KB at `tiny`, 512 KB at `base`.
const CHUNK_WINDOWS: u64 = 256;
/// Chunks whose windows are shuffled into each other.
pub const GROUP_CHUNKS: u64 = 16;
/// Rounds of the permutation; four make a Feistel network indistinguishable from a random one.
const ROUNDS: u64 = 4;

/// Which part of the run's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// What is trained on.
    Train,
    /// What was held out.
    Validation,
}

/// Where the samples of one part of the data lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples {
    split: Split,
    seed: u64,
    context: u64,
    windows: u64,
    /// How far windows may move from epoch to epoch, in tokens.
    shift_max: u64,
}

/// Where one sample lies, in tokens from the beginning of its part of the data.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The sample's own tokens: `context + 1` of them.
    pub tokens: Range<u64>,
    /// The chunk around it, which holds its neighbours in number, too: worth fetching as a whole.
    pub chunk: Range<u64>,
}

impl Samples {
    /// The samples of `tokens` tokens; `None` if they are fewer than one sample needs.
    #[must_use]
    pub fn new(split: Split, seed: u64, context: usize, tokens: u64) -> Option<Self> {
        let context = context as u64;
        if context == 0 || tokens <= context {
            return None;
        }
        // One window's worth stays free, so that windows can move by less than one between epochs.
        let windows = ((tokens - context) / context).max(1);
        let free = tokens - 1 - windows * context;
        Some(Self {
            split,
            seed,
            context,
            windows,
            shift_max: free.min(context - 1),
        })
    }

    /// Samples in one epoch.
    #[must_use]
    pub const fn per_epoch(&self) -> u64 {
        self.windows
    }

    /// Where sample `number` lies.
    #[must_use]
    pub fn place(&self, number: u64) -> Place {
        let (epoch, within) = (number / self.windows, number % self.windows);
        let window = self.window(epoch, within);
        let shift = self.shift(epoch);
        let start = |window: u64| window * self.context + shift;
        let chunk = window / CHUNK_WINDOWS;
        let chunk_end = ((chunk + 1) * CHUNK_WINDOWS).min(self.windows);
        Place {
            tokens: start(window)..start(window + 1) + 1,
            chunk: start(chunk * CHUNK_WINDOWS)..start(chunk_end) + 1,
        }
    }

    /// How far all windows of that epoch are moved.
    fn shift(&self, epoch: u64) -> u64 {
        uniform(&mut self.words("shift", &[epoch]), self.shift_max + 1)
    }

    /// The window that comes at `within` in that epoch.
    fn window(&self, epoch: u64, within: u64) -> u64 {
        let chunks = self.windows.div_ceil(CHUNK_WINDOWS);
        let chunk_at = |place: u64| self.permuted("chunks", &[epoch], chunks, place);
        // All chunks are full but the last one of the data, wherever the shuffle puts it.
        let missing = chunks * CHUNK_WINDOWS - self.windows;
        let short_at = self.unpermuted("chunks", &[epoch], chunks, chunks - 1);
        let begins =
            |place: u64| place * CHUNK_WINDOWS - if place > short_at { missing } else { 0 };
        let mut group = within / (GROUP_CHUNKS * CHUNK_WINDOWS);
        while begins(((group + 1) * GROUP_CHUNKS).min(chunks)) <= within {
            group += 1;
        }
        let first = group * GROUP_CHUNKS;
        let end = (first + GROUP_CHUNKS).min(chunks);
        let size = begins(end) - begins(first);
        let drawn = self.permuted("group", &[epoch, group], size, within - begins(first));
        let at = begins(first) + drawn;
        let place = (first..end)
            .rev()
            .find(|place| begins(*place) <= at)
            .expect("the group begins at or before what lies in it");
        chunk_at(place) * CHUNK_WINDOWS + (at - begins(place))
    }

    fn words(&self, purpose: &str, numbers: &[u64]) -> Words {
        let split = match self.split {
            Split::Train => "train",
            Split::Validation => "validation",
        };
        let numbers: Vec<u64> = [self.seed].iter().chain(numbers).copied().collect();
        Words::new(&format!("samples {split} {purpose}"), &numbers)
    }

    /// Image of `value` under a permutation of `[0, size)`.
    fn permuted(&self, purpose: &str, numbers: &[u64], size: u64, value: u64) -> u64 {
        self.walk(purpose, numbers, size, value, false)
    }

    /// The value whose image under [`Self::permuted`] is `image`.
    fn unpermuted(&self, purpose: &str, numbers: &[u64], size: u64, image: u64) -> u64 {
        self.walk(purpose, numbers, size, image, true)
    }

    /// Feistel network over the next even power of two, repeated until the result is in range.
    fn walk(&self, purpose: &str, numbers: &[u64], size: u64, value: u64, back: bool) -> u64 {
        debug_assert!(value < size, "{value} of {size}");
        let half_bits = (u64::BITS - (size - 1).leading_zeros()).div_ceil(2).max(1);
        let mask = (1_u64 << half_bits) - 1;
        let keys = self.words(purpose, numbers);
        let mix = |round: u64, half: u64| {
            // Each round reads a part of the stream of its own.
            let mut words = keys.clone();
            words.seek(round << 40 | half);
            u64::from(words.next_word()) & mask
        };
        let mut value = value;
        loop {
            let (mut left, mut right) = (value >> half_bits, value & mask);
            for step in 0..ROUNDS {
                if back {
                    let round = ROUNDS - 1 - step;
                    (left, right) = (right ^ mix(round, left), left);
                } else {
                    (left, right) = (right, left ^ mix(step, right));
                }
            }
            value = left << half_bits | right;
            if value < size {
                return value;
            }
        }
    }
}

/// A number below `bound`, without the bias of a plain remainder mattering: 64 random bits.
fn uniform(words: &mut Words, bound: u64) -> u64 {
    let high = u64::from(words.next_word()) << 32;
    (high | u64::from(words.next_word())) % bound
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn samples(context: usize, tokens: u64) -> Samples {
        Samples::new(Split::Train, 42, context, tokens).expect("enough tokens")
    }

    #[test]
    fn every_epoch_visits_each_window_exactly_once_and_stays_inside_the_data() {
        for (context, tokens) in [(4, 5), (4, 9), (4, 3_000), (8, 70_000), (2, 33_333), (1, 2)] {
            let samples = samples(context, tokens);
            for epoch in 0..3 {
                let numbers = epoch * samples.per_epoch()..(epoch + 1) * samples.per_epoch();
                let mut starts = BTreeSet::new();
                for number in numbers {
                    let place = samples.place(number);
                    assert_eq!(place.tokens.end - place.tokens.start, context as u64 + 1);
                    assert!(
                        place.tokens.end <= tokens && place.chunk.end <= tokens,
                        "{place:?}"
                    );
                    assert!(place.chunk.start <= place.tokens.start);
                    assert!(place.tokens.end <= place.chunk.end, "{place:?}");
                    assert!(starts.insert(place.tokens.start), "twice: {place:?}");
                }
                let apart: Vec<u64> = starts.iter().map(|start| start % context as u64).collect();
                assert!(
                    apart.windows(2).all(|pair| pair[0] == pair[1]),
                    "windows overlap"
                );
            }
        }
    }

    #[test]
    fn samples_in_a_row_need_few_chunks_and_come_from_far_apart() {
        let samples = samples(8, 4_000_000);
        let places: Vec<Place> = (0..2_000).map(|number| samples.place(number)).collect();
        let chunks: BTreeSet<_> = places.iter().map(|place| place.chunk.start).collect();
        assert_eq!(chunks.len() as u64, GROUP_CHUNKS);
        let batch: BTreeSet<_> = places[..32].iter().map(|place| place.chunk.start).collect();
        assert!(batch.len() > 8, "a batch from {} chunks", batch.len());
    }

    #[test]
    fn order_depends_on_seed_epoch_and_part() {
        let starts = |samples: &Samples, from: u64| -> Vec<u64> {
            (from..from + 50)
                .map(|number| samples.place(number).tokens.start)
                .collect()
        };
        let train = samples(4, 10_000);
        let other_seed = Samples::new(Split::Train, 43, 4, 10_000).expect("enough");
        let other_part = Samples::new(Split::Validation, 42, 4, 10_000).expect("enough");
        let first = starts(&train, 0);
        assert_eq!(first, starts(&samples(4, 10_000), 0));
        assert_ne!(first, starts(&other_seed, 0));
        assert_ne!(first, starts(&other_part, 0));
        assert_ne!(first, starts(&train, train.per_epoch()));
    }

    #[test]
    fn too_few_tokens_are_no_sample() {
        assert_eq!(Samples::new(Split::Train, 1, 4, 4), None);
        assert_eq!(samples(4, 5).per_epoch(), 1);
    }

    #[test]
    fn the_first_samples_of_a_run_are_fixed_for_good() {
        let samples = samples(128, 1_000_000);
        let starts: Vec<u64> = (0..6)
            .map(|number| samples.place(number).tokens.start)
            .collect();
        expect_test::expect!["[183518, 462558, 639838, 991710, 213086, 837598]"]
            .assert_eq(&format!("{starts:?}"));
    }
}
