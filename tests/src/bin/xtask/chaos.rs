//! `cargo xtask chaos`: a community to which something happens every few seconds, and whether its run comes through.
//!
//! Builds what takes part, lets [`tests::chaos`] do the rest, and prints its report. Ends with exit code 1 if a rule is broken.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use tests::chaos::{Asked, NAMES, run};

use crate::build::programs_and;
use crate::figures;
use crate::setup;
use crate::web::{For, web};

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Chaos {
    /// How long
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// What faults and the run follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Headless volunteers
    #[arg(long, default_value_t = 6)]
    natives: usize,
    /// Tabs of headless Chromium
    #[arg(long, default_value_t = 2)]
    tabs: usize,
    /// Pipelines at most
    #[arg(long, default_value_t = 1)]
    pipelines: u16,
    /// Seconds between two faults
    #[arg(long, default_value_t = 20)]
    every: u64,
    /// Keep what everybody said in this folder
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Write tests/figures/chaos.json
    #[arg(long)]
    write: bool,
}

/// Lets it happen.
///
/// # Errors
/// It does not build, a process does not start, or everything stands still.
pub(crate) fn chaos(asked: &Chaos) -> anyhow::Result<()> {
    let names = NAMES.len();
    ensure!(
        (1..=names).contains(&asked.natives),
        "--natives is from 1 to {names}"
    );
    let time = Duration::try_from_secs_f64(asked.minutes * 60.0)?;
    ensure!(asked.every >= 3, "--every is 3 seconds at least");
    programs_and(&["--bin", "auditor"])?;
    if asked.tabs > 0 {
        setup::target()?;
        web(For::Tests)?;
    }
    let report = run(
        &Asked {
            seed: asked.seed,
            time,
            every: Duration::from_secs(asked.every),
            natives: asked.natives,
            tabs: asked.tabs,
            pipelines: asked.pipelines,
            compared_samples: None,
            logs: asked.logs.clone(),
        },
        &mut |line| println!("{line}"),
    )?;
    println!("{:#}", json!(report));
    if asked.write {
        figures::save("chaos", &json!(report))?;
    }
    if !report.is_sound() {
        // What is broken stands in the report.
        std::process::exit(1);
    }
    Ok(())
}
