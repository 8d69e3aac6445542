//! Line-ups against brute force, random line-ups, and what a reader expects.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use expect_test::{Expect, expect};

use super::*;
use crate::config::run::RunConfig;
use crate::units::PipelineId;

/// Stages of one block and 100 bytes each.
fn even(stages: usize) -> StageCosts {
    StageCosts::from_stages(std::iter::repeat_n(
        StageCost {
            milliblocks: 1000,
            memory_bytes: 100,
            state_bytes: 10,
        },
        stages,
    ))
}

/// A volunteer with room for `stages` stages of [`even`] costs.
fn volunteer(peer: u64, block_us: u64, stages: u64) -> Candidate {
    Candidate {
        peer: PeerId(peer),
        block_us,
        throttle_percent: 100,
        memory_bytes: 100 * stages,
        relay_only: false,
        delay_us: 0,
        bytes_per_second: None,
        holds: BTreeSet::new(),
    }
}

fn holding(mut volunteer: Candidate, stages: &[u16]) -> Candidate {
    volunteer.holds = stages.iter().copied().map(StageId).collect();
    volunteer
}

fn line_up_of(seats: &[(u64, u16, u16)]) -> LineUp {
    let seat = |&(peer, first, end)| (PeerId(peer), StageRange { first, end });
    LineUp {
        seats: seats.iter().map(seat).collect(),
    }
}

/// Links of which nothing is known but that some can't be made.
fn apart(pairs: &[(u64, u64)]) -> Links {
    let mut links = Links::default();
    for &(a, b) in pairs {
        links.separate(PeerId(a), PeerId(b));
    }
    links
}

fn given<'a>(
    volunteers: &'a [Candidate],
    costs: &'a StageCosts,
    links: &'a Links,
    seats_min: usize,
) -> Given<'a> {
    Given {
        volunteers,
        costs,
        links,
        seats_min,
    }
}

fn told(given: &Given<'_>, old: Option<&LineUp>) -> String {
    match assign(given, old) {
        Ok(line_up) => {
            let mut text = String::new();
            for (peer, stages) in &line_up.seats {
                let _infallible = write!(text, "{peer}: {stages}, ");
            }
            let slowest = line_up.slowest_us(given).expect("all are there");
            text + &format!("slowest {slowest} us")
        }
        Err(reason) => reason.to_string(),
    }
}

fn check(volunteers: &[Candidate], costs: &StageCosts, seats_min: usize, expected: Expect) {
    let links = Links::default();
    expected.assert_eq(&told(&given(volunteers, costs, &links, seats_min), None));
}

#[test]
fn a_single_volunteer_holds_all_stages_if_its_memory_allows() {
    check(
        &[volunteer(1, 10, 4)],
        &even(4),
        1,
        expect!["1: stages 0-3, slowest 40 us"],
    );
    check(
        &[volunteer(1, 10, 3)],
        &even(4),
        1,
        expect!["waiting for 1 more volunteer (stage 3 needs 1 MB)"],
    );
    check(&[], &even(4), 1, expect!["waiting for 1 more volunteer"]);
}

#[test]
fn equal_volunteers_share_equally_and_faster_ones_take_more() {
    let equal: Vec<Candidate> = (1..=4).map(|peer| volunteer(peer, 10, 4)).collect();
    check(
        &equal,
        &even(4),
        1,
        expect!["4: stage 0, 3: stage 1, 2: stage 2, 1: stage 3, slowest 10 us"],
    );
    check(
        &equal,
        &even(12),
        1,
        expect!["4: stages 0-2, 3: stages 3-5, 2: stages 6-8, 1: stages 9-11, slowest 30 us"],
    );
    let mixed = [
        volunteer(1, 30, 9),
        volunteer(2, 10, 9),
        volunteer(3, 15, 9),
    ];
    check(
        &mixed,
        &even(6),
        1,
        expect!["1: stage 0, 3: stages 1-2, 2: stages 3-5, slowest 30 us"],
    );
}

