//! A slow link: ends that reach each other over access links with rate, delay, jitter, queue and loss of their own.
//!
//! Each end is a network namespace with an address; a thread of this process carries its packets ([`pump`]), over lines
//! ([`mod@line`]) that meet in the middle ([`exchange`]). All that is drawn follows from a seed. An end of [`Access::OPEN`] is
//! where a host and its page live. There is no address translation: ends see each other's addresses, and [`Link::gather`]
//! gives them a way out that leads nowhere, since browsers look for their address by it. Needs root, iproute2, util-linux
//! and `/dev/net/tun`. For cables that are only pulled see [`crate::lan`]. Begin with [`Link::gather`] and [`Path`].

pub mod exchange;
pub mod line;
mod pump;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::{Context, ensure};

use self::exchange::Exchange;
pub use self::exchange::{Access, Counts};
pub use self::line::Shape;
use self::pump::{INTERFACE, Pump};
use crate::namespace::{Door, Namespace};

/// Ends that a link has addresses for.
pub const ENDS_MAX: usize = 200;

/// Gives interface `$1` address `$2`, and room for what a sender bursts before the link takes it. No address of IPv6,
/// which is not carried.
const TAKE: &str = "ip link set \"$1\" txqueuelen 10000 addrgenmode none \
    && ip address add \"$2\"/24 dev \"$1\" && ip link set \"$1\" up && ip route add default dev \"$1\"";

/// What lies between two ends with equal access links, each way: half of it is each one's own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    /// Bits a second that an end may send.
    pub up_bits: NonZeroU64,
    /// Bits a second that it may get.
    pub down_bits: NonZeroU64,
    /// One way.
    pub delay: Duration,
    /// So much more at most, one way; no packet overtakes another.
    pub jitter: Duration,
    /// Bytes that wait or are on a line, on each of both.
    pub queue_bytes: usize,
    /// How likely a packet is lost, one way.
    pub loss: f64,
}

/// The ends, and the thread that carries their packets. All of it ends with this.
#[derive(Debug)]
pub struct Link {
    // Before the ends: their interfaces are closed first.
    pump: Pump,
    ends: Vec<Namespace>,
}

impl Path {
    /// The standard one of all figures: 80 Mbit/s, 25 ms, a queue of 125 ms.
    pub const STANDARD: Self = Self {
        up_bits: NonZeroU64::new(80_000_000).expect("it is not zero"),
        down_bits: NonZeroU64::new(80_000_000).expect("it is not zero"),
        delay: Duration::from_millis(25),
        jitter: Duration::ZERO,
        queue_bytes: 1_250_000,
        loss: 0.0,
    };

    /// The access link of each end.
    #[must_use]
    pub fn access(&self) -> Access {
        let shape = |rate_bits| Shape {
            rate_bits: Some(rate_bits),
            delay: self.delay / 2,
            jitter: self.jitter / 2,
            reorders: false,
            queue_bytes: self.queue_bytes,
            // What comes through both lines is what comes through the path.
            loss: 1.0 - (1.0 - self.loss).sqrt(),
        };
        Access {
            up: shape(self.up_bits),
            down: shape(self.down_bits),
        }
    }
}

impl Access {
    /// Nothing happens to packets: what one end's packets meet is the other's access link alone.
    pub const OPEN: Self = Self {
        up: Shape::NONE,
        down: Shape::NONE,
    };
}

impl Link {
    /// Makes the ends, in this order. `seed` is what jitter and losses follow from.
    ///
    /// # Errors
    /// This machine does not let us, or lacks a program; the message holds what was said.
    pub fn gather(ends: &[Access], seed: u64) -> anyhow::Result<Self> {
        ensure!(ends.len() <= ENDS_MAX, "{ENDS_MAX} ends at most");
        let mut namespaces = vec![];
        let mut interfaces = vec![];
        for end in 0..ends.len() {
            let namespace = Namespace::make("a link's end")?;
            interfaces.push(pump::interface(&namespace)?);
            namespace.script(TAKE, &[INTERFACE, &address(end).to_string()])?;
            namespaces.push(namespace);
        }
        let addressed: Vec<_> = (0..).map(address).zip(ends.iter().copied()).collect();
        Ok(Self {
            pump: Pump::start(interfaces, Exchange::new(&addressed, seed))?,
            ends: namespaces,
        })
    }

    /// An end's address.
    #[must_use]
    pub fn address(&self, end: usize) -> Ipv4Addr {
        address(end)
    }

    /// The way to an end for threads.
    ///
    /// # Panics
    /// There is no such end.
    #[must_use]
    pub fn door(&self, end: usize) -> Door {
        self.ends[end].door()
    }

    /// What runs a program at an end. It becomes that program: signals reach it.
    ///
    /// # Panics
    /// There is no such end.
    #[must_use]
    pub fn wrapper(&self, end: usize) -> Vec<String> {
        self.ends[end].wrapper()
    }

    /// What became so far of what an end sent, and of what was sent to it, each on its own line.
    ///
    /// # Panics
    /// There is no such end.
    #[must_use]
    pub fn counts(&self, end: usize) -> (Counts, Counts) {
        self.pump
            .look(|exchange| (exchange.up(end), exchange.down(end)))
    }

    /// Carries on until something fails.
    ///
    /// # Errors
    /// Always: what failed.
    pub fn carry_on(self) -> anyhow::Result<()> {
        let Self { pump, ends } = self;
        let ended = pump.wait();
        drop(ends);
        ended?;
        anyhow::bail!("the link ended")
    }

    /// Ends it, and gives the processor time that carrying took.
    ///
    /// # Errors
    /// It failed before, and why.
    pub fn end(self) -> anyhow::Result<Duration> {
        self.pump.end().context("the link failed")
    }
}

fn address(end: usize) -> Ipv4Addr {
    let last = u8::try_from(10 + end).expect("ends are limited");
    Ipv4Addr::new(10, 78, 0, last)
}
