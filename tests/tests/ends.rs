//! How programs end: what their exit codes say, how soon the others notice, and that nothing holds them up.
//!
//! Over real processes. Times of two programs are compared by the clock of the machine, which the host's events bear;
//! so no bound here is loosened by how often somebody looks.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use shared::config::written;
use shared::units::Digest;
use shared::wire::frame::VERSION;
use shared::wire::signal::{self, Down, RefuseCode};
use tests::community::{Community, ROUND_WAIT_MAX, Small};
use tests::paths;
use tests::process::{Program, Signal, now_ms};
use tungstenite::Message;

/// A volunteer that closes is noticed within this.
const CLOSE_NOTICE_MAX_MS: u64 = 1_000;
/// A host that is told to stop has stopped within this, whoever is connected.
const HOST_STOP_MAX: Duration = Duration::from_secs(3);
/// For a program that has nothing more to do to end.
const END_MAX: Duration = Duration::from_secs(30);
/// Between two looks at a folder.
const LOOK: Duration = Duration::from_millis(50);

/// Sends a signal to `name` and asserts that the host notices `what` in time.
fn check_noticed(community: &mut Community, name: &str, signal: Signal, what: &str) {
    let sent_ms = now_ms();
    let volunteer = community.volunteer(name).expect("it was started");
    volunteer.signal(signal).expect("it runs");
    let event = community
        .hear_of(name, what, END_MAX)
        .expect("the host notices");
    let heard_ms = event["time_ms"].as_u64().expect("events bear their time");
    let took_ms = heard_ms.saturating_sub(sent_ms);
    assert!(
        took_ms <= CLOSE_NOTICE_MAX_MS,
        "{what} was noticed after {took_ms} ms"
    );
}

/// Waits for a volunteer's last word and its end; asserts its exit code.
fn check_end(volunteer: &mut Program, code: i32, words: &str) {
    let last = volunteer.wait_for("its last word", END_MAX, |event| {
        event["event"] == "error" || event["event"] == "end"
    });
    let last = last.expect("it says why it ends");
    assert_eq!(last["code"], code, "{last}");
    let text = last["text"].as_str().unwrap_or_default();
    assert!(text.contains(words), "{last}");
    let ended = volunteer.wait_end(END_MAX).expect("it ends");
    assert_eq!(ended.code(), Some(code), "{last}");
}

/// A volunteer of whoever listens at `url`.
fn join(folder: &Path, url: &str, arguments: &[&str]) -> Program {
    let mut command = Command::new(paths::program("shoal").expect("it is built"));
    command
        .args(["join", url, "--log-format", "json", "--gpu", "cpu"])
        .arg("--identity-path")
        .arg(folder.join("key"))
        .args(arguments);
    Program::start("shoal", &mut command).expect("it starts")
}

/// Something that speaks like a host and says one thing to whoever comes first. Gives its link.
fn one_word(word: Down) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let speaker = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("somebody comes");
        let mut socket = tungstenite::accept(stream).expect("it speaks WebSocket");
        socket
            .send(Message::text(signal::encode(&word)))
            .expect("it listens");
        // Until the other end has heard it.
        while socket.read().is_ok() {}
    });
    (url, speaker)
}

#[test]
fn closing_is_noticed_within_a_second_whether_at_once_or_after_the_round() {
    // A round that lasts until everything here is over.
    let small = Small {
        round_steps: 2_000,
        ..Small::default()
    };
    let names = ["anchovy", "herring", "sardine"];
    let mut community = Community::gather(&small, &names).expect("a community gathers");
    community
        .host
        .wait_until("training", ROUND_WAIT_MAX, |run| {
            run["steps"].as_u64() > Some(0)
        })
        .expect("they train");
    let first = community.holder_of(0).expect("somebody holds it");
    let first = community.volunteers[first].name().to_owned();
    check_noticed(&mut community, &first, Signal::INT, "finishing");
    check_noticed(&mut community, &first, Signal::INT, "left");
    let left = community.volunteer(&first).expect("it was started");
    check_end(left, 130, "stopped at once");
    let other = names.into_iter().find(|name| *name != first);
    let other = other.expect("there are three");
    check_noticed(&mut community, other, Signal::TERM, "finishing");
    check_noticed(&mut community, other, Signal::TERM, "left");
    let left = community.volunteer(other).expect("it was started");
    check_end(left, 130, "stopped at once");
}

