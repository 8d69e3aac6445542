//! `cargo xtask demo`: a community run on this machine, from nothing to generated text.
//!
//! A host and three volunteers, each a process of its own, train the preset `tiny` on this
//! repository's text or on a folder that is named. Owns what is shown and when it is enough; what
//! the run does comes from the host's `/api/run`. With `--json` the output holds JSON alone, an
//! object a round and a summary; everything else goes to the errors.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tests::paths;
use tests::process::Program;
use tests::run::{Host, HostOptions};

use crate::build::programs;
use crate::setup;
use crate::web::{For, web};

/// Who takes part.
const VOLUNTEERS: [&str; 3] = ["anchovy", "herring", "sardine"];
/// Where the page is, or the next free port after it.
const PORT: u16 = 8080;
/// Ports that are tried.
const PORTS_MAX: u16 = 100;
/// Validation loss that is enough, in nats a byte.
const LOSS_ENOUGH: f64 = 2.3;
/// Time that is enough.
const TIME_MAX: Duration = Duration::from_secs(12 * 60);
/// A round on two slow cores takes well under this.
const ROUND_WAIT_MAX: Duration = Duration::from_secs(180);
/// For the last round's checkpoint to be written.
const CHECKPOINT_WAIT_MAX: Duration = Duration::from_secs(120);
/// What people write here, and what the demo trains on by default.
const KINDS: [&str; 4] = ["md", "rs", "toml", "html"];
/// The sample of generated text begins like a function of the repository's source.
const PROMPT: &str = "pub fn ";
const SAMPLE_TOKENS: &str = "240";

/// What a person may ask of the demo.
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// Train on this file or folder of text instead of this repository's own
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// End after so many rounds, whatever the loss
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
    /// Print JSON alone: an object a round, then a summary
    #[arg(long)]
    json: bool,
    /// Don't build the part of the page with which a browser takes part
    #[arg(long)]
    no_web: bool,
    /// Device of each volunteer: auto, cpu, or a number
    #[arg(long, default_value = "auto")]
    gpu: String,
}

/// Runs the demo to its end.
///
/// # Errors
/// It does not build, a process ends early, or no round is committed for minutes.
pub(crate) fn demo(asked: &Demo) -> anyhow::Result<()> {
    let say = Say { json: asked.json };
    say.line("building the host and the volunteer (minutes at first, seconds later)");
    programs()?;
    let arguments = match page(asked, &say) {
        Ok(arguments) => arguments,
        Err(error) => {
            say.line(&format!(
                "the page will not be able to lend this browser: {error:#}"
            ));
            vec![]
        }
    };

    let own_text = tempfile::Builder::new().prefix("shoal-text-").tempdir()?;
    let (data, trained_on) = match &asked.data {
        Some(path) => (path.clone(), path.display().to_string()),
        None => {
            let files = copy_own_text(own_text.path())?;
            (
                own_text.path().to_owned(),
                format!("the {files} documents and sources of this repository"),
            )
        }
    };
    let port = free_port()?;
    if port != PORT {
        say.line(&format!("port {PORT} is taken: using {port}"));
    }
    let config = "[run]\nname = \"demo\"\npreset = \"tiny\"\n\n\
                  [schedule]\nseats_min = 3\neval_rounds = 1\ncheckpoint_minutes = 0.25\n";
    let options = HostOptions {
        config: config.to_owned(),
        data,
        port,
        arguments,
    };
    let mut host = Host::start(options)?;
    say.line(&format!(
        "training on {trained_on}; open http://localhost:{port} to watch, and to take part with a browser"
    ));
    let mut volunteers = Vec::new();
    for name in VOLUNTEERS {
        volunteers.push(host.volunteer(name, &["--gpu", &asked.gpu])?);
    }

    let rounds = follow(asked, &say, &mut host, &mut volunteers)?;
    let last = rounds.last().context("no round was committed")?;
    let checkpoint = wait_for_checkpoint(&mut host, last.round)?;
    let sample = sample(&host, checkpoint)?;
    let summary = Summary::of(&trained_on, &rounds, &host.api()?);
    say.summary(&summary, &sample);
    Ok(())
}

/// Builds what makes the page take part. Gives the host's arguments for it.
fn page(asked: &Demo, say: &Say) -> anyhow::Result<Vec<String>> {
    if asked.no_web {
        return Ok(vec![]);
    }
    say.line("building the page (--no-web leaves it out)");
    setup::target()?;
    web(For::Tests)?;
    Ok(vec![
        "--www".to_owned(),
        paths::www()?.display().to_string(),
    ])
}

