//! Samples' tokens out of the host's files: which bytes are wanted, and what is cut out of them.
//!
//! Tokens are fetched a chunk at a time and the newest chunks kept: samples in a row lie in few of them
//! ([`crate::derive::samples`]). Both clients ask here and fetch in their own way.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::config::run::RunConfig;
use crate::derive::samples::{Samples, Split};
use crate::wire::frame::Mode;
use crate::wire::signal::DataInfo;

/// Chunks of tokens that are kept: two epochs' ends may meet, two chunk groups each.
const CHUNKS_MAX: usize = 64;

/// Where a part of the data is served, and how its samples lie in it.
#[derive(Clone, Debug)]
pub struct Part {
    path: &'static str,
    samples: Samples,
    token_bytes: u64,
}

/// Bytes that are not kept here: `[start, start + len)` of the file at `path` under the host's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which file.
    pub path: &'static str,
    /// First byte.
    pub start: u64,
    /// How many.
    pub len: u64,
}

/// Chunks of tokens, the newest ones.
#[derive(Debug, Default)]
pub struct Chunks {
    /// Used last comes last.
    kept: VecDeque<(Wanted, Bytes)>,
}

impl Part {
    /// `None` if that part of the data is shorter than a sample.
    #[must_use]
    pub fn new(config: &RunConfig, data: &DataInfo, mode: Mode) -> Option<Self> {
        let (split, path, tokens) = match mode {
            Mode::Train => (Split::Train, "data/train.bin", data.train_tokens),
            Mode::Evaluate => (
                Split::Validation,
                "data/validation.bin",
                data.validation_tokens,
            ),
        };
        let model = &config.model;
        Some(Self {
            path,
            samples: Samples::new(split, config.seed, model.context, tokens)?,
            token_bytes: if model.vocabulary > 1 << 16 { 4 } else { 2 },
        })
    }
}

impl Chunks {
    /// Tokens of sample `number`.
    ///
    /// # Errors
    /// They are not here: [`Self::insert`] the bytes that are wanted, then ask again.
    pub fn sample(&mut self, part: &Part, number: u64) -> Result<Vec<u32>, Wanted> {
        let place = part.samples.place(number);
        let width = part.token_bytes;
        let wanted = Wanted {
            path: part.path,
            start: place.chunk.start * width,
            len: (place.chunk.end - place.chunk.start) * width,
        };
        let known = self.kept.iter().position(|(of, _)| *of == wanted);
        let (_, bytes) = known
            .and_then(|index| self.kept.remove(index))
            .ok_or(wanted)?;
        let index = |token: u64| {
            usize::try_from((token - place.chunk.start) * width).expect("a chunk fits into memory")
        };
        let tokens = bytes[index(place.tokens.start)..index(place.tokens.end)]
            .chunks_exact(usize::try_from(width).expect("2 or 4"))
            .map(little_endian)
            .collect();
        self.kept.push_back((wanted, bytes));
        Ok(tokens)
    }

    /// Keeps what was wanted; whether its length is right.
    pub fn insert(&mut self, wanted: Wanted, bytes: Bytes) -> bool {
        let fits = bytes.len() as u64 == wanted.len;
        if fits {
            self.kept.push_back((wanted, bytes));
            if self.kept.len() > CHUNKS_MAX {
                self.kept.pop_front();
            }
        }
        fits
    }
}

/// A token id of two or four bytes.
fn little_endian(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |token, byte| token << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Digest;

    /// A file whose token at position i is i, modulo 2^16.
    fn serve(wanted: Wanted) -> Bytes {
        let tokens = wanted.start / 2..(wanted.start + wanted.len) / 2;
        tokens
            .flat_map(|token| u16::try_from(token % 65_536).expect("below").to_le_bytes())
            .collect::<Vec<u8>>()
            .into()
    }

    fn part(tokens: u64) -> Option<Part> {
        let config = crate::config::written::read("[run]\npreset = \"tiny\"\n", &[]);
        let data = DataInfo {
            digest: Digest::default(),
            train_tokens: tokens,
            validation_tokens: 0,
        };
        Part::new(&config.expect("a preset is a run"), &data, Mode::Train)
    }

    #[test]
    fn tokens_are_little_endian() {
        assert_eq!(little_endian(&[1, 2]), 0x0201);
        assert_eq!(little_endian(&[1, 2, 3, 4]), 0x0403_0201);
    }

    #[test]
    fn a_sample_is_cut_out_of_its_chunk_and_the_chunk_is_fetched_once() {
        let part = part(200_000).expect("long enough");
        let mut chunks = Chunks::default();
        let mut fetched = Vec::new();
        for number in 0..200 {
            let tokens = loop {
                match chunks.sample(&part, number) {
                    Ok(tokens) => break tokens,
                    Err(wanted) => {
                        assert!(!fetched.contains(&wanted), "{wanted:?} was fetched before");
                        fetched.push(wanted);
                        assert!(!chunks.insert(wanted, Bytes::from_static(b"short")));
                        assert!(chunks.insert(wanted, serve(wanted)));
                    }
                }
            };
            assert_eq!(tokens.len(), 129);
            let first = part.samples.place(number).tokens.start;
            let expected = (first..first + 129).map(|token| u32::try_from(token % 65_536).unwrap());
            assert!(tokens.into_iter().eq(expected), "sample {number}");
        }
    }

    #[test]
    fn data_shorter_than_a_sample_has_no_samples() {
        assert!(part(100).is_none());
    }
}
