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
/// Waiting, in all, from which a rate is told: several losses fall into it, where there are any.
const LOOK: Span = Span::from_secs(4);
/// From which a time without any arrival is a broken line's, or SCTP's after a loss that it did not notice: no rate.
const STILL: Span = Span::from_secs(1);
/// How much faster it must be with twice as many.
const WORTH: f64 = 1.25;

/// How far the trying is. `before` is the rate of half as many, in bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Stage {
    /// Bulk has not waited for long, or the other end tells nothing yet.
    #[default]
    Unasked,
    /// More are being opened.
    Opening { before: f64 },
    /// They find their rate.
    Settling { before: Option<f64> },
    /// It is measured, or again: one sample may have had more than its share of losses.
    Looking { before: Option<f64>, again: bool },
    /// There are enough.
    Over,
}

/// What one link wants.
#[derive(Debug, Default)]
pub(super) struct Demand {
    stage: Stage,
    /// Whether bulk has waited for long, and whether the other end tells.
    has_waited: bool,
    is_told: bool,
    /// When something arrived last while something waited, and how many bytes had by then.
    since: Option<(Time, u64)>,
    /// How long something waited in this stage, and how much arrived meanwhile.
    waited: Span,
    carried_bytes: u64,
}

impl Demand {
    /// Whether bulk waits now; so many bytes have arrived in all, as far as the other end tells.
    pub(super) fn look(&mut self, now: Time, waits: bool, arrived_bytes: u64) {
        if let Some((since, bytes)) = self.since {
            let took = now.since(since);
            if self.stage == Stage::Unasked {
                self.waited += took;
                self.has_waited |= self.waited >= ASK_AFTER;
            } else if waits && arrived_bytes == bytes {
                return;
            } else if took < STILL {
                self.waited += took;
                self.carried_bytes += arrived_bytes.saturating_sub(bytes);
            }
        }
        self.since = waits.then_some((now, arrived_bytes));
    }

    /// Whether the other end is to be asked what arrives, and what is under way to be bounded by it.
    pub(super) fn has_waited(&self) -> bool {
        self.has_waited
    }

    /// The other end tells.
    pub(super) fn told(&mut self) {
        self.is_told = true;
    }

    /// How many connections to open, of a link that has so many, and some of them still opening.
    pub(super) fn wants(&mut self, open: u8, is_opening: bool) -> u8 {
        match self.stage {
            Stage::Unasked if self.has_waited && self.is_told => {
                self.enter(Stage::Settling { before: None });
            }
            Stage::Opening { before } if !is_opening => {
                let before = Some(before);
                self.enter(Stage::Settling { before });
            }
            Stage::Settling { before } if self.waited >= SETTLE => {
                let again = false;
                self.enter(Stage::Looking { before, again });
            }
            Stage::Looking { before, again } if self.waited >= LOOK => {
                let rate = self.carried_bytes as f64 * 1e6 / self.waited.as_micros() as f64;
                let more = open.min(FLOWS_MAX.saturating_sub(open));
                let was_worth_it = before.is_none_or(|before| rate >= WORTH * before);
                if more > 0 && was_worth_it {
                    self.enter(Stage::Opening { before: rate });
                    return more;
                }
                self.enter(if more > 0 && !again {
                    let again = true;
                    Stage::Looking { before, again }
                } else {
                    Stage::Over
                });
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
            is_asked |= demand.has_waited();
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
    fn a_line_on_which_nothing_arrives_has_no_rate() {
        let mut demand = Demand::default();
        demand.told();
        for second in 0..60 {
            demand.look(Time::from_micros(second * 1_000_000), true, 7);
            assert_eq!(demand.wants(1, false), 0);
        }
        let mut wanted = 0;
        for tenth in 600..700 {
            let at = Time::from_micros(tenth * 100_000);
            demand.look(at, true, tenth * 1_000_000);
            wanted += demand.wants(1, false);
        }
        assert_eq!(wanted, 1);
    }

    #[test]
    fn one_sample_with_more_than_its_share_of_losses_ends_nothing() {
        let mut demand = Demand::default();
        let (mut open, mut arrived) = (1_u64, 0_u64);
        for tick in 0..6_000_u64 {
            // For five seconds after the first are opened they carry no more than one does.
            let is_bad = (700..1_200).contains(&tick);
            arrived += if is_bad { 9_000 } else { 9_000 * open };
            demand.look(Time::from_micros(tick * 10_000), true, arrived);
            demand.told();
            open += u64::from(demand.wants(u8::try_from(open).expect("few"), false));
        }
        assert_eq!(open, 8);
    }
}
