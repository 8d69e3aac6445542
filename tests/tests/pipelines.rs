//! Several pipelines beside each other, as real processes over real connections: what each trained in a round is merged
//! between them, peer to peer, and one that is lost costs the others nothing.

use std::time::Duration;

use serde_json::Value;
use tests::community::{Community, Small, losses};
use tests::judge;
use tests::process::Signal;

/// How long all are given to take part, on a machine that does other things, too.
const GATHER_MAX: Duration = Duration::from_secs(90);

/// Two pipelines, each as long as `seats` and no longer than it must be.
fn gather(seats: u16, names: &[&str]) -> Community {
    gather_in(
        &Small {
            seats_min: seats,
            pipelines_max: 2,
            ..Small::default()
        },
        names,
    )
}

fn gather_in(small: &Small, names: &[&str]) -> Community {
    let mut community = Community::gather(small, names).expect("a community gathers");
    community
        .host
        .wait_until("a round of two pipelines", GATHER_MAX, |run| {
            merged(run) > 0
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", community.said()));
    community
}

/// Committed rounds that several pipelines trained.
fn merged(run: &Value) -> usize {
    let rounds = run["rounds"].as_array().expect("the run lists its rounds");
    let is_merged = |round: &&Value| round["pipelines"].as_u64() > Some(1);
    rounds.iter().filter(is_merged).count()
}

#[test]
fn two_pipelines_of_two_seats_merge_and_the_loss_falls() {
    let mut community = gather(2, &["anchovy", "herring", "sardine", "sprat"]);
    // Where one is overtaken on a busy machine the next round waits for it.
    community
        .host
        .wait_until("four merges", GATHER_MAX, |run| merged(run) >= 4)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", community.said()));
    let run = community.host.api().expect("it answers");
    let all = losses(&run).expect("losses");
    let (first, last) = (all[0].1, all[all.len() - 1].1);
    assert!(last < 0.8 * first, "from {first} to {last}");
    judge::audit(&community).expect("the journal tells a true story");
}

#[test]
fn two_pipelines_of_two_seats_merge_their_gradients_and_one_that_is_killed_costs_a_step() {
    let small = Small {
        seats_min: 2,
        pipelines_max: 2,
        merge_kind: "gradient",
        round_steps: 1,
        ..Small::default()
    };
    let mut community = gather_in(&small, &["anchovy", "herring", "sardine", "sprat"]);
    community
        .host
        .wait_until("forty merges", GATHER_MAX, |run| merged(run) >= 40)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", community.said()));
    let run = community.host.api().expect("it answers");
    let all = losses(&run).expect("losses");
    let (first, last) = (all[0].1, all[all.len() - 1].1);
    assert!(last < 0.8 * first, "from {first} to {last}");
    community.kill(1).expect("a volunteer is killed");
    community.go_on(2).expect("the others go on");
    judge::audit(&community).expect("the journal tells a true story");
}

#[test]
fn pipelines_whose_devices_only_wait_merge_as_others_do() {
    let small = Small {
        seats_min: 2,
        pipelines_max: 2,
        ..Small::default()
    };
    let mut community = Community::gather(&small, &[]).expect("a host starts");
    for name in ["anchovy", "herring", "sardine", "sprat"] {
        // A millisecond a microbatch and block: `cargo xtask figures scaling` measures with such devices.
        let pretend = [("SHOAL_PRETEND_US", "1000".as_ref())];
        let volunteer = community.host.volunteer_among(name, &[], pretend);
        community.volunteers.push(volunteer.expect("it starts"));
    }
    community
        .host
        .wait_until("four merged rounds", GATHER_MAX, |run| merged(run) > 3)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", community.said()));
    let run = community.host.api().expect("the host answers");
    // They learn nothing: a nat a token is what they say of each.
    assert!(
        losses(&run)
            .expect("losses")
            .iter()
            .all(|(_, loss)| *loss == 1.0)
    );
    judge::audit(&community).expect("the journal tells a true story");
}

#[test]
fn a_pipeline_that_is_killed_costs_the_other_nothing_and_comes_back() {
    let mut community = gather(1, &["anchovy", "herring"]);
    community
        .reach_mid_round(|run| run["pipelines"].as_u64() == Some(2))
        .expect("both are at work");
    community.kill(1).expect("a volunteer is killed");
    let before = community.round().expect("a round");
    let run = community.go_on(2).expect("the other one goes on");
    let alone = |round: &&Value| round["pipelines"].as_u64() == Some(1);
    let rounds = run["rounds"].as_array().expect("rounds");
    let since = |round: &&Value| round["round"].as_u64() > Some(before);
    assert!(rounds.iter().filter(since).any(|it| alone(&it)), "{run:#}");
    community.join("sprat").expect("a newcomer starts");
    let merged_before = merged(&run);
    community
        .host
        .wait_until("a merge with the newcomer", GATHER_MAX, |run| {
            merged(run) > merged_before + 1
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", community.said()));
    judge::audit(&community).expect("the journal tells a true story");
}

#[test]
fn a_pipeline_that_is_frozen_in_a_merge_holds_the_other_up_for_seconds_only() {
    let mut community = gather(1, &["anchovy", "herring"]);
    community
        .reach_mid_round(|run| run["pipelines"].as_u64() == Some(2))
        .expect("both are at work");
    community.volunteers[1]
        .signal(Signal::STOP)
        .expect("it is frozen");
    // It is suspected, asked, and given up within 10 s; then the round is what the other one trained.
    community.go_on(2).expect("the other one goes on");
    community.volunteers[1]
        .signal(Signal::CONT)
        .expect("it goes on");
    judge::audit(&community).expect("the journal tells a true story");
}
