//! Bulk over a link: two ends that open a data channel link and fill it, each a native program or a browser.
//!
//! The native end is `shoal`'s own transport (the example `bulk` of `client-native`); a browser's is a page of plain
//! JavaScript (`page.js`) that has its connection and channels as Shoal's page and worker do. What both promise is
//! measured by whoever receives, after slow start, and beside it a plain TCP stream over the same link. Begin with
//! [`Pair::open`].

mod end;
mod tcp;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use self::end::End;
pub use self::end::Kind;
pub use self::tcp::{Congestion, tcp};
use crate::link::Link;
use crate::process::{Urgency, go_first};
use crate::turn::{Login, TurnServer};

/// For a link to open.
const OPEN_MAX: Duration = Duration::from_secs(30);
/// For an end to say something, before the other one is asked.
const LOOK: Duration = Duration::from_millis(20);
/// What bulk takes to fill a line; frames before that are not counted.
const SLOW_START: Duration = Duration::from_secs(2);
/// For a timed frame to be answered.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// How two ends reach each other.
#[derive(Clone, Debug)]
pub struct Way {
    /// At most so many bytes a second are sent, if there is a bound.
    pub upload_max: Option<u64>,
    /// Most bytes that a browser has on their way, as the other end's reports have it, if that is bounded.
    pub window_bytes: Option<u64>,
    /// Connections of the link.
    pub connections: usize,
    /// As `RTCIceServer`: the relay through which all goes, if not directly.
    pub relay: Option<Value>,
}

impl Default for Way {
    /// Directly, by one connection.
    fn default() -> Self {
        Self {
            upload_max: None,
            window_bytes: None,
            connections: 1,
            relay: None,
        }
    }
}

/// A relay at an end of a link, for as long as this lives: coturn.
#[derive(Debug)]
pub struct Relay {
    server: TurnServer,
}

impl Relay {
    const USER: &'static str = "herring";
    const PASSWORD: &'static str = "a word of herring's";

    /// Starts it.
    ///
    /// # Errors
    /// It is not installed, or does not answer.
    pub fn start(link: &Link, at: usize) -> anyhow::Result<Self> {
        let address = link.address(at).into();
        let started = link.door(at).spawn(move || {
            go_first(Urgency::Program);
            TurnServer::start_at(address, Login::Password(Self::USER, Self::PASSWORD))
        });
        let server = started.join().expect("starting it does not panic")?;
        Ok(Self { server })
    }

    /// For [`Way::relay`].
    #[must_use]
    pub fn ice_server(&self) -> Value {
        json!({
            "urls": [self.server.url()], "username": Self::USER, "credential": Self::PASSWORD,
        })
    }
}

/// What was measured of bulk.
#[derive(Clone, Copy, Debug)]
pub struct Goodput {
    /// Content that arrived, without anybody's headers.
    pub bytes_a_second: f64,
    /// Packets that the link's queues had no room for, since the bulk began.
    pub full: u64,
    /// Datagrams that the receiver's socket had no room for.
    pub socket_full: u64,
}

/// Two ends with an open link; the first sends bulk to the second.
#[derive(Debug)]
pub struct Pair<'a> {
    link: &'a Link,
    sender: End,
    receiver: End,
}

impl<'a> Pair<'a> {
    /// Opens a link between end 0, which offers, and end 1.
    ///
    /// # Errors
    /// A program is not there, or they do not reach each other.
    pub fn open(link: &'a Link, kinds: [Kind; 2], way: &Way) -> anyhow::Result<Self> {
        let mut pair = Self {
            link,
            sender: End::start(kinds[0], link, 0)?,
            receiver: End::start(kinds[1], link, 1)?,
        };
        let begin = json!({ "begin": {
            "upload_max": way.upload_max, "ways": way.connections, "window_bytes": way.window_bytes,
            "relay": way.relay,
        } });
        for end in [&mut pair.sender, &mut pair.receiver] {
            end.tell(&begin)?;
        }
        for way in 0..way.connections {
            let offer = json!({ "offer": { "generation": 1, "relay_only": false } });
            pair.sender
                .tell(&json!({ "step": { "way": way, "step": offer } }))?;
        }
        let deadline = Instant::now() + OPEN_MAX;
        let mut open = [0; 2];
        while open != [way.connections; 2] {
            ensure!(
                Instant::now() < deadline,
                "no link in {OPEN_MAX:?}: {open:?}"
            );
            let (first, second) = (&mut pair.sender, &mut pair.receiver);
            open[0] += pass(first, second, "answer")?;
            open[1] += pass(second, first, "accept")?;
        }
        Ok(pair)
    }

