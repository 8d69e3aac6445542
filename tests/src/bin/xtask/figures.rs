//! `cargo xtask figures NAME`: measures, and writes `tests/figures/NAME.json`.
//!
//! Whatever the README says in numbers comes from such a file, and anyone can write it again. Owns
//! which runs are made and what is taken from them; beside the figures stand the machine, the
//! versions and the date. Begin with [`figures`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tests::paths;
use tests::process::Program;
use tests::run::{Host, HostOptions};

use crate::build::programs;

/// For one round of `tiny`, whatever else the machine does.
const ROUND_WAIT_MAX: Duration = Duration::from_secs(300);
/// Names of volunteers, as many as are needed.
const NAMES: [&str; 4] = ["anchovy", "herring", "sardine", "sprat"];

/// Which figures, and how long to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Figures {
    /// What to measure
    name: Name,
    /// Text to train on, instead of this repository's own
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Rounds of each run
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// How often each run is repeated, interleaved with the others (`cost`)
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Name {
    /// Bytes a token and validation loss, by codec and rank
    Wire,
    /// Speed by number of volunteers, time to join, memory
    Cost,
}

/// Measures and writes the file.
///
/// # Errors
/// A run does not go on, or the file cannot be written.
pub(crate) fn figures(asked: &Figures) -> anyhow::Result<()> {
    programs()?;
    let own_text = tempfile::Builder::new().prefix("shoal-text-").tempdir()?;
    let data = match &asked.data {
        Some(path) => path.clone(),
        None => {
            crate::demo::copy_own_text(own_text.path())?;
            own_text.path().to_owned()
        }
    };
    let (name, measured) = match asked.name {
        Name::Wire => ("wire", wire(asked, &data)?),
        Name::Cost => ("cost", cost(asked, &data)?),
    };
    let file = paths::repository()
        .join("tests/figures")
        .join(format!("{name}.json"));
    std::fs::create_dir_all(file.parent().context("the file lies in a folder")?)?;
    let document = json!({ "made_by": made_by()?, "figures": measured });
    std::fs::write(&file, format!("{document:#}\n"))?;
    println!("written to tests/figures/{name}.json");
    Ok(())
}

/// A run to measure.
struct Trial {
    codec: &'static str,
    rank: Option<u32>,
    format: &'static str,
    volunteers: usize,
}

impl Trial {
    fn config(&self, eval_rounds: u64) -> String {
        let rank = self
            .rank
            .map_or(String::new(), |rank| format!("rank = {rank}\n"));
        format!(
            "[run]\nname = \"figures\"\npreset = \"tiny\"\n\n[model]\ncodec = \"{}\"\n{rank}\n\
             [wire]\nformat = \"{}\"\n\n[schedule]\nseats_min = {}\neval_rounds = {eval_rounds}\n",
            self.codec, self.format, self.volunteers
        )
    }

    /// Starts the host and the volunteers.
    fn begin(
        &self,
        data: &std::path::Path,
        eval_rounds: u64,
    ) -> anyhow::Result<(Host, Vec<Program>)> {
        let options = HostOptions {
            config: self.config(eval_rounds),
            data: data.to_owned(),
            port: 0,
            arguments: vec![],
        };
        let host = Host::start(options)?;
        let names = &NAMES[..self.volunteers];
        let started: anyhow::Result<Vec<_>> =
            names.iter().map(|name| host.volunteer(name, &[])).collect();
        Ok((host, started?))
    }
}

