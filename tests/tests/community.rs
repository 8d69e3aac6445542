//! Runs between real processes over real connections, and what happens to them.
//!
//! Each test gathers a small community of its own. A fault is what a person's machine does: a
//! signal, never a hook in the program. After each, rounds go on to be committed, the journal's
//! auditor is content, and the loss is that of a run to which nothing happened.

use std::time::Duration;

use serde_json::Value;
use tests::community::{Community, Small};
use tests::judge;
use tests::process::Signal;

/// A killed or frozen volunteer is noticed within this.
const NOTICE_MAX: Duration = Duration::from_secs(10);

fn gather(names: &[&str]) -> Community {
    Community::gather(&Small::default(), names).expect("a community gathers")
}

fn check_recovered(community: &mut Community) {
    judge::recovered(community).expect("the run is as if nothing had happened");
}

#[test]
fn volunteers_train_together_and_the_loss_falls() {
    let all = judge::undisturbed().expect("a run to which nothing happens");
    let (first, last) = (all[0].1, all[all.len() - 1].1);
    assert!(last < 0.6 * first, "from {first} to {last}");
}

#[test]
fn a_newcomer_takes_part_in_a_running_run() {
    let mut community = gather(&["anchovy", "herring"]);
    community.reach(2).expect("two volunteers train");
    community.join("sardine").expect("a third one starts");
    community.volunteers[2]
        .wait_for("its first microbatch", Duration::from_secs(60), |event| {
            event["event"] == "first_microbatch"
        })
        .expect("the newcomer works");
    check_recovered(&mut community);
}

#[test]
fn a_volunteer_that_leaves_by_ctrl_c_loses_nothing() {
    let mut community = gather(&["anchovy", "herring", "sardine"]);
    community.reach(2).expect("three volunteers train");
    let leaving = community
        .holder_of(0)
        .expect("somebody holds the first stage");
    let ended = community.interrupt(leaving).expect("it leaves");
    assert_eq!(ended.code(), Some(0), "a volunteer that finishes ends well");
    check_recovered(&mut community);
}

#[test]
fn a_killed_volunteer_is_noticed_and_replaced() {
    let mut community = gather(&["anchovy", "herring", "sardine"]);
    community.reach(3).expect("three volunteers train");
    let victim = community
        .holder_of(0)
        .expect("somebody holds the first stage");
    let name = community.volunteers[victim].name().to_owned();
    community.kill(victim).expect("it is killed");
    community
        .wait_for_volunteers("the loss to be noticed", NOTICE_MAX, |listed| {
            listed
                .iter()
                .all(|one| one["name"] != name.as_str() || one["state"] == "away")
        })
        .expect("the host notices");
    check_recovered(&mut community);
}

#[test]
fn a_frozen_volunteer_is_noticed_and_comes_back_when_it_thaws() {
    let mut community = gather(&["anchovy", "herring", "sardine"]);
    community.reach(3).expect("three volunteers train");
    let victim = community
        .holder_of(0)
        .expect("somebody holds the first stage");
    let name = community.volunteers[victim].name().to_owned();
    community.volunteers[victim]
        .signal(Signal::STOP)
        .expect("it is frozen");
    community
        .wait_for_volunteers("the freeze to be noticed", NOTICE_MAX, |listed| {
            let it = listed.iter().find(|one| one["name"] == name.as_str());
            it.is_none_or(|one| one["state"] != "seated")
        })
        .expect("the host notices");
    community.go_on(2).expect("the others go on");
    community.volunteers[victim]
        .signal(Signal::CONT)
        .expect("it thaws");
    community
        .wait_for_volunteers("its return", Duration::from_secs(60), |listed| {
            let it = listed.iter().find(|one| one["name"] == name.as_str());
            it.is_some_and(|one| one["state"] != "away")
        })
        .expect("it comes back");
    check_recovered(&mut community);
}

#[test]
fn a_host_that_is_killed_and_started_again_goes_on_where_it_was() {
    let mut community = gather(&["anchovy", "herring"]);
    let before = community.reach(3).expect("two volunteers train");
    community.host.program().kill().expect("the host is killed");
    community.host.restart().expect("it starts again");
    let after = community.host.api().expect("it answers");
    assert!(
        after["samples"].as_u64() >= before["samples"].as_u64(),
        "{after:#}"
    );
    check_recovered(&mut community);
}

#[test]
fn a_run_whose_processes_were_all_killed_goes_on_from_its_store() {
    let small = Small {
        checkpoint_minutes: 0.05,
        ..Small::default()
    };
    let names = ["anchovy", "herring"];
    let mut community = Community::gather(&small, &names).expect("a community gathers");
    let stored = |run: &Value| run["checkpoint_round"].as_u64() >= Some(2);
    let before = community
        .host
        .wait_until("a checkpoint of round 2", Duration::from_secs(90), stored)
        .expect("checkpoints are written");
    community.host.program().kill().expect("the host is killed");
    for _ in names {
        community.kill(0).expect("a volunteer is killed");
    }
    community.host.restart().expect("the host starts again");
    for name in names {
        community.join(name).expect("a volunteer starts again");
    }
    let round = before["round"].as_u64().expect("a round");
    community
        .reach(round + 2)
        .expect("rounds are committed again");
    check_recovered(&mut community);
}

#[test]
fn a_stage_that_is_lost_with_its_last_holder_takes_the_run_back_to_its_store() {
    let small = Small {
        checkpoint_minutes: 0.05,
        ..Small::default()
    };
    let mut community =
        Community::gather(&small, &["anchovy", "herring"]).expect("a community gathers");
    let stored = |run: &Value| run["checkpoint_round"].as_u64() >= Some(2);
    community
        .host
        .wait_until("a checkpoint of round 2", Duration::from_secs(90), stored)
        .expect("checkpoints are written");
    let holder = community
        .holder_of(0)
        .expect("somebody holds the first stage");
    community.kill(holder).expect("it is killed");
    community.join("sardine").expect("another one starts");
    check_recovered(&mut community);
}

#[test]
fn any_cut_of_the_pipeline_gives_the_losses_of_the_whole() {
    let whole = step_losses(1);
    assert!(whole.len() >= 50, "{} steps", whole.len());
    for seats in 2..=4 {
        for (step, (one, many)) in whole.iter().zip(step_losses(seats)).enumerate().take(50) {
            let tolerance = 1e-4 * one.abs();
            assert!(
                (one - many).abs() <= tolerance,
                "step {step} over {seats}: {many}, not {one}"
            );
        }
    }
}

/// The loss of each of the first 50 steps with so many volunteers, a stage or more each.
fn step_losses(seats: u16) -> Vec<f64> {
    let small = Small {
        seats_min: seats,
        ..Small::default()
    };
    let names = &["anchovy", "herring", "sardine", "sprat"][..usize::from(seats)];
    let mut community = Community::gather(&small, names).expect("a community gathers");
    community
        .reach(5)
        .expect("five rounds of ten steps are committed");
    let events = community.events();
    let mut steps: Vec<(u64, u64, f64)> = events
        .iter()
        .filter(|event| event["event"] == "step")
        .filter_map(|event| {
            Some((
                event["round"].as_u64()?,
                event["steps"].as_u64()?,
                event["loss"].as_f64()?,
            ))
        })
        .collect();
    steps.sort_by_key(|(round, step, _)| (*round, *step));
    steps.dedup_by_key(|(round, step, _)| (*round, *step));
    steps
        .into_iter()
        .map(|(_, _, loss)| loss)
        .take(50)
        .collect()
}
