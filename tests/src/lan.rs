//! A network of a test's own, with cables that can be pulled: namespaces, which end with the value.
//!
//! A hub, where whoever entered it and all it starts live, and programs at the ends of cables from its bridge: each has
//! an address of its own, and a cable that is pulled loses every packet without a word, as a cut line does. Nothing of the
//! machine's own network is changed. Needs root, iproute2 and util-linux. Begin with [`Lan::gather`].

use anyhow::ensure;

use crate::namespace::Namespace;

/// The hub's address on its bridge.
pub const HUB_ADDRESS: &str = "10.77.0.1";
/// Cables that a hub has room for: its addresses.
pub const CABLES_MAX: usize = 200;

/// Makes the hub. The way out leads nowhere: browsers look for their address by it.
const HUB: &str = "ip link add lan type bridge && ip link set lan up \
    && ip address add \"$1\"/24 dev lan && ip route add default via 10.77.0.254 dev lan";
/// In the hub: lays cable `$1` to the namespace of process `$2`.
const LAY: &str =
    "ip link add \"$1\" type veth peer name eth0 netns \"$2\" && ip link set \"$1\" master lan up";
/// At the end: takes address `$1`; `$2` is the hub's.
const TAKE: &str =
    "ip address add \"$1\"/24 dev eth0 && ip link set eth0 up && ip route add default via \"$2\"";

/// The hub and the ends of its cables.
#[derive(Debug)]
pub struct Lan {
    hub: Namespace,
    ends: Vec<Namespace>,
}

impl Lan {
    /// Makes a hub with so many cables, all plugged in.
    ///
    /// # Errors
    /// This machine does not let us, or lacks a program; the message holds what was said.
    pub fn gather(cables: usize) -> anyhow::Result<Self> {
        ensure!(cables <= CABLES_MAX, "{CABLES_MAX} cables at most");
        let hub = Namespace::make("the hub")?;
        hub.script(HUB, &[HUB_ADDRESS])?;
        let mut lan = Self { hub, ends: vec![] };
        for cable in 0..cables {
            let end = Namespace::make("a cable's end")?;
            let holder = end.id().to_string();
            lan.hub.script(LAY, &[&name(cable), &holder])?;
            end.script(TAKE, &[&address(cable), HUB_ADDRESS])?;
            lan.ends.push(end);
        }
        Ok(lan)
    }

    /// Moves this thread into the hub, for good, with all threads and programs that it starts from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn enter(&self) -> anyhow::Result<()> {
        self.hub.door().enter()
    }

    /// What runs a program at the end of a cable. It becomes that program: signals reach it.
    ///
    /// # Panics
    /// There is no such cable.
    #[must_use]
    pub fn wrapper(&self, cable: usize) -> Vec<String> {
        self.ends[cable].wrapper()
    }

    /// Pulls a cable: from now on it loses all packets, both ways.
    ///
    /// # Errors
    /// There is no such cable.
    pub fn pull(&self, cable: usize) -> anyhow::Result<()> {
        self.hub.run(&["ip", "link", "set", &name(cable), "down"])
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// There is no such cable.
    pub fn plug(&self, cable: usize) -> anyhow::Result<()> {
        self.hub.run(&["ip", "link", "set", &name(cable), "up"])?;
        // Whom the end looked for in vain meanwhile, it would still call unreachable a second later.
        self.ends[cable].run(&["ip", "neigh", "flush", "dev", "eth0"])
    }
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

    use super::{HUB_ADDRESS, Lan};
    use rustix::process::geteuid;

    /// For what must connect: a plugged cable carries again after a second or so, and a lost packet is sent again later.
    const WAIT_MAX: Duration = Duration::from_secs(20);

    /// Tries to reach an address from the end of a cable.
    fn reaches(lan: &Lan, cable: usize, address: SocketAddr, wait_max: Duration) -> bool {
        let attempt = lan.ends[cable]
            .door()
            .spawn(move || Ok(TcpStream::connect_timeout(&address, wait_max).is_ok()));
        attempt.join().expect("an answer").expect("it is there")
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
        assert!(reaches(&lan, 0, address, WAIT_MAX) && reaches(&lan, 1, address, WAIT_MAX));
        lan.pull(0).expect("it is there");
        assert!(
            !reaches(&lan, 0, address, Duration::from_secs(2)),
            "a pulled cable"
        );
        assert!(reaches(&lan, 1, address, WAIT_MAX), "another one");
        lan.plug(0).expect("it is there");
        assert!(
            reaches(&lan, 0, address, WAIT_MAX),
            "it is plugged in again"
        );
    }
}
