//! States that could not be had: who is believed, and who is asked next.

use super::*;
use crate::limits::{BENCH, UPLOAD_MAX};
use crate::units::StageId;

/// A run with one round committed by a lone volunteer; nobody else is fast enough for a seat.
fn one_holder() -> (Desk, ConnectionId) {
    let mut desk = Desk::new(config());
    let holder = desk.join(1);
    desk.rounds(1);
    desk.pass(TICK);
    desk.ready();
    desk.block_us = 1_000_000_000;
    (desk, holder)
}

fn states(desk: &Desk, round: u32) -> Vec<Held> {
    let commit = desk.host.history().get(Round(round)).expect("a commit");
    commit.stages.clone()
}

/// The copy that a volunteer is asked for now.
fn copying(desk: &Desk, connection: ConnectionId) -> Option<Held> {
    let peer = desk.host.roster.speaker(connection)?;
    let (held, _) = desk.host.roster.get(peer)?.copying?;
    Some(held)
}

/// The upload that a volunteer was asked for last: the state, and its ticket.
fn upload(desk: &Desk, connection: ConnectionId) -> Option<(Held, String)> {
    desk.heard(connection, |message| {
        if let Down::Upload { held, ticket } = message {
            Some((*held, ticket.clone()))
        } else {
            None
        }
    })
}

/// None of these gets any copy that it is asked for, for a while.
fn nobody_gets_a_copy(desk: &mut Desk, spares: &[ConnectionId]) {
    for _ in 0..20 {
        desk.pass(TICK);
        for &spare in spares {
            if let Some(Held { round, stage, .. }) = copying(desk, spare) {
                desk.say(spare, Up::Missing { round, stage });
            }
        }
    }
}

#[test]
fn whoever_was_not_told_to_fetch_a_state_says_nothing_of_others_by_missing_it() {
    let (mut desk, _) = one_holder();
    let before = desk.host.stage_copies();
    let stranger = desk.join_as(2, |join| join.capabilities.memory_bytes = 0);
    for Held { round, stage, .. } in states(&desk, 1) {
        for _ in 0..10 {
            desk.say(stranger, Up::Missing { round, stage });
        }
        let (round, stage) = (Round(7_000), StageId(stage.0 + 400));
        desk.say(stranger, Up::Missing { round, stage });
    }
    assert_eq!(desk.host.stage_copies(), before);
    assert!(before.iter().all(|count| *count == 1));
}

#[test]
fn one_volunteer_that_gets_no_copy_is_not_asked_again_but_somebody_else_is() {
    let (mut desk, _) = one_holder();
    let spare = desk.join(2);
    nobody_gets_a_copy(&mut desk, &[spare]);
    assert!(desk.host.stage_copies().iter().all(|count| *count == 1));
    assert_eq!(copying(&desk, spare), None, "there is no other source");
    let other = desk.join(3);
    desk.pass(TICK);
    let held = copying(&desk, other).expect("it is asked");
    desk.say(other, Up::Copied { held });
    desk.pass(TICK);
    desk.pass(TICK);
    let stage = usize::from(held.stage.0);
    assert_eq!(desk.host.stage_copies()[stage], 2, "what is there is kept");
}

#[test]
fn whom_three_keys_could_not_get_a_state_from_is_not_believed_to_hold_it() {
    let (mut desk, _) = one_holder();
    let two = [desk.join(2), desk.join(3)];
    nobody_gets_a_copy(&mut desk, &two);
    assert!(desk.host.stage_copies().iter().all(|count| *count == 1));
    let third = desk.join(4);
    nobody_gets_a_copy(&mut desk, &[third]);
    assert!(desk.host.stage_copies().iter().all(|count| *count == 0));
}

#[test]
fn a_seat_with_other_states_than_the_history_names_is_not_ready() {
    let mut desk = Desk::new(config());
    let seated = desk.join(1);
    desk.rounds(1);
    desk.block_us = 1_000_000_000;
    let spare = desk.join(2);
    for held in states(&desk, 1) {
        desk.say(spare, Up::Copied { held });
    }
    desk.say(seated, Up::Leave { may_return: false });
    desk.block_us = 50_000;
    let newcomer = desk.join(3);
    desk.pass(TICK);
    let (place, mut wrong) = (desk.place(), states(&desk, 1));
    assert_eq!(desk.seats()[0].0, newcomer);
    wrong[0].agreed = Digest::of(b"other weights");
    desk.sent.clear();
    let stages = wrong;
    desk.say(newcomer, Up::Ready { place, stages });
    let begun = desk.heard(newcomer, |message| {
        matches!(message, Down::Begin { .. }).then_some(())
    });
    assert_eq!(begun, None);
    let says = "your seat's state is not the run's; you get it again";
    assert_eq!(desk.reason(newcomer), says);
    desk.rounds(1);
    assert_eq!(desk.newest(), Round(2), "it has it now");
}

