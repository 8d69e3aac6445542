//! NaN, broken frames, loss that jumps, and what a person must do then.

use expect_test::expect;

use super::*;
use crate::limits::{APART_MAX, READY_MAX};
use crate::units::StageId;
use crate::wire::signal::Suspicion;

/// The seat of that connection makes NaN of finite input.
fn make_nan(desk: &mut Desk, connection: ConnectionId) {
    let place = desk.place();
    let stage = stage_of(desk, connection);
    let own = true;
    desk.say(connection, Up::NonFinite { place, stage, own });
    desk.pass(TICK);
    desk.ready();
}

fn stage_of(desk: &Desk, connection: ConnectionId) -> StageId {
    let seats = desk.seats();
    let seat = seats.iter().find(|(seated, _)| *seated == connection);
    let (_, order) = seat.expect("it has a seat");
    StageId(order.stages.first)
}

fn is_seated(desk: &Desk, connection: ConnectionId) -> bool {
    desk.seats().iter().any(|(seated, _)| *seated == connection)
}

fn two_seats() -> (Desk, ConnectionId, ConnectionId) {
    let mut config = config();
    config.schedule.seats_min = 2;
    let mut desk = Desk::new(config);
    let (a, b) = (desk.join(1), desk.join(2));
    desk.pass(TICK);
    desk.ready();
    (desk, a, b)
}

