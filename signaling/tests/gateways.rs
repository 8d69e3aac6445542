//! Gateways in front of one host, with a real NATS and a real Postgres: what happens to volunteers when one of them is killed.
//!
//! Host, gateways, NATS server and Postgres are processes, killed as a crash kills them. Volunteers are scripts; one of
//! them trains, the others rest and signal to each other. Waiting is always for something to happen, with a limit.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are tests: what is not as it should be ends them"
)]

#[allow(dead_code, reason = "other tests use the rest of it")]
mod cluster;
mod nats;
#[allow(dead_code, reason = "other tests use the rest of it")]
mod volunteer;

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use shared::limits::{AWAY_MAX, GATEWAY_SILENCE_MAX};
use shared::transport::LinkSignal;
use shared::units::{PeerId, Round, Span};
use shared::wire::leases::Leases;
use shared::wire::report::{RunReport, VolunteerState};
use shared::wire::signal::{Down, Pause, RefuseCode, Resume, Up};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use cluster::Cluster;
use nats::Nats;
use volunteer::{Volunteer, http};

const LIMIT: Duration = Duration::from_secs(60);
const CONFIG: &str = "[run]\nname = \"school <of> fish\"\n[model]\nblocks = 2\ncontext = 16\n[training]\nbatch = 8\n\
                      microbatches = 2\n[schedule]\nround_steps = 2\neval_rounds = 0\ncheckpoint_minutes = 0.02\n";
const RUN: &str = "school <of> fish";

/// A program that says what happens to it, an object a line.
struct Process {
    child: Child,
    events: Lines<BufReader<ChildStdout>>,
    url: String,
}

impl Process {
    async fn start(command: &mut Command) -> Self {
        let mut child = command
            .args(["--json", "--port", "0"])
            .env_remove("PORT")
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let events = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Self {
            child,
            events,
            url: String::new(),
        };
        let listening = process.event("listening").await;
        process.url = listening["url"].as_str().unwrap().to_owned();
        process
    }

    /// The next event of that name.
    async fn event(&mut self, name: &str) -> Value {
        let next = async {
            loop {
                let line = self.events.next_line().await.unwrap();
                let event: Value = serde_json::from_str(&line.expect("it ended")).unwrap();
                if event["event"] == name {
                    return event;
                }
            }
        };
        timeout(LIMIT, next).await.expect(name)
    }

    /// Asks it to end; its exit code.
    async fn terminate(&mut self) -> i32 {
        let pid = self.child.id().unwrap().to_string();
        let kill = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(kill.await.unwrap().success());
        let status = timeout(LIMIT, self.child.wait()).await.unwrap().unwrap();
        status.code().unwrap()
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        let url = format!("{}{path}", self.url);
        http().get(url).send().await.unwrap()
    }

    /// The run's report once it says so: it follows what happened a quarter of a second behind.
    async fn run_when(&self, is_so: impl Fn(&RunReport) -> bool) -> RunReport {
        let asking = async {
            loop {
                let run: RunReport = self.get("/api/run").await.json().await.unwrap();
                if is_so(&run) {
                    return run;
                }
            }
        };
        timeout(LIMIT, asking).await.expect("the report follows")
    }
}

/// Where one run lives.
struct Bench {
    folder: TempDir,
    nats: String,
    journal: Option<String>,
}

impl Bench {
    fn new(nats: &Nats, journal: Option<&Cluster>) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::create_dir(folder.path().join("text")).unwrap();
        let text = "All the fish swim together.\n".repeat(400);
        std::fs::write(folder.path().join("text/a.txt"), text).unwrap();
        std::fs::write(folder.path().join("run.toml"), CONFIG).unwrap();
        Self {
            folder,
            nats: nats.url(),
            journal: journal.map(|cluster| cluster.url().to_owned()),
        }
    }

    fn host_command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal-host"));
        command
            .arg(self.folder.path().join("run.toml"))
            .arg("--data")
            .arg(self.folder.path().join("text"))
            .arg("--store")
            .arg(self.folder.path().join("store"))
            .env("SHOAL_NATS", &self.nats)
            .envs(self.journal.as_ref().map(|url| ("SHOAL_JOURNAL", url)));
        command
    }

    fn gateway_command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal-gateway"));
        command.args(["--run", RUN, "--nats", &self.nats]);
        command
    }

    async fn host(&self) -> Process {
        Process::start(&mut self.host_command()).await
    }

    /// A gateway whose way to the host is open.
    async fn gateway(&self) -> Process {
        let mut gateway = Process::start(&mut self.gateway_command()).await;
        gateway.event("open").await;
        gateway
    }
}

