//! What is added to a number before it is rounded to the nearest.

use super::{Direction, Noise, Rounding};
use crate::random::Words;

/// Numbers that are rounded together.
pub(super) const SHARES_AT_ONCE: usize = 256;

/// Nothing for each number, or uniform in `(-1/2, 1/2)`: then the mean is exact.
pub(super) struct Shares {
    words: Option<Words>,
    drawn: [u16; SHARES_AT_ONCE],
    shares: [f32; SHARES_AT_ONCE],
}

impl Shares {
    pub(super) fn new(rounding: Rounding) -> Self {
        let words = match rounding {
            Rounding::Nearest => None,
            Rounding::Stochastic(noise) => {
                let direction = match noise.direction {
                    Direction::Forward => 0,
                    Direction::Backward => 1,
                };
                let Noise {
                    run_seed,
                    round,
                    first_sample,
                    border,
                    ..
                } = noise;
                Some(Words::new(
                    "rounding",
                    &[run_seed, round, first_sample, border, direction],
                ))
            }
        };
        Self {
            words,
            drawn: [0; SHARES_AT_ONCE],
            shares: [0.0; SHARES_AT_ONCE],
        }
    }

    /// Random bits for the next numbers, [`SHARES_AT_ONCE`] at most; none if they are rounded to nearest.
    pub(super) fn drawn(&mut self, count: usize) -> Option<&[u16]> {
        let drawn = &mut self.drawn[..count];
        self.words.as_mut()?.fill(drawn);
        Some(drawn)
    }

    /// Shares of the next numbers, [`SHARES_AT_ONCE`] at most.
    pub(super) fn next(&mut self, count: usize) -> &[f32] {
        if let Some(words) = &mut self.words {
            words.fill(&mut self.drawn[..count]);
            for (share, drawn) in self.shares.iter_mut().zip(&self.drawn[..count]) {
                *share = share_of(*drawn);
            }
        }
        &self.shares[..count]
    }
}

/// Random bits as a share: the middles of as many parts, so that a half is never reached, even beside 127.
fn share_of(drawn: u16) -> f32 {
    const STEP: f32 = 1.0 / 131_072.0;
    (i32::from(drawn) * 2 + 1) as f32 * STEP - 0.5
}
