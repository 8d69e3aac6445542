//! What holds for several pipelines, whatever the volunteers, stages and links.

use proptest::collection::btree_set;
use proptest::prelude::*;

use super::properties::{any_costs, any_links, any_volunteers, with_holds};
use super::*;
use crate::random::Words;

type LineUps = BTreeMap<PipelineId, LineUp>;

/// Samples a microsecond of a run.
pub(super) fn rate_of(line_ups: &LineUps, given: &Given<'_>) -> f64 {
    let known: BTreeMap<PeerId, &Candidate> =
        given.volunteers.iter().map(|one| (one.peer, one)).collect();
    let rate = |line_up: &LineUp| {
        let seated = line_up.seats.iter().map(|(peer, _)| known[peer].clone());
        let volunteers: Vec<Candidate> = seated.collect();
        let given = Given {
            volunteers: &volunteers,
            ..*given
        };
        assert!(line_up.is_possible(&given), "{line_up:?}");
        1.0 / line_up.slowest_us(&given).expect("all are there").max(1) as f64
    };
    line_ups.values().map(rate).sum()
}

/// That line-ups keep to everything that they must keep to.
pub(super) fn check_all(given: &Given<'_>, line_ups: &LineUps, pipelines_max: u16) {
    assert!((1..=usize::from(pipelines_max)).contains(&line_ups.len()));
    // Each is possible, or it has no rate.
    assert!(rate_of(line_ups, given) > 0.0);
    let mut seated = BTreeSet::new();
    for (peer, _) in line_ups.values().flat_map(|line_up| &line_up.seats) {
        assert!(seated.insert(*peer), "{peer} has two seats");
    }
}

/// Nearly the same as rates: what is cut off of a quotient of floats.
fn is_at_least(rate: f64, other: f64) -> bool {
    rate >= other * (1.0 - 1e-9)
}

/// What pipelines of groups by lot get done.
fn rate_by_lot(given: &Given<'_>, pipelines_max: u16, words: &mut Words) -> f64 {
    let groups = 1 + words.next_word() % u32::from(pipelines_max);
    let mut dealt = vec![Vec::new(); groups as usize + 1];
    for one in given.volunteers {
        let group = words.next_word() % (groups + 1);
        dealt[group as usize].push(one.clone());
    }
    let line_ups = dealt[1..].iter().map(|volunteers| {
        let given = Given {
            volunteers,
            ..*given
        };
        assign(&given, None)
    });
    let placed = (0..).map(PipelineId).zip(line_ups.flatten());
    rate_of(&placed.collect(), given)
}

