//! `cargo xtask e2e`: tabs of real headless Chromium and Firefox in runs with headless volunteers, and what the page shows.
//!
//! Builds with the features of all tests, so that nothing is compiled twice. The tests themselves are
//! those that `cargo xtask test` runs, too; here they run alone, and with `--all` over every device.

use crate::build::{EVERYTHING, cargo, native};
use crate::setup;
use crate::steps::{Count, Ledger};
use crate::web::{For, web};

/// The tests, by file.
const TESTS: [&str; 9] = [
    "browser",
    "tab",
    "e2e_firefox",
    "e2e_return",
    "e2e_lend",
    "e2e_look",
    "e2e_reach",
    "e2e_gpu",
    "e2e_write",
];

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct EndToEnd {
    /// Every topology on WebGPU (computed by SwiftShader), too
    #[arg(long)]
    all: bool,
}

/// Runs them.
pub(crate) fn e2e(asked: &EndToEnd) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.call("setup", setup::setup);
    native(&mut ledger);
    ledger.call("web client", || web(For::Tests));
    let mut tests = cargo(&["test", "--no-fail-fast"]);
    tests.args(EVERYTHING);
    for name in TESTS {
        tests.args(["--test", name]);
    }
    if asked.all {
        tests.env("SHOAL_E2E_ALL", "1");
    }
    ledger.run("end to end", Count::Tests, &mut tests);
    ledger
}
