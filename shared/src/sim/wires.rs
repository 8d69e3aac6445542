//! Slow links, slow messages and devices that hang: what the pipe makes of them.

use std::collections::BTreeSet;

use super::World;
use super::network::ProcessId;
use super::world::Sabotage;
use crate::config::run::{MergeKind, RunConfig};
use crate::peer;
use crate::units::{PeerId, Span};
use crate::wire::frame::Mode;
use crate::wire::signal::Down;

/// Milliseconds of a microbatch at each seat: one stage of two sequences.
const MICROBATCH_MS: u64 = 30;
/// Microbatches a step: many, so that filling and draining the pipe costs little of it.
const MICROBATCHES: u16 = 192;

/// Four seats of one stage each that are equally fast, over links of that delay and rate.
fn pipe(delay: Span, bytes_per_second: u64, blind: bool) -> World {
    let broken = peer::BrokenRules {
        blind,
        ..Default::default()
    };
    let sabotage = Sabotage {
        peer: broken,
        ..Sabotage::default()
    };
    let mut world = seats(sabotage, delay, bytes_per_second, |config| {
        config.training.microbatches = MICROBATCHES;
        config.training.batch = 2 * u32::from(MICROBATCHES);
        config.schedule.round_steps = 4;
    });
    for process in world.processes.values_mut() {
        process.pace_ms = 20;
        assert_eq!(process.block_us() * 2, 1_000 * MICROBATCH_MS);
    }
    world
}

/// Four volunteers that make one pipeline, over links of that delay and rate.
fn seats(
    sabotage: Sabotage,
    delay: Span,
    bytes_per_second: u64,
    change: impl FnOnce(&mut RunConfig),
) -> World {
    let mut world = World::quiet_with(3, sabotage, |config| {
        config.schedule.seats_min = 4;
        config.schedule.eval_rounds = 0;
        change(config);
    });
    world.network.set_wire(delay, bytes_per_second);
    while world.processes.len() < 4 {
        world.spawn();
    }
    world.processes.retain(|id, _| *id < 4);
    world
}

/// Microseconds of a step in the steady state, as the host's rows say.
fn step_us(mut world: World) -> u64 {
    let rounds = |world: &World| world.summary.rounds;
    world
        .run_until(Span::from_secs(3_600), |world| rounds(world) >= 3)
        .unwrap();
    let newest = world.host.as_ref().unwrap().history().newest_first().next();
    let commit = newest.unwrap();
    commit.elapsed_us / commit.steps().count() as u64
}

/// 25 ms one way, and 20 ms for the bytes of a microbatch: with four seats a microbatch is on the wire for nine times
/// as long as a seat computes it.
fn slow() -> (Span, u64) {
    let config = pipe(Span::ZERO, u64::MAX, false).config;
    let bytes = config.forward_payload_bytes() as u64;
    (Span::from_millis(25), bytes * 1_000 / 20)
}

#[test]
fn slow_links_hide_behind_compute() {
    let computed_us = u64::from(MICROBATCHES) * MICROBATCH_MS * 1_000;
    let (delay, bytes_per_second) = slow();
    let percent = |blind| 100 * computed_us / step_us(pipe(delay, bytes_per_second, blind));
    let (hidden, blind) = (percent(false), percent(true));
    assert!(
        hidden >= 90,
        "{hidden} % of what compute alone would allow; {blind} % without regard to links"
    );
    assert!(blind < 75, "the link is not slow enough to tell: {blind} %");
}

#[test]
fn the_credit_of_a_seat_is_enough_for_a_link_of_many_microbatches() {
    // 100 ms one way: more than three microbatches are on each link, and as long is the way of their credit.
    let (_, bytes_per_second) = slow();
    let world = |blind| pipe(Span::from_millis(100), 4 * bytes_per_second, blind);
    let computed_us = u64::from(MICROBATCHES) * MICROBATCH_MS * 1_000;
    let percent = |blind| 100 * computed_us / step_us(world(blind));
    let (hidden, blind) = (percent(false), percent(true));
    // What is missing is the way through the pipe and back, once a step.
    assert!(
        hidden >= 82,
        "{hidden} % of what compute alone would allow; {blind} % without regard to links"
    );
    assert!(blind < 40, "the link is not slow enough to tell: {blind} %");
}

