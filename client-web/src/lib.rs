//! The browser's side of Shoal: a page that shows, and a worker that is the volunteer.
//!
//! Two modules of one package. The **page**'s is small and loaded first; it draws, and holds the peer
//! connections, because a worker cannot (`volunteer`, from which a user interface begins). The
//! **worker**'s is loaded after a click and holds everything else: [`shared::driver`] with compute, host connection, storage
//! and clock (`worker`). They speak in [`messages`].
//!
//! Invariant: the main thread never computes for the run and never waits: it moves buffers.
//!
//! Modules that touch JavaScript exist in a browser's build only; what decides anything is
//! built and tested natively, too.

pub mod cost;
pub mod flow;
pub mod lending;
pub mod messages;
pub mod meter;
pub mod page;
pub mod shelf;

#[cfg(target_arch = "wasm32")]
pub mod broken;
#[cfg(target_arch = "wasm32")]
pub mod console;
#[cfg(all(target_arch = "wasm32", feature = "worker"))]
pub mod constructors;
#[cfg(target_arch = "wasm32")]
pub mod js;
#[cfg(all(target_arch = "wasm32", feature = "page"))]
pub mod volunteer;
#[cfg(all(target_arch = "wasm32", feature = "worker"))]
pub mod worker;

// The two modules don't need it: a volunteer tells its hash at the door.
#[cfg(not(all(target_arch = "wasm32", any(feature = "page", feature = "worker"))))]
mod seed;

#[cfg(not(all(target_arch = "wasm32", any(feature = "page", feature = "worker"))))]
pub use seed::seed_hash;
