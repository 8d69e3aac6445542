//! How busy the seats of one pipeline are over slow links, beside what its length alone allows.
//!
//! Four volunteers, each at an end with the figures' standard access link (`tests::link`): 80 Mbit/s, 25 ms one way between
//! two. Their devices wait as long as ones of a stated speed work (`volunteer::pretend` of the native client), so what is looked at is
//! what the rest costs: frames, links, order, hand-overs. A step fills the pipe and drains it; with m microbatches of t, s
//! seats and l from one seat to the next a seat can be busy m t of (m + s - 1) t + 2 (s - 1) l. Updates are not in that bound.
//! Measured is the head's time from a step's end to the next one's, in its trace, the median of some; what seats waited for comes from theirs.
//! The last traces of each case stay in cargo's target folder, for Perfetto to show.

use std::path::Path as FilePath;
use std::time::Duration;

use ::tests::link::{Link, Path};
use ::tests::paths;
use anyhow::Context;
use serde_json::{Value, json};

use super::Figures;
use super::cost::median;
use super::pipe::{self, Pipe, SEATS};

/// Sequences of a microbatch, and tokens of each: with the rank, what crosses the links.
const SEQUENCES: u64 = 2;
const CONTEXT: u64 = 512;
const RANK: u64 = 48;
/// Steps that are looked at.
const STEPS: u64 = 9;
const STEPS_QUICK: u64 = 3;

/// Microbatches of a step, and how long each takes at a seat.
#[derive(Clone, Copy, Debug)]
struct Case {
    microbatches: u64,
    microbatch_us: u64,
}

const CASES: [Case; 3] = [
    Case {
        microbatches: 16,
        microbatch_us: 120_000,
    },
    Case {
        microbatches: 32,
        microbatch_us: 60_000,
    },
    Case {
        microbatches: 64,
        microbatch_us: 30_000,
    },
];

impl Case {
    fn pipe(self) -> Pipe {
        let Self {
            microbatches,
            microbatch_us,
        } = self;
        let batch = microbatches * SEQUENCES;
        Pipe {
            config: format!(
                "[run]\nname = \"overlap\"\npreset = \"tiny\"\n\n\
                 [model]\nblocks = {SEATS}\nstages = {SEATS}\ncontext = {CONTEXT}\nrank = {RANK}\n\n\
                 [training]\nbatch = {batch}\nmicrobatches = {microbatches}\nsamples = 6_400_000\n"
            ),
            microbatches,
            microbatch_us,
            step: Duration::from_secs_f64(self.work_us() / 1e6),
        }
    }

    /// The least that a step can take, in microseconds.
    fn least_us(self, link_us: f64) -> f64 {
        let microbatches = (self.microbatches + SEATS - 1) as f64;
        microbatches * self.microbatch_us as f64 + 2.0 * (SEATS - 1) as f64 * link_us
    }

    /// What a seat computes in a step, its update left out.
    fn work_us(self) -> f64 {
        self.microbatches as f64 * self.microbatch_us as f64
    }
}

/// Measures each case in turns; the file is written at the end.
pub(super) fn overlap(asked: &Figures, data: &FilePath) -> anyhow::Result<()> {
    let steps = if asked.quick { STEPS_QUICK } else { STEPS };
    let link = pipe::lay(Path::STANDARD.access())?;
    let mut runs = Vec::new();
    for repeat in 0..asked.repeats() {
        for case in CASES {
            let run = measure(&link, case, steps, data);
            let mut run = run.with_context(|| format!("{case:?}"))?;
            run["repeat"] = json!(repeat);
            println!("{run:#}");
            runs.push(run);
        }
    }
    let by_case = summary(&runs)?;
    println!("{by_case:#}");
    let figures = json!({
        "seats": SEATS,
        "rate_mbit": Path::STANDARD.down_bits.get() as f64 / 1e6,
        "delay_ms": Path::STANDARD.delay.as_secs_f64() * 1e3,
        "steps": steps,
        "repeats": asked.repeats(),
        "by_case": by_case,
        "runs": runs,
    });
    asked.keep("overlap", &figures)
}

/// A run of one case.
fn measure(link: &Link, case: Case, steps: u64, data: &FilePath) -> anyhow::Result<Value> {
    let seen = case.pipe().measure(link, steps, data)?;
    let all = paths::target()?.join(format!("overlap-{}.json", case.microbatch_us));
    std::fs::write(&all, seen.trace.text())?;
    let link_us = link_us(seen.forward_bytes);
    let (step_us, least_us) = (seen.step_us(), case.least_us(link_us));
    Ok(json!({
        "microbatches": case.microbatches,
        "microbatch_us": case.microbatch_us,
        "link_us": link_us,
        "step_ms": seen.step_ms,
        "busy": case.work_us() / step_us,
        "bound": case.work_us() / least_us,
        "of_bound": least_us / step_us,
        "seats": seen.seats,
        "load_before": seen.load_before,
        "cpu_seconds_of_volunteers": seen.cpu_seconds,
    }))
}

/// Microseconds from one seat to the next: the link's delay, and the payload at its rate.
fn link_us(payload_bytes: u64) -> f64 {
    let standard = Path::STANDARD;
    let transfer_us = payload_bytes as f64 * 8.0 / standard.down_bits.get() as f64 * 1e6;
    standard.delay.as_secs_f64() * 1e6 + transfer_us
}

/// By case: least, median and most of the repeats.
fn summary(runs: &[Value]) -> anyhow::Result<Value> {
    let mut rows = Vec::new();
    for case in CASES {
        let is_it = |run: &&Value| run["microbatch_us"] == case.microbatch_us;
        let of = |name: &str| -> anyhow::Result<Value> {
            let figures = runs.iter().filter(is_it).map(|run| run[name].as_f64());
            let figures: Option<Vec<f64>> = figures.collect();
            let figures = figures.context("it was measured")?;
            let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
            let most = figures.iter().copied().fold(0.0, f64::max);
            Ok(json!({ "least": least, "median": median(figures), "most": most }))
        };
        rows.push(json!({
            "microbatches": case.microbatches,
            "microbatch_us": case.microbatch_us,
            "bound": of("bound")?["median"],
            "busy": of("busy")?,
            "of_bound": of("of_bound")?,
        }));
    }
    Ok(json!(rows))
}
