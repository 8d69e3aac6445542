//! The way to the page: what the worker says.

use js_sys::ArrayBuffer;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::DedicatedWorkerGlobalScope;

use crate::js::to_array;
use crate::messages::{Parcel, ToPage};

/// The worker's own scope.
pub(super) fn scope() -> DedicatedWorkerGlobalScope {
    js_sys::global().unchecked_into()
}

/// Says something to the page.
pub(super) fn say(message: &ToPage) {
    let text = serde_json::to_string(message).expect("messages have string keys");
    // Text can always be cloned; a page that is gone takes the worker with it.
    drop(scope().post_message(&JsValue::from_str(&text)));
}

/// Hands a message for a data channel that the page has to it.
pub(super) fn pass(parcel: &Parcel<ArrayBuffer>) {
    let (array, transfer) = to_array(parcel);
    // Fails only for a buffer that was handed over before.
    drop(scope().post_message_with_transfer(&array, transfer.as_ref()));
}
