//! The worker: the whole volunteer but its peer connections.
//!
//! One module, two threads. The volunteer's own worker is told what to do by the page: [`session`] binds
//! [`shared::driver`] to what a browser gives, [`transport`] (steps through the page, messages too unless the browser lets a
//! worker have their [`ends`]), [`host`] with its [`socket`] and [`files`],
//! [`storage`] with its [`shelf`], [`clock`]; [`preflight`] looks at the machine and the run without taking part, up to
//! the host's [`door`]; [`board`] tells the page how things stand. It has the page start the **device's** worker
//! ([`remote`], [`device`]), which does nothing but compute: however long a job takes, neighbours and host are answered
//! meanwhile, and when a device fails nothing else does.
//!
//! Begin reading at [`start`].

mod board;
mod clock;
mod device;
mod door;
mod ends;
mod files;
mod host;
mod jobs;
mod port;
mod preflight;
mod remote;
mod session;
mod shelf;
mod socket;
mod storage;
mod transport;
mod webgpu;

use std::collections::VecDeque;
use std::ops::ControlFlow;

use futures_channel::{mpsc, oneshot};
use futures_util::{FutureExt, StreamExt, pin_mut, select_biased};
use shared::units::Span;
use wasm_bindgen::JsCast;
use web_sys::MessageEvent;

use crate::broken;
use crate::js::{Listener, from_array};
use crate::messages::{DEVICE, DeviceWish, Ended, Settings, ToPage, ToWorker};
use ends::End;
use preflight::Ready;
use remote::Devices;
use session::{Around, Beginning, Outcome};
use storage::Storage;
use transport::{Inlet, Told};

/// Times in a row that a device may fail before it has done any work.
const DEVICE_TRIES_MAX: u32 = 5;
/// Pause before a lost device is opened again, twice as long after each failure: a driver that resets itself, or a
/// browser's GPU process, needs a moment.
const DEVICE_RETRY: Span = Span::from_secs(5);

/// What the page says that is not about connections.
type Heard = mpsc::UnboundedReceiver<ToWorker>;

/// The module's beginning: listens to the page, and says that it does.
pub fn start() {
    if port::scope().name() == DEVICE {
        return device::start();
    }
    broken::install("worker", |report| {
        socket::farewell();
        port::say(&ToPage::Broken(report));
    });
    let inlet = Inlet::default();
    let (tell, heard) = mpsc::unbounded();
    let connections = inlet.clone();
    let devices = Devices::default();
    let started = devices.clone();
    let listener = Listener::new(&port::scope(), "message", move |event| {
        let data = event.unchecked_into::<MessageEvent>().data();
        if let Some(parcel) = from_array(&data) {
            return connections.put(Told::Parcel(parcel));
        }
        if let Some(parcel) = from_array(&data) {
            return End::take(parcel, &connections);
        }
        let text = data.as_string().unwrap_or_default();
        let message = serde_json::from_str(&text).expect("page and worker are of one build");
        if let ToWorker::Rtc(event) = message {
            connections.put(Told::Event(event));
        } else if let ToWorker::Sent {
            at,
            channel,
            sent_bytes,
        } = message
        {
            connections.put(Told::Sent {
                at,
                channel,
                sent_bytes,
            });
        } else if let ToWorker::DeviceFailed { number, reason } = message {
            started.failed(number, reason);
        } else {
            // The volunteer below lives as long as the module.
            drop(tell.unbounded_send(message));
        }
    });
    wasm_bindgen_futures::spawn_local(async move {
        live(heard, inlet, devices).await;
        drop(listener);
    });
    port::say(&ToPage::Ready {
        takes_channels: ends::can_be_had(),
    });
}

