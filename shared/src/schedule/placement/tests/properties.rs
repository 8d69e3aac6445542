//! What holds for any volunteers, stages and links: against all line-ups where they can be counted, else by lot.

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::random::Words;

/// Every line-up that keeps to everything, by trying all.
fn all_possible(given: &Given<'_>) -> Vec<LineUp> {
    let mut whole = Vec::new();
    let mut partial = vec![LineUp { seats: Vec::new() }];
    while let Some(LineUp { seats }) = partial.pop() {
        let first = seats.last().map_or(0, |(_, stages)| stages.end);
        if first == given.costs.all().end {
            whole.push(LineUp { seats });
            continue;
        }
        for volunteer in given.volunteers {
            if seats.iter().any(|(peer, _)| *peer == volunteer.peer) {
                continue;
            }
            for end in first + 1..=given.costs.all().end {
                let peer = volunteer.peer;
                let stages = StageRange { first, end };
                let seats = [&seats[..], &[(peer, stages)]].concat();
                partial.push(LineUp { seats });
            }
        }
    }
    whole.retain(|line_up| line_up.is_possible(given));
    whole
}

/// Bytes of state that seats of a line-up lack.
fn moved_bytes(line_up: &LineUp, given: &Given<'_>) -> u64 {
    let lacks = |&(peer, stages): &(PeerId, StageRange)| -> u64 {
        let holds = &given.find(peer).expect("a volunteer of the line-up").holds;
        let missing = stages.iter().filter(|stage| !holds.contains(stage));
        let bytes = missing.map(|stage| given.costs.state_bytes(stage));
        bytes.sum()
    };
    line_up.seats.iter().map(lacks).sum()
}

