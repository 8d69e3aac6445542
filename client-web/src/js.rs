//! Small things that JavaScript does and Rust has no word for.

use js_sys::{Array, Reflect, Uint8Array};
use shared::transport::Flow;
use shared::units::PeerId;
use wasm_bindgen::prelude::Closure;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

use crate::messages::{LinkId, Parcel, channel_number, channel_of};

/// What an exception says.
#[must_use]
pub fn words(error: &JsValue) -> String {
    if let Some(error) = error.dyn_ref::<js_sys::Error>() {
        return String::from(error.to_string());
    }
    error.as_string().unwrap_or_else(|| format!("{error:?}"))
}

/// A property of an object; `undefined` where there is none.
#[must_use]
pub fn get(object: &JsValue, name: &str) -> JsValue {
    Reflect::get(object, &JsValue::from_str(name)).unwrap_or(JsValue::UNDEFINED)
}

/// Calls a method that our bindings don't know; what it gives.
///
/// # Errors
/// There is no such method, or it threw.
pub fn call(object: &JsValue, name: &str, arguments: &[JsValue]) -> Result<JsValue, JsValue> {
    let method = get(object, name).dyn_into::<js_sys::Function>()?;
    let arguments: Array = arguments.iter().collect();
    method.apply(object, &arguments)
}

/// A plain object.
#[must_use]
pub fn object(entries: &[(&str, JsValue)]) -> js_sys::Object {
    let object = js_sys::Object::new();
    for (name, value) in entries {
        Reflect::set(&object, &JsValue::from_str(name), value)
            .expect("a new object takes any property");
    }
    object
}

/// A parcel as the array that crosses, and what is transferred with it.
#[must_use]
pub fn to_array<T: AsRef<JsValue>>(parcel: &Parcel<T>) -> (Array, Array) {
    let load = parcel.load.as_ref();
    let array = Array::of5(
        // Peers are numbered one by one: far below 2^53.
        &JsValue::from_f64(parcel.at.flow.peer.0 as f64),
        &JsValue::from_f64(f64::from(parcel.at.flow.number)),
        &JsValue::from_f64(f64::from(parcel.at.number)),
        &JsValue::from_f64(f64::from(channel_number(parcel.channel))),
        load,
    );
    (array, Array::of1(load))
}

/// The parcel that an array holds; `None` if it is no parcel with such a load.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "our own module wrote these whole numbers"
)]
pub fn from_array<T: JsCast>(value: &JsValue) -> Option<Parcel<T>> {
    let array = value.dyn_ref::<Array>()?;
    let number = |index| array.get(index).as_f64();
    Some(Parcel {
        at: LinkId {
            flow: Flow {
                peer: PeerId(number(0)? as _),
                number: number(1)? as u8,
            },
            number: number(2)? as u32,
        },
        channel: channel_of(number(3)? as u8)?,
        load: array.get(4).dyn_into().ok()?,
    })
}

/// An answer's body, piece by piece.
#[derive(Debug)]
pub struct Body {
    /// None where the answer has no body.
    reader: Option<JsValue>,
}

impl Body {
    /// Of that answer, which nobody has read yet.
    ///
    /// # Errors
    /// Somebody reads it already.
    pub fn of(response: &web_sys::Response) -> Result<Self, JsValue> {
        let body = get(response, "body");
        let reader = (!body.is_null()).then(|| call(&body, "getReader", &[]));
        Ok(Self {
            reader: reader.transpose()?,
        })
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or the request was aborted.
    pub async fn next(&mut self) -> Result<Option<Uint8Array>, JsValue> {
        let Some(reader) = &self.reader else {
            return Ok(None);
        };
        let next = call(reader, "read", &[])?;
        let next = JsFuture::from(next.unchecked_into::<js_sys::Promise>()).await?;
        let is_done = get(&next, "done").is_truthy();
        Ok((!is_done).then(|| get(&next, "value").unchecked_into()))
    }

    /// Wants no more of it. Dropping it does not stop the download.
    pub fn cancel(self) {
        if let Some(reader) = self.reader {
            drop(call(&reader, "cancel", &[]));
        }
    }
}

/// A copy of Rust's bytes that JavaScript owns.
#[must_use]
pub fn buffer(bytes: &[u8]) -> js_sys::ArrayBuffer {
    Uint8Array::from(bytes).buffer()
}

/// Hears one kind of event of one object, until it is dropped.
#[derive(Debug)]
pub struct Listener {
    target: web_sys::EventTarget,
    kind: &'static str,
    closure: Closure<dyn FnMut(JsValue)>,
}

impl Listener {
    /// Calls `hear` with each event.
    #[must_use]
    pub fn new(
        target: &web_sys::EventTarget,
        kind: &'static str,
        hear: impl FnMut(JsValue) + 'static,
    ) -> Self {
        let closure = Closure::new(hear);
        target
            .add_event_listener_with_callback(kind, closure.as_ref().unchecked_ref())
            .expect("any event can be listened for");
        Self {
            target: target.clone(),
            kind,
            closure,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Without this the browser would call what is gone. It cannot fail: we did listen.
        drop(
            self.target.remove_event_listener_with_callback(
                self.kind,
                self.closure.as_ref().unchecked_ref(),
            ),
        );
    }
}
