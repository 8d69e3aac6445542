//! `shoal-host` as a process: what it answers over HTTP and WebSocket, what it refuses, what survives its death.
//!
//! The volunteer here is a script over a raw WebSocket: it says what a volunteer says and computes nothing. Waiting is
//! always for something to happen, with a limit.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are tests: what is not as it should be ends them"
)]

mod uploads;
#[allow(dead_code, reason = "other tests use the rest of it")]
mod volunteer;

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use flate2::write::GzEncoder;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use shared::wire::frame::VERSION;
use shared::wire::report::RunReport;
use shared::wire::signal::{Down, Held, RefuseCode, Up};
use shared::wire::web::{Manifest, Module, Packed};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use volunteer::{Volunteer, http, state};

const LIMIT: Duration = Duration::from_secs(30);
const CONFIG: &str = "[run]\nname = \"school <of> fish\"\n[model]\nblocks = 2\ncontext = 16\n[training]\nbatch = 8\n\
                      microbatches = 2\n[schedule]\nround_steps = 2\neval_rounds = 1\ncheckpoint_minutes = 0.02\nrewind_wait_seconds = 1\n";

/// Data, store and configuration of one run.
struct Bench {
    folder: TempDir,
}

struct Host {
    child: Child,
    events: Lines<BufReader<ChildStdout>>,
    /// Events that came while another was waited for.
    passed: Vec<Value>,
    url: String,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            folder: TempDir::new().unwrap(),
        };
        std::fs::create_dir(bench.path("text")).unwrap();
        bench.write("text/a.txt", &"All the fish swim together.\n".repeat(400));
        bench.write("run.toml", CONFIG);
        bench
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// A web client as `cargo xtask web` leaves it, but for what it does.
    fn build_web(&self, script: &str) {
        let folder = self.path("www/pkg/page-1");
        std::fs::create_dir_all(&folder).unwrap();
        let mut files = Vec::new();
        for name in ["start.js", "page.js", "page_bg.wasm", "boot.js"] {
            let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(script.as_bytes()).unwrap();
            std::fs::write(folder.join(format!("{name}.gz")), gzip.finish().unwrap()).unwrap();
            std::fs::write(folder.join(format!("{name}.br")), "as brotli").unwrap();
            files.push(Packed {
                path: format!("page-1/{name}"),
                len_bytes: script.len() as u64,
                brotli_bytes: 9,
                gzip_bytes: 1,
            });
        }
        let module = Module {
            start: "page-1/start.js".to_owned(),
            script: "page-1/page.js".to_owned(),
            wasm: "page-1/page_bg.wasm".to_owned(),
        };
        let manifest = Manifest {
            page: module.clone(),
            worker: module,
            assets: [("boot.js".to_owned(), "page-1/boot.js".to_owned())].into(),
            files,
        };
        let text = serde_json::to_string(&manifest).unwrap();
        self.write("www/pkg/manifest.json", &text);
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal-host"));
        command
            .arg(self.path("run.toml"))
            .arg("--data")
            .arg(self.path("text"))
            .env("SHOAL_STORE", self.path("store"))
            .arg("--json")
            .env("SHOAL_PORT", "0")
            .env("RUST_LOG", "warn")
            .env_remove("PORT")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn start(&self) -> Host {
        self.start_with(&[]).await
    }

    async fn start_with(&self, arguments: &[&str]) -> Host {
        let mut child = self
            .command()
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let events = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = String::new();
        let mut host = Host {
            child,
            events,
            passed: Vec::new(),
            url,
        };
        let listening = host.event("listening").await;
        host.url = listening["url"].as_str().unwrap().to_owned();
        host
    }

    /// Exit code and what was said, of a start that is refused.
    async fn refusal(&self, arguments: &[&str]) -> (i32, String) {
        let output = timeout(LIMIT, self.command().args(arguments).output());
        let output = output.await.unwrap().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        let text = text.replace(&self.folder.path().display().to_string(), "DIR");
        (output.status.code().unwrap(), text)
    }

    async fn audit(&self, arguments: &[&str]) -> Value {
        let auditor = Path::new(env!("CARGO_BIN_EXE_auditor"));
        let output = Command::new(auditor)
            .arg(self.path("store"))
            .args(arguments)
            .output()
            .await
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Host {
    /// The next event of that name; others before it are kept for later.
    async fn event(&mut self, name: &str) -> Value {
        let is_wanted = |event: &Value| event["event"] == name;
        if let Some(index) = self.passed.iter().position(is_wanted) {
            return self.passed.remove(index);
        }
        let next = async {
            loop {
                let line = self.events.next_line().await.unwrap();
                let event: Value = serde_json::from_str(&line.expect("the host ended")).unwrap();
                if is_wanted(&event) {
                    return event;
                }
                self.passed.push(event);
            }
        };
        timeout(LIMIT, next).await.expect(name)
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        let url = format!("{}{path}", self.url);
        http().get(url).send().await.unwrap()
    }

    async fn text(&self, path: &str) -> String {
        self.get(path).await.text().await.unwrap()
    }

    async fn run(&self) -> RunReport {
        self.get("/api/run").await.json().await.unwrap()
    }

    /// The run's report once it says so: it follows what happened a quarter of a second behind.
    async fn run_when(&self, is_so: impl Fn(&RunReport) -> bool) -> RunReport {
        let asking = async {
            loop {
                let run = self.run().await;
                if is_so(&run) {
                    return run;
                }
            }
        };
        timeout(LIMIT, asking).await.expect("the report follows")
    }

    async fn volunteer(&self) -> Volunteer {
        Volunteer::connect(&self.url).await
    }

    async fn terminate(mut self) -> i32 {
        let pid = self.child.id().unwrap().to_string();
        let kill = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(kill.await.unwrap().success());
        let status = timeout(LIMIT, self.child.wait()).await.unwrap().unwrap();
        status.code().unwrap()
    }
}

#[tokio::test]
async fn page_numbers_and_data_are_served() {
    let bench = Bench::new();
    let host = bench.start().await;

    let page = host.get("/").await;
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    let page = page.text().await.unwrap();
    assert!(page.contains("<h1>school &lt;of&gt; fish</h1>"), "{page}");
    assert!(page.contains("Waiting for the first volunteer."), "{page}");
    assert!(
        !page.contains("//cdn") && !page.contains("src=\"http"),
        "{page}"
    );
    assert!(
        host.text("/style.css")
            .await
            .contains("prefers-color-scheme")
    );
    assert!(host.text("/icon.svg").await.starts_with("<svg"));
    assert_eq!(host.text("/healthz").await, "ok\n");
    assert_eq!(host.text("/readyz").await, "ready\n");
    let metrics = host.text("/metrics").await;
    assert!(metrics.contains("shoal_rounds_total 0"), "{metrics}");
    assert!(metrics.contains("shoal_build_info{version="), "{metrics}");
    let build = env!("CARGO_PKG_VERSION");
    assert!(page.contains(&format!("This host is Shoal {build}")));

    let run = host.run().await;
    assert_eq!((run.round.0, run.volunteers.len()), (0, 0));
    assert_eq!((run.build.as_str(), run.wire_version), (build, VERSION));
    assert_eq!(run.data.train_tokens + run.data.validation_tokens, 400 * 28);
    // Rank 32 as int8 with a bf16 scale, both ways; 128 wide in f16, both ways.
    assert_eq!(
        (run.wire_bytes_per_token, run.dense_f16_bytes_per_token),
        (68, 512)
    );

    let whole = host.get("/data/train.bin").await.bytes().await.unwrap();
    assert_eq!(whole.len() as u64, 2 * run.data.train_tokens);
    assert_eq!(whole[..8], *b"A\0l\0l\0 \0");
    let client = http();
    let part = |range: &'static str| {
        client
            .get(format!("{}/data/train.bin", host.url))
            .header("range", range)
            .send()
    };
    let answer = part("bytes=2-5").await.unwrap();
    assert_eq!(answer.status(), 206);
    let range = format!("bytes 2-5/{}", whole.len());
    assert_eq!(answer.headers()["content-range"], range.as_str());
    assert_eq!(answer.bytes().await.unwrap(), whole.slice(2..6));
    assert_eq!(part("bytes=99999999-").await.unwrap().status(), 416);
    assert_eq!(host.get("/data/validation.bin").await.status(), 200);
    assert_eq!(host.get("/data/secret.bin").await.status(), 404);
    assert_eq!(
        host.get("/data/..%2F..%2Fjournal.sqlite").await.status(),
        404
    );
    assert!(
        host.text("/data/tokenizer.json")
            .await
            .contains("ByteLevel")
    );
    assert_eq!(host.get("/store/manifests/newest.json").await.status(), 404);
    let upload = client.put(format!("{}/store/upload/guessed", host.url));
    assert_eq!(upload.body("bytes").send().await.unwrap().status(), 403);
    assert_eq!(host.terminate().await, 0);
}

#[tokio::test]
async fn what_is_no_message_is_refused_in_words_and_the_host_goes_on() {
    let bench = Bench::new();
    let host = bench.start().await;
    let long = "x".repeat(70 << 10);
    for text in ["", "{", "{\"type\":\"pong\"}", "[[[[[[[[", long.as_str()] {
        let mut volunteer = host.volunteer().await;
        volunteer.hello().await;
        volunteer.send_text(text).await;
        volunteer.refused(RefuseCode::Malformed).await;
    }
    let mut volunteer = host.volunteer().await;
    volunteer.hello().await;
    volunteer.send_bytes(b"\x01\x02").await;
    volunteer.refused(RefuseCode::Malformed).await;

    let mut early = host.volunteer().await;
    early.hello().await;
    early.send(&Up::Finish).await;
    early.refused(RefuseCode::Malformed).await;
    assert_eq!(host.text("/healthz").await, "ok\n");
}

#[tokio::test]
async fn wrong_versions_proofs_and_seed_hashes_are_refused_at_the_door() {
    let bench = Bench::new();
    let host = bench.start().await;
    let mut volunteer = host.volunteer().await;
    let mut join = volunteer.join_after_hello("a").await;
    join.version += 1;
    volunteer.send(&Up::Join(join)).await;
    volunteer.refused(RefuseCode::Version).await;

    let mut volunteer = host.volunteer().await;
    let mut join = volunteer.join_after_hello("a").await;
    join.session += 1;
    volunteer.send(&Up::Join(join)).await;
    volunteer.refused(RefuseCode::Proof).await;

    let mut volunteer = host.volunteer().await;
    let mut join = volunteer.join_after_hello("a").await;
    join.seed_hash.0[0] ^= 1;
    volunteer.send(&Up::Join(join)).await;
    volunteer.refused(RefuseCode::SeedHash).await;
}

#[tokio::test]
async fn whoever_says_nothing_is_closed_and_whoever_knocks_too_often_waits() {
    let bench = Bench::new();
    let host = bench.start().await;
    let mut silent = host.volunteer().await;
    silent.hello().await;
    let mut refused = 0;
    for _ in 0..100 {
        refused += usize::from(Volunteer::try_connect(&host.url).await.is_err());
    }
    assert!(refused > 0);
    silent.closed().await;
}

#[tokio::test]
async fn welcomes_carry_ice_servers_with_credentials() {
    let bench = Bench::new();
    let arguments = [
        "--ice-server",
        "stun:s.example:3478,turn:t.example:3478",
        "--turn-secret",
        "x",
    ];
    let host = bench.start_with(&arguments).await;
    let mut volunteer = host.volunteer().await;
    let join = volunteer.join_after_hello("a").await;
    volunteer.send(&Up::Join(join)).await;
    let welcome = volunteer
        .wait_for(|message| {
            if let Down::Welcome(welcome) = message {
                return Some(welcome);
            }
            None
        })
        .await;
    assert_eq!(welcome.ice_servers.len(), 2);
    assert_eq!(welcome.ice_servers[0].credential, None);
    let username = welcome.ice_servers[1].username.clone().unwrap();
    assert!(
        username.ends_with(&format!(":{}", welcome.peer)),
        "{username}"
    );
}

#[tokio::test]
async fn rounds_checkpoints_and_their_samples_survive_a_killed_host() {
    let bench = Bench::new();
    let mut host = bench.start().await;
    let mut volunteer = host.volunteer().await;
    volunteer.join("<anchovy>").await;
    volunteer.train_until(2).await;

    let commit = host.event("commit").await;
    assert_eq!(
        (&commit["round"], &commit["samples"]),
        (&json!(1), &json!(16))
    );
    assert_eq!(commit["volunteers"], 1);
    assert_eq!(host.event("commit").await["round"], 2);
    assert!(host.event("checkpoint").await["round"].as_u64().unwrap() >= 1);
    let page = host.text("/").await;
    assert!(
        page.contains("&lt;anchovy&gt;") && !page.contains("<anchovy>"),
        "{page}"
    );
    let metrics = host.text("/metrics").await;
    assert!(
        metrics.contains("kind=\"native\",state=\"seated\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains("shoal_join_seconds_count 1"), "{metrics}");
    let before = host
        .run_when(|run| run.round.0 >= 2 && run.checkpoint_round.is_some())
        .await;
    assert!(before.validation_loss.is_some());
    let manifest: Value = host
        .get("/store/manifests/newest.json")
        .await
        .json()
        .await
        .unwrap();
    for stage in manifest["stages"].as_array().unwrap() {
        let blob = stage["blob"].as_str().unwrap();
        let bytes = host
            .get(&format!("/store/blobs/{blob}"))
            .await
            .bytes()
            .await
            .unwrap();
        assert_eq!(shared::units::Digest::of(&bytes).to_string(), blob);
    }

    host.child.kill().await.unwrap();
    drop(volunteer);
    let mut host = bench.start().await;
    let after = host.run().await;
    assert!(after.round >= before.round);
    assert!(after.checkpoint_round >= before.checkpoint_round);
    assert_eq!(after.rounds[..before.rounds.len()], before.rounds[..]);
    // Nobody came back with the newest round: the run goes on from the store.
    let mut volunteer = host.volunteer().await;
    volunteer.join("herring").await;
    volunteer.train_until(after.round.0 + 1).await;
    host.event("commit").await;
    let lowest_open = host.run().await.lowest_open_sample.to_string();
    let found = bench.audit(&["--lowest-open", &lowest_open]).await;
    assert_eq!(found["in_order"], true, "{found}");
    assert_eq!(found["starts"], 2, "{found}");
    assert_eq!(host.terminate().await, 0);
}

#[tokio::test]
async fn what_can_not_be_done_is_said_with_what_to_do_and_loses_nothing() {
    let bench = Bench::new();
    let host = bench.start().await;
    let port = host.url.rsplit(':').next().unwrap().to_owned();
    let (code, text) = bench.refusal(&["--port", &port]).await;
    assert_eq!(code, 2);
    assert!(
        text.contains("Address already in use") && text.contains("--port"),
        "{text}"
    );
    let (code, text) = bench.refusal(&[]).await;
    assert_eq!(code, 2);
    assert!(
        text.contains("DIR/store is in use by another shoal-host"),
        "{text}"
    );
    assert_eq!(host.terminate().await, 0);

    bench.write("run.toml", &CONFIG.replace("batch = 8", "batch = 16"));
    let (code, text) = bench.refusal(&[]).await;
    assert_eq!(code, 2);
    assert!(
        text.contains("belongs to another run: its training.batch is 8, not 16"),
        "{text}"
    );
    bench.write("run.toml", &CONFIG.replace("batch = 8", "batsh = 8"));
    let (code, text) = bench.refusal(&[]).await;
    assert_eq!(code, 2);
    assert!(text.contains("batsh") && text.contains("batch"), "{text}");
    bench.write("run.toml", &CONFIG.replace("batch = 8", "batch = 4096"));
    let (code, text) = bench.refusal(&[]).await;
    assert_eq!(code, 2);
    assert!(text.contains("one batch needs"), "{text}");
    bench.write("run.toml", CONFIG);
    bench.write("text/b.txt", "more\n");
    let (code, text) = bench.refusal(&[]).await;
    assert_eq!(code, 2);
    assert!(text.contains("its data has the hash"), "{text}");

    std::fs::remove_file(bench.path("text/b.txt")).unwrap();
    assert_eq!(bench.start().await.terminate().await, 0);
}

#[tokio::test]
async fn the_built_page_is_served_compressed_and_kept_for_good() {
    let bench = Bench::new();
    let script = "export default async function () {}\n".repeat(50);
    bench.build_web(&script);
    let www = bench.path("www").display().to_string();
    let host = bench.start_with(&["--www", &www]).await;
    let client = http();
    let get = |path: &str, name: &'static str, value: &str| {
        let url = format!("{}/pkg/{path}", host.url);
        client.get(url).header(name, value).send()
    };

    let answer = get("page-1/start.js", "accept-encoding", "gzip, br").await;
    let answer = answer.unwrap();
    let header = |answer: &reqwest::Response, name: &str| {
        answer.headers()[name].to_str().unwrap().to_owned()
    };
    assert_eq!(header(&answer, "content-encoding"), "br");
    assert_eq!(
        header(&answer, "content-type"),
        "text/javascript; charset=utf-8"
    );
    let keep = header(&answer, "cache-control");
    assert_eq!(keep, "public, max-age=31536000, immutable");
    assert_eq!(header(&answer, "vary"), "accept-encoding");
    assert_eq!(
        header(&answer, "cross-origin-embedder-policy"),
        "require-corp"
    );
    let tag = header(&answer, "etag");
    assert_eq!(answer.bytes().await.unwrap(), "as brotli");

    let again = get("page-1/start.js", "accept-encoding", "gzip").await;
    let again = again.unwrap();
    assert_eq!(header(&again, "content-encoding"), "gzip");
    assert_ne!(
        header(&again, "etag"),
        tag,
        "another encoding, another entity"
    );
    let plain = get("page-1/start.js", "accept-encoding", "identity").await;
    assert_eq!(plain.unwrap().text().await.unwrap(), script);
    let known = client
        .get(format!("{}/pkg/page-1/start.js", host.url))
        .header("accept-encoding", "br")
        .header("if-none-match", &tag);
    let known = known.send().await.unwrap();
    assert_eq!(known.status(), 304);
    let module = get("page-1/page_bg.wasm", "accept-encoding", "br").await;
    assert_eq!(header(&module.unwrap(), "content-type"), "application/wasm");
    assert_eq!(host.get("/pkg/manifest.json").await.status(), 404);
    assert_eq!(
        host.get("/pkg/..%2F..%2Frun.toml").await.status(),
        404,
        "only what the manifest names is served"
    );

    let page = host.get("/r/some-code").await;
    assert_eq!(page.status(), 200);
    let named = host.text("/").await;
    for name in ["boot.js", "start.js", "page_bg.wasm"] {
        let path = format!("\"/pkg/page-1/{name}\"");
        assert!(named.contains(&path), "{named}");
    }
    let tag = header(&page, "etag");
    assert_eq!(header(&page, "cache-control"), "no-cache");
    let policy = header(&page, "content-security-policy");
    assert!(
        policy.contains("script-src 'self' 'wasm-unsafe-eval';"),
        "{policy}"
    );
    let known = client
        .get(&host.url)
        .header("if-none-match", &tag)
        .send()
        .await
        .unwrap();
    assert_eq!(known.status(), 304, "the run has not changed");
    assert_eq!(host.terminate().await, 0);
}

#[tokio::test]
async fn a_page_that_was_not_built_is_said_with_what_to_do() {
    let bench = Bench::new();
    let (code, text) = bench.refusal(&["--www", "/nowhere"]).await;
    assert_eq!(code, 2);
    assert!(
        text.contains("cannot read /nowhere/pkg/manifest.json") && text.contains("cargo xtask web"),
        "{text}"
    );
}
