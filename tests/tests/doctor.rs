//! `shoal doctor`: what it says of this machine, of a run and of the way there, and that nobody notices.
//!
//! Over real processes: a host that trains, a real TURN server, a STUN server that is dead, and no host at all.

mod room;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use shared::wire::signal::{self, Down, RefuseCode};
use tempfile::TempDir;
use tests::community::{Community, Small};
use tests::http;
use tests::paths;
use tests::process::Program;
use tests::turn::TurnServer;
use tungstenite::Message;

const SECRET: &str = "what host and relay share";
/// For a whole look at machine and run, with other tests beside it on a slow machine.
const LOOK_MAX: Duration = Duration::from_secs(120);
/// What servers that don't answer may add, with room for a busy machine: they are given 2 s.
const DEAD_SERVER_MAX: Duration = Duration::from_secs(3);

/// What one look said: lines with the moment at which each came, and the exit code.
struct Look {
    lines: Vec<(Instant, Value)>,
    code: Option<i32>,
    said: String,
    _folder: TempDir,
}

impl Look {
    /// `shoal doctor` with a key of its own, computing on the CPU.
    fn at(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(paths::program("shoal").expect("it is built"));
        command
            .args(["doctor", "--gpu", "cpu", "--log-format", "json"])
            .arg("--identity-path")
            .arg(folder.path().join("key"))
            .args(arguments);
        let mut program = Program::start("shoal doctor", &mut command).expect("it starts");
        let deadline = Instant::now() + LOOK_MAX;
        let mut lines = Vec::new();
        while let Some(line) = program.next_event(deadline) {
            lines.push((Instant::now(), line));
        }
        let ended = program.wait_end(LOOK_MAX).expect("it ends in time");
        Self {
            lines,
            code: ended.code(),
            said: program.said(),
            _folder: folder,
        }
    }

    fn line(&self, what: &str) -> &(Instant, Value) {
        let found = self.lines.iter().find(|(_, line)| line["what"] == what);
        found.unwrap_or_else(|| panic!("not a word of {what}: {}", self.said))
    }

    /// Asserts that a thing got that verdict, with all these words in text or remedy.
    fn check(&self, what: &str, verdict: &str, words: &[&str]) {
        let (_, line) = self.line(what);
        assert_eq!(line["verdict"], verdict, "{what}: {}", self.said);
        let text = format!("{} {}", line["text"], line["remedy"]);
        for word in words {
            assert!(
                text.contains(word),
                "{what}: not a word of `{word}`: {text}"
            );
        }
    }

    fn check_code(&self, code: i32) {
        assert_eq!(self.code, Some(code), "{}", self.said);
    }
}

fn gather(arguments: &[&str], names: &[&str]) -> Community {
    let arguments = arguments.iter().map(|&one| one.to_owned()).collect();
    Community::gather_with(&Small::default(), arguments, names).expect("a community gathers")
}

/// What tells that a volunteer's seat or its way to others changed.
fn is_disturbance(event: &Value) -> bool {
    let disturbing = [
        "seat",
        "spare",
        "link_lost",
        "link_disturbed",
        "lost",
        "error",
    ];
    disturbing.iter().any(|one| event["event"] == *one)
}

