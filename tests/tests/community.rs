//! Runs between real processes over real connections, and what happens to them.
//!
//! Each test gathers a small community of its own. A fault is what a person's machine does: a
//! signal, never a hook in the program. After each, rounds go on to be committed, the journal's
//! auditor is content, and the loss is that of a run to which nothing happened.

use std::time::Duration;

use tests::community::{Community, ROUND_WAIT_MAX, Small};
use tests::judge;
use tests::process::{Signal, now_ms};
use tests::shelf;

/// The seat of a killed or frozen volunteer is given to others within this.
const NOTICE_MAX: Duration = Duration::from_secs(10);

fn gather(names: &[&str]) -> Community {
    Community::gather(&Small::default(), names).expect("a community gathers")
}

fn check_recovered(community: &mut Community) {
    judge::recovered(community).expect("the run is as if nothing had happened");
}

/// Asserts that the host gives a volunteer's seat to others in time, by the clock of the host's event.
fn check_noticed(community: &mut Community, name: &str, since_ms: u64) {
    let took = community
        .lost_after(name, since_ms, ROUND_WAIT_MAX)
        .expect("the host notices");
    assert!(took <= NOTICE_MAX, "{name} was missed after {took:?}");
}

#[test]
fn an_upload_over_a_slow_line_arrives_however_long_it_takes() {
    let small = Small {
        seats_min: 1,
        ..Small::default()
    };
    let mut community = Community::gather(&small, &[]).expect("a host starts");
    // All four stages, 665 kB, take longer than any silence that either end puts up with.
    community
        .join_with("anchovy", &["--max-upload", "120kbit"])
        .expect("a volunteer starts");
    community
        .host
        .wait_until("a checkpoint", ROUND_WAIT_MAX, |run| {
            run["checkpoint_round"].as_u64() >= Some(1)
        })
        .expect("the host stores it");
}

#[test]
fn volunteers_train_together_and_the_loss_falls() {
    let all = judge::undisturbed().expect("a run to which nothing happens");
    let (first, last) = (all[0].1, all[all.len() - 1].1);
    assert!(last < 0.6 * first, "from {first} to {last}");
}

#[test]
fn a_newcomer_takes_part_in_a_running_run() {
    // So slow that the newcomer is worth a seat, even if it is measured while the machine is busy.
    let mut community = gather(&[]);
    for name in ["anchovy", "herring"] {
        community
            .join_with(name, &["--throttle", "20"])
            .expect("a slow volunteer starts");
    }
    community.reach(1).expect("two volunteers train");
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
    let mut leaving = community.volunteers.remove(leaving);
    leaving.signal(Signal::INT).expect("it runs");
    leaving
        .wait_for("its answer", NOTICE_MAX, |event| event["event"] == "finish")
        .expect("it says that it finishes");
    let next = leaving.wait_for("what is next", ROUND_WAIT_MAX, |event| {
        event["event"] == "commit" || event["event"] == "end"
    });
    let next = next.expect("its round is committed");
    assert_eq!(next["ours"], true, "it leaves without its work: {next}");
    let ended = leaving.wait_end(ROUND_WAIT_MAX).expect("it leaves");
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
    let killed_ms = now_ms();
    community.kill(victim).expect("it is killed");
    check_noticed(&mut community, &name, killed_ms);
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
    let frozen_ms = now_ms();
    community.volunteers[victim]
        .signal(Signal::STOP)
        .expect("it is frozen");
    check_noticed(&mut community, &name, frozen_ms);
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
    let before = community
        .reach_mid_round(|run| run["round"].as_u64() >= Some(3))
        .expect("two volunteers train");
    community.host.program().kill().expect("the host is killed");
    community.events();
    community.host.restart().expect("it starts again");
    let after = community.host.api().expect("it answers");
    assert!(
        after["samples"].as_u64() >= before["samples"].as_u64(),
        "{after:#}"
    );
    // The round that was under way is not begun anew: what was leased is in the next commit.
    for volunteer in &mut community.volunteers {
        let next = volunteer.wait_for("a commit", ROUND_WAIT_MAX, |event| {
            event["event"] == "commit" || event["event"] == "seat"
        });
        let next = next.expect("it goes on");
        assert_eq!(next["ours"], true, "its round is lost: {next}");
    }
    check_recovered(&mut community);
}

