//! How much of a data channel's messages waits, counted on both sides of the page's boundary.
//!
//! The worker must know at once whether a message still fits ([`Outflow`]), but the browser's buffer is the
//! page's. So the page says now and then how many bytes have left it ([`Reported`]): after every quarter
//! of the limit, and when the browser's buffer falls to a quarter of the limit. Between the two a channel that
//! refused a message always hears of room again, and no message costs an answer of its own.
//!
//! Invariant: no more than the limit waits in worker, page and browser together, except for one larger message.

use shared::transport::Channel;

/// Bytes of one channel that may wait before `try_send` says no: on `tensors` a bandwidth-delay product of
/// 80 Mbit/s at 100 ms, on `control` thousands of small frames.
#[must_use]
pub fn limit_bytes(channel: Channel) -> u64 {
    match channel {
        Channel::Control => 256 << 10,
        Channel::Tensors => 1 << 20,
    }
}

/// The worker's side: what it has posted to the page, and what the page says has left.
#[derive(Clone, Debug)]
pub struct Outflow {
    limit_bytes: u64,
    posted_bytes: u64,
    sent_bytes: u64,
    /// Whether a message was refused since the last "drained".
    refused: bool,
}

impl Outflow {
    /// A channel in which nothing waits.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self {
            limit_bytes: limit_bytes(channel),
            posted_bytes: 0,
            sent_bytes: 0,
            refused: false,
        }
    }

    /// Whether a message of so many bytes may be posted now; counts it if so.
    pub fn admit(&mut self, len_bytes: u64) -> bool {
        let waiting = self.posted_bytes.saturating_sub(self.sent_bytes);
        if waiting > 0 && waiting + len_bytes > self.limit_bytes {
            self.refused = true;
            return false;
        }
        self.posted_bytes += len_bytes;
        true
    }

    /// Where the worker has the channel itself: how much the browser still holds. `true` when a "drained" is due.
    pub fn holds(&mut self, buffered_bytes: u64) -> bool {
        self.sent(self.posted_bytes.saturating_sub(buffered_bytes))
    }

    /// The page's word; `true` when a "drained" is due.
    pub fn sent(&mut self, sent_bytes: u64) -> bool {
        self.sent_bytes = self.sent_bytes.max(sent_bytes).min(self.posted_bytes);
        let half = self.posted_bytes - self.sent_bytes <= self.limit_bytes / 2;
        half && std::mem::take(&mut self.refused)
    }
}

/// The page's side: what it has given to the browser, and what the worker knows of that.
#[derive(Clone, Debug)]
pub struct Reported {
    quarter_bytes: u64,
    taken_bytes: u64,
    told_bytes: u64,
}

impl Reported {
    /// A channel in which nothing waits.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self {
            quarter_bytes: limit_bytes(channel) / 4,
            taken_bytes: 0,
            told_bytes: 0,
        }
    }

    /// Where the browser should say that its buffer is low.
    #[must_use]
    pub fn low_bytes(&self) -> u64 {
        self.quarter_bytes
    }

    /// The browser took a message and now holds `buffered_bytes`; gives what the worker should be told, if anything.
    pub fn taken(&mut self, len_bytes: u64, buffered_bytes: u64) -> Option<u64> {
        self.taken_bytes += len_bytes;
        let sent = self.taken_bytes.saturating_sub(buffered_bytes);
        (sent >= self.told_bytes + self.quarter_bytes).then(|| self.tell(sent))
    }

    /// The browser's buffer is low; gives what the worker should be told.
    pub fn low(&mut self, buffered_bytes: u64) -> u64 {
        self.tell(self.taken_bytes.saturating_sub(buffered_bytes))
    }

    fn tell(&mut self, sent_bytes: u64) -> u64 {
        self.told_bytes = self.told_bytes.max(sent_bytes);
        self.told_bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Both sides and a browser in between that sends as it likes.
    struct World {
        outflow: Outflow,
        reported: Reported,
        buffered: u64,
        drained: u32,
    }

    impl World {
        fn new() -> Self {
            Self {
                outflow: Outflow::new(Channel::Tensors),
                reported: Reported::new(Channel::Tensors),
                buffered: 0,
                drained: 0,
            }
        }

        fn post(&mut self, len_bytes: u64) -> bool {
            let admitted = self.outflow.admit(len_bytes);
            if admitted {
                self.buffered += len_bytes;
                if let Some(sent) = self.reported.taken(len_bytes, self.buffered) {
                    self.drained += u32::from(self.outflow.sent(sent));
                }
            }
            admitted
        }

        /// The browser sends; it says so only when its buffer falls to the mark.
        fn send(&mut self, len_bytes: u64) {
            let low = self.reported.low_bytes();
            let before = self.buffered;
            self.buffered = self.buffered.saturating_sub(len_bytes);
            if before > low && self.buffered <= low {
                let sent = self.reported.low(self.buffered);
                self.drained += u32::from(self.outflow.sent(sent));
            }
        }
    }

    #[test]
    fn a_full_channel_refuses_and_is_drained_once() {
        let mut world = World::new();
        let mut posted = 0;
        while world.post(32 << 10) {
            posted += 32 << 10;
        }
        assert_eq!(posted, limit_bytes(Channel::Tensors));
        assert!(!world.post(1), "still full");
        world.send(posted);
        assert_eq!(world.drained, 1);
        assert!(world.post(32 << 10));
    }

    #[test]
    fn a_message_larger_than_the_limit_passes_alone() {
        let mut outflow = Outflow::new(Channel::Control);
        assert!(outflow.admit(1 << 30));
        assert!(!outflow.admit(1));
        assert!(outflow.sent(1 << 30));
        assert!(outflow.admit(1));
    }

    proptest! {
        #[test]
        fn whoever_was_refused_hears_of_room_once_the_browser_is_empty(
            steps in prop::collection::vec((1_u64..70_000, any::<bool>()), 1..400),
        ) {
            let mut world = World::new();
            for (bytes, post) in steps {
                if post {
                    let drained = world.drained;
                    if !world.post(bytes) {
                        // Nothing more is posted from here: all that the browser holds leaves, by and by.
                        while world.buffered > 0 {
                            world.send(1_000);
                        }
                        prop_assert!(world.drained > drained);
                    }
                } else {
                    world.send(bytes);
                }
                prop_assert!(world.buffered <= limit_bytes(Channel::Tensors) + 70_000);
            }
        }
    }
}
