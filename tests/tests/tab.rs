//! Tabs of real headless Chromium as volunteers, in every place that a tab can have beside others.
//!
//! A person opens the page, looks at what it would cost, and lends; then the run is held against one of headless
//! volunteers. Who sits where follows from the memory that they lend. On the processor's path, in one place on WebGPU's,
//! and with `cargo xtask e2e --all` everywhere on both. Needs the built web client (`cargo xtask web`).

mod room;

use std::sync::OnceLock;

use serde_json::Value;
use tests::community::{Community, ROUND_WAIT_MAX, Small, losses};
use tests::judge::{SAME_LOSS_SHARE_MAX, audit, recovered_within};
use tests::tab::{Device, LOAD_MAX, Lend, Tab, devices, gather, small_on, turn};

/// Rounds of one microbatch that are compared, where SwiftShader computes the GPU's path: some hundred times slower
/// than the CPU itself.
const WEBGPU_ROUNDS: u64 = 3;

/// How much somebody lends of its memory, which decides where it sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// For everything.
    All,
    /// For one stage, whichever but the last.
    Head,
    /// For one stage that is neither the first nor the last.
    Inner,
}

impl Room {
    fn bytes(self, small: &Small) -> Option<u64> {
        let [first, inner, last] = [0, 1, 3].map(|stage| room::memory_of(small, stage, stage + 1));
        assert!(inner < first && first < last && last < 2 * inner);
        match self {
            Self::All => None,
            Self::Head => Some(first),
            Self::Inner => Some(inner),
        }
    }
}

fn lend(community: &Community, small: &Small, device: Device, room: Room) -> Tab {
    let how = Lend {
        device,
        memory_bytes: room.bytes(small),
        ..Lend::default()
    };
    let mut tab = Tab::lend(community, &how).expect("a tab lends");
    if device == Device::WebGpu {
        tab.stands("now.device.startsWith('WebGPU')", LOAD_MAX)
            .expect("it computes on WebGPU");
    }
    tab
}

fn join(community: &mut Community, small: &Small, name: &str, room: Room) {
    let memory = room.bytes(small).map(|bytes| bytes.to_string());
    let arguments: Vec<&str> = memory
        .iter()
        .flat_map(|bytes| ["--memory", bytes])
        .collect();
    community
        .join_with(name, &arguments)
        .expect("a volunteer starts");
}

fn recovered(community: &mut Community) {
    recovered_within(community, SAME_LOSS_SHARE_MAX).expect("the run is as if all were headless");
}

/// Holds short rounds to those of headless volunteers, one by one.
fn like_headless(community: &mut Community) {
    static LOSSES: OnceLock<Vec<(u64, f64)>> = OnceLock::new();
    let expected = LOSSES.get_or_init(|| {
        let small = small_on(Device::WebGpu, 2);
        let names = ["anchovy", "herring"];
        let mut headless = Community::gather(&small, &names).expect("a community gathers");
        losses(&headless.reach(WEBGPU_ROUNDS).expect("they train")).expect("rounds")
    });
    let mut run = Value::Null;
    for round in 1..=WEBGPU_ROUNDS {
        run = community.reach(round).expect("they train");
    }
    let found = losses(&run).expect("rounds");
    for ((samples, loss), (same, other)) in found.iter().zip(expected) {
        assert_eq!(samples, same);
        assert!(
            (loss - other).abs() <= SAME_LOSS_SHARE_MAX * other,
            "after {samples} samples the loss is {loss}, headless {other}"
        );
    }
}

/// Who sits from the head to the end: `browser` or `native`.
fn kinds(run: &Value) -> Vec<String> {
    let listed = run["volunteers"].as_array().into_iter().flatten();
    let mut seats: Vec<(u64, String)> = listed
        .filter_map(|one| {
            let first = one["stages"]["first"].as_u64()?;
            Some((first, one["kind"].as_str()?.to_owned()))
        })
        .collect();
    seats.sort();
    seats.into_iter().map(|(_, kind)| kind).collect()
}

/// Holds a run to its seats' kinds, from head to end, and to a headless run's losses; then each tab to its silence.
fn check(community: &mut Community, device: Device, tabs: Vec<Tab>, seats: &[&str]) {
    let run = community.reach(1).expect("they train");
    assert_eq!(kinds(&run), seats, "{run:#}");
    match device {
        Device::Cpu => recovered(community),
        Device::WebGpu => like_headless(community),
    }
    assert_eq!(kinds(&community.host.api().expect("an answer")), seats);
    for mut tab in tabs {
        let took = tab.page.evaluate("__told.ready.takes_channels");
        assert_eq!(
            took.expect("an answer"),
            true,
            "its worker has the channels"
        );
        let page = tab.page.wait_for_text("accepted", LOAD_MAX);
        page.expect("the page shows what was accepted");
        tab.check().expect("it says nothing wrong");
    }
}

#[test]
fn a_tab_at_the_head_of_a_headless_volunteer_trains_as_two_such_do() {
    let _turn = turn();
    for device in [Device::Cpu, Device::WebGpu] {
        let small = small_on(device, 2);
        let mut community = gather(&small, &["anchovy"]).expect("a community gathers");
        let tab = lend(&community, &small, device, Room::Head);
        check(&mut community, device, vec![tab], &["browser", "native"]);
    }
}

