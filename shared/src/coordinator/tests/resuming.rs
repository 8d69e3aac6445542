//! After a restart of the host: what a head brings back is what goes on, as far as it can be true.

use super::*;
use crate::coordinator::history::{CommitRow, History};
use crate::units::{SampleRange, Step};
use crate::wire::leases::Leases;
use crate::wire::signal::Resume;

/// A host that was killed in round 2, over its journal; the place and attempt of that round, and what it committed.
fn killed_in_the_second_round(config: RunConfig) -> (Desk, Place, Attempt, CommitRow) {
    let seats = config.schedule.seats_min;
    let mut desk = Desk::new(config.clone());
    for name in 1..=u8::try_from(seats).expect("few seats") {
        desk.join(name);
    }
    desk.rounds(1);
    desk.pass(TICK);
    let (place, (attempt, _)) = (desk.place(), desk.begun(desk.seats()[0].0));
    let commit = desk.host.history().get(Round(1)).expect("a commit").clone();
    (Desk::over(config, desk.rows, false), place, attempt, commit)
}

/// The leases of `place` that begin with these samples, as a host gave them.
fn leases(desk: &Desk, place: Place, firsts: &[u64]) -> Vec<Lease> {
    let count = desk.host.config().training.batch;
    let samples = firsts.iter().map(|&first| SampleRange { first, count });
    let steps = desk.host.steps_target();
    let lease = |(step, samples)| Lease {
        place,
        step: Step(step),
        samples,
        last: step + 1 == steps,
    };
    (0..).zip(samples).map(lease).collect()
}

/// Whoever sat in that seat comes back with these leases and that many reported steps; whether its seat goes on.
fn come_back(
    desk: &mut Desk,
    (place, attempt, commit): (Place, Attempt, &CommitRow),
    seat: usize,
    (leases, steps): (&[Lease], u32),
) -> bool {
    let line_up = desk.host.history().line_ups().values().next();
    let row = line_up.expect("a line-up").1[seat];
    let report = Report {
        place,
        steps,
        loss: 4.0,
        round_loss: 4.0,
        elapsed_us: 1,
        forward_bytes: 0,
        backward_bytes: 0,
    };
    let name = u8::try_from(row.session).expect("a name");
    let connection = desk.join_as(name, |join| {
        join.kept = commit.stages.clone();
        join.resume = Some(Resume {
            peer: row.peer,
            place: Some(place),
            attempt: Some(attempt),
            report: (steps > 0).then_some(report),
            leases: Leases::pack(leases),
            holds: None,
            merged: None,
        });
    });
    let resumed = desk.heard(connection, |message| {
        if let Down::Welcome(welcome) = message {
            Some(welcome.resumed)
        } else {
            None
        }
    });
    resumed.expect("a welcome")
}

/// The run goes on, and a host that starts over its journal finds a history.
fn check_goes_on(desk: &mut Desk) {
    let before = desk.newest();
    desk.rounds(2);
    assert_eq!(desk.newest(), Round(before.0 + 2));
    let history = History::replay(&desk.rows).expect("a history");
    assert_eq!(history.audit(desk.host.lowest_open_sample()), Ok(()));
}

#[test]
fn a_head_goes_on_with_the_leases_that_it_brings_back() {
    let (mut desk, place, attempt, commit) = killed_in_the_second_round(config());
    let next = desk.host.lowest_open_sample();
    let batch = u64::from(desk.host.config().training.batch);
    let brought = leases(&desk, place, &[next, next + batch]);
    assert!(come_back(
        &mut desk,
        (place, attempt, &commit),
        0,
        (&brought, 1)
    ));
    assert_eq!(desk.place(), place);
    desk.train(4.0);
    assert_eq!(desk.newest(), Round(2));
    check_goes_on(&mut desk);
}

#[test]
fn a_head_does_not_bring_back_samples_that_are_trained_or_that_it_has_twice() {
    let (_, _, _, commit) = killed_in_the_second_round(config());
    let last = commit.members[0].steps[1];
    let [trained, next] = [last.first, last.end()];
    for firsts in [[next, trained], [next, next]] {
        let (mut desk, place, attempt, commit) = killed_in_the_second_round(config());
        let brought = leases(&desk, place, &firsts);
        let resumed = come_back(&mut desk, (place, attempt, &commit), 0, (&brought, 0));
        assert!(!resumed, "{firsts:?}");
        check_goes_on(&mut desk);
        assert_ne!(desk.place().epoch, place.epoch);
    }
}

#[test]
fn a_head_that_comes_back_twice_cannot_have_done_more_than_it_was_leased() {
    let mut config = config();
    config.schedule.seats_min = 2;
    config.schedule.round_steps = 8;
    let (mut desk, place, attempt, commit) = killed_in_the_second_round(config);
    let next = desk.host.lowest_open_sample();
    let batch = u64::from(desk.host.config().training.batch);
    let firsts: Vec<u64> = (0..5).map(|step| next + step * batch).collect();
    let brought = leases(&desk, place, &firsts);
    let told = (place, attempt, &commit);
    assert!(come_back(&mut desk, told, 0, (&brought, 4)));
    assert!(!come_back(&mut desk, told, 0, (&[], 0)));
    come_back(&mut desk, told, 1, (&[], 0));
    check_goes_on(&mut desk);
}

#[test]
fn a_head_that_comes_back_with_other_leases_leaves_none_of_the_first_ones_behind() {
    let mut config = config();
    config.schedule.seats_min = 2;
    config.schedule.round_steps = 8;
    let (mut desk, place, attempt, commit) = killed_in_the_second_round(config);
    let next = desk.host.lowest_open_sample();
    let batch = u64::from(desk.host.config().training.batch);
    let told = (place, attempt, &commit);
    let [first, second] = [[next, next + batch], [next + batch, next + 3 * batch]];
    for firsts in [first, second] {
        let brought = leases(&desk, place, &firsts);
        assert!(come_back(&mut desk, told, 0, (&brought, 0)));
    }
    assert_eq!(desk.host.lowest_open_sample(), next);
    assert!(come_back(&mut desk, told, 1, (&[], 0)));
    desk.train(4.0);
    check_goes_on(&mut desk);
    check_goes_on(&mut desk);
}

#[test]
fn what_cannot_follow_the_history_is_not_journaled_as_a_commit() {
    let mut desk = Desk::new(config());
    desk.join(1);
    desk.rounds(1);
    desk.pass(TICK);
    let trained = desk.host.history().get(Round(1)).expect("a commit").members[0].steps[0];
    let pipeline = desk.host.pipelines.iter_mut().next().expect("a line-up");
    pipeline.leases[0].samples = trained;
    desk.train(4.0);
    assert_eq!(desk.newest(), Round(1));
    check_goes_on(&mut desk);
}

#[test]
fn a_last_round_that_goes_on_after_a_restart_is_as_long_as_it_was() {
    let mut config = config();
    config.training.samples = 3 * u64::from(config.training.batch);
    let (mut desk, place, attempt, commit) = killed_in_the_second_round(config);
    let next = desk.host.lowest_open_sample();
    let brought = leases(&desk, place, &[next]);
    assert!(brought[0].last);
    assert!(come_back(
        &mut desk,
        (place, attempt, &commit),
        0,
        (&brought, 0)
    ));
    assert_eq!(desk.leases(), brought);
    desk.train(4.0);
    let samples = desk.host.history().samples();
    assert_eq!(samples, desk.host.config().training.samples);
}
