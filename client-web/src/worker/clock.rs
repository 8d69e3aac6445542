//! A worker's clock and its timers.

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use futures_util::pin_mut;
use shared::driver;
use shared::units::{Span, Time};
use wasm_bindgen::JsCast;
use wasm_bindgen::prelude::Closure;

use super::port::scope;

/// The browser's monotonic clock, from the worker's start.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkerClock;

impl driver::Clock for WorkerClock {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "milliseconds since the start, never below zero"
    )]
    fn now(&self) -> Time {
        let performance = scope().performance().expect("a worker has a clock");
        Time::from_micros((performance.now() * 1e3) as u64)
    }

    async fn sleep_until(&self, at: Time) {
        pause(at.since(self.now())).await;
    }
}

/// Waits; the timer goes with the future.
pub(super) async fn pause(span: Span) {
    let (sender, receiver) = oneshot::channel::<()>();
    let ring = Closure::once_into_js(move || drop(sender));
    let milliseconds = i32::try_from(span.as_micros().div_ceil(1_000)).unwrap_or(i32::MAX);
    let id = scope()
        .set_timeout_with_callback_and_timeout_and_arguments_0(ring.unchecked_ref(), milliseconds)
        .expect("a worker has timers");
    let _timer = Timer(id);
    // Rings by dropping its end.
    let _ = receiver.await;
}

struct Timer(i32);

impl Drop for Timer {
    fn drop(&mut self) {
        scope().clear_timeout_with_handle(self.0);
    }
}

/// What the future gives, if it gives it in time.
pub(super) async fn within<T>(limit: Span, future: impl Future<Output = T>) -> Option<T> {
    let limit = pause(limit);
    pin_mut!(future, limit);
    match select(future, limit).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}