#[test]
fn a_look_at_a_run_with_stun_and_turn_finds_all_well_and_disturbs_nobody() {
    let turn = TurnServer::start(SECRET).expect("a relay starts");
    let stun = turn.url().replace("turn:", "stun:");
    let servers = ["--ice-server", &stun, "--ice-server", &turn.url()];
    let arguments = [&servers[..], &["--turn-secret", SECRET]].concat();
    let mut community = gather(&arguments, &[]);
    for (name, stages) in [("anchovy", (2, 4)), ("herring", (0, 2))] {
        let memory = room::memory_of(&Small::default(), stages.0, stages.1).to_string();
        community
            .join_with(name, &["--memory", &memory])
            .expect("a volunteer starts");
    }
    community.reach(1).expect("they train");
    community.events();
    let url = community.host.url().to_owned();
    let look = Look::at(&[&url]);
    for what in [
        "identity", "disk", "device", "memory", "speed", "WebRTC", "host", "clock", "version",
        "data", "fit",
    ] {
        look.check(what, "ok", &[]);
    }
    look.check("seed", "ok", &["as the host has it"]);
    look.check("door", "ok", &["lets us in"]);
    look.check("STUN", "ok", &[&stun, "as 127.0.0.1:"]);
    look.check("TURN", "ok", &[&turn.url(), "at 127.0.0.1:"]);
    look.check("links", "ok", &["through a relay"]);
    look.check("verdict", "ok", &["you can help with", "4 of its 4 stages"]);
    look.check_code(0);
    community.go_on(2).expect("they go on");
    let disturbed: Vec<Value> = community
        .events()
        .into_iter()
        .filter(is_disturbance)
        .collect();
    assert_eq!(disturbed, [] as [Value; 0]);
    let run = community.host.api().expect("the host answers");
    let here = run["volunteers"].as_array().expect("a list");
    let seated = here.iter().filter(|one| one["state"] == "seated");
    assert_eq!((seated.count(), here.len()), (2, 2), "{run:#}");
}

#[test]
fn a_run_that_waits_for_somebody_is_not_begun_by_a_look() {
    let mut community = gather(&[], &["anchovy"]);
    community
        .host
        .wait_until("a volunteer", LOOK_MAX, |run| {
            run["volunteers"]
                .as_array()
                .is_some_and(|all| all.len() == 1)
        })
        .expect("it joins");
    community.events();
    let look = Look::at(&[community.host.url()]);
    look.check("door", "ok", &["at round 0"]);
    look.check("links", "ok", &["on this machine"]);
    look.check_code(0);
    let run = community.host.api().expect("the host answers");
    assert_eq!(run["state"], "waiting", "{run:#}");
    let seats: Vec<Value> = community
        .events()
        .into_iter()
        .filter(is_disturbance)
        .collect();
    assert_eq!(seats, [] as [Value; 0]);
}

#[test]
fn a_relay_with_another_secret_is_named_and_only_fails_whoever_needs_it() {
    let turn = TurnServer::start(SECRET).expect("a relay starts");
    let url = turn.url();
    let community = gather(&["--ice-server", &url, "--turn-secret", "another one"], &[]);
    let look = Look::at(&[community.host.url()]);
    look.check(
        "TURN",
        "note",
        &[&url, "refuses the run's credentials", "--turn-secret"],
    );
    look.check_code(0);
    let look = Look::at(&[community.host.url(), "--relay-only"]);
    look.check("links", "fail", &["no relay works", "--relay-only"]);
    look.check("verdict", "fail", &["cannot help yet: see links"]);
    look.check_code(13);
}

#[test]
fn a_dead_stun_server_is_named_and_costs_two_seconds() {
    let dead = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let url = format!("stun:{}", dead.local_addr().expect("an address"));
    let community = gather(&["--ice-server", &url], &[]);
    let look = Look::at(&[community.host.url()]);
    look.check("STUN", "note", &[&url, "no answer within 2 s", "firewall"]);
    let (before, after) = (look.line("door").0, look.line("STUN").0);
    let took = after - before;
    assert!(took < DEAD_SERVER_MAX, "it took {took:?}");
    look.check_code(0);
}

#[test]
fn without_a_link_the_machine_alone_is_looked_at() {
    let look = Look::at(&[]);
    look.check("speed", "ok", &["tokens/s"]);
    look.check(
        "verdict",
        "ok",
        &["this machine can help", "shoal doctor https://host/"],
    );
    look.check_code(0);
}

