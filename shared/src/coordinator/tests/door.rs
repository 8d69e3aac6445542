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
        });
    });
    assert_eq!(desk.refusal(resumed), None);
    assert_eq!(desk.host.volunteer_count(), VOLUNTEERS_MAX);
}
