//! `cargo xtask figures NAME`: measures, and writes `tests/figures/NAME.json`.
//!
//! Whatever the README says in numbers comes from such a file, and anyone can write it again. Owns
//! what the runs of all figures have in common; beside the figures stand the machine, the versions and
//! the date. Which runs are made and what is taken from them say [`wire`], [`cost`], [`frontier`],
//! [`generate`], [`browser`], [`outer`], [`overlap`], [`packing`], [`recovery`], [`scaling`], [`slow_link`] and
//! [`time_to_loss`].
//! Begin with [`figures`].

mod browser;
mod cost;
mod frontier;
mod generate;
mod outer;
mod overlap;
mod packing;
mod pipe;
mod recovery;
mod scaling;
mod slow_link;
mod time_to_loss;
mod wire;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tests::paths;
use tests::process::Program;
use tests::run::{Host, HostOptions};

use crate::build::{IS_RELEASE, again_in_release, programs_and};

/// For one round of `tiny`, whatever else the machine does.
const ROUND_WAIT_MAX: Duration = Duration::from_secs(300);
/// Names of volunteers, as many as are needed.
const NAMES: [&str; 4] = ["anchovy", "herring", "sardine", "sprat"];

/// Sizes of `tiny` that the figures compute with; the configuration says them again, so that both agree.
const CONTEXT: u64 = 128;
const BATCH: u64 = 32;
const MICROBATCHES: u64 = 8;
const ROUND_STEPS: u64 = 20;
/// Sequences a microbatch.
const SEQUENCES: u64 = BATCH / MICROBATCHES;
/// Highest learning rate: the same for every codec and rank.
const LEARNING_RATE: f64 = 2e-3;

/// Which figures, and how long to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Figures {
    /// What to measure
    name: Name,
    /// Text to train on, instead of this repository's own
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Rounds of each run
    #[arg(long, default_value_t = 8)]
    rounds: u64,
    /// Rounds over which the learning rate falls, if more than are run (`wire`)
    #[arg(long, value_name = "ROUNDS")]
    length: Option<u64>,
    /// How often each run or fault is repeated, interleaved with the others (3; `recovery`: 20)
    #[arg(long, value_name = "TIMES")]
    repeats: Option<usize>,
    /// Keep the runs that an interrupted command has measured already (`wire`, `frontier`, `time_to_loss`)
    #[arg(long)]
    resume: bool,
    /// Few steps or seconds, to see that it works; nothing is written (`scaling`, `overlap`, `frontier`, `slow_link`,
    /// `time_to_loss`)
    #[arg(long)]
    quick: bool,
    /// Runs at once, instead of one a core (`frontier`)
    #[arg(long, value_name = "RUNS")]
    jobs: Option<usize>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Name {
    /// Validation loss against bytes a token: codecs, ranks, number formats
    Frontier,
    /// Bytes a token and validation loss, by codec and rank, over the network
    Wire,
    /// Speed by number of volunteers, time to join, memory
    Cost,
    /// Speed of writing text
    Generate,
    /// A tab beside a headless volunteer: speed, time to join, sizes
    Browser,
    /// Loss and bytes of pipelines that merge, beside one alone
    Outer,
    /// What the loss of a volunteer costs, by what happened to it
    Recovery,
    /// Speed by number of pipelines, with devices that only wait
    Scaling,
    /// Speed of up to a thousand pipelines, in the simulation
    Crowd,
    /// How busy seats over slow links are, with devices that only wait (root)
    Overlap,
    /// Speed of packing borders
    Packing,
    /// How long a run takes to a fixed loss over slow links, by codec (root; after `frontier`)
    #[value(name = "time_to_loss")]
    TimeToLoss,
    /// What a slow link carries between native clients and browsers, and how soon
    #[value(name = "slow_link")]
    SlowLink,
}

impl Name {
    /// How often a run or fault is repeated where nobody says.
    const fn repeats(self) -> usize {
        match self {
            Self::Outer | Self::Crowd | Self::Packing | Self::Frontier | Self::TimeToLoss => 1,
            Self::Wire
            | Self::Cost
            | Self::Generate
            | Self::Browser
            | Self::Scaling
            | Self::Overlap
            | Self::SlowLink => 3,
            Self::Recovery => 20,
        }
    }
}

impl Figures {
    fn repeats(&self) -> usize {
        self.repeats.unwrap_or(self.name.repeats())
    }

    /// Whether what is measured is built as people get it: where the transport's own work counts. Short forms are not.
    fn is_of_a_release(&self) -> bool {
        let is_over_links = matches!(self.name, Name::Overlap | Name::SlowLink | Name::TimeToLoss);
        matches!(self.name, Name::Browser) || is_over_links && !self.quick
    }

    /// Writes the file, unless this was only to see that it works.
    fn keep(&self, name: &str, figures: &Value) -> anyhow::Result<()> {
        if self.quick {
            println!("{name} works; nothing is written");
            return Ok(());
        }
        save(name, figures)
    }
}

