//! What splitting costs: one process without any network against one to four volunteers.
//!
//! The yardstick is `examples/alone`: the same model, samples and steps, the engine called directly. Runs
//! take turns, so that whatever else the machine does meets all of them. The first round of each is left
//! out: it warms up. Besides steps a second (which other programs change) the processor time a step is
//! measured (which they hardly do).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use ::tests::paths;
use ::tests::process::Program;
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Figures, NAMES, ROUND_STEPS, ROUND_WAIT_MAX, Trial, load, mean, save, save_tokens};

/// The rank of all runs.
const RANK: u64 = 16;
/// Losses of the yardstick's and of one volunteer's first round: the same computation.
const LOSS_TOLERANCE: f64 = 1e-4;
/// What a volunteer tells on its way to the first microbatch, in order, and what ends there.
const JOINING: [(&str, &str); 6] = [
    ("start", "process_started"),
    ("prepare", "host_told_the_run"),
    ("measured", "model_derived_and_device_measured"),
    ("welcome", "admitted"),
    ("seat", "seat_given"),
    ("link", "links_open"),
];

/// Measures in turns; the file is written at the end.
pub(super) fn cost(asked: &Figures, data: &Path) -> anyhow::Result<()> {
    ensure!(
        asked.rounds >= 2,
        "the first round is left out: ask for two or more"
    );
    let yardstick = Yardstick::prepare(data)?;
    let mut turns = Vec::new();
    let mut joins: BTreeMap<usize, Vec<BTreeMap<String, f64>>> = BTreeMap::new();
    for repeat in 0..asked.repeats() {
        let alone = yardstick.measure(asked.rounds)?;
        println!("alone: {alone}");
        for volunteers in 1..=NAMES.len() {
            let (turn, joined) = together(volunteers, asked.rounds, data)?;
            let ratio = figure(&turn, "steps_per_second")? / figure(&alone, "steps_per_second")?;
            println!("{volunteers} volunteers: {turn}, {ratio:.2} of alone");
            if volunteers == 1 {
                same_losses(&alone, &turn)?;
            }
            joins.entry(volunteers).or_default().extend(joined);
            turns.push(json!({
                "repeat": repeat, "volunteers": volunteers, "of_alone": ratio, "run": turn,
            }));
        }
        turns.push(json!({ "repeat": repeat, "volunteers": 0, "of_alone": 1.0, "run": alone }));
    }
    let joins: BTreeMap<usize, Value> = joins
        .into_iter()
        .map(|(volunteers, joins)| (volunteers, medians(&joins)))
        .collect();
    let figures = json!({
        "preset": "tiny",
        "codec": "subspace",
        "rank": RANK,
        "format": "int8",
        "rounds": asked.rounds,
        "repeats": asked.repeats(),
        "medians_by_volunteers": summary(&turns)?,
        "join_seconds_by_volunteers": joins,
        "runs": turns,
    });
    save("cost", &figures)
}

fn trial(volunteers: usize) -> Trial {
    Trial {
        codec: "subspace",
        rank: Some(RANK),
        format: "int8",
        volunteers,
        // Longer than anyone measures: the learning rate is the same in all runs.
        rounds: 100,
        round_steps: ROUND_STEPS,
        eval_rounds: 0,
    }
}

/// The run in one process, without host or network.
struct Yardstick {
    folder: TempDir,
}

impl Yardstick {
    fn prepare(data: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("shoal-alone-").tempdir()?;
        save_tokens(trial(1).config(), data, folder.path())?;
        std::fs::write(folder.path().join("run.toml"), trial(1).config())?;
        Ok(Self { folder })
    }

    fn measure(&self, rounds: u64) -> anyhow::Result<Value> {
        let load_before = load();
        let mut command = Command::new(paths::program("examples/alone")?);
        // One round more than is looked at: it must still run when it is.
        command
            .arg(self.folder.path().join("run.toml"))
            .arg(self.folder.path())
            .args([(rounds + 1).to_string(), "1".to_owned()]);
        let mut program = Program::start("alone", &mut command)?;
        let mut span = None;
        let (mut first_loss, mut seconds) = (0.0, 0.0);
        for round in 1..=rounds {
            let event =
                program.wait_for("a round", ROUND_WAIT_MAX, |event| event["round"] == round)?;
            if round == 1 {
                first_loss = mean(&event["losses"])?;
                span = Some(Span::begin([&program])?);
            } else {
                seconds += figure(&event, "seconds")?;
            }
        }
        let span = span.context("there is a first round")?;
        let mut turn = span.end([&program], rounds, seconds)?;
        turn["load_before"] = json!(load_before);
        turn["first_round_loss"] = json!(first_loss);
        turn["peak_bytes"] = json!(program.peak_bytes()?);
        Ok(turn)
    }
}

