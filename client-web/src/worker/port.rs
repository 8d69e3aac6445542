//! The way to the page: what the worker says.

use js_sys::{Array, ArrayBuffer};
use serde::Serialize;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{DedicatedWorkerGlobalScope, MessagePort};

use crate::js::to_array;
use crate::messages::{Parcel, ToPage};

/// The worker's own scope.
pub(super) fn scope() -> DedicatedWorkerGlobalScope {
    js_sys::global().unchecked_into()
}

/// Says something to the page.
pub(super) fn say<T: Serialize>(message: &T) {
    // Text can always be cloned; a page that is gone takes the worker with it.
    drop(scope().post_message(&text(message)));
}

/// Says something, and hands the page a port with it.
pub(super) fn say_with(message: &ToPage, port: &MessagePort) {
    // Fails only for a port that was handed over before.
    drop(scope().post_message_with_transfer(&text(message), &Array::of1(port)));
}

fn text<T: Serialize>(message: &T) -> JsValue {
    let text = serde_json::to_string(message).expect("messages have string keys");
    JsValue::from_str(&text)
}

/// Hands a message for a data channel that the page has to it.
pub(super) fn pass(parcel: &Parcel<ArrayBuffer>) {
    let (array, transfer) = to_array(parcel);
    // Fails only for a buffer that was handed over before.
    drop(scope().post_message_with_transfer(&array, transfer.as_ref()));
}
