//! Shoal's core: every decision, every byte layout, all the mathematics. No I/O, no clock.
//!
//! Begin with [`units`] for the words, [`wire`] for what is said. `ARCHITECTURE.md` tells the life of
//! a microbatch through all of them.

pub mod compute;
pub mod config;
pub mod coordinator;
pub mod derive;
pub mod driver;
#[cfg(feature = "faults")]
pub mod faults;
pub mod limits;
#[cfg(feature = "compute")]
pub mod model;
pub mod peer;
pub mod random;
pub mod schedule;
#[cfg(feature = "sim")]
pub mod sim;
pub mod transport;
pub mod units;
pub mod wire;