#[test]
fn volunteers_that_would_slow_the_pipe_down_stay_spares() {
    let mut volunteers = vec![volunteer(1, 1, 4)];
    volunteers.extend((2..9).map(|peer| volunteer(peer, 10, 4)));
    check(
        &volunteers,
        &even(4),
        1,
        expect!["1: stages 0-3, slowest 4 us"],
    );
    check(
        &volunteers,
        &even(4),
        3,
        expect!["3: stage 0, 2: stage 1, 1: stages 2-3, slowest 10 us"],
    );
}

#[test]
fn throttle_and_relay_count_as_slowness() {
    let half = Candidate {
        throttle_percent: 50,
        ..volunteer(1, 10, 4)
    };
    let relayed = Candidate {
        relay_only: true,
        ..volunteer(2, 10, 4)
    };
    check(
        &[half.clone(), volunteer(3, 10, 4)],
        &even(3),
        1,
        expect!["1: stage 0, 3: stages 1-2, slowest 20 us"],
    );
    check(
        &[half, relayed],
        &even(3),
        1,
        expect!["1: stage 0, 2: stages 1-2, slowest 23 us"],
    );
}

#[test]
fn the_heavy_ends_go_to_those_who_can_carry_them() {
    let costs = StageCosts::new(&RunConfig::preset("base").expect("a preset"));
    let gigabytes = |peer, memory: u64| Candidate {
        memory_bytes: memory * 1_000_000_000,
        ..volunteer(peer, 20_000, 0)
    };
    let volunteers = [
        gigabytes(1, 16),
        gigabytes(2, 9),
        gigabytes(3, 9),
        gigabytes(4, 9),
    ];
    check(
        &volunteers,
        &costs,
        1,
        expect!["4: stages 0-2, 3: stages 3-6, 2: stages 7-10, 1: stage 11, slowest 109300 us"],
    );
}

