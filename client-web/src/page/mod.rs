//! What people see in a browser.
//!
//! The host's first answer holds the run as text; this module's program takes over from there. What is shown, and in
//! which words, is decided in modules that know no browser and are tested natively: [`mod@format`] writes numbers,
//! [`chart`] places the loss curve, [`markup`] writes what everybody sees, for the host as well as for the
//! page, [`words`] makes sentences of what the worker tells, [`generate`] of what becomes of a text that a person asked
//! for. The program itself is `app`.
//!
//! Invariant: nothing here computes for the run, and nothing is asked of the machine before a person says so.

#[cfg(all(target_arch = "wasm32", feature = "page"))]
pub mod app;
pub mod chart;
pub mod format;
pub mod generate;
pub mod markup;
pub mod words;