#[test]
fn a_host_that_is_not_there_and_a_page_that_is_none_are_said_so() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let look = Look::at(&[&url]);
    look.check(
        "host",
        "fail",
        &["cannot be reached: Connection refused", "Check the link"],
    );
    look.check("verdict", "fail", &["cannot help yet"]);
    look.check_code(13);
    let community = gather(&[], &[]);
    let wrong = format!("{}/elsewhere/", community.host.url());
    let look = Look::at(&[&wrong]);
    look.check(
        "host",
        "fail",
        &["no run is hosted at that path", "when it started"],
    );
    look.check_code(13);
}

#[test]
fn a_refused_invitation_is_told_in_the_hosts_words() {
    let community = gather(&[], &[]);
    let report = http::get(&format!("{}/api/run", community.host.url())).expect("it answers");
    let link = format!("{}/r/OLD", refusing_host(report));
    let look = Look::at(&[&link]);
    look.check(
        "door",
        "fail",
        &["that invitation has expired", "ask for a new one"],
    );
    look.check_code(11);
}

/// A host with that report, which refuses whoever comes. Gives its address.
fn refusing_host(report: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("somebody comes");
            let mut beginning = [0; 8];
            while stream.peek(&mut beginning).expect("it speaks") < beginning.len() {}
            if beginning.starts_with(b"GET /ws") {
                refuse(stream);
            } else {
                answer(stream, &report);
            }
        }
    });
    url
}

fn refuse(stream: TcpStream) {
    let refusal = Down::Refuse {
        code: RefuseCode::Invite,
        text: "that invitation has expired".to_owned(),
        remedy: "ask for a new one".to_owned(),
    };
    let mut socket = tungstenite::accept(stream).expect("it speaks WebSocket");
    let refusal = Message::text(signal::encode(&refusal));
    socket.send(refusal).expect("it listens");
    while socket.read().is_ok() {}
}

fn answer(mut stream: TcpStream, body: &str) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        request.push(byte[0]);
    }
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let answer = [head.as_bytes(), body.as_bytes()].concat();
    stream.write_all(&answer).expect("it listens");
}

#[test]
fn memory_that_a_device_does_not_have_is_said_before_anything_depends_on_it() {
    let look = Look::at(&["--gpu", "llvmpipe", "--memory", "900000GB"]);
    look.check("memory", "fail", &["--memory names", "Lend less"]);
    look.check_code(12);
}

#[test]
fn a_gpu_that_runs_out_of_memory_in_its_trial_is_said_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = limited(folder.path(), 3_000_000, "2500MB");
    assert!(said.contains("does not have the 2.5 GB"), "{said}");
    assert!(said.contains("out of memory"), "{said}");
    assert!(said.contains("Lend less, such as --memory"), "{said}");
}

/// What a look at a software adapter says in a process that may have `kilobytes` of memory, and lends `memory`.
fn limited(folder: &Path, kilobytes: u32, memory: &str) -> String {
    let shoal = paths::program("shoal").expect("it is built");
    let script = format!("ulimit -v {kilobytes} && exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command
        .args(["-c", &script])
        .arg(shoal)
        .args(["doctor", "--gpu", "llvmpipe", "--memory", memory])
        .arg("--identity-path")
        .arg(folder.join("key"));
    let mut program = Program::start("shoal doctor", &mut command).expect("it starts");
    let ended = program.wait_end(LOOK_MAX).expect("it ends in time");
    let said = program.said();
    assert_eq!(ended.code(), Some(12), "{said}");
    said
}

#[test]
fn looking_for_adapters_without_a_desktop_writes_nothing_but_findings() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(paths::program("shoal").expect("it is built"))
        .args(["doctor", "--gpu", "cpu", "--identity-path"])
        .arg(folder.path().join("key"))
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("NODEVICE_SELECT")
        .output()
        .expect("it runs");
    let findings = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        findings.contains("llvmpipe"),
        "no adapter was looked for: {findings}"
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
