//! What the model writes by itself, for the page: a few words each few rounds, beside the training.
//!
//! It asks as anybody does, and waits its turn. What it is given is shown with the round that it was begun at; where nothing
//! comes of it, the words of before stay.

use std::sync::Arc;

use shared::coordinator::texts::{TextNews, Wanted};
use shared::limits::{SAMPLE_EVERY, SAMPLE_ROUNDS, SAMPLE_TOKENS};
use shared::units::Round;
use shared::wire::generate::{Sampling, usual_temperature, usual_top_p};
use shared::wire::report::{RunReport, SampleReport};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::app::Event;
use crate::door::duration;
use crate::texts::{Growing, Texts};

/// What it goes on from: the beginning of a line.
const PROMPT: &str = "\n";

/// See the module's documentation.
pub(crate) struct Sampler {
    pub(crate) texts: Arc<Texts>,
    pub(crate) inbox: mpsc::Sender<Event>,
    pub(crate) report: watch::Receiver<Arc<RunReport>>,
    pub(crate) sample: watch::Sender<Option<SampleReport>>,
}

impl Sampler {
    /// Goes on until the host stops.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            () = self.work() => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    /// Ends where the host does, or cannot write at all.
    async fn work(&mut self) {
        let Ok(prompt) = self.texts.encode(PROMPT) else {
            return;
        };
        let mut last = Round(0);
        loop {
            let is_due = |report: &Arc<RunReport>| is_due(report, last);
            let Ok(round) = self.report.wait_for(is_due).await.map(|it| it.round) else {
                return;
            };
            let Some(text) = self.write(round, &prompt).await else {
                return;
            };
            if !text.trim().is_empty() {
                self.sample.send_replace(Some(SampleReport { round, text }));
            }
            last = round;
            sleep(duration(SAMPLE_EVERY)).await;
        }
    }

    /// A text to its end, empty if it was given up; `None` when the host has ended.
    async fn write(&self, round: Round, prompt: &[u32]) -> Option<String> {
        let (sender, mut news) = mpsc::channel(SAMPLE_TOKENS as usize + 1);
        let wanted = Wanted {
            tokens: prompt.to_vec(),
            count: SAMPLE_TOKENS,
            sampling: Sampling {
                temperature: usual_temperature(),
                top_p: usual_top_p(),
                seed: u64::from(round.0),
            },
        };
        let event = Event::Wanted {
            number: self.texts.number(),
            wanted,
            news: sender,
        };
        self.inbox.send(event).await.ok()?;
        let mut growing = Growing::new(&self.texts, prompt.to_vec());
        let mut text = String::new();
        loop {
            match news.recv().await {
                Some(TextNews::Token(token)) => text.push_str(&growing.push(&self.texts, token)),
                Some(TextNews::Over) => {
                    text.push_str(&growing.rest(&self.texts));
                    return Some(text);
                }
                Some(TextNews::GivenUp(_)) | None => return Some(String::new()),
            }
        }
    }
}

/// Whether the model is some rounds further than when it wrote last.
fn is_due(report: &RunReport, last: Round) -> bool {
    let next = match last.0 {
        0 => 1,
        last => last.saturating_add(SAMPLE_ROUNDS),
    };
    report.round.0 >= next && report.state == "training"
}
