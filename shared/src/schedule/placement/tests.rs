//! Line-ups against brute force, random line-ups, and what a reader expects.

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::config::run::RunConfig;
use crate::random::Words;

const NO_PAIRS: BTreeSet<(PeerId, PeerId)> = BTreeSet::new();

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

fn pairs(pairs: &[(u64, u64)]) -> BTreeSet<(PeerId, PeerId)> {
    pairs.iter().map(|&(a, b)| (PeerId(a), PeerId(b))).collect()
}

fn told(
    volunteers: &[Candidate],
    costs: &StageCosts,
    apart: &[(u64, u64)],
    old: Option<&LineUp>,
    seats_min: usize,
) -> String {
    match assign(volunteers, costs, &pairs(apart), old, seats_min) {
        Ok(line_up) => {
            let mut text = String::new();
            for (peer, stages) in &line_up.seats {
                let _infallible = write!(text, "{peer}: {stages}, ");
            }
            let slowest = line_up
                .slowest_us(volunteers, costs)
                .expect("all are there");
            text + &format!("slowest {slowest} us")
        }
        Err(reason) => reason.to_string(),
    }
}

fn check(volunteers: &[Candidate], costs: &StageCosts, seats_min: usize, expected: Expect) {
    expected.assert_eq(&told(volunteers, costs, &[], None, seats_min));
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
        ..volunteer(peer, 1000, 0)
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
        expect!["4: stages 0-1, 3: stages 2-5, 1: stages 6-10, 2: stage 11, slowest 5465 us"],
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
    let lines = [
        told(&small, &costs, &[], None, 1),
        told(&small, &costs, &[], None, 3),
        told(&small[..1], &costs, &[], None, 3),
        told(&three, &even(3), &all_apart, None, 1),
        told(&three, &even(3), &all_apart[..2], None, 1),
        told(&three, &even(3), &all_apart[..1], None, 1),
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
    let placed = |block_us| told(&with(block_us), &even(2), &[], Some(&old), 1);
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
        expect!["1: stages 0-1, 4: stages 2-3, 2: stage 4, 5: stage 5, slowest 20 us"],
    );
}

#[test]
fn ten_thousand_volunteers_are_placed_within_a_second() {
    let costs = StageCosts::new(&RunConfig::preset("base").expect("a preset"));
    let mut words = Words::new("test volunteers", &[1]);
    let mut draw = |below: u32| u64::from(words.next_word() % below);
    let volunteers: Vec<Candidate> = (0..10_000)
        .map(|peer| Candidate {
            throttle_percent: 10 + u8::try_from(draw(91)).expect("below 91"),
            memory_bytes: 1_000_000_000 + draw(1 << 31) * 4,
            holds: (0..12).filter(|_| draw(50) == 0).map(StageId).collect(),
            ..volunteer(peer, 500 + draw(100_000), 0)
        })
        .collect();
    let apart = (0..300)
        .map(|_| (PeerId(draw(10_000)), PeerId(draw(10_000))))
        .collect();
    for apart in [&NO_PAIRS, &apart] {
        for seats_min in [1, 12] {
            let began = std::time::Instant::now();
            let line_up =
                assign(&volunteers, &costs, apart, None, seats_min).expect("enough of them");
            let took = began.elapsed();
            assert!(line_up.is_possible(&volunteers, &costs, apart, seats_min));
            assert!(took.as_secs_f64() < 1.0, "{took:?}");
        }
    }
}

/// Every line-up that keeps to everything, by trying all.
fn all_possible(
    volunteers: &[Candidate],
    costs: &StageCosts,
    apart: &BTreeSet<(PeerId, PeerId)>,
    seats_min: usize,
) -> Vec<LineUp> {
    let mut whole = Vec::new();
    let mut partial = vec![LineUp { seats: Vec::new() }];
    while let Some(LineUp { seats }) = partial.pop() {
        let first = seats.last().map_or(0, |(_, stages)| stages.end);
        if first == costs.all().end {
            whole.push(LineUp { seats });
            continue;
        }
        for volunteer in volunteers {
            for end in first + 1..=costs.all().end {
                let peer = volunteer.peer;
                let stages = StageRange { first, end };
                let seats = [&seats[..], &[(peer, stages)]].concat();
                partial.push(LineUp { seats });
            }
        }
    }
    whole.retain(|line_up| line_up.is_possible(volunteers, costs, apart, seats_min));
    whole
}