/// A run with so many volunteers, and how each of them joined.
fn together(
    volunteers: usize,
    rounds: u64,
    data: &Path,
) -> anyhow::Result<(Value, Vec<BTreeMap<String, f64>>)> {
    let load_before = load();
    let (mut host, mut started) = trial(volunteers).begin(data)?;
    let joined: anyhow::Result<Vec<_>> = started.iter_mut().map(join_parts).collect();
    let joined = joined?;
    let reached = |round: u64| move |run: &Value| run["round"].as_u64() >= Some(round);
    let first = host.wait_until("the first round", ROUND_WAIT_MAX, reached(1))?;
    let span = Span::begin(&started)?;
    let host_cpu = host.program().cpu_seconds()?;
    let wait_max = ROUND_WAIT_MAX * u32::try_from(rounds)?;
    let last = host.wait_until("the last round", wait_max, reached(rounds))?;
    let in_rounds: f64 = last["rounds"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|row| (2..=rounds).contains(&row["round"].as_u64().unwrap_or(0)))
        .filter_map(|row| row["seconds"].as_f64())
        .sum();
    let mut turn = span.end(&started, rounds, in_rounds)?;
    let host_cpu = host.program().cpu_seconds()? - host_cpu;
    turn["load_before"] = json!(load_before);
    turn["first_round_loss"] = first["rounds"][0]["loss"].clone();
    turn["host_cpu_seconds_per_step"] = json!(host_cpu / steps(rounds));
    let peaks: anyhow::Result<Vec<u64>> = started.iter().map(Program::peak_bytes).collect();
    turn["peak_bytes"] = json!(peaks?.into_iter().max());
    turn["host_peak_bytes"] = json!(host.program().peak_bytes()?);
    Ok((turn, joined))
}

/// Steps that are measured: all but the first round's.
fn steps(rounds: u64) -> f64 {
    ((rounds - 1) * ROUND_STEPS) as f64
}

/// From the end of the first round to that of the last.
struct Span {
    began: Instant,
    cpu_seconds: f64,
}

impl Span {
    fn begin<'a>(programs: impl IntoIterator<Item = &'a Program>) -> anyhow::Result<Self> {
        Ok(Self {
            began: Instant::now(),
            cpu_seconds: cpu_seconds(programs)?,
        })
    }

    /// Speeds over the span; `in_rounds` of it, in seconds, went into steps.
    fn end<'a>(
        &self,
        programs: impl IntoIterator<Item = &'a Program>,
        rounds: u64,
        in_rounds: f64,
    ) -> anyhow::Result<Value> {
        let seconds = self.began.elapsed().as_secs_f64();
        let cpu_seconds = cpu_seconds(programs)? - self.cpu_seconds;
        Ok(json!({
            "steps_per_second": steps(rounds) / seconds,
            "steps_per_second_in_rounds": steps(rounds) / in_rounds,
            "cpu_seconds_per_step": cpu_seconds / steps(rounds),
        }))
    }
}

pub(super) fn cpu_seconds<'a>(
    programs: impl IntoIterator<Item = &'a Program>,
) -> anyhow::Result<f64> {
    programs.into_iter().map(Program::cpu_seconds).sum()
}

/// Seconds that each part of joining took; the parts and `all` add up.
fn join_parts(volunteer: &mut Program) -> anyhow::Result<BTreeMap<String, f64>> {
    let deadline = Instant::now() + ROUND_WAIT_MAX;
    let mut seen = BTreeMap::new();
    while let Some(event) = volunteer.next_event(deadline) {
        let name = event["event"].as_str().unwrap_or_default().to_owned();
        let is_last = name == "first_microbatch";
        if let Some(seconds) = event["seconds"].as_f64() {
            // The first of each kind but links, of which the last one is waited for.
            if name == "link" {
                seen.insert(name, seconds);
            } else {
                seen.entry(name).or_insert(seconds);
            }
        }
        if is_last {
            return Ok(parts_of(&seen));
        }
    }
    bail!("no microbatch was computed\n{}", volunteer.said())
}

