//! One WebSocket to a volunteer: JSON text both ways, within limits. The same in the host and in a gateway.
//!
//! Reading and writing are two tasks, so that a volunteer that reads slowly is still heard. What is no message is
//! told to the coordinator, which refuses in words; whoever says nothing at all is closed.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use shared::wire::signal::{self, Down, SignalError, Up};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::app::{App, Entrance, Event};
use crate::door::{
    Bucket, JOIN_MAX, MESSAGE_EVERY, MESSAGES_BURST, OUTBOX_MESSAGES_MAX, SEND_MAX,
    SOCKET_BUFFER_BYTES, WORD_EVERY, WORDS_BURST, duration,
};

pub(super) async fn of_host(
    State(app): State<Arc<App>>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    open(app.entrance.clone(), address, &headers, upgrade)
}

/// Lets whoever knocks in, or says why not.
pub(crate) fn open(
    entrance: Arc<Entrance>,
    address: SocketAddr,
    headers: &HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let address = super::client_address(entrance.trust_proxy, address, headers);
    if !entrance.door.admit(entrance.clock.now(), address) {
        let text = "too many connections from your address: wait a minute and try again";
        return (StatusCode::TOO_MANY_REQUESTS, text).into_response();
    }
    // Messages up to here are refused in words; longer ones are not received at all.
    let bytes_max = 2 * entrance.signal_bytes_max;
    upgrade
        .read_buffer_size(SOCKET_BUFFER_BYTES)
        .write_buffer_size(SOCKET_BUFFER_BYTES)
        .max_message_size(bytes_max)
        .max_frame_size(bytes_max)
        .on_upgrade(move |socket| serve(entrance, socket))
}

async fn serve(entrance: Arc<Entrance>, socket: WebSocket) {
    let connection = entrance.next_connection();
    let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES_MAX);
    let (sink, stream) = socket.split();
    if entrance
        .inbox
        .send(Event::Connected { connection, outbox })
        .await
        .is_err()
    {
        return;
    }
    let mut writer = tokio::spawn(write(sink, messages));
    let mut stop = entrance.stop.clone();
    tokio::select! {
        () = read(&entrance, connection, stream) => {}
        // Whatever ended it, the volunteer hears no more.
        _ = &mut writer => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    // The coordinator's task drops its end of the outbox; the writer sends what is left and closes.
    // If it has ended there is nobody left to tell.
    let _ = entrance.inbox.send(Event::Closed { connection }).await;
}

/// Sends until the outbox is closed and empty, or the other end takes no more.
async fn write(mut sink: SplitSink<WebSocket, Message>, mut messages: mpsc::Receiver<Down>) {
    while let Some(message) = messages.recv().await {
        let text = Message::Text(signal::encode(&message).into());
        match timeout(duration(SEND_MAX), sink.send(text)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
    let closing = timeout(duration(SEND_MAX), sink.close()).await;
    tracing::trace!(?closing, "connection closed");
}

/// Reads until the other end closes, breaks a limit or says what is no message.
async fn read(entrance: &Entrance, connection: u64, mut stream: SplitStream<WebSocket>) {
    let mut rate = Bucket::new(MESSAGES_BURST, MESSAGE_EVERY);
    let mut words = Bucket::new(WORDS_BURST, WORD_EVERY);
    let mut joined = false;
    loop {
        let next = if joined {
            stream.next().await
        } else {
            match timeout(duration(JOIN_MAX), stream.next()).await {
                Ok(next) => next,
                Err(_) => return,
            }
        };
        let event = match next {
            // A connection that breaks says nothing about who was at its other end.
            None | Some(Err(_) | Ok(Message::Close(_))) => return,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) if joined => continue,
            // Only `join` counts as a sign of life at the door.
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => return,
            Some(Ok(Message::Binary(_))) => {
                malformed(connection, "binary messages mean nothing here".to_owned())
            }
            Some(Ok(Message::Text(text))) => match decode(entrance, &text) {
                Ok(message) => {
                    let is_word = matches!(message, Up::Written { .. });
                    let rate = if is_word { &mut words } else { &mut rate };
                    if rate.take(entrance.clock.now()) {
                        Event::Message {
                            connection,
                            message,
                        }
                    } else {
                        let reason = "more messages than any volunteer has to send";
                        malformed(connection, reason.to_owned())
                    }
                }
                Err(error) => malformed(connection, error.to_string()),
            },
        };
        joined = true;
        let over = matches!(event, Event::Malformed { .. });
        if entrance.inbox.send(event).await.is_err() || over {
            // The refusal is on its way through the outbox; the writer ends when it is sent.
            return std::future::pending().await;
        }
    }
}

fn decode(entrance: &Entrance, text: &str) -> Result<Up, SignalError> {
    signal::decode_within(text, entrance.signal_bytes_max)
}

fn malformed(connection: u64, reason: String) -> Event {
    Event::Malformed { connection, reason }
}
