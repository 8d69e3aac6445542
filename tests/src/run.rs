//! A community run on this machine: one host and its volunteers, as separate processes.
//!
//! Knows the two programs' command lines, what they say on their outputs and what the host's
//! `/api/run` holds. Ports are free ones, everything lies in one temporary folder that goes with
//! the [`Host`]. Begin with [`Host::start`] and [`Host::volunteer`].

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::http;
use crate::paths;
use crate::process::Program;

/// A host that has read its data and listens; its first start also makes the tokens.
const LISTEN_WAIT_MAX: Duration = Duration::from_secs(60);
/// Between two looks at the run while the host says nothing.
const LOOK: Duration = Duration::from_millis(250);

/// What to host.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The run's configuration, as its author writes it in TOML.
    pub config: String,
    /// File or folder of text.
    pub data: PathBuf,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// More arguments.
    pub arguments: Vec<String>,
}

/// How a host is started, beside its command line.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// A program that runs the host's, with its arguments.
    pub wrapper: Vec<String>,
    /// Where the store lies, if not in the host's own folder.
    pub store: Option<PathBuf>,
    /// The same as this program sees it, if it differs.
    pub store_seen: Option<PathBuf>,
    /// What goes wrong in this start and in no later one, as `SHOAL_FAULT` says it.
    pub fault: Option<&'static str>,
}

impl Launch {
    /// A program that sees what the host sees.
    fn command(&self, name: &str) -> anyhow::Result<Command> {
        wrapped(&self.wrapper, name)
    }
}

/// One of our programs, run by another one if there is one.
fn wrapped(wrapper: &[String], name: &str) -> anyhow::Result<Command> {
    let program = paths::program(name)?;
    Ok(match wrapper.split_first() {
        None => Command::new(program),
        Some((wrapper, arguments)) => {
            let mut command = Command::new(wrapper);
            command.args(arguments).arg(program);
            command
        }
    })
}

/// Where a volunteer runs, if not just beside the host.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// A program that runs the volunteer's, with its arguments.
    pub wrapper: Vec<String>,
    /// The host's address as seen from there.
    pub address: Option<String>,
}

/// A running host, its store and its journal.
#[derive(Debug)]
pub struct Host {
    options: HostOptions,
    launch: Launch,
    folder: TempDir,
    program: Program,
    url: String,
}

impl Host {
    /// Starts a host over an empty store and waits until it listens.
    ///
    /// # Errors
    /// It is not built, ended, or does not listen within a minute; the message holds what it said.
    pub fn start(options: HostOptions) -> anyhow::Result<Self> {
        Self::start_as(options, Launch::default())
    }

