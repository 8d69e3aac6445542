//! Where access links meet: from each end up its own line, then down the line of whom the packet is for.
//!
//! Owns the packets that are on their way, and what was counted. Deterministic: `handle_packet` when an end sends,
//! `poll_output` what arrives by now, `poll_timeout` when to ask again. However late it is asked, packets go from line to
//! line at the times when they were due, so that lateness does not add up. Forwards IPv4 by destination; what is for a group
//! goes to all other ends, as a switch has it (peers find each other's `.local` names so); the rest is dropped. Begin
//! with [`Exchange::handle_packet`].

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use fastrand::Rng;

use super::line::{Fate, Line, Shape};

/// IPv4's header without options.
const HEADER_BYTES: usize = 20;

/// An end's access link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    /// What the end sends.
    pub up: Shape,
    /// What is sent to it.
    pub down: Shape,
}

/// What became of packets in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that came through.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that the queue had no room for.
    pub full: u64,
    /// Those that were lost.
    pub lost: u64,
}

/// The ends' lines and what is on them.
#[derive(Debug)]
pub struct Exchange {
    ends: Vec<End>,
    /// Packets on their way up, by when they arrive in the middle, and who sent them.
    rising: Flights,
    /// Packets on their way down, by when they arrive, and at which end.
    falling: Flights,
    admitted: u64,
    /// The least delay of all lines down.
    down_delay_min: Duration,
    /// Packets that are for nobody here, or no IPv4.
    astray: u64,
}

#[derive(Debug)]
struct End {
    address: Ipv4Addr,
    up: Lane,
    down: Lane,
}

/// A line and what became of its packets.
#[derive(Debug)]
struct Lane {
    line: Line,
    counts: Counts,
}

/// Packets by when they arrive, in the order of admission where that is the same, each with the end that it belongs to.
type Flights = BTreeMap<(Duration, u64), (usize, Vec<u8>)>;

impl Exchange {
    /// Ends by address and access link; `seed` is what all draws follow from.
    #[must_use]
    pub fn new(ends: &[(Ipv4Addr, Access)], seed: u64) -> Self {
        let mut seeds = Rng::with_seed(seed);
        let mut lane = |shape| Lane {
            line: Line::new(shape, seeds.u64(..)),
            counts: Counts::default(),
        };
        let ends = ends.iter();
        let delays = ends.clone().map(|(_, access)| access.down.delay);
        let down_delay_min = delays.min().unwrap_or_default();
        let ends = ends.map(|(address, access)| End {
            address: *address,
            up: lane(access.up),
            down: lane(access.down),
        });
        Self {
            ends: ends.collect(),
            rising: Flights::new(),
            falling: Flights::new(),
            admitted: 0,
            down_delay_min,
            astray: 0,
        }
    }

    /// An end sends a packet.
    pub fn handle_packet(&mut self, now: Duration, from: usize, packet: &[u8]) {
        if self.recipients(from, packet).next().is_none() {
            self.astray += 1;
        } else if let Some(at) = self.ends[from].up.admit(now, packet.len()) {
            self.admitted += 1;
            let flight = (from, packet.to_vec());
            self.rising.insert((at, self.admitted), flight);
        }
    }

    /// The next packet that has arrived by now, and at which end.
    pub fn poll_output(&mut self, now: Duration) -> Option<(usize, Vec<u8>)> {
        while let Some((at, (from, packet))) = due(&mut self.rising, now) {
            self.turn(at, from, &packet);
        }
        due(&mut self.falling, now).map(|(_, arrived)| arrived)
    }

    /// When the next packet may arrive at an end. Nobody needs to wake when it is in the middle.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let first = |flights: &Flights| flights.keys().next().map(|(at, _)| *at);
        let risen = first(&self.rising).map(|at| at + self.down_delay_min);
        risen.into_iter().chain(first(&self.falling)).min()
    }

    /// What became of what an end sent, on its own line.
    #[must_use]
    pub fn up(&self, end: usize) -> Counts {
        self.ends[end].up.counts
    }

    /// What became of what was sent to an end, on its own line.
    #[must_use]
    pub fn down(&self, end: usize) -> Counts {
        self.ends[end].down.counts
    }

    /// Packets that were for nobody here, or no IPv4.
    #[must_use]
    pub fn astray(&self) -> u64 {
        self.astray
    }

    /// Sends a packet from the middle on to whom it is for.
    fn turn(&mut self, at: Duration, from: usize, packet: &[u8]) {
        let recipients: Vec<usize> = self.recipients(from, packet).collect();
        for end in recipients {
            if let Some(at) = self.ends[end].down.admit(at, packet.len()) {
                self.admitted += 1;
                let flight = (end, packet.to_vec());
                self.falling.insert((at, self.admitted), flight);
            }
        }
    }

    fn recipients(&self, from: usize, packet: &[u8]) -> impl Iterator<Item = usize> {
        let destination = destination(packet);
        let is_for = move |(index, end): &(usize, &End)| {
            destination.is_some_and(|to| {
                to == end.address || (*index != from && (to.is_multicast() || to.is_broadcast()))
            })
        };
        let found = self.ends.iter().enumerate().filter(is_for);
        found.map(|(index, _)| index)
    }
}

impl Lane {
    /// When a packet arrives at this lane's end, if it does.
    fn admit(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        let counts = &mut self.counts;
        match self.line.admit(now, bytes) {
            Fate::Arrives(at) => {
                counts.packets += 1;
                counts.bytes += bytes as u64;
                return Some(at);
            }
            Fate::Full => counts.full += 1,
            Fate::Lost => counts.lost += 1,
        }
        None
    }
}