#[test]
fn what_is_waited_for_is_told_in_words() {
    let costs = StageCosts::from_stages([800_000_000, 900_000_000, 3_100_000_000].map(
        |memory_bytes| StageCost {
            milliblocks: 1000,
            memory_bytes,
            state_bytes: 1,
        },
    ));
    let gigabytes = |peer, memory_bytes| Candidate {
        memory_bytes,
        ..volunteer(peer, 10, 0)
    };
    let small = [gigabytes(1, 2_000_000_000), gigabytes(2, 2_000_000_000)];
    let three = [volunteer(1, 1, 1), volunteer(2, 1, 1), volunteer(3, 1, 1)];
    let all_apart = [(1, 2), (3, 2), (1, 3)];
    let told = |volunteers: &[Candidate], costs: &StageCosts, pairs: &[(u64, u64)], seats_min| {
        told(&given(volunteers, costs, &apart(pairs), seats_min), None)
    };
    let lines = [
        told(&small, &costs, &[], 1),
        told(&small, &costs, &[], 3),
        told(&small[..1], &costs, &[], 3),
        told(&three, &even(3), &all_apart, 1),
        told(&three, &even(3), &all_apart[..2], 1),
        told(&three, &even(3), &all_apart[..1], 1),
    ];
    expect![[r#"
        waiting for 1 more volunteer (stage 2 needs 3.1 GB)
        waiting for 1 more volunteer
        waiting for 2 more volunteers
        waiting for 1 more volunteer (some of those here cannot connect with each other)
        waiting for 1 more volunteer (some of those here cannot connect with each other)
        2: stage 0, 3: stage 1, 1: stage 2, slowest 1 us"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn an_old_line_up_stays_unless_the_gain_is_over_a_tenth() {
    let old = line_up_of(&[(1, 0, 1), (2, 1, 2)]);
    let with = |block_us| {
        [
            volunteer(1, 100, 4),
            volunteer(2, block_us, 4),
            volunteer(3, 100, 4),
        ]
    };
    let placed = |block_us| {
        let volunteers = with(block_us);
        told(
            &given(&volunteers, &even(2), &Links::default(), 1),
            Some(&old),
        )
    };
    expect!["1: stage 0, 2: stage 1, slowest 110 us"].assert_eq(&placed(110));
    expect!["3: stage 0, 1: stage 1, slowest 100 us"].assert_eq(&placed(111));
}

#[test]
fn a_lost_seat_goes_to_who_holds_its_state() {
    let volunteers = [
        holding(volunteer(1, 10, 4), &[0, 1]),
        volunteer(2, 10, 4),
        volunteer(3, 10, 4),
        holding(volunteer(4, 10, 4), &[2, 3]),
        holding(volunteer(5, 11, 4), &[4, 5]),
    ];
    check(
        &volunteers,
        &even(6),
        1,
        expect!["1: stages 0-1, 4: stages 2-3, 5: stages 4-5, slowest 22 us"],
    );
    let slow = holding(volunteer(5, 12, 4), &[4, 5]);
    let volunteers = [&volunteers[..4], &[slow]].concat();
    check(
        &volunteers,
        &even(6),
        1,
        expect!["1: stages 0-1, 4: stages 2-3, 5: stage 4, 2: stage 5, slowest 20 us"],
    );
}

/// Two stages that a lone volunteer computes in 20 ms, over whose border go 100 kB a sequence.
fn told_over(links: &Links, volunteers: &[Candidate]) -> String {
    let costs = even(2).with_border(Border {
        bytes: 400_000,
        sequences: 4,
        microbatches: 8,
    });
    told(&given(volunteers, &costs, links, 1), None)
}

#[test]
fn a_pipeline_is_split_only_over_links_that_are_worth_it() {
    let measured = |delay_us, bytes_per_second, relayed| {
        let figures = Measured {
            delay_us,
            bytes_per_second: Some(bytes_per_second),
            relayed,
        };
        let mut links = Links::default();
        links.measure(PeerId(1), [(PeerId(2), figures)]);
        links
    };
    let at_home = |delay_us, bytes_per_second| {
        [1, 2].map(|peer| Candidate {
            delay_us,
            bytes_per_second,
            ..volunteer(peer, 10_000, 2)
        })
    };
    let near = at_home(0, None);
    let lines = [
        told_over(&Links::default(), &near),
        told_over(&measured(0, 8_000_000, false), &near),
        told_over(&measured(0, 8_000_000, true), &near),
        told_over(&measured(0, 4_000_000, false), &near),
        told_over(&measured(80_000, 8_000_000, false), &near),
        told_over(&measured(80_000, 40_000_000, false), &near),
        told_over(&Links::default(), &at_home(40_000, Some(40_000_000))),
        told_over(&Links::default(), &at_home(0, Some(4_000_000))),
        told_over(
            &measured(0, 40_000_000, false),
            &at_home(0, Some(4_000_000)),
        ),
    ];
    expect![[r#"
        2: stage 0, 1: stage 1, slowest 10000 us
        2: stage 0, 1: stage 1, slowest 12500 us
        2: stage 0, 1: stage 1, slowest 14063 us
        1: stages 0-1, slowest 20000 us
        2: stage 0, 1: stage 1, slowest 17500 us
        2: stage 0, 1: stage 1, slowest 10000 us
        2: stage 0, 1: stage 1, slowest 10000 us
        1: stages 0-1, slowest 20000 us
        2: stage 0, 1: stage 1, slowest 10000 us"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn a_slow_link_is_placed_around() {
    let slow = Measured {
        delay_us: 10_000,
        bytes_per_second: Some(500_000),
        relayed: false,
    };
    let mut links = Links::default();
    links.measure(PeerId(1), [(PeerId(2), slow)]);
    let costs = even(3).with_border(Border {
        bytes: 40_000,
        sequences: 4,
        microbatches: 8,
    });
    let three = [1, 2, 3].map(|peer| volunteer(peer, 10_000, 1));
    let around = told(&given(&three, &costs, &links, 1), None);
    let anyway = told(
        &given(
            &three[..2],
            &even(2).with_border(*costs.border()),
            &links,
            2,
        ),
        None,
    );
    expect![[r#"
        2: stage 0, 3: stage 1, 1: stage 2, slowest 10000 us
        2: stage 0, 1: stage 1, slowest 20625 us"#]]
    .assert_eq(&format!("{around}\n{anyway}"));
}

mod many;
mod many_properties;
mod many_size;
mod properties;
mod size;
