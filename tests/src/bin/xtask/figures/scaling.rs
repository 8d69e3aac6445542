//! What more pipelines bring: samples a second of 1 to 4 beside each other, as processes over real connections.
//!
//! Two cores cannot compute for eight volunteers at once, so each has a device that waits as long as one of a stated speed
//! works (`volunteer::pretend` of the native client); host, links, bytes, merges and commits are the real ones. A
//! pipeline has two seats, as the model has two stages. All runs are the same but for the number of volunteers, and take
//! turns; what comes before a round in which all pipelines took part is left out. Up to 16 pipelines are measured in the
//! simulation (`shared::sim::scaling`), where a processor costs nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ::tests::paths;
use ::tests::process::Program;
use ::tests::run::{Host, HostOptions};
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::cost::{cpu_seconds, median};
use super::{Figures, ROUND_WAIT_MAX, load};

/// Most pipelines.
const PIPELINES: usize = 4;
/// Seats of each.
const SEATS: usize = 2;
/// Names of volunteers.
const NAMES: [&str; PIPELINES * SEATS] = [
    "anchovy", "bleak", "dace", "herring", "roach", "sardine", "shad", "sprat",
];
/// Microseconds of a microbatch at a seat, forward and backward: so slow that eight volunteers leave these cores a rest.
const MICROBATCH_US: u64 = 60_000;
const MICROBATCHES: u64 = 8;
const BATCH: u64 = 32;
/// Steps of a round: about 22 seconds, or with `--quick` six.
const ROUND_STEPS: u64 = 40;
const ROUND_STEPS_QUICK: u64 = 10;
/// The simulation's rounds: with a home's way out, newcomers must have their states before the next one begins.
const SIMULATED_ROUND_STEPS: u64 = 75;
/// Pipelines in the simulation.
const SIMULATED: [u64; 5] = [1, 2, 4, 8, 16];
/// ... and where thousands of volunteers take part: as long a round, of so many times fewer and longer microbatches.
const SIMULATED_CROWDS: [u64; 5] = [1, 16, 64, 256, 1_000];
const COARSER: u64 = 15;
/// A home's way out, and a way over a continent.
const DELAY_MS: u64 = 20;
const BYTES_PER_SECOND: u64 = 2_500_000;
/// For all volunteers to take part in a round.
const GATHER_MAX: Duration = Duration::from_secs(180);

/// Measures in turns; the file is written at the end.
pub(super) fn scaling(asked: &Figures, data: &Path) -> anyhow::Result<()> {
    ensure!(
        asked.rounds >= 2,
        "what comes before a whole round is left out: ask for two or more"
    );
    let round_steps = if asked.quick {
        ROUND_STEPS_QUICK
    } else {
        ROUND_STEPS
    };
    let simulated = simulated(asked.rounds - 1, 1, &SIMULATED)?;
    let mut runs = Vec::new();
    for repeat in 0..asked.repeats() {
        for pipelines in 1..=PIPELINES {
            let mut run = measure(pipelines, asked.rounds - 1, round_steps, data)
                .with_context(|| format!("{pipelines} pipelines"))?;
            run["repeat"] = json!(repeat);
            println!("{run}");
            runs.push(run);
        }
    }
    let by_pipelines = summary(&runs)?;
    println!("{by_pipelines:#}");
    let figures = json!({
        "seats": SEATS,
        "microbatch_us": MICROBATCH_US,
        "microbatches": MICROBATCHES,
        "batch": BATCH,
        "round_steps": round_steps,
        "rounds": asked.rounds - 1,
        "repeats": asked.repeats(),
        "by_pipelines": by_pipelines,
        "runs": runs,
        "simulated": simulated,
    });
    asked.keep("scaling", &figures)
}

/// Up to a thousand pipelines, in the simulation alone: minutes.
pub(super) fn crowd(asked: &Figures) -> anyhow::Result<()> {
    let counts = &SIMULATED_CROWDS[..if asked.quick { 3 } else { 5 }];
    asked.keep("crowd", &simulated(1, COARSER, counts)?)
}

