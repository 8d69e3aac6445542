//! The device's worker as the volunteer's sees it: [`Workshop`] and [`Compute`].
//!
//! A device that fails takes its worker with it, and nothing else: the volunteer tells its host, leaves, and may begin
//! again with a new one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use futures_channel::mpsc;
use futures_util::StreamExt;
use shared::compute::{Compute, Done, Job};
use shared::config::run::RunConfig;
use shared::driver::{Clock, Prepared, Workshop};
use shared::units::Span;
use wasm_bindgen::JsCast;
use web_sys::{MessageChannel, MessageEvent, MessagePort};

use super::clock::{WorkerClock, within};
use super::jobs::{self, Answer, Ask, Made};
use super::port;
use crate::js::Listener;
use crate::messages::{DeviceWish, ToPage, WebGpu};
use crate::meter::Meter;

/// How long a browser may take to open a device: one whose GPU process does not come up may never answer.
const OPEN_MAX: Span = Span::from_secs(20);
/// How long a device may take to compile a run's kernels and to be measured.
const FIT_MAX: Span = Span::from_secs(180);

/// Devices' workers that the page was asked for.
#[derive(Clone, Default)]
pub(super) struct Devices(Rc<RefCell<Started>>);

#[derive(Default)]
struct Started {
    /// Counts them, so that late news of an ended one are told apart.
    count: u32,
    /// Where those that still run answer.
    answers: BTreeMap<u32, Answers>,
}

/// Where it comes in what a device's worker answered, or why it does not.
type Answers = mpsc::UnboundedSender<Result<Answer, String>>;

/// A device's worker. Dropping it ends it at once, whatever it does.
pub(super) struct Remote {
    number: u32,
    devices: Devices,
    port: MessagePort,
    answers: mpsc::UnboundedReceiver<Result<Answer, String>>,
    _listener: Listener,
}

/// What the device's worker was made ready for.
pub(super) struct Fitted {
    pub(super) config: RunConfig,
    pub(super) made: Made,
}

impl Devices {
    /// Has the page load the module a second time, as a device's. What is asked waits until it has.
    pub(super) fn open(&self) -> Remote {
        let mut started = self.0.borrow_mut();
        let number = started.count;
        started.count += 1;
        let channel = MessageChannel::new().expect("a worker has message channels");
        let (tell, answers) = mpsc::unbounded();
        started.answers.insert(number, tell.clone());
        let port = channel.port1();
        let listener = Listener::new(&port, "message", move |event| {
            let data = event.unchecked_into::<MessageEvent>().data();
            // Nobody waits for an answer any more.
            drop(tell.unbounded_send(Ok(jobs::decode(data))));
        });
        port.start();
        port::say_with(&ToPage::OpenDevice(number), &channel.port2());
        Remote {
            number,
            devices: self.clone(),
            port,
            answers,
            _listener: listener,
        }
    }

    /// The page says that one of them did not start, or broke.
    pub(super) fn failed(&self, number: u32, reason: String) {
        if let Some(tell) = self.0.borrow().answers.get(&number) {
            // Nobody waits for an answer any more.
            drop(tell.unbounded_send(Err(reason)));
        }
    }
}

impl Remote {
    async fn ask(&mut self, ask: &Ask) -> Result<Answer, String> {
        let (bytes, transfer) = jobs::encode(ask);
        self.port
            .post_message_with_transferable(&bytes, &transfer)
            .expect("a new buffer can be handed over");
        let answer = self.answers.next().await.expect("this end holds a sender");
        answer.map_err(|report| {
            // The whole report is on the console.
            let lines: Vec<&str> = report.lines().take(3).collect();
            lines.join(" ")
        })
    }

    /// The same, for an answer that may never come. Without it nothing more can be asked: what comes late would be
    /// taken for another answer.
    async fn ask_within(&mut self, limit: Span, ask: &Ask) -> Result<Answer, String> {
        let silent = || format!("it did not answer in {:.0} s", limit.as_secs_f64());
        within(limit, self.ask(ask))
            .await
            .unwrap_or_else(|| Err(silent()))
    }

    /// What this browser says about WebGPU.
    ///
    /// # Errors
    /// The device's module broke.
    pub(super) async fn webgpu(&mut self) -> Result<WebGpu, String> {
        let answer = self.ask(&Ask::WebGpu).await?;
        let Answer::WebGpu(said) = answer else {
            return Err(unasked(&answer));
        };
        Ok(jobs::from_json(&said))
    }

    /// Opens a device; gives what it is called.
    ///
    /// # Errors
    /// There is none such: why, in words.
    pub(super) async fn device(&mut self, wish: DeviceWish) -> Result<String, String> {
        let answer = self.ask_within(OPEN_MAX, &Ask::Open(wish)).await?;
        let Answer::Opened(opened) = answer else {
            return Err(unasked(&answer));
        };
        opened
    }

    /// Makes the device ready for a run.
    ///
    /// # Errors
    /// It cannot run this model: why, in words.
    pub(super) async fn fit(&mut self, config: RunConfig) -> Result<Fitted, String> {
        let answer = self.ask_within(FIT_MAX, &jobs::make(&config)).await?;
        let Answer::Made(made) = answer else {
            return Err(unasked(&answer));
        };
        Ok(Fitted {
            config,
            made: made?,
        })
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.devices.0.borrow_mut().answers.remove(&self.number);
        self.port.close();
        port::say(&ToPage::CloseDevice(self.number));
    }
}

/// What to say of an answer to something else.
fn unasked(answer: &Answer) -> String {
    format!("the device's worker said {answer:?}")
}

/// Makes the compute of this browser, or takes what a preflight made.
pub(super) struct WebWorkshop {
    pub(super) remote: Remote,
    pub(super) fitted: Option<Fitted>,
    pub(super) meter: Rc<RefCell<Meter>>,
}

/// The device, as the driver sees it.
pub(super) struct WebCompute {
    remote: Remote,
    meter: Rc<RefCell<Meter>>,
    /// Tokens in a microbatch.
    microbatch_tokens: u64,
}

impl Workshop for WebWorkshop {
    type Compute = WebCompute;

    async fn prepare(mut self, config: RunConfig) -> Result<Prepared<WebCompute>, String> {
        let Fitted { config, made } = match self.fitted {
            Some(fitted) if fitted.config == config => fitted,
            Some(_) | None => self.remote.fit(config).await?,
        };
        let microbatch_tokens =
            u64::from(config.microbatch_sequences()) * config.model.context as u64;
        Ok(Prepared {
            compute: WebCompute {
                remote: self.remote,
                meter: self.meter,
                microbatch_tokens,
            },
            seed_hash: made.seed_hash,
            speed: made.speed,
        })
    }
}

impl Compute for WebCompute {
    async fn run(&mut self, job: Job) -> Done {
        self.meter.borrow_mut().begin();
        let answer = self.remote.ask(&Ask::Do(Box::new(job))).await;
        let (done, busy) = match answer {
            Ok(Answer::Done(done, busy)) => (done, busy),
            Ok(other) => {
                return Done::Failed {
                    reason: unasked(&other),
                };
            }
            Err(reason) => return Done::Failed { reason },
        };
        let is_backward = matches!(*done, Done::Backward { .. });
        let tokens = if is_backward {
            self.microbatch_tokens
        } else {
            0
        };
        self.meter
            .borrow_mut()
            .worked(WorkerClock.now(), busy, tokens);
        *done
    }
}
