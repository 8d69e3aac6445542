//! States kept over a reload, in the browser's database: [`Shelf`] on IndexedDB.
//!
//! One record a state, named by run, round, stage and both hashes; whoever reads it checks it against them. A record is
//! written in a transaction of its own, so it is whole or not there. How much a browser keeps is the browser's to say;
//! a write that it refuses is told in words and costs nothing else.
//!
//! Invariant: one run's states at a time. Another run's go when a run is opened: who comes back, comes back soon.

use bytes::Bytes;
use js_sys::Uint8Array;
use shared::driver::shelf::Shelf;
use shared::units::Digest;
use shared::wire::signal::Held;
use wasm_bindgen::JsCast;

use super::storage::{STATES, Storage};
use crate::shelf::{key, parse};

/// The database as a shelf.
#[derive(Clone, Debug)]
pub(super) struct BrowserShelf(pub(super) Storage);

impl Shelf for BrowserShelf {
    async fn open(&self, run: Digest) -> Vec<Held> {
        let mut held = Vec::new();
        for key in self.0.keys(STATES).await {
            match parse(run, &key) {
                Some(state) => held.push(state),
                None => self.0.remove(STATES, key).await,
            }
        }
        held
    }

    async fn get(&self, run: Digest, held: Held) -> Option<Bytes> {
        let value = self.0.get(STATES, key(run, &held)).await?;
        let bytes = value.dyn_into::<Uint8Array>().ok()?;
        Some(bytes.to_vec().into())
    }

    async fn put(&self, run: Digest, held: Held, blob: Bytes) -> Result<(), String> {
        let value = Uint8Array::from(blob.as_ref());
        self.0.put(STATES, key(run, &held), value.into()).await
    }

    async fn remove(&self, run: Digest, held: Held) {
        self.0.remove(STATES, key(run, &held)).await;
    }
}
