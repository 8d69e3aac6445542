//! Links between volunteers: they take time to open, delay frames, and fail without a word.

use std::collections::{BTreeMap, BTreeSet};

use super::Dice;
use crate::transport::Channel;
use crate::units::{Span, Time};
use crate::wire::frame::{Frame, Header};

/// A volunteer's process: never used again after its death.
pub(super) type ProcessId = usize;

/// What the network does between two processes.
#[derive(Clone, Debug, Default)]
pub(super) struct Network {
    /// Pairs that nothing gets through between, until when.
    cut: BTreeMap<(ProcessId, ProcessId), Time>,
    /// When the last frame on an ordered channel arrives, by direction.
    ordered: BTreeMap<(ProcessId, ProcessId), Time>,
    /// Delay and bytes a second of every link, each way, where they do not come from the dice.
    wire: Option<(Span, u64)>,
    /// Whether those bytes a second are what each sends to all together.
    shares_uplink: bool,
    /// When a link has carried what was sent over it, by direction.
    busy: BTreeMap<(ProcessId, ProcessId), Time>,
    /// When an uplink has carried microbatches, and when all else, which goes after them.
    uplinks: BTreeMap<ProcessId, (Time, Time)>,
    /// Pairs that can never connect.
    apart: BTreeSet<(ProcessId, ProcessId)>,
}

fn pair(a: ProcessId, b: ProcessId) -> (ProcessId, ProcessId) {
    (a.min(b), a.max(b))
}

impl Network {
    /// Lets nothing through between two until `until`.
    pub(super) fn cut(&mut self, a: ProcessId, b: ProcessId, until: Time) {
        self.cut.insert(pair(a, b), until);
    }

    #[cfg(test)]
    /// From now on all links have this delay one way, and carry so many bytes a second each way.
    pub(super) fn set_wire(&mut self, delay: Span, bytes_per_second: u64) {
        self.wire = Some((delay, bytes_per_second));
    }

    /// From now on all links have this delay one way, and each volunteer sends so many bytes a second, to whomever.
    pub(super) fn set_uplinks(&mut self, delay: Span, bytes_per_second: u64) {
        self.wire = Some((delay, bytes_per_second));
        self.shares_uplink = true;
    }

    /// These two can never connect.
    pub(super) fn separate(&mut self, a: ProcessId, b: ProcessId) {
        self.apart.insert(pair(a, b));
    }

    /// Ends all cuts.
    pub(super) fn heal(&mut self) {
        self.cut.clear();
        self.apart.clear();
    }

    /// Whether anything gets through between two now.
    pub(super) fn connects(&self, now: Time, a: ProcessId, b: ProcessId) -> bool {
        !self.apart.contains(&pair(a, b))
            && self.cut.get(&pair(a, b)).is_none_or(|until| now >= *until)
    }

    /// When what is sent between two now gets through at the earliest: a path that is cut makes it wait.
    /// `None` while they can never connect.
    pub(super) fn passes_at(&self, now: Time, a: ProcessId, b: ProcessId) -> Option<Time> {
        let cut_until = self.cut.get(&pair(a, b)).copied().unwrap_or(Time::ZERO);
        (!self.apart.contains(&pair(a, b))).then_some(now.max(cut_until))
    }

    /// When a frame that is sent now arrives. What is on `control` keeps its order, tensors do not.
    pub(super) fn arrival(
        &mut self,
        now: Time,
        dice: &mut Dice,
        (from, to): (ProcessId, ProcessId),
        frame: &Frame,
    ) -> Time {
        let channel = channel(&frame.header);
        if let Some((delay, bytes_per_second)) = self.wire {
            let transfer =
                Span::from_micros(frame.payload.len() as u64 * 1_000_000 / bytes_per_second);
            // What is small and urgent does not wait for tensors.
            if channel == Channel::Control {
                return now + delay;
            }
            if !self.shares_uplink {
                let busy = self.busy.entry((from, to)).or_default();
                *busy = (*busy).max(now) + transfer;
                return *busy + delay;
            }
            let uplink = self.uplinks.entry(from).or_default();
            let busy = match is_bulk(&frame.header) {
                false => &mut uplink.0,
                true => {
                    uplink.1 = uplink.1.max(uplink.0);
                    &mut uplink.1
                }
            };
            *busy = (*busy).max(now) + transfer;
            return *busy + delay;
        }
        let at = now + dice.millis(10, 60);
        match channel {
            // Now and then a frame waits for a lost packet to be sent again: past its epoch, perhaps.
            Channel::Tensors if dice.once_in(12) => at + dice.millis(300, 6_000),
            Channel::Tensors => at,
            Channel::Control => {
                let last = self.ordered.entry((from, to)).or_default();
                *last = at.max(*last + Span::from_micros(1));
                *last
            }
        }
    }
}

/// Whether a frame waits in its sender's outbox while there are microbatches.
fn is_bulk(header: &Header) -> bool {
    matches!(header, Header::Merge { .. } | Header::StateChunk { .. })
}

/// Which channel carries a frame: as in the driver.
fn channel(header: &Header) -> Channel {
    match header {
        Header::Forward { .. }
        | Header::Backward { .. }
        | Header::Text { .. }
        | Header::Merge { .. }
        | Header::StateChunk { .. } => Channel::Tensors,
        Header::Hello { .. }
        | Header::Apply { .. }
        | Header::StateRequest { .. }
        | Header::Credit { .. }
        | Header::Keepalive { .. }
        | Header::Bye { .. }
        | Header::Received { .. }
        | Header::MergeNorm { .. }
        | Header::MergeScale { .. }
        | Header::Arrived { .. }
        | Header::MergeTaken { .. }
        | Header::Flow(_)
        | Header::Drawn { .. }
        | Header::Forget { .. } => Channel::Control,
    }
}