/// Does what the page asks for, one thing after the other.
async fn live(mut heard: Heard, inlet: Inlet, devices: Devices) {
    let storage = Storage::open().await;
    let mut around = Around::default();
    let mut waiting = VecDeque::new();
    let mut ready = None;
    loop {
        let message = match waiting.pop_front() {
            Some(message) => message,
            None => match heard.next().await {
                Some(message) => message,
                None => return,
            },
        };
        around.hear(&message);
        if let ToWorker::Preflight { link, settings } = message {
            ready = look(
                &link,
                &settings,
                &storage,
                &devices,
                &mut heard,
                &mut waiting,
            )
            .await;
        } else if let ToWorker::Start { link, settings } = message {
            let volunteer = Volunteer {
                link,
                settings,
                storage: &storage,
                inlet: &inlet,
                devices: &devices,
            };
            let ended = volunteer.lend(ready.take(), &mut around, &mut heard).await;
            port::say(&ToPage::Ended(ended));
        }
        // Anything else is about what is under way, and nothing is.
    }
}

/// Looks without taking part. What the page says meanwhile waits.
async fn look(
    link: &str,
    settings: &Settings,
    storage: &Storage,
    devices: &Devices,
    heard: &mut Heard,
    waiting: &mut VecDeque<ToWorker>,
) -> Option<(DeviceWish, Ready)> {
    let (tell, reached) = oneshot::channel();
    let mut tell = Some(tell);
    let looking = preflight::look(link, settings, storage, devices, reached).fuse();
    pin_mut!(looking);
    loop {
        select_biased! {
            ready = looking => return Some((settings.device, ready?)),
            message = heard.next() => match message {
                Some(ToWorker::Reached(found)) => if let Some(tell) = tell.take() {
                    // Looked at before it is over, or not at all.
                    drop(tell.send(found));
                },
                Some(message) => waiting.push_back(message),
                None => return None,
            },
        }
    }
}

/// Somebody who lends this browser, with one device after the other if need be.
struct Volunteer<'a> {
    link: String,
    settings: Settings,
    storage: &'a Storage,
    inlet: &'a Inlet,
    devices: &'a Devices,
}

impl Volunteer<'_> {
    /// Takes part until it is over. A device that is lost is opened again, a few times.
    async fn lend(
        mut self,
        mut ready: Option<(DeviceWish, Ready)>,
        around: &mut Around,
        heard: &mut Heard,
    ) -> Ended {
        let mut failures = 0;
        loop {
            let outcome = match self.begin(ready.take()).await {
                Ok(beginning) => {
                    session::take_part(beginning, self.storage, self.inlet, around, heard).await
                }
                Err(reason) => Outcome {
                    ended: Ended::Device { reason },
                    worked: false,
                },
            };
            let Ended::Device { reason } = outcome.ended else {
                return outcome.ended;
            };
            failures = if outcome.worked { 1 } else { failures + 1 };
            if failures >= DEVICE_TRIES_MAX {
                return Ended::Device { reason };
            }
            board::recovering(&reason);
            let pause = DEVICE_RETRY.times(1 << (failures - 1));
            if self.rest(pause, around, heard).await.is_break() {
                return Ended::Stopped;
            }
        }
    }

    /// Waits before the next device; breaks off if the person does not want to wait.
    async fn rest(
        &mut self,
        pause: Span,
        around: &mut Around,
        heard: &mut Heard,
    ) -> ControlFlow<()> {
        let over = clock::pause(pause).fuse();
        pin_mut!(over);
        loop {
            select_biased! {
                () = over => return ControlFlow::Continue(()),
                message = heard.next() => match message {
                    None | Some(ToWorker::Stop | ToWorker::Finish | ToWorker::PageHide { .. }) => {
                        return ControlFlow::Break(());
                    }
                    Some(ToWorker::Settings { settings }) => self.settings = settings,
                    Some(message) => around.hear(&message),
                },
            }
        }
    }

    /// Opens the device, unless a preflight opened it.
    async fn begin(&self, ready: Option<(DeviceWish, Ready)>) -> Result<Beginning, String> {
        let (link, settings) = (self.link.clone(), self.settings.clone());
        if let Some((wish, ready)) = ready
            && wish == settings.device
        {
            return Ok(Beginning {
                link,
                settings,
                remote: ready.remote,
                device: ready.device,
                fitted: Some(ready.fitted),
            });
        }
        let mut remote = self.devices.open();
        let device = remote.device(settings.device).await?;
        Ok(Beginning {
            link,
            settings,
            remote,
            device,
            fitted: None,
        })
    }
}
