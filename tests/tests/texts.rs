//! The model writes through the pipeline that trains it: text comes while rounds go on, and whoever goes costs no word of it.
//!
//! Between real processes over real connections, as in `community`.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::community::{Community, ROUND_WAIT_MAX, Small};
use tests::judge;
use tests::paths;

const NAMES: [&str; 3] = ["anchovy", "herring", "sardine"];
/// For a text of some hundred tokens to be written, each on its way through three busy seats.
const TEXT_MAX: Duration = Duration::from_secs(180);
const PROMPT: &str = "The ";

/// `shoal generate` with these arguments.
fn generate(writer: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(paths::program("shoal").expect("it is built"));
    command.args(["generate", writer, "--gpu", "cpu"]);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// What it prints.
fn written(writer: &str, arguments: &[&str]) -> String {
    let output = generate(writer, arguments).output().expect("it starts");
    checked(&output)
}

fn checked(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Reads until a text is so long.
fn read_until(child: &mut Child, text: &mut Vec<u8>, bytes: usize) {
    let deadline = Instant::now() + TEXT_MAX;
    let out = child.stdout.as_mut().expect("it is piped");
    let mut piece = [0; 256];
    while text.len() < bytes {
        let count = out.read(&mut piece).expect("it can be read");
        assert!(count > 0, "it ended after {} bytes", text.len());
        assert!(Instant::now() < deadline, "{} bytes only", text.len());
        text.extend_from_slice(&piece[..count]);
    }
}

fn gather(small: &Small) -> Community {
    let mut community = Community::gather(small, &NAMES).expect("a community gathers");
    community
        .wait_for_volunteers("three seats", ROUND_WAIT_MAX, |listed| {
            let is_seated = |one: &&Value| one["state"] == "seated";
            listed.iter().filter(is_seated).count() == NAMES.len()
        })
        .expect("three volunteers are seated");
    community
}

#[test]
fn a_text_is_written_while_rounds_go_on_though_a_volunteer_is_killed_in_the_midst() {
    let small = Small {
        seats_min: 2,
        ..Small::default()
    };
    let mut community = gather(&small);
    community.reach(2).expect("three volunteers train");
    let url = community.host.url().to_owned();
    let arguments = ["--prompt", PROMPT, "--tokens", "400", "--seed", "5"];
    let mut command = generate(&url, &arguments);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut text = Vec::new();
    read_until(&mut child, &mut text, 80);
    let before = community.round().expect("the host answers");
    let victim = community
        .holder_of(0)
        .expect("somebody holds the first stage");
    community.kill(victim).expect("it is killed");
    let out = child.stdout.as_mut().expect("it is piped");
    out.read_to_end(&mut text).expect("it can be read");
    let output = child.wait_with_output().expect("it ends");
    checked(&output);
    assert!(text.starts_with(PROMPT.as_bytes()));
    assert!(text.len() >= PROMPT.len() + 400, "{} bytes", text.len());
    let after = community.round().expect("the host answers");
    assert!(after > before, "no round since {before}");
    judge::recovered(&mut community).expect("the run is as if nothing had happened");
}

/// The round that is being evaluated, if it is in the store: until that is over nobody's weights change.
fn evaluated(run: &Value) -> Option<u64> {
    let round = run["round"].as_u64()?;
    let is_evaluated = run["state"] == "evaluating" && run["checkpoint_round"] == round;
    (is_evaluated && round > 0).then_some(round)
}

#[test]
fn what_volunteers_write_is_what_an_export_of_the_same_weights_writes() {
    // An evaluation lasts long enough for all of this. After each round: whichever is stored is then evaluated.
    let small = Small {
        seats_min: 3,
        evaluations: (1, 1_000),
        checkpoint_minutes: 0.02,
        ..Small::default()
    };
    let mut community = gather(&small);
    let is_there = |run: &Value| evaluated(run).is_some_and(|round| round >= 6);
    let run = community
        .host
        .wait_until("an evaluated checkpoint", 4 * ROUND_WAIT_MAX, is_there)
        .expect("six rounds are trained, evaluated and stored");
    let url = community.host.url().to_owned();
    // More than a context of 32: its window moves twice.
    let plain = ["--prompt", PROMPT, "--tokens", "60", "--temperature", "0"];
    let drawn = ["--prompt", PROMPT, "--tokens", "60", "--seed", "7"];
    let asked = [&plain[..], &drawn[..]].map(|arguments| written(&url, arguments));
    let folder = tempfile::tempdir().expect("a folder");
    export(&url, folder.path());
    let now = community.host.api().expect("the host answers");
    assert_eq!(evaluated(&now), evaluated(&run), "it went on: {now:#}");
    let folder = folder.path().to_str().expect("a path of letters");
    let alone = [&plain[..], &drawn[..]].map(|arguments| written(folder, arguments));
    assert_eq!(asked, alone);
    assert_ne!(asked[0], asked[1]);
    let is_taught = |text: &String| text.bytes().filter(u8::is_ascii_lowercase).count() > 30;
    assert!(asked.iter().all(is_taught), "{asked:?}");
}

fn export(url: &str, folder: &Path) {
    let mut command = Command::new(paths::program("shoal").expect("it is built"));
    let output = command.args(["export", url, "-o"]).arg(folder).output();
    checked(&output.expect("it starts"));
}

#[test]
fn what_cannot_be_written_is_refused_in_words() {
    let small = Small {
        seats_min: 1,
        ..Small::default()
    };
    let community = Community::gather(&small, &[]).expect("a host starts");
    let url = community.host.url().to_owned();
    let refused = |arguments: &[&str]| {
        let output = generate(&url, arguments).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = refused(&["--prompt", ""]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("the prompt has no token"), "{said}");
    let (code, said) = refused(&["--tokens", "1000000"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("cannot be written at once"), "{said}");
    let long = "a".repeat(5_000);
    let (code, said) = refused(&["--prompt", &long]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("the prompt is too long"), "{said}");
    // Two of one address wait; a third one hears so at once.
    let waiting = [(); 2].map(|()| {
        let mut command = generate(&url, &["--tokens", "5"]);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        // Its prompt is printed once the host has taken it.
        read_until(&mut child, &mut Vec::new(), 1);
        child
    });
    let (code, said) = refused(&["--tokens", "5"]);
    assert_eq!(code, Some(11), "{said}");
    for child in waiting {
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(13), "{said}");
        assert!(said.contains("no pipeline of volunteers"), "{said}");
    }
}
