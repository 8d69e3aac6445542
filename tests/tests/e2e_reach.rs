//! How a tab is reached: what it says of that before it lends, with a real TURN server and without any, and that it
//! trains where nothing but a relay connects it to others, and where its worker can have no data channels.

use serde_json::Value;
use tests::community::{Community, Small};
use tests::judge::{SAME_LOSS_SHARE_MAX, recovered_within};
use tests::tab::{LOAD_MAX, Lend, Tab, gather_around, gather_with, turn, www_with};
use tests::turn::TurnServer;

const SECRET: &str = "what host and relay share";

/// A run whose host names coturn, as STUN and as TURN server; the host's secret is `secret`.
fn relayed(relay: &TurnServer, secret: &str, small: &Small, names: &[&str]) -> Community {
    let (stun, turn) = (relay.url().replace("turn:", "stun:"), relay.url());
    let arguments = [
        ["--ice-server", &stun],
        ["--ice-server", &turn],
        ["--turn-secret", secret],
    ];
    let arguments = arguments.as_flattened().iter().map(|&one| one.to_owned());
    gather_with(small, arguments.collect(), names).expect("a community gathers")
}

fn alone() -> Small {
    Small {
        seats_min: 1,
        ..Small::default()
    }
}

fn relays_only() -> Lend {
    Lend {
        relay_only: true,
        ..Lend::default()
    }
}

/// Lets a tab look, and gives what it found once there is a verdict.
fn look(tab: &mut Tab) -> Value {
    tab.page
        .click("button", "Check this computer")
        .expect("it is there");
    let found = "((found) => found?.verdict && found)(__told.preflight)";
    let found = tab.page.wait_for("a verdict", LOAD_MAX, found);
    found.expect("it looks to its end")
}

#[test]
fn a_look_finds_the_runs_relay_and_takes_no_part() {
    let _turn = turn();
    let relay = TurnServer::start(SECRET).expect("a relay starts");
    let mut community = relayed(&relay, SECRET, &alone(), &["anchovy"]);
    community.reach(1).expect("it trains");
    community.events();
    for how in [Lend::default(), relays_only()] {
        let mut tab = Tab::visit(&community, &how).expect("a page");
        let found = look(&mut tab);
        assert_eq!(found["verdict"]["type"], "can_help", "{found:#}");
        assert_eq!(found["reach"]["relay"], true, "{found:#}");
        assert_eq!(found["reach"]["refusing"], serde_json::json!([]));
        let says = if how.relay_only {
            "Through a relay, as you wish."
        } else if found["reach"]["reflexive"] == true {
            "Directly, over the internet."
        } else {
            "Through a relay: your network"
        };
        tab.page.wait_for_text(says, LOAD_MAX).expect("it says so");
        let joins = tab.sent("join").expect("an answer");
        let [join] = joins.as_slice() else {
            panic!("it knocked once: {joins:#?}");
        };
        assert_eq!(join["paused"], "asked");
        assert_eq!(join["capabilities"]["memory_bytes"], 0);
        assert_eq!(tab.sent("leave").expect("an answer").len(), 1);
        tab.check().expect("it says nothing wrong");
    }
    community.go_on(1).expect("the run goes on");
    let seats = community.events();
    let seats: Vec<&Value> = seats
        .iter()
        .filter(|event| event["event"] == "seat")
        .collect();
    assert!(seats.is_empty(), "nobody was seated anew: {seats:#?}");
    let run = community.host.api().expect("an answer");
    assert_eq!(run["volunteers"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_look_beside_a_tab_that_trains_leaves_it_in_its_seat() {
    let _turn = turn();
    let mut community = gather_with(&alone(), vec![], &[]).expect("a host starts");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    community.reach(1).expect("it trains");
    let before = tab.stands("now.peer", LOAD_MAX).expect("it has a number");
    // The same browser, so the same key.
    let url = format!("{}?device=cpu", community.host.url());
    let mut second = tab.browser.open(&url).expect("a second tab");
    second
        .click("button", "Check this computer")
        .expect("it is there");
    second
        .wait_for_text("You can help with any part", LOAD_MAX)
        .expect("it looks to its end");
    community.go_on(2).expect("the first one trains on");
    let after = tab.stands("now.peer", LOAD_MAX).expect("it has a number");
    assert_eq!(after["peer"], before["peer"], "it was not put out");
    assert_eq!(tab.sent("join").expect("an answer").len(), 2, "look, start");
}

#[test]
fn who_wants_relays_only_is_told_when_there_is_none_that_works() {
    let _turn = turn();
    let community = gather_with(&alone(), vec![], &[]).expect("a host starts");
    let mut tab = Tab::visit(&community, &relays_only()).expect("a page");
    let found = look(&mut tab);
    assert_eq!(found["verdict"]["type"], "cannot", "{found:#}");
    tab.page
        .wait_for_text("This run has no relay, and you want to be", LOAD_MAX)
        .expect("it says why");
    assert!(!tab.page.has("button", "Contribute").expect("an answer"));
    let relay = TurnServer::start(SECRET).expect("a relay starts");
    let community = relayed(&relay, "another one", &alone(), &[]);
    let mut tab = Tab::visit(&community, &relays_only()).expect("a page");
    let found = look(&mut tab);
    assert_eq!(found["verdict"]["type"], "cannot", "{found:#}");
    let refused = format!("Turned away by {}", relay.url());
    for says in ["No relay of this run works from here", &refused] {
        tab.page.wait_for_text(says, LOAD_MAX).expect("it says why");
    }
    // With that wish taken back it can.
    tab.page
        .click(
            "checkbox",
            "Through relays only hides your IP address from others; slower",
        )
        .expect("it is there");
    tab.page
        .wait_for_role("button", "Contribute", LOAD_MAX)
        .expect("it can help");
}

#[test]
fn a_tab_trains_with_a_headless_volunteer_through_a_relay() {
    let _turn = turn();
    let relay = TurnServer::start(SECRET).expect("a relay starts");
    let mut community = relayed(&relay, SECRET, &Small::default(), &["anchovy"]);
    let mut tab = Tab::lend(&community, &relays_only()).expect("a tab lends");
    community.reach(2).expect("they train");
    let relayed = "(now.seat?.previous ?? now.seat?.next)?.relayed === true";
    tab.stands(relayed, LOAD_MAX).expect("its link is relayed");
    tab.stands("now.accepted.microbatches > 0", LOAD_MAX)
        .expect("its work counts");
    tab.check().expect("it says nothing wrong");
}

/// A browser that lets no worker have data channels.
const NO_CHANNELS: &str = "delete globalThis.RTCDataChannel;";
#[test]
fn where_a_worker_can_have_no_channels_messages_go_through_the_page() {
    let _turn = turn();
    let www = www_with(NO_CHANNELS).expect("the web client is packed");
    let community = gather_around(www.path(), &Small::default(), vec![], &["anchovy"]);
    let mut community = community.expect("a community gathers");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    let took = tab.page.evaluate("__told.ready.takes_channels");
    assert_eq!(took.expect("an answer"), false);
    recovered_within(&mut community, SAME_LOSS_SHARE_MAX).expect("they train as headless ones");
    tab.check().expect("it says nothing wrong");
}