#[test]
fn a_terminated_volunteer_finishes_its_round_and_leaves_without_loss() {
    let names = ["anchovy", "herring", "sardine"];
    let mut community = Community::gather(&Small::default(), &names).expect("a community gathers");
    community.reach(1).expect("they train");
    let leaving = community.holder_of(0).expect("somebody holds it");
    let name = community.volunteers[leaving].name().to_owned();
    community.volunteers[leaving]
        .signal(Signal::TERM)
        .expect("it runs");
    check_end(&mut community.volunteers[leaving], 0, "nothing is lost");
    community
        .hear_of(&name, "finished", END_MAX)
        .expect("the host says so, too");
    community.volunteers.remove(leaving);
    community.go_on(2).expect("the others go on");
}

#[test]
fn whoever_leaves_after_its_round_does_not_wait_for_a_host_that_is_gone() {
    let names = ["anchovy", "herring"];
    let mut community = Community::gather(&Small::default(), &names).expect("a community gathers");
    community.reach(1).expect("they train");
    community.host.program().kill().expect("it ran");
    let asked = Instant::now();
    for volunteer in &mut community.volunteers {
        volunteer.signal(Signal::INT).expect("it runs");
    }
    for volunteer in &mut community.volunteers {
        let ended = volunteer.wait_end(END_MAX + away_max());
        let took = asked.elapsed();
        assert_eq!(ended.expect("it ends").code(), Some(13), "after {took:?}");
        let said = volunteer.said();
        assert!(said.contains("the host does not answer"), "{said}");
    }
}

#[test]
fn whoever_leaves_after_its_round_waits_for_a_host_that_comes_back() {
    let names = ["anchovy", "herring"];
    let mut community = Community::gather(&Small::default(), &names).expect("a community gathers");
    community.reach(1).expect("they train");
    community.host.program().kill().expect("it ran");
    community.volunteers[0]
        .signal(Signal::INT)
        .expect("it runs");
    community.volunteers[0]
        .wait_for("that the host is away", END_MAX, |event| {
            event["event"] == "lost"
        })
        .expect("it notices");
    community.host.restart().expect("it starts again");
    check_end(&mut community.volunteers[0], 0, "nothing is lost");
}

/// How long a volunteer that leaves waits for a host that is away.
fn away_max() -> Duration {
    Duration::from_micros(shared::limits::FINISH_AWAY_MAX.as_micros())
}

#[test]
fn a_run_that_has_its_length_ends_all_volunteers_and_lets_nobody_in() {
    let small = Small {
        samples: 160,
        ..Small::default()
    };
    let mut community =
        Community::gather(&small, &["anchovy", "herring"]).expect("a community gathers");
    for name in ["anchovy", "herring"] {
        let volunteer = community.volunteer(name).expect("it was started");
        volunteer
            .wait_for("work", ROUND_WAIT_MAX, |event| {
                event["event"] == "first_microbatch"
            })
            .expect("it works");
        check_end(volunteer, 14, "the run is over");
    }
    community
        .host
        .wait_until("the end", END_MAX, |run| {
            run["state"] == "over" && run["samples"] == 160
        })
        .expect("the host stays, and says so");
    let mut late = community.host.volunteer("sardine", &[]).expect("it starts");
    check_end(&mut late, 14, "the run is over");
}

#[test]
fn a_host_of_another_version_ends_a_volunteer_with_10() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = written::read(&Small::default().config(), &[]).expect("it is right");
    let (url, speaker) = one_word(Down::Hello {
        version: VERSION + 1,
        nonce: Digest([0; 32]),
        config: Box::new(config),
    });
    check_end(&mut join(folder.path(), &url, &[]), 10, "speaks version");
    speaker.join().expect("it heard nothing strange");
}

#[test]
fn a_refusal_ends_a_volunteer_with_11() {
    let folder = tempfile::tempdir().expect("a folder");
    let (url, speaker) = one_word(Down::Refuse {
        code: RefuseCode::Full,
        text: "this host holds 20000 volunteers".to_owned(),
        remedy: "try again later".to_owned(),
    });
    check_end(&mut join(folder.path(), &url, &[]), 11, "20000 volunteers");
    speaker.join().expect("it heard nothing strange");
}

#[test]
fn a_device_that_is_not_there_ends_a_volunteer_with_12() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut nowhere = join(folder.path(), "http://127.0.0.1:9", &["--gpu", "abacus"]);
    check_end(&mut nowhere, 12, "abacus");
}

#[test]
fn a_host_that_is_not_there_ends_a_volunteer_with_13() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let mut lost = join(folder.path(), &url, &[]);
    check_end(&mut lost, 13, "the host cannot be reached");
}

