//! Tokens a second of `shoal generate`, with and without the memory of what was read.
//!
//! A model of one round of `tiny` is exported as a person would do it, and writes the same text both ways, in
//! turns. The time of starting and loading is measured by itself and taken off.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ::tests::paths;
use anyhow::ensure;
use serde_json::json;

use super::cost::median;
use super::{Figures, ROUND_STEPS, ROUND_WAIT_MAX, Trial, load, save};
use crate::demo::output;

/// Three times the context: beyond it, the window moves.
const TOKENS: usize = 384;

/// Measures in turns; the file is written at the end.
pub(super) fn generate(asked: &Figures, data: &Path) -> anyhow::Result<()> {
    let trial = Trial {
        codec: "subspace",
        rank: Some(16),
        format: "int8",
        volunteers: 1,
        rounds: 1,
        round_steps: ROUND_STEPS,
        eval_rounds: 0,
    };
    let (mut host, volunteers) = trial.begin(data)?;
    host.wait_until("the run's end", 2 * ROUND_WAIT_MAX, |run| {
        run["state"] == "over"
    })?;
    let folder = host.folder().join("export");
    let mut export = Command::new(paths::program("shoal")?);
    output(
        export
            .args(["export", host.url(), "-o"])
            .arg(folder.join("model.safetensors")),
    )?;
    drop(volunteers);
    let (mut once, mut afresh) = (Vec::new(), Vec::new());
    let load_before = load();
    for _ in 0..asked.repeats() {
        let start = write(&folder, 1, false)?.1;
        let (text, cached) = write(&folder, TOKENS, false)?;
        let (same, uncached) = write(&folder, TOKENS, true)?;
        ensure!(
            text == same,
            "the two ways wrote different texts:\n{text}\n{same}"
        );
        let speed =
            |taken: Duration| (TOKENS - 1) as f64 / taken.saturating_sub(start).as_secs_f64();
        println!(
            "{:.0} tokens/s, {:.0} without memory",
            speed(cached),
            speed(uncached)
        );
        once.push(speed(cached));
        afresh.push(speed(uncached));
    }
    let ratios = once.iter().zip(&afresh).map(|(once, afresh)| once / afresh);
    let figures = json!({
        "preset": "tiny",
        "tokens": TOKENS,
        "repeats": asked.repeats(),
        "load_before": load_before,
        "tokens_per_second": once,
        "tokens_per_second_without_memory": afresh,
        "median_ratio": median(ratios.collect()),
    });
    save("generate", &figures)
}

/// What the model in `folder` writes, and how long the program took.
fn write(folder: &Path, tokens: usize, afresh: bool) -> anyhow::Result<(String, Duration)> {
    let mut command = Command::new(paths::program("shoal")?);
    command.arg("generate").arg(folder);
    command.args(["--gpu", "cpu", "--seed", "1", "--prompt", "pub fn "]);
    command.args(["--tokens", &tokens.to_string()]);
    if afresh {
        command.arg("--no-cache");
    }
    let began = Instant::now();
    let text = output(&mut command)?;
    Ok((text, began.elapsed()))
}