/// Exit code and what was said, of a start that is refused.
async fn refusal(command: &mut Command) -> (i32, String) {
    command.args(["--port", "0"]).kill_on_drop(true);
    let output = timeout(LIMIT, command.output()).await.unwrap().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), text)
}

/// A volunteer that rests: it answers pings, and signals to others.
struct Resting {
    peer: PeerId,
    orders: mpsc::Sender<Up>,
    signals: mpsc::Receiver<(PeerId, String)>,
    ended: JoinHandle<()>,
}

impl Resting {
    /// Joins, as who it was before if that is named.
    async fn join(gateway: &Process, host: &Process, name: &str, before: Option<PeerId>) -> Self {
        let mut volunteer = Volunteer::through(&gateway.url, &host.url).await.unwrap();
        let resting = |join: &mut shared::wire::signal::Join| {
            join.paused = Some(Pause::Asked);
            join.resume = before.map(|peer| Resume {
                peer,
                place: None,
                attempt: None,
                report: None,
                leases: Leases::default(),
                holds: None,
                merged: None,
            });
        };
        let peer = volunteer.join_as(name, resting).await.peer;
        let (orders, mut waiting) = mpsc::channel::<Up>(16);
        let (heard, signals) = mpsc::channel(16);
        let ended = tokio::spawn(async move {
            loop {
                tokio::select! {
                    message = volunteer.next() => match message {
                        None => return,
                        Some(Down::Ping { nonce }) => volunteer.send(&Up::Pong { nonce }).await,
                        Some(Down::Signal { from, signal: LinkSignal::Offer { sdp, .. }, .. }) => {
                            heard.send((from, sdp)).await.unwrap();
                        }
                        Some(_) => {}
                    },
                    Some(order) = waiting.recv() => volunteer.send(&order).await,
                }
            }
        });
        Self {
            peer,
            orders,
            signals,
            ended,
        }
    }

    /// Sends `text` to another one, which hears it from this one.
    async fn reaches(&self, other: &mut Self, text: &str) {
        let (generation, sdp) = (1, text.to_owned());
        let signal = LinkSignal::Offer { generation, sdp };
        let to = other.peer;
        self.orders.send(Up::Signal { to, signal }).await.unwrap();
        let heard = timeout(LIMIT, other.signals.recv())
            .await
            .expect("a signal");
        assert_eq!(heard, Some((self.peer, text.to_owned())));
    }

    /// Waits until the gateway has closed.
    async fn closed(&mut self) {
        timeout(LIMIT, &mut self.ended).await.unwrap().unwrap();
    }
}

fn seconds(span: Span) -> Duration {
    Duration::from_micros(span.as_micros())
}

fn state_of(run: &RunReport, name: &str) -> Option<VolunteerState> {
    let mut found = run.volunteers.iter().filter(|one| one.name == name);
    found.next().map(|one| one.state)
}

/// A volunteer that trains joins with what it holds; what the host has committed by then.
async fn join_to_train(
    gateway: &Process,
    host: &Process,
    before: Option<&Volunteer>,
) -> (Volunteer, Round) {
    let mut volunteer = Volunteer::through(&gateway.url, &host.url).await.unwrap();
    let kept = before.map_or_else(Vec::new, |before| before.committed.clone());
    volunteer.committed.clone_from(&kept);
    let welcome = volunteer.join_as("anchovy", |join| join.kept = kept).await;
    (volunteer, welcome.round)
}

