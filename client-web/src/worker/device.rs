//! The device's worker: the model's engine, alone on a thread of its own.
//!
//! The CPU's engine computes without yielding, and a GPU's does while it compiles kernels; the volunteer's worker
//! must answer its neighbours all the while. So this one does nothing else. The page starts it on the volunteer's
//! word and ends it so: nothing is computed after a stop.

use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use shared::compute::{Compute, Done};
use shared::config::run::RunConfig;
use shared::driver::{Clock, measure};
use shared::model::device::Opened;
use shared::model::engine::Engine;
use shared::units::{Digest, Span};
use wasm_bindgen::JsCast;
use web_sys::{MessageEvent, MessagePort};

use super::clock::WorkerClock;
use super::jobs::{self, Answer, Ask, Made};
use super::port::{say, scope};
use super::webgpu;
use crate::broken;
use crate::js::Listener;
use crate::messages::{DEVICE, FromDevice};

/// The device, as far as it was asked for.
#[derive(Default)]
struct Bench {
    opened: Option<Opened>,
    engine: Option<Engine>,
}

/// Answers until the worker is ended.
pub(super) fn start() {
    broken::install(DEVICE, |broken| say(&FromDevice::Broken(broken.report)));
    let (tell, port) = oneshot::channel();
    let mut tell = Some(tell);
    let listener = Listener::new(&scope(), "message", move |event| {
        let port = event.unchecked_into::<MessageEvent>().ports().get(0);
        if let Some(tell) = tell.take() {
            // Who waits for it lives as long as the module.
            drop(tell.send(port.unchecked_into()));
        }
    });
    wasm_bindgen_futures::spawn_local(async move {
        if let Ok(port) = port.await {
            serve(port).await;
        }
        drop(listener);
    });
    say(&FromDevice::Listening);
}

/// Answers what is asked by the port.
async fn serve(port: MessagePort) {
    let (tell, mut asked) = mpsc::unbounded();
    let listener = Listener::new(&port, "message", move |event| {
        let data = event.unchecked_into::<MessageEvent>().data();
        // Who answers lives as long as the module.
        drop(tell.unbounded_send(jobs::decode::<Ask>(data)));
    });
    port.start();
    let mut bench = Bench::default();
    while let Some(ask) = asked.next().await {
        let (bytes, transfer) = jobs::encode(&bench.answer(ask).await);
        port.post_message_with_transferable(&bytes, &transfer)
            .expect("a new buffer can be handed over");
    }
    drop(listener);
}

impl Bench {
    async fn answer(&mut self, ask: Ask) -> Answer {
        match ask {
            Ask::WebGpu => jobs::webgpu(&webgpu::ask().await),
            Ask::Open(wish) => {
                let said = webgpu::ask_if_wanted(wish).await;
                let opened = webgpu::open(wish, &said).await;
                Answer::Opened(opened.map_err(|error| error.to_string()).map(|opened| {
                    let words = webgpu::words(&opened, &said);
                    self.opened = Some(opened);
                    words
                }))
            }
            Ask::Make(config) => Answer::Made(self.make(jobs::from_json(&config)).await),
            Ask::Do(job) => {
                let began = WorkerClock.now();
                let done = match &mut self.engine {
                    Some(engine) => engine.run(*job).await,
                    None => Done::Refused {
                        reason: "no run was made ready".to_owned(),
                    },
                };
                Answer::Done(Box::new(done), passed(began))
            }
        }
    }

    /// Makes an engine, derives the seed's hash, measures a block.
    async fn make(&mut self, config: RunConfig) -> Result<Made, String> {
        let opened = self.opened.as_ref().ok_or("no device was opened")?;
        let began = WorkerClock.now();
        let seed_hash = Digest(shared::derive::seed_hash(&config.model, config.seed));
        let derive = passed(began);
        let mut engine = Engine::new(config.clone(), opened.device.clone());
        let speed = measure::speed(&mut engine, &WorkerClock, &config).await?;
        self.engine = Some(engine);
        Ok(Made {
            seed_hash,
            speed,
            derive,
        })
    }
}

fn passed(began: shared::units::Time) -> Span {
    WorkerClock.now().since(began)
}