    /// The same in a special way.
    ///
    /// # Errors
    /// As [`Host::start`].
    pub fn start_as(options: HostOptions, launch: Launch) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("shoal-").tempdir()?;
        std::fs::write(folder.path().join("run.toml"), &options.config)?;
        let (program, url) = Self::listen(&options, &launch, folder.path())?;
        Ok(Self {
            options,
            launch,
            folder,
            program,
            url,
        })
    }

    /// Starts it again over the same store and port, after it ended or was killed.
    ///
    /// # Errors
    /// As [`Host::start`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        let port = self
            .url
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        self.options.port = port.context("the host's address ends with its port")?;
        self.launch.fault = None;
        (self.program, self.url) = Self::listen(&self.options, &self.launch, self.folder.path())?;
        Ok(())
    }

    fn listen(
        options: &HostOptions,
        launch: &Launch,
        folder: &Path,
    ) -> anyhow::Result<(Program, String)> {
        let mut command = launch.command("shoal-host")?;
        command
            .arg(folder.join("run.toml"))
            .arg("--data")
            .arg(&options.data);
        let own = folder.join("store");
        command
            .arg("--store")
            .arg(launch.store.as_ref().unwrap_or(&own));
        command
            .args(["--port", &options.port.to_string(), "--json"])
            .args(&options.arguments);
        let fault = launch.fault.map(|fault| ("SHOAL_FAULT", fault));
        let command = without_settings(&mut command).envs(fault);
        let mut program = Program::start("shoal-host", command)?;
        let event = program.wait_for("listening", LISTEN_WAIT_MAX, |event| {
            event["event"] == "listening"
        })?;
        let url = event["url"]
            .as_str()
            .context("`listening` names the address")?
            .to_owned();
        Ok((program, url))
    }

    /// Starts a volunteer with a key of its own. It computes on the CPU unless `arguments` say `--gpu`.
    ///
    /// # Errors
    /// It is not built, or could not be started.
    pub fn volunteer(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Program> {
        self.faulty_volunteer(name, arguments, None)
    }

    /// The same for a volunteer in which something goes wrong, as `SHOAL_FAULT` says it.
    ///
    /// # Errors
    /// As [`Host::volunteer`].
    pub fn faulty_volunteer(
        &self,
        name: &str,
        arguments: &[&str],
        fault: Option<&str>,
    ) -> anyhow::Result<Program> {
        let fault = fault.map(|fault| ("SHOAL_FAULT", fault.as_ref()));
        self.volunteer_among(name, arguments, fault)
    }

    /// The same in an environment that differs from this program's.
    ///
    /// # Errors
    /// As [`Host::volunteer`].
    pub fn volunteer_among<'a>(
        &self,
        name: &str,
        arguments: &[&str],
        environment: impl IntoIterator<Item = (&'a str, &'a OsStr)>,
    ) -> anyhow::Result<Program> {
        let mut command = self.join(name, arguments, &Place::default())?;
        Program::start(name, without_settings(&mut command).envs(environment))
    }

    /// The same somewhere else.
    ///
    /// # Errors
    /// As [`Host::volunteer`].
    pub fn volunteer_at(
        &self,
        name: &str,
        arguments: &[&str],
        place: &Place,
    ) -> anyhow::Result<Program> {
        let mut command = self.join(name, arguments, place)?;
        Program::start(name, without_settings(&mut command))
    }

    fn join(&self, name: &str, arguments: &[&str], place: &Place) -> anyhow::Result<Command> {
        let url = match &place.address {
            None => self.url.clone(),
            Some(address) => {
                let (_, port) = self.url.rsplit_once(':').context("a port")?;
                format!("http://{address}:{port}")
            }
        };
        let mut command = wrapped(&place.wrapper, "shoal")?;
        command.args(["join", &url, "--name", name, "--log-format", "json"]);
        command.arg("--identity-path").arg(self.identity(name));
        if !arguments.contains(&"--gpu") {
            command.args(["--gpu", "cpu"]);
        }
        command.args(arguments);
        Ok(command)
    }

    /// The host's process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Where it listens, such as `http://127.0.0.1:8080`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder that holds all of this run: store, journal, keys.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the volunteer of that name keeps its key, unless it is told otherwise.
    #[must_use]
    pub fn identity(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.key"))
    }

    /// The folder of its store and journal, as this program sees it.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        let seen = self.launch.store_seen.clone();
        seen.or_else(|| self.launch.store.clone())
            .unwrap_or_else(|| self.folder.path().join("store"))
    }

    /// The auditor over this run's journal.
    ///
    /// # Errors
    /// It is not built.
    pub fn auditor(&self) -> anyhow::Result<Command> {
        let mut command = self.launch.command("auditor")?;
        let own = self.folder.path().join("store");
        command.arg(self.launch.store.as_ref().unwrap_or(&own));
        Ok(command)
    }

    /// What the host says of its run.
    ///
    /// # Errors
    /// It does not answer.
    pub fn api(&self) -> anyhow::Result<Value> {
        http::get_json(&format!("{}/api/run", self.url))
    }

    /// Waits until the run is as `holds` asks, looking at each of the host's events and in between.
    ///
    /// # Errors
    /// It is not within `wait_max`, or the host ended; the message holds the run and what the host said.
    pub fn wait_until(
        &mut self,
        what: &str,
        wait_max: Duration,
        mut holds: impl FnMut(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let deadline = Instant::now() + wait_max;
        loop {
            let run = self
                .api()
                .with_context(|| format!("{what}: {}", self.program.said()))?;
            if holds(&run) {
                return Ok(run);
            }
            if Instant::now() >= deadline {
                bail!(
                    "no {what} in {wait_max:?}; the run is\n{run:#}\n{}",
                    self.program.said()
                );
            }
            // An event of the host, or the next look: whichever comes first.
            self.program.next_event(deadline.min(Instant::now() + LOOK));
            if self.program.has_ended()? {
                bail!("the host ended before {what}\n{}", self.program.said());
            }
        }
    }
}

/// Takes away what the person's environment would tell the programs.
fn without_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("SHOAL_") || text == "PORT" {
            command.env_remove(&name);
        }
    }
    command
}
