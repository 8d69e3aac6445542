//! The headless volunteer: everything of `shoal` but its command line.
//!
//! [`rtc`] moves messages between volunteers, [`host`] talks to the host, [`identity`] is who we are.

pub mod host;
pub mod identity;
pub mod pace;
pub mod rtc;