#[test]
fn nan_is_not_applied_and_costs_the_seat_the_second_time() {
    let (mut desk, a, b) = two_seats();
    desk.rounds(1);
    desk.pass(TICK);
    desk.ready();
    let epoch = desk.place().epoch;
    make_nan(&mut desk, a);
    assert_ne!(desk.place().epoch, epoch, "the round starts again");
    assert!(is_seated(&desk, a));
    desk.rounds(1);
    desk.pass(TICK);
    desk.ready();
    make_nan(&mut desk, a);
    let lines = [desk.reason(a), desk.reason(b), desk.reason_of_run()];
    expect![[r#"
        no seat for you: this device made numbers that are not finite, twice; you keep copies. See `shoal doctor`, and start again with another --gpu
        waiting for 1 more volunteer
        waiting for 1 more volunteer"#]].assert_eq(&lines.join("\n"));
    let c = desk.join(3);
    desk.pass(TICK);
    desk.ready();
    assert!(is_seated(&desk, b) && is_seated(&desk, c) && !is_seated(&desk, a));
    desk.rounds(1);
    assert_eq!(desk.newest(), Round(3));
    assert_eq!(
        desk.host.history().audit(desk.host.lowest_open_sample()),
        Ok(())
    );
}

#[test]
fn whoever_lost_its_seat_for_nan_gets_none_by_coming_again() {
    let (mut desk, a, _) = two_seats();
    make_nan(&mut desk, a);
    make_nan(&mut desk, a);
    desk.say(a, Up::Leave { may_return: false });
    let again = desk.join(1);
    desk.pass(Span::from_secs(1));
    assert!(!is_seated(&desk, again));
}

#[test]
fn nan_from_input_that_was_no_number_is_nobodys_fault() {
    let (mut desk, a, _) = two_seats();
    for _ in 0..3 {
        let (place, stage) = (desk.place(), stage_of(&desk, a));
        let own = false;
        desk.say(a, Up::NonFinite { place, stage, own });
        desk.pass(TICK);
        desk.ready();
    }
    assert!(is_seated(&desk, a));
}

#[test]
fn the_run_pauses_when_two_lose_their_seats_without_a_commit_in_between() {
    let (mut desk, a, b) = two_seats();
    make_nan(&mut desk, a);
    make_nan(&mut desk, a);
    let _c = desk.join(3);
    desk.pass(TICK);
    desk.ready();
    make_nan(&mut desk, b);
    assert_eq!(desk.host.view().state, "training");
    make_nan(&mut desk, b);
    expect!["paused: two volunteers made NaN of finite numbers, in stage 2 the last time: the run itself diverges; look into it (a lower learning rate?), then start the host again with --resume"].assert_eq(&desk.reason_of_run());
    assert_eq!(desk.host.view().state, "paused");
}

#[test]
fn the_run_does_not_pause_when_a_commit_lies_in_between() {
    let (mut desk, a, b) = two_seats();
    make_nan(&mut desk, a);
    make_nan(&mut desk, a);
    let _c = desk.join(3);
    desk.pass(TICK);
    desk.rounds(1);
    desk.pass(TICK);
    desk.ready();
    make_nan(&mut desk, b);
    make_nan(&mut desk, b);
    assert_eq!(desk.host.view().state, "waiting");
}

#[test]
fn a_loss_that_jumps_is_not_committed_and_its_samples_come_last() {
    let mut desk = Desk::new(config());
    desk.join(1);
    desk.rounds(5);
    desk.pass(TICK);
    desk.ready();
    let jumped: Vec<u64> = desk
        .leases()
        .iter()
        .map(|lease| lease.samples.first)
        .collect();
    desk.train(9.0);
    assert_eq!(desk.newest(), Round(5));
    desk.pass(TICK);
    desk.ready();
    let next: Vec<u64> = desk
        .leases()
        .iter()
        .map(|lease| lease.samples.first)
        .collect();
    assert_eq!(
        next, jumped,
        "nothing else is waiting: the end of the queue is its begin"
    );
    desk.train(4.0);
    assert_eq!(desk.newest(), Round(6));
    assert_eq!(
        desk.host.history().audit(desk.host.lowest_open_sample()),
        Ok(())
    );
}

#[test]
fn a_loss_that_jumps_twice_in_a_row_pauses_the_run_until_a_person_wants_it_to_go_on() {
    let mut desk = Desk::new(config());
    let volunteer = desk.join(1);
    desk.rounds(5);
    for _ in 0..2 {
        desk.pass(TICK);
        desk.ready();
        desk.train(9.0);
    }
    desk.pass(TICK);
    expect!["paused: the loss jumped in two rounds in a row, to 9.000; look into it, then start the host again with --resume"].assert_eq(&desk.reason_of_run());
    assert_eq!(desk.reason(volunteer), desk.reason_of_run());
    assert!(desk.seats().is_empty());

    let mut restarted = Desk::over(config(), desk.rows.clone(), false);
    restarted.join(1);
    restarted.pass(Span::from_secs(20));
    assert_eq!(
        restarted.host.view().state,
        "paused",
        "a restart is no answer"
    );

    let mut resumed = Desk::over(config(), desk.rows.clone(), true);
    assert_eq!(resumed.host.view().reason, None);
    assert_eq!(resumed.rows.last(), Some(&Row::Resumed));
    // Nobody who is here now holds the newest round: it goes back to the seed.
    resumed.join(1);
    resumed.pass(Span::from_secs(40));
    resumed.rounds(1);
    assert_eq!(resumed.newest(), Round(6));
}

#[test]
fn a_loss_that_is_no_number_is_not_committed() {
    let mut desk = Desk::new(config());
    desk.join(1);
    desk.pass(TICK);
    desk.ready();
    desk.train(f64::NAN);
    assert_eq!(desk.newest(), Round(0));
}

/// `by` tells that it got a broken frame of the volunteer behind `of`.
fn accuse(desk: &mut Desk, by: ConnectionId, of: ConnectionId) {
    let accusation = Up::Suspect {
        place: None,
        peer: desk.host.roster.speaker(of).expect("it joined"),
        suspicion: Suspicion::Malformed,
    };
    desk.say(by, accusation);
    desk.pass(TICK);
    desk.ready();
}

/// Volunteers are named by their order of joining, as connections are.
fn name_of(connection: ConnectionId) -> u8 {
    u8::try_from(connection.0).expect("few joined")
}

/// Three volunteers in three seats, in the order of the pipe.
fn three_seats() -> (Desk, [ConnectionId; 3]) {
    let mut config = config();
    config.schedule.seats_min = 3;
    let mut desk = Desk::new(config);
    for key in 1..=3 {
        desk.join(key);
    }
    desk.pass(TICK);
    desk.ready();
    let mut seats = desk.seats();
    seats.sort_by_key(|(_, order)| order.stages.first);
    let in_order: Vec<ConnectionId> = seats.iter().map(|(connection, _)| *connection).collect();
    let in_order = in_order.try_into().expect("three seats");
    (desk, in_order)
}

#[test]
fn broken_frames_that_two_neighbours_got_cost_a_volunteer_its_place_for_good() {
    let (mut desk, [first, middle, last]) = three_seats();
    accuse(&mut desk, first, middle);
    assert_eq!(desk.refusal(middle), None);
    assert!(is_seated(&desk, middle));
    accuse(&mut desk, last, middle);
    assert!(desk.refusal(middle).is_some());
    let again = desk.join(name_of(middle));
    assert!(desk.refusal(again).is_some(), "its key is known");
}

#[test]
fn broken_frames_to_whoever_takes_a_copy_count_and_cost_no_round() {
    let (mut desk, [first, _, last]) = three_seats();
    desk.rounds(1);
    desk.pass(TICK);
    let epoch = desk.place().epoch;
    let source = desk.host.roster.speaker(first).expect("it joined");
    let copy = desk.heard(last, |message| {
        if let Down::Copy { keys, .. } = message {
            Some(keys.iter().any(|key| key.peer == source))
        } else {
            None
        }
    });
    assert_eq!(copy, Some(true), "the other end of the pipe takes a copy");
    accuse(&mut desk, last, first);
    accuse(&mut desk, last, first);
    assert_eq!(desk.place().epoch, epoch, "they are no neighbours");
    assert!(is_seated(&desk, first));
}

#[test]
fn whoever_had_no_link_to_a_volunteer_cannot_have_got_anything_from_it() {
    let (mut desk, [first, middle, _]) = three_seats();
    let stranger = desk.join(4);
    desk.pass(TICK);
    accuse(&mut desk, stranger, middle);
    accuse(&mut desk, first, middle);
    assert_eq!(desk.refusal(middle), None, "only one of them counts");
}

#[test]
fn one_neighbours_word_on_broken_frames_never_removes_a_volunteer_but_parts_the_two() {
    let (mut desk, a, b) = two_seats();
    for _ in 0..2 {
        assert!(is_seated(&desk, a));
        accuse(&mut desk, b, a);
    }
    assert_eq!(desk.refusal(a), None);
    assert!(
        !is_seated(&desk, a) || !is_seated(&desk, b),
        "they are apart"
    );
    // With nobody else, the run cannot do without them: they try again.
    desk.pass(READY_MAX + TICK);
    desk.pass(APART_MAX);
    assert!(is_seated(&desk, a) && is_seated(&desk, b));
    assert_eq!(desk.refusal(a), None);
}

#[test]
fn two_that_could_not_connect_try_again_when_nothing_goes_without_them() {
    let (mut desk, a, b) = two_seats();
    let accusation = Up::Suspect {
        place: Some(desk.place()),
        peer: desk.host.roster.speaker(a).expect("it joined"),
        suspicion: Suspicion::Unreachable,
    };
    desk.say(b, accusation);
    desk.pass(READY_MAX + TICK);
    expect!["volunteer 1 and volunteer 2 could not connect; they try again within a minute"]
        .assert_eq(&desk.reason(a));
    assert!(desk.host.pipelines.is_empty());
    desk.pass(APART_MAX);
    assert!(!desk.host.pipelines.is_empty());
}
