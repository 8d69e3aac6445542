//! What outlives the tab: the key, the session, the day's data, and states of the model (as [`super::shelf`]).
//!
//! One IndexedDB database. A browser that keeps nothing (a private window) is no reason not to help: everything
//! has a value that lasts as long as the tab.

use ed25519_dalek::SigningKey;
use futures_channel::oneshot;
use idb::{
    Database, DatabaseEvent, Error, Factory, ObjectStore, ObjectStoreParams, Query, Transaction,
    TransactionMode, TransactionResult,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::units::{Digest, Span};
use std::rc::Rc;
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::spawn_local;

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
        let opened = within(OPEN_MAX, to_its_end(open())).await.flatten();
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
        let value = self.get(PERSON, name.to_owned()).await?;
        serde_json::from_str(&value.as_string()?).ok()
    }

    async fn write<T: Serialize>(&self, name: &str, value: &T) {
        let text = serde_json::to_string(value).expect("it has string keys");
        // Not kept: then it lasts as long as the tab.
        let text = JsValue::from_str(&text);
        drop(self.put(PERSON, name.to_owned(), text).await);
    }

    /// What lies under a name, if it can be read.
    pub(super) async fn get(&self, store: &'static str, key: String) -> Option<JsValue> {
        let own = self.clone();
        let read = async move {
            let (_, store) = own.begin(store, TransactionMode::ReadOnly).ok()??;
            let request = store.get(Query::Key(JsValue::from_str(&key))).ok()?;
            request.await.ok().flatten()
        };
        to_its_end(read).await.flatten()
    }

    /// All names, as far as they can be read.
    pub(super) async fn keys(&self, store: &'static str) -> Vec<String> {
        let own = self.clone();
        let read = async move {
            let (_, store) = own.begin(store, TransactionMode::ReadOnly).ok()??;
            store.get_all_keys(None, None).ok()?.await.ok()
        };
        let keys = to_its_end(read).await.flatten().unwrap_or_default();
        keys.iter().filter_map(JsValue::as_string).collect()
    }

    /// Writes; when this returns, it survives the tab.
    ///
    /// # Errors
    /// Why it was not written, in words.
    pub(super) async fn put(
        &self,
        store: &'static str,
        key: String,
        value: JsValue,
    ) -> Result<(), String> {
        let own = self.clone();
        let write = async move {
            let Some((transaction, store)) = own.begin(store, TransactionMode::ReadWrite)? else {
                return Ok(None);
            };
            // The transaction's end tells of the request's, too.
            drop(store.put(&value, Some(&JsValue::from_str(&key)))?);
            transaction.commit()?.await.map(Some)
        };
        match to_its_end(write).await {
            Some(Ok(Some(TransactionResult::Committed))) => Ok(()),
            Some(Ok(Some(TransactionResult::Aborted))) => Err(NO_ROOM.to_owned()),
            Some(Ok(None)) | None => Err(NO_DATABASE.to_owned()),
            Some(Err(error)) => Err(error.to_string()),
        }
    }

    /// Removes what lies under a name. What cannot be removed takes room, nothing worse.
    pub(super) async fn remove(&self, store: &'static str, key: String) {
        let own = self.clone();
        let remove = async move {
            let (transaction, store) = own.begin(store, TransactionMode::ReadWrite).ok()??;
            drop(store.delete(Query::Key(JsValue::from_str(&key))).ok()?);
            transaction.commit().ok()?.await.ok()?;
            Some(())
        };
        to_its_end(remove).await;
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

/// Carries `work` out even if nobody waits for it any more: a database calls back whatever it was given.
async fn to_its_end<T: 'static>(work: impl Future<Output = T> + 'static) -> Option<T> {
    let (tell, told) = oneshot::channel();
    spawn_local(async move {
        // Nobody waits: then nobody needs to know.
        drop(tell.send(work.await));
    });
    told.await.ok()
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
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("every browser with WebAssembly gives random numbers");
    bytes
}
