//! A Postgres of a test's own: made, started, killed and started again in a temporary folder.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Where Debian puts its programs, a folder for each version.
const PROGRAMS: &str = "/usr/lib/postgresql";
const LIMIT: Duration = Duration::from_secs(60);
/// Who owns nothing: Postgres refuses to run as root.
const NOBODY: u32 = 65_534;

/// A server that ends with this value.
pub(crate) struct Cluster {
    folder: TempDir,
    url: String,
    server: Option<Child>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let made = command("initdb", folder.path())
            .arg("--pgdata")
            .arg(folder.path().join("data"))
            .args([
                "--username=shoal",
                "--auth=trust",
                "--no-sync",
                "--no-locale",
            ])
            .args(["--encoding=UTF8"])
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
        let socket = folder.path().display().to_string().replace('/', "%2F");
        let url = format!("postgres://shoal@localhost/postgres?host={socket}");
        let mut cluster = Self {
            folder,
            url,
            server: None,
        };
        cluster.start_again().await;
        cluster
    }

    /// Where its database is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Starts the server over what is there; returns once it answers.
    pub(crate) async fn start_again(&mut self) {
        let mut server = command("postgres", self.folder.path())
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .arg("-k")
            .arg(self.folder.path())
            .args(["-c", "listen_addresses="])
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains("ready to accept connections") {
                    return;
                }
            }
            panic!("postgres ended");
        };
        timeout(LIMIT, ready).await.unwrap();
        // It says more; somebody must read it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.server = Some(server);
    }

    /// Ends it at once, as a crash does.
    pub(crate) async fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        let pid = server.id().unwrap().to_string();
        // What Postgres calls an immediate shutdown; it ends once its children have.
        let told = Command::new("kill").args(["-QUIT", &pid]).status();
        assert!(told.await.unwrap().success());
        timeout(LIMIT, server.wait()).await.unwrap().unwrap();
    }
}

/// A program of the newest version that is here, for who is not root.
fn command(name: &str, folder: &Path) -> Command {
    let mut command = std::process::Command::new(programs().join(name));
    command
        .current_dir(folder)
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.into()
}

fn programs() -> PathBuf {
    let versions = std::fs::read_dir(PROGRAMS).into_iter().flatten();
    let folders = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let found = folders.filter(|folder| folder.join("initdb").is_file());
    let number = |folder: &PathBuf| -> u32 {
        let version = folder.parent().and_then(Path::file_name);
        version
            .and_then(|name| name.to_str()?.parse().ok())
            .unwrap_or(0)
    };
    found
        .max_by_key(number)
        .expect("Postgres (Debian: postgresql): cargo xtask setup installs it")
}
