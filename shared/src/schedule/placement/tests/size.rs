//! Many volunteers: how long placing them takes, and how far what is found lies from the best there is.

use super::*;
use crate::random::Words;
use crate::schedule::placement::search::{LIMIT_MAX, Problem};
use crate::schedule::placement::{exact, search};

/// Draws numbers for a test.
pub(super) struct Lot(pub(super) Words);

impl Lot {
    pub(super) fn below(&mut self, bound: u32) -> u64 {
        u64::from(self.0.next_word() % bound)
    }

    /// Volunteers at home, as different as they are.
    pub(super) fn volunteers(&mut self, count: u64, memory_bytes_min: u64) -> Vec<Candidate> {
        let one = |peer| Candidate {
            throttle_percent: 10 + u8::try_from(self.below(91)).expect("below 91"),
            memory_bytes: memory_bytes_min + self.below(1 << 31) * 4,
            delay_us: self.below(60_000),
            bytes_per_second: (self.below(2) == 0).then(|| 200_000 + self.below(20_000_000)),
            holds: (0..12)
                .filter(|_| self.below(50) == 0)
                .map(StageId)
                .collect(),
            ..volunteer(peer, 500 + self.below(100_000), 0)
        };
        (0..count).map(one).collect()
    }

    pub(super) fn links(&mut self, volunteers: u32, measured: u32, apart: u32) -> Links {
        let mut links = Links::default();
        for _ in 0..measured {
            let measured = Measured {
                delay_us: self.below(80_000),
                bytes_per_second: Some(100_000 + self.below(30_000_000)),
                relayed: self.below(8) == 0,
            };
            let by = PeerId(self.below(volunteers));
            links.measure(by, [(PeerId(self.below(volunteers)), measured)]);
        }
        for _ in 0..apart {
            let pair = (self.below(volunteers), self.below(volunteers));
            links.separate(PeerId(pair.0), PeerId(pair.1));
        }
        links
    }
}

#[test]
fn ten_thousand_volunteers_are_placed_within_a_second() {
    let costs = StageCosts::new(&RunConfig::preset("base").expect("a preset"));
    let mut lot = Lot(Words::new("test volunteers", &[1]));
    let volunteers = lot.volunteers(10_000, 1_000_000_000);
    let unknown = Links::default();
    let known = lot.links(10_000, 20_000, 300);
    for links in [&unknown, &known] {
        for seats_min in [1, 12] {
            let given = given(&volunteers, &costs, links, seats_min);
            let began = std::time::Instant::now();
            let line_up = assign(&given, None).expect("enough of them");
            let took = began.elapsed();
            assert!(line_up.is_possible(&given));
            assert!(took.as_secs_f64() < 1.0, "{took:?}");
        }
    }
}

/// The fastest there is, by trying all.
fn best_us(problem: &Problem<'_>) -> Option<u64> {
    let within = |us| exact::within(problem, &problem.reach(us), us);
    let mut best_us = problem.slowest_us(&within(LIMIT_MAX).ok()?);
    let mut too_fast_us = 0;
    while too_fast_us + 1 < best_us {
        let middle_us = too_fast_us + (best_us - too_fast_us) / 2;
        match within(middle_us) {
            Ok(cover) => best_us = problem.slowest_us(&cover),
            Err(_furthest) => too_fast_us = middle_us,
        }
    }
    Some(best_us)
}

/// Over how much the best there is lies what is found for eleven and twelve volunteers, in thousandths, sorted.
fn excesses(cases: u64) -> Vec<u64> {
    let mut excesses = Vec::new();
    for case in 0..cases {
        let mut lot = Lot(Words::new("test cases", &[case]));
        let count = 11 + u32::try_from(case % 2).expect("0 or 1");
        let mut volunteers = lot.volunteers(u64::from(count), 0);
        for one in &mut volunteers {
            one.memory_bytes = 200 + lot.below(700);
        }
        let costs = (0..5 + lot.below(6)).map(|_| StageCost {
            milliblocks: 500 + lot.below(2_000),
            memory_bytes: 50 + lot.below(150),
            state_bytes: 1,
        });
        let costs = StageCosts::from_stages(costs).with_border(Border {
            bytes: 20_000 + lot.below(100_000),
            sequences: 1 + lot.below(8),
            microbatches: 2 + lot.below(15),
        });
        let links = lot.links(count, 30, 4);
        let given = given(&volunteers, &costs, &links, 1);
        let everybody: Vec<&Candidate> = volunteers.iter().collect();
        let problem =
            search::Problem::new(&everybody, &given, given.floor_us(), search::Effort::WHOLE);
        let placed = assign(&given, None).ok();
        let us = placed.and_then(|line_up| line_up.slowest_us(&given));
        let best_us = best_us(&problem);
        assert_eq!(us.is_some(), best_us.is_some(), "case {case}");
        if let (Some(us), Some(best_us)) = (us, best_us) {
            excesses.push((us - best_us) * 1_000 / best_us);
        }
    }
    excesses.sort_unstable();
    excesses
}

#[test]
fn eleven_and_twelve_volunteers_are_placed_within_a_tenth_of_the_best_and_mostly_at_it() {
    let excesses = excesses(60);
    let missed = excesses.iter().filter(|excess| **excess > 0).count();
    let worst = excesses.last().copied().expect("most cases can be placed");
    println!(
        "{} cases, {missed} not the best, worst {worst} thousandths",
        excesses.len()
    );
    assert!(excesses.len() >= 40, "{}", excesses.len());
    assert!(
        missed * 6 <= excesses.len(),
        "{missed} of {}",
        excesses.len()
    );
    assert!(worst <= 100, "{excesses:?}");
}