/// Steps of 48 sequences in so many microbatches, each of which costs 10 ms whatever its size and 1.5 ms a sequence.
fn cut_into(microbatches: u16, delay: Span, bytes_per_second: u64) -> World {
    let mut world = seats(Sabotage::default(), delay, bytes_per_second, |config| {
        config.training.microbatches = microbatches;
        config.training.batch = 48;
        config.schedule.round_steps = 8;
    });
    for process in world.processes.values_mut() {
        (process.pace_ms, process.fixed_us, process.job_ms) = (2, 10_000, Some(1));
    }
    world
}

/// Runs until links are known; the newest round's mean step, what the host reckons with, and what it proposes.
fn cut(mut world: World) -> (u64, u64, Option<u16>) {
    world
        .run_until(Span::from_secs(3_600), |world| world.summary.rounds >= 30)
        .unwrap();
    let host = world.host.as_ref().unwrap();
    let commit = host.history().newest_first().next().unwrap();
    let step_us = commit.elapsed_us / commit.steps().count() as u64;
    let expected_us = u64::try_from(host.expected_step_us().unwrap()).unwrap();
    let proposed = host.view().proposal.map(|it| it.microbatches);
    // The person was told of it, and of no number twice.
    let told = &world.proposed;
    let once: BTreeSet<u16> = told.iter().copied().collect();
    assert_eq!(once.len(), told.len(), "{told:?}");
    assert!(proposed.is_none_or(|it| once.contains(&it)), "{told:?}");
    (step_us, expected_us, proposed)
}

#[test]
fn no_other_cut_of_a_step_is_much_faster_than_the_one_that_is_proposed() {
    // A microbatch of four sequences is 20 ms on the second line, longer than at a seat.
    let (_, slow) = slow();
    for (delay_ms, bytes_per_second) in [(2, u64::MAX), (40, u64::MAX), (10, 2 * slow)] {
        let delay = Span::from_millis(delay_ms);
        let all = [1, 2, 3, 4, 6, 8, 12, 16, 24, 48];
        let measured = all.map(|count| (count, cut(cut_into(count, delay, bytes_per_second))));
        let best_us = measured.iter().map(|(_, (step_us, ..))| *step_us).min();
        let best_us = best_us.unwrap();
        for &(count, (step_us, expected_us, proposed)) in &measured {
            // Here each link has a line of its own each way; a seat at home sends to both neighbours over one.
            let off_by = step_us.abs_diff(expected_us);
            let is_close = 10 * off_by <= step_us || bytes_per_second < u64::MAX;
            assert!(is_close, "{count}: {measured:?}, {delay:?}");
            if count == 48 {
                // From microbatches of one sequence nobody learns what larger ones would save.
                assert_eq!(proposed, None);
                continue;
            }
            let count = proposed.unwrap_or(count);
            let mut measured = measured.iter();
            let (_, (step_us, ..)) = measured.find(|(it, _)| *it == count).unwrap();
            // What gains less than a tenth is not worth a change; as much again is for what is left out.
            assert!(
                *step_us * 100 <= best_us * 120,
                "{count}: {measured:?}, {delay:?}"
            );
        }
    }
}

/// A world over quick links that has trained for a while, and the process that sits behind the head.
fn training(seed: u64) -> (World, ProcessId) {
    let mut world = World::quiet_with(seed, Sabotage::default(), |config| {
        config.schedule.seats_min = 2;
        // Rounds of some steps: speeds are known after twelve of them.
        config.merge.kind = MergeKind::Outer;
        config.schedule.round_steps = 3;
    });
    world.network.set_wire(Span::from_millis(20), u64::MAX);
    world
        .run_until(Span::from_secs(600), |world| world.summary.rounds >= 12)
        .unwrap();
    let id = world.seated(1).unwrap();
    (world, id)
}