#[test]
fn a_tab_behind_a_headless_volunteer_trains_as_two_such_do() {
    let _turn = turn();
    for &device in devices() {
        let small = small_on(device, 2);
        let mut community = gather(&small, &[]).expect("a community gathers");
        join(&mut community, &small, "anchovy", Room::Head);
        let tab = lend(&community, &small, device, Room::All);
        check(&mut community, device, vec![tab], &["native", "browser"]);
    }
}

#[test]
fn a_tab_between_headless_volunteers_trains_as_they_do() {
    let _turn = turn();
    for &device in devices() {
        let small = small_on(device, 3);
        let mut community = gather(&small, &["anchovy", "herring"]).expect("a community gathers");
        let tab = lend(&community, &small, device, Room::Inner);
        check(
            &mut community,
            device,
            vec![tab],
            &["native", "browser", "native"],
        );
    }
}

#[test]
fn a_headless_volunteer_between_tabs_trains_as_three_such_do() {
    let _turn = turn();
    for &device in devices() {
        let small = small_on(device, 3);
        let mut community = gather(&small, &[]).expect("a community gathers");
        join(&mut community, &small, "anchovy", Room::Inner);
        let tabs = [(); 2].map(|()| lend(&community, &small, device, Room::All));
        check(
            &mut community,
            device,
            tabs.into(),
            &["browser", "native", "browser"],
        );
    }
}

#[test]
fn two_tabs_train_alone() {
    let _turn = turn();
    for &device in devices() {
        let small = small_on(device, 2);
        let mut community = gather(&small, &[]).expect("a community gathers");
        let tabs = [(); 2].map(|()| lend(&community, &small, device, Room::All));
        check(&mut community, device, tabs.into(), &["browser", "browser"]);
    }
}

#[test]
fn a_tab_that_is_gone_in_mid_round_is_replaced() {
    let _turn = turn();
    let small = small_on(Device::Cpu, 2);
    let mut community = gather(&small, &["anchovy"]).expect("a community gathers");
    let tab = lend(&community, &small, Device::Cpu, Room::All);
    community.reach(2).expect("they train");
    community.join("herring").expect("a spare starts");
    tab.browser.kill();
    drop(tab.page);
    recovered(&mut community);
}

#[test]
fn weights_that_a_tab_trained_are_in_the_manifest() {
    let _turn = turn();
    let small = Small {
        checkpoint_minutes: 0.05,
        ..small_on(Device::Cpu, 2)
    };
    let mut community = gather(&small, &["anchovy"]).expect("a community gathers");
    let mut tab = lend(&community, &small, Device::Cpu, Room::Head);
    let stored = |run: &Value| run["checkpoint_round"].as_u64() >= Some(2);
    let run = community
        .host
        .wait_until("checkpoint", ROUND_WAIT_MAX, stored)
        .expect("the host stores one");
    // Since its beginning the tab alone has had the first stage: nobody else could have trained it.
    assert_eq!(kinds(&run), ["browser", "native"]);
    let round = run["checkpoint_round"].as_u64().expect("it is stored");
    let file = format!("manifests/{round}.json");
    let text = std::fs::read_to_string(community.host.store().join(file)).expect("a manifest");
    let manifest: Value = serde_json::from_str(&text).expect("JSON");
    let listed = manifest["stages"].as_array().expect("a list");
    let of_stage = |held: &&Value| held["stage"] == 0;
    let committed = listed.iter().find(of_stage).expect("the first stage");
    let holds = tab.sent("holds").expect("an answer");
    let told: Vec<&Value> = holds
        .iter()
        .flat_map(|one| one["stages"].as_array().into_iter().flatten())
        .collect();
    assert!(told.iter().all(of_stage), "it trained no other: {told:?}");
    assert!(
        told.contains(&committed),
        "{committed} is none of what the tab reported: {told:?}"
    );
    let others = told.iter().filter(|held| held["blob"] != committed["blob"]);
    assert!(others.count() > 0, "each round has weights of its own");
}

#[test]
fn a_tab_and_a_headless_volunteer_each_hold_the_model_and_merge_their_rounds() {
    let _turn = turn();
    let small = Small {
        pipelines_max: 2,
        ..small_on(Device::Cpu, 1)
    };
    let mut community = gather(&small, &["anchovy"]).expect("a community gathers");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    let merged = |run: &Value| {
        let rounds = run["rounds"].as_array().into_iter().flatten();
        let is_merged = |round: &&Value| round["pipelines"].as_u64() == Some(2);
        rounds.filter(is_merged).count()
    };
    community
        .host
        .wait_until("rounds of both", ROUND_WAIT_MAX, |run| merged(run) >= 3)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", community.said()));
    let run = community.host.api().expect("the run");
    let all = losses(&run).expect("rounds");
    let (first, last) = (all[0].1, all[all.len() - 1].1);
    assert!(last < 0.8 * first, "from {first} to {last}");
    audit(&community).expect("the journal tells a true story");
    tab.check().expect("it says nothing wrong");
}
