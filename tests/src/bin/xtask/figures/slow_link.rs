//! What a link carries between two homes: bulk in four directions beside a TCP stream, and how soon a small frame comes.
//!
//! Over the link of [`tests::link`], at its standard: 80 Mbit/s, 25 ms each way, a queue of 1.25 MB. The native end is
//! the product's transport; a browser's is a page that has its channels as the product has them ([`tests::bulk`]). All
//! that takes part goes before the machine's other work. Cases take turns, each on a link of its own; what a bound on
//! the bytes under way, what more connections bring and what a relay (coturn, on an end that nothing slows) leaves is measured where
//! it matters.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tests::bulk::{Congestion, Kind, Pair, Relay, Way, tcp};
use tests::link::{Access, Link, Path};

use super::cost::median;
use super::{Figures, load};

/// Frames that are timed in a row, while bulk is sent at this share of the line, in percent.
const FRAMES: usize = 40;
const FRAMES_QUICK: usize = 10;
const CAP_PERCENT: u64 = 85;

/// What is measured once a repeat.
#[derive(Clone, Copy, Debug)]
struct Case {
    what: What,
    line_mbit: u64,
    loss: f64,
    connections: usize,
    window_bytes: Option<u64>,
    is_relayed: bool,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Tcp(Congestion),
    Bulk(Kind, Kind),
    /// Of small frames between bulk that is capped.
    Frames(Kind, Kind),
}

impl Case {
    const fn of(what: What) -> Self {
        Self {
            what,
            line_mbit: 80,
            loss: 0.0,
            connections: 1,
            window_bytes: None,
            is_relayed: false,
        }
    }

    fn name(&self) -> String {
        let mut name = match self.what {
            What::Tcp(Congestion::System) => "TCP".to_owned(),
            What::Tcp(Congestion::Reno) => "TCP, Reno".to_owned(),
            What::Bulk(from, to) => format!("{} to {}", from.name(), to.name()),
            What::Frames(from, to) => format!("10 KB, {} to {}", from.name(), to.name()),
        };
        if self.line_mbit != 80 {
            name += &format!(", {} Mbit/s", self.line_mbit);
        }
        if self.loss > 0.0 {
            name += &format!(", {} % loss", self.loss * 100.0);
        }
        if self.connections > 1 {
            name += &format!(", {} connections", self.connections);
        }
        if let Some(bytes) = self.window_bytes {
            name += &format!(", at most {bytes} bytes under way");
        }
        if self.is_relayed {
            name += ", relayed";
        }
        name
    }

    /// A queue of 125 ms, whatever the line.
    fn path(&self) -> anyhow::Result<Path> {
        let bits = NonZeroU64::new(self.line_mbit * 1_000_000).context("a line")?;
        Ok(Path {
            up_bits: bits,
            down_bits: bits,
            queue_bytes: usize::try_from(self.line_mbit * 15_625)?,
            loss: self.loss,
            ..Path::STANDARD
        })
    }
}

fn cases(quick: bool) -> Vec<Case> {
    use Kind::{Chromium, Native};
    let directions = [
        (Native, Native),
        (Native, Chromium),
        (Chromium, Native),
        (Chromium, Chromium),
    ];
    let mut cases = vec![];
    for loss in [0.0, 0.001] {
        let tcp = [Congestion::System, Congestion::Reno].map(What::Tcp);
        let bulk = directions.map(|(from, to)| What::Bulk(from, to));
        for what in tcp.into_iter().chain(bulk) {
            cases.push(Case {
                loss,
                ..Case::of(what)
            });
        }
    }
    for (from, to) in directions {
        let bulk = Case::of(What::Bulk(from, to));
        cases.push(Case {
            loss: 0.001,
            connections: 8,
            ..bulk
        });
        cases.push(Case {
            is_relayed: true,
            ..bulk
        });
    }
    // Two browsers and the link are more than two cores carry at 80 Mbit/s.
    for window_bytes in [None, Some(320_000)] {
        cases.push(Case {
            line_mbit: 40,
            window_bytes,
            ..Case::of(What::Bulk(Chromium, Chromium))
        });
    }
    cases.push(Case::of(What::Frames(Native, Native)));
    cases.push(Case::of(What::Frames(Native, Chromium)));
    if quick {
        cases.retain(|case| {
            let is_usual = case.loss == 0.0 && case.line_mbit == 80;
            is_usual && (!case.is_relayed || matches!(case.what, What::Bulk(Native, Native)))
        });
    }
    cases
}