#[test]
fn a_device_that_hangs_while_its_links_live_costs_its_seat_in_bounded_time() {
    for seed in 1..=8 {
        let (mut world, second) = training(seed);
        let id = match seed % 2 {
            0 => second,
            _ => world.seated(0).unwrap(),
        };
        if world.processes.len() < 3 {
            continue; // too few would be left
        }
        let peer = world.processes[&id].peer.id().unwrap();
        let hung = world.processes.get_mut(&id).unwrap();
        hung.hung_until = Some(world.now + Span::from_secs(60));
        let rounds = world.summary.rounds;
        // It is noticed after 10 s; a stall would be after 30 s, and cost the next line-up, too.
        world
            .run_until(Span::from_secs(20), |world| {
                let line_up = world
                    .host
                    .as_ref()
                    .unwrap()
                    .history()
                    .line_ups()
                    .values()
                    .next();
                let (_, seats) = line_up.unwrap();
                world.summary.rounds >= rounds + 2 && seats.iter().all(|seat| seat.peer != peer)
            })
            .unwrap();
        assert_eq!(state_of(&world, peer), "paused");
        world
            .run_until(Span::from_secs(60), |world| {
                state_of(world, peer) != "paused"
            })
            .unwrap();
    }
}

/// How the host sees a volunteer.
fn state_of(world: &World, peer: PeerId) -> String {
    let view = world.host.as_ref().unwrap().view();
    let mut volunteers = view.volunteers.into_iter();
    volunteers.find(|it| it.peer == peer).unwrap().state
}

#[test]
fn a_seat_whose_machine_becomes_busy_is_known_to_be_slower() {
    let (mut world, id) = training(2);
    let block_us = |world: &World| world.processes[&id].peer.stats().block_us;
    let told = block_us(&world);
    assert_eq!(told, world.processes[&id].block_us(), "as it was measured");
    let process = world.processes.get_mut(&id).unwrap();
    process.pace_ms *= 3;
    // The first word may come while its window holds both paces.
    world
        .run_until(Span::from_secs(120), |world| block_us(world) > 2 * told)
        .unwrap();
    let now = block_us(&world);
    assert!(now <= 3 * told + 1, "{now} after {told}");
}

#[test]
fn a_page_that_is_hidden_or_seen_again_is_known_by_its_new_speed_within_eight_microbatches() {
    let mut world = pipe(Span::from_millis(5), u64::MAX, false);
    world
        .run_until(Span::from_secs(600), |world| world.summary.rounds >= 1)
        .unwrap();
    let id = world.seated(1).unwrap();
    let block_us = |world: &World| world.processes[&id].peer.stats().block_us;
    let done = |world: &World| world.processes[&id].peer.stats().microbatches;
    // Each change comes long before the minute is over that otherwise lies between two words of a speed.
    for (hidden, times) in [(true, 4), (false, 1), (true, 4)] {
        let (told, before) = (block_us(&world), done(&world));
        let process = world.processes.get_mut(&id).unwrap();
        process.pace_ms = 20 * times;
        process.peer.hide(hidden);
        world
            .run_until(Span::from_secs(60), |world| done(world) >= before + 9)
            .unwrap();
        let now = block_us(&world);
        assert!(now.abs_diff(told) > told / 2, "{now} after {told}");
        let expected = world.processes[&id].block_us();
        assert!(now.abs_diff(expected) <= 1, "{now} instead of {expected}");
    }
}

/// Loses the next message of a kind to one seat, and expects rounds again long before a stall would be noticed.
fn check_lost(is_it: fn(&Down) -> bool) {
    for seed in 1..=8 {
        let (mut world, id) = training(seed);
        world.lost = Some((id, is_it));
        world
            .run_until(Span::from_secs(10), |world| world.lost.is_none())
            .unwrap();
        let rounds = world.summary.rounds;
        world
            .run_until(Span::from_secs(20), |world| {
                world.summary.rounds >= rounds + 3
            })
            .unwrap();
    }
}