/// Two who hold all states of round 1, and were asked for none of it yet.
fn two_holders(checkpoint: Span) -> (Desk, ConnectionId, ConnectionId) {
    let mut config = config();
    config.schedule.checkpoint = checkpoint;
    let mut desk = Desk::new(config);
    let first = desk.join(1);
    desk.block_us = 1_000_000_000;
    let second = desk.join(2);
    desk.rounds(1);
    for held in states(&desk, 1) {
        desk.say(second, Up::Copied { held });
    }
    (desk, first, second)
}

#[test]
fn a_holder_that_does_not_have_what_it_is_to_upload_is_disbelieved_at_once_and_another_one_asked() {
    let (mut desk, first, second) = two_holders(Span::ZERO);
    let (held, _) = upload(&desk, first).expect("the lower number is asked");
    let (round, stage) = (held.round, held.stage);
    assert_eq!(upload(&desk, second), None);
    desk.say(first, Up::Missing { round, stage });
    let (asked, _) = upload(&desk, second).expect("it is asked");
    assert_eq!(asked, held);
    assert_eq!(desk.host.stage_copies()[usize::from(stage.0)], 1);
    // Tickets of before are good for nothing that counts.
    desk.store_all();
    assert!(desk.host.history().manifests().contains_key(&Round(1)));
}

#[test]
fn a_holder_that_uploads_something_else_is_disbelieved_at_once_and_another_one_asked() {
    let (mut desk, first, second) = two_holders(Span::ZERO);
    let (held, ticket) = upload(&desk, first).expect("the lower number is asked");
    desk.host.handle_not_held(desk.now, &ticket);
    desk.settle();
    let (asked, again) = upload(&desk, second).expect("it is asked");
    assert_eq!(asked, held);
    let copies = desk.host.stage_copies();
    assert_eq!(copies[usize::from(held.stage.0)], 1);
    // Nobody else has it: the checkpoint waits for another round, and the run goes on.
    desk.host.handle_not_held(desk.now, &again);
    desk.settle();
    desk.rounds(1);
    assert_eq!(desk.newest(), Round(2));
    desk.store_all();
    assert!(desk.host.history().manifests().contains_key(&Round(2)));
}

#[test]
fn an_upload_that_never_comes_is_asked_of_another_holder_the_next_time() {
    let mut config = config();
    config.schedule.checkpoint = Span::from_secs(1);
    let mut desk = Desk::new(config);
    let first = desk.join(1);
    desk.block_us = 1_000_000_000;
    let second = desk.join(2);
    desk.rounds(1);
    let held = states(&desk, 1)[0];
    desk.say(second, Up::Copied { held });
    assert!(upload(&desk, first).is_some() && upload(&desk, second).is_none());
    desk.pass(UPLOAD_MAX + Span::from_secs(1));
    assert_eq!(upload(&desk, second).map(|(held, _)| held), Some(held));
}

#[test]
fn a_holder_that_leaves_leaves_its_uploads_to_another_one() {
    let (mut desk, first, second) = two_holders(Span::ZERO);
    let stages = desk.host.stage_copies().len();
    assert_eq!(desk.tickets.len(), stages);
    desk.say(first, Up::Leave { may_return: false });
    assert_eq!(desk.tickets.len(), 2 * stages);
    assert!(upload(&desk, second).is_some());
    desk.store_all();
    assert!(desk.host.history().manifests().contains_key(&Round(1)));
}

#[test]
fn a_seat_that_cannot_get_its_state_waits_while_the_state_goes_to_the_store() {
    let mut config = config();
    config.schedule.seats_min = 2;
    config.schedule.checkpoint = Span::from_secs(3_600);
    let mut desk = Desk::new(config);
    let (holder, gone) = (desk.join(1), desk.join(2));
    desk.rounds(1);
    desk.store_all();
    desk.rounds(1);
    for held in states(&desk, 2) {
        desk.say(holder, Up::Copied { held });
    }
    desk.say(gone, Up::Leave { may_return: false });
    let newcomer = desk.join(3);
    let before = upload(&desk, holder);
    for tries in 1..=3 {
        desk.pass(TICK);
        let seats = desk.seats();
        let seat = seats.iter().find(|(seated, _)| *seated == newcomer);
        let (_, order) = seat.expect("it has a seat");
        let Held { round, stage, .. } = order.state[0].held;
        assert_eq!((round, upload(&desk, holder) == before), (Round(2), true));
        assert_eq!(order.state[0].sources.len(), 1, "try {tries}");
        desk.say(newcomer, Up::Missing { round, stage });
    }
    assert!(desk.host.stage_copies().iter().all(|count| *count >= 1));
    assert_ne!(upload(&desk, holder), before, "it goes to the store");
    desk.pass(TICK);
    assert!(desk.seats().is_empty());
    desk.store_all();
    desk.pass(BENCH);
    assert_eq!(desk.newest(), Round(2), "no round is lost by it");
    desk.ready();
    desk.train(4.0);
    assert_eq!(desk.newest(), Round(3));
}
