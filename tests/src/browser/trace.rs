//! What the main thread of a page did, task by task, in CPU time.
//!
//! From Chromium's own trace, which knows how long a thread really ran: on a machine that is busy
//! with other things, the clock says nothing about the page.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::devtools::ANSWER_WAIT_MAX;
use super::page::Page;

/// What a trace has to hold: tasks, and the mark that tells which thread is the page's.
const CATEGORIES: [&str; 3] = [
    "-*",
    "blink.user_timing",
    "disabled-by-default-devtools.timeline",
];
/// What the page's main thread writes into the trace.
const MARK: &str = "shoal: this thread";

/// One task of a page's main thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// By the clock, with whatever else the machine did.
    pub wall: Duration,
    /// For how long the thread ran.
    pub cpu: Duration,
}

impl Page {
    /// Does `work` and gives every task that the page's main thread ran meanwhile.
    ///
    /// One trace at a time in a browser.
    ///
    /// # Errors
    /// `work` fails, or Chromium gives no trace.
    pub fn trace(
        &mut self,
        work: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Task>> {
        let params = json!({
            "transferMode": "ReportEvents",
            "traceConfig": { "includedCategories": CATEGORIES },
        });
        self.connection
            .lock()
            .call(None, "Tracing.start", &params, ANSWER_WAIT_MAX)?;
        self.evaluate(&format!("performance.mark({}) && true", json!(MARK)))?;
        let done = work(self);
        // The task that answered has ended once a later one answers.
        self.evaluate("true")?;
        self.connection
            .lock()
            .call(None, "Tracing.end", &json!({}), ANSWER_WAIT_MAX)?;
        let events = self.traced()?;
        done?;
        tasks(&events)
    }

    /// All events of the trace that was just ended.
    fn traced(&self) -> anyhow::Result<Vec<Value>> {
        let deadline = Instant::now() + ANSWER_WAIT_MAX;
        let mut events = Vec::new();
        let mut held = self.connection.lock();
        loop {
            for mut event in std::mem::take(&mut held.session("").events) {
                match event.method.as_str() {
                    "Tracing.dataCollected" => {
                        let values = event.params["value"].as_array_mut();
                        events.append(values.context("a trace has events")?);
                    }
                    "Tracing.tracingComplete" => return Ok(events),
                    _ => {}
                }
            }
            if !held.hear(deadline)? {
                bail!("no trace in {ANSWER_WAIT_MAX:?}");
            }
        }
    }
}

/// The tasks of the thread that wrote the mark.
fn tasks(events: &[Value]) -> anyhow::Result<Vec<Task>> {
    let mark = events.iter().find(|event| event["name"] == MARK);
    let mark = mark.context("the trace does not tell which thread is the page's")?;
    let of_thread = |event: &&Value| {
        // A task that the trace cut off has no end, and another letter.
        let is_whole = event["name"] == "RunTask" && event["ph"] == "X";
        is_whole && event["pid"] == mark["pid"] && event["tid"] == mark["tid"]
    };
    let micros = |event: &Value, name: &str| {
        let micros = event[name].as_u64();
        let micros = micros.with_context(|| format!("a task has no {name}: {event}"));
        micros.map(Duration::from_micros)
    };
    let task = |event: &Value| {
        Ok(Task {
            wall: micros(event, "dur")?,
            cpu: micros(event, "tdur")?,
        })
    };
    events.iter().filter(of_thread).map(task).collect()
}
