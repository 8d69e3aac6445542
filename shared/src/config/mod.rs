//! Run configuration: as written, then validated; named presets.
//!
//! [`model`] owns the sizes of the model and its cut into stages.

pub mod model;
