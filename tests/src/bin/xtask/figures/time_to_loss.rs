//! How long a run takes to a fixed loss over slow links, by codec.
//!
//! Two measurements, multiplied. Steps to the loss are the frontier's, of `tiny` on real text ([`super::frontier::contest`]): the
//! highest loss that any of the compared runs ended with, so that each reaches it. Seconds a step come from four seats
//! over the real transport and a slow link, with the borders of `base` (its width and context, each codec's share of the width
//! as in the frontier's runs) and devices that wait as long as one of a stated speed works on a quarter of `base`
//! ([`super::pipe`]). A step has 64 sequences instead of `base`'s 512, which is in favour of nobody but short pipes; it is cut
//! as the host proposes for the default: devices that wait need no time for a microbatch besides its size, so the same is best for
//! every codec.
//!
//! Each step time is written down as soon as it is measured, and `--resume` goes on from there; times to the loss follow anew from
//! the frontier as it is then. An unshaped link is this machine's loopback: where processors cannot carry what a link could, the file shows it in
//! `cpu_share`, the part of all cores that the volunteers took.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::Path as FilePath;
use std::time::Duration;

use ::tests::link::{Access, Path};
use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::frontier::{Contest, Contestant, contest};
use super::pipe::{self, Pipe, SEATS};
use super::{Figures, saved};

/// `base`: its width, context and blocks.
const D_MODEL: u64 = 768;
const CONTEXT: u64 = 1_024;
const BLOCKS: u64 = 12;
/// Values of a block: attention, the feed-forward part of 8/3 of the width, in multiples of 64.
const BLOCK_VALUES: u64 = 4 * D_MODEL * D_MODEL + 3 * D_MODEL * 2_048;
/// Sequences of a microbatch before the host has proposed something.
const SEQUENCES: u64 = 8;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Sequences of a step.
    batch: u64,
    /// Steps that are looked at.
    steps: u64,
    lines: &'static [Line],
    /// Devices' speeds, in TFLOP/s that they reach.
    speeds: &'static [u64],
    /// Codecs at most, and the default.
    codecs: usize,
}

const WHOLE: Extent = Extent {
    batch: 64,
    steps: 3,
    lines: &[Line::Mbit(80), Line::Mbit(200), Line::Unshaped],
    speeds: &[5, 10, 20, 40],
    codecs: usize::MAX,
};
const QUICK: Extent = Extent {
    batch: 16,
    steps: 1,
    lines: &[Line::Mbit(200)],
    speeds: &[20],
    codecs: 1,
};

/// What lies between the seats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Mbit(u64),
    Unshaped,
}

impl Line {
    fn name(self) -> String {
        match self {
            Self::Mbit(rate) => format!("{rate} Mbit/s, 50 ms"),
            Self::Unshaped => "unshaped".to_owned(),
        }
    }

    /// A queue of 125 ms, whatever the line.
    fn access(self) -> anyhow::Result<Access> {
        let Self::Mbit(rate) = self else {
            return Ok(Access::OPEN);
        };
        let bits = NonZeroU64::new(rate * 1_000_000).context("a line")?;
        let path = Path {
            up_bits: bits,
            down_bits: bits,
            queue_bytes: usize::try_from(rate * 15_625)?,
            ..Path::STANDARD
        };
        Ok(path.access())
    }
}

/// Microseconds that a device of so many TFLOP/s takes for a sequence at a seat: two operations a value and token forward, as
/// many again as it is run once more, four backward; and attention's, by the same count.
fn sequence_us(teraflops: u64) -> u64 {
    let attention = 2 * CONTEXT * D_MODEL;
    let values = (BLOCK_VALUES + attention) * BLOCKS / SEATS;
    let operations = 8 * values * CONTEXT;
    operations / (teraflops * 1_000_000)
}

fn pipe_of(
    codec: &Contestant,
    (batch, microbatches): (u64, u64),
    Place { line, teraflops }: Place,
) -> Pipe {
    let sequences = batch / microbatches;
    let microbatch_us = sequence_us(teraflops) * sequences;
    // Both ways over a seat's own line.
    let bytes = codec.bytes_a_token(D_MODEL) * (batch * CONTEXT) as f64;
    let wire_us = match line {
        Line::Mbit(rate) => bytes * 8.0 / rate as f64,
        Line::Unshaped => bytes / 20.0,
    };
    let computes_us = (microbatch_us * (microbatches + SEATS - 1)) as f64;
    let (codec, format) = (codec.keys(D_MODEL), codec.format());
    Pipe {
        // What is not at the borders is small: it is waited for, not computed.
        config: format!(
            "[run]\nname = \"time-to-loss\"\npreset = \"tiny\"\n\n\
             [model]\nd_model = {D_MODEL}\nheads = 12\nd_ff = 128\ncontext = {CONTEXT}\n\
             blocks = {SEATS}\nstages = {SEATS}\n{codec}\n\n\
             [wire]\nformat = \"{format}\"\n\n\
             [training]\nbatch = {batch}\nmicrobatches = {microbatches}\nsamples = 6_400_000\n"
        ),
        microbatches,
        microbatch_us,
        step: Duration::from_secs_f64((computes_us + 2.0 * wire_us) / 1e6),
    }
}

