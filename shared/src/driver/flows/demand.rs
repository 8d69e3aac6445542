//! Whether a link's bulk would go faster by more connections: nobody tells what a line carries or loses, so it is tried.
//!
//! While something waits, what arrives in that time is the rate of so many connections. As many again are opened, once; and
//! again, as long as that brought a quarter more. On a line that one connection fills this ends with one too many.

use crate::limits::FLOWS_MAX;
use crate::units::{Span, Time};

/// How long bulk waits, in all, before the other end is asked what arrives: most links never get there.
const ASK_AFTER: Span = Span::from_secs(1);
/// What new connections take to find their rate.
const SETTLE: Span = Span::from_secs(1);
/// Waiting, in all, from which a rate is told.
const LOOK: Span = Span::from_secs(2);
/// How much faster it must be with twice as many.
const WORTH: f64 = 1.25;

/// How far the trying is. `before` is the rate of half as many, in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// The other end tells nothing yet.
    Unasked,
    /// More are being opened.
    Opening { before: f64 },
    /// They find their rate.
    Settling { before: Option<f64> },
    /// It is measured.
    Looking { before: Option<f64> },
    /// There are enough.
    Over,
}

/// What one link wants.
#[derive(Debug)]
pub(super) struct Demand {
    stage: Stage,
    /// When this was looked at last with something waiting, and how many bytes had arrived then.
    since: Option<(Time, u64)>,
    /// How long something waited in this stage, and how much arrived meanwhile.
    waited: Span,
    carried_bytes: u64,
}

impl Default for Demand {
    fn default() -> Self {
        Self {
            stage: Stage::Unasked,
            since: None,
            waited: Span::default(),
            carried_bytes: 0,
        }
    }
}

impl Demand {
    /// Whether bulk waits now; so many bytes have arrived in all, as far as the other end tells.
    pub(super) fn look(&mut self, now: Time, waits: bool, arrived_bytes: u64) {
        if let Some((since, bytes)) = self.since.take() {
            self.waited += now.since(since);
            self.carried_bytes += arrived_bytes.saturating_sub(bytes);
        }
        self.since = waits.then_some((now, arrived_bytes));
    }

    /// Whether the other end is to be asked what arrives.
    pub(super) fn wants_words(&self) -> bool {
        self.stage == Stage::Unasked && self.waited >= ASK_AFTER
    }

    /// The other end tells.
    pub(super) fn told(&mut self) {
        if self.stage == Stage::Unasked {
            self.enter(Stage::Settling { before: None });
        }
    }

    /// How many connections to open, of a link that has so many, and some of them still opening.
    pub(super) fn wants(&mut self, open: u8, is_opening: bool) -> u8 {
        match self.stage {
            Stage::Opening { before } if !is_opening => {
                let before = Some(before);
                self.enter(Stage::Settling { before });
            }
            Stage::Settling { before } if self.waited >= SETTLE => {
                self.enter(Stage::Looking { before });
            }
            // A line that is broken for now has no rate.
            Stage::Looking { before } if self.waited >= LOOK && self.carried_bytes == 0 => {
                self.enter(Stage::Looking { before });
            }
            Stage::Looking { before } if self.waited >= LOOK => {
                let rate = self.carried_bytes as f64 * 1e6 / self.waited.as_micros() as f64;
                let more = open.min(FLOWS_MAX.saturating_sub(open));
                let was_worth_it = before.is_none_or(|before| rate >= WORTH * before);
                if more > 0 && was_worth_it {
                    self.enter(Stage::Opening { before: rate });
                    return more;
                }
                self.enter(Stage::Over);
            }
            Stage::Unasked
            | Stage::Opening { .. }
            | Stage::Settling { .. }
            | Stage::Looking { .. }
            | Stage::Over => {}
        }
        0
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.waited = Span::default();
        self.carried_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections in the end, of a line on which one carries `one` bytes a second and all together `line`, while bulk waits
    /// for a share of the time.
    fn ends_with(one: f64, line: f64, waits_percent: u64, minutes: u64) -> u8 {
        let mut demand = Demand::default();
        let (mut open, mut opening, mut arrived) = (1_u8, 0_u8, 0.0_f64);
        let mut is_asked = false;
        for tick in 0..minutes * 60 * 100 {
            let now = Time::from_micros(tick * 10_000);
            let waits = tick % 100 < waits_percent;
            if waits {
                arrived += (one * f64::from(open)).min(line) / 100.0;
            }
            is_asked |= demand.wants_words();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "bytes"
            )]
            let told = if is_asked { arrived as u64 } else { 0 };
            demand.look(now, waits, told);
            if is_asked {
                demand.told();
            }
            // It takes a moment to open them.
            if tick % 20 == 0 {
                open += std::mem::take(&mut opening);
            }
            opening += demand.wants(open, opening > 0);
        }
        open
    }

    #[test]
    fn more_are_opened_while_that_brings_more() {
        // 0.1 % loss: one carries a tenth of the line.
        assert_eq!(ends_with(0.9e6, 10e6, 100, 1), 8);
        // Three fill it: with four it is still faster than with two, with eight no more.
        assert_eq!(ends_with(3.4e6, 10e6, 100, 1), 8);
        assert_eq!(ends_with(5e6, 10e6, 100, 1), 4);
        // One fills it, and one is tried beside it.
        assert_eq!(ends_with(10e6, 10e6, 100, 1), 2);
    }

    #[test]
    fn short_waits_add_up_and_a_link_that_waits_for_nothing_is_left_alone() {
        assert_eq!(ends_with(0.9e6, 10e6, 30, 2), 8);
        assert_eq!(ends_with(0.9e6, 10e6, 0, 2), 1);
    }

    #[test]
    fn a_line_on_which_nothing_arrives_has_no_rate_to_compare_with() {
        let mut demand = Demand::default();
        demand.told();
        for second in 0..60 {
            demand.look(Time::from_micros(second * 1_000_000), true, 7);
            assert_eq!(demand.wants(1, false), 0);
        }
        for second in 60..64 {
            let arrived = (second - 59) * 1_000_000;
            demand.look(Time::from_micros(second * 1_000_000), true, arrived);
        }
        assert_eq!(demand.wants(1, false), 1);
    }
}