/// A line-up by lot; whether it keeps to everything is by lot, too.
fn by_lot(given: &Given<'_>, words: &mut Words) -> LineUp {
    let mut left: Vec<PeerId> = given.volunteers.iter().map(|one| one.peer).collect();
    let mut seats = Vec::new();
    let end_of_all = given.costs.all().end;
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

pub(super) fn any_costs(stages: std::ops::Range<usize>) -> impl Strategy<Value = StageCosts> {
    let stages = vec((1_u64..3_000, 1_u64..300, 1_u64..30), stages);
    (stages, 0_u64..100_000, 1_u64..9, 1_u64..17).prop_map(
        |(stages, bytes, sequences, microbatches)| {
            let stages = stages
                .into_iter()
                .map(|(milliblocks, memory_bytes, state_bytes)| StageCost {
                    milliblocks,
                    memory_bytes,
                    state_bytes,
                });
            StageCosts::from_stages(stages).with_border(Border {
                bytes,
                sequences,
                microbatches,
            })
        },
    )
}

/// Numbered from 10 on.
pub(super) fn any_volunteers(
    count: std::ops::Range<usize>,
) -> impl Strategy<Value = Vec<Candidate>> {
    let figures = (1_u64..1_000, 10_u8..=100, 0_u64..1_000, any::<bool>());
    let to_host = (0_u64..50_000, proptest::option::of(100_000_u64..50_000_000));
    vec((figures, to_host), count).prop_map(|all| {
        let numbered = (10..).zip(all);
        let volunteer = |(peer, (figures, (delay_us, bytes_per_second)))| {
            let (block_us, throttle_percent, memory_bytes, relay_only) = figures;
            Candidate {
                throttle_percent,
                memory_bytes,
                relay_only,
                delay_us,
                bytes_per_second,
                ..volunteer(peer, block_us, 0)
            }
        };
        numbered.map(volunteer).collect()
    })
}

/// Some links measured, by one end or both, and some that can't be made.
pub(super) fn any_links(last: u64) -> impl Strategy<Value = Links> {
    let pair = move || (10..=last, 10..=last);
    let measured = (
        0_u64..100_000,
        proptest::option::of(50_000_u64..50_000_000),
        any::<bool>(),
    );
    let measured = vec((pair(), measured), 0..12);
    (measured, vec(pair(), 0..6)).prop_map(|(measured, apart)| {
        let mut links = super::apart(&apart);
        for ((by, other), (delay_us, bytes_per_second, relayed)) in measured {
            let measured = Measured {
                delay_us,
                bytes_per_second,
                relayed,
            };
            links.measure(PeerId(by), [(PeerId(other), measured)]);
        }
        links
    })
}

pub(super) fn with_holds(holds: BTreeSet<u16>) -> impl Fn(Candidate) -> Candidate {
    move |one| {
        let shift = u16::try_from(one.peer.0 % 5).expect("below 5");
        let holds: Vec<u16> = holds.iter().map(|stage| stage / 3 + shift).collect();
        holding(one, &holds)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn few_volunteers_are_placed_as_well_as_by_trying_all(
        volunteers in any_volunteers(1..6),
        costs in any_costs(1..6),
        links in any_links(15),
        seats_min in 1_usize..4,
    ) {
        let given = given(&volunteers, &costs, &links, seats_min);
        let placed = assign(&given, None).ok();
        let us = placed.and_then(|line_up| line_up.slowest_us(&given));
        let all = all_possible(&given);
        let best_us = all.iter().filter_map(|other| other.slowest_us(&given)).min();
        prop_assert_eq!(us, best_us);
        prop_assert!(best_us.is_none_or(|us| given.floor_us() <= us));
    }

    #[test]
    fn as_little_state_moves_as_costs_at_most_a_tenth_of_the_speed(
        volunteers in any_volunteers(1..6),
        costs in any_costs(1..6),
        links in any_links(15),
        holds in btree_set(0_u16..24, 1..8),
        lot in any::<u64>(),
    ) {
        let volunteers: Vec<Candidate> = volunteers.into_iter().map(with_holds(holds)).collect();
        prop_assume!(volunteers.iter().any(|one| !one.holds.is_empty()));
        let given = given(&volunteers, &costs, &links, 1);
        let old = by_lot(&given, &mut Words::new("test", &[lot]));
        let all = all_possible(&given);
        let us = |line_up: &LineUp| line_up.slowest_us(&given).expect("all are there");
        if let Some(best_us) = all.iter().map(us).min() {
            let placed = assign(&given, Some(&old)).expect("possible");
            let near = |line_up: &&LineUp| us(line_up) * 100 <= best_us * 110;
            prop_assert!(near(&&placed));
            if all.iter().filter(near).any(|other| *other == old) {
                prop_assert_eq!(placed, old);
            } else {
                let moved = |line_up: &LineUp| moved_bytes(line_up, &given);
                prop_assert_eq!(Some(moved(&placed)), all.iter().filter(near).map(moved).min());
            }
        }
    }

    #[test]
    fn every_line_up_keeps_to_all_limits_whatever_is_held_and_seated(
        volunteers in any_volunteers(1..40),
        costs in any_costs(1..14),
        links in any_links(25),
        seats_min in 1_usize..4,
        holds in btree_set(0_u16..24, 0..8),
        lot in any::<u64>(),
    ) {
        let volunteers: Vec<Candidate> = volunteers.into_iter().map(with_holds(holds)).collect();
        let given = given(&volunteers, &costs, &links, seats_min);
        let old = by_lot(&given, &mut Words::new("test", &[lot]));
        if let Ok(line_up) = assign(&given, Some(&old)) {
            prop_assert!(line_up.is_possible(&given));
        } else {
            prop_assert!(!old.is_possible(&given));
        }
    }

    #[test]
    fn no_line_up_by_lot_is_faster(
        volunteers in any_volunteers(1..60),
        costs in any_costs(1..16),
        links in any_links(40),
        lot in any::<u64>(),
    ) {
        let given = given(&volunteers, &costs, &links, 1);
        let placed = assign(&given, None);
        let us = placed.ok().and_then(|line_up| line_up.slowest_us(&given));
        let mut words = Words::new("test lot", &[lot]);
        for _ in 0..1_000 {
            let other = by_lot(&given, &mut words);
            if other.is_possible(&given) {
                let other_us = other.slowest_us(&given).expect("all are there");
                prop_assert!(us.is_some_and(|us| us <= other_us), "{us:?} > {other_us}: {other:?}");
            }
        }
    }

    #[test]
    fn the_order_in_which_volunteers_are_named_does_not_matter(
        volunteers in any_volunteers(1..30),
        costs in any_costs(1..10),
        links in any_links(20),
        holds in btree_set(0_u16..24, 0..8),
        turn in any::<prop::sample::Index>(),
    ) {
        // Equal figures, so that ties are what decides.
        let volunteers: Vec<Candidate> = volunteers
            .into_iter()
            .map(|one| Candidate {
                block_us: one.block_us % 3 + 1,
                throttle_percent: 100,
                delay_us: one.delay_us % 3,
                ..one
            })
            .map(with_holds(holds))
            .collect();
        let mut turned = volunteers.clone();
        turned.rotate_left(turn.index(volunteers.len()));
        turned.reverse();
        prop_assert_eq!(
            assign(&given(&volunteers, &costs, &links, 1), None),
            assign(&given(&turned, &costs, &links, 1), None)
        );
    }

    #[test]
    fn one_more_volunteer_never_makes_the_pipe_slower(
        volunteers in any_volunteers(2..9),
        costs in any_costs(1..8),
        links in any_links(18),
    ) {
        let us = |volunteers: &[Candidate]| {
            let given = given(volunteers, &costs, &links, 1);
            assign(&given, None).ok()?.slowest_us(&given)
        };
        if let Some(fewer_us) = us(&volunteers[1..]) {
            prop_assert!(us(&volunteers).is_some_and(|us| us <= fewer_us));
        }
    }

    #[test]
    fn who_is_forgotten_leaves_nothing_behind(
        pairs in vec((10_u64..16, 10_u64..16, any::<bool>()), 0..20),
    ) {
        let mut links = Links::default();
        for (a, b, is_apart) in pairs {
            let measured = Measured { delay_us: 1, bytes_per_second: None, relayed: false };
            match is_apart {
                true => links.separate(PeerId(a), PeerId(b)),
                false => links.measure(PeerId(a), [(PeerId(b), measured)]),
            }
        }
        (10..16).for_each(|peer| links.forget(PeerId(peer)));
        prop_assert_eq!(links, Links::default());
    }
}
