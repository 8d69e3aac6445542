//! Members whose machines are joined by a wire that delivers in any order.

mod world;

use proptest::prelude::*;

use super::*;
use crate::limits::{MERGE_SLICE_BYTES, MERGE_SLICES_AHEAD};
use world::{Members, World, attempt};

fn groups(members: usize, stages: usize) -> impl Strategy<Value = Members> {
    let share = prop_oneof![Just(0_u32), 1..100_u32, Just(u32::MAX)];
    let shares = proptest::collection::vec(share, members);
    let values = prop_oneof![1..2_000_u64, 1..900_000_u64];
    (
        any::<u64>(),
        proptest::collection::vec(0..10_000_u64, members),
        proptest::collection::vec((values, shares), stages),
        proptest::collection::vec(any::<bool>(), members),
    )
        .prop_map(|(seed, mut samples, stages, cut)| {
            // Each has other weights at the end.
            for (index, samples) in samples.iter_mut().enumerate() {
                *samples += 10_000 * index as u64;
            }
            Members {
                seed,
                samples,
                stages,
                cut,
                group_max: 16,
            }
        })
}

/// More members than a group may have: shares are dealt.
fn crowds() -> impl Strategy<Value = Members> {
    let crowd = (2..12_usize, 1..3_usize);
    let crowd = crowd.prop_flat_map(|(members, stages)| groups(members, stages));
    (crowd, 2..5_usize).prop_map(|(mut crowd, group_max)| {
        crowd.group_max = group_max;
        crowd
            .stages
            .iter_mut()
            .for_each(|(_, shares)| shares.clear());
        crowd
    })
}

fn any_group() -> impl Strategy<Value = Members> {
    (prop_oneof![Just(2_usize), Just(3), Just(5)], 1..3_usize)
        .prop_flat_map(|(members, stages)| groups(members, stages))
}

