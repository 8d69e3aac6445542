//! One end of a link: the native program, or a page of a browser. Both take the same orders and say the same.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use crate::browser::{Browser, Options, Page};
use crate::link::Link;
use crate::paths;
use crate::process::{Program, Urgency, go_first};

/// The page's end.
const PAGE: &str = include_str!("page.js");

/// What an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The native client's transport.
    Native,
    /// Chromium.
    Chromium,
}

impl Kind {
    /// What figures call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Chromium => "chromium",
        }
    }
}

/// A running end.
#[derive(Debug)]
pub(super) enum End {
    Native(Program),
    Chromium { page: Page, _browser: Browser },
}

impl End {
    /// Starts it at an end of the link.
    pub(super) fn start(kind: Kind, link: &Link, at: usize) -> anyhow::Result<Self> {
        let started = link.door(at).spawn(move || {
            // As the link itself: what else a busy machine does is not what is measured.
            go_first(match kind {
                Kind::Native => Urgency::Program,
                Kind::Chromium => Urgency::Browser,
            });
            match kind {
                Kind::Native => {
                    let mut command = Command::new(paths::program("examples/bulk")?);
                    Ok(Self::Native(Program::start_bound("bulk", &mut command)?))
                }
                Kind::Chromium => {
                    let browser = Browser::start(&Options::default())?;
                    let page = browser.blank()?;
                    page.evaluate(PAGE)?;
                    Ok(Self::Chromium {
                        page,
                        _browser: browser,
                    })
                }
            }
        });
        started.join().expect("starting it does not panic")
    }

    /// Gives an order.
    pub(super) fn tell(&mut self, order: &Value) -> anyhow::Result<()> {
        match self {
            Self::Native(program) => program.tell(order),
            Self::Chromium { page, .. } => page.evaluate(&format!("end.obey({order})")).map(drop),
        }
    }

    /// What it has said since this was asked last; waits so long for something.
    pub(super) fn news(&mut self, wait: Duration) -> anyhow::Result<Vec<Value>> {
        match self {
            Self::Native(program) => {
                let deadline = Instant::now() + wait;
                let mut news = vec![];
                let until = |news: &[Value]| {
                    if news.is_empty() {
                        deadline
                    } else {
                        Instant::now()
                    }
                };
                while let Some(mut event) = program.next_event(until(&news)) {
                    if event["event"] == "got" {
                        event["at"] = (program.heard_ms() as f64 / 1000.0).into();
                    }
                    news.push(event);
                }
                anyhow::ensure!(!program.has_ended()?, "{}", program.said());
                Ok(news)
            }
            Self::Chromium { page, .. } => {
                let news = page.evaluate(&format!("end.news({})", wait.as_millis()))?;
                Ok(news.as_array().context("a list")?.clone())
            }
        }
    }
}
