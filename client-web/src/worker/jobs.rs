//! What the volunteer's worker asks of the device's, and what that answers: one answer to each question, in order.
//!
//! Both are of one build and one module, so the bytes between them need no version.

use js_sys::{Array, ArrayBuffer, Uint8Array};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shared::compute::{Done, Job};
use shared::config::run::RunConfig;
use shared::units::{Digest, Span};
use shared::wire::signal::Speed;
use wasm_bindgen::{JsCast, JsValue};

use crate::js::buffer;
use crate::messages::{DeviceWish, WebGpu};

/// What the device's worker is asked.
#[derive(Serialize, Deserialize)]
pub(super) enum Ask {
    /// What does this browser say about WebGPU?
    WebGpu,
    /// Open a device.
    Open(DeviceWish),
    /// Get ready for a run: its configuration in JSON.
    Make(String),
    /// Do a job.
    Do(Box<Job>),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// To [`Ask::WebGpu`].
    WebGpu(String),
    /// To [`Ask::Open`]: what the device is called, or why there is none.
    Opened(Result<String, String>),
    /// To [`Ask::Make`]: or why the device cannot run this model.
    Made(Result<Made, String>),
    /// To [`Ask::Do`], and for how long the device was busy with it.
    Done(Box<Done>, Span),
}

/// What was learned in getting ready for a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Made {
    /// What this browser derives from the run's seed.
    pub(super) seed_hash: Digest,
    /// How fast the device is with the run's model.
    pub(super) speed: Speed,
    /// How long deriving the run's fixed numbers took.
    pub(super) derive: Span,
}

/// A message as what crosses, and what is transferred with it.
pub(super) fn encode<T: Serialize>(message: &T) -> (ArrayBuffer, Array) {
    let bytes = postcard::to_allocvec(message).expect("messages hold nothing unwritable");
    let bytes = buffer(&bytes);
    let transfer = Array::of1(&bytes);
    (bytes, transfer)
}

/// The message that an event's data hold.
pub(super) fn decode<T: DeserializeOwned>(data: JsValue) -> T {
    let bytes = Uint8Array::new(&data.unchecked_into::<ArrayBuffer>()).to_vec();
    postcard::from_bytes(&bytes).expect("both workers are of one build")
}

/// JSON, for what postcard cannot write: configurations and tagged values.
pub(super) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("it has string keys")
}

/// What [`to_json`] wrote.
pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("both workers are of one build")
}

/// A run's configuration, for [`Ask::Make`].
pub(super) fn make(config: &RunConfig) -> Ask {
    Ask::Make(to_json(config))
}

/// What was said of WebGPU, for [`Answer::WebGpu`].
pub(super) fn webgpu(said: &WebGpu) -> Answer {
    Answer::WebGpu(to_json(said))
}