#[tokio::test]
async fn a_killed_gateway_and_a_killed_host_cost_no_volunteer_and_no_round() {
    let (nats, cluster) = (Nats::start("").await, Cluster::start().await);
    let bench = Bench::new(&nats, Some(&cluster));
    let mut host = bench.host().await;
    let (mut a, mut b) = (bench.gateway().await, bench.gateway().await);
    let (mut anchovy, _) = join_to_train(&a, &host, None).await;
    let mut sprat = Resting::join(&a, &host, "sprat", None).await;
    let mut smelt = Resting::join(&a, &host, "smelt", None).await;
    let mut herring = Resting::join(&b, &host, "herring", None).await;
    sprat.reaches(&mut herring, "from A to B").await;
    herring.reaches(&mut sprat, "from B to A").await;
    smelt.reaches(&mut sprat, "within A").await;
    timeout(LIMIT, anchovy.train_until(3)).await.unwrap();

    a.child.kill().await.unwrap();
    let killed = Instant::now();
    sprat.closed().await;
    smelt.closed().await;
    // Who comes again before the host has noticed is itself again, and stays when it notices.
    let mut smelt = Resting::join(&b, &host, "smelt", Some(smelt.peer)).await;
    let is_noticed = |run: &RunReport| {
        ["anchovy", "sprat"].map(|name| state_of(run, name)) == [Some(VolunteerState::Away); 2]
    };
    let run = host.run_when(is_noticed).await;
    // Beside the bound itself there are only the report's age and a busy machine.
    let noticed = killed.elapsed();
    assert!(
        noticed < seconds(GATEWAY_SILENCE_MAX) + Duration::from_secs(2),
        "{noticed:?}"
    );
    assert!(noticed < seconds(AWAY_MAX));
    assert_eq!(state_of(&run, "smelt"), Some(VolunteerState::Paused));
    let sprat_before = sprat.peer;
    let mut sprat = Resting::join(&b, &host, "sprat", Some(sprat_before)).await;
    assert_eq!(sprat.peer, sprat_before);
    herring.reaches(&mut sprat, "to who it was").await;
    sprat.reaches(&mut smelt, "all in B").await;
    let (mut anchovy, committed) = join_to_train(&b, &host, Some(&anchovy)).await;
    assert!(committed.0 >= 3);
    let more = committed.0 + 3;
    timeout(LIMIT, anchovy.train_until(more)).await.unwrap();

    let newest = anchovy.committed.first().unwrap().round;
    host.child.kill().await.unwrap();
    let killed = Instant::now();
    for resting in [&mut sprat, &mut smelt, &mut herring] {
        resting.closed().await;
    }
    b.event("away").await;
    let noticed = killed.elapsed();
    assert!(
        noticed < seconds(GATEWAY_SILENCE_MAX) + Duration::from_secs(2),
        "{noticed:?}"
    );
    assert_eq!(b.get("/readyz").await.status(), 503);
    assert!(Volunteer::through(&b.url, &host.url).await.is_err());
    let host = bench.host().await;
    b.event("open").await;
    let (mut anchovy, committed) = join_to_train(&b, &host, Some(&anchovy)).await;
    assert_eq!(committed, newest);
    let sprat = Resting::join(&b, &host, "sprat", None).await;
    let mut herring = Resting::join(&b, &host, "herring", None).await;
    sprat.reaches(&mut herring, "after all that").await;
    timeout(LIMIT, anchovy.train_until(newest.0 + 2))
        .await
        .unwrap();

    let lowest_open = host
        .run_when(|run| run.round > newest)
        .await
        .lowest_open_sample;
    let output = Command::new(env!("CARGO_BIN_EXE_auditor"))
        .arg(cluster.url())
        .args(["--lowest-open", &lowest_open.to_string()])
        .output();
    let found: Value = serde_json::from_slice(&output.await.unwrap().stdout).unwrap();
    assert_eq!(found["in_order"], true, "{found}");
    assert_eq!(found["starts"], 2, "{found}");
    assert_eq!(found["rewinds"], 0, "{found}");
}

