//! What comes twice, and late: messages about seats and frames that were delivered already come once more.
//!
//! A WebSocket and a data channel repeat nothing; but a volunteer that reconnects says again what it said, a host tells
//! again what it told, and whoever means harm repeats what it likes. None of it may act twice.

use super::world::{Event, World};
use crate::wire::frame::{Header, Mode};
use crate::wire::signal::{Down, Up};

/// One in so many comes again, while there are faults.
const ONCE_IN: u64 = 60;

impl World {
    /// Has `event` happen once more, later, now and then.
    pub(super) fn echo(&mut self, event: &Event) {
        let may_echo = match event {
            Event::ToHost { message, .. } => is_of_a_seat_up(message),
            Event::ToVolunteer { message, .. } => is_of_a_seat(message),
            Event::Frame { frame, .. } => is_of_a_round(&frame.header),
            Event::HostStart
            | Event::HostTimer { .. }
            | Event::Synced { .. }
            | Event::Stored { .. }
            | Event::Manifest { .. }
            | Event::HostSees { .. }
            | Event::Connect { .. }
            | Event::Disconnected { .. }
            | Event::Timer { .. }
            | Event::Prepared { .. }
            | Event::Shelved { .. }
            | Event::Done { .. }
            | Event::Measured { .. }
            | Event::Tokens { .. }
            | Event::Downloaded { .. }
            | Event::Link { .. }
            | Event::Fault
            | Event::Wanted => false,
        };
        if may_echo && self.now < self.faults_until && self.dice.once_in(ONCE_IN) {
            let wait = self.dice.millis(0, 20_000);
            self.summary.echoes += 1;
            self.after(wait, event.clone());
        }
    }
}

fn is_of_a_seat_up(message: &Up) -> bool {
    matches!(
        message,
        Up::Ready { .. }
            | Up::Report(_)
            | Up::Holds(_)
            | Up::Evaluated { .. }
            | Up::MergeFailed { .. }
            | Up::Written { .. }
            | Up::NotWritten { .. }
            | Up::Ask { .. }
    )
}

fn is_of_a_seat(message: &Down) -> bool {
    matches!(
        message,
        Down::Seat(_)
            | Down::Spare { .. }
            | Down::Begin { .. }
            | Down::Lease(_)
            | Down::Close { .. }
            | Down::Merge(_)
            | Down::Generate(_)
            | Down::Commit { .. }
    )
}

fn is_of_a_round(header: &Header) -> bool {
    match header {
        // An evaluation's microbatches have no step to be told by.
        Header::Forward { mode, .. } | Header::Backward { mode, .. } => *mode == Mode::Train,
        Header::Apply { .. }
        | Header::Credit { .. }
        | Header::Received { .. }
        | Header::Merge { .. }
        | Header::MergeNorm { .. }
        | Header::MergeScale { .. }
        | Header::MergeTaken { .. }
        | Header::Arrived { .. }
        | Header::Text { .. }
        | Header::Drawn { .. }
        | Header::Forget { .. } => true,
        Header::Hello { .. }
        | Header::StateRequest { .. }
        | Header::StateChunk { .. }
        | Header::Keepalive { .. }
        | Header::Flow(_)
        | Header::Bye { .. } => false,
    }
}
