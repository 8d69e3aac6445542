//! Run configuration: as written, then validated; named presets.
//!
//! [`model`] owns the sizes of the model and its cut into stages, [`run`] everything else that all
//! sides of a run agree on.

pub mod model;
pub mod run;
