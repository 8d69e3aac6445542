//! The simulation is worth what it notices: each rule, broken on purpose, is caught within a few seeds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Sabotage, run};
use crate::{coordinator, peer};

/// Seeds that a broken rule may survive.
const SEEDS: u64 = 400;

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
    for seed in 1..=5 {
        let summary = run(seed, Sabotage::default()).unwrap();
        assert!(summary.rounds > 3 && summary.faults > 3, "{summary:?}");
    }
}

#[test]
fn a_world_replays_from_its_seed() {
    assert_eq!(run(7, Sabotage::default()), run(7, Sabotage::default()));
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
