//! Building: everything native in one set of features. The web client is `web`'s.
//!
//! All native steps name the same packages and features, so that no dependency is compiled twice.

use std::process::Command;

use anyhow::{Context, bail};
use tests::paths;

use crate::steps::{Count, Ledger};

/// What every native step of the tests builds.
pub(crate) const EVERYTHING: [&str; 2] = ["--workspace", "--all-features"];

/// Whether this program is built as people get the others; then it builds those so, too.
pub(crate) const IS_RELEASE: bool = !cfg!(debug_assertions);

/// Cargo, as the one that runs this program, in the repository's root.
///
/// Without what that one tells this program of its package: where a build script reads such a variable (ring's does), all
/// that depends on it would be compiled anew each time that cargo is started here after a person has started it, or before.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(paths::repository()).args(arguments);
    let is_of_a_package = |name: &str| {
        let kinds = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        kinds.iter().any(|kind| name.starts_with(kind))
    };
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in names.filter(|name| is_of_a_package(name)) {
        command.env_remove(name);
    }
    command
}

/// Builds all programs, examples and tests natively.
pub(crate) fn native(ledger: &mut Ledger) -> bool {
    let targets = ["--lib", "--bins", "--examples", "--tests"];
    ledger.run(
        "build",
        Count::One,
        cargo(&["build"]).args(EVERYTHING).args(targets),
    )
}

/// Builds the programs of a run and those that build the page: with the features that the tests build, so that
/// neither waits twice.
///
/// # Errors
/// It does not build; cargo's own output says why.
pub(crate) fn programs() -> anyhow::Result<()> {
    programs_and(&[])
}

/// The same, and other targets: `--example`, name.
///
/// # Errors
/// As [`programs`].
pub(crate) fn programs_and(others: &[&str]) -> anyhow::Result<()> {
    let mut command = cargo(&["build", "--quiet"]);
    command.args(EVERYTHING);
    // The page's programs are of the tests' profile.
    let programs: &[&str] = if IS_RELEASE {
        command.arg("--release");
        &["shoal-host", "shoal"]
    } else {
        &["shoal-host", "shoal", "bindgen", "pack"]
    };
    for program in programs {
        command.args(["--bin", program]);
    }
    run(command.args(others))
}

/// Runs the same command with this program in cargo's release profile.
///
/// # Errors
/// As [`run`].
pub(crate) fn again_in_release() -> anyhow::Result<()> {
    let xtask = ["run", "--release", "--package", "tests", "--bin", "xtask"];
    run(cargo(&xtask).arg("--").args(std::env::args_os().skip(1)))
}

/// Runs a program to its end.
///
/// # Errors
/// It could not be started, or it failed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{command:?} did not start"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
