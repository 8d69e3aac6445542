//! What must hold after any fault: rounds go on, the journal tells a true story, the loss is as good.
//!
//! The loss is held against that of a run to which nothing happens, with as many samples: one such run for all
//! tests of a program. Begin with [`recovered`].

use std::sync::OnceLock;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::community::{Community, Small, losses};

/// Rounds that a run has at least when its loss is compared.
pub const ROUNDS: u64 = 8;
/// Rounds that the run has to which nothing happens: a few more than any other run here.
const ROUNDS_UNDISTURBED: u64 = ROUNDS + 12;
/// The loss after a fault is that of an undisturbed run, within this share.
pub const LOSS_SHARE_MAX: f64 = 0.02;
/// The same where nothing is lost, and only who computes differs.
pub const SAME_LOSS_SHARE_MAX: f64 = 1e-3;

/// Losses of a run to which nothing happens, by samples.
///
/// # Errors
/// It does not go on.
pub fn undisturbed() -> anyhow::Result<&'static [(u64, f64)]> {
    static LOSSES: OnceLock<Result<Vec<(u64, f64)>, String>> = OnceLock::new();
    let found = LOSSES.get_or_init(|| {
        let train = || {
            let names = ["anchovy", "herring", "sardine"];
            let mut community = Community::gather(&Small::default(), &names)?;
            losses(&community.reach(ROUNDS_UNDISTURBED)?)
        };
        train().map_err(|error| format!("the undisturbed run: {error:#}"))
    });
    found.as_deref().map_err(|text| anyhow::anyhow!("{text}"))
}

/// Waits for the last compared round, and holds the run against all of it.
///
/// # Errors
/// What does not hold.
pub fn recovered(community: &mut Community) -> anyhow::Result<()> {
    recovered_within(community, LOSS_SHARE_MAX)
}

/// The same for a run whose loss must be nearer to the undisturbed one.
///
/// # Errors
/// What does not hold.
pub fn recovered_within(community: &mut Community, loss_share_max: f64) -> anyhow::Result<()> {
    let round = community.round()?.max(ROUNDS);
    let run = community.reach(round + 1).context("after the fault")?;
    compare(&run, loss_share_max)?;
    audit(community).map(drop)
}

/// Holds the run's last loss against that of an undisturbed run with as many samples.
fn compare(run: &Value, loss_share_max: f64) -> anyhow::Result<()> {
    let both = compared(&losses(run)?, undisturbed()?, 1)?;
    let Compared {
        samples,
        loss,
        undisturbed,
        ..
    } = both;
    ensure!(
        both.share() <= loss_share_max,
        "after {samples} samples the loss is {loss}, undisturbed {undisturbed}"
    );
    Ok(())
}

/// Two losses after as many samples.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Compared {
    /// Samples of both runs.
    pub samples: u64,
    /// Rounds up to there whose mean the losses are.
    pub rounds: usize,
    /// Loss of the run that is judged.
    pub loss: f64,
    /// Loss of the run to which nothing happened.
    pub undisturbed: f64,
}

impl Compared {
    /// By what share of the undisturbed loss they differ.
    #[must_use]
    pub fn share(&self) -> f64 {
        (self.loss - self.undisturbed).abs() / self.undisturbed
    }
}

/// The mean of the last losses, of so many rounds at most, that end at the same samples in both runs.
///
/// # Errors
/// No round ends at the same sample.
pub fn compared(
    found: &[(u64, f64)],
    undisturbed: &[(u64, f64)],
    rounds_max: usize,
) -> anyhow::Result<Compared> {
    let same = found.iter().rev().filter_map(|(samples, loss)| {
        let other = undisturbed.iter().find(|(same, _)| same == samples)?;
        Some((*samples, *loss, other.1))
    });
    let same: Vec<(u64, f64, f64)> = same.take(rounds_max).collect();
    let (samples, ..) = *same.first().context("no round ends at the same sample")?;
    let mean =
        |of: fn(&(u64, f64, f64)) -> f64| same.iter().map(of).sum::<f64>() / same.len() as f64;
    Ok(Compared {
        samples,
        rounds: same.len(),
        loss: mean(|it| it.1),
        undisturbed: mean(|it| it.2),
    })
}

/// Asks the auditor whether the journal tells a true story, and gives what it found.
///
/// # Errors
/// It objects.
pub fn audit(community: &Community) -> anyhow::Result<Value> {
    // Asked before the journal is read: samples that are open no longer then do no harm.
    let run = community.host.api()?;
    let output = community
        .host
        .auditor()?
        .args(["--lowest-open", &run["lowest_open_sample"].to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "the auditor objects: {said}{errors}"
    );
    serde_json::from_str(&said).context("the auditor says what it found as JSON")
}