/// Bytes a token and validation loss after equal tokens, by codec and rank.
fn wire(asked: &Figures, data: &std::path::Path) -> anyhow::Result<Value> {
    let subspace = |rank| Trial {
        codec: "subspace",
        rank: Some(rank),
        format: "int8",
        volunteers: 3,
    };
    let dense = Trial {
        codec: "dense",
        rank: None,
        format: "f16",
        volunteers: 3,
    };
    let mut rows = Vec::new();
    for trial in [dense, subspace(32), subspace(16), subspace(8), subspace(4)] {
        let (mut host, volunteers) = trial.begin(data, asked.rounds)?;
        let evaluated = |run: &Value| {
            run["round"].as_u64() >= Some(asked.rounds) && run["validation_loss"].is_number()
        };
        let wait_max = ROUND_WAIT_MAX * u32::try_from(asked.rounds)?;
        let result = host.wait_until("the last round's evaluation", wait_max, evaluated)?;
        drop(volunteers);
        let row = json!({
            "codec": trial.codec,
            "rank": trial.rank,
            "format": trial.format,
            "tokens": result["tokens"],
            "loss": result["loss"],
            "validation_loss": result["validation_loss"],
            "payload_bytes_per_token_and_border": result["wire_bytes_per_token"],
            "dense_f16_bytes_per_token_and_border": result["dense_f16_bytes_per_token"],
            "seconds": seconds_of(&result),
        });
        println!("{row}");
        rows.push(row);
    }
    Ok(json!({ "preset": "tiny", "rounds": asked.rounds, "volunteers": 3, "runs": rows }))
}

/// Speed of one to four volunteers, interleaved; time to join; memory.
fn cost(asked: &Figures, data: &std::path::Path) -> anyhow::Result<Value> {
    let mut speeds: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut joins = Vec::new();
    let mut volunteer_peak_bytes = 0;
    let mut host_peak_bytes = 0;
    for _ in 0..asked.repeats {
        for volunteers in 1..=NAMES.len() {
            let trial = Trial {
                codec: "subspace",
                rank: Some(16),
                format: "int8",
                volunteers,
            };
            let (mut host, mut started) = trial.begin(data, 0)?;
            for volunteer in &mut started {
                joins.push(join_parts(volunteer)?);
            }
            let wait_max = ROUND_WAIT_MAX * u32::try_from(asked.rounds)?;
            let result = host.wait_until("the last round", wait_max, |run| {
                run["round"].as_u64() >= Some(asked.rounds)
            })?;
            let tokens = result["tokens"].as_f64().context("a run has tokens")?;
            let speed = tokens / seconds_of(&result);
            println!("{volunteers} volunteers: {speed:.0} tokens/s");
            speeds.entry(volunteers).or_default().push(speed);
            for volunteer in &started {
                volunteer_peak_bytes = volunteer_peak_bytes.max(volunteer.peak_bytes()?);
            }
            host_peak_bytes = host_peak_bytes.max(host.program().peak_bytes()?);
        }
    }
    Ok(json!({
        "preset": "tiny",
        "rounds": asked.rounds,
        "tokens_per_second_by_volunteers": speeds,
        "joins": joins,
        "volunteer_peak_bytes": volunteer_peak_bytes,
        "host_peak_bytes": host_peak_bytes,
    }))
}

/// Seconds since its start at which a volunteer was at each point of joining.
fn join_parts(volunteer: &mut Program) -> anyhow::Result<Value> {
    let deadline = Instant::now() + ROUND_WAIT_MAX;
    let mut parts = BTreeMap::new();
    while let Some(event) = volunteer.next_event(deadline) {
        let name = event["event"].as_str().unwrap_or_default().to_owned();
        let seconds = event["seconds"].as_f64();
        if let Some(seconds) = seconds {
            // The first of each kind: later ones are no part of joining.
            parts.entry(name.clone()).or_insert(seconds);
        }
        if name == "first_microbatch" {
            return Ok(json!(parts));
        }
    }
    bail!(
        "no microbatch was computed
{}",
        volunteer.said()
    )
}

/// Time that the run's rounds took.
fn seconds_of(run: &Value) -> f64 {
    run["rounds"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| row["seconds"].as_f64())
        .sum()
}

/// Where, when and with what the figures were made.
fn made_by() -> anyhow::Result<Value> {
    let said = |program: &str, arguments: &[&str]| -> anyhow::Result<String> {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(paths::repository())
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism()?.get();
    Ok(json!({
        "command": std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        "date": said("date", &["-u", "+%Y-%m-%d"])?,
        "commit": said("git", &["rev-parse", "--short=12", "HEAD"])?,
        "rustc": said("rustc", &["--version"])?,
        "cpu": cpu.map_or("unknown", |(_, name)| name),
        "cores": cores,
    }))
}
