//! Whether a volunteer rests, and why: what its person wants, the machine's power, the day's data.
//!
//! One place decides, and says so only when the answer changes. [`DayKeeper`] says when the day's data is to be written down.

use shared::units::{Span, Time};
use shared::wire::signal::Pause;

use crate::messages::Settings;

/// The day's data is written down so often, while it grows.
const KEEP_EVERY: Span = Span::from_secs(10);
/// ... and whenever it has grown by so much: a tab that is killed forgets no more than that of a cap.
const KEEP_BYTES: u64 = 1_000_000;

/// What decides whether this machine lends right now.
#[derive(Clone, Debug, Default)]
pub struct Lending {
    /// Whether the person pressed pause.
    asked: bool,
    only_on_mains: bool,
    /// What the browser told of the power, if it did.
    on_mains: Option<bool>,
    day_bytes_max: Option<u64>,
    day: Day,
    told: Option<Pause>,
}

/// Bytes that were moved on one day, sent and received together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Day {
    /// Days since 1970, UTC.
    pub number: u64,
    /// What was moved on it.
    pub bytes: u64,
}

impl Day {
    /// Adds what was moved on day `number`.
    pub fn add(&mut self, number: u64, bytes: u64) {
        if self.number != number {
            *self = Self { number, bytes: 0 };
        }
        self.bytes += bytes;
    }
}

/// When the day's data is to be written down: neither a reload nor the end of a tab lets a cap begin anew.
#[derive(Clone, Copy, Debug)]
pub struct DayKeeper {
    kept: Day,
    at: Time,
}

impl DayKeeper {
    /// `kept` is what lies in storage `now`.
    #[must_use]
    pub fn new(now: Time, kept: Day) -> Self {
        Self { kept, at: now }
    }

    /// Whether `day` is to be written now; then it counts as written. `at_once` where no moment may be lost.
    pub fn due(&mut self, now: Time, day: Day, at_once: bool) -> bool {
        let same_day = day.number == self.kept.number;
        let grown = day.bytes.saturating_sub(self.kept.bytes) >= KEEP_BYTES;
        let due = at_once || !same_day || grown || now.since(self.at) >= KEEP_EVERY;
        let due = due && day != self.kept;
        if due {
            *self = Self::new(now, day);
        }
        due
    }
}

impl Lending {
    /// Somebody who lends under these settings, after an earlier visit's data.
    #[must_use]
    pub fn new(settings: &Settings, on_mains: Option<bool>, day: Day) -> Self {
        let mut lending = Self {
            on_mains,
            day,
            ..Self::default()
        };
        lending.set(settings);
        lending
    }

    /// The person pressed pause, or resume.
    pub fn ask(&mut self, pause: bool) {
        self.asked = pause;
    }

    /// The person changed something.
    pub fn set(&mut self, settings: &Settings) {
        self.only_on_mains = settings.only_on_mains;
        self.day_bytes_max = settings.day_bytes_max;
    }

    /// The browser tells of the power.
    pub fn power(&mut self, on_mains: bool) {
        self.on_mains = Some(on_mains);
    }

    /// So many bytes were moved on day `number`.
    pub fn moved(&mut self, number: u64, bytes: u64) {
        self.day.add(number, bytes);
    }

    /// The day's data so far.
    #[must_use]
    pub fn day(&self) -> Day {
        self.day
    }

    /// Why it rests now, if it does.
    #[must_use]
    pub fn pause(&self) -> Option<Pause> {
        if self.asked {
            Some(Pause::Asked)
        } else if self.only_on_mains && self.on_mains == Some(false) {
            Some(Pause::Battery)
        } else if self
            .day_bytes_max
            .is_some_and(|most| self.day.bytes >= most)
        {
            Some(Pause::DataCap)
        } else {
            None
        }
    }

    /// What the driver should be told, if the answer is another than last time.
    pub fn news(&mut self) -> Option<Option<Pause>> {
        let pause = self.pause();
        (std::mem::replace(&mut self.told, pause) != pause).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            only_on_mains: true,
            day_bytes_max: Some(100),
            ..Settings::default()
        }
    }

    #[test]
    fn each_reason_is_told_once_and_the_person_comes_first() {
        let mut lending = Lending::new(&settings(), None, Day::default());
        assert_eq!(lending.news(), None, "nothing is known of the power");
        lending.power(false);
        assert_eq!(lending.news(), Some(Some(Pause::Battery)));
        assert_eq!(lending.news(), None);
        lending.ask(true);
        assert_eq!(lending.news(), Some(Some(Pause::Asked)));
        lending.ask(false);
        lending.power(true);
        assert_eq!(lending.news(), Some(None));
    }

    #[test]
    fn a_days_data_counts_over_visits_and_not_over_midnight() {
        let before = Day {
            number: 20_000,
            bytes: 60,
        };
        let mut lending = Lending::new(&settings(), Some(true), before);
        lending.moved(20_000, 39);
        assert_eq!(lending.pause(), None);
        lending.moved(20_000, 1);
        assert_eq!(lending.pause(), Some(Pause::DataCap));
        lending.moved(20_001, 0);
        assert_eq!(lending.pause(), None);
    }

    #[test]
    fn a_days_data_is_written_down_as_it_grows() {
        let day = |bytes| Day { number: 3, bytes };
        let at = |seconds| Time::ZERO + Span::from_secs(seconds);
        let mut keeper = DayKeeper::new(at(0), day(5));
        assert!(!keeper.due(at(60), day(5), true), "it lies there already");
        assert!(!keeper.due(at(1), day(6), false));
        assert!(keeper.due(at(1), day(6), true), "at once");
        assert!(keeper.due(at(2), day(6 + KEEP_BYTES), false), "it grew");
        assert!(!keeper.due(at(11), day(7 + KEEP_BYTES), false));
        assert!(
            keeper.due(at(12), day(7 + KEEP_BYTES), false),
            "time passed"
        );
        let next = Day {
            number: 4,
            bytes: 0,
        };
        assert!(keeper.due(at(12), next, false), "another day");
    }

    #[test]
    fn a_higher_cap_ends_the_rest() {
        let mut lending = Lending::new(&settings(), Some(true), Day::default());
        lending.moved(1, 500);
        assert_eq!(lending.news(), Some(Some(Pause::DataCap)));
        lending.set(&Settings {
            day_bytes_max: None,
            ..settings()
        });
        assert_eq!(lending.news(), Some(None));
    }
}
