//! A network of a test's own, with cables that can be pulled: namespaces, which end with the value.
//!
//! A hub, where whoever entered it and all it starts live, and programs at the ends of cables from its bridge: each has
//! an address of its own, and a cable that is pulled loses every packet without a word, as a cut line does. Nothing of the
//! machine's own network is changed. Needs root, iproute2 and util-linux. Begin with [`Lan::gather`].

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::Program;

/// The hub's address on its bridge.
pub const HUB_ADDRESS: &str = "10.77.0.1";
/// Cables that a hub has room for: its addresses.
pub const CABLES_MAX: usize = 200;

/// For a namespace to be made.
const MAKE_WAIT_MAX: Duration = Duration::from_secs(20);
/// Makes the hub, says so, and stays. The way out leads nowhere: browsers look for their address by it.
const HUB: &str = "ip link set lo up && ip link add lan type bridge && ip link set lan up \
    && ip address add \"$1\"/24 dev lan && ip route add default via 10.77.0.254 dev lan \
    && echo '{\"event\":\"up\"}' && exec sleep 7200";
/// Makes an end, says so, and stays.
const END: &str = "ip link set lo up && echo '{\"event\":\"up\"}' && exec sleep 7200";
/// In the hub: lays cable `$1` to the namespace of process `$2`.
const LAY: &str =
    "ip link add \"$1\" type veth peer name eth0 netns \"$2\" && ip link set \"$1\" master lan up";
/// At the end: takes address `$1`; `$2` is the hub's.
const TAKE: &str =
    "ip address add \"$1\"/24 dev eth0 && ip link set eth0 up && ip route add default via \"$2\"";

/// The hub and the ends of its cables.
#[derive(Debug)]
pub struct Lan {
    hub: Program,
    ends: Vec<Program>,
}

impl Lan {
    /// Makes a hub with so many cables, all plugged in.
    ///
    /// # Errors
    /// This machine does not let us, or lacks a program; the message holds what was said.
    pub fn gather(cables: usize) -> anyhow::Result<Self> {
        ensure!(geteuid().is_root(), "network namespaces need root");
        ensure!(cables <= CABLES_MAX, "{CABLES_MAX} cables at most");
        let mut hub = Command::new("unshare");
        hub.args(["--net", "sh", "-c", HUB, "sh", HUB_ADDRESS]);
        let mut lan = Self {
            hub: made("the hub", &mut hub)?,
            ends: vec![],
        };
        for cable in 0..cables {
            let mut end = Command::new("unshare");
            let end = made("a cable's end", end.args(["--net", "sh", "-c", END]))?;
            lan.in_hub(&["sh", "-c", LAY, "sh", &name(cable), &end.id().to_string()])?;
            let address = address(cable);
            within(&end, &["sh", "-c", TAKE, "sh", &address, HUB_ADDRESS])?;
            lan.ends.push(end);
        }
        Ok(lan)
    }

    /// Moves this thread into the hub, for good, with all threads and programs that it starts from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn enter(&self) -> anyhow::Result<()> {
        enter(self.hub.id())
    }

    /// What runs a program at the end of a cable. It becomes that program: signals reach it.
    ///
    /// # Panics
    /// There is no such cable.
    #[must_use]
    pub fn wrapper(&self, cable: usize) -> Vec<String> {
        wrapper(&self.ends[cable])
    }

    /// Pulls a cable: from now on it loses all packets, both ways.
    ///
    /// # Errors
    /// There is no such cable.
    pub fn pull(&self, cable: usize) -> anyhow::Result<()> {
        self.in_hub(&["ip", "link", "set", &name(cable), "down"])
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// There is no such cable.
    pub fn plug(&self, cable: usize) -> anyhow::Result<()> {
        self.in_hub(&["ip", "link", "set", &name(cable), "up"])
    }

    fn in_hub(&self, command: &[&str]) -> anyhow::Result<()> {
        within(&self.hub, command)
    }
}

/// Starts what makes a namespace, and waits until it is made.
fn made(name: &str, command: &mut Command) -> anyhow::Result<Program> {
    let mut holder = Program::start(name, command)?;
    holder.wait_for(name, MAKE_WAIT_MAX, |event| event["event"] == "up")?;
    Ok(holder)
}

fn enter(holder: u32) -> anyhow::Result<()> {
    let file = format!("/proc/{holder}/ns/net");
    let namespace = File::open(&file).context(file)?;
    let kind = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), kind).context("this thread cannot move into it")
}

fn wrapper(holder: &Program) -> Vec<String> {
    let target = holder.id().to_string();
    ["nsenter", "--target", &target, "--net", "--"]
        .map(str::to_owned)
        .into()
}

/// Runs a command to its end in the namespace that a program holds.
fn within(holder: &Program, command: &[&str]) -> anyhow::Result<()> {
    let wrapper = wrapper(holder);
    let (program, arguments) = wrapper.split_first().context("a wrapper has a program")?;
    let output = Command::new(program)
        .args(arguments)
        .args(command)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(())
}

fn name(cable: usize) -> String {
    format!("cable{cable}")
}

fn address(cable: usize) -> String {
    format!("10.77.0.{}", 10 + cable)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use super::{HUB_ADDRESS, Lan, enter};
    use rustix::process::geteuid;

    /// Tries to reach an address from the end of a cable.
    fn reaches(lan: &Lan, cable: usize, address: SocketAddr) -> bool {
        let end = lan.ends[cable].id();
        let attempt = std::thread::spawn(move || {
            enter(end).expect("it is there");
            TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok()
        });
        attempt.join().expect("an answer")
    }

    #[test]
    fn a_pulled_cable_cuts_off_its_own_end_and_no_other() {
        if !geteuid().is_root() {
            // Nobody else may make one.
            assert!(Lan::gather(1).is_err());
            return;
        }
        let lan = Lan::gather(2).expect("this machine makes namespaces");
        lan.enter().expect("it is there");
        let listener = TcpListener::bind((HUB_ADDRESS, 0)).expect("the hub has its address");
        let address = listener.local_addr().expect("an address");
        assert!(reaches(&lan, 0, address) && reaches(&lan, 1, address));
        lan.pull(0).expect("it is there");
        assert!(!reaches(&lan, 0, address), "a pulled cable");
        assert!(reaches(&lan, 1, address), "another one");
        lan.plug(0).expect("it is there");
        assert!(reaches(&lan, 0, address), "it is plugged in again");
    }
}
