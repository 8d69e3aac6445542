//! The conversation with the host: one WebSocket, opened again whenever it breaks.
//!
//! A task of its own connects, passes messages both ways as [`shared::wire::signal`] types, notices
//! silence, and tries again with growing, jittered pauses. It never decides what a message means:
//! after [`SocketEvent::Connected`] the host's `hello` comes as a message like any other.
//!
//! Invariant: `Lost` comes exactly once after each `Connected`, and no message between a `Lost`
//! and the next `Connected`.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use shared::limits::{SIGNAL_BYTES_MAX, SILENCE_MAX};
use shared::wire::signal::{self, Down, Up};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::{HostLink, chain, prepare_tls};

/// How long opening the WebSocket may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Pause before the first new try: a restarted host is back within a second or two.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest pause between tries: 1,000 volunteers then knock 100 times a second at most.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Messages that wait for the host's connection to take them.
const UP_MAX: usize = 1_024;
/// Messages of the host that wait to be read.
const DOWN_MAX: usize = 1_024;
/// How long a last message may take to leave when the owner is done.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// News of the conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum SocketEvent {
    /// The WebSocket is open; the host speaks first.
    Connected,
    /// The host said something.
    Message(Box<Down>),
    /// No connection: it broke, or could not be opened. Another try follows by itself.
    Lost {
        /// What happened, in words.
        reason: String,
        /// Tries that failed since the last connection.
        failures: u32,
        /// Pause before the next try.
        retry: Duration,
    },
}

/// The owner's end of the conversation. Dropping it ends the conversation.
pub struct HostSocket {
    up: mpsc::Sender<Up>,
    events: mpsc::Receiver<SocketEvent>,
    task: tokio::task::JoinHandle<()>,
}

impl HostSocket {
    /// Begins to connect. Must be called within a tokio runtime.
    pub fn open(link: &HostLink) -> Self {
        prepare_tls();
        let (up, outgoing) = mpsc::channel(UP_MAX);
        let (report, events) = mpsc::channel(DOWN_MAX);
        let task = tokio::spawn(converse(link.socket().to_string(), outgoing, report));
        Self { up, events, task }
    }

    /// Queues a message, never waits. What is said while there is no connection is lost;
    /// the host learns what it must know when the volunteer joins again.
    pub fn send(&self, message: Up) {
        if self.up.try_send(message).is_err() {
            tracing::warn!("a message to the host was dropped: too many wait");
        }
    }

    /// What happens next. Cancel safe.
    pub async fn next(&mut self) -> SocketEvent {
        match self.events.recv().await {
            Some(event) => event,
            // The task ends only with its owner, except by a panic; nothing comes any more.
            None => std::future::pending().await,
        }
    }

    /// Sends what is queued, closes the connection and waits for that, a second at most.
    pub async fn close(self) {
        let Self { up, events, task } = self;
        drop(up);
        // A reader that is gone would end the task before the queue is out.
        let _ = timeout(FAREWELL_MAX, task).await;
        drop(events);
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn converse(
    url: String,
    mut outgoing: mpsc::Receiver<Up>,
    report: mpsc::Sender<SocketEvent>,
) {
    let mut failures = 0;
    loop {
        let reason = match connect(&url).await {
            Ok(socket) => {
                failures = 0;
                // What was said before the connection belongs to an older one.
                while outgoing.try_recv().is_ok() {}
                if report.send(SocketEvent::Connected).await.is_err() {
                    return;
                }
                match serve(socket, &mut outgoing, &report).await {
                    Some(reason) => reason,
                    None => return,
                }
            }
            Err(reason) => reason,
        };
        failures += 1;
        let retry = pause(failures, jitter());
        let lost = SocketEvent::Lost {
            reason,
            failures,
            retry,
        };
        if report.send(lost).await.is_err() {
            return;
        }
        let resume_at = Instant::now() + retry;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(resume_at) => break,
                message = outgoing.recv() => if message.is_none() { return },
            }
        }
    }
}

async fn connect(url: &str) -> Result<Socket, String> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(SIGNAL_BYTES_MAX))
        .max_frame_size(Some(SIGNAL_BYTES_MAX));
    let opening = tokio_tungstenite::connect_async_with_config(url, Some(config), true);
    match timeout(CONNECT_MAX, opening).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err(format!("no answer in {} s", CONNECT_MAX.as_secs())),
    }
}

