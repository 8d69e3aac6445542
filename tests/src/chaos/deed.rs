//! What happens, drawn from a seed: which kind of fault, to whom, and for how long.
//!
//! The draw knows nothing of the run: the same seed gives the same deeds at the same times. Whom a pick means depends on
//! who is there then. Each kind comes once before any comes again. Begin with [`draw`].

use std::time::Duration;

use fastrand::Rng;

/// A fault, and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A volunteer is killed, and comes again with its key.
    Kill,
    /// A volunteer stands still, and goes on.
    Freeze,
    /// A volunteer's cable is pulled, and plugged in again.
    Partition,
    /// The host is killed, and started over its store.
    Host,
    /// A tab is closed, and a new one of the same browser lends.
    Tab,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Self; 5] = [
        Self::Kill,
        Self::Freeze,
        Self::Partition,
        Self::Host,
        Self::Tab,
    ];

    /// How long it lasts at least and at most, in seconds. What is shorter than any patience is meant to be, too.
    const fn seconds(self) -> (u64, u64) {
        match self {
            Self::Kill | Self::Tab => (2, 8),
            Self::Freeze | Self::Partition => (2, 14),
            Self::Host => (1, 6),
        }
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deed {
    /// When, since the beginning.
    pub(super) at: Duration,
    /// What.
    pub(super) kind: Kind,
    /// To somebody with a seat, if there is one of that kind.
    pub(super) seated: bool,
    /// To whom, of those who are there.
    pub(super) pick: usize,
    /// How long.
    pub(super) away: Duration,
}

/// Deeds of `kinds` at each multiple of `every` below `time`; each is over before the next one.
///
/// # Panics
/// There is no kind.
#[must_use]
pub(super) fn draw(seed: u64, time: Duration, every: Duration, kinds: &[Kind]) -> Vec<Deed> {
    assert!(!kinds.is_empty(), "something happens");
    let mut random = Rng::with_seed(seed);
    let mut bag = Vec::new();
    let mut deeds = Vec::new();
    let mut at = every;
    while at < time {
        if bag.is_empty() {
            bag.extend_from_slice(kinds);
            random.shuffle(&mut bag);
        }
        let kind = bag.pop().expect("it was filled");
        let (least, most) = kind.seconds();
        let most = most.min(every.as_secs().saturating_sub(1)).max(least);
        deeds.push(Deed {
            at,
            kind,
            // Spares fail, too, but it is seats that hurt.
            seated: random.u8(0..4) > 0,
            pick: random.usize(0..1_000),
            away: Duration::from_secs(random.u64(least..=most)),
        });
        at += every;
    }
    deeds
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::{Kind, draw};

    const TIME: Duration = Duration::from_secs(600);
    const EVERY: Duration = Duration::from_secs(20);

    #[test]
    fn a_seed_draws_the_same_deeds_again_and_another_one_others() {
        let deeds = draw(1, TIME, EVERY, &Kind::ALL);
        assert_eq!(deeds, draw(1, TIME, EVERY, &Kind::ALL));
        assert_ne!(deeds, draw(2, TIME, EVERY, &Kind::ALL));
        assert_eq!(deeds.len(), 29);
    }

    #[test]
    fn every_kind_comes_before_any_comes_again_and_each_deed_is_over_before_the_next() {
        let deeds = draw(3, TIME, EVERY, &Kind::ALL);
        for five in deeds.chunks_exact(Kind::ALL.len()) {
            let kinds: BTreeSet<Kind> = five.iter().map(|deed| deed.kind).collect();
            assert_eq!(kinds.len(), Kind::ALL.len());
        }
        assert!(deeds.iter().all(|deed| deed.away < EVERY));
        assert!(deeds.iter().any(|deed| deed.seated) && deeds.iter().any(|deed| !deed.seated));
    }
}
