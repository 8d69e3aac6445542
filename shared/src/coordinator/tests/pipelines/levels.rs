//! More pipelines than a group may have.

use super::*;
use crate::wire::merge::Group;
use crate::wire::signal::Suspicion;

/// Three that trained a round, of whom two may meet; their numbers, heads and orders.
fn three_in_groups_of_two() -> (Desk, [(PipelineId, PeerId, MergeOrder); 3]) {
    let mut config = several(3);
    config.merge.group_max = 2;
    let mut desk = desk_with(config, 3);
    desk.train_all();
    let [a, b, c] = ids(&desk)[..] else {
        panic!("three")
    };
    let members = [a, b, c].map(|id| {
        let head = desk.host.pipelines.get(id).expect("it is there").head();
        (id, head, desk.order(id).expect("a merge"))
    });
    (desk, members)
}

#[test]
fn each_is_told_the_groups_that_it_is_in() {
    let (mut desk, members) = three_in_groups_of_two();
    let [(a, first, _), (b, second, _), (c, third, _)] = members;
    let groups = |order: &MergeOrder| -> Vec<(Vec<PeerId>, Vec<u64>)> {
        let group = |it: &Group| {
            (
                it.peers.iter().map(|it| it.peer).collect(),
                it.samples.clone(),
            )
        };
        order.stages[0].iter().map(group).collect()
    };
    let own = 2 * u64::from(desk.host.config().training.batch);
    // The first two own everything, each in a row of its own; the third stands beside the first.
    let row = (vec![first, third], vec![own, own]);
    let column = (vec![first, second], vec![2 * own, own]);
    let [(.., of_a), (.., of_b), (.., of_c)] = &members;
    assert_eq!(groups(of_a), [row.clone(), column.clone()]);
    assert_eq!(groups(of_b), [(vec![second], vec![own]), column]);
    assert_eq!(groups(of_c), [row]);
    for order in [of_a, of_b, of_c] {
        assert_eq!(order.samples, 3 * own);
        assert!(order.stages.iter().all(|stage| *stage == order.stages[0]));
    }
    for id in [a, b, c] {
        desk.hold_merged(id, "same");
    }
    assert_eq!(desk.newest_commit().members.len(), 3);
}

#[test]
fn who_is_in_no_group_with_another_has_nothing_to_suspect_it_of() {
    let (mut desk, [(_, first, _), (_, second, _), (c, ..)]) = three_in_groups_of_two();
    let place = desk.host.pipelines.get(c).expect("it is there").place;
    let connection = desk.head_connection(c);
    let mut suspect = |peer: PeerId| {
        desk.say(
            connection,
            Up::Suspect {
                place: Some(place),
                peer,
                suspicion: Suspicion::Silent,
            },
        );
        let accusers = &desk.host.roster.get(peer).expect("it is here").suspected_by;
        accusers.len()
    };
    assert_eq!(suspect(second), 0);
    assert_eq!(suspect(first), 1);
}
