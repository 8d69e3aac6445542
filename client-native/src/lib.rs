//! The headless volunteer: everything of `shoal` but its command line.
//!
//! [`rtc`] moves messages between volunteers.

pub mod pace;
pub mod rtc;
