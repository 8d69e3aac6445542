//! A real TURN server on this machine: coturn, for one test, gone with its value.
//!
//! It listens on one address, loopback usually, on a port that the system chose, relays from there, and knows users by the
//! shared secret that a host is given, too, or by a password.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::process::Program;

/// Where Debian's package puts the program.
const PLACES: [&str; 3] = [
    "/usr/bin/turnserver",
    "/usr/local/bin/turnserver",
    "/opt/homebrew/bin/turnserver",
];
/// For it to answer after its start, on a slow machine.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// Between two questions.
const ASK: Duration = Duration::from_millis(200);

/// A running TURN server.
#[derive(Debug)]
pub struct TurnServer {
    address: SocketAddr,
    program: Program,
    _folder: TempDir,
}

/// How it knows users.
#[derive(Clone, Copy, Debug)]
pub enum Login<'a> {
    /// By a secret that who names them knows, too.
    Secret(&'a str),
    /// One user, by name and password.
    Password(&'a str, &'a str),
}

/// Where coturn lies, if it is installed.
#[must_use]
pub fn coturn() -> Option<PathBuf> {
    PLACES.iter().map(PathBuf::from).find(|path| path.exists())
}

impl TurnServer {
    /// Starts a server that knows `secret`, and waits until it answers.
    ///
    /// # Errors
    /// It is not installed, ended, or does not answer; the message holds what it said.
    pub fn start(secret: &str) -> anyhow::Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), Login::Secret(secret))
    }

    /// Starts a server at an address of this machine, and waits until it answers.
    ///
    /// # Errors
    /// As [`TurnServer::start`].
    pub fn start_at(ip: IpAddr, login: Login) -> anyhow::Result<Self> {
        let path = coturn().context("coturn is not installed: cargo xtask setup")?;
        let folder = tempfile::Builder::new().prefix("shoal-turn-").tempdir()?;
        let address = free_address(ip)?;
        let program = Program::start(
            "turnserver",
            &mut command(&path, folder.path(), address, login),
        )?;
        let mut server = Self {
            address,
            program,
            _folder: folder,
        };
        server.wait()?;
        Ok(server)
    }

    /// Its address, as `--ice-server` takes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("turn:{}", self.address)
    }

    /// What it has said so far.
    pub fn said(&mut self) -> String {
        while self.program.next_event(Instant::now()).is_some() {}
        self.program.said()
    }

    /// Asks for a binding, as any ICE agent does, until there is an answer.
    fn wait(&mut self) -> anyhow::Result<()> {
        // Type, length 0, the magic cookie, and a transaction of any 12 bytes (RFC 8489, section 5).
        let mut request = [0x00, 0x01, 0, 0, 0x21, 0x12, 0xa4, 0x42].to_vec();
        request.extend_from_slice(b"shoal's test");
        let socket = UdpSocket::bind((self.address.ip(), 0))?;
        socket.set_read_timeout(Some(ASK))?;
        let deadline = Instant::now() + ANSWER_WAIT_MAX;
        let mut answer = [0; 512];
        while Instant::now() < deadline {
            socket.send_to(&request, self.address)?;
            if let Ok((len, from)) = socket.recv_from(&mut answer)
                && from == self.address
                && answer[..len].get(8..20) == Some(b"shoal's test")
            {
                return Ok(());
            }
            if self.program.has_ended()? {
                break;
            }
        }
        let said = self.said();
        bail!("coturn does not answer on {}:\n{said}", self.address);
    }
}

/// An address on which nobody listens, over UDP and TCP.
fn free_address(ip: IpAddr) -> anyhow::Result<SocketAddr> {
    let tcp = TcpListener::bind((ip, 0))?;
    let address = tcp.local_addr()?;
    UdpSocket::bind(address).with_context(|| format!("{address} is in use over UDP"))?;
    Ok(address)
}

fn command(path: &Path, folder: &Path, address: SocketAddr, login: Login) -> Command {
    let mut command = Command::new(path);
    let ip = address.ip().to_string();
    command
        // No file of the system's own configuration.
        .arg("-n")
        .args(["--listening-ip", &ip, "--relay-ip", &ip])
        .args(["--listening-port", &address.port().to_string()])
        .args(["--realm", "shoal"])
        .args([
            "--no-cli",
            "--no-tls",
            "--no-dtls",
            "--allow-loopback-peers",
        ])
        .args(["--log-file", "stdout", "--simple-log"])
        .arg("--pidfile")
        .arg(folder.join("turnserver.pid"))
        .arg("--userdb")
        .arg(folder.join("turndb"));
    match login {
        Login::Secret(secret) => {
            command.args(["--use-auth-secret", "--static-auth-secret", secret])
        }
        Login::Password(user, password) => {
            command.args(["--lt-cred-mech", "--user", &format!("{user}:{password}")])
        }
    };
    command
}
