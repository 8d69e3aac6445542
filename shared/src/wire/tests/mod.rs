//! The bytes of every message, written down: a change of one is a new wire version.
//!
//! Where a text here has to change, [`super::frame::VERSION`] has to change with it.

mod frame;
mod gateway;
mod link;
mod signal;
mod text;
