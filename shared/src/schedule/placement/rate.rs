//! Samples a second as an integer: what pipelines together get done, compared without rounding by chance.

use std::iter::Sum;

use super::GAIN_PERCENT_MIN;

/// What one pipeline of a microsecond a sequence would get done.
const UNIT: u128 = 1 << 96;
/// What the cuts of 65,535 divisions add up to at most; far below any pipeline's rate.
const CUT_MAX: u128 = 1 << 16;

/// How many sequences pipelines get done in a time: one by its slowest part's time, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rate(u128);

impl Rate {
    /// ... of one pipeline.
    pub(super) fn of(slowest_us: u64) -> Self {
        Self(UNIT / u128::from(slowest_us.max(1)))
    }

    /// ... of `work` shared without a rest by those who do `per_us` of it a microsecond, both in parts of `scale` bits.
    pub(super) fn of_work(per_us: u128, scale: u32, work: u64) -> Self {
        let rate = per_us / u128::from(work.max(1));
        Self(rate.saturating_mul(UNIT >> scale))
    }

    /// ... of so many like it.
    pub(super) fn times(self, count: usize) -> Self {
        Self(self.0.saturating_mul(count as u128))
    }

    /// The part of it that one of so many has.
    pub(super) fn shared_by(self, count: usize) -> Self {
        Self(self.0 / count.max(1) as u128)
    }

    /// How much more it is than `other`.
    pub(super) fn over(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Whether it is truly less than `other`.
    pub(super) fn is_below(self, other: Self) -> bool {
        self.0.saturating_add(CUT_MAX) < other.0
    }

    /// Whether it is worth moving state, where `other` is what there is.
    pub(super) fn is_worth_more_than(self, other: Self) -> bool {
        let hundredth = |rate: Self| rate.0 / 100;
        hundredth(self) > hundredth(other) / 100 * u128::from(100 + GAIN_PERCENT_MIN)
    }

    /// Less by so many percent.
    pub(super) fn less(self, percent: u64) -> Self {
        Self(self.0 / 100 * u128::from(100 - percent))
    }
}

impl Sum for Rate {
    fn sum<I: Iterator<Item = Self>>(rates: I) -> Self {
        Self(rates.fold(0, |sum, rate| sum.saturating_add(rate.0)))
    }
}
