//! A `shoal-host` as a child process over a made-up text, what it costs the machine, and a gateway in front of it.
//!
//! Linux alone: memory and CPU come from `/proc`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long a program may take until it listens.
const START_MAX: Duration = Duration::from_secs(60);
/// `/proc` counts CPU in these.
const TICKS_A_SECOND: f64 = 100.0;
const CONFIG: &str = "[run]\nname = \"crowd\"\n[model]\nblocks = 2\ncontext = 16\n[training]\nbatch = 8\n\
                      microbatches = 2\n[schedule]\nround_steps = 16\neval_rounds = 0\ncheckpoint_minutes = 60\n";

/// A gateway in front of the host; it ends with this value.
pub(crate) struct Gateway {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    _child: Child,
}

impl Gateway {
    /// Starts `program` at that NATS server, and waits until it lets volunteers in.
    pub(crate) async fn start(program: &Path, nats: &str) -> Result<Self, String> {
        let mut command = Command::new(program);
        command.args(["--run", "crowd", "--nats", nats]);
        let (child, address) = listen(&mut command, "open").await?;
        Ok(Self {
            address,
            _child: child,
        })
    }
}

/// Starts a program; it and where it listens, once it has said both that and `event`.
async fn listen(command: &mut Command, event: &str) -> Result<(Child, SocketAddr), String> {
    let mut child = command
        .args(["--json", "--port", "0"])
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let stdout = child.stdout.take().ok_or("the program has no output")?;
    let mut lines = BufReader::new(stdout).lines();
    let said = async {
        let mut url = String::new();
        while let Ok(Some(line)) = lines.next_line().await {
            let said: Value = serde_json::from_str(&line).map_err(|error| error.to_string())?;
            if let Some(text) = said["url"].as_str() {
                text.clone_into(&mut url);
            }
            if said["event"] == event {
                return Ok(url);
            }
        }
        Err("the program ended".to_owned())
    };
    let url = timeout(START_MAX, said)
        .await
        .map_err(|_| format!("the program does not say '{event}'"))??;
    // It goes on to say what happens; somebody must read it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let address = url.trim_start_matches("http://").parse();
    let address = address.map_err(|_| format!("'{url}' is no address"))?;
    Ok((child, address))
}

/// A host; it ends with this value.
pub(crate) struct Host {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    child: Child,
    _folder: TempDir,
}

impl Host {
    /// Starts `program` over data and a store of its own, and waits until it listens. It may have `files` open at first, if
    /// that is named, until it asks for more, and takes gateways at that NATS server, if one is.
    pub(crate) async fn start(
        program: &Path,
        files: Option<u32>,
        nats: Option<&str>,
    ) -> Result<Self, String> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| format!("{what}: {error}")
        };
        let folder = TempDir::new().map_err(failed("a folder"))?;
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("text")).map_err(failed("a folder"))?;
        let text = "All the fish swim together.\n".repeat(400);
        std::fs::write(path("text/a.txt"), text).map_err(failed("the text"))?;
        std::fs::write(path("run.toml"), CONFIG).map_err(failed("the configuration"))?;
        let limit = files.map_or_else(String::new, |files| format!("ulimit -Sn {files} && "));
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{limit}exec \"$0\" \"$@\"")])
            .arg(program)
            .arg(path("run.toml"))
            .arg("--data")
            .arg(path("text"))
            .arg("--store")
            .arg(path("store"))
            .envs(nats.map(|url| ("SHOAL_NATS", url)));
        let (child, address) = listen(&mut command, "listening").await?;
        Ok(Self {
            address,
            child,
            _folder: folder,
        })
    }

    /// Bytes of its memory.
    pub(crate) fn resident_bytes(&self) -> Result<u64, String> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.map(|kib| kib << 10)
            .ok_or_else(|| "no VmRSS".to_owned())
    }

    /// CPU seconds that it took so far; not a number once it has ended.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let Ok(stat) = self.read("stat") else {
            return f64::NAN;
        };
        // After the name, which may hold anything but a last bracket, user and system time are 12th and 13th.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: f64 = ticks.filter_map(|field| field.parse::<f64>().ok()).sum();
        ticks / TICKS_A_SECOND
    }

    fn read(&self, name: &str) -> Result<String, String> {
        let pid = self.child.id().ok_or("the host ended")?;
        std::fs::read_to_string(format!("/proc/{pid}/{name}")).map_err(|error| error.to_string())
    }
}
