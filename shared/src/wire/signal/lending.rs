//! What a volunteer lends, as it says itself, and why it lends nothing for now.

use serde::{Deserialize, Serialize};

/// What a volunteer is and can do, as it says itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    /// `native` or `browser`.
    pub kind: VolunteerKind,
    /// Name of the device, for people.
    pub device: String,
    /// Memory it lends, in bytes.
    pub memory_bytes: u64,
    /// How fast its device is with the run's model, rests left out.
    pub speed: Speed,
    /// Share of the time it lends, in percent, 10 to 100.
    pub throttle_percent: u8,
    /// Whether it wants to be reached through relays only.
    pub relay_only: bool,
    /// Whether it is a browser tab that nobody looks at: browsers slow these down.
    pub hidden: bool,
}

/// How long forward and backward of one block of the run's model take, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speed {
    /// For one sequence, as a part of a whole microbatch.
    pub block_us: u64,
    /// For one sequence that is a microbatch by itself: more, where work costs something whatever its size. `None` where
    /// that is not known: a whole microbatch is one sequence, or takes too long to be measured.
    pub alone_us: Option<u64>,
}

impl Speed {
    /// Of a device of which nothing else is known.
    #[must_use]
    pub const fn of(block_us: u64) -> Self {
        Self {
            block_us,
            alone_us: None,
        }
    }

    /// The same device where a sequence takes that time: because something else works on it, or does so no more.
    #[must_use]
    pub fn scaled_to(self, block_us: u64) -> Self {
        let scaled = |alone_us: u64| {
            let scaled_us = u128::from(alone_us) * u128::from(block_us);
            let scaled_us = scaled_us / u128::from(self.block_us.max(1));
            u64::try_from(scaled_us).unwrap_or(u64::MAX)
        };
        Self {
            block_us,
            alone_us: self.alone_us.map(scaled),
        }
    }

    /// What can be reckoned with, whatever a volunteer says: no time is none, and none is longer than an hour.
    #[must_use]
    pub fn sound(self) -> Self {
        let sound = |time_us: u64| time_us.clamp(1, 3_600_000_000);
        Self {
            block_us: sound(self.block_us),
            alone_us: self.alone_us.map(sound),
        }
    }
}

/// Where a volunteer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolunteerKind {
    /// The headless client.
    Native,
    /// A browser tab.
    Browser,
}

/// Why a volunteer rests: it gives up its seat as in `finish`, and stays connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pause {
    /// Its person said so.
    Asked,
    /// It runs on battery, and lends only on mains power.
    Battery,
    /// It has moved as much data today as its person allows.
    DataCap,
    /// Its device does not answer, while everything else does: it gives up its seat at once.
    Hung,
}

impl Pause {
    /// The reason, as everybody reads it.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Asked => "paused: by choice",
            Self::Battery => "paused: on battery",
            Self::DataCap => "paused: the day's data is used up",
            Self::Hung => "paused: the device does not answer",
        }
    }
}