/// Bytes of state that seats of a line-up lack.
fn moved_bytes(line_up: &LineUp, volunteers: &[Candidate], costs: &StageCosts) -> u64 {
    let lacks = |&(peer, stages): &(PeerId, StageRange)| -> u64 {
        let found = volunteers.iter().find(|one| one.peer == peer);
        let holds = &found.expect("a volunteer of the line-up").holds;
        let missing = stages.iter().filter(|stage| !holds.contains(stage));
        let bytes = missing.map(|stage| costs.state_bytes(stage));
        bytes.sum()
    };
    line_up.seats.iter().map(lacks).sum()
}

/// A line-up by lot that keeps to everything, if the lot falls so.
fn by_lot(volunteers: &[Candidate], costs: &StageCosts, words: &mut Words) -> LineUp {
    let mut left: Vec<PeerId> = volunteers.iter().map(|one| one.peer).collect();
    let mut seats = Vec::new();
    let end_of_all = costs.all().end;
    let mut first = 0;
    while first < end_of_all && !left.is_empty() {
        let peer = left.swap_remove(words.next_word() as usize % left.len());
        let lot = words.next_word() % u32::from(end_of_all - first);
        let end = first + 1 + u16::try_from(lot).expect("below a u16");
        seats.push((peer, StageRange { first, end }));
        first = end;
    }
    LineUp { seats }
}

fn any_costs(stages: std::ops::Range<usize>) -> impl Strategy<Value = StageCosts> {
    vec((1_u64..3_000, 1_u64..300, 1_u64..30), stages).prop_map(|stages| {
        StageCosts::from_stages(stages.into_iter().map(
            |(milliblocks, memory_bytes, state_bytes)| StageCost {
                milliblocks,
                memory_bytes,
                state_bytes,
            },
        ))
    })
}

