//! What waits to be sent on one channel of one link, bounded in bytes.
//!
//! The transport's owner pushes and never waits; the channel's sending task takes messages out
//! and says when each has left. A refused push is remembered, and answered by exactly one
//! "drained" as soon as half of the room is free.
//!
//! Invariant: no more than the limit waits, except for a single message larger than it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// A bounded queue of messages.
pub(super) struct Outbox {
    limit_bytes: usize,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Bytes>,
    /// Bytes in the queue and in the sender's hands.
    waiting_bytes: usize,
    phase: Phase,
    /// Whether a push was refused since the last "drained".
    refused: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Connecting,
    Open,
    Closed,
}

impl Outbox {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every update is a single assignment or push: a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on messages are taken.
    pub(super) fn open(&self) {
        let mut state = self.state();
        if state.phase == Phase::Connecting {
            state.phase = Phase::Open;
        }
    }

    /// No message is taken any more, and those that wait are dropped.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.phase = Phase::Closed;
        state.queue.clear();
        state.waiting_bytes = 0;
    }

    /// Queues a message; `false` when it is full or not open.
    pub(super) fn push(&self, message: Bytes) -> bool {
        let mut state = self.state();
        if state.phase != Phase::Open {
            return false;
        }
        let bytes = state.waiting_bytes.saturating_add(message.len());
        if state.waiting_bytes > 0 && bytes > self.limit_bytes {
            state.refused = true;
            return false;
        }
        state.waiting_bytes = bytes;
        state.queue.push_back(message);
        drop(state);
        self.changed.notify_one();
        true
    }

    /// The next message to send; waits for one. Only one task may take.
    pub(super) async fn take(&self) -> Bytes {
        loop {
            if let Some(message) = self.state().queue.pop_front() {
                return message;
            }
            self.changed.notified().await;
        }
    }

    /// A message of so many bytes has left; `true` when a "drained" is due.
    pub(super) fn sent(&self, len_bytes: usize) -> bool {
        let mut state = self.state();
        state.waiting_bytes = state.waiting_bytes.saturating_sub(len_bytes);
        let due = state.refused && state.waiting_bytes <= self.limit_bytes / 2;
        if due {
            state.refused = false;
        }
        due
    }

    /// Whether nothing waits and nothing is in the sender's hands.
    pub(super) fn is_empty(&self) -> bool {
        self.state().waiting_bytes == 0
    }
}

#[cfg(test)]
mod tests {
    use shared::limits::CHUNK_BYTES_MAX;
    use shared::wire::chunk::CHUNK_HEADER_BYTES;

    use super::*;

    #[tokio::test]
    async fn a_refused_message_is_followed_by_exactly_one_drained() {
        let outbox = Outbox::new(100);
        assert!(!outbox.push(Bytes::from_static(b"early")), "not open yet");
        outbox.open();
        for _ in 0..10 {
            assert!(outbox.push(Bytes::from(vec![0; 10])));
        }
        assert!(!outbox.push(Bytes::from(vec![0; 1])));
        assert!(!outbox.push(Bytes::from(vec![0; 1])));
        let mut drained = Vec::new();
        for left in (0..10).rev() {
            let message = outbox.take().await;
            if outbox.sent(message.len()) {
                drained.push(left);
            }
        }
        assert_eq!(drained, [5], "once, when half of the room is free");
        assert!(outbox.is_empty());
    }

    #[tokio::test]
    async fn bulk_leaves_an_urgent_message_two_others_to_wait_for_at_most() {
        let outbox = Outbox::new(crate::rtc::TENSORS_BYTES_MAX);
        outbox.open();
        let message = Bytes::from(vec![0; CHUNK_HEADER_BYTES + CHUNK_BYTES_MAX]);
        let mut waiting = 0;
        while outbox.push(message.clone()) {
            waiting += 1;
        }
        assert_eq!(waiting, 2);
        // The first is sent: there is room for the urgent one at once, behind the second alone.
        assert!(outbox.sent(outbox.take().await.len()));
        assert!(outbox.push(message));
    }

    #[tokio::test]
    async fn a_message_larger_than_the_limit_passes_alone() {
        let outbox = Outbox::new(100);
        outbox.open();
        assert!(outbox.push(Bytes::from(vec![0; 500])));
        assert!(!outbox.push(Bytes::from(vec![0; 1])));
        assert!(outbox.sent(outbox.take().await.len()));
        assert!(outbox.push(Bytes::from(vec![0; 1])));
    }
}