/// The run, which is the same whoever takes part. Longer than anyone measures.
fn config(round_steps: u64) -> String {
    format!(
        "[run]\nname = \"scaling\"\npreset = \"tiny\"\n\n\
         [model]\nd_model = 256\nd_ff = 704\nblocks = {SEATS}\nstages = {SEATS}\n\n\
         [training]\nbatch = {BATCH}\nmicrobatches = {MICROBATCHES}\nsamples = 6_400_000\n\n\
         [schedule]\nround_steps = {round_steps}\nseats_min = {SEATS}\npipelines_max = {PIPELINES}\n\
         eval_rounds = 0\ncheckpoint_minutes = 600\n"
    )
}

/// A run of so many pipelines: waits until all take part, then looks at some rounds.
fn measure(pipelines: usize, rounds: u64, round_steps: u64, data: &Path) -> anyhow::Result<Value> {
    let load_before = load();
    let mut host = Host::start(HostOptions {
        config: config(round_steps),
        data: data.to_owned(),
        port: 0,
        arguments: vec![],
    })?;
    let pace = MICROBATCH_US.to_string();
    let join = |name: &&str| {
        let pretend = ("SHOAL_PRETEND_US", pace.as_ref());
        host.volunteer_among(name, &[], [pretend])
    };
    let volunteers: anyhow::Result<Vec<Program>> =
        NAMES[..pipelines * SEATS].iter().map(join).collect();
    let volunteers = volunteers?;
    host.wait_until("a round of all pipelines", GATHER_MAX, |run| {
        let rounds = run["rounds"].as_array().map_or(&[][..], Vec::as_slice);
        rounds
            .last()
            .is_some_and(|round| round["pipelines"] == pipelines)
    })?;
    // What it said until now is passed over; then from one commit to another, by the times that they bear.
    while host.program().next_event(Instant::now()).is_some() {}
    let first = next_commit(&mut host)?;
    let cpu_before = cpu_seconds(&volunteers)?;
    let host_cpu_before = host.program().cpu_seconds()?;
    let mut last = first.clone();
    for _ in 0..rounds {
        last = next_commit(&mut host)?;
    }
    let volunteers_cpu = cpu_seconds(&volunteers)? - cpu_before;
    let host_cpu = host.program().cpu_seconds()? - host_cpu_before;
    let of = |commit: &Value, name: &str| {
        commit[name]
            .as_u64()
            .with_context(|| format!("no {name} in {commit}"))
    };
    let seconds = (of(&last, "time_ms")? - of(&first, "time_ms")?) as f64 / 1e3;
    let samples = of(&last, "samples")? - of(&first, "samples")?;
    let looked_at = of(&first, "round")? + 1..=of(&last, "round")?;
    // A commit is told a moment before it is shown.
    let shown = host.wait_until("the last round", ROUND_WAIT_MAX, |run| {
        run["round"].as_u64() >= Some(*looked_at.end())
    })?;
    let in_rounds = seconds_in_rounds(&shown, looked_at, pipelines)?;
    let per_round = |seconds: f64| seconds / rounds as f64;
    Ok(json!({
        "pipelines": pipelines,
        "load_before": load_before,
        "samples": samples,
        "seconds": seconds,
        "samples_per_second": samples as f64 / seconds,
        "samples_per_second_in_rounds": samples as f64 / in_rounds,
        "round_seconds": per_round(in_rounds),
        "between_rounds_seconds": per_round(seconds - in_rounds),
        "cores_of_volunteers": volunteers_cpu / seconds,
        "cores_of_host": host_cpu / seconds,
    }))
}

/// The next commit that the host tells.
fn next_commit(host: &mut Host) -> anyhow::Result<Value> {
    host.program()
        .wait_for("a commit", ROUND_WAIT_MAX, |event| {
            event["event"] == "commit"
        })
}