/// One committed round, as the host tells it.
#[derive(Clone, Debug)]
struct Round {
    round: u64,
    loss: f64,
    validation_loss: Option<f64>,
    /// Since the run began.
    samples: u64,
    seconds: f64,
}

impl Round {
    fn of(row: &Value) -> Option<Self> {
        Some(Self {
            round: row["round"].as_u64()?,
            loss: row["loss"].as_f64()?,
            validation_loss: row["validation_loss"].as_f64(),
            samples: row["samples"].as_u64()?,
            seconds: row["seconds"].as_f64().unwrap_or(0.0),
        })
    }
}

/// Shows each round as it is committed, until it is enough.
fn follow(
    asked: &Demo,
    say: &Say,
    host: &mut Host,
    volunteers: &mut [Program],
) -> anyhow::Result<Vec<Round>> {
    let begun = Instant::now();
    let mut seen: Vec<Round> = Vec::new();
    loop {
        let shown = seen.len();
        let what = format!("commit of round {}", shown + 1);
        let run = host.wait_until(&what, ROUND_WAIT_MAX, |run| {
            rounds_of(run).len() > shown || volunteers.iter_mut().any(has_ended)
        });
        let run = run.with_context(|| whys(volunteers))?;
        if volunteers.iter_mut().any(has_ended) {
            bail!("a volunteer ended before the run did\n{}", whys(volunteers));
        }
        for row in rounds_of(&run).drain(shown..) {
            say.round(&row, &run, begun.elapsed());
            seen.push(row);
        }
        let validation_loss = seen.iter().rev().find_map(|row| row.validation_loss);
        let enough = match asked.rounds {
            Some(rounds) => seen.len() as u64 >= rounds,
            None => validation_loss.is_some_and(|loss| loss < LOSS_ENOUGH),
        };
        if enough || begun.elapsed() > TIME_MAX {
            return Ok(seen);
        }
    }
}

fn has_ended(volunteer: &mut Program) -> bool {
    // Where the system does not tell, waiting for the next round will.
    volunteer.has_ended().unwrap_or(false)
}

/// The rounds that are done: evaluated, or followed by another one.
fn rounds_of(run: &Value) -> Vec<Round> {
    let mut rounds: Vec<Round> = run["rounds"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Round::of)
        .collect();
    // The evaluation comes a moment after the commit.
    if rounds
        .last()
        .is_some_and(|last| last.validation_loss.is_none())
    {
        rounds.pop();
    }
    rounds
}