/// The first of these packets, if it has arrived by now, and when it did.
fn due(flights: &mut Flights, now: Duration) -> Option<(Duration, (usize, Vec<u8>))> {
    let first = flights.first_entry()?;
    let at = first.key().0;
    (at <= now).then(|| (at, first.remove()))
}

/// Whom an IPv4 packet is for.
fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    let header = packet.first_chunk::<HEADER_BYTES>()?;
    let octets: [u8; 4] = header[16..].try_into().expect("the last four of twenty");
    (header[0] >> 4 == 4).then_some(Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::{Access, Exchange, HEADER_BYTES};
    use crate::link::line::Shape;
    use std::net::Ipv4Addr;
    use std::num::NonZeroU64;
    use std::time::Duration;

    const SLOW: Access = Access {
        up: Shape {
            rate_bits: NonZeroU64::new(8_000_000),
            delay: Duration::from_millis(10),
            queue_bytes: 3_000,
            ..Shape::NONE
        },
        down: Shape {
            delay: Duration::from_millis(5),
            ..Shape::NONE
        },
    };
    const OPEN: Access = Access {
        up: Shape::NONE,
        down: Shape::NONE,
    };

    fn address(end: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, end)
    }

    fn exchange(ends: &[Access]) -> Exchange {
        let ends: Vec<_> = (0..).map(address).zip(ends.iter().copied()).collect();
        Exchange::new(&ends, 1)
    }

    fn packet(to: Ipv4Addr, bytes: usize) -> Vec<u8> {
        let mut packet = vec![0; bytes];
        packet[0] = 0x45;
        packet[16..HEADER_BYTES].copy_from_slice(&to.octets());
        packet
    }

    /// What arrives, in order: when, in milliseconds, at which end, and how many bytes.
    fn arrivals(exchange: &mut Exchange) -> Vec<(u128, usize, usize)> {
        let mut found = vec![];
        while let Some(at) = exchange.poll_timeout() {
            while let Some((end, packet)) = exchange.poll_output(at) {
                found.push((at.as_millis(), end, packet.len()));
            }
        }
        found
    }

    #[test]
    fn a_packet_goes_up_its_line_and_down_that_of_whom_it_is_for() {
        let mut exchange = exchange(&[SLOW, SLOW, OPEN]);
        let zero = Duration::ZERO;
        // 1,000 bytes at 8 Mbit/s: 1 ms, and 10 ms up, and 5 ms down.
        exchange.handle_packet(zero, 0, &packet(address(1), 1000));
        exchange.handle_packet(zero, 0, &packet(address(2), 1000));
        exchange.handle_packet(zero, 2, &packet(address(0), 500));
        let found = arrivals(&mut exchange);
        assert_eq!(found, [(5, 0, 500), (12, 2, 1000), (16, 1, 1000)]);
    }

    #[test]
    fn who_asks_late_gets_the_same_packets_and_the_lines_lose_no_time() {
        let mut asked = exchange(&[SLOW, SLOW]);
        asked.handle_packet(Duration::ZERO, 0, &packet(address(1), 1000));
        let late = Duration::from_secs(1);
        assert_eq!(
            asked.poll_output(Duration::from_micros(15_999)),
            None,
            "too early"
        );
        let (end, _) = asked.poll_output(late).expect("it came long ago");
        assert_eq!(end, 1);
        // Both wait for the middle at once: each goes down at its own time, not when somebody asks.
        let down = Access {
            up: Shape::NONE,
            down: SLOW.up,
        };
        let mut asked = exchange(&[OPEN, down]);
        asked.handle_packet(Duration::ZERO, 0, &packet(address(1), 1000));
        assert_eq!(asked.poll_output(Duration::from_millis(2)), None);
        asked.handle_packet(Duration::from_millis(2), 0, &packet(address(1), 1000));
        assert_eq!(arrivals(&mut asked), [(11, 1, 1000), (13, 1, 1000)]);
    }

    #[test]
    fn a_group_is_everybody_else_and_what_is_for_nobody_is_dropped() {
        let mut exchange = exchange(&[OPEN, OPEN, OPEN]);
        let group = Ipv4Addr::new(224, 0, 0, 251);
        exchange.handle_packet(Duration::ZERO, 1, &packet(group, 100));
        assert_eq!(arrivals(&mut exchange), [(0, 0, 100), (0, 2, 100)]);
        let mut six = packet(address(0), 100);
        six[0] = 0x60;
        for astray in [&packet(address(9), 100), &six, &vec![0x45; 19], &vec![]] {
            exchange.handle_packet(Duration::ZERO, 1, astray);
        }
        assert_eq!(arrivals(&mut exchange), []);
        assert_eq!(exchange.astray(), 4);
    }

    #[test]
    fn what_becomes_of_packets_is_counted_by_line() {
        let lossy = Access {
            down: Shape {
                loss: 1.0,
                ..Shape::NONE
            },
            ..SLOW
        };
        let mut exchange = exchange(&[lossy, OPEN]);
        for _ in 0..5 {
            exchange.handle_packet(Duration::ZERO, 0, &packet(address(1), 1000));
        }
        exchange.handle_packet(Duration::ZERO, 1, &packet(address(0), 1000));
        assert_eq!(arrivals(&mut exchange).len(), 3);
        let up = exchange.up(0);
        assert_eq!((up.packets, up.bytes, up.full), (3, 3000, 2));
        assert_eq!(exchange.down(0).lost, 1);
        assert_eq!(exchange.down(1).packets, 3);
    }
}
