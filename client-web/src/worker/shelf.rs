//! States kept over a reload, in the browser's database: [`Shelf`] on IndexedDB.
//!
//! One record a state, named by run, round, stage, both hashes and its size; whoever reads it checks it against them. A
//! record is written in a transaction of its own, so it is whole or not there. No more is kept than a person lends
//! ([`Catalogue`]), nor than the browser allows; a write that either refuses is told in words and costs nothing else.
//!
//! Invariant: one run's states at a time. Another run's go when a run is opened: who comes back, comes back soon.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use js_sys::Uint8Array;
use shared::driver::shelf::Shelf;
use shared::units::Digest;
use shared::wire::signal::Held;
use wasm_bindgen::JsCast;

use super::storage::{STATES, Storage};
use crate::shelf::Catalogue;

/// The database as a shelf.
#[derive(Clone, Debug)]
pub(super) struct BrowserShelf {
    storage: Storage,
    catalogue: Rc<RefCell<Catalogue>>,
}

impl BrowserShelf {
    /// Keeps at most `bytes_max`.
    pub(super) fn new(storage: Storage, bytes_max: u64) -> Self {
        let catalogue = Rc::new(RefCell::new(Catalogue::new(bytes_max)));
        Self { storage, catalogue }
    }
}

impl Shelf for BrowserShelf {
    async fn open(&self, run: Digest) -> Vec<Held> {
        let mut held = Vec::new();
        for name in self.storage.keys(STATES).await {
            let found = self.catalogue.borrow_mut().found(run, &name);
            match found {
                Some(state) => held.push(state),
                None => self.storage.remove(STATES, name).await,
            }
        }
        held
    }

    async fn get(&self, run: Digest, held: Held) -> Option<Bytes> {
        let name = self.catalogue.borrow().name(run, &held)?;
        let value = self.storage.get(STATES, name).await?;
        let bytes = value.dyn_into::<Uint8Array>().ok()?;
        Some(bytes.to_vec().into())
    }

    async fn put(&self, run: Digest, held: Held, blob: Bytes) -> Result<(), String> {
        let bytes = blob.len() as u64;
        let name = self.catalogue.borrow_mut().admit(run, held, bytes)?;
        let value = Uint8Array::from(blob.as_ref());
        let written = self.storage.put(STATES, name, value.into()).await;
        if written.is_err() {
            self.catalogue.borrow_mut().forget(run, &held);
        }
        written
    }

    async fn remove(&self, run: Digest, held: Held) {
        let name = self.catalogue.borrow_mut().forget(run, &held);
        if let Some(name) = name {
            self.storage.remove(STATES, name).await;
        }
    }
}
