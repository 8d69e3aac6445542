//! Run configuration: as written, then validated; named presets.
//!
//! [`model`] owns the sizes of the model and its cut into stages, [`run`] everything else that all
//! sides of a run agree on, [`check`] what makes it valid, [`presets`] the runs that have a name, [`written`] the TOML that a host writes.

pub mod check;
pub mod model;
pub mod presets;
pub mod run;
pub mod written;
