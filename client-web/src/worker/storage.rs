//! What outlives the tab: the key, the session, the day's data, and states of the model (as [`super::shelf`]).
//!
//! One IndexedDB database. A browser that keeps nothing (a private window) is no reason not to help: everything
//! has a value that lasts as long as the tab.

use ed25519_dalek::SigningKey;
use idb::{
    Database, DatabaseEvent, Error, Factory, ObjectStore, ObjectStoreParams, Query, Transaction,
    TransactionMode, TransactionResult,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::units::{Digest, Span};
use std::rc::Rc;
use wasm_bindgen::JsValue;

use super::clock::within;
use crate::lending::Day;

const DATABASE: &str = "shoal";
/// Raised when stores change.
const LAYOUT: u32 = 2;
/// How long opening may take: another tab's older layout may stand in the way.
const OPEN_MAX: Span = Span::from_secs(5);
/// Small things of the person's: text under a name.
const PERSON: &str = "person";
/// States of stages: bytes under a name.
pub(super) const STATES: &str = "states";
/// Why nothing is kept where a page has no database.
const NO_DATABASE: &str = "this browser keeps nothing for this page";
/// Why a transaction was given up that itself was in order.
const NO_ROOM: &str = "the browser has no more room for this page";

/// The database, if this browser has one.
#[derive(Clone, Debug)]
pub(super) struct Storage(Option<Rc<Database>>);

/// Who this browser is in any run.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) key: SigningKey,
    /// The same after a reload: so the host knows whose seat it was. One tab at a time contributes.
    pub(super) session: u64,
}

/// What is written of an [`Identity`].
#[derive(Serialize, serde::Deserialize)]
struct Kept {
    seed: Digest,
    session: u64,
}

impl Storage {
    /// Opens the database, or does without.
    pub(super) async fn open() -> Self {
        let opened = within(OPEN_MAX, open()).await;
        Self(opened.and_then(Result::ok).map(Rc::new))
    }

    /// The key and the session, made at the first visit.
    pub(super) async fn identity(&self) -> Identity {
        let kept = match self.read::<Kept>("identity").await {
            Some(kept) => kept,
            None => {
                let kept = Kept {
                    seed: Digest(random()),
                    session: u64::from_le_bytes(random()),
                };
                self.write("identity", &kept).await;
                kept
            }
        };
        Identity {
            key: SigningKey::from_bytes(&kept.seed.0),
            session: kept.session,
        }
    }

    /// The day's data, of this browser's earlier visits too.
    pub(super) async fn day(&self) -> Day {
        self.read("day").await.unwrap_or_default()
    }

    /// Keeps the day's data.
    pub(super) async fn keep_day(&self, day: Day) {
        self.write("day", &day).await;
    }

    async fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let value = self.get(PERSON, name).await?;
        serde_json::from_str(&value.as_string()?).ok()
    }

    async fn write<T: Serialize>(&self, name: &str, value: &T) {
        let text = serde_json::to_string(value).expect("it has string keys");
        // Not kept: then it lasts as long as the tab.
        drop(self.put(PERSON, name, &JsValue::from_str(&text)).await);
    }

    /// What lies under a name, if it can be read.
    pub(super) async fn get(&self, store: &str, key: &str) -> Option<JsValue> {
        let (_, store) = self.begin(store, TransactionMode::ReadOnly).ok()??;
        let request = store.get(Query::Key(JsValue::from_str(key))).ok()?;
        request.await.ok().flatten()
    }

    /// All names, as far as they can be read.
    pub(super) async fn keys(&self, store: &str) -> Vec<String> {
        let Ok(Some((_, store))) = self.begin(store, TransactionMode::ReadOnly) else {
            return Vec::new();
        };
        let Ok(request) = store.get_all_keys(None, None) else {
            return Vec::new();
        };
        let keys = request.await.unwrap_or_default();
        keys.iter().filter_map(JsValue::as_string).collect()
    }

    /// Writes; when this returns, it survives the tab.
    ///
    /// # Errors
    /// Why it was not written, in words.
    pub(super) async fn put(&self, store: &str, key: &str, value: &JsValue) -> Result<(), String> {
        let begun = self.begin(store, TransactionMode::ReadWrite);
        let Some((transaction, store)) = begun.map_err(|error| error.to_string())? else {
            return Err(NO_DATABASE.to_owned());
        };
        let written = async {
            // The transaction's end tells of the request's, too.
            drop(store.put(value, Some(&JsValue::from_str(key)))?);
            transaction.commit()?.await
        };
        match written.await {
            Ok(TransactionResult::Committed) => Ok(()),
            Ok(TransactionResult::Aborted) => Err(NO_ROOM.to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Removes what lies under a name. What cannot be removed takes room, nothing worse.
    pub(super) async fn remove(&self, store: &str, key: &str) {
        let Ok(Some((transaction, store))) = self.begin(store, TransactionMode::ReadWrite) else {
            return;
        };
        let removed = async {
            drop(store.delete(Query::Key(JsValue::from_str(key)))?);
            transaction.commit()?.await
        };
        drop(removed.await);
    }

    /// A transaction over one store; `None` where there is no database.
    fn begin(
        &self,
        store: &str,
        mode: TransactionMode,
    ) -> Result<Option<(Transaction, ObjectStore)>, Error> {
        let Some(database) = &self.0 else {
            return Ok(None);
        };
        let transaction = database.transaction(&[store], mode)?;
        let store = transaction.object_store(store)?;
        Ok(Some((transaction, store)))
    }
}

async fn open() -> Result<Database, Error> {
    let mut request = Factory::new()?.open(DATABASE, Some(LAYOUT))?;
    request.on_upgrade_needed(|event| {
        // What fails here fails the opening, too, and then we do without.
        let Ok(database) = event.database() else {
            return;
        };
        let before = database.store_names();
        for store in [PERSON, STATES] {
            if !before.iter().any(|name| name == store) {
                drop(database.create_object_store(store, ObjectStoreParams::new()));
            }
        }
    });
    request.await
}

/// Random bytes from the browser.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("every browser with WebAssembly gives random numbers");
    bytes
}
