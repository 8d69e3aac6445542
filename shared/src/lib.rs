//! Shoal's core: every decision, every byte layout, all the mathematics; no I/O, no clock.

pub mod config;
