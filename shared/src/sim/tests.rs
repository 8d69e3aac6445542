//! The simulation is worth what it notices: each rule, broken on purpose, is caught within a few seeds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Sabotage, World, run};
use crate::coordinator::history::Row;
use crate::units::{Round, Span};
use crate::{coordinator, peer};

/// Seeds that a broken rule may survive.
const SEEDS: u64 = 50;

/// Whether any of a few worlds fails. A panic counts: an invariant inside was broken.
fn is_noticed(sabotage: Sabotage) -> bool {
    (1..=SEEDS).any(|seed| {
        catch_unwind(AssertUnwindSafe(|| run(seed, sabotage)))
            .map_or(true, |result| result.is_err())
    })
}

fn in_host(broken: coordinator::BrokenRules) -> Sabotage {
    Sabotage {
        host: broken,
        ..Sabotage::default()
    }
}

fn in_peers(broken: peer::BrokenRules) -> Sabotage {
    Sabotage {
        peer: broken,
        ..Sabotage::default()
    }
}

#[test]
fn worlds_with_all_rules_kept_go_well() {
    let mut merges = 0;
    for seed in 1..=5 {
        let summary = run(seed, Sabotage::default()).unwrap();
        assert!(summary.rounds > 3 && summary.faults > 3, "{summary:?}");
        merges += summary.merges;
    }
    assert!(merges > 3, "pipelines merge");
}

#[test]
fn a_world_replays_from_its_seed() {
    assert_eq!(run(7, Sabotage::default()), run(7, Sabotage::default()));
}

#[test]
fn everybody_killed_and_started_again_goes_on_from_a_round_no_older_than_the_safe_one() {
    for seed in 1..=50 {
        let mut world = World::quiet(seed);
        let bound = Span::from_secs(600);
        let rounds = |world: &World| world.summary.rounds;
        world.run_until(bound, |world| rounds(world) >= 8).unwrap();
        let safe = world.host.as_ref().expect("it is up").safe();
        world.power_cut();
        world.run_until(bound, |world| rounds(world) >= 11).unwrap();
        // Whoever is killed just after a commit may not have written it, when others have dropped the round before.
        let rewinds = world.rows.iter().filter_map(|row| match row {
            Row::Rewind { to } => Some(*to),
            Row::Started { .. }
            | Row::LineUp { .. }
            | Row::Commit(_)
            | Row::Evaluated { .. }
            | Row::Manifest { .. }
            | Row::Paused { .. }
            | Row::Resumed => None,
        });
        let rewinds: Vec<Round> = rewinds.collect();
        assert!(
            rewinds.iter().all(|to| *to >= safe),
            "seed {seed}: {rewinds:?}, and round {safe} was safe"
        );
    }
}

#[test]
fn frames_of_an_old_epoch_taken_for_current_ones_are_noticed() {
    let broken = peer::BrokenRules {
        ignore_epoch: true,
        ..Default::default()
    };
    assert!(is_noticed(in_peers(broken)));
}

#[test]
fn a_stale_clip_scale_is_noticed() {
    let broken = peer::BrokenRules {
        stale_scale: true,
        ..Default::default()
    };
    assert!(is_noticed(in_peers(broken)));
}

#[test]
fn a_commit_told_before_its_row_is_synced_is_noticed() {
    let broken = coordinator::BrokenRules {
        commit_before_sync: true,
        ..Default::default()
    };
    assert!(is_noticed(in_host(broken)));
}

#[test]
fn a_lease_counted_twice_is_noticed() {
    let broken = coordinator::BrokenRules {
        lease_twice: true,
        ..Default::default()
    };
    assert!(is_noticed(in_host(broken)));
}

#[test]
fn a_manifest_of_a_void_round_is_noticed() {
    let broken = coordinator::BrokenRules {
        void_manifest: true,
        ..Default::default()
    };
    assert!(is_noticed(in_host(broken)));
}

#[test]
fn a_merge_committed_as_one_replica_has_it_is_noticed() {
    let broken = coordinator::BrokenRules {
        any_replica: true,
        ..Default::default()
    };
    assert!(is_noticed(in_host(broken)));
}
