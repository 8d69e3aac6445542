//! The source's text in order, cut where held-out passages begin and end.
//!
//! What is held out is decided on the text, before there is any token: so a tokenizer can be trained on
//! the rest alone, and no token lies on both sides. Passages end between characters: a held-out one
//! begins a little earlier and ends a little later than its range where that falls inside of one.
//!
//! Invariant: the passages' texts, joined, are the text of all files, each ending its last line.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;

use super::DataError;
use super::corpus::{Pieces, Source};

/// A stretch of text that lies in one part of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passage {
    /// Whether it is held out for validation.
    pub(crate) held_out: bool,
    pub(crate) text: String,
}

/// All passages of a source; the first error is the last item.
pub(crate) struct Passages<'a> {
    files: std::slice::Iter<'a, PathBuf>,
    pieces: Option<Pieces>,
    /// What is left of the piece that was read last.
    rest: String,
    /// Bytes of the files' text before `rest`.
    position: u64,
    /// Whether the last text that was given out ended a line.
    ends_line: bool,
    /// Ranges of bytes that end behind `position`.
    held_out: VecDeque<Range<u64>>,
}

impl<'a> Passages<'a> {
    /// `held_out`: ranges of the source's bytes, in order and disjoint.
    pub(crate) fn new(source: &'a Source, held_out: &[Range<u64>]) -> Self {
        Self {
            files: source.files.iter(),
            pieces: None,
            rest: String::new(),
            position: 0,
            ends_line: true,
            held_out: held_out.iter().cloned().collect(),
        }
    }

    /// Whether `position` is held out.
    fn is_inside(&self) -> bool {
        let next = self.held_out.front();
        next.is_some_and(|range| range.start <= self.position)
    }

    fn passage(&self, text: String) -> Passage {
        Passage {
            held_out: self.is_inside(),
            text,
        }
    }

    /// Takes the passage at the front of `rest`, which is not empty.
    fn take(&mut self) -> Passage {
        let (from, len) = (self.position, self.rest.len());
        let within = |border: u64| {
            let bytes = usize::try_from(border.saturating_sub(from)).unwrap_or(usize::MAX);
            bytes.min(len)
        };
        let cut = match self.held_out.front_mut() {
            None => len,
            Some(range) if range.start <= from => self.rest.ceil_char_boundary(within(range.end)),
            Some(range) => {
                let cut = self.rest.floor_char_boundary(within(range.start));
                if cut == 0 {
                    // It begins inside of this very character.
                    range.start = from;
                    return self.take();
                }
                cut
            }
        };
        let behind = self.rest.split_off(cut);
        let text = std::mem::replace(&mut self.rest, behind);
        let passage = self.passage(text);
        self.position += cut as u64;
        self.ends_line = passage.text.ends_with('\n');
        let position = self.position;
        self.held_out.retain(|range| range.end > position);
        passage
    }

    fn try_next(&mut self) -> Result<Option<Passage>, DataError> {
        loop {
            if !self.rest.is_empty() {
                return Ok(Some(self.take()));
            }
            let piece = match &mut self.pieces {
                Some(pieces) => pieces.next_text()?.map(str::to_owned),
                None => None,
            };
            if let Some(text) = piece {
                self.rest = text;
                continue;
            }
            if !std::mem::replace(&mut self.ends_line, true) {
                return Ok(Some(self.passage("\n".to_owned())));
            }
            match self.files.next() {
                None => return Ok(None),
                Some(path) => self.pieces = Some(Pieces::open(path)?),
            }
        }
    }
}

impl Iterator for Passages<'_> {
    type Item = Result<Passage, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.try_next();
        if next.is_err() {
            (self.files, self.pieces) = ([].iter(), None);
        }
        next.transpose()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::corpus;
    use super::*;

    fn passages(texts: &[String], held_out: &[Range<u64>]) -> Vec<Passage> {
        let folder = tempfile::tempdir().unwrap();
        for (index, text) in texts.iter().enumerate() {
            std::fs::write(folder.path().join(format!("{index}.txt")), text).unwrap();
        }
        let source = corpus::scan(folder.path(), &folder.path().join("store")).unwrap();
        Passages::new(&source, held_out)
            .collect::<Result<_, _>>()
            .unwrap()
    }

    #[test]
    fn a_held_out_passage_has_whole_characters_and_the_rest_none_of_them() {
        let texts = ["aüb\ncc".to_owned(), "dddd\n".to_owned()];
        let expected = [
            (false, "a"),
            (true, "üb\n"),
            (false, "cc"),
            (false, "\n"),
            (false, "d"),
            (true, "dd"),
            (false, "d\n"),
        ];
        let found = passages(&texts, &[2..5, 8..10]);
        let found: Vec<(bool, &str)> = found
            .iter()
            .map(|passage| (passage.held_out, passage.text.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn passages_joined_are_the_whole_text_whatever_is_held_out(
            texts in proptest::collection::vec("[a-zü€\u{1F41F}\n]{1,40}", 1..4),
            borders in proptest::collection::btree_set(0_u64..120, 0..8),
        ) {
            let borders: Vec<u64> = borders.into_iter().collect();
            let ranges: Vec<Range<u64>> =
                borders.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let found = passages(&texts, &ranges);
            let joined: String = found.iter().map(|passage| passage.text.as_str()).collect();
            let line = |text: &String| {
                if text.ends_with('\n') { text.clone() } else { format!("{text}\n") }
            };
            prop_assert_eq!(joined, texts.iter().map(line).collect::<String>());
            let held: u64 = found
                .iter()
                .filter(|passage| passage.held_out)
                .map(|passage| passage.text.len() as u64)
                .sum();
            let bytes: u64 = texts.iter().map(|text| text.len() as u64).sum();
            let least: u64 =
                ranges.iter().map(|range| range.end.min(bytes) - range.start.min(bytes)).sum();
            prop_assert!(held >= least, "{held} bytes held out, of {least}");
            prop_assert!(!found.iter().any(|passage| passage.text.is_empty()));
        }
    }
}
