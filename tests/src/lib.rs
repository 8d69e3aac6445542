//! What the end-to-end tests and `cargo xtask` share: finding programs, starting and watching them.
//!
//! Begin with [`paths`] for where things lie and [`browser`] for a page in headless Chromium.
//! Nothing here knows how Shoal works inside: it sees processes, their output, and HTTP.

pub mod browser;
pub mod paths;
pub mod site;
pub mod source;