/// Passes messages until the connection breaks (why) or the owner is done (`None`).
async fn serve(
    mut socket: Socket,
    outgoing: &mut mpsc::Receiver<Up>,
    report: &mpsc::Sender<SocketEvent>,
) -> Option<String> {
    let silence_max = Duration::from_micros(SILENCE_MAX.as_micros());
    let silence = sleep(silence_max);
    tokio::pin!(silence);
    loop {
        tokio::select! {
            message = outgoing.recv() => {
                let Some(message) = message else {
                    // An error here tells what we know: the conversation is over.
                    let _ = socket.close(None).await;
                    return None;
                };
                let text = signal::encode(&message);
                if let Err(error) = socket.send(Message::text(text)).await {
                    return Some(chain(&error));
                }
            }
            incoming = socket.next() => {
                silence.as_mut().reset(Instant::now() + silence_max);
                let text = match incoming {
                    Some(Ok(Message::Text(text))) => text,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(frame))) => {
                        return Some(frame.map_or_else(
                            || "the host closed the connection".to_owned(),
                            |frame| format!("the host closed the connection: {}", frame.reason),
                        ));
                    }
                    Some(Ok(Message::Binary(_) | Message::Frame(_))) => {
                        return Some("the host sent bytes where text belongs".to_owned());
                    }
                    Some(Err(error)) => return Some(chain(&error)),
                    None => return Some("the host closed the connection".to_owned()),
                };
                let event = match signal::decode::<Down>(&text) {
                    Ok(message) => SocketEvent::Message(Box::new(message)),
                    Err(error) => return Some(error.to_string()),
                };
                if report.send(event).await.is_err() {
                    return None;
                }
            }
            () = &mut silence => {
                return Some(format!("the host was silent for {} s", silence_max.as_secs()));
            }
        }
    }
}

/// The pause before try number `failures`: doubles up to a limit, and `share` of 256 of its second
/// half is random, so that volunteers do not come back all at once.
fn pause(failures: u32, share: u8) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = (RETRY_MIN * (1 << doublings)).min(RETRY_MAX);
    full / 2 + full / 2 * u32::from(share) / 256
}

fn jitter() -> u8 {
    let mut byte = [0];
    // Without randomness all volunteers pause equally long: no harm beyond a busy host.
    let _ = getrandom::fill(&mut byte);
    byte[0]
}

#[cfg(test)]
mod tests {
    use shared::wire::signal::encode;
    use tokio::net::TcpListener;

    use super::*;

    const TEST_MAX: Duration = Duration::from_secs(20);

    #[test]
    fn pauses_grow_to_a_limit_and_differ_between_volunteers() {
        assert_eq!(pause(1, 0), Duration::from_millis(125));
        assert!(pause(1, 255) <= RETRY_MIN);
        assert!(pause(3, 0) >= Duration::from_millis(500));
        assert!((0..=255).all(|share| pause(99, share) <= RETRY_MAX));
        assert!(pause(99, 255) > pause(99, 0));
    }

    #[tokio::test]
    async fn a_broken_conversation_begins_again_by_itself() {
        let whole = async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let link: HostLink = listener.local_addr().unwrap().to_string().parse().unwrap();
            let mut socket = HostSocket::open(&link);
            for nonce in [1, 2] {
                let (stream, _) = listener.accept().await.unwrap();
                let mut host = tokio_tungstenite::accept_async(stream).await.unwrap();
                assert_eq!(socket.next().await, SocketEvent::Connected);
                let ping = Down::Ping { nonce };
                host.send(Message::text(encode(&ping))).await.unwrap();
                assert_eq!(socket.next().await, SocketEvent::Message(Box::new(ping)));
                socket.send(Up::Pong { nonce });
                let said = host.next().await.unwrap().unwrap();
                assert_eq!(
                    said.into_text().unwrap().as_str(),
                    encode(&Up::Pong { nonce })
                );
                drop(host);
                assert!(matches!(
                    socket.next().await,
                    SocketEvent::Lost { failures: 1, .. }
                ));
                socket.send(Up::Finish);
            }
            let (stream, _) = listener.accept().await.unwrap();
            let mut host = tokio_tungstenite::accept_async(stream).await.unwrap();
            assert_eq!(socket.next().await, SocketEvent::Connected);
            socket.send(Up::Leave { may_return: false });
            socket.close().await;
            let said = host.next().await.unwrap().unwrap().into_text().unwrap();
            assert_eq!(
                said.as_str(),
                encode(&Up::Leave { may_return: false }),
                "no stale word"
            );
        };
        timeout(TEST_MAX, whole).await.expect("in time");
    }

    #[tokio::test]
    async fn a_host_that_speaks_another_language_is_left() {
        let whole = async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let link: HostLink = listener.local_addr().unwrap().to_string().parse().unwrap();
            let mut socket = HostSocket::open(&link);
            let (stream, _) = listener.accept().await.unwrap();
            let mut host = tokio_tungstenite::accept_async(stream).await.unwrap();
            assert_eq!(socket.next().await, SocketEvent::Connected);
            host.send(Message::text("{\"type\":\"moo\"}"))
                .await
                .unwrap();
            let SocketEvent::Lost { reason, .. } = socket.next().await else {
                panic!("still there");
            };
            assert!(
                reason.contains("not a message of this protocol"),
                "{reason}"
            );
        };
        timeout(TEST_MAX, whole).await.expect("in time");
    }
}
