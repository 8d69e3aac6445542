//! What survives: copies, manifests, seats of those who come back.

use super::*;
use crate::coordinator::history::History;
use crate::schedule::placement::{Links, Measured};

/// A run whose every round is stored, by a lone volunteer.
fn stored_rounds(count: u32) -> Desk {
    let mut config = config();
    config.schedule.checkpoint = Span::ZERO;
    let mut desk = Desk::new(config);
    desk.join(1);
    for _ in 0..count {
        desk.rounds(1);
        desk.store_all();
    }
    desk
}

fn everybody_leaves(desk: &mut Desk) {
    let peers: Vec<PeerId> = desk.host.roster.iter().map(|one| one.peer).collect();
    for peer in peers {
        let connection = desk.host.roster.get(peer).and_then(|one| one.connection);
        desk.say(
            connection.expect("it is here"),
            Up::Leave { may_return: false },
        );
    }
}

#[test]
fn a_rewind_goes_to_a_manifest_that_is_kept_not_to_one_that_was_cleared_away() {
    let mut desk = stored_rounds(4);
    let manifests: Vec<u32> = desk
        .host
        .history()
        .manifests()
        .keys()
        .map(|one| one.0)
        .collect();
    assert_eq!(manifests, [1, 2, 3, 4]);
    // The newest manifest is damaged, 2 and 3 were cleared away.
    desk.host.handle_manifests_kept(&[1, 4].map(Round).into());
    desk.rounds(1);
    assert_eq!(desk.newest(), Round(5));
    everybody_leaves(&mut desk);
    desk.join(2);
    desk.pass(Span::from_secs(20));
    assert_eq!(
        desk.rows
            .iter()
            .rev()
            .find(|row| matches!(row, Row::Rewind { .. })),
        Some(&Row::Rewind { to: Round(4) })
    );
    desk.host.handle_manifests_kept(&[1].map(Round).into());
    let manifests: Vec<u32> = desk
        .host
        .history()
        .manifests()
        .keys()
        .map(|one| one.0)
        .collect();
    assert_eq!(
        manifests,
        [1, 4],
        "newer than what the store looked at: not its to judge"
    );
}

#[test]
fn without_a_kept_manifest_the_run_goes_back_to_one_that_is_there_instead_of_waiting() {
    let mut desk = stored_rounds(3);
    desk.host.handle_manifests_kept(&[1, 3].map(Round).into());
    desk.rounds(2);
    everybody_leaves(&mut desk);
    // As after the loss of the newest blobs: only round 1 is left.
    desk.host
        .history
        .retain_manifests(&[1, 9].map(Round).into());
    desk.join(2);
    desk.pass(Span::from_secs(20));
    assert_eq!(desk.newest(), Round(1));
    desk.rounds(1);
    assert_eq!(desk.newest(), Round(6), "numbers are never used again");
}

#[test]
fn a_manifest_that_is_written_while_its_round_becomes_void_is_not_journaled() {
    let mut config = config();
    config.schedule.checkpoint = Span::ZERO;
    let mut desk = Desk::new(config);
    desk.join(1);
    desk.rounds(1);
    for ticket in std::mem::take(&mut desk.tickets) {
        desk.host.handle_stored(desk.now, &ticket);
    }
    desk.settle();
    assert_eq!(desk.manifests.len(), 1);
    everybody_leaves(&mut desk);
    desk.join(2);
    desk.slow_disk();
    desk.pass(Span::from_secs(20));
    assert_eq!(desk.rows.last(), Some(&Row::Rewind { to: Round(0) }));
    desk.host.handle_manifest(desk.now, Round(1), true);
    desk.settle();
    desk.sync();
    desk.rounds(1);
    assert_eq!(desk.newest(), Round(2));
    let history = History::replay(&desk.rows).expect("what a host can start over");
    assert!(history.manifests().is_empty());
}

#[test]
fn a_round_survives_one_loss_as_long_as_two_who_hold_it_are_here() {
    let mut desk = Desk::new(config());
    desk.join(1);
    desk.block_us = 1_000_000_000;
    let spare = desk.join(2);
    desk.rounds(1);
    desk.store_all();
    desk.rounds(1);
    assert_eq!(desk.host.survivable(), (Round(1), Round(1)));
    let copied = desk.host.history().get(Round(2)).expect("a commit");
    for held in copied.stages.clone() {
        desk.say(spare, Up::Copied { held });
    }
    assert_eq!(desk.host.survivable(), (Round(2), Round(1)));
    desk.host.handle_closed(desk.now, spare);
    assert_eq!(desk.host.survivable(), (Round(1), Round(1)));
}

#[test]
fn whoever_reloads_is_waited_for_longer_than_whoever_vanishes() {
    let mut desk = Desk::new(config());
    let seated = desk.join(1);
    desk.rounds(1);
    desk.pass(TICK);
    desk.ready();
    desk.say(seated, Up::Leave { may_return: true });
    desk.host.handle_closed(desk.now, seated);
    desk.settle();
    desk.pass(Span::from_secs(12));
    let waits = "waiting for volunteer 1, who may return at once";
    assert_eq!(desk.reason_of_run(), waits);
    desk.pass(Span::from_secs(4));
    assert!(desk.host.roster.is_empty());
    assert_ne!(desk.reason_of_run(), waits);
}

