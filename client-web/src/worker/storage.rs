//! What outlives the tab: the key, the session, the day's data.
//!
//! One IndexedDB database. A browser that keeps nothing (a private window) is no reason not to help: everything
//! has a value that lasts as long as the tab.

use ed25519_dalek::SigningKey;
use idb::{Database, DatabaseEvent, Error, Factory, ObjectStoreParams, Query, TransactionMode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::units::{Digest, Span};
use std::rc::Rc;
use wasm_bindgen::JsValue;

use super::clock::within;
use crate::lending::Day;

const DATABASE: &str = "shoal";
/// Raised when stores change.
const LAYOUT: u32 = 1;
/// How long opening may take: another tab's older layout may stand in the way.
const OPEN_MAX: Span = Span::from_secs(5);
/// Small things of the person's: text under a name.
const PERSON: &str = "person";

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

    async fn get(&self, store: &str, key: &str) -> Option<JsValue> {
        let database = self.0.as_ref()?;
        let read = async {
            let transaction = database.transaction(&[store], TransactionMode::ReadOnly)?;
            let store = transaction.object_store(store)?;
            store.get(Query::Key(JsValue::from_str(key)))?.await
        };
        read.await.ok().flatten()
    }

    /// Written when this returns.
    async fn put(&self, store: &str, key: &str, value: &JsValue) -> Result<(), Error> {
        let Some(database) = &self.0 else {
            return Ok(());
        };
        let transaction = database.transaction(&[store], TransactionMode::ReadWrite)?;
        let target = transaction.object_store(store)?;
        target.put(value, Some(&JsValue::from_str(key)))?.await?;
        transaction.commit()?.await?;
        Ok(())
    }
}

async fn open() -> Result<Database, Error> {
    let mut request = Factory::new()?.open(DATABASE, Some(LAYOUT))?;
    request.on_upgrade_needed(|event| {
        // What fails here fails the opening, too, and then we do without.
        let Ok(database) = event.database() else {
            return;
        };
        drop(database.create_object_store(PERSON, ObjectStoreParams::new()));
    });
    request.await
}

/// Random bytes from the browser.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("every browser with WebAssembly gives random numbers");
    bytes
}
