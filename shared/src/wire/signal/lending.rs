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
    /// Microseconds that forward and backward of one block of the run take for one sequence, rests left out.
    pub block_us: u64,
    /// Share of the time it lends, in percent, 10 to 100.
    pub throttle_percent: u8,
    /// Whether it wants to be reached through relays only.
    pub relay_only: bool,
    /// Whether it is a browser tab that nobody looks at: browsers slow these down.
    pub hidden: bool,
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
