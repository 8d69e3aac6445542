//! What the end-to-end tests and `cargo xtask` share: finding programs, starting and watching them.
//!
//! Begin with [`community`] for a small run and its volunteers, with [`judge`] for what must hold after a fault, with [`chaos`] for many
//! faults in one run, with [`lan`] for a network with cables to pull, with [`link`] for one that is slow, with [`browser`] for a page in
//! headless Chromium, with [`tab`] for one that lends. Nothing here knows how Shoal works inside: it sees processes, their output, and
//! HTTP.

pub mod browser;
pub mod bulk;
pub mod chaos;
pub mod community;
pub mod disk;
pub mod http;
pub mod judge;
pub mod lan;
pub mod link;
pub mod namespace;
pub mod paths;
pub mod process;
pub mod run;
pub mod shelf;
pub mod site;
pub mod source;
pub mod tab;
pub mod traces;
pub mod turn;