/// Measures in turns; the file is written at the end.
pub(super) fn slow_link(asked: &Figures) -> anyhow::Result<()> {
    let mut runs: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for repeat in 0..asked.repeats() {
        for case in cases(asked.quick) {
            let name = case.name();
            let run = measure(&case, repeat as u64 + 1, asked.quick);
            let run = run.with_context(|| name.clone())?;
            println!("{name}: {run}");
            runs.entry(name).or_default().push(run);
        }
    }
    let summary: BTreeMap<&String, Value> =
        runs.iter().map(|(name, runs)| (name, sum(runs))).collect();
    let figures = json!({
        "line": "80 Mbit/s, 25 ms each way, a queue of 1.25 MB",
        "tcp": Congestion::of_system()?,
        "repeats": asked.repeats(),
        "bulk_is_capped_at_percent": CAP_PERCENT,
        "cases": summary,
        "runs": runs,
    });
    asked.keep("slow_link", &figures)
}

fn measure(case: &Case, seed: u64, quick: bool) -> anyhow::Result<Value> {
    let seconds = |usual, quickly| Duration::from_secs(if quick { quickly } else { usual });
    let (warm, length) = (seconds(3, 2), seconds(8, 2));
    let access = case.path()?.access();
    let link = Link::gather(&[access, access, Access::OPEN], seed)?;
    let relay = case.is_relayed.then(|| Relay::start(&link, 2));
    let relay = relay.transpose()?;
    let line_bytes = case.line_mbit as f64 * 125_000.0;
    let way = Way {
        connections: case.connections,
        window_bytes: case.window_bytes,
        relay: relay.as_ref().map(Relay::ice_server),
        ..Way::default()
    };
    match case.what {
        What::Tcp(congestion) => Ok(json!({
            "of_line": tcp(&link, congestion, warm, length)? / line_bytes, "load": load(),
        })),
        What::Bulk(from, to) => {
            let found = Pair::open(&link, [from, to], &way)?.goodput(warm, length)?;
            Ok(json!({
                "of_line": found.bytes_a_second / line_bytes, "queue_was_full": found.full,
                "socket_was_full": found.socket_full, "load": load(),
            }))
        }
        What::Frames(from, to) => {
            let way = Way {
                upload_max: Some(case.line_mbit * 1_250 * CAP_PERCENT),
                ..way
            };
            let frames = if quick { FRAMES_QUICK } else { FRAMES };
            let taken =
                Pair::open(&link, [from, to], &way)?.frames(frames, Path::STANDARD.delay)?;
            let longest = taken.iter().copied().fold(0.0, f64::max);
            Ok(json!({
                "milliseconds": median(taken) * 1e3, "longest_milliseconds": longest * 1e3,
                "load": load(),
            }))
        }
    }
}

/// The median of a case's runs, the least and the most.
fn sum(runs: &[Value]) -> Value {
    let mut summary = serde_json::Map::new();
    for figure in ["of_line", "milliseconds", "longest_milliseconds"] {
        let found: Vec<f64> = runs.iter().filter_map(|run| run[figure].as_f64()).collect();
        if found.is_empty() {
            continue;
        }
        let least = found.iter().copied().fold(f64::INFINITY, f64::min);
        let most = found.iter().copied().fold(0.0, f64::max);
        let median = median(found);
        summary.insert(
            figure.to_owned(),
            json!({ "median": median, "least": least, "most": most }),
        );
    }
    summary.into()
}