/// What the volunteers said last, for a run that does not go on.
fn whys(volunteers: &mut [Program]) -> String {
    let listened = |one: &mut Program| {
        while one.next_event(Instant::now()).is_some() {}
        one.said()
    };
    volunteers
        .iter_mut()
        .map(listened)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Waits until the store holds a checkpoint, of `round` if it comes in time. Gives its round.
fn wait_for_checkpoint(host: &mut Host, round: u64) -> anyhow::Result<u64> {
    let written = |run: &Value| run["checkpoint_round"].as_u64();
    let newest = host.wait_until("checkpoint", CHECKPOINT_WAIT_MAX, |run| {
        written(run).is_some_and(|done| done >= round)
    });
    let run = newest.or_else(|_| host.api())?;
    written(&run).context("no checkpoint was written")
}

/// Exports the newest checkpoint, and lets it write.
fn sample(host: &Host, checkpoint: u64) -> anyhow::Result<String> {
    let folder = host.folder().join(format!("export-{checkpoint}"));
    let shoal = paths::program("shoal")?;
    output(
        Command::new(&shoal)
            .args(["export", host.url(), "-o"])
            .arg(folder.join("model.safetensors")),
    )?;
    let arguments = ["--prompt", PROMPT, "--tokens", SAMPLE_TOKENS, "--seed", "1"];
    output(
        Command::new(&shoal)
            .arg("generate")
            .arg(&folder)
            .args(arguments),
    )
}

/// What a program prints.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} did not start"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {errors}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What came of it.
#[derive(Clone, Debug)]
struct Summary {
    trained_on: String,
    rounds: u64,
    samples: u64,
    seconds: f64,
    loss_first: f64,
    loss_last: f64,
    validation_loss: Option<f64>,
    wire_bytes_per_token: f64,
    dense_f16_bytes_per_token: f64,
}

impl Summary {
    fn of(trained_on: &str, rounds: &[Round], run: &Value) -> Self {
        let figure = |name: &str| run[name].as_f64().unwrap_or(f64::NAN);
        let edge = |row: Option<&Round>| row.map_or(f64::NAN, |row| row.loss);
        Self {
            trained_on: trained_on.to_owned(),
            rounds: rounds.len() as u64,
            samples: rounds.last().map_or(0, |row| row.samples),
            seconds: rounds.iter().map(|row| row.seconds).sum(),
            loss_first: edge(rounds.first()),
            loss_last: edge(rounds.last()),
            validation_loss: rounds.iter().rev().find_map(|row| row.validation_loss),
            wire_bytes_per_token: figure("wire_bytes_per_token"),
            dense_f16_bytes_per_token: figure("dense_f16_bytes_per_token"),
        }
    }
}

/// To whom the demo speaks.
struct Say {
    json: bool,
}

impl Say {
    /// Something that a person wants to know on the way.
    fn line(&self, text: &str) {
        if self.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }

    fn round(&self, row: &Round, run: &Value, elapsed: Duration) {
        if self.json {
            let line = json!({
                "round": row.round,
                "loss": row.loss,
                "validation_loss": row.validation_loss,
                "samples": row.samples,
                "seconds": row.seconds,
                "wire_bytes_per_token": run["wire_bytes_per_token"],
            });
            println!("{line}");
            return;
        }
        let validation = row
            .validation_loss
            .map_or("-".to_owned(), |loss| format!("{loss:.3}"));
        println!(
            "round {:>3}  loss {:.3}  validation {validation}  {:>6} samples  {:.1} s  {} elapsed",
            row.round,
            row.loss,
            row.samples,
            row.seconds,
            minutes(elapsed),
        );
    }

    fn summary(&self, summary: &Summary, sample: &str) {
        if self.json {
            let line = json!({
                "trained_on": summary.trained_on,
                "rounds": summary.rounds,
                "samples": summary.samples,
                "volunteers": VOLUNTEERS.len(),
                "loss_first": summary.loss_first,
                "loss_last": summary.loss_last,
                "validation_loss": summary.validation_loss,
                "wire_bytes_per_token": summary.wire_bytes_per_token,
                "dense_f16_bytes_per_token": summary.dense_f16_bytes_per_token,
                "sample": sample,
            });
            println!("{line}");
            return;
        }
        println!();
        println!(
            "{} volunteers trained `tiny` together on {}: {} rounds, {} samples, {}.",
            VOLUNTEERS.len(),
            summary.trained_on,
            summary.rounds,
            summary.samples,
            minutes(Duration::from_secs_f64(summary.seconds)),
        );
        let validation = summary.validation_loss.map_or(String::new(), |loss| {
            format!("; {loss:.3} on held-out text")
        });
        println!(
            "loss       {:.3} at first, {:.3} at last{validation}",
            summary.loss_first, summary.loss_last
        );
        println!(
            "the wire   {:.0} bytes a token; dense f16 would be {:.0}",
            summary.wire_bytes_per_token, summary.dense_f16_bytes_per_token,
        );
        println!("it writes  {}", sample.trim_end());
    }
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02} min", seconds / 60, seconds % 60)
}

/// Copies what people write in this repository. Gives how many files that is.
pub(crate) fn copy_own_text(folder: &Path) -> anyhow::Result<usize> {
    let files: Vec<String> = match output(
        Command::new("git")
            .args(["ls-files"])
            .current_dir(paths::repository()),
    ) {
        Ok(listed) => listed.lines().map(str::to_owned).collect(),
        // Not a clone: an unpacked archive, say.
        Err(_) => paths::sources().into_iter().map(|(path, _)| path).collect(),
    };
    let is_text = |path: &&String| KINDS.iter().any(|kind| path.ends_with(&format!(".{kind}")));
    let mut copied = 0;
    for path in files.iter().filter(is_text) {
        let from = paths::repository().join(path);
        if !from.is_file() {
            // Listed, but deleted and not yet committed.
            continue;
        }
        let to = folder.join(path);
        std::fs::create_dir_all(to.parent().unwrap_or(folder))?;
        std::fs::copy(&from, &to).with_context(|| from.display().to_string())?;
        copied += 1;
    }
    Ok(copied)
}

/// The first free port from [`PORT`] on.
fn free_port() -> anyhow::Result<u16> {
    (PORT..PORT + PORTS_MAX)
        .find(|port| TcpListener::bind(("0.0.0.0", *port)).is_ok())
        .with_context(|| format!("no port from {PORT} to {} is free", PORT + PORTS_MAX - 1))
}