#[test]
fn whoever_reloads_gets_the_seat_it_had_however_busy_its_machine_is_meanwhile() {
    let mut config = config();
    config.schedule.seats_min = 2;
    let mut desk = Desk::new(config);
    desk.join(1);
    let reloading = desk.join(2);
    desk.rounds(1);
    desk.pass(TICK);
    desk.ready();
    let stages_of = |desk: &Desk, connection: ConnectionId| {
        let seats = desk.seats();
        let seat = seats.into_iter().find(|(seated, _)| *seated == connection);
        seat.map(|(_, order)| order.stages)
    };
    let before = stages_of(&desk, reloading);
    assert!(before.is_some());
    // What it held is not lost with it.
    let commit = desk.host.history().get(Round(1)).expect("a commit");
    for held in commit.stages.clone() {
        desk.say(ConnectionId(1), Up::Copied { held });
    }
    let speaker =
        |desk: &Desk, connection| desk.host.roster.speaker(connection).expect("it joined");
    let (first, old) = (speaker(&desk, ConnectionId(1)), speaker(&desk, reloading));
    let slow = Measured {
        delay_us: 40_000,
        bytes_per_second: Some(1_000_000),
        relayed: false,
    };
    desk.host.links.measure(old, [(first, slow)]);
    desk.say(reloading, Up::Leave { may_return: true });
    desk.host.handle_closed(desk.now, reloading);
    desk.settle();
    desk.block_us *= 3;
    let returned = desk.join(2);
    desk.pass(TICK);
    desk.ready();
    assert_eq!(stages_of(&desk, returned), before);
    let mut known = Links::default();
    known.measure(speaker(&desk, returned), [(first, slow)]);
    assert_eq!(
        desk.host.links, known,
        "its links are known under its new number"
    );
}

#[test]
fn nobody_is_waited_for_who_came_back_without_what_is_missing() {
    let mut desk = Desk::new(config());
    let holder = desk.join(1);
    desk.rounds(1);
    let reload = |desk: &mut Desk, connection: ConnectionId| {
        desk.say(connection, Up::Leave { may_return: true });
        desk.host.handle_closed(desk.now, connection);
        desk.settle();
    };
    reload(&mut desk, holder);
    // What it wrote last had not reached its disk.
    desk.join(1);
    desk.pass(TICK.times(4));
    desk.ready();
    assert_eq!(desk.newest(), Round(0), "it begins anew at once");
    desk.rounds(1);
    assert_eq!(desk.newest(), Round(2), "numbers are never used again");

    // Somebody else who left with it may still come.
    let copied = desk.host.history().get(Round(2)).expect("a commit");
    let copied = copied.stages.clone();
    let other = desk.join(2);
    for held in copied {
        desk.say(other, Up::Copied { held });
    }
    for (name, connection) in [(2, other), (1, ConnectionId(2))] {
        desk.say(connection, Up::Leave { may_return: false });
        desk.host.handle_closed(desk.now, connection);
        desk.settle();
        if name == 1 {
            desk.join(name);
        }
    }
    desk.pass(TICK.times(4));
    expect_test::expect!["waiting for a volunteer that holds stage 0 of round 2"]
        .assert_eq(&desk.reason_of_run());
}

#[test]
fn a_seat_is_not_kept_for_a_reload_when_a_spare_has_its_state() {
    let mut desk = Desk::new(config());
    let seated = desk.join(1);
    desk.block_us = 1_000_000_000;
    let spare = desk.join(2);
    desk.rounds(1);
    desk.pass(TICK);
    desk.ready();
    assert_eq!(desk.seats()[0].0, seated);
    let stages = desk
        .host
        .history()
        .get(Round(1))
        .map(|commit| commit.stages.clone());
    for held in stages.expect("a commit") {
        desk.say(spare, Up::Copied { held });
    }
    desk.say(seated, Up::Leave { may_return: true });
    desk.pass(TICK);
    assert_eq!(desk.seats()[0].0, spare);
}

#[test]
fn what_a_head_did_before_its_connection_broke_is_not_leased_again() {
    let mut config = config();
    config.schedule.round_steps = 50;
    let mut desk = Desk::new(config);
    let head = desk.join(1);
    desk.pass(TICK);
    desk.ready();
    let place = desk.place();
    for steps in 1..=20 {
        let report = Report {
            place,
            steps,
            loss: 4.0,
            round_loss: 4.0,
            elapsed_us: 1,
            forward_bytes: 0,
            backward_bytes: 0,
        };
        desk.say(head, Up::Report(report));
    }
    desk.sent.clear();
    let peer = desk.pipeline().head();
    desk.host.say_round_again(peer);
    desk.settle();
    let leases: Vec<u32> = desk
        .sent
        .iter()
        .filter_map(|(_, message)| {
            if let Down::Lease(lease) = message {
                Some(lease.step.0)
            } else {
                None
            }
        })
        .collect();
    assert_eq!(leases, [20, 21, 22]);
}