fn parts_of(seen: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let mut parts = BTreeMap::new();
    let mut before = 0.0;
    for (event, part) in JOINING {
        // A volunteer that holds all stages has no link.
        let Some(at) = seen.get(event) else { continue };
        let at = at.max(before);
        parts.insert(part.to_owned(), at - before);
        before = at;
    }
    let end = seen["first_microbatch"];
    parts.insert("first_microbatch_computed".to_owned(), end - before);
    parts.insert("all".to_owned(), end);
    parts
}

/// The median of each part.
fn medians(joins: &[BTreeMap<String, f64>]) -> Value {
    let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (part, seconds) in joins.iter().flatten() {
        parts.entry(part).or_default().push(*seconds);
    }
    let medians = parts
        .into_iter()
        .map(|(part, seconds)| (part.to_owned(), json!(median(seconds))));
    Value::Object(medians.collect())
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

/// Medians over the repeats, by number of volunteers; 0 is the yardstick.
fn summary(turns: &[Value]) -> anyhow::Result<BTreeMap<u64, Value>> {
    let mut by_volunteers: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    for turn in turns {
        let volunteers = turn["volunteers"].as_u64().context("a number")?;
        by_volunteers.entry(volunteers).or_default().push(turn);
    }
    let of = |turns: &[&Value], place: &str| -> Option<f64> {
        let values: Option<Vec<f64>> = turns
            .iter()
            .map(|turn| turn.pointer(place)?.as_f64())
            .collect();
        values.map(median)
    };
    let row = |turns: Vec<&Value>| {
        json!({
            "of_alone": of(&turns, "/of_alone"),
            "steps_per_second": of(&turns, "/run/steps_per_second"),
            "steps_per_second_in_rounds": of(&turns, "/run/steps_per_second_in_rounds"),
            "cpu_seconds_per_step": of(&turns, "/run/cpu_seconds_per_step"),
            "host_cpu_seconds_per_step": of(&turns, "/run/host_cpu_seconds_per_step"),
            "peak_bytes": of(&turns, "/run/peak_bytes"),
            "host_peak_bytes": of(&turns, "/run/host_peak_bytes"),
        })
    };
    Ok(by_volunteers
        .into_iter()
        .map(|(volunteers, turns)| (volunteers, row(turns)))
        .collect())
}

fn figure(row: &Value, name: &str) -> anyhow::Result<f64> {
    row[name]
        .as_f64()
        .with_context(|| format!("no {name} in {row}"))
}

/// The yardstick must compute what one volunteer computes.
fn same_losses(alone: &Value, one: &Value) -> anyhow::Result<()> {
    let (alone, one) = (
        figure(alone, "first_round_loss")?,
        figure(one, "first_round_loss")?,
    );
    ensure!(
        (alone - one).abs() <= LOSS_TOLERANCE * alone,
        "the first round's loss is {alone} alone, {one} with one volunteer: not the same run"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_joining_add_up_to_all_of_it() {
        let seen = [
            ("start", 0.1),
            ("prepare", 0.2),
            ("measured", 0.5),
            ("welcome", 0.6),
            ("seat", 0.7),
            ("link", 1.5),
            ("reason", 0.65),
            ("first_microbatch", 1.75),
        ];
        let whole: BTreeMap<String, f64> = seen.map(|(name, at)| (name.to_owned(), at)).into();
        let mut alone = whole.clone();
        alone.remove("link");
        for (seen, links) in [(whole, 0.8), (alone, 0.0)] {
            let parts = parts_of(&seen);
            let found = parts.get("links_open").copied().unwrap_or(0.0);
            assert!((found - links).abs() < 1e-9, "{parts:?}");
            let sum: f64 = parts
                .iter()
                .filter(|(part, _)| *part != "all")
                .map(|(_, seconds)| seconds)
                .sum();
            assert!((sum - parts["all"]).abs() < 1e-9, "{parts:?}");
        }
    }
}
