//! How busy the seats of one pipeline are over slow links, beside what its length alone allows.
//!
//! Four volunteers, each at an end with the figures' standard access link (`tests::link`): 80 Mbit/s, 25 ms one way between
//! two. Their devices wait as long as ones of a stated speed work (`volunteer::pretend` of the native client), so what is looked at is
//! what the rest costs: frames, links, order, hand-overs. A step fills the pipe and drains it; with m microbatches of t, s
//! seats and l from one seat to the next a seat can be busy m t of (m + s - 1) t + 2 (s - 1) l. Updates are not in that bound.
//! Measured is the head's time from a step's end to the next one's, in its trace, the median of some; what seats waited for comes from theirs.
//! The last traces of each case stay in cargo's target folder, for Perfetto to show.

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::time::{Duration, Instant};

use ::tests::link::{Access, Link, Path};
use ::tests::paths;
use ::tests::process::Program;
use ::tests::run::{Host, HostOptions, Launch, Place};
use ::tests::traces::{Span, Trace};
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::cost::median;
use super::{Figures, NAMES, load};

/// Seats of the pipeline.
const SEATS: u64 = 4;
/// Sequences of a microbatch, and tokens of each: with the rank, what crosses the links.
const SEQUENCES: u64 = 2;
const CONTEXT: u64 = 512;
const RANK: u64 = 48;
/// Steps before any is looked at: links are measured meanwhile.
const STEPS_BEFORE: u64 = 3;
/// ... and those that are looked at.
const STEPS: u64 = 9;
const STEPS_QUICK: u64 = 3;
/// For all seats to be taken, and for each step beyond what it should take.
const GATHER_MAX: Duration = Duration::from_secs(120);
const LATE_MAX: Duration = Duration::from_secs(20);

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
    fn config(self) -> String {
        let Self { microbatches, .. } = self;
        let batch = microbatches * SEQUENCES;
        format!(
            "[run]\nname = \"overlap\"\npreset = \"tiny\"\n\n\
             [model]\nblocks = {SEATS}\nstages = {SEATS}\ncontext = {CONTEXT}\nrank = {RANK}\n\n\
             [training]\nbatch = {batch}\nmicrobatches = {microbatches}\nsamples = 6_400_000\n\n\
             [schedule]\nround_steps = 1000\nseats_min = {SEATS}\neval_rounds = 0\n\
             checkpoint_minutes = 600\n"
        )
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
    let access = Path::STANDARD.access();
    let mut ends = vec![access; NAMES.len()];
    ends.push(Access::OPEN);
    let link = Link::gather(&ends, 1).context("a link is laid between namespaces")?;
    // From here on the host is around the corner.
    link.door(NAMES.len()).enter()?;
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

/// A run of one case: waits until all sit, then looks at some steps.
fn measure(link: &Link, case: Case, steps: u64, data: &FilePath) -> anyhow::Result<Value> {
    let load_before = load();
    let hub = NAMES.len();
    let mut host = Host::start_as(
        HostOptions {
            config: case.config(),
            data: data.to_owned(),
            port: 0,
            arguments: ["--host", "0.0.0.0"].map(str::to_owned).into(),
        },
        Launch {
            wrapper: link.wrapper(hub),
            ..Launch::default()
        },
    )?;
    let folder = tempfile::Builder::new().prefix("shoal-traces-").tempdir()?;
    let file = |name: &str| folder.path().join(format!("{name}.json"));
    let join = |(end, name): (usize, &&str)| {
        let mut wrapper = link.wrapper(end);
        let pretend = format!("SHOAL_PRETEND_US={}", case.microbatch_us);
        wrapper.extend(["env".to_owned(), pretend]);
        let place = Place {
            wrapper,
            address: Some(link.address(hub).to_string()),
        };
        let file = file(name);
        let file = file.to_str().context("a folder's name is text")?;
        host.volunteer_at(name, &["--trace", file], &place)
    };
    let volunteers: anyhow::Result<Vec<Program>> = NAMES.iter().enumerate().map(join).collect();
    let mut volunteers = volunteers?;
    // One more: what a killed volunteer did last is not in its trace.
    wait_steps(&mut host, case, STEPS_BEFORE + steps + 1)?;
    let cpu = super::cost::cpu_seconds(&volunteers)?;
    for volunteer in &mut volunteers {
        volunteer.kill()?;
    }
    let traces: anyhow::Result<Vec<Trace>> =
        NAMES.iter().map(|name| Trace::read(&file(name))).collect();
    let traces = traces?;
    let all = paths::target()?.join(format!("overlap-{}.json", case.microbatch_us));
    std::fs::write(&all, Trace::join(traces.clone()).text())?;
    let mut figures = look(case, steps, &traces)?;
    figures["load_before"] = json!(load_before);
    figures["cpu_seconds_of_volunteers"] = json!(cpu);
    Ok(figures)
}

/// Waits until so many steps of the first round are done.
fn wait_steps(host: &mut Host, case: Case, steps: u64) -> anyhow::Result<()> {
    host.wait_until("all seats", GATHER_MAX, |run| {
        run["steps"].as_u64() >= Some(1)
    })?;
    let expected = Duration::from_secs_f64(2.0 * steps as f64 * case.work_us() / 1e6);
    let begun = Instant::now();
    host.wait_until("enough steps", LATE_MAX + expected, |run| {
        run["steps"].as_u64() >= Some(steps)
    })?;
    ensure!(begun.elapsed() < LATE_MAX + expected, "in time");
    Ok(())
}

/// What a seat's device did between two moments.
fn share(spans: &[Span], from_us: u64, to_us: u64) -> BTreeMap<String, f64> {
    let mut by_name: BTreeMap<String, f64> = BTreeMap::new();
    for span in spans {
        let (began, ended) = (span.began_us.max(from_us), span.ended_us.min(to_us));
        *by_name.entry(span.name.clone()).or_default() += ended.saturating_sub(began) as f64;
    }
    by_name.retain(|_, took_us| *took_us > 0.0);
    let whole = (to_us - from_us) as f64;
    by_name.values_mut().for_each(|took_us| *took_us /= whole);
    by_name
}

/// What the traces say of the last `steps` steps.
fn look(case: Case, steps: u64, traces: &[Trace]) -> anyhow::Result<Value> {
    // Along the pipe: whose first forward was earlier sits before.
    let mut seats = Vec::new();
    for trace in traces {
        let spans = trace.spans("compute")?;
        let first = spans.iter().find(|span| span.name == "forward");
        let first = first.context("a seat computed nothing")?.began_us;
        seats.push((first, trace, spans));
    }
    seats.sort_by_key(|(first, ..)| *first);
    let (_, head, head_spans) = seats.first().context("seats")?;
    let ends: Vec<u64> = (STEPS_BEFORE - 1..STEPS_BEFORE + steps)
        .map(|step| {
            let last = Some((0, step, case.microbatches - 1));
            let mut spans = head_spans.iter();
            let end = spans.find(|span| span.name == "backward" && span.slot == last);
            end.map(|end| end.ended_us)
                .with_context(|| format!("the head did not end step {step}"))
        })
        .collect::<anyhow::Result<_>>()?;
    let (Some(&from_us), Some(&to_us)) = (ends.first(), ends.last()) else {
        bail!("no steps");
    };
    let link_us = link_us(head)?;
    let step_ms: Vec<f64> = ends
        .windows(2)
        .map(|pair| (pair[1] - pair[0]) as f64 / 1e3)
        .collect();
    // Of the steps: a machine that stands still now and then is not what is measured.
    let step_us = median(step_ms.clone()) * 1e3;
    let least_us = case.least_us(link_us);
    let rows: anyhow::Result<Vec<Value>> = seats
        .iter()
        .map(|(_, trace, spans)| {
            let waits = trace.spans("wait")?;
            Ok(json!({
                "name": trace.name(),
                "computes": share(spans, from_us, to_us),
                "waits": share(&waits, from_us, to_us),
            }))
        })
        .collect();
    Ok(json!({
        "microbatches": case.microbatches,
        "microbatch_us": case.microbatch_us,
        "link_us": link_us,
        "step_ms": step_ms,
        "busy": case.work_us() / step_us,
        "bound": case.work_us() / least_us,
        "of_bound": least_us / step_us,
        "seats": rows?,
    }))
}

/// Microseconds from one seat to the next: the link's delay, and the payload at its rate.
fn link_us(head: &Trace) -> anyhow::Result<f64> {
    let mut events = head.events.iter();
    let sent = events.find(|event| event["cat"] == "sent" && event["name"] == "forward");
    let bytes = sent.and_then(|event| event["args"]["bytes"].as_u64());
    let bits = bytes.context("the head sent something")? as f64 * 8.0;
    let standard = Path::STANDARD;
    let transfer_us = bits / standard.down_bits.get() as f64 * 1e6;
    Ok(standard.delay.as_secs_f64() * 1e6 + transfer_us)
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
