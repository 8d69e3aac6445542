//! Who is let in, who is not, and what those are told.

use super::*;
use crate::limits::VOLUNTEERS_MAX;
use crate::wire::signal::Resume;

/// Fills the host with volunteers that get no seat.
fn fill(desk: &mut Desk, like: ConnectionId) {
    let peer = desk.host.roster.speaker(like).expect("it joined");
    let mut one = desk.host.roster.get(peer).expect("it joined").clone();
    one.struck = true;
    for number in desk.host.roster.len()..VOLUNTEERS_MAX {
        let number = u64::try_from(number).expect("a few");
        one.peer = PeerId((1 << 40) + number);
        one.session = 1_000_000 + number;
        let connection = ConnectionId((1 << 40) + number);
        desk.host.roster.join(connection, one.clone());
    }
}

/// What somebody is told who knocks like that.
fn check_refused(change: impl FnOnce(&mut crate::wire::signal::Join), says: expect_test::Expect) {
    let mut desk = Desk::new(config());
    let connection = desk.join_as(1, change);
    let told = desk.heard(connection, |message| {
        if let Down::Refuse { text, remedy, .. } = message {
            Some(format!("{text}; {remedy}"))
        } else {
            None
        }
    });
    says.assert_eq(&told.unwrap_or_default());
}

#[test]
fn whoever_has_another_build_is_told_which_one_to_install() {
    check_refused(
        |join| join.version = 1,
        expect_test::expect![
            "you speak version 1 of the protocol, this host 7; install Shoal 0.1.0, which this host is"
        ],
    );
    check_refused(
        |join| join.seed_hash = Digest::of(b"other numbers"),
        expect_test::expect![
            "this machine derives bc046c07 from the run's seed, the host 00000000; install Shoal 0.1.0, which this host is; if it is that already, this machine computes otherwise: tell us what `shoal doctor` says"
        ],
    );
}

#[test]
fn nobody_is_told_to_throw_its_identity_away() {
    check_refused(
        |join| join.session += 1,
        expect_test::expect![
            "the proof does not fit the key; start again; if that does not help, install Shoal 0.1.0, which this host is. The identity file is not at fault: keep it"
        ],
    );
}

#[test]
fn a_full_host_lets_in_again_whom_it_knows() {
    let mut desk = Desk::new(config());
    let resuming = desk.join(1);
    desk.join(2);
    fill(&mut desk, resuming);
    let stranger = desk.join(3);
    let refusal = desk.refusal(stranger).expect("it is full");
    expect_test::expect!["Full: this host holds 20000 volunteers"].assert_eq(&refusal);
    let reloaded = desk.join(2);
    assert_eq!(desk.refusal(reloaded), None);
    let peer = desk.host.roster.speaker(resuming).expect("it joined");
    let resumed = desk.join_as(1, |join| {
        join.resume = Some(Resume {
            peer,
            place: None,
            attempt: None,
            report: None,
            leases: Default::default(),
            holds: None,
            merged: None,
        });
    });
    assert_eq!(desk.refusal(resumed), None);
    assert_eq!(desk.host.volunteer_count(), VOLUNTEERS_MAX);
}

#[test]
fn a_program_that_was_killed_and_started_again_takes_its_seat_at_once() {
    let mut desk = Desk::new(config());
    let killed = desk.join(1);
    desk.pass(TICK);
    desk.ready();
    let before = desk.host.roster.speaker(killed).expect("it joined");
    assert!(desk.host.is_seated(before));
    // While its connection stands, another session of the same key is somebody else: a second tab.
    let second = desk.join_in(77, 1, |_| ());
    assert!(desk.host.is_seated(before));
    desk.say(second, Up::Leave { may_return: false });
    desk.host.handle_closed(desk.now, killed);
    desk.settle();
    assert!(desk.host.is_seated(before), "most come back");
    let started = desk.join_in(78, 1, |_| ());
    assert_eq!(desk.host.volunteer_count(), 1);
    desk.pass(TICK);
    let now = desk.host.roster.speaker(started).expect("it joined");
    assert_ne!(now, before);
    assert!(desk.host.is_seated(now));
}