/// A run that is in its store now and then, and no longer so when this returns; the round in the store, too.
fn ahead_of_its_store() -> (Community, u64) {
    let small = Small {
        checkpoint_minutes: 0.05,
        ..Small::default()
    };
    let names = ["anchovy", "herring"];
    let mut community = Community::gather(&small, &names).expect("a community gathers");
    let run = community
        .reach_mid_round(|run| {
            let stored = run["checkpoint_round"].as_u64();
            stored >= Some(2) && run["round"].as_u64() > stored
        })
        .expect("checkpoints are written");
    let stored = run["checkpoint_round"].as_u64().expect("a round");
    (community, stored)
}

#[test]
fn a_run_whose_processes_were_all_killed_and_whose_disks_are_lost_goes_on_from_its_store() {
    let (mut community, stored) = ahead_of_its_store();
    community.kill_all().expect("all are killed");
    community.host.restart().expect("the host starts again");
    for name in ["sardine", "sprat"] {
        community
            .join(name)
            .expect("a volunteer with nothing starts");
    }
    let to = community.hear_rewind().expect("the newest state is lost");
    assert!(to >= stored, "round {to} instead of {stored}");
    check_recovered(&mut community);
}

#[test]
fn a_stage_that_is_lost_with_its_last_holder_takes_the_run_back_to_its_store() {
    let (mut community, stored) = ahead_of_its_store();
    let holder = community
        .holder_of(0)
        .expect("somebody holds the first stage");
    let other = community.volunteers[1 - holder].name().to_owned();
    // The other one has a copy as soon as there is time for it; it is killed, too, and comes back without.
    community.kill_volunteers().expect("both are killed");
    let states = shelf::kept(&community.host.identity(&other)).expect("states are kept");
    let copies = states.iter().filter(|state| state.stage == 0);
    for copy in copies.filter(|state| state.round > stored) {
        std::fs::remove_file(&copy.path).expect("it was there");
    }
    community.join(&other).expect("it starts again");
    community.join("sardine").expect("another one starts");
    let to = community.hear_rewind().expect("the first stage is lost");
    assert!(to >= stored, "round {to} instead of {stored}");
    check_recovered(&mut community);
}

#[test]
fn any_cut_of_the_pipeline_gives_the_losses_of_the_whole() {
    check_cuts(Small::default().codec, &[2, 3, 4]);
}

#[test]
fn any_cut_of_a_pipeline_that_learns_its_bases_gives_the_losses_of_the_whole() {
    // Two borders inside the seats, and one between them.
    let codec = "codec = \"projector\"\nrank = 8\nanchor = 8\nbasis = \"learned\"";
    check_cuts(codec, &[2, 4]);
}

#[test]
fn any_cut_of_a_pipeline_whose_subspace_turns_gives_the_losses_of_the_whole() {
    // In five rounds it turns twice.
    let codec = "codec = \"subspace\"\nrank = 8\nadapt_rounds = 2";
    check_cuts(codec, &[2, 4]);
}

fn check_cuts(codec: &'static str, cuts: &[u16]) {
    let whole = step_losses(codec, 1);
    assert!(whole.len() >= 50, "{} steps", whole.len());
    for &seats in cuts {
        let cut = step_losses(codec, seats);
        for (step, (one, many)) in whole.iter().zip(cut).enumerate().take(50) {
            let tolerance = 1e-4 * one.abs();
            assert!(
                (one - many).abs() <= tolerance,
                "step {step} over {seats}: {many}, not {one}"
            );
        }
    }
}

/// The loss of each of the first 50 steps with so many volunteers, a stage or more each.
fn step_losses(codec: &'static str, seats: u16) -> Vec<f64> {
    let small = Small {
        codec,
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