/// Measures and writes the file.
///
/// # Errors
/// A run does not go on, a count differs from its formula, or the file cannot be written.
pub(crate) fn figures(asked: &Figures) -> anyhow::Result<()> {
    if asked.is_of_a_release() && !IS_RELEASE {
        return again_in_release();
    }
    match asked.name {
        Name::Browser => browser::programs()?,
        Name::Frontier
        | Name::Wire
        | Name::Cost
        | Name::Generate
        | Name::Outer
        | Name::Recovery
        | Name::Overlap
        | Name::TimeToLoss => programs_and(&["--example", "alone"])?,
        Name::Scaling | Name::Crowd => programs_and(&["--example", "scaling"])?,
        Name::SlowLink => programs_and(&["--example", "bulk"])?,
        // Builds what it needs, optimised.
        Name::Packing => {}
    }
    let own_text = tempfile::Builder::new().prefix("shoal-text-").tempdir()?;
    let data = match &asked.data {
        Some(path) => path.clone(),
        None => {
            crate::demo::copy_own_text(own_text.path())?;
            own_text.path().to_owned()
        }
    };
    match asked.name {
        Name::Frontier => frontier::frontier(asked, &data),
        Name::Wire => wire::wire(asked, &data),
        Name::Cost => cost::cost(asked, &data),
        Name::Generate => generate::generate(asked, &data),
        Name::Browser => browser::browser(asked, &data),
        Name::Outer => outer::outer(asked, &data),
        Name::Recovery => recovery::recovery(asked),
        Name::Scaling => scaling::scaling(asked, &data),
        Name::Crowd => scaling::crowd(asked),
        Name::Overlap => overlap::overlap(asked, &data),
        Name::Packing => packing::packing(),
        Name::SlowLink => slow_link::slow_link(asked),
        Name::TimeToLoss => time_to_loss::time_to_loss(asked, &data),
    }
}

/// `tests/figures/NAME.json`.
fn file(name: &str) -> PathBuf {
    let folder = paths::repository().join("tests").join("figures");
    folder.join(format!("{name}.json"))
}

/// What was written there before, if anything.
fn saved(name: &str) -> anyhow::Result<Option<Value>> {
    let file = file(name);
    if !file.exists() {
        return Ok(None);
    }
    let written = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let mut document: Value = serde_json::from_str(&written)?;
    Ok(Some(document["figures"].take()))
}

/// Writes it.
pub(crate) fn save(name: &str, figures: &Value) -> anyhow::Result<()> {
    let file = file(name);
    std::fs::create_dir_all(file.parent().context("the file lies in a folder")?)?;
    let document = json!({ "made_by": made_by()?, "figures": figures });
    std::fs::write(&file, format!("{document:#}\n"))?;
    println!("written to tests/figures/{name}.json");
    Ok(())
}

/// A run to measure.
#[derive(Clone, Copy, Debug)]
struct Trial {
    codec: &'static str,
    rank: Option<u64>,
    format: &'static str,
    volunteers: usize,
    /// Length of the run, in rounds of [`ROUND_STEPS`].
    rounds: u64,
    /// Steps between two commits.
    round_steps: u64,
    /// Rounds between evaluations; 0 for none.
    eval_rounds: u64,
}

impl Trial {
    fn config(&self) -> String {
        let Self {
            codec,
            format,
            volunteers,
            round_steps,
            eval_rounds,
            ..
        } = self;
        let rank = self
            .rank
            .map_or(String::new(), |rank| format!("rank = {rank}\n"));
        let samples = self.rounds * ROUND_STEPS * BATCH;
        format!(
            "[run]\nname = \"figures\"\npreset = \"tiny\"\n\n\
             [model]\ncontext = {CONTEXT}\ncodec = \"{codec}\"\n{rank}\n\
             [wire]\nformat = \"{format}\"\n\n\
             [training]\nbatch = {BATCH}\nmicrobatches = {MICROBATCHES}\n\
             learning_rate = {LEARNING_RATE:e}\nsamples = {samples}\n\n\
             [schedule]\nround_steps = {round_steps}\nseats_min = {volunteers}\n\
             eval_rounds = {eval_rounds}\neval_microbatches = {}\n",
            wire::EVAL_MICROBATCHES
        )
    }

    /// Starts the host, then the volunteers.
    fn begin(&self, data: &Path) -> anyhow::Result<(Host, Vec<Program>)> {
        let host = self.host(data)?;
        let names = &NAMES[..self.volunteers];
        let started: anyhow::Result<Vec<_>> =
            names.iter().map(|name| host.volunteer(name, &[])).collect();
        Ok((host, started?))
    }

    /// Starts the host alone.
    fn host(&self, data: &Path) -> anyhow::Result<Host> {
        Host::start(HostOptions {
            config: self.config(),
            data: data.to_owned(),
            port: 0,
            arguments: vec![],
        })
    }
}

/// Lets the host of such a run make tokens of the text, and keeps them in `folder`; gives what the host calls them by.
fn save_tokens(config: String, data: &Path, folder: &Path) -> anyhow::Result<String> {
    let host = Host::start(HostOptions {
        config,
        data: data.to_owned(),
        port: 0,
        arguments: vec![],
    })?;
    let made = host.folder().join("store").join("data");
    std::fs::create_dir_all(folder)?;
    let mut name = String::new();
    for entry in std::fs::read_dir(&made).with_context(|| made.display().to_string())? {
        let made = entry?.path();
        name = made
            .file_name()
            .context("a folder")?
            .to_string_lossy()
            .into_owned();
        for name in ["train.bin", "validation.bin"] {
            let tokens = made.join(name);
            std::fs::copy(&tokens, folder.join(name))
                .with_context(|| tokens.display().to_string())?;
        }
    }
    Ok(name)
}

/// The mean of a list of numbers.
fn mean(list: &Value) -> anyhow::Result<f64> {
    let values: Option<Vec<f64>> = list
        .as_array()
        .into_iter()
        .flatten()
        .map(Value::as_f64)
        .collect();
    let values = values.filter(|values| !values.is_empty());
    let values = values.with_context(|| format!("no numbers: {list}"))?;
    Ok(values.iter().sum::<f64>() / values.len() as f64)
}

/// Processes that wanted a core, a mean over the last minute: what else the machine did.
fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
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
        "profile": if IS_RELEASE { "release" } else { "dev" },
        "rustc": said("rustc", &["--version"])?,
        "cpu": cpu.map_or("unknown", |(_, name)| name),
        "cores": cores,
    }))
}
