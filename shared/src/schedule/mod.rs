//! Who sits where, and in which order a seat works: pure functions of what was measured.

pub mod placement;