/// Where a codec's steps are timed.
#[derive(Clone, Copy, Debug)]
struct Place {
    line: Line,
    teraflops: u64,
}

impl Extent {
    fn places(self) -> impl Iterator<Item = Place> {
        let speeds = move |&line: &Line| {
            let speeds = self.speeds.iter();
            speeds.map(move |&teraflops| Place { line, teraflops })
        };
        self.lines.iter().flat_map(speeds)
    }

    /// The default everywhere, then the others where a line slows them: on an unshaped one they tell how much this machine can
    /// carry, nothing else.
    fn cases(self, contest: &Contest) -> impl Iterator<Item = (Place, &Contestant)> {
        let default = contest.default();
        let others = contest.all.iter().filter(|it| it.name != default.name);
        let others = others.take(self.codecs);
        let slow = self.places().filter(|it| it.line != Line::Unshaped);
        let first = self.places().map(move |place| (place, default));
        first.chain(slow.flat_map(move |place| others.clone().map(move |codec| (place, codec))))
    }
}

/// Measures each codec, speed and line, and writes the file after each.
pub(super) fn time_to_loss(asked: &Figures, data: &FilePath) -> anyhow::Result<()> {
    let contest = contest()?;
    ensure!(
        contest.all.len() > 1,
        "the frontier has nothing to compare yet"
    );
    let extent = if asked.quick { QUICK } else { WHOLE };
    let default = contest.default().name.as_str();
    let write = |rows: &[Value]| {
        let figures = json!({
            "loss": contest.loss,
            "default": default,
            "seats": SEATS,
            "batch": extent.batch,
            "context": CONTEXT,
            "d_model": D_MODEL,
            "steps_to_loss": steps(&contest),
            "seconds_to_loss": seconds_to_loss(&contest, rows),
            "rows": rows,
        });
        asked.keep("time_to_loss", &figures)
    };
    let mut rows = if asked.resume {
        kept(default, extent.batch)?
    } else {
        vec![]
    };
    for (place, codec) in extent.cases(&contest) {
        let Place { line, teraflops } = place;
        let is_here = |row: &&Value| row["line"] == line.name() && row["teraflops"] == teraflops;
        let mut measured = rows.iter().filter(is_here);
        let microbatches = measured.clone().next().map(|row| &row["microbatches"]);
        if measured.any(|row| row["codec"] == codec.name) {
            continue;
        }
        let link = pipe::lay(line.access()?)?;
        let microbatches = match microbatches {
            Some(found) => found.as_u64().context("a number")?,
            None => {
                let asked_for = (extent.batch, extent.batch / SEQUENCES);
                pipe_of(codec, asked_for, place).proposed(&link, data)?
            }
        };
        let pipe = pipe_of(codec, (extent.batch, microbatches), place);
        let seen = pipe.measure(&link, extent.steps, data);
        let seen = seen.with_context(|| format!("{} over {}", codec.name, line.name()))?;
        let step_seconds = seen.step_us() / 1e6;
        println!(
            "{}, {teraflops} TFLOP/s, {}: {step_seconds:.2} s a step, {:.0} steps to {:.3}",
            line.name(),
            codec.name,
            codec.steps,
            contest.loss
        );
        rows.push(json!({
            "line": line.name(),
            "teraflops": teraflops,
            "codec": codec.name,
            "bytes_a_token": codec.bytes_a_token(D_MODEL),
            "microbatches": microbatches,
            "microbatch_us": pipe.microbatch_us,
            "step_seconds": step_seconds,
            "step_ms": seen.step_ms,
            "cpu_share": seen.cpu_share / std::thread::available_parallelism()?.get() as f64,
            "seats": seen.seats,
            "load_before": seen.load_before,
        }));
        write(&rows)?;
    }
    // What was measured before is compared anew.
    write(&rows)
}

/// What was measured before, with the same cut of the same step.
fn kept(default: &str, batch: u64) -> anyhow::Result<Vec<Value>> {
    let Some(mut figures) = saved("time_to_loss")? else {
        return Ok(vec![]);
    };
    ensure!(
        figures["default"] == default && figures["batch"] == batch,
        "what is in tests/figures was measured with another default or batch: leave out --resume to begin anew"
    );
    Ok(serde_json::from_value(figures["rows"].take())?)
}

/// Each codec's.
fn steps(contest: &Contest) -> BTreeMap<&str, f64> {
    let steps = contest.all.iter().map(|it| (it.name.as_str(), it.steps));
    steps.collect()
}

/// By line and speed, of each codec that is compared.
fn seconds_to_loss(contest: &Contest, rows: &[Value]) -> Value {
    let steps = steps(contest);
    let mut by_place: BTreeMap<String, BTreeMap<&str, f64>> = BTreeMap::new();
    for row in rows {
        let place = format!(
            "{}, {} TFLOP/s",
            row["line"].as_str().unwrap_or_default(),
            row["teraflops"]
        );
        let codec = row["codec"].as_str().unwrap_or_default();
        let (Some(steps), Some(seconds)) = (steps.get(codec), row["step_seconds"].as_f64()) else {
            continue;
        };
        let seconds = seconds * steps;
        by_place.entry(place).or_default().insert(codec, seconds);
    }
    json!(by_place)
}