fn any_volunteers(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Candidate>> {
    let one = (1_u64..1_000, 10_u8..=100, 0_u64..1_000, any::<bool>());
    vec(one, count).prop_map(|all| {
        let numbered = (10..).zip(all);
        numbered
            .map(
                |(peer, (block_us, throttle_percent, memory_bytes, relay_only))| Candidate {
                    throttle_percent,
                    memory_bytes,
                    relay_only,
                    ..volunteer(peer, block_us, 0)
                },
            )
            .collect()
    })
}

fn with_holds(holds: BTreeSet<u16>) -> impl Fn(Candidate) -> Candidate {
    move |one| {
        let shift = u16::try_from(one.peer.0 % 5).expect("below 5");
        let holds: Vec<u16> = holds.iter().map(|stage| stage / 3 + shift).collect();
        holding(one, &holds)
    }
}

fn any_pairs() -> impl Strategy<Value = BTreeSet<(PeerId, PeerId)>> {
    btree_set((10_u64..18, 10_u64..18), 0..6).prop_map(|pairs| {
        pairs
            .into_iter()
            .map(|(a, b)| (PeerId(a), PeerId(b)))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn few_volunteers_are_placed_as_well_as_by_trying_all(
        volunteers in any_volunteers(1..5),
        costs in any_costs(1..5),
        apart in any_pairs(),
        seats_min in 1_usize..4,
    ) {
        let placed = assign(&volunteers, &costs, &apart, None, seats_min).ok();
        let us = placed.and_then(|line_up| line_up.slowest_us(&volunteers, &costs));
        let all = all_possible(&volunteers, &costs, &apart, seats_min);
        let best_us = all.iter().filter_map(|other| other.slowest_us(&volunteers, &costs)).min();
        prop_assert_eq!(us, best_us);
    }

    #[test]
    fn as_little_state_moves_as_costs_at_most_a_tenth_of_the_speed(
        volunteers in any_volunteers(1..5),
        costs in any_costs(1..5),
        holds in btree_set(0_u16..24, 1..8),
        lot in any::<u64>(),
    ) {
        let volunteers: Vec<Candidate> = volunteers.into_iter().map(with_holds(holds)).collect();
        prop_assume!(volunteers.iter().any(|one| !one.holds.is_empty()));
        let old = by_lot(&volunteers, &costs, &mut Words::new("test", &[lot]));
        let all = all_possible(&volunteers, &costs, &NO_PAIRS, 1);
        let us = |line_up: &LineUp| line_up.slowest_us(&volunteers, &costs).expect("all are there");
        if let Some(best_us) = all.iter().map(us).min() {
            let placed = assign(&volunteers, &costs, &NO_PAIRS, Some(&old), 1).expect("possible");
            let near = |line_up: &&LineUp| us(line_up) * 100 <= best_us * 110;
            prop_assert!(near(&&placed));
            if all.iter().filter(near).any(|other| *other == old) {
                prop_assert_eq!(placed, old);
            } else {
                let moved = |line_up: &LineUp| moved_bytes(line_up, &volunteers, &costs);
                prop_assert_eq!(Some(moved(&placed)), all.iter().filter(near).map(moved).min());
            }
        }
    }

    #[test]
    fn every_line_up_keeps_to_all_limits_whatever_is_held_and_seated(
        volunteers in any_volunteers(1..40),
        costs in any_costs(1..14),
        apart in any_pairs(),
        seats_min in 1_usize..4,
        holds in btree_set(0_u16..24, 0..8),
        lot in any::<u64>(),
    ) {
        let volunteers: Vec<Candidate> = volunteers.into_iter().map(with_holds(holds)).collect();
        let old = by_lot(&volunteers, &costs, &mut Words::new("test", &[lot]));
        if let Ok(line_up) = assign(&volunteers, &costs, &apart, Some(&old), seats_min) {
            prop_assert!(line_up.is_possible(&volunteers, &costs, &apart, seats_min));
        } else {
            prop_assert!(!old.is_possible(&volunteers, &costs, &apart, seats_min));
        }
    }

    #[test]
    fn no_line_up_by_lot_is_faster(
        volunteers in any_volunteers(1..30),
        costs in any_costs(1..10),
        apart in any_pairs(),
        lot in any::<u64>(),
    ) {
        let placed = assign(&volunteers, &costs, &apart, None, 1);
        let us = placed.ok().and_then(|line_up| line_up.slowest_us(&volunteers, &costs));
        let mut words = Words::new("test lot", &[lot]);
        for _ in 0..1_000 {
            let other = by_lot(&volunteers, &costs, &mut words);
            if other.is_possible(&volunteers, &costs, &apart, 1) {
                let other_us = other.slowest_us(&volunteers, &costs).expect("all are there");
                prop_assert!(us.is_some_and(|us| us <= other_us), "{us:?} > {other_us}: {other:?}");
            }
        }
    }

    #[test]
    fn the_order_in_which_volunteers_are_named_does_not_matter(
        volunteers in any_volunteers(1..30),
        costs in any_costs(1..10),
        apart in any_pairs(),
        holds in btree_set(0_u16..24, 0..8),
        turn in any::<prop::sample::Index>(),
    ) {
        // Equal figures, so that ties are what decides.
        let volunteers: Vec<Candidate> = volunteers
            .into_iter()
            .map(|one| Candidate { block_us: one.block_us % 3 + 1, throttle_percent: 100, ..one })
            .map(with_holds(holds))
            .collect();
        let mut turned = volunteers.clone();
        turned.rotate_left(turn.index(volunteers.len()));
        turned.reverse();
        prop_assert_eq!(
            assign(&volunteers, &costs, &apart, None, 1),
            assign(&turned, &costs, &apart, None, 1)
        );
    }

    #[test]
    fn one_more_volunteer_never_makes_the_pipe_slower(
        volunteers in any_volunteers(2..8),
        costs in any_costs(1..8),
    ) {
        let us = |volunteers: &[Candidate]| {
            let placed = assign(volunteers, &costs, &NO_PAIRS, None, 1).ok()?;
            placed.slowest_us(volunteers, &costs)
        };
        if let Some(fewer_us) = us(&volunteers[1..]) {
            prop_assert!(us(&volunteers).is_some_and(|us| us <= fewer_us));
        }
    }
}
