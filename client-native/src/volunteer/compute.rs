//! The device at work: the model's engine on a thread of its own.
//!
//! An engine computes between awaits without yielding, so it must not share a thread with sockets.
//! [`NativeWorkshop`] starts that thread once the run's model is known, measures a block and gives
//! [`ThreadCompute`], which passes jobs to it one at a time. When it rests is
//! decided by [`shared::peer::duty`]. A panic inside the engine (a GPU out of memory)
//! ends the thread and is told as [`Done::Failed`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use burn::tensor::Device;
use shared::compute::{Compute, Done, Job};
use shared::config::run::RunConfig;
use shared::driver::{Prepared, Workshop, measure};
use shared::model::engine::Engine;
use shared::units::Digest;
use shared::wire::signal::Speed;
use tokio::sync::{mpsc, oneshot};

#[cfg(feature = "faults")]
use super::pretend::Pretend;
use super::{Notes, ProcessClock};
use crate::report::Note;

/// Makes the compute of this machine.
pub struct NativeWorkshop {
    /// The device that was chosen.
    pub device: Device,
    /// Where to tell what was measured.
    pub(crate) notes: Notes,
}

/// The engine's thread, as the driver sees it.
pub struct ThreadCompute {
    jobs: mpsc::Sender<(Job, oneshot::Sender<Done>)>,
}

impl Workshop for NativeWorkshop {
    type Compute = ThreadCompute;

    async fn prepare(self, config: RunConfig) -> Result<Prepared<ThreadCompute>, String> {
        self.notes.tell(Note::Prepare {
            run: config.name.clone(),
            parameters: config.model.parameter_count() as u64,
        });
        let (ready, prepared) = oneshot::channel();
        let (jobs, inbox) = mpsc::channel(1);
        let device = self.device;
        std::thread::Builder::new()
            .name("compute".to_owned())
            .spawn(move || {
                #[cfg(feature = "faults")]
                match Pretend::asked(&config) {
                    Ok(None) => {}
                    Ok(Some(pretend)) => {
                        return serve(|| pretend, |_, _| (), &config, ready, inbox);
                    }
                    Err(reason) => {
                        let _ = ready.send(Err(reason));
                        return;
                    }
                }
                let engine = || Engine::new(config.clone(), device);
                serve(engine, before, &config, ready, inbox);
            })
            .map_err(|error| format!("no thread for the device: {error}"))?;
        let outcome = prepared.await;
        let (seed_hash, speed) = outcome.map_err(|_| "the device's thread ended".to_owned())??;
        self.notes.tell(Note::Measured {
            block_us: speed.block_us,
            seed_hash: seed_hash.to_string(),
        });
        Ok(Prepared {
            compute: ThreadCompute { jobs },
            seed_hash,
            speed,
        })
    }
}

impl Compute for ThreadCompute {
    async fn run(&mut self, job: Job) -> Done {
        let (reply, done) = oneshot::channel();
        let failed = || Done::Failed {
            reason: "the device's thread ended".to_owned(),
        };
        if self.jobs.send((job, reply)).await.is_err() {
            return failed();
        }
        done.await.unwrap_or_else(|_| failed())
    }
}

/// Makes a compute, tells what the driver waits for before it joins, then does jobs until the owner is gone.
fn serve<C: Compute>(
    make: impl FnOnce() -> C,
    before: fn(&mut C, &Job),
    config: &RunConfig,
    ready: oneshot::Sender<Result<(Digest, Speed), String>>,
    inbox: mpsc::Receiver<(Job, oneshot::Sender<Done>)>,
) {
    let made = catch_unwind(AssertUnwindSafe(|| {
        let seed_hash = Digest(shared::derive::seed_hash(&config.model, config.seed));
        #[cfg(feature = "faults")]
        let seed_hash = another_as_asked(seed_hash);
        let mut compute = make();
        let speed = measure_speed(&mut compute, config);
        (compute, seed_hash, speed)
    }));
    match made {
        Ok((compute, seed_hash, Ok(speed))) => {
            if ready.send(Ok((seed_hash, speed))).is_ok() {
                work(compute, before, inbox);
            }
        }
        Ok((_, _, Err(reason))) => {
            // Nobody who waits is nobody to tell.
            let _ = ready.send(Err(reason));
        }
        Err(panic) => {
            let _ = ready.send(Err(words(panic.as_ref())));
        }
    }
}

/// Does jobs until the owner is gone.
fn work<C: Compute>(
    mut compute: C,
    before: fn(&mut C, &Job),
    mut inbox: mpsc::Receiver<(Job, oneshot::Sender<Done>)>,
) {
    while let Some((job, reply)) = inbox.blocking_recv() {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            before(&mut compute, &job);
            block_on(compute.run(job))
        }));
        match outcome {
            Ok(done) => {
                // A driver that is gone waits for nothing.
                let _ = reply.send(done);
            }
            Err(panic) => {
                let reason = words(panic.as_ref());
                let _ = reply.send(Done::Failed { reason });
                return;
            }
        }
    }
}

/// What goes before each of the engine's jobs: what a test asks to go wrong, see [`shared::faults`].
#[cfg(feature = "faults")]
fn before(engine: &mut Engine, job: &Job) {
    fail_as_asked(engine, job);
    panic_as_asked(job);
}

#[cfg(not(feature = "faults"))]
fn before(_engine: &mut Engine, _job: &Job) {}

/// Another hash where a test asks for it; see [`shared::faults`].
#[cfg(feature = "faults")]
fn another_as_asked(mut seed_hash: Digest) -> Digest {
    use shared::faults::{Point, is_due};
    if is_due(Point::WrongSeedHash) {
        seed_hash.0[0] ^= 1;
    }
    seed_hash
}

/// Spoils the seat where a test asks for it; see [`shared::faults`].
#[cfg(feature = "faults")]
fn fail_as_asked(engine: &mut Engine, job: &Job) {
    use shared::faults::{Point, is_due};
    use shared::wire::frame::Mode;
    let due = match job {
        Job::Forward {
            mode: Mode::Train, ..
        } => is_due(Point::NanWeight),
        Job::Backward { .. } => is_due(Point::NanGradient),
        Job::Seat { .. }
        | Job::Forward { .. }
        | Job::Apply { .. }
        | Job::Generate(_)
        | Job::Forget { .. }
        | Job::Snapshot { .. }
        | Job::Contribute { .. }
        | Job::Average { .. }
        | Job::OuterStep { .. }
        | Job::Norm { .. }
        | Job::GradientStep { .. } => false,
    };
    if due {
        engine.spoil();
    }
}

/// Fails as a lost GPU does, where a test asks for it.
#[cfg(feature = "faults")]
fn panic_as_asked(job: &Job) {
    use shared::faults::{Point, is_due};
    let due = matches!(job, Job::Backward { .. }) && is_due(Point::DevicePanic);
    assert!(!due, "the device was lost, as a test asked");
}

/// How fast a device is with the run's model.
///
/// # Errors
/// The device does not compute this model: why, in words.
pub fn measure_speed(compute: &mut impl Compute, config: &RunConfig) -> Result<Speed, String> {
    block_on(measure::speed(
        compute,
        &ProcessClock(Instant::now()),
        config,
    ))
}

/// Drives a future of a compute, which yields only where it waits for the device.
fn block_on<F: Future>(future: F) -> F::Output {
    pollster::block_on(future)
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("the device failed without a word")
        .to_owned()
}