#[test]
fn a_link_that_leads_to_no_run_ends_a_volunteer_with_13() {
    let community = Community::gather(&Small::default(), &[]).expect("a host starts");
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("{}/elsewhere/", community.host.url());
    check_end(&mut join(folder.path(), &url, &[]), 13, "404");
}

#[test]
fn a_link_that_is_none_ends_a_volunteer_with_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut program = join(folder.path(), "gopher://host", &[]);
    let ended = program.wait_end(END_MAX).expect("it ends");
    assert_eq!(ended.code(), Some(2));
    let said = program.said();
    assert!(said.contains("is not a link to a run"), "{said}");
}

#[test]
fn a_host_stops_at_once_whoever_is_connected_and_whatever_is_uploaded() {
    let small = Small {
        checkpoint_minutes: 0.02,
        ..Small::default()
    };
    let mut community = Community::gather(&small, &[]).expect("a host starts");
    // So slowly that one of the uploads is always under way.
    for name in ["anchovy", "herring"] {
        let slow = ["--max-upload", "300kbit"];
        let volunteer = community.host.volunteer(name, &slow).expect("it starts");
        community.volunteers.push(volunteer);
    }
    let blobs = community.host.store().join("blobs");
    wait_until(community.host.program(), "an upload", || {
        is_uploading(&blobs)
    });
    let address = community
        .host
        .url()
        .trim_start_matches("http://")
        .to_owned();
    let open = |request: &str| {
        let mut stream = TcpStream::connect(&address).expect("the host listens");
        stream.write_all(request.as_bytes()).expect("it is heard");
        stream
    };
    let page = open("GET /api/run/events HTTP/1.1\r\nHost: host\r\n\r\n");
    let slow = open("GET /api/run HTTP/1.1\r\nHost: ");
    let asked = Instant::now();
    let host = community.host.program();
    host.signal(Signal::TERM).expect("it runs");
    let ended = host.wait_end(HOST_STOP_MAX).expect("it stops");
    let took = asked.elapsed();
    assert_eq!(ended.code(), Some(0), "stopped after {took:?}");
    drop((page, slow));
    community.host.restart().expect("it starts again");
    community.go_on(1).expect("the volunteers are still there");
}

#[test]
fn a_host_that_still_reads_its_data_stops_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("text.txt"), many_words()).expect("a file");
    let store = folder.path().join("store");
    let mut command = Command::new(paths::program("shoal-host").expect("it is built"));
    command
        .args(["--port", "0", "--tokenizer", "bpe:4096", "--data"])
        .arg(folder.path().join("text.txt"))
        .arg("--store")
        .arg(&store);
    let mut host = Program::start("shoal-host", &mut command).expect("it starts");
    wait_until(&mut host, "the store", || store.join("manifests").exists());
    host.signal(Signal::TERM).expect("it runs");
    let ended = host.wait_end(HOST_STOP_MAX).expect("it stops");
    assert_eq!(ended.code(), Some(0), "{}", host.said());
}

#[test]
fn a_fault_that_there_is_not_is_refused_by_both_programs() {
    for (name, arguments) in [("shoal", &["bench"][..]), ("shoal-host", &["--data", "x"])] {
        let mut command = Command::new(paths::program(name).expect("it is built"));
        command.args(arguments).env("SHOAL_FAULT", "earthquake");
        let mut program = Program::start(name, &mut command).expect("it starts");
        let ended = program.wait_end(END_MAX).expect("it ends");
        let said = program.said();
        assert_eq!(ended.code(), Some(2), "{said}");
        assert!(said.contains("'earthquake' is no fault"), "{said}");
    }
}

/// So many different words that a tokenizer of them is half a minute's work.
fn many_words() -> String {
    let mut state = 1_u32;
    let mut text = String::new();
    for _ in 0..1_000_000 {
        // The constants of Numerical Recipes.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let letter = |shift: u32| char::from(b'a' + ((state >> shift) & 15) as u8);
        text.extend([28, 24, 20, 16].map(letter));
        text.push(' ');
    }
    text
}

/// Whether half an upload lies there.
fn is_uploading(blobs: &Path) -> bool {
    let files = std::fs::read_dir(blobs).into_iter().flatten().flatten();
    let mut names = files.map(|file| file.file_name());
    names.any(|name| name.to_string_lossy().contains('#'))
}

/// Waits until `holds`, looking again and again while `program` runs.
fn wait_until(program: &mut Program, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + ROUND_WAIT_MAX;
    while !holds() {
        let is_late = Instant::now() >= deadline || program.has_ended().unwrap_or(true);
        assert!(!is_late, "no {what}: {}", program.said());
        let _: Option<Value> = program.next_event(Instant::now() + LOOK);
    }
}