/// Places one pipeline from all volunteers but `others`, who have seats elsewhere. `old` is its present line-up.
fn repair(
    given: &Given<'_>,
    others: &BTreeSet<PeerId>,
    old: Option<&LineUp>,
) -> Result<LineUp, NoPlacement> {
    let free = given.volunteers.iter();
    let free = free.filter(|one| !others.contains(&one.peer)).cloned();
    let volunteers: Vec<Candidate> = free.collect();
    let given = Given {
        volunteers: &volunteers,
        ..*given
    };
    assign(&given, old)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn one_pipeline_at_most_is_what_assign_places(
        volunteers in any_volunteers(1..14),
        costs in any_costs(1..8),
        links in any_links(24),
        seats_min in 1_usize..4,
        holds in btree_set(0_u16..24, 0..8),
        gone in any::<prop::sample::Index>(),
    ) {
        let volunteers: Vec<Candidate> = volunteers.into_iter().map(with_holds(holds)).collect();
        let before = given(&volunteers, &costs, &links, seats_min);
        let old = assign(&before, None);
        let first = assign_all(&before, &LineUps::new(), 1);
        let as_one = |line_up: LineUp| LineUps::from([(PipelineId(0), line_up)]);
        prop_assert_eq!(&first, &old.clone().map(as_one));
        if let (Ok(first), Ok(old)) = (first, old) {
            let mut left = volunteers.clone();
            left.remove(gone.index(left.len()));
            let after = given(&left, &costs, &links, seats_min);
            let next = assign_all(&after, &first, 1);
            prop_assert_eq!(next, assign(&after, Some(&old)).map(as_one));
        }
    }

    #[test]
    fn pipelines_are_disjoint_possible_stable_and_no_worse_than_one(
        volunteers in any_volunteers(1..20),
        costs in any_costs(1..8),
        links in any_links(30),
        seats_min in 1_usize..4,
        pipelines_max in 1_u16..6,
        holds in btree_set(0_u16..24, 0..8),
    ) {
        let volunteers: Vec<Candidate> = volunteers.into_iter().map(with_holds(holds)).collect();
        let given = given(&volunteers, &costs, &links, seats_min);
        let placed = assign_all(&given, &LineUps::new(), pipelines_max);
        match (placed, assign(&given, None)) {
            (Ok(placed), Ok(single)) => {
                check_all(&given, &placed, pipelines_max);
                let single = LineUps::from([(PipelineId(0), single)]);
                prop_assert!(is_at_least(rate_of(&placed, &given), rate_of(&single, &given)));
                prop_assert_eq!(assign_all(&given, &placed, pipelines_max), Ok(placed));
            }
            (placed, single) => prop_assert_eq!(placed.err(), single.err()),
        }
    }

    #[test]
    fn groups_by_lot_are_hardly_better(
        volunteers in any_volunteers(1..9),
        costs in any_costs(1..6),
        links in any_links(18),
        pipelines_max in 2_u16..6,
        lot in any::<u64>(),
    ) {
        let given = given(&volunteers, &costs, &links, 1);
        if let Ok(placed) = assign_all(&given, &LineUps::new(), pipelines_max) {
            let rate = rate_of(&placed, &given);
            let mut words = Words::new("test groups", &[lot]);
            for _ in 0..1_000 {
                let other = rate_by_lot(&given, pipelines_max, &mut words);
                prop_assert!(rate >= 0.9 * other, "{rate} < {other}: {placed:?}");
            }
        }
    }

    #[test]
    fn the_order_of_volunteers_does_not_matter_to_pipelines(
        volunteers in any_volunteers(1..16),
        costs in any_costs(1..8),
        links in any_links(26),
        holds in btree_set(0_u16..24, 0..8),
        turn in any::<prop::sample::Index>(),
        gone in any::<prop::sample::Index>(),
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
        let placed = |volunteers: &[Candidate], old: &LineUps| {
            assign_all(&given(volunteers, &costs, &links, 1), old, 4)
        };
        let one = placed(&volunteers, &LineUps::new());
        prop_assert_eq!(&one, &placed(&turned, &LineUps::new()));
        let gone = volunteers[gone.index(volunteers.len())].peer;
        let left = |mut volunteers: Vec<Candidate>| {
            volunteers.retain(|one| one.peer != gone);
            volunteers
        };
        let old = one.unwrap_or_default();
        prop_assert_eq!(placed(&left(volunteers), &old), placed(&left(turned), &old));
    }

    #[test]
    fn pipelines_stay_possible_and_settle_whoever_comes_and_goes(
        volunteers in any_volunteers(6..20),
        costs in any_costs(1..8),
        links in any_links(30),
        pipelines_max in 2_u16..6,
        cuts in (0_usize..6, 0_usize..6),
    ) {
        let at = |first: usize, end: usize| given(&volunteers[first..end], &costs, &links, 1);
        let before = at(0, volunteers.len() - cuts.1);
        let after = at(cuts.0, volunteers.len());
        let old = assign_all(&before, &LineUps::new(), pipelines_max).unwrap_or_default();
        if let Ok(placed) = assign_all(&after, &old, pipelines_max) {
            check_all(&after, &placed, pipelines_max);
            prop_assert_eq!(assign_all(&after, &placed, pipelines_max), Ok(placed.clone()));
            if let Ok(single) = assign(&after, None) {
                let single = LineUps::from([(PipelineId(0), single)]);
                prop_assert!(is_at_least(1.1 * rate_of(&placed, &after), rate_of(&single, &after)));
            }
        } else {
            prop_assert!(assign(&after, None).is_err());
        }
    }

    #[test]
    fn a_lost_volunteer_changes_its_own_pipeline_only(
        volunteers in any_volunteers(6..20),
        costs in any_costs(1..8),
        links in any_links(30),
        pipelines_max in 2_u16..6,
        gone in any::<prop::sample::Index>(),
    ) {
        let given_all = given(&volunteers, &costs, &links, 1);
        let old = assign_all(&given_all, &LineUps::new(), pipelines_max).unwrap_or_default();
        prop_assume!(old.len() > 1);
        let seats = old.iter().flat_map(|(id, line_up)| line_up.seats.iter().map(|seat| (*id, seat.0)));
        let seats: Vec<(PipelineId, PeerId)> = seats.collect();
        let (id, peer) = seats[gone.index(seats.len())];
        let mut left = volunteers.clone();
        left.retain(|one| one.peer != peer);
        let after = given(&left, &costs, &links, 1);
        let others: BTreeSet<PeerId> = seats.iter().filter(|seat| seat.0 != id).map(|seat| seat.1).collect();
        if let Ok(repaired) = repair(&after, &others, old.get(&id)) {
            let mut all = old.clone();
            all.insert(id, repaired);
            check_all(&after, &all, pipelines_max);
            // More than the repair is changed only for a gain, or for a pipeline more.
            let next = assign_all(&after, &all, pipelines_max).expect("one is possible");
            let placed = assign_all(&after, &old, pipelines_max).expect("one is possible");
            prop_assert_eq!(&placed, &next);
            let others_stay = old.iter().filter(|(other, _)| **other != id).all(|(other, line_up)| placed.get(other) == Some(line_up));
            let gains = rate_of(&placed, &after) > 1.1 * rate_of(&all, &after) * (1.0 - 1e-9);
            prop_assert!(others_stay || gains);
        }
    }
}
