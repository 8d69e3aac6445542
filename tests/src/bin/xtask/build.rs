//! Building: everything native in one set of features, and the web client.
//!
//! All native steps name the same packages and features, so that no dependency is compiled twice.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use tests::paths;

use crate::steps::{Count, Ledger};

/// What every native step of the tests builds.
pub(crate) const EVERYTHING: [&str; 2] = ["--workspace", "--all-features"];

/// Cargo, as the one that runs this program, in the repository's root.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(paths::repository()).args(arguments);
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

/// Builds the programs of a run: with the features that the tests build, so that neither waits twice.
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
    let programs = ["--bin", "shoal-host", "--bin", "shoal"];
    let mut command = cargo(&["build", "--quiet"]);
    run(command.args(EVERYTHING).args(programs).args(others))
}

/// Builds the web client into `www/pkg`. The `bindgen` program must be built already.
///
/// # Errors
/// A step failed; its own output says why.
pub(crate) fn web() -> anyhow::Result<()> {
    let target = "wasm32-unknown-unknown";
    run(&mut cargo(&[
        "build",
        "-p",
        "client-web",
        "--lib",
        "--target",
        target,
    ]))?;
    // The target folder is the parent of the one that native programs lie in.
    let programs = paths::programs()?;
    let built = programs
        .parent()
        .context("programs lie in the target folder")?;
    let module = built.join(target).join("debug").join("client_web.wasm");
    let folder = paths::repository().join("www").join("pkg");
    run(Command::new(paths::program("bindgen")?)
        .arg(&module)
        .arg(&folder))?;
    println!("{}", described(&folder.join("client_web_bg.wasm"))?);
    Ok(())
}

/// Builds the `bindgen` program alone, for `cargo xtask web`.
///
/// # Errors
/// It does not compile.
pub(crate) fn bindgen() -> anyhow::Result<()> {
    run(&mut cargo(&[
        "build",
        "-p",
        "tests",
        "--features",
        "bindgen",
        "--bin",
        "bindgen",
    ]))
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

fn described(file: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::metadata(file)
        .with_context(|| file.display().to_string())?
        .len();
    Ok(format!("{}: {:.1} MB", file.display(), bytes as f64 / 1e6))
}
