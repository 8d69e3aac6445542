//! Whether a volunteer rests, and why: what its person wants, the machine's power, the day's data.
//!
//! One place decides, and says so only when the answer changes.

use shared::wire::signal::Pause;

use crate::messages::Settings;

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
