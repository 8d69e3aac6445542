//! The mathematics of training on burn: stages, boundary codecs, optimizer, checkpoints.
//!
//! From the inside out: [`block`] is one transformer block, [`codec`] what crosses a border,
//! [`stage`] a few blocks with the model's ends where they belong, [`adamw`] their optimizer,
//! [`state`] their blobs and hashes, [`merge`] how replicas of them become one, [`seat`] contiguous stages with stored
//! inputs, [`engine`] the same behind [`crate::compute::Compute`]. [`device`] alone names a GPU API.
//!
//! Knows no peers, no rounds' outcome, no network: jobs come in, results go out. All reads from a
//! device are asynchronous, as a browser needs them. Invariant: a stage computes the same bits wherever
//! the model is cut, because each stage runs alone, on the same border values, in any seat.

pub mod adamw;
mod basis;
pub mod block;
pub mod codec;
pub mod device;
pub mod engine;
mod layers;
pub mod learning_rate;
pub mod memory;
pub mod merge;
pub mod seat;
pub mod stage;
pub mod state;
