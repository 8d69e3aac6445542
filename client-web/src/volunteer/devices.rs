//! The devices' workers, which the page starts for the volunteer's.
//!
//! That could start them itself, but for Firefox (153): now and then a worker's worker never starts there, and the one
//! that asked for it does nothing any more.

use std::collections::BTreeMap;

use js_sys::Array;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{Event, MessageEvent, MessagePort, Worker};

use super::{Tell, start};
use crate::js::{Listener, get};
use crate::messages::{DEVICE, FromDevice, ToWorker};

/// All that run, by the volunteer's numbers.
pub(super) struct Devices {
    tell: Tell,
    url: String,
    running: BTreeMap<u32, Device>,
}

/// One of them. Dropping it ends it at once.
struct Device {
    worker: Worker,
    _listeners: [Listener; 2],
}

impl Devices {
    /// `url` is the module's.
    pub(super) fn new(tell: Tell, url: &str) -> Self {
        Self {
            tell,
            url: url.to_owned(),
            running: BTreeMap::new(),
        }
    }

    /// Starts one; hands it the port as soon as it listens.
    pub(super) fn open(&mut self, number: u32, port: MessagePort) {
        let tell = self.tell.clone();
        let failed = move |reason| tell.tell(ToWorker::DeviceFailed { number, reason });
        match start(&self.url, DEVICE) {
            Ok(worker) => {
                let device = Device::new(worker, port, failed);
                self.running.insert(number, device);
            }
            Err(reason) => failed(reason),
        }
    }

    /// Ends one.
    pub(super) fn close(&mut self, number: u32) {
        self.running.remove(&number);
    }

    /// Ends all.
    pub(super) fn close_all(&mut self) {
        self.running.clear();
    }
}

impl Device {
    fn new(worker: Worker, port: MessagePort, failed: impl Fn(String) + Clone + 'static) -> Self {
        let (to, broke) = (worker.clone(), failed.clone());
        let messages = Listener::new(&worker, "message", move |event| {
            let text = event.unchecked_into::<MessageEvent>().data().as_string();
            let said = serde_json::from_str(&text.unwrap_or_default());
            match said.expect("page and worker are of one build") {
                // Fails only for a port that was handed over before.
                FromDevice::Listening => {
                    drop(to.post_message_with_transfer(&JsValue::UNDEFINED, &Array::of1(&port)));
                }
                FromDevice::Broken(report) => broke(report),
            }
        });
        // A module that does not load says nothing else.
        let errors = Listener::new(&worker, "error", move |event| {
            // It is the volunteer's to say what comes of it.
            event.unchecked_ref::<Event>().prevent_default();
            failed(match get(&event, "message").as_string() {
                // A panic told its report before: what ends a module on purpose without one is memory that it did not get.
                Some(text) if text.contains("unreachable") => {
                    format!("this browser has no more memory for it ({text})")
                }
                Some(text) => text,
                None => "the device's module did not load".to_owned(),
            });
        });
        Self {
            worker,
            _listeners: [messages, errors],
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.worker.terminate();
    }
}
