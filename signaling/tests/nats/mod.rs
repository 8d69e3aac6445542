//! A NATS server of a test's own: started, killed and started again at the same port.

use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

/// A server that ends with this value.
pub(crate) struct Nats {
    folder: TempDir,
    port: u16,
    server: Option<Child>,
}

impl Nats {
    /// A server with these lines in its configuration.
    pub(crate) async fn start(configuration: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let mut nats = Self {
            folder,
            port: 0,
            server: None,
        };
        nats.configure(configuration);
        nats.start_again().await;
        nats
    }

    /// Another configuration, for its next start.
    pub(crate) fn configure(&self, configuration: &str) {
        std::fs::write(self.folder.path().join("nats.conf"), configuration).unwrap();
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Starts the server, at the port that it had; returns once it listens.
    pub(crate) async fn start_again(&mut self) {
        // -1 takes a free one.
        let port = match self.port {
            0 => "-1".to_owned(),
            port => port.to_string(),
        };
        let mut server = Command::new("nats-server")
            .args(["-a", "127.0.0.1", "-p", &port, "-c"])
            .arg(self.folder.path().join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("nats-server (Debian: nats-server): cargo xtask setup installs it");
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let ready = async {
            let mut port = None;
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, address)) = line.split_once("client connections on 127.0.0.1:") {
                    port = address.trim().parse().ok();
                } else if line.contains("Server is ready") {
                    return port.expect("it said where");
                }
            }
            panic!("nats-server ended");
        };
        self.port = timeout(LIMIT, ready).await.unwrap();
        // It says more; somebody must read it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.server = Some(server);
    }

    /// Stops it from running (`STOP`), or lets it go on (`CONT`): its connections stay open, and what came waits.
    pub(crate) async fn signal(&self, name: &str) {
        let pid = self.server.as_ref().and_then(Child::id).unwrap();
        let told = Command::new("kill")
            .args([&format!("-{name}"), &pid.to_string()])
            .status();
        assert!(told.await.unwrap().success());
    }

    /// Ends it at once, as a crash does.
    pub(crate) async fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().await.unwrap();
    }
}
