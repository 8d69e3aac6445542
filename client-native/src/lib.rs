//! The headless volunteer: everything of `shoal` but its entry point.
//!
//! [`rtc`] moves messages between volunteers, [`host`] talks to the host, [`identity`] is who we
//! are. [`cli`] and [`settings`] say what a person wants, [`commands`] do it, [`report`] tells what
//! happens and [`failure`] why it ended, `trace` writes what was done when. [`memory`] settles what is lent, [`volunteer`] is what takes part in a run.

pub mod cli;
pub mod commands;
pub mod failure;
pub mod host;
pub mod identity;
pub mod llama;
pub mod log;
pub mod memory;
pub mod pace;
pub mod quiet;
pub mod report;
pub mod rtc;
pub mod settings;
pub mod shelf;
mod trace;
pub mod volunteer;