    /// Sends bulk, and measures what arrives in `length` after `warm` has passed.
    ///
    /// # Errors
    /// An end has ended.
    pub fn goodput(&mut self, warm: Duration, length: Duration) -> anyhow::Result<Goodput> {
        let before = self.losses()?;
        self.sender.tell(&json!({ "bulk": true }))?;
        let begun = Instant::now();
        let mut marks: Vec<(f64, f64)> = vec![];
        while begun.elapsed() < warm + length {
            drop(self.sender.news(Duration::ZERO)?);
            for event in self.receiver.news(LOOK)? {
                ensure!(event["event"] != "closed", "the link closed");
                if event["event"] == "got" && begun.elapsed() >= warm {
                    let at = event["at"].as_f64();
                    let bytes = event["bytes"].as_f64();
                    let at = at.unwrap_or_else(|| begun.elapsed().as_secs_f64());
                    marks.push((at, bytes.context("a number of bytes")?));
                }
            }
        }
        self.sender.tell(&json!({ "bulk": false }))?;
        let after = self.losses()?;
        let bytes_a_second = match &marks[..] {
            [first, .., last] => (last.1 - first.1) / (last.0 - first.0),
            // It may have stood still all the while.
            [_] | [] => 0.0,
        };
        Ok(Goodput {
            bytes_a_second,
            full: after.0 - before.0,
            socket_full: after.1 - before.1,
        })
    }

    /// Seconds that frames of 10 KB take to arrive, one after the other, while bulk is sent, if `bulk`.
    ///
    /// # Errors
    /// An end has ended, or does not answer.
    pub fn frames(&mut self, count: usize, half_trip: Duration) -> anyhow::Result<Vec<f64>> {
        self.sender.tell(&json!({ "bulk": true }))?;
        let begun = Instant::now();
        let mut taken = vec![];
        while taken.len() < count {
            self.sender.tell(&json!("time"))?;
            let deadline = Instant::now() + ANSWER_MAX;
            let seconds = 'answered: loop {
                ensure!(Instant::now() < deadline, "no answer to a frame");
                drop(self.receiver.news(Duration::ZERO)?);
                for event in self.sender.news(LOOK)? {
                    if event["event"] == "timed" {
                        break 'answered event["seconds"].as_f64().context("a time")?;
                    }
                }
            };
            if begun.elapsed() >= SLOW_START {
                // The answer is small and takes the other half of the trip.
                taken.push(seconds - half_trip.as_secs_f64());
            }
        }
        self.sender.tell(&json!({ "bulk": false }))?;
        Ok(taken)
    }

    /// Packets that found the link's queues full, and datagrams that found the receiver's socket full.
    fn losses(&self) -> anyhow::Result<(u64, u64)> {
        let full = self.link.counts(0).0.full + self.link.counts(1).1.full;
        let counted = self.link.door(1).spawn(|| {
            // Of the thread: the process' own names another namespace.
            Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?)
        });
        let counted = counted.join().expect("reading does not panic")?;
        let mut udp = counted
            .lines()
            .filter_map(|line| line.strip_prefix("Udp: "));
        let names = udp.next().context("names of counts")?.split(' ');
        let values = udp.next().context("counts")?.split(' ');
        let dropped = names.zip(values).find(|(name, _)| *name == "RcvbufErrors");
        Ok((full, dropped.context("a count of drops")?.1.parse()?))
    }
}

/// Passes what one end says of its connections on to the other; how many have opened.
fn pass(from: &mut End, to: &mut End, description: &str) -> anyhow::Result<usize> {
    let mut opened = 0;
    for event in from.news(LOOK)? {
        let (way, link) = (&event["way"], &event["link"]);
        if let Some(made) = link["description"].as_object() {
            to.tell(&json!({ "step": { "way": way, "step": { description: made } } }))?;
        } else if let Some(found) = link["candidate"].as_object() {
            to.tell(&json!({ "step": { "way": way, "step": { "candidate": found } } }))?;
        }
        ensure!(link["down"].is_null(), "the link does not open");
        opened += usize::from(event["event"] == "open" || !link["open"].is_null());
    }
    Ok(opened)
}
