//! What happens around the page: hidden or shown, on battery or mains, going away; and the screen's sleep.
//!
//! Told to the worker as it happens. What a browser does not tell (its power, mostly) is never guessed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use js_sys::Promise;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{EventTarget, Window};

use super::Tell;
use crate::js::{Listener, call, get};
use crate::messages::ToWorker;

/// Watches until it is dropped.
pub(super) struct Surroundings {
    wake: Rc<WakeLock>,
    _listeners: Rc<RefCell<Vec<Listener>>>,
}

/// Keeps the screen awake. Browsers take the lock away from a hidden page, and only a visible one may ask again.
#[derive(Default)]
struct WakeLock {
    wanted: Cell<bool>,
    held: RefCell<JsValue>,
}

fn window() -> Window {
    web_sys::window().expect("this module runs in a page")
}

/// Waits. Timers of a hidden page are late; nothing here depends on their being punctual.
pub(super) async fn pause(milliseconds: i32) {
    let promise = Promise::new(&mut |resolve, _| {
        window()
            .set_timeout_with_callback_and_timeout_and_arguments_0(&resolve, milliseconds)
            .expect("a page has timers");
    });
    // A timer's promise is never rejected.
    drop(JsFuture::from(promise).await);
}

impl Surroundings {
    pub(super) fn watch(tell: Tell) -> Self {
        let window = window();
        let document = window.document().expect("a window shows a document");
        let wake = Rc::new(WakeLock::default());
        let hidden = {
            let (document, tell) = (document.clone(), tell.clone());
            move || {
                let hidden = document.hidden();
                tell.tell(ToWorker::Visibility { hidden });
                hidden
            }
        };
        hidden();
        let again = Rc::clone(&wake);
        let shown = Listener::new(&document, "visibilitychange", move |_| {
            if !hidden() && again.wanted.get() {
                again.take();
            }
        });
        let leaving = tell.clone();
        let gone = Listener::new(&window, "pagehide", move |_| leaving.leave());
        let listeners = Rc::new(RefCell::new(vec![shown, gone]));
        let kept = Rc::downgrade(&listeners);
        spawn_local(async move {
            let listener = power(tell).await;
            if let (Some(listener), Some(kept)) = (listener, kept.upgrade()) {
                kept.borrow_mut().push(listener);
            }
        });
        Self {
            wake,
            _listeners: listeners,
        }
    }

    /// Keeps the screen awake or lets it sleep.
    pub(super) fn keep_awake(&self, awake: bool) {
        if self.wake.wanted.replace(awake) != awake {
            if awake {
                self.wake.take();
            } else {
                self.wake.release();
            }
        }
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        self.wake.wanted.set(false);
        self.wake.release();
    }
}

impl WakeLock {
    fn take(self: &Rc<Self>) {
        let lock = Rc::clone(self);
        spawn_local(async move {
            let api = get(&window().navigator(), "wakeLock");
            // No such thing here, or not allowed: the screen sleeps as it likes.
            let Ok(asked) = call(&api, "request", &[JsValue::from_str("screen")]) else {
                return;
            };
            let Ok(held) = JsFuture::from(asked.unchecked_into::<Promise>()).await else {
                return;
            };
            lock.held.replace(held);
            if !lock.wanted.get() {
                lock.release();
            }
        });
    }

    fn release(&self) {
        let held = self.held.replace(JsValue::UNDEFINED);
        // Released before, or never had: as good.
        drop(call(&held, "release", &[]));
    }
}

/// Tells of mains and battery, where the browser does.
async fn power(tell: Tell) -> Option<Listener> {
    let asked = call(&window().navigator(), "getBattery", &[]).ok()?;
    let battery = JsFuture::from(asked.unchecked_into::<Promise>())
        .await
        .ok()?;
    let target: EventTarget = battery.dyn_into().ok()?;
    let say = {
        let target = target.clone();
        move || {
            if let Some(on_mains) = get(&target, "charging").as_bool() {
                tell.tell(ToWorker::Power { on_mains });
            }
        }
    };
    say();
    Some(Listener::new(&target, "chargingchange", move |_| say()))
}