#[tokio::test]
async fn everybody_is_back_after_nats_was_killed_and_started_again() {
    let mut nats = Nats::start("").await;
    let bench = Bench::new(&nats, None);
    let host = bench.host().await;
    let (mut a, mut b) = (bench.gateway().await, bench.gateway().await);
    let mut sprat = Resting::join(&a, &host, "sprat", None).await;
    let mut herring = Resting::join(&b, &host, "herring", None).await;
    sprat.reaches(&mut herring, "before").await;

    nats.kill().await;
    sprat.closed().await;
    herring.closed().await;
    a.event("away").await;
    b.event("away").await;
    assert!(Volunteer::through(&a.url, &host.url).await.is_err());
    // The host itself lets in whoever comes to it directly, all the same.
    let anchovy = Resting::join(&host, &host, "anchovy", None).await;
    nats.start_again().await;
    a.event("open").await;
    b.event("open").await;
    let mut sprat = Resting::join(&b, &host, "sprat", None).await;
    let mut herring = Resting::join(&a, &host, "herring", None).await;
    herring.reaches(&mut sprat, "after").await;
    anchovy.reaches(&mut herring, "from the host's own").await;
}

#[tokio::test]
async fn nats_that_froze_and_thaws_brings_nothing_back_of_what_is_over() {
    let nats = Nats::start("").await;
    let bench = Bench::new(&nats, None);
    let host = bench.host().await;
    let mut a = bench.gateway().await;
    let mut sprat = Resting::join(&a, &host, "sprat", None).await;
    let mut herring = Resting::join(&host, &host, "herring", None).await;
    sprat.reaches(&mut herring, "before").await;
    nats.signal("STOP").await;
    let (generation, to) = (1, herring.peer);
    let sdp = "stale".to_owned();
    let signal = LinkSignal::Offer { generation, sdp };
    sprat.orders.send(Up::Signal { to, signal }).await.unwrap();
    sprat.closed().await;
    a.event("away").await;
    // The host, too, has taken the gateway for dead by its own clock.
    let is_gone = |run: &RunReport| state_of(run, "sprat") != Some(VolunteerState::Paused);
    host.run_when(is_gone).await;
    nats.signal("CONT").await;
    a.event("open").await;
    let sprat = Resting::join(&a, &host, "sprat", None).await;
    // The first that is heard is this one.
    sprat.reaches(&mut herring, "after").await;
}

#[tokio::test]
async fn the_door_and_what_is_no_message_are_the_same_at_a_gateway() {
    let nats = Nats::start("").await;
    let bench = Bench::new(&nats, None);
    let mut gateway = Process::start(&mut bench.gateway_command()).await;
    assert_eq!(gateway.get("/healthz").await.status(), 200);
    assert_eq!(gateway.get("/readyz").await.status(), 503);
    let host = bench.host().await;
    gateway.event("open").await;
    assert_eq!(gateway.get("/readyz").await.status(), 200);
    let knock = async || Volunteer::through(&gateway.url, &host.url).await;

    for text in ["{}", "not JSON", &"a".repeat(100_000)] {
        let mut volunteer = knock().await.unwrap();
        volunteer.hello().await;
        volunteer.send_text(text).await;
        volunteer.refused(RefuseCode::Malformed).await;
    }
    let mut volunteer = knock().await.unwrap();
    volunteer.hello().await;
    volunteer.send_bytes(b"shoal").await;
    volunteer.refused(RefuseCode::Malformed).await;
    let mut talker = knock().await.unwrap();
    talker.join("talker").await;
    talker.send_text("{").await;
    let refused = |message| matches!(message, Down::Refuse { .. }).then_some(());
    talker.wait_for(refused).await;
    talker.closed().await;

    let mut waiting = Vec::new();
    while let Ok(volunteer) = knock().await {
        waiting.push(volunteer);
        assert!(waiting.len() < 1_000, "everybody is let in");
    }
    assert!(waiting.len() > 32, "{}", waiting.len());
}