#[test]
fn a_commit_that_is_lost_is_asked_for() {
    check_lost(|message| matches!(message, Down::Commit { .. }));
}

#[test]
fn a_begin_that_is_lost_is_asked_for() {
    check_lost(|message| {
        matches!(
            message,
            Down::Begin {
                mode: Mode::Train,
                ..
            }
        )
    });
}

#[test]
fn a_host_killed_while_it_says_begin_costs_no_stall() {
    for seed in 1..=8 {
        let (mut world, _) = training(seed);
        let head = world.seated(0).unwrap();
        world.lost = Some((head, |message| {
            matches!(
                message,
                Down::Begin {
                    mode: Mode::Train,
                    ..
                }
            )
        }));
        let bound = Span::from_secs(10);
        world
            .run_until(bound, |world| world.lost.is_none())
            .unwrap();
        // The others hear it, and keep the attempt that the next host knows nothing of.
        let heard = world.now + world.one_way() + Span::from_millis(1);
        world.run_until(bound, |world| world.now > heard).unwrap();
        world.crash_host();
        let rounds = world.summary.rounds;
        let line_ups = world.summary.line_ups;
        // It is away for 12 s at most.
        world
            .run_until(Span::from_secs(30), |world| {
                world.summary.rounds >= rounds + 2
            })
            .unwrap();
        assert_eq!(world.summary.line_ups, line_ups, "seed {seed}");
    }
}

#[test]
fn a_seat_that_is_lost_is_asked_for() {
    let (mut world, id) = training(2);
    // Whoever sits there leaves its seat when the head does.
    world.lost = Some((id, |message| matches!(message, Down::Seat(_))));
    let head = world.seated(0).unwrap();
    world.bury(head);
    world
        .run_until(Span::from_secs(20), |world| world.lost.is_none())
        .unwrap();
    let rounds = world.summary.rounds;
    world
        .run_until(Span::from_secs(25), |world| {
            world.summary.rounds >= rounds + 2
        })
        .unwrap();
}

#[test]
fn links_are_told_as_they_are_and_seldom() {
    let (delay, bytes_per_second) = slow();
    let mut world = pipe(delay, bytes_per_second, false);
    world
        .run_until(Span::from_secs(3_600), |world| world.summary.rounds >= 4)
        .unwrap();
    assert_eq!(world.summary.line_ups, 1, "nothing flaps");
    assert_eq!(world.links_told.len(), 4);
    let mut rates = 0;
    for (times, links) in world.links_told.values() {
        assert!(*times <= 3, "told {times} times");
        for link in links {
            assert_eq!(link.delay_us, delay.as_micros());
            // A link that only copies went over has no rate.
            let Some(found) = link.bytes_per_second else {
                continue;
            };
            rates += 1;
            let off = found.abs_diff(bytes_per_second) * 100 / bytes_per_second;
            assert!(off <= 15, "{found} instead of {bytes_per_second}");
        }
    }
    assert_eq!(rates, 6, "three borders, both ways");
}

#[test]
fn whoever_was_measured_while_its_machine_was_busy_gets_a_seat_once_it_is_not() {
    let mut world = World::quiet_with(1, Sabotage::default(), |config| {
        config.schedule.seats_min = 1;
    });
    world.network.set_wire(Span::from_millis(1), u64::MAX);
    world.processes.retain(|id, _| *id < 2);
    for (id, process) in &mut world.processes {
        process.pace_ms = 20;
        process.busy_times = if *id == 1 { 20 } else { 1 };
    }
    world
        .run_until(Span::from_secs(60), |world| world.summary.rounds >= 4)
        .unwrap();
    assert_eq!(world.seated(1), None, "so slow it is of no use");
    for process in world.processes.values_mut() {
        process.busy_times = 1;
    }
    world
        .run_until(Span::from_secs(60), |world| world.seated(1).is_some())
        .unwrap();
}
