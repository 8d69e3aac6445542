//! A network namespace of a test's own: a network stack with interfaces, addresses and routes, which ends with the value.
//!
//! A program that waits for our end holds it. Others are started in it by [`Namespace::wrapper`], threads walk in by a
//! [`Door`], which may be copied and sent. Nothing of the machine's own network is changed. Needs root, iproute2 and util-linux. What is
//! laid between namespaces is not known here: see [`crate::lan`] and [`crate::link`]. Begin with [`Namespace::make`].

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::Program;

/// For a namespace to be made.
const MAKE_WAIT_MAX: Duration = Duration::from_secs(20);
/// Says that the namespace is made, and stays as long as we do.
const HOLD: &str = "ip link set lo up && echo '{\"event\":\"up\"}' && exec cat";

/// A namespace, as long as this lives.
#[derive(Debug)]
pub struct Namespace {
    holder: Program,
}

/// The way into a namespace for a thread. It leads nowhere once the namespace has ended.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    holder: u32,
}

/// Whether this process may make them.
#[must_use]
pub fn can_be_made() -> bool {
    geteuid().is_root()
}

impl Namespace {
    /// Makes one that has `lo` alone. `name` is what messages call it.
    ///
    /// # Errors
    /// This machine does not let us, or lacks a program; the message holds what was said.
    pub fn make(name: &str) -> anyhow::Result<Self> {
        ensure!(can_be_made(), "network namespaces need root");
        let mut holder = Program::start_bound(
            name,
            Command::new("unshare").args(["--net", "sh", "-c", HOLD]),
        )?;
        holder.wait_for(name, MAKE_WAIT_MAX, |event| event["event"] == "up")?;
        Ok(Self { holder })
    }

    /// The process that holds it: what `nsenter --target` and `ip link ... netns` take.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.holder.id()
    }

    /// The way in for threads.
    #[must_use]
    pub fn door(&self) -> Door {
        Door { holder: self.id() }
    }

    /// What runs a program in it. It becomes that program: signals reach it.
    #[must_use]
    pub fn wrapper(&self) -> Vec<String> {
        let target = self.id().to_string();
        ["nsenter", "--target", &target, "--net", "--"]
            .map(str::to_owned)
            .into()
    }

    /// Runs a script of the shell to its end in it, with arguments `$1`, `$2` and so on.
    ///
    /// # Errors
    /// As [`Namespace::run`].
    pub fn script(&self, script: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let command = [&["sh", "-c", script, "sh"], arguments].concat();
        self.run(&command)
    }

    /// Runs a command to its end in it.
    ///
    /// # Errors
    /// It does not start, or fails; the message holds its errors.
    pub fn run(&self, command: &[&str]) -> anyhow::Result<()> {
        let wrapper = self.wrapper();
        let (program, arguments) = wrapper.split_first().context("a wrapper has a program")?;
        let output = Command::new(program)
            .args(arguments)
            .args(command)
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {errors}");
        Ok(())
    }
}

impl Door {
    /// Moves this thread into the namespace, for good, with all threads and programs that it starts from now on.
    ///
    /// # Errors
    /// The namespace has ended, or the system refuses.
    pub fn enter(self) -> anyhow::Result<()> {
        let file = format!("/proc/{}/ns/net", self.holder);
        let namespace = File::open(&file).context(file)?;
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind)
            .context("this thread cannot move into it")
    }

    /// Does `work` in a thread that lives there.
    pub fn spawn<T: Send + 'static>(
        self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> JoinHandle<anyhow::Result<T>> {
        std::thread::spawn(move || {
            self.enter()?;
            work()
        })
    }
}
