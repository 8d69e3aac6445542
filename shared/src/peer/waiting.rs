//! What a volunteer's device waits for, in one word: for whoever looks where time goes.
//!
//! Read off the state machine as it stands; nothing is decided by it. A seat that could go either way, a forward or a
//! backward, waits for its input while it may run further ahead, and for a gradient once it may not.

use super::Peer;

/// Why a device has nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wait {
    /// The host: to be let in, to say begin, to commit.
    Host,
    /// A seat: there is none for us now.
    Spare,
    /// The seat's states and links.
    Seat,
    /// The head: the next step's samples, from the host.
    Lease,
    /// The head: the text of samples that it has a lease for.
    Tokens,
    /// What the seat before sends.
    Input,
    /// What the seat after sends back.
    Gradient,
    /// Room at the seat after.
    Credit,
    /// Other pipelines' part of a merge.
    Merge,
    /// Its person, who lends a share of the time.
    Rest,
}

impl Wait {
    /// The word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Spare => "no seat",
            Self::Seat => "states and links",
            Self::Lease => "lease",
            Self::Tokens => "tokens",
            Self::Input => "input",
            Self::Gradient => "gradient",
            Self::Credit => "credit",
            Self::Merge => "merge",
            Self::Rest => "rest",
        }
    }
}

impl Peer {
    /// What the device waits for; `None` while it works, and at the end.
    #[must_use]
    pub fn waits_for(&self) -> Option<Wait> {
        if self.job.is_some() || self.over {
            return None;
        }
        if self.gathering.is_some() {
            return Some(Wait::Seat);
        }
        let Some(work) = &self.work else {
            let is_known = self.me.is_some() && self.host_away.is_none();
            return Some(if is_known { Wait::Spare } else { Wait::Host });
        };
        if self.merge.is_running() {
            return Some(Wait::Merge);
        }
        // Something could be computed, and is not: only a rest keeps it.
        Some(work.waits_for().unwrap_or(Wait::Rest))
    }
}

#[cfg(test)]
mod tests {
    use super::Wait;
    use crate::compute::{Done, Input, Job};
    use crate::config::run::RunConfig;
    use crate::peer::work::{Begun, Work};
    use crate::units::{
        Attempt, Digest, Epoch, PeerId, PipelineId, Round, SampleRange, Span, StageRange, Step,
        Time,
    };
    use crate::wire::frame::{Behind, Mode, Place, Slot};
    use crate::wire::signal::{Lease, Neighbour, SeatOrder};
    use bytes::Bytes;

    const PLACE: Place = Place {
        pipeline: PipelineId(0),
        epoch: Epoch {
            incarnation: 0,
            counter: 0,
        },
        round: Round(0),
    };

    /// The first or the last of two seats.
    fn seat(is_head: bool) -> Work {
        let other = Neighbour {
            peer: PeerId(1),
            key: Digest::default(),
        };
        let order = SeatOrder {
            place: PLACE,
            stages: StageRange { first: 0, end: 1 },
            previous: (!is_head).then_some(other),
            next: is_head.then_some(other),
            seats_behind: u16::from(is_head),
            state: vec![],
            keys: vec![],
        };
        let config = RunConfig::preset("tiny").unwrap();
        Work::new(order, &config, 1 << 30)
    }

    fn begin(seat: &mut Work) {
        let begun = Begun {
            attempt: Attempt::default(),
            result: Round(1),
            samples_done: 0,
        };
        seat.handle_begin(Time::ZERO, Mode::Train, begun);
    }

    #[test]
    fn a_head_waits_for_the_host_its_lease_the_text_credit_and_then_for_gradients() {
        let mut head = seat(true);
        assert_eq!(head.waits_for(), Some(Wait::Host));
        begin(&mut head);
        assert_eq!(head.waits_for(), Some(Wait::Lease));
        let samples = SampleRange {
            first: 0,
            count: 32,
        };
        head.handle_lease(Lease {
            place: PLACE,
            step: Step(0),
            samples,
            last: false,
        });
        assert_eq!(head.waits_for(), Some(Wait::Tokens));
        head.handle_tokens(Mode::Train, samples, &[0; 32 * 129]);
        assert_eq!(head.waits_for(), Some(Wait::Credit));
        head.handle_credit(100, Behind::default());
        for done in 0.. {
            assert!(done < 100, "it runs ahead for ever");
            assert_eq!(head.waits_for().is_some(), head.next_job().is_none());
            let Some(job @ Job::Forward { slot, .. }) = head.next_job() else {
                break;
            };
            let forward = Done::Forward {
                slot,
                boundary: Some(Bytes::new()),
                loss_sum: None,
            };
            head.handle_done(Time::ZERO + Span::from_secs(1), &job, forward);
        }
        assert_eq!(head.waits_for(), Some(Wait::Gradient));
    }

    #[test]
    fn a_last_seat_waits_for_nothing_but_its_input() {
        let mut last = seat(false);
        last.open();
        begin(&mut last);
        assert_eq!(last.waits_for(), Some(Wait::Input));
        let slot = Slot {
            place: PLACE,
            step: Step(0),
            microbatch: crate::units::Microbatch(0),
        };
        let input = Input {
            tokens: vec![0; 4 * 129],
            boundary: Some(Bytes::new()),
            first_sample: 0,
        };
        last.handle_forward(slot, Mode::Train, None, input);
        assert_eq!(last.waits_for(), None);
    }
}
