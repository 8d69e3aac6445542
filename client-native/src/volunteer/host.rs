//! The driver's way to the host: [`HostSocket`] and [`HostFiles`] behind [`shared::driver`]'s traits.
//!
//! Tells the person why the host is away, and gives up when it was away for too long; everything
//! else is passed on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shared::config::run::RunConfig;
use shared::driver::tokens::{Chunks, Part, Wanted};
use shared::driver::{Files, Host, HostEvent};
use shared::units::SampleRange;
use shared::wire::frame::Mode;
use shared::wire::signal::{DataInfo, Held, Up};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::Notes;
use crate::failure::{Code, Failure};
use crate::host::http::HostFiles;
use crate::host::socket::{HostSocket, SocketEvent};
use crate::report::Note;

/// Tries before a host that never answered counts as not there: about four seconds.
const FIRST_TRIES_MAX: u32 = 5;
/// How long a host that was there may stay away: longer than any restart, an upgrade included.
const AWAY_MAX: Duration = Duration::from_secs(600);
/// Pause after a request for tokens failed for good; the next one tries several times again.
const TOKENS_RETRY: Duration = Duration::from_secs(2);

/// The host, as the driver sees it.
pub(super) struct NativeHost {
    socket: HostSocket,
    files: NativeFiles,
    notes: Notes,
    gave_up: tokio::sync::mpsc::Sender<Failure>,
    /// Since when it has been away, if it was there before.
    away_since: Option<Instant>,
    was_there: bool,
}

impl NativeHost {
    pub(super) fn new(
        socket: HostSocket,
        files: HostFiles,
        notes: Notes,
        gave_up: tokio::sync::mpsc::Sender<Failure>,
    ) -> Self {
        Self {
            socket,
            files: NativeFiles {
                files,
                chunks: Arc::default(),
                notes: notes.clone(),
            },
            notes,
            gave_up,
            away_since: None,
            was_there: false,
        }
    }

    fn lost(&mut self, reason: &str, failures: u32, retry: Duration) {
        let retry_ms = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
        self.notes.tell(Note::Lost {
            reason: reason.to_owned(),
            retry_ms,
        });
        let since = *self.away_since.get_or_insert_with(Instant::now);
        let over = if self.was_there {
            since.elapsed() > AWAY_MAX
        } else {
            failures >= FIRST_TRIES_MAX
        };
        if over {
            let failure = Failure::new(
                Code::Network,
                format!("the host cannot be reached: {reason}"),
                "Check the link, and that the host is up: its page should open in a browser.",
            );
            // Full means that it was told already.
            let _ = self.gave_up.try_send(failure);
        }
    }
}

impl Host for NativeHost {
    type Files = NativeFiles;

    fn send(&mut self, message: Up) {
        self.socket.send(message);
    }

    async fn next_event(&mut self) -> HostEvent {
        match self.socket.next().await {
            SocketEvent::Connected => {
                self.was_there = true;
                self.away_since = None;
                HostEvent::Open
            }
            SocketEvent::Message(message) => HostEvent::Message(message),
            SocketEvent::Lost {
                reason,
                failures,
                retry,
            } => {
                self.lost(&reason, failures, retry);
                HostEvent::Closed
            }
        }
    }

    fn files(&self) -> NativeFiles {
        self.files.clone()
    }

    async fn close(self) {
        self.socket.close().await;
    }
}

/// The host's files, as the driver sees them.
#[derive(Clone)]
pub(super) struct NativeFiles {
    files: HostFiles,
    /// Locked while one is fetched: whoever waits mostly wants the same.
    chunks: Arc<Mutex<Chunks>>,
    notes: Notes,
}

impl NativeFiles {
    /// Tokens of one sample, from a kept chunk or a new one.
    async fn sample(&self, part: &Part, number: u64) -> Vec<u32> {
        let mut chunks = self.chunks.lock().await;
        loop {
            match chunks.sample(part, number) {
                Ok(tokens) => return tokens,
                Err(wanted) => {
                    let bytes = self.fetch(wanted).await;
                    assert!(chunks.insert(wanted, bytes), "the length was checked");
                }
            }
        }
    }

    /// Tries until it has the chunk: without tokens there is nothing to do.
    async fn fetch(&self, wanted: Wanted) -> Bytes {
        let Wanted { path, start, len } = wanted;
        let mut told = false;
        loop {
            match self.files.range(path, start, len).await {
                Ok(bytes) => return bytes,
                Err(error) if told => tracing::debug!(%error, "no tokens yet"),
                Err(error) => {
                    told = true;
                    let text = format!("no tokens from the host, trying on: {error}");
                    self.notes.tell(Note::Trouble { text });
                }
            }
            sleep(TOKENS_RETRY).await;
        }
    }
}

impl Files for NativeFiles {
    async fn tokens(
        &self,
        config: &RunConfig,
        data: &DataInfo,
        mode: Mode,
        samples: SampleRange,
    ) -> Vec<u32> {
        let Some(part) = Part::new(config, data, mode) else {
            let text = "the host's data is shorter than one sample".to_owned();
            self.notes.tell(Note::Trouble { text });
            // Nothing can be made of such data; the host refuses it, too.
            return std::future::pending().await;
        };
        let mut tokens = Vec::with_capacity(samples.count as usize * (config.model.context + 1));
        for number in samples.first..samples.end() {
            tokens.extend(self.sample(&part, number).await);
        }
        tokens
    }

    async fn download(&self, held: Held, path: &str) -> Option<Bytes> {
        match self.files.blob(path, held.blob).await {
            Ok(blob) => Some(blob),
            Err(error) => {
                let (round, stage) = (held.round, held.stage);
                let text = format!("stage {stage} of round {round} is not in the store: {error}");
                self.notes.tell(Note::Trouble { text });
                None
            }
        }
    }

    async fn upload(&self, ticket: &str, blob: Bytes) -> bool {
        let path = format!("store/upload/{ticket}");
        match self.files.upload(&path, blob).await {
            Ok(()) => true,
            Err(error) => {
                let text = format!("a checkpoint's part did not reach the store: {error}");
                self.notes.tell(Note::Trouble { text });
                false
            }
        }
    }
}