/// Two members of one stage that has so many values.
fn pair(values: u64) -> Members {
    Members {
        seed: 1,
        samples: vec![100, 300],
        stages: vec![(values, vec![1, 1])],
        cut: vec![false; 2],
        group_max: 16,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn members_that_were_told_the_same_end_with_the_same_weights(group in any_group()) {
        let mut world = group.begin(1, &BTreeMap::new());
        world.run();
        world.check(&group.expected());
    }

    #[test]
    fn more_than_a_group_may_have_end_with_what_one_group_gives(crowd in crowds()) {
        let mut world = crowd.begin(1, &BTreeMap::new());
        world.run();
        world.check(&crowd.expected());
    }

    #[test]
    fn after_a_loss_the_members_that_stay_give_what_they_alone_give(
        group in groups(3, 2),
        lost in 0..3_usize,
        after in 0..60_usize,
    ) {
        let mut world = group.begin(1, &BTreeMap::new());
        for _ in 0..after {
            world.step();
        }
        let gone: Vec<PeerId> = (0..2).map(|stage| group.holder(lost, stage)).collect();
        world.nodes.retain(|peer, _| !gone.contains(peer));
        for node in world.nodes.values_mut() {
            gone.iter().for_each(|peer| node.merging.handle_lost(*peer));
        }
        world.run();
        let rest = group.without(lost);
        let mut world = rest.begin(2, &BTreeMap::new());
        world.run();
        world.check(&rest.expected());
        prop_assert_ne!(rest.expected(), group.expected(), "the lost one counted");
    }

    #[test]
    fn garbage_is_refused_or_nothing_and_never_ends_a_member(
        group in groups(3, 1),
        garbage in proptest::collection::vec(
            (0..6_u64, 0..3_u16, any::<bool>(), 0..4_u64, 0..3_usize, any::<u64>()),
            1..40,
        ),
    ) {
        let mut world = group.begin(1, &BTreeMap::new());
        world.is_poisoned = true;
        let slice = MERGE_SLICE_BYTES as u64;
        for (from, stage, is_scatter, at, bytes, taken) in garbage {
            world.step();
            let from = PeerId(100 * from);
            let offset = [0, 1, slice, u64::MAX][usize::try_from(at).expect("small")];
            let payload = Bytes::from(vec![7; [1, 258, MERGE_SLICE_BYTES][bytes]]);
            let leg = if is_scatter { Leg::Scatter } else { Leg::Gather };
            let node = world.nodes.values_mut().next().expect("a member");
            node.merging.handle_slice(from, (StageId(stage), leg, offset), payload);
            node.merging.handle_taken(from, taken % 20);
        }
    }
}

#[test]
fn slices_never_exceed_the_window_and_fill_it() {
    let values = 2 * 12 * MERGE_SLICE_BYTES as u64;
    let group = pair(values);
    let mut world = group.begin(1, &BTreeMap::new());
    // Both contribute; nothing is taken yet.
    while world.nodes.values().any(|node| node.job.is_some()) {
        let busy = world.nodes.iter().find(|(_, node)| node.job.is_some());
        let peer = *busy.expect("one computes").0;
        world.compute(peer);
        world.settle();
    }
    assert_eq!(world.wire.len(), 2 * MERGE_SLICES_AHEAD as usize);
    world.run();
    assert_eq!(world.most_ahead, u64::from(MERGE_SLICES_AHEAD));
    world.check(&group.expected());
}

#[test]
fn what_packing_lost_is_what_the_last_committed_attempt_lost() {
    let group = pair(1_000);
    let mut residuals: BTreeMap<PeerId, Residuals> = BTreeMap::new();
    let lost = |world: &World, residuals: &mut BTreeMap<PeerId, Residuals>, counter| {
        let mut all = Vec::new();
        for (peer, node) in &world.nodes {
            let merged = node.merged.as_ref().expect("merged");
            let of = merged
                .iter()
                .map(|it| (it.snapshot.stage, it.residual.clone()));
            all.extend(merged.iter().map(|it| it.residual.clone()));
            residuals
                .entry(*peer)
                .or_default()
                .propose(attempt(counter), of);
        }
        all
    };
    let mut run = |counter: u32, is_committed: bool| {
        let mut world = group.begin(counter, &residuals);
        world.run();
        let lost = lost(&world, &mut residuals, counter);
        if is_committed {
            let all = residuals.values_mut();
            all.for_each(|residuals| residuals.commit(attempt(counter)));
        }
        assert_eq!(lost[0], lost[1]);
        lost[0].clone()
    };
    assert_eq!(run(1, true), "ca");
    assert_eq!(run(2, false), "caca");
    assert_eq!(run(3, true), "caca", "the second never was");
    assert_eq!(run(4, true), "cacaca");
}

#[test]
fn a_member_whose_slices_may_be_lost_does_nothing_more() {
    let group = pair(1_000);
    let mut world = group.begin(1, &BTreeMap::new());
    let (one, other) = (PeerId(100), PeerId(200));
    world.compute(one);
    world.settle();
    let node = world.nodes.get_mut(&one).expect("it is here");
    node.merging.handle_lost(other);
    node.merging.handle_link(other);
    world.run();
    assert!(world.nodes.values().all(|node| node.merged.is_none()));
    // Once all is exchanged a link may go.
    let mut world = group.begin(2, &BTreeMap::new());
    world.run();
    let node = world.nodes.get_mut(&one).expect("it is here");
    assert!(!node.merging.needs(other) && node.merging.involves(other));
}

#[test]
fn the_same_slice_twice_is_one_and_another_one_in_its_place_is_refused() {
    let group = pair(1_000);
    let mut world = group.begin(1, &BTreeMap::new());
    let (one, other) = (PeerId(100), PeerId(200));
    world.compute(other);
    world.settle();
    let (from, to, frame) = world.wire.pop().expect("a slice");
    assert_eq!((from, to), (other, one));
    world.deliver(from, to, frame.clone());
    world.deliver(from, to, frame.clone());
    world.settle();
    let taken = |(_, _, frame): &(PeerId, PeerId, Frame)| {
        let Header::MergeTaken { taken, .. } = frame.header else {
            return None;
        };
        Some(taken)
    };
    let answers: Vec<u64> = world.wire.iter().filter_map(taken).collect();
    assert_eq!(answers, [1]);
    assert!(world.refused.is_empty());
    let payload = frame.payload.iter().map(|byte| !byte).collect();
    world.deliver(from, to, Frame { payload, ..frame });
    world.settle();
    assert_eq!(world.refused.len(), 1, "{:?}", world.refused);
}

#[test]
fn an_order_that_does_not_fit_is_none() {
    let group = pair(1_000);
    let ends = || {
        vec![Ends {
            stage: StageId(0),
            values: 1_000,
            start: StageState::Seed,
            end: group.end(0, 0),
            gradient: Bytes::new(),
            residual: Bytes::new(),
        }]
    };
    let fits = |me: u64, change: &dyn Fn(&mut MergeOrder)| {
        let mut order = group.order(0, &[0], attempt(1));
        change(&mut order);
        Merging::new(PeerId(me), &order, NumberFormat::Int8, ends(), None).is_some()
    };
    assert!(fits(100, &|_| ()));
    assert!(!fits(101, &|_| ()), "somebody else's");
    assert!(!fits(100, &|order| order.stages.clear()));
    assert!(!fits(100, &|order| order.stages[0].clear()));
    assert!(!fits(100, &|order| order.stages[0][0].samples.truncate(1)));
    assert!(!fits(100, &|order| order.stages[0][0].shares.truncate(1)));
    assert!(!fits(100, &|order| {
        let peers = &mut order.stages[0][0].peers;
        peers[1] = peers[0];
    }));
    // A second level with somebody else fits; with somebody of the first, or another sum, it does not.
    let further = |peer: u64, samples: u64| {
        move |order: &mut MergeOrder| {
            let mut group = order.stages[0][0].clone();
            group.peers[1].peer = PeerId(peer);
            group.samples = vec![samples, 7];
            order.stages[0].push(group);
        }
    };
    assert!(fits(100, &further(300, 400)));
    assert!(!fits(100, &further(200, 400)));
    assert!(!fits(100, &further(300, 401)));
}

#[test]
fn who_sent_numbers_that_are_none_is_named() {
    let group = pair(1_000);
    let mut world = group.begin(1, &BTreeMap::new());
    world.compute(PeerId(100));
    world.compute(PeerId(200));
    world.settle();
    for (_, _, frame) in &mut world.wire {
        // Scales that are not finite.
        frame.payload = vec![0xff; frame.payload.len()].into();
    }
    while let Some((from, to, frame)) = world.wire.pop() {
        world.deliver(from, to, frame);
    }
    let node = world.nodes.get_mut(&PeerId(100)).expect("it is here");
    let job = node.merging.next_job().expect("an average");
    let reason = "not finite".to_owned();
    node.merging.handle_done(&job, Done::Refused { reason });
    world.settle();
    let whom: Vec<PeerId> = world.refused.iter().map(|(_, whom, _)| *whom).collect();
    assert_eq!(whom, [PeerId(200)]);
    assert!(world.failed.is_empty(), "by no fault of its own");
}

#[test]
fn an_average_whose_numbers_are_none_goes_no_further_and_its_sender_is_named() {
    // The two that send fastest own everything, each in a row of its own; the other one stands beside the first.
    let crowd = Members {
        seed: 0,
        samples: vec![100, 300, 500],
        stages: vec![(1_000, vec![])],
        cut: vec![false; 3],
        group_max: 2,
    };
    let me = PeerId(300);
    let order = crowd.order(2, &[0], attempt(1));
    let [row, column] = &order.stages[0][..] else {
        panic!("two levels")
    };
    let others = [row, column].map(|group| group.peers.iter().map(|it| it.peer));
    let [beside, beyond] = others.map(|mut it| it.find(|it| *it != me).expect("two"));
    let mut world = crowd.begin(1, &BTreeMap::new());
    let is_average = |frame: &Frame| {
        matches!(
            frame.header,
            Header::Merge {
                leg: Leg::Gather,
                ..
            }
        )
    };
    let from_beyond = |world: &World| {
        let mut wire = world.wire.iter();
        wire.position(|(from, to, frame)| (*from, *to) == (beyond, me) && is_average(frame))
    };
    // It is kept back until nothing else happens.
    while from_beyond(&world).is_none() {
        assert!(world.step(), "it averages its half");
    }
    let at = from_beyond(&world).expect("just seen");
    let (from, to, mut frame) = world.wire.swap_remove(at);
    world.run();
    // Scales that are not finite.
    frame.payload = vec![0xff; frame.payload.len()].into();
    world.deliver(from, to, frame);
    world.settle();
    let refused: Vec<(PeerId, PeerId)> =
        world.refused.iter().map(|(by, it, _)| (*by, *it)).collect();
    assert_eq!(refused, [(me, beyond)]);
    let to_beside = |(from, to, frame): &(PeerId, PeerId, Frame)| {
        (*from, *to) == (me, beside) && is_average(frame)
    };
    assert!(!world.wire.iter().any(to_beside), "nothing is passed on");
    world.run();
    assert!(world.nodes[&me].merged.is_none());
    assert!(world.nodes[&beside].merged.is_none());
}
