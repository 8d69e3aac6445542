//! Runs whose links go through a real TURN server.
//!
//! Nothing gets from one volunteer to the other but through coturn, on this machine: with the host's
//! shared secret as in the field, and with a wrong one.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::community::{Community, Small, losses};
use tests::turn::TurnServer;

const SECRET: &str = "what host and relay share";
/// Rounds that are compared.
const ROUNDS: u64 = 6;
/// For a volunteer to say something.
const WORD_WAIT_MAX: Duration = Duration::from_secs(60);
/// Seconds that a round through a relay may take beyond a direct one. A stack that is not woken for relayed packets
/// takes 0.2 s a turn: 8 s for these 20 steps.
const RELAY_SECONDS_MAX: f64 = 4.0;

/// A short run in few long rounds.
fn small() -> Small {
    Small {
        round_steps: 20,
        ..Small::default()
    }
}

fn gather(turn: &TurnServer, secret: &str) -> Community {
    let arguments = ["--ice-server", &turn.url(), "--turn-secret", secret];
    let arguments = arguments.map(str::to_owned).to_vec();
    let mut community =
        Community::gather_with(&small(), arguments, &[]).expect("a community gathers");
    for name in ["anchovy", "herring"] {
        let joined = community.join_with(name, &["--relay-only"]);
        joined.expect("a volunteer joins");
    }
    community
}

/// The shortest of a run's rounds, in seconds: the one that the machine's other work disturbed least.
fn shortest(run: &Value) -> f64 {
    let rounds = run["rounds"].as_array().expect("a run lists its rounds");
    let seconds = rounds.iter().filter_map(|round| round["seconds"].as_f64());
    seconds.fold(f64::INFINITY, f64::min)
}

#[test]
fn two_volunteers_train_through_a_relay_as_well_as_directly() {
    let turn = TurnServer::start(SECRET).expect("a relay starts");
    let mut community = gather(&turn, SECRET);
    for volunteer in &mut community.volunteers {
        let link = volunteer
            .wait_for("a link", WORD_WAIT_MAX, |event| event["event"] == "link")
            .expect("a link opens");
        assert_eq!(link["relayed"], true, "{link}");
    }
    let run = community.reach(ROUNDS).expect("rounds are committed");
    let found = losses(&run).expect("it has losses");
    let (first, last) = (found[0].1, found[found.len() - 1].1);
    assert!(last < 0.8 * first, "from {first} to {last}");
    let relayed = shortest(&run);
    drop(community);

    let mut community = Community::gather(&small(), &["sardine", "sprat"]).expect("they gather");
    let run = community.reach(ROUNDS).expect("rounds are committed");
    let direct = shortest(&run);
    assert!(
        relayed < direct + RELAY_SECONDS_MAX,
        "a round takes {relayed} s through the relay, {direct} s directly"
    );
}

#[test]
fn volunteers_say_that_the_relay_refuses_the_runs_credentials() {
    let turn = TurnServer::start(SECRET).expect("a relay starts");
    let mut community = gather(&turn, "another one");
    for volunteer in &mut community.volunteers {
        let trouble = volunteer
            .wait_for("trouble", WORD_WAIT_MAX, |event| {
                event["event"] == "trouble"
            })
            .expect("it says what is wrong");
        let text = trouble["text"].as_str().expect("in words");
        assert!(text.contains("refuses the run's credentials"), "{text}");
        assert!(text.contains("--turn-secret"), "{text}");
        assert!(text.contains(&turn.url()), "{text}");
    }
    assert_eq!(community.round().expect("the host answers"), 0);
}

#[test]
fn credentials_that_expire_are_replaced_while_a_run_goes_on() {
    let turn = TurnServer::start(SECRET).expect("a relay starts");
    let lasting = Duration::from_secs(4);
    let arguments = [
        "--ice-server",
        &turn.url(),
        "--turn-secret",
        SECRET,
        "--turn-ttl",
        &lasting.as_secs().to_string(),
    ];
    let arguments = arguments.map(str::to_owned).to_vec();
    let begun = Instant::now();
    let mut community =
        Community::gather_with(&small(), arguments, &[]).expect("a community gathers");
    for name in ["anchovy", "herring"] {
        let joined = community.join_with(name, &["--relay-only"]);
        joined.expect("a volunteer joins");
    }
    let mut run = community.reach(1).expect("rounds are committed");
    while begun.elapsed() < 3 * lasting {
        let round = run["round"].as_u64().expect("a run has a round");
        run = community.reach(round + 1).expect("rounds go on");
    }
    // A newcomer's links are new: both ends need credentials of today.
    community
        .join_with("sardine", &["--relay-only"])
        .expect("a third one joins");
    let newcomer = &mut community.volunteers[2];
    newcomer
        .wait_for("a relayed link", WORD_WAIT_MAX, |event| {
            event["event"] == "link" && event["relayed"] == true
        })
        .expect("a link opens");
}
