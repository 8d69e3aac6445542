//! The device's worker as the volunteer's sees it: [`Workshop`] and [`Compute`].
//!
//! A device that fails takes its worker with it, and nothing else: the volunteer tells its host, leaves, and may begin
//! again with a new one.

use std::cell::RefCell;
use std::rc::Rc;

use futures_channel::mpsc;
use futures_util::StreamExt;
use shared::compute::{Compute, Done, Job};
use shared::config::run::RunConfig;
use shared::driver::{Clock, Prepared, Workshop};
use shared::units::Span;
use wasm_bindgen::JsCast;
use wasm_bindgen::prelude::Closure;
use web_sys::{Event, MessageEvent, Worker, WorkerOptions, WorkerType};

use super::clock::{WorkerClock, within};
use super::jobs::{self, Answer, Ask, Made};
use super::port::scope;
use crate::js::{Listener, get, words};
use crate::messages::{DeviceWish, WebGpu};
use crate::meter::Meter;

/// How long a browser may take to open a device: one whose GPU process does not come up may never answer.
const OPEN_MAX: Span = Span::from_secs(20);
/// How long a device may take to compile a run's kernels and to be measured.
const FIT_MAX: Span = Span::from_secs(180);

/// What the device's worker is called, which tells it what it is.
pub(super) const NAME: &str = "device";

/// A device's worker. Dropping it ends it at once, whatever it does.
pub(super) struct Remote {
    worker: Worker,
    answers: mpsc::UnboundedReceiver<Answer>,
    _listeners: [Listener; 2],
}

/// What the device's worker was made ready for.
pub(super) struct Fitted {
    pub(super) config: RunConfig,
    pub(super) made: Made,
}

impl Remote {
    /// Loads the module a second time, as the device's.
    ///
    /// # Errors
    /// The browser starts no worker in a worker, or the module does not load: why, in words.
    pub(super) async fn open() -> Result<Self, String> {
        let options = WorkerOptions::new();
        options.set_type(WorkerType::Module);
        options.set_name(NAME);
        // Whatever loaded this module loads it again.
        let own = get(&get(&scope(), "location"), "href").as_string();
        let worker = Worker::new_with_options(&own.unwrap_or_default(), &options)
            .map_err(|error| words(&error))?;
        // Else what breaks there goes on to the page, as an error of this worker; also when nobody listens any more.
        let contain = Closure::<dyn Fn(Event)>::new(|event: Event| event.prevent_default());
        worker.set_onerror(Some(contain.into_js_value().unchecked_ref()));
        let (tell, answers) = mpsc::unbounded();
        let broke = tell.clone();
        let message = Listener::new(&worker, "message", move |event| {
            let data = event.unchecked_into::<MessageEvent>().data();
            // Nobody waits for an answer any more.
            drop(tell.unbounded_send(jobs::decode::<Answer>(data)));
        });
        // A module that does not load, or runs out of memory, says nothing else.
        let failed = Listener::new(&worker, "error", move |event| {
            let text = get(&event, "message").as_string();
            let text = text.unwrap_or_else(|| "the device's module did not load".to_owned());
            drop(broke.unbounded_send(Answer::Broken(text)));
        });
        let mut remote = Self {
            worker,
            answers,
            _listeners: [message, failed],
        };
        let answer = remote.answer().await;
        if !matches!(answer, Answer::Listening) {
            return Err(told(answer));
        }
        Ok(remote)
    }

    async fn answer(&mut self) -> Answer {
        let gone = || Answer::Broken("the device's worker ended".to_owned());
        self.answers.next().await.unwrap_or_else(gone)
    }

    async fn ask(&mut self, ask: &Ask) -> Answer {
        let (bytes, transfer) = jobs::encode(ask);
        self.worker
            .post_message_with_transfer(&bytes, transfer.as_ref())
            .expect("a new buffer can be handed over");
        self.answer().await
    }

    /// The same, for an answer that may never come. Without it nothing more can be asked: what comes late would be
    /// taken for another answer.
    async fn ask_within(&mut self, limit: Span, ask: &Ask) -> Result<Answer, String> {
        let silent = || format!("it did not answer in {:.0} s", limit.as_secs_f64());
        within(limit, self.ask(ask)).await.ok_or_else(silent)
    }

    /// What this browser says about WebGPU.
    ///
    /// # Errors
    /// The device's module broke.
    pub(super) async fn webgpu(&mut self) -> Result<WebGpu, String> {
        let answer = self.ask(&Ask::WebGpu).await;
        let Answer::WebGpu(said) = answer else {
            return Err(told(answer));
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
            return Err(told(answer));
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
            return Err(told(answer));
        };
        Ok(Fitted {
            config,
            made: made?,
        })
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.worker.terminate();
    }
}

/// What an answer says that is none to what was asked.
fn told(answer: Answer) -> String {
    if let Answer::Broken(report) = answer {
        // The whole report is on the console.
        let lines: Vec<&str> = report.lines().take(3).collect();
        lines.join(" ")
    } else {
        format!("the device's worker said {answer:?}")
    }
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
            block_us: made.block_us,
        })
    }
}

impl Compute for WebCompute {
    async fn run(&mut self, job: Job) -> Done {
        self.meter.borrow_mut().begin();
        let answer = self.remote.ask(&Ask::Do(Box::new(job))).await;
        let Answer::Done(done, busy) = answer else {
            return Done::Failed {
                reason: told(answer),
            };
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
