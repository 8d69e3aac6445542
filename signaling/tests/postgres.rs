//! The journal in a real Postgres: what it keeps when the server is killed in the middle, and a host over it.
//!
//! Each test makes a cluster of its own in a temporary folder, reached by a Unix socket in it. Killing is Postgres's own
//! immediate shutdown: nothing is flushed, and the next start recovers from its log as after a crash.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are tests: what is not as it should be ends them"
)]

mod cluster;
#[allow(dead_code, reason = "other tests use the rest of it")]
mod volunteer;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use shared::units::Digest;
use signaling::journal::{self, Address, Identity, Journal, JournalError, Record};
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use cluster::Cluster;
use volunteer::{Volunteer, http};

const LIMIT: Duration = Duration::from_secs(60);
/// The round after which the first volunteer stops: more than are trained before the server is killed.
const ROUNDS: u32 = 60;
const CONFIG: &str = "[model]\nblocks = 2\ncontext = 16\n[training]\nbatch = 8\nmicrobatches = 2\n\
                      [schedule]\nround_steps = 2\neval_rounds = 0\ncheckpoint_minutes = 0.02\nrewind_wait_seconds = 1\n";

fn identity() -> Identity {
    Identity {
        config: Digest::of(b"config"),
        config_json: "{}".to_owned(),
        data: Digest::of(b"data"),
        seed: 7,
        wire: 1,
    }
}

fn row(round: u64) -> Record {
    Record {
        kind: "commit".to_owned(),
        json: format!("{{\"round\":{round}}}"),
    }
}

async fn rows(address: &Address) -> Vec<Record> {
    journal::read(address).await.unwrap().1
}

/// Somebody beside the host, at the same database.
async fn stranger(cluster: &Cluster) -> PgConnection {
    let url = format!("{}&options=-csearch_path%3Dshoal", cluster.url());
    PgConnection::connect(&url).await.unwrap()
}

/// Breaks the connections of hosts, as a router that forgets them would.
async fn disconnect_hosts(stranger: &mut PgConnection) {
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                WHERE application_name = 'shoal-host' AND pid <> pg_backend_pid()";
    sqlx::query(kill).execute(stranger).await.unwrap();
}

#[tokio::test]
async fn rows_survive_a_server_that_is_killed_and_follow_each_other_afterwards() {
    let mut cluster = Cluster::start().await;
    let address: Address = cluster.url().parse().unwrap();
    let (mut journal, history) = Journal::open(&address, &identity()).await.unwrap();
    assert_eq!(history, []);
    journal.append(&[row(0), row(1)]).await.unwrap();
    cluster.kill().await;
    let refused = journal.append(&[row(2)]).await.unwrap_err();
    assert!(matches!(refused, JournalError::Append { .. }), "{refused}");
    let refused = journal.append(&[row(2)]).await.unwrap_err();
    assert!(
        refused.to_string().contains("goes on by itself"),
        "{refused}"
    );
    cluster.start_again().await;
    journal.append(&[row(2)]).await.unwrap();
    assert_eq!(rows(&address).await, [row(0), row(1), row(2)]);
    drop(journal);
    let (_, history) = Journal::open(&address, &identity()).await.unwrap();
    assert_eq!(history, [row(0), row(1), row(2)]);
}

#[tokio::test]
async fn a_row_whose_answer_was_lost_is_found_and_not_written_twice() {
    let cluster = Cluster::start().await;
    let address: Address = cluster.url().parse().unwrap();
    let (mut journal, _) = Journal::open(&address, &identity()).await.unwrap();
    journal.append(&[row(0)]).await.unwrap();
    let mut stranger = stranger(&cluster).await;
    disconnect_hosts(&mut stranger).await;
    journal.append(&[row(1)]).await.unwrap_err();
    // What that append would have left, had only its answer been lost.
    let insert = "INSERT INTO rows VALUES (1, 'commit', '{\"round\":1}', 0)";
    sqlx::query(insert).execute(&mut stranger).await.unwrap();
    journal.append(&[row(1)]).await.unwrap();
    journal.append(&[row(2)]).await.unwrap();
    assert_eq!(rows(&address).await, [row(0), row(1), row(2)]);

    disconnect_hosts(&mut stranger).await;
    journal.append(&[row(3)]).await.unwrap_err();
    let insert = "INSERT INTO rows VALUES (3, 'commit', '{\"round\":99}', 0)";
    sqlx::query(insert).execute(&mut stranger).await.unwrap();
    let refused = journal.append(&[row(3)]).await.unwrap_err();
    assert!(
        matches!(refused, JournalError::Diverged { .. }),
        "{refused}"
    );
}

