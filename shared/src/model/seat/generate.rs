//! Having the model write: a seat reads on in a text, each token once.
//!
//! Keys and values of what was read are remembered for each text ([`crate::model::memory`]), on the device. They are of
//! the weights with which it was read: those may be older by some steps where training goes on meanwhile. So a
//! token costs one position, at any seat, and a seat needs no second copy of its weights for it.
//!
//! What is remembered, and for how long, is the caller's business; that portions follow each other is checked.
//! [`Seat::next_token_logits`] runs a whole window again instead, for comparison.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::Tensor;

use super::{Seat, SeatError, all_finite, read, refuse};
use crate::compute::{Portion, Written};
use crate::model::block::tensor;
use crate::model::codec::Batch;
use crate::model::memory::Memory;
use crate::units::RequestId;
use crate::wire::number::{Rounding, pack};

/// What a seat remembers of texts.
#[derive(Debug)]
pub struct Texts {
    stages: Range<usize>,
    memories: BTreeMap<RequestId, Vec<Memory>>,
}

impl Seat {
    /// Reads on in a text.
    ///
    /// # Errors
    /// Refuses what does not fit the model, or does not follow what was read of the text before.
    pub async fn generate(&mut self, portion: &Portion) -> Result<Written, SeatError> {
        let (input, batch) = self.portion_in(portion)?;
        if self.lacks_basis() {
            return Ok(Written::Nothing);
        }
        let remembered = self.texts.remove(&portion.request);
        let mut memories = match remembered {
            Some(memories) if portion.position > 0 => memories,
            Some(_) | None => vec![Memory::default(); self.stages.len()],
        };
        let seen = memories.first().map_or(0, Memory::positions);
        if usize::try_from(portion.position) != Ok(seen) {
            let position = portion.position;
            return refuse(format!(
                "position {position} of a text that was read to {seen}"
            ));
        }
        let is_last = self.is_last();
        let (last, before) = self.stages.split_last().expect("a seat has stages");
        let (last_memory, memories_before) = memories.split_last_mut().expect("one memory a stage");
        let reading = before.iter().zip(memories_before);
        let entering = reading.fold(input, |input, (stage, memory)| {
            Some(stage.read_on(input, &batch, memory))
        });
        let leaving = if is_last {
            last.next_logits(entering, &batch, last_memory)
        } else {
            last.read_on(entering, &batch, last_memory)
        };
        let values = read(vec![leaving.flatten(0, 2)]).await?.remove(0);
        if !all_finite(&values) {
            return Ok(Written::Nothing);
        }
        self.texts.insert(portion.request, memories);
        Ok(if is_last {
            Written::Token(portion.sampling.draw(&values, portion.drawn))
        } else {
            let width = self.run.model.boundary_width();
            let packed = pack(self.run.format, &values, width, Rounding::Nearest);
            Written::Boundary(packed.into())
        })
    }

    /// Remembers a text no more.
    pub fn forget(&mut self, request: RequestId) {
        self.texts.remove(&request);
    }

    /// Ends the seat; what it remembers of texts stays.
    #[must_use]
    pub fn into_texts(self) -> Texts {
        Texts {
            stages: self.first()..self.first() + self.stages.len(),
            memories: self.texts,
        }
    }

    /// Remembers what a seat before did, if that was of the same stages.
    pub fn remember(&mut self, texts: Texts) {
        if texts.stages == (self.first()..self.first() + self.stages.len()) {
            self.texts = texts.memories;
        }
    }

    /// Checks a portion and brings it to the device.
    fn portion_in(&self, portion: &Portion) -> Result<(Option<Tensor<3>>, Batch), SeatError> {
        let rows = portion.tokens.len();
        let context = self.run.model.context;
        let end = usize::try_from(portion.position).ok();
        let fits = end
            .and_then(|at| at.checked_add(rows))
            .is_some_and(|end| end <= context);
        if rows == 0 || !fits {
            let position = portion.position;
            return refuse(format!(
                "{rows} tokens after {position} are no part of a context of {context}"
            ));
        }
        self.check_ids(&portion.tokens)?;
        let input = match (&portion.boundary, self.first()) {
            (None, 0) => None,
            (Some(bytes), 1..) => {
                let values = self.unpacked(bytes, rows)?;
                let shape = [1, rows, self.run.model.boundary_width()];
                Some(tensor(values, shape, &self.device))
            }
            (Some(_), 0) => return refuse("the head reads tokens, not a border".to_owned()),
            (None, 1..) => return refuse("a seat after the head reads a border".to_owned()),
        };
        let tokens = &portion.tokens;
        let batch = self.codec.batch_of(tokens, tokens, rows, &self.device);
        Ok((input, batch))
    }

    /// Scores of the token after `tokens`, by a seat that covers the whole model.
    ///
    /// Only the last `context` tokens are looked at.
    ///
    /// # Errors
    /// If there are no tokens, an id is out of range, or the device is lost.
    ///
    /// # Panics
    /// If the seat does not cover the whole model.
    pub async fn next_token_logits(&self, tokens: &[u32]) -> Result<Vec<f32>, SeatError> {
        assert_eq!(
            self.stages.len(),
            self.run.model.stages,
            "all stages, to generate"
        );
        self.check_ids(tokens)?;
        let window = &tokens[tokens.len().saturating_sub(self.run.model.context)..];
        if window.is_empty() {
            return refuse("no token to go on from".to_owned());
        }
        let batch = self
            .codec
            .batch_of(window, window, window.len(), &self.device);
        let (last, before) = self.stages.split_last().expect("a seat has stages");
        let input = before
            .iter()
            .fold(None, |input, stage| Some(stage.forward(input, &batch)));
        let logits = last.logits(input, &batch);
        let row = logits
            .slice([0..1, window.len() - 1..window.len()])
            .flatten(0, 2);
        Ok(read(vec![row]).await?.remove(0))
    }
}
