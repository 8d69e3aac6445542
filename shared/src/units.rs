//! Names and quantities that every other module speaks in: time, numbers of things, digests.
//!
//! This module knows nothing of how a run works. Its types exist so that a round can't be
//! passed where a step is meant, and milliseconds can't be passed where microseconds are.
//!
//! Invariant: all of them are plain integers with a total order, so that maps over them have
//! one order everywhere and a run can be replayed.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

use serde::{Deserialize, Serialize};

/// Monotonic time, in microseconds since the process started.
///
/// Given by the caller: this crate never reads a clock, so that a run can be replayed.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Time(u64);

/// A length of time in microseconds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Span(u64);

impl Time {
    /// The moment the process started.
    pub const ZERO: Self = Self(0);

    /// `micros` microseconds after the process started.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the process started.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero if `earlier` lies ahead.
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// A span of `micros` microseconds.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// A span of `millis` milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1_000)
    }

    /// A span of `secs` seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1_000_000)
    }

    /// The span in microseconds.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The span in seconds, for figures and messages; never for decisions.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// The span `factor` times as long, at most the longest there is.
    pub const fn times(self, factor: u64) -> Self {
        Self(self.0.saturating_mul(factor))
    }
}

impl Add<Span> for Time {
    type Output = Self;

    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Add for Span {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Span {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Time {
    type Output = Span;

    fn sub(self, earlier: Self) -> Span {
        self.since(earlier)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// One session of one volunteer, numbered by the host; never given out twice in a run.
    PeerId(u64)
}
number! {
    /// A replica of the model: seats that cover all stages once.
    PipelineId(u16)
}
number! {
    /// The unit of the model: a few blocks with their weights and optimizer state.
    StageId(u16)
}
number! {
    /// What is committed. Round `r` starts from `theta_r`; `theta_0` comes from the seed.
    Round(u32)
}
number! {
    /// One optimizer update of a pipeline, counted from 0 within its round.
    Step(u32)
}
number! {
    /// What goes through the pipe at once, counted from 0 within its step.
    Microbatch(u16)
}

impl Round {
    /// The round after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A counter that a restart of the host never repeats: `(host incarnation, counter)`.
///
/// Orders by incarnation first, so anything the restarted host numbers is newer.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Issue {
    /// How often the host was started over this journal.
    pub incarnation: u32,
    /// Counts up from 0 in each incarnation.
    pub counter: u32,
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.counter)
    }
}

/// The number of one pipeline's line-up. Frames of an older one are dropped.
pub type Epoch = Issue;
/// The number of one try at ending a round. Beginning one voids all earlier ones for good.
pub type Attempt = Issue;
/// The number of one try at having a text written. What still comes of an earlier try is known by it.
pub type RequestId = Issue;

/// Contiguous stages `[first, end)`: what a seat covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StageRange {
    /// First stage of the range.
    pub first: u16,
    /// One past its last stage.
    pub end: u16,
}

impl StageRange {
    /// A single stage.
    pub const fn one(stage: StageId) -> Self {
        Self {
            first: stage.0,
            end: stage.0 + 1,
        }
    }

    /// The stages of the range, in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = StageId> + Clone {
        (self.first..self.end).map(StageId)
    }

    /// Number of stages in the range.
    pub const fn count(self) -> usize {
        (self.end - self.first) as usize
    }

    /// Whether `stage` belongs to the range.
    pub const fn contains(self, stage: StageId) -> bool {
        self.first <= stage.0 && stage.0 < self.end
    }
}

impl fmt::Display for StageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count() {
            1 => write!(f, "stage {}", self.first),
            _ => write!(f, "stages {}-{}", self.first, self.end - 1),
        }
    }
}

/// Contiguous sample numbers `[first, first + count)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SampleRange {
    /// Number of the first sample.
    pub first: u64,
    /// Number of samples.
    pub count: u32,
}

impl SampleRange {
    /// One past the last sample of the range.
    pub const fn end(self) -> u64 {
        self.first + self.count as u64
    }
}

/// A BLAKE3 hash. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// Text that is not 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hexadecimal digits")]
pub struct DigestParseError;

impl Digest {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    /// The first eight digits are enough to tell two apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

impl std::str::FromStr for Digest {
    type Err = DigestParseError;

    fn from_str(text: &str) -> Result<Self, DigestParseError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| DigestParseError)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_what_it_printed() {
        let digest = Digest::of(b"shoal");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("ab".parse::<Digest>(), Err(DigestParseError));
        assert_eq!("é".repeat(32).parse::<Digest>(), Err(DigestParseError));
    }

    #[test]
    fn a_restarted_host_numbers_everything_newer() {
        let before = Issue {
            incarnation: 1,
            counter: 900,
        };
        let after = Issue {
            incarnation: 2,
            counter: 0,
        };
        assert!(before < after);
    }
}
