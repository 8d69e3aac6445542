//! What the browser keeps: a person's settings, whether it may clear things away, and the lock that lets one tab at a time contribute.

use js_sys::{Function, Promise};
use leptos::prelude::window;
use wasm_bindgen::closure::Closure;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};

use crate::js::{call, get, object};
use crate::messages::{DeviceWish, Settings};

/// Where the settings lie in `localStorage`.
const SETTINGS: &str = "shoal-settings";
/// Where a tab notes, in `sessionStorage`, that it contributes.
const CONTRIBUTES: &str = "shoal-contributes";
/// Where it is noted, in `localStorage`, that the browser was asked not to clear away what this page keeps.
const ASKED_TO_KEEP: &str = "shoal-asked-to-keep";
/// Name of the lock that a contributing tab holds.
const LOCK: &str = "shoal-contributes";

/// The settings of the last visit, or the usual ones; `?relay=1` and `?device=cpu` in the address come first.
pub(super) fn settings() -> Settings {
    let text = call(&storage(), "getItem", &[JsValue::from_str(SETTINGS)]);
    let text = text.ok().and_then(|text| text.as_string());
    // What cannot be read is of another version: the usual settings do.
    let mut settings: Settings = text
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let asked = window().location().search().unwrap_or_default();
    for pair in asked.trim_start_matches('?').split('&') {
        match pair {
            "relay=1" => settings.relay_only = true,
            "device=cpu" => settings.device = DeviceWish::Cpu,
            "device=webgpu" => settings.device = DeviceWish::WebGpu,
            _ => {}
        }
    }
    settings
}

/// Keeps the settings for the next visit, where the browser allows it.
pub(super) fn keep(settings: &Settings) {
    let text = serde_json::to_string(settings).expect("settings are plain JSON");
    let pair = [JsValue::from_str(SETTINGS), JsValue::from_str(&text)];
    drop(call(&storage(), "setItem", &pair));
}

/// Notes that this tab contributes, or does not any more.
pub(super) fn note_contributing(contributes: bool) {
    let storage = get(&window(), "sessionStorage");
    let name = JsValue::from_str(CONTRIBUTES);
    drop(if contributes {
        call(&storage, "setItem", &[name, JsValue::from_str("1")])
    } else {
        call(&storage, "removeItem", &[name])
    });
}

/// Whether this tab contributed when it was loaded anew: the person has agreed, and the seat is kept for some seconds.
pub(super) fn contributed_before_reload() -> bool {
    let storage = get(&window(), "sessionStorage");
    let noted = call(&storage, "getItem", &[JsValue::from_str(CONTRIBUTES)]);
    let entries = call(
        &get(&window(), "performance"),
        "getEntriesByType",
        &[JsValue::from_str("navigation")],
    );
    let kind = entries.map(|entries| get(&get(&entries, "0"), "type").as_string());
    let reloaded = kind.is_ok_and(|kind| kind.as_deref() == Some("reload"));
    reloaded && noted.is_ok_and(|noted| noted.is_string())
}

/// Asks the browser, once and for good, not to clear away what this page keeps: the key, and states of the model.
pub(super) fn ask_to_keep() {
    let name = JsValue::from_str(ASKED_TO_KEEP);
    let noted = call(&storage(), "getItem", std::slice::from_ref(&name));
    if noted.is_ok_and(|noted| noted.is_string()) {
        return;
    }
    drop(call(&storage(), "setItem", &[name, JsValue::from_str("1")]));
    let manager = get(&window().navigator(), "storage");
    // Where it does not know the question, or says no, a browser short of room clears as it likes.
    if let Ok(asked) = call(&manager, "persist", &[]) {
        spawn_local(async move {
            drop(JsFuture::from(asked.unchecked_into::<Promise>()).await);
        });
    }
}

fn storage() -> JsValue {
    // Throws where storage is forbidden: then nothing is kept.
    get(&window(), "localStorage")
}

/// The lock of the contributing tab. Dropping it lets another tab have it.
pub(super) struct Lock(Function);

impl Lock {
    /// The lock if no other tab has it; with `wait`, once no other tab has it.
    pub(super) async fn take(wait: bool) -> Option<Self> {
        let locks = get(&window().navigator(), "locks");
        let mut asked = None;
        let taken = Promise::new(&mut |resolve, _| asked = Some(resolve));
        let taken_by = asked.expect("a promise calls what makes it");
        // Called with the lock or null; the lock is held until the promise that it returns is resolved.
        let hold = Closure::once_into_js(move |lock: JsValue| -> Promise {
            let mut release = None;
            let held = Promise::new(&mut |resolve, _| release = Some(resolve));
            let release = release.expect("a promise calls what makes it");
            let answer = if lock.is_null() {
                JsValue::NULL
            } else {
                release.clone().into()
            };
            drop(taken_by.call1(&JsValue::NULL, &answer));
            if lock.is_null() {
                drop(release.call0(&JsValue::NULL));
            }
            held
        });
        let options = object(&[("ifAvailable", JsValue::from_bool(!wait))]);
        let name = JsValue::from_str(LOCK);
        let request = call(&locks, "request", &[name, options.into(), hold]).ok()?;
        spawn_local(async move {
            // Resolved when the lock is given back; rejected only when the page ends.
            drop(JsFuture::from(request.unchecked_into::<Promise>()).await);
        });
        let release = JsFuture::from(taken).await.ok()?;
        release.dyn_into().ok().map(Self)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(self.0.call0(&JsValue::NULL));
    }
}
