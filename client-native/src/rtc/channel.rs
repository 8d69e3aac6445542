//! The two ends of one data channel: a task that reads, a task that sends.
//!
//! Reading waits for the gate that the link opens after its `Open` event. Sending takes messages
//! from the channel's outbox, and waits for the pacer and for room in the SCTP stack.

use std::sync::Arc;

use bytes::BytesMut;
use shared::transport::{Channel, Flow, NetEvent};
use tokio::sync::{mpsc, watch};
use webrtc::data_channel::{DataChannel, DataChannelEvent};

use super::Tagged;
use super::link::Notice;
use super::outbox::Outbox;
use super::socket::Rounds;
use crate::pace::Pacer;

/// One data channel and where its news go.
#[derive(Clone)]
pub(super) struct ChannelEnds {
    pub(super) flow: Flow,
    pub(super) instance: u64,
    pub(super) kind: Channel,
    pub(super) channel: Arc<dyn DataChannel>,
    pub(super) report: mpsc::Sender<Tagged>,
    pub(super) notices: mpsc::Sender<Notice>,
    pub(super) rounds: Arc<Rounds>,
}

impl ChannelEnds {
    /// Passes on what arrives, once the gate is open.
    pub(super) async fn read(self, mut gate: watch::Receiver<bool>) {
        while let Some(event) = self.channel.poll().await {
            if matches!(event, DataChannelEvent::OnOpen) {
                // Fails only when the link has ended, and this task with it.
                let _ = self.notices.send(Notice::Opened(self.kind)).await;
            } else if let DataChannelEvent::OnMessage(message) = event {
                if gate.wait_for(|open| *open).await.is_err() {
                    return;
                }
                let event = NetEvent::Message {
                    flow: self.flow,
                    channel: self.kind,
                    bytes: message.data.freeze(),
                };
                if self.report.send((self.instance, event)).await.is_err() {
                    return;
                }
            } else if matches!(
                event,
                DataChannelEvent::OnClosing | DataChannelEvent::OnClose
            ) {
                break;
            }
        }
        let _ = self.notices.send(Notice::Ended(self.kind)).await;
    }

    /// The message, or bytes that are no frame where a test asks for it; see [`shared::faults`].
    #[cfg(feature = "faults")]
    fn spoilt_as_asked(&self, message: bytes::Bytes) -> bytes::Bytes {
        use shared::faults::{Point, is_due};
        if self.kind == Channel::Tensors && is_due(Point::MalformedFrame) {
            bytes::Bytes::from_static(b"no frame")
        } else {
            message
        }
    }

    /// Sends what waits in the outbox, as fast as the connection and the pacer allow.
    pub(super) async fn send(self, outbox: Arc<Outbox>, pacer: Option<Arc<Pacer>>) {
        loop {
            let message = outbox.take().await;
            let len_bytes = message.len();
            if let Some(pacer) = &pacer {
                pacer.admit(len_bytes).await;
            }
            #[cfg(feature = "faults")]
            let message = self.spoilt_as_asked(message);
            let message = message
                .try_into_mut()
                .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            if let Err(error) = self.channel.send(message).await {
                tracing::debug!(%error, kind = ?self.kind, "sending");
                let _ = self.notices.send(Notice::Ended(self.kind)).await;
                return;
            }
            self.rounds.kick();
            if outbox.sent(len_bytes) {
                let event = NetEvent::Drained {
                    flow: self.flow,
                    channel: self.kind,
                };
                if self.report.send((self.instance, event)).await.is_err() {
                    return;
                }
            }
        }
    }
}
