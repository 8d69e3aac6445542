//! Keys and values of positions that were read already, so that a text is gone on with token by token.
//!
//! What a position's blocks computed depends on no later position. So a stage that has read a text
//! reads its next token alone: its queries look at the keys kept here. The result is the last row of what
//! reading the whole text again gives. For generation; training never keeps any of it.
//!
//! Invariant: all blocks have seen the same positions, from 0 on.

use burn::tensor::Tensor;

/// What one stage's blocks keep of the positions they have seen.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    blocks: Vec<Seen>,
}

/// One block's keys and values, `[batch, heads, positions, width]` each.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(Option<(Tensor<4>, Tensor<4>)>);

impl Memory {
    /// Positions seen.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.blocks.first().map_or(0, Seen::positions)
    }

    /// What block `index` of the stage has seen.
    pub(super) fn block(&mut self, index: usize) -> &mut Seen {
        if self.blocks.len() <= index {
            self.blocks.resize_with(index + 1, Seen::default);
        }
        &mut self.blocks[index]
    }
}

impl Seen {
    /// Positions seen.
    pub(super) fn positions(&self) -> usize {
        self.0.as_ref().map_or(0, |(key, _)| key.dims()[2])
    }

    /// Adds the next positions; gives the keys and values of all.
    pub(super) fn extend(&mut self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let all = match self.0.take() {
            None => (key, value),
            Some((keys, values)) => (
                Tensor::cat(vec![keys, key], 2),
                Tensor::cat(vec![values, value], 2),
            ),
        };
        self.0 = Some(all.clone());
        all
    }
}
