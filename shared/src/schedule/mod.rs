//! Who does what and in which order, as pure functions of measured figures.
//!
//! [`placement`] cuts the stages into seats and gives them to volunteers; [`order`] says which microbatch a
//! seat works on next; [`grouping`] who merges with whom; [`proposal`] into how many microbatches a step is best cut. None knows of connections, rounds or time that passes:
//! the coordinator and the peer call them.
//!
//! Invariant: the same figures in any order give the same result, on every machine: integers only.

pub mod grouping;
pub mod order;
pub mod placement;
pub mod proposal;
