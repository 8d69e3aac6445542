//! A whole run in one thread: a coordinator, many volunteers, a virtual clock and a network that fails.
//!
//! Everything random comes from one seed, so a failure prints the seed and is replayed by it. Time passes only from
//! event to event. Compute is replaced by hashes ([`compute`]); everything else is the real coordinator
//! and the real peers, exchanging the real messages.
//!
//! What is held, after every event or commit:
//! - the journal is a history that an auditor accepts, and no sample is lost;
//! - `commit` is said only for rows that are synced;
//! - a committed stage has exactly the weights that folding over the surviving rows gives;
//! - once faults stop, rounds are committed again within a bound.
//!
//! Faults are killed, frozen, hung, cut off and split up volunteers, hosts that die, disks that fail, messages that are lost, come
//! twice or late ([`echoes`]), and devices that now and then merge wrongly.

pub mod compute;
pub mod scaling;

mod audit;
mod echoes;
mod faults;
mod network;
mod processes;
mod quiet;
mod setup;
mod store;
mod summary;
#[cfg(test)]
mod tests;
mod texts;
mod volunteer;
#[cfg(test)]
mod wires;
mod world;

pub use summary::{Failure, Summary};
pub use world::{Sabotage, World};

use crate::random::Words;
use crate::units::Span;

/// Draws from the run's seed.
#[derive(Clone, Debug)]
pub(crate) struct Dice {
    words: Words,
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            words: Words::new("simulation", &[seed]),
        }
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // 32 bits are plenty, and the slight bias of the remainder harms nobody.
        u64::from(self.words.next_word()) % bound
    }

    /// A number from `first` up to and without `end`.
    pub(crate) fn between(&mut self, first: u64, end: u64) -> u64 {
        first + self.below(end - first)
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// A span of milliseconds.
    pub(crate) fn millis(&mut self, first: u64, end: u64) -> Span {
        Span::from_millis(self.between(first, end))
    }

    /// One of `items`.
    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        let index = usize::try_from(self.below(items.len().max(1) as u64)).ok()?;
        items.get(index).copied()
    }
}

/// Runs one world from its seed to its end.
///
/// # Errors
/// The first rule that was broken.
pub fn run(seed: u64, sabotage: Sabotage) -> Result<Summary, Failure> {
    World::new(seed, sabotage).run()
}