#[tokio::test]
async fn one_host_at_a_time_and_no_row_is_ever_changed() {
    let cluster = Cluster::start().await;
    let address: Address = cluster.url().parse().unwrap();
    let (mut journal, _) = Journal::open(&address, &identity()).await.unwrap();
    journal.append(&[row(0)]).await.unwrap();
    let second = Journal::open(&address, &identity()).await.unwrap_err();
    assert!(matches!(second, JournalError::InUse { .. }), "{second}");
    let mut stranger = stranger(&cluster).await;
    for statement in [
        "UPDATE rows SET json = ''",
        "DELETE FROM rows",
        "TRUNCATE rows",
    ] {
        let changed = sqlx::query(statement).execute(&mut stranger).await;
        assert!(changed.unwrap_err().to_string().contains("rows are never"));
    }
    journal.close().await.unwrap();
    let other = Identity {
        seed: 8,
        ..identity()
    };
    let foreign = Journal::open(&address, &other).await.unwrap_err();
    assert!(matches!(foreign, JournalError::Foreign { .. }), "{foreign}");
    assert!(Journal::open(&address, &identity()).await.is_ok());
}

/// A `shoal-host` over a journal in Postgres.
struct Host {
    child: Child,
    events: Lines<BufReader<ChildStdout>>,
    url: String,
}

impl Host {
    async fn start(folder: &Path, journal: &str) -> Self {
        std::fs::create_dir_all(folder.join("text")).unwrap();
        let text = "All the fish swim together.\n".repeat(400);
        std::fs::write(folder.join("text/a.txt"), text).unwrap();
        std::fs::write(folder.join("run.toml"), CONFIG).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_shoal-host"))
            .arg(folder.join("run.toml"))
            .arg("--data")
            .arg(folder.join("text"))
            .arg("--store")
            .arg(folder.join("store"))
            .args(["--json", "--port", "0"])
            .env("SHOAL_JOURNAL", journal)
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let events = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut host = Self {
            child,
            events,
            url: String::new(),
        };
        let listening = host.event("listening").await;
        host.url = listening["url"].as_str().unwrap().to_owned();
        host
    }

    async fn event(&mut self, name: &str) -> Value {
        let next = async {
            loop {
                let line = self.events.next_line().await.unwrap();
                let event: Value = serde_json::from_str(&line.expect("the host ended")).unwrap();
                if event["event"] == name {
                    return event;
                }
            }
        };
        timeout(LIMIT, next).await.expect(name)
    }

    async fn status(&self, path: &str) -> u16 {
        let answer = http().get(format!("{}{path}", self.url)).send();
        answer.await.unwrap().status().as_u16()
    }
}

#[tokio::test]
async fn a_host_waits_for_its_database_and_goes_on_from_it_after_its_own_death() {
    let mut cluster = Cluster::start().await;
    let folder = TempDir::new().unwrap();
    let mut host = Host::start(folder.path(), cluster.url()).await;
    assert!(!folder.path().join("store/journal.sqlite").exists());
    let mut volunteer = Volunteer::connect(&host.url).await;
    volunteer.join("anchovy").await;
    let training = async {
        volunteer.train_until(ROUNDS).await;
        volunteer
    };
    let training = tokio::spawn(training);
    host.event("commit").await;
    cluster.kill().await;
    let trouble = host.event("trouble").await;
    assert!(
        trouble.to_string().contains("can't be written"),
        "{trouble}"
    );
    assert_eq!(host.status("/readyz").await, 503);
    cluster.start_again().await;
    let volunteer = timeout(LIMIT, training).await.unwrap().unwrap();
    assert_eq!(host.status("/readyz").await, 200);
    let address: Address = cluster.url().parse().unwrap();
    let after = rows(&address).await;
    let commits = after.iter().filter(|row| row.kind == "commit").count();
    assert!(commits >= ROUNDS as usize, "{after:?}");

    host.child.kill().await.unwrap();
    drop(volunteer);
    let mut host = Host::start(folder.path(), cluster.url()).await;
    let mut volunteer = Volunteer::connect(&host.url).await;
    volunteer.join("herring").await;
    volunteer.train_until(ROUNDS + 1).await;
    host.event("commit").await;
    let report: Value = http()
        .get(format!("{}/api/run", host.url))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_auditor"))
        .arg(cluster.url())
        .args(["--lowest-open", &report["lowest_open_sample"].to_string()])
        .output()
        .await
        .unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["in_order"], true, "{found}");
    assert_eq!(found["starts"], 2, "{found}");
    assert!(
        found["commits"].as_u64().unwrap() > u64::from(ROUNDS),
        "{found}"
    );
}
