//! Writing without mathematics: the next token is a hash of all that was read in the window, whatever the weights.
//!
//! So a world knows what must be written, and a seat that missed a portion of a text, or read one twice, is
//! noticed: each boundary is a hash of all that was read, too, and the next seat compares it with its own.

use bytes::Bytes;

use super::{FakeCompute, hash, refused, repeated};
use crate::compute::{Done, Portion, Written};
use crate::wire::number::payload_bytes;

/// The token after `window`.
#[must_use]
pub fn next_token(window: &[u32], vocabulary: usize) -> u32 {
    let [a, b, c, d, ..] = of_text(window);
    let number = u32::from_le_bytes([a, b, c, d]);
    number % u32::try_from(vocabulary).expect("a vocabulary fits u32")
}

fn of_text(window: &[u32]) -> [u8; 32] {
    let bytes: Vec<u8> = window
        .iter()
        .flat_map(|token| token.to_le_bytes())
        .collect();
    hash(&[b"text", &bytes])
}

impl FakeCompute {
    pub(super) fn generate(&mut self, portion: &Portion) -> Done {
        let request = portion.request;
        let model = &self.config.model;
        let mut read = self.texts.remove(&request).unwrap_or_default();
        if portion.position == 0 {
            read.clear();
        }
        if usize::try_from(portion.position) != Ok(read.len()) {
            return refused("a text that was not read so far");
        }
        read.extend(&portion.tokens);
        let value = of_text(&read);
        let rows = portion.tokens.len();
        let bytes = payload_bytes(self.config.format, rows, model.boundary_width());
        let boundary = repeated(&value, bytes);
        let is_expected = |found: &Bytes| *found == boundary;
        if rows == 0 || read.len() > model.context || !portion.boundary.iter().all(is_expected) {
            return refused("another text than was read");
        }
        let written = match self.is_last() {
            true => Written::Token(next_token(&read, model.vocabulary)),
            false => Written::Boundary(boundary),
        };
        self.texts.insert(request, read);
        Done::Generated { request, written }
    }
}
