//! The driver's way to the host: [`HostSocket`] and [`WebFiles`] behind [`shared::driver`]'s traits.
//!
//! Gives up on a host that never answered, or was away for too long; everything else is passed on.

use futures_channel::oneshot;
use shared::driver::{Clock, Host, HostEvent};
use shared::units::{Span, Time};
use shared::wire::signal::Up;

use super::clock::WorkerClock;
use super::files::WebFiles;
use super::socket::{HostSocket, SocketEvent};

/// Tries before a host that never answered counts as not there: about four seconds.
const FIRST_TRIES_MAX: u32 = 5;
/// How long a host that was there may stay away: longer than any restart, an upgrade included.
const AWAY_MAX: Span = Span::from_secs(600);

/// The host, as the driver sees it.
pub(super) struct WebHost {
    socket: HostSocket,
    files: WebFiles,
    /// Told why, once there is no hope.
    gave_up: Option<oneshot::Sender<String>>,
    was_there: bool,
    away_since: Option<Time>,
}

impl WebHost {
    /// Begins to connect. The other value comes when there is no hope left: why, in words.
    pub(super) fn open(link: &str) -> (Self, oneshot::Receiver<String>) {
        let (gave_up, given_up) = oneshot::channel();
        let host = Self {
            socket: HostSocket::open(socket_url(link)),
            files: WebFiles::new(link),
            gave_up: Some(gave_up),
            was_there: false,
            away_since: None,
        };
        (host, given_up)
    }

    fn lost(&mut self, reason: String, failures: u32) {
        let now = WorkerClock.now();
        let since = *self.away_since.get_or_insert(now);
        let over = if self.was_there {
            now.since(since) > AWAY_MAX
        } else {
            failures >= FIRST_TRIES_MAX
        };
        if over && let Some(gave_up) = self.gave_up.take() {
            // A session that is over by itself needs no telling.
            drop(gave_up.send(reason));
        }
    }
}

/// The address of the WebSocket of a host at `link`, which ends with a slash.
pub(super) fn socket_url(link: &str) -> String {
    let secure = link.strip_prefix("https:").map(|rest| ("wss:", rest));
    let plain = link.strip_prefix("http:").map(|rest| ("ws:", rest));
    let (scheme, rest) = secure.or(plain).unwrap_or(("ws:", link));
    format!("{scheme}{rest}ws")
}

impl Host for WebHost {
    type Files = WebFiles;

    fn send(&mut self, message: Up) {
        self.socket.send(message);
    }

    async fn next_event(&mut self) -> HostEvent {
        match self.socket.next().await {
            SocketEvent::Open => {
                self.was_there = true;
                self.away_since = None;
                HostEvent::Open
            }
            SocketEvent::Message(message) => HostEvent::Message(message),
            SocketEvent::Lost { reason, failures } => {
                self.lost(reason, failures);
                HostEvent::Closed
            }
        }
    }

    fn files(&self) -> WebFiles {
        self.files.clone()
    }

    async fn close(self) {
        self.socket.close().await;
    }
}