/// What those rounds took from `begin` to the slowest pipeline's last step.
fn seconds_in_rounds(
    run: &Value,
    looked_at: std::ops::RangeInclusive<u64>,
    pipelines: usize,
) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for number in looked_at {
        let mut rows = run["rounds"].as_array().into_iter().flatten();
        let row = rows.find(|row| row["round"] == number);
        let row = row.with_context(|| format!("no round {number}: {run:#}"))?;
        if row["pipelines"] != pipelines {
            bail!("not all pipelines were in {row}");
        }
        sum += row["seconds"].as_f64().context("a round takes time")?;
    }
    Ok(sum)
}

/// By number of pipelines: medians, and least, median and most of each repeat's share of linear.
fn summary(runs: &[Value]) -> anyhow::Result<Value> {
    let mut by_pipelines: BTreeMap<u64, BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    for run in runs {
        let pipelines = run["pipelines"].as_u64().context("a number")?;
        let mut one = runs.iter();
        let one = one.find(|it| it["repeat"] == run["repeat"] && it["pipelines"] == 1);
        let one = one.context("each repeat has one pipeline alone")?;
        let row = by_pipelines.entry(pipelines).or_default();
        for name in ["samples_per_second", "samples_per_second_in_rounds"] {
            let figure = |run: &Value| run[name].as_f64().context("it was measured");
            let share = figure(run)? / (pipelines as f64 * figure(one)?);
            let of_linear = match name {
                "samples_per_second" => "of_linear",
                _ => "of_linear_in_rounds",
            };
            row.entry(of_linear).or_default().push(share);
            row.entry(name).or_default().push(figure(run)?);
        }
        for name in [
            "round_seconds",
            "between_rounds_seconds",
            "cores_of_volunteers",
            "cores_of_host",
        ] {
            let figure = run[name].as_f64().context("it was measured")?;
            row.entry(name).or_default().push(figure);
        }
    }
    let spread = |values: Vec<f64>| {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        json!({ "least": least, "median": median(values), "most": most })
    };
    let row = |row: BTreeMap<&str, Vec<f64>>| -> BTreeMap<String, Value> {
        let spreads = row.into_iter();
        spreads
            .map(|(name, values)| (name.to_owned(), spread(values)))
            .collect()
    };
    let rows: BTreeMap<u64, _> = by_pipelines
        .into_iter()
        .map(|(pipelines, values)| (pipelines, row(values)))
        .collect();
    Ok(json!(rows))
}

/// So many pipelines in the simulation, each with its share of linear of the first, which is one.
fn simulated(rounds: u64, coarser: u64, pipelines: &[u64]) -> anyhow::Result<Value> {
    let numbers = [
        rounds,
        SIMULATED_ROUND_STEPS / coarser,
        coarser * MICROBATCH_US / 1_000,
        DELAY_MS,
        BYTES_PER_SECOND,
    ];
    let mut command = Command::new(paths::program("examples/scaling")?);
    let numbers = numbers.iter().chain(pipelines);
    command.args(numbers.map(u64::to_string));
    let output = command.output().context("the simulation starts")?;
    let said = String::from_utf8_lossy(&output.stdout);
    // A failure holds the whole world: its beginning says enough.
    let (end, _) = said.split_once("RunView").unwrap_or((&said, ""));
    ensure!(output.status.success(), "the simulation failed: {end}");
    let rows: Result<Vec<Value>, _> = said.lines().map(serde_json::from_str).collect();
    let mut rows = rows.context("a line of JSON each")?;
    let rate = |row: &Value| Some(row["samples"].as_f64()? / row["seconds"].as_f64()?);
    let one = rows.first().and_then(rate).context("one pipeline")?;
    for row in &mut rows {
        let pipelines = row["pipelines"].as_f64();
        let of_linear = rate(row)
            .zip(pipelines)
            .map(|(rate, pipelines)| rate / pipelines / one);
        row["of_linear"] = json!(of_linear.context("samples and seconds")?);
        println!("simulated: {row}");
    }
    Ok(json!({
        "round_steps": SIMULATED_ROUND_STEPS / coarser,
        "microbatch_us": coarser * MICROBATCH_US,
        "delay_ms": DELAY_MS,
        "bytes_per_second": BYTES_PER_SECOND,
        "by_pipelines": rows,
    }))
}
