//! The page's side of the worker: starts it, passes messages on, and holds what a worker cannot.
//!
//! A user interface opens a [`Volunteer`], tells it what the person wants ([`ToWorker`]) and hears how things
//! stand ([`ToPage`]). What concerns connections never reaches it: [`links`] carries out their steps and moves their
//! messages, [`devices`] starts the workers that compute, [`reach`] finds out how others can be reached,
//! [`surroundings`] tells the worker of hiding, power and the page's end, and keeps the screen awake.
//!
//! Invariant: everything here is short: a step, a buffer handed over, a message passed on.

mod devices;
mod links;
mod reach;
mod surroundings;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use js_sys::Array;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::spawn_local;
use web_sys::{MessageEvent, Worker, WorkerOptions, WorkerType};

use crate::js::{Listener, from_array, get, to_array, words};
use crate::messages::{Broken, Parcel, ToPage, ToWorker, VOLUNTEER};
use devices::Devices;
use links::Links;
use surroundings::Surroundings;

/// A worker and its connections. Dropping it ends both at once: tell [`ToWorker::Stop`] first where time allows.
pub struct Volunteer(Rc<Inner>);

/// What links and surroundings report to.
#[derive(Clone)]
struct Tell(Weak<Inner>);

struct Inner {
    worker: Worker,
    links: RefCell<Links>,
    devices: RefCell<Devices>,
    hear: RefCell<Box<dyn FnMut(ToPage)>>,
    /// What was told before the worker listened; `None` from then on.
    early: RefCell<Option<Vec<ToWorker>>>,
    surroundings: RefCell<Option<Surroundings>>,
    listeners: RefCell<Vec<Listener>>,
    /// Whether the page would contribute again if it were loaded again.
    may_return: Cell<bool>,
}

impl Volunteer {
    /// Loads the worker's module from `url`, and calls `hear` with all that it says to a person.
    ///
    /// # Errors
    /// The browser starts no worker: why, in words.
    pub fn open(url: &str, hear: impl FnMut(ToPage) + 'static) -> Result<Self, String> {
        let worker = start(url, VOLUNTEER)?;
        let inner = Rc::new_cyclic(|weak| Inner {
            worker,
            links: RefCell::new(Links::new(Tell(weak.clone()))),
            devices: RefCell::new(Devices::new(Tell(weak.clone()), url)),
            hear: RefCell::new(Box::new(hear)),
            early: RefCell::new(Some(Vec::new())),
            surroundings: RefCell::new(None),
            listeners: RefCell::new(Vec::new()),
            may_return: Cell::new(false),
        });
        let tell = Tell(Rc::downgrade(&inner));
        inner
            .surroundings
            .replace(Some(Surroundings::watch(tell.clone())));
        let heard = tell.clone();
        let messages = Listener::new(&inner.worker, "message", move |event| {
            if let Some(inner) = heard.0.upgrade() {
                inner.hear(event.unchecked_ref());
            }
        });
        // A module that does not load, or does not compile, says nothing else.
        let failed = Listener::new(&inner.worker, "error", move |event| {
            if let Some(inner) = tell.0.upgrade() {
                let text = get(&event, "message").as_string();
                inner.broke(text.unwrap_or_else(|| "the worker's module did not load".to_owned()));
            }
        });
        inner.listeners.replace(vec![messages, failed]);
        Ok(Self(inner))
    }

    /// Tells the worker. What is told before it listens waits.
    pub fn tell(&self, message: ToWorker) {
        self.0.tell(message);
    }

    /// Says whether the page would contribute again if it were loaded again: what becomes of the seat when it goes.
    pub fn expect_return(&self, may_return: bool) {
        self.0.may_return.set(may_return);
    }

    /// Keeps the screen from sleeping while `awake`, where the browser allows it.
    pub fn keep_awake(&self, awake: bool) {
        if let Some(surroundings) = &*self.0.surroundings.borrow() {
            surroundings.keep_awake(awake);
        }
    }
}