#[tokio::test]
async fn what_can_not_be_is_refused_in_words() {
    let nats = Nats::start("max_payload: 65536\n").await;
    let mut bench = Bench::new(&nats, None);
    let (code, text) = refusal(&mut bench.host_command()).await;
    assert_eq!(code, 2, "{text}");
    assert!(
        text.contains("takes messages of 65536 bytes at most, and this run needs"),
        "{text}"
    );

    let nats = Nats::start("").await;
    bench.nats = nats.url();
    let _host = bench.host().await;
    let other = Bench::new(&nats, None);
    let (code, text) = refusal(&mut other.host_command()).await;
    assert_eq!(code, 2, "{text}");
    assert!(
        text.contains("another host serves gateways of a run named 'school <of> fish'"),
        "{text}"
    );

    drop(nats);
    for command in [&mut other.host_command(), &mut other.gateway_command()] {
        let (code, text) = refusal(command).await;
        assert_eq!(code, 1, "{text}");
        assert!(
            text.contains("no NATS server is in reach at 127.0.0.1:"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn an_empty_variable_is_none() {
    let nats = Nats::start("").await;
    let mut bench = Bench::new(&nats, None);
    bench.nats = String::new();
    // It listens, and no gateway can come.
    bench.host().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal-gateway"));
    command.args(["--run", RUN]).env("SHOAL_NATS", "");
    let (code, text) = refusal(&mut command).await;
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("--nats <URL>"), "{text}");
}

#[tokio::test]
async fn a_server_that_takes_shorter_messages_than_before_is_named_once_everybody_is_back_at_it() {
    let mut nats = Nats::start("").await;
    let bench = Bench::new(&nats, None);
    let mut host = bench.host().await;
    let mut gateway = Process::start(bench.gateway_command().stderr(Stdio::piped())).await;
    gateway.event("open").await;
    nats.kill().await;
    gateway.event("away").await;
    nats.configure("max_payload: 65536\n");
    nats.start_again().await;
    let ended = timeout(LIMIT, gateway.child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(2));
    let mut text = String::new();
    let mut stderr = gateway.child.stderr.take().unwrap();
    stderr.read_to_string(&mut text).await.unwrap();
    assert!(
        text.contains("takes messages of 65536 bytes at most, and this run needs"),
        "{text}"
    );
    // The host goes on without it.
    assert_eq!(host.get("/readyz").await.status(), 200);
    assert_eq!(host.terminate().await, 0);
}

#[tokio::test]
async fn of_two_hosts_that_came_at_once_the_later_one_ends() {
    let nats = Nats::start("").await;
    let bench = Bench::new(&nats, None);
    let mut host = bench.host().await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let subject = "shoal.school%20%3Cof%3E%20fish.host";
    let said = |since: u64| format!("{since:032x}{:016x}", 0).into();
    // One that came later hears from this one, and ends by itself.
    client.publish(subject, said(u64::MAX)).await.unwrap();
    client.flush().await.unwrap();
    let gateway = bench.gateway().await;
    Resting::join(&gateway, &host, "sprat", None).await;
    client.publish(subject, said(1)).await.unwrap();
    client.flush().await.unwrap();
    let ended = timeout(LIMIT, host.child.wait()).await.unwrap().unwrap();
    assert!(!ended.success(), "{ended}");
}

#[tokio::test]
async fn name_and_password_are_those_in_the_address() {
    let user = "authorization { user: fish, password: \"s@fe\" }\n";
    let nats = Nats::start(user).await;
    let mut bench = Bench::new(&nats, None);
    let (code, text) = refusal(&mut bench.host_command()).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("authorization violation"), "{text}");
    bench.nats = nats.url().replace("//", "//fish:s%40fe@");
    let host = bench.host().await;
    let gateway = bench.gateway().await;
    Resting::join(&gateway, &host, "sprat", None).await;
}

#[tokio::test]
async fn who_ends_in_good_order_says_so_at_once() {
    let nats = Nats::start("").await;
    let bench = Bench::new(&nats, None);
    let mut host = bench.host().await;
    let (mut a, mut b) = (bench.gateway().await, bench.gateway().await);
    let mut sprat = Resting::join(&a, &host, "sprat", None).await;
    let mut herring = Resting::join(&b, &host, "herring", None).await;
    let began = Instant::now();
    assert_eq!(a.terminate().await, 0);
    sprat.closed().await;
    let is_away = |run: &RunReport| state_of(run, "sprat") == Some(VolunteerState::Away);
    host.run_when(is_away).await;
    assert_eq!(host.terminate().await, 0);
    herring.closed().await;
    let away = b.event("away").await;
    assert!(
        away["text"].as_str().unwrap().contains("knows nothing"),
        "{away}"
    );
    // Nobody had to be silent for so long.
    assert!(began.elapsed() < seconds(GATEWAY_SILENCE_MAX));
}
