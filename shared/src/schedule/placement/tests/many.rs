//! Several pipelines, as a reader expects them.

use super::*;

type LineUps = BTreeMap<PipelineId, LineUp>;

fn placed(volunteers: &[Candidate], costs: &StageCosts, old: &LineUps, most: u16) -> LineUps {
    let links = Links::default();
    assign_all(&given(volunteers, costs, &links, 1), old, most).expect("one is possible")
}

/// A line a pipeline.
fn shown(line_ups: &LineUps) -> String {
    let line = |(id, line_up): (&PipelineId, &LineUp)| {
        let seats = line_up
            .seats
            .iter()
            .map(|(peer, stages)| format!("{peer}: {stages}"));
        format!("pipeline {id} = {}\n", seats.collect::<Vec<_>>().join(", "))
    };
    line_ups.iter().map(line).collect()
}

/// What a fresh run of at most eight pipelines looks like, and what becomes of it when `gone` leave.
fn check_all(volunteers: &[Candidate], costs: &StageCosts, gone: &[u64], expected: Expect) {
    let fresh = placed(volunteers, costs, &LineUps::new(), 8);
    let mut text = shown(&fresh);
    if !gone.is_empty() {
        let mut left = volunteers.to_vec();
        left.retain(|one| !gone.contains(&one.peer.0));
        text += &format!(
            "without {gone:?}\n{}",
            shown(&placed(&left, costs, &fresh, 8))
        );
    }
    expected.assert_eq(&text);
}

#[test]
fn two_that_can_each_hold_all_make_two_pipelines_from_the_start() {
    let two = [volunteer(1, 10, 4), volunteer(2, 10, 4)];
    check_all(
        &two,
        &even(4),
        &[],
        expect![[r#"
        pipeline 0 = 1: stages 0-3
        pipeline 1 = 2: stages 0-3
    "#]],
    );
}

#[test]
fn an_old_pipeline_is_not_split_for_nothing_but_spares_form_one() {
    let two = [volunteer(1, 10, 4), volunteer(2, 10, 4)];
    let shared = line_up_of(&[(1, 0, 2), (2, 2, 4)]);
    let old = LineUps::from([(PipelineId(3), shared)]);
    let with_third = [&two[..], &[volunteer(3, 90, 4)]].concat();
    let text = [
        shown(&placed(&two, &even(4), &old, 8)),
        shown(&placed(&with_third, &even(4), &old, 8)),
    ];
    expect![[r#"
        pipeline 3 = 1: stages 0-1, 2: stages 2-3
        and a slow third:
        pipeline 0 = 3: stages 0-3
        pipeline 3 = 1: stages 0-1, 2: stages 2-3
    "#]]
    .assert_eq(&text.join("and a slow third:\n"));
}

#[test]
fn an_old_pipeline_is_split_for_a_gain_of_more_than_a_tenth() {
    // Two share three stages as unevenly as can be, and eleven nearly evenly.
    let two = [volunteer(1, 10, 9), volunteer(2, 10, 9)];
    let split = |stages: u16| {
        let old = line_up_of(&[(1, 0, stages / 2), (2, stages / 2, stages)]);
        let old = LineUps::from([(PipelineId(0), old)]);
        shown(&placed(&two, &even(usize::from(stages)), &old, 2))
    };
    expect![[r#"
        pipeline 0 = 1: stages 0-2
        pipeline 1 = 2: stages 0-2
        or
        pipeline 0 = 1: stages 0-4, 2: stages 5-10
    "#]]
    .assert_eq(&format!("{}or\n{}", split(3), split(11)));
}

#[test]
fn memory_says_how_many_pipelines_there_can_be() {
    let mut volunteers = vec![volunteer(1, 10, 4), volunteer(2, 20, 4)];
    volunteers.extend((3..7).map(|peer| volunteer(peer, 10, 2)));
    check_all(
        &volunteers,
        &even(4),
        &[],
        expect![[r#"
        pipeline 0 = 1: stages 0-3
        pipeline 1 = 2: stages 0-3
        pipeline 2 = 5: stages 0-1, 3: stages 2-3
        pipeline 3 = 6: stages 0-1, 4: stages 2-3
    "#]],
    );
}

#[test]
fn far_more_pipelines_allowed_than_memory_lets_form_are_no_hindrance() {
    let volunteers: Vec<Candidate> = (1..=80).map(|peer| volunteer(peer, 10, 1)).collect();
    let fresh = placed(&volunteers, &even(8), &LineUps::new(), 1_000);
    assert_eq!(fresh.len(), 10);
}

#[test]
fn a_lost_seat_is_filled_by_a_spare_and_other_pipelines_stay() {
    let volunteers: Vec<Candidate> = (1..=5).map(|peer| volunteer(peer, 10, 2)).collect();
    let gone = [1];
    check_all(
        &volunteers,
        &even(4),
        &gone,
        expect![[r#"
        pipeline 0 = 4: stages 0-1, 1: stages 2-3
        pipeline 1 = 5: stages 0-1, 2: stages 2-3
        without [1]
        pipeline 0 = 4: stages 0-1, 3: stages 2-3
        pipeline 1 = 5: stages 0-1, 2: stages 2-3
    "#]],
    );
}

#[test]
fn who_can_not_be_repaired_makes_room_for_the_others() {
    let volunteers: Vec<Candidate> = (1..=6).map(|peer| volunteer(peer, 10, 2)).collect();
    check_all(
        &volunteers,
        &even(4),
        &[1, 4],
        expect![[r#"
        pipeline 0 = 4: stages 0-1, 1: stages 2-3
        pipeline 1 = 5: stages 0-1, 2: stages 2-3
        pipeline 2 = 6: stages 0-1, 3: stages 2-3
        without [1, 4]
        pipeline 1 = 5: stages 0-1, 2: stages 2-3
        pipeline 2 = 6: stages 0-1, 3: stages 2-3
    "#]],
    );
    check_all(
        &volunteers,
        &even(4),
        &[1, 2],
        expect![[r#"
        pipeline 0 = 4: stages 0-1, 1: stages 2-3
        pipeline 1 = 5: stages 0-1, 2: stages 2-3
        pipeline 2 = 6: stages 0-1, 3: stages 2-3
        without [1, 2]
        pipeline 0 = 5: stages 0-1, 4: stages 2-3
        pipeline 2 = 6: stages 0-1, 3: stages 2-3
    "#]],
    );
}

#[test]
fn what_is_waited_for_is_what_one_pipeline_waits_for() {
    let small = [volunteer(1, 10, 2)];
    let (costs, links) = (even(4), Links::default());
    let said = |seats_min| {
        let given = given(&small, &costs, &links, seats_min);
        assign_all(&given, &LineUps::new(), 8).map_err(|reason| reason.to_string())
    };
    expect![[r#"Err("waiting for 1 more volunteer (stage 2 needs 1 MB)") Err("waiting for 2 more volunteers")"#]].assert_eq(&format!("{:?} {:?}", said(1), said(3)));
}