impl Drop for Volunteer {
    fn drop(&mut self) {
        self.0.listeners.take();
        self.0.surroundings.take();
        self.0.close_all();
        self.0.worker.terminate();
    }
}

/// Loads the worker's module from `url`; its name tells it what it is.
///
/// # Errors
/// The browser starts no worker: why, in words.
fn start(url: &str, name: &str) -> Result<Worker, String> {
    let options = WorkerOptions::new();
    options.set_type(WorkerType::Module);
    options.set_name(name);
    Worker::new_with_options(url, &options).map_err(|error| words(&error))
}

impl Tell {
    fn tell(&self, message: ToWorker) {
        if let Some(inner) = self.0.upgrade() {
            inner.tell(message);
        }
    }

    /// Hands a data channel, or a message of one, to the worker.
    fn pass<T: AsRef<JsValue>>(&self, parcel: &Parcel<T>) {
        if let Some(inner) = self.0.upgrade() {
            let (array, transfer) = to_array(parcel);
            // Fails only for what was handed over before.
            drop(
                inner
                    .worker
                    .post_message_with_transfer(&array, transfer.as_ref()),
            );
        }
    }

    /// The page goes away: the other ends should notice now, not by silence.
    fn leave(&self) {
        if let Some(inner) = self.0.upgrade() {
            let may_return = inner.may_return.get();
            inner.tell(ToWorker::PageHide { may_return });
            inner.links.borrow_mut().close_all();
        }
    }
}

impl Inner {
    fn tell(&self, message: ToWorker) {
        if let Some(early) = &mut *self.early.borrow_mut() {
            return early.push(message);
        }
        self.post(&message);
    }

    fn post(&self, message: &ToWorker) {
        let text = serde_json::to_string(message).expect("messages have string keys");
        // Text can always be cloned; a worker that has ended hears nothing.
        drop(self.worker.post_message(&JsValue::from_str(&text)));
    }

    fn hear(self: &Rc<Self>, event: &MessageEvent) {
        let data = event.data();
        if let Some(parcel) = from_array(&data) {
            return self.links.borrow_mut().send(&parcel);
        }
        let Some(text) = data.as_string() else {
            return;
        };
        match serde_json::from_str(&text) {
            Ok(message) => self.act(message, &event.ports()),
            Err(error) => self.broke(format!(
                "the worker said what the page cannot read: {error}"
            )),
        }
    }

    fn act(self: &Rc<Self>, message: ToPage, ports: &Array) {
        match message {
            ToPage::Rtc(step) => self.links.borrow_mut().step(step),
            ToPage::OpenDevice(number) => {
                let port = ports.get(0).unchecked_into();
                self.devices.borrow_mut().open(number, port);
            }
            ToPage::CloseDevice(number) => self.devices.borrow_mut().close(number),
            ToPage::ChannelsOpen(at) => self.links.borrow().opened(at),
            ToPage::ChannelClosed(at) => self.links.borrow().closed(at),
            ToPage::IceServers {
                servers,
                relay_only,
            } => self.links.borrow_mut().set_servers(&servers, relay_only),
            ToPage::Reach { servers } => {
                let tell = Tell(Rc::downgrade(self));
                spawn_local(async move {
                    let found = reach::find_out(&servers).await;
                    tell.tell(ToWorker::Reached(found));
                });
            }
            ToPage::Ready { takes_channels } => {
                self.links.borrow_mut().hand_over(takes_channels);
                for message in self.early.take().into_iter().flatten() {
                    self.post(&message);
                }
                self.say(message);
            }
            ToPage::Ended(_) | ToPage::Broken(_) => {
                self.close_all();
                self.say(message);
            }
            ToPage::Snapshot(_) | ToPage::Preflight(_) => self.say(message),
        }
    }

    fn say(&self, message: ToPage) {
        (self.hear.borrow_mut())(message);
    }

    fn close_all(&self) {
        self.links.borrow_mut().close_all();
        self.devices.borrow_mut().close_all();
    }

    fn broke(&self, report: String) {
        self.close_all();
        self.say(ToPage::Broken(Broken {
            module: "worker".to_owned(),
            report,
        }));
    }
}
