//! `cargo xtask test` and `cargo xtask ci`: every check, in the order that reuses most.
//!
//! A step that fails does not keep the next from running: one run shows everything. The programs
//! that `golden` and `sim` are come out of the same build as the tests.

use std::path::PathBuf;
use std::process::Command;

use crate::build::{self, EVERYTHING, cargo, native};
use crate::setup;
use crate::steps::{Count, Ledger};
use crate::web::{For, web};
use tests::{namespace, paths};

/// Seeds that the simulation runs over in `ci`.
const SIM_SEEDS: &str = "1000";
/// The cargo-deny that is installed where there is none.
const DENY: &str = "^0.20";
/// Figures whose short form belongs to `ci`, and whether they need root.
const QUICK_FIGURES: [(&str, bool); 5] = [
    ("frontier", false),
    ("scaling", false),
    ("overlap", true),
    ("slow_link", true),
    ("time_to_loss", true),
];

/// All tests. Returns what they amount to so far.
pub(crate) fn test() -> Ledger {
    let mut ledger = Ledger::default();
    ledger.call("setup", setup::setup);
    native(&mut ledger);
    ledger.call("web client", || web(For::Tests));
    ledger.run(
        "tests",
        Count::Tests,
        cargo(&["test", "--no-fail-fast"]).args(EVERYTHING),
    );
    ledger
}

/// All tests, and everything else that a change must satisfy.
pub(crate) fn ci() -> Ledger {
    let mut ledger = test();
    example(&mut ledger, "golden", &[]);
    example(&mut ledger, "sim", &["--seeds", SIM_SEEDS]);
    ledger.run(
        "format",
        Count::One,
        &mut cargo(&["fmt", "--all", "--check"]),
    );
    let strict = ["--", "-D", "warnings"];
    ledger.run(
        "clippy",
        Count::One,
        cargo(&["clippy", "--all-targets"])
            .args(EVERYTHING)
            .args(strict),
    );
    // Both modules at once: what the tests' profile has compiled for them is not compiled again.
    let browser = [
        "clippy",
        "-p",
        "client-web",
        "-p",
        "shared",
        "--bins",
        "--lib",
    ];
    ledger.run(
        "clippy for browsers",
        Count::One,
        cargo(&browser)
            .args(["--target", "wasm32-unknown-unknown", "--profile", "web"])
            .args(["--features", "client-web/page,client-web/worker"])
            .args(strict),
    );
    ledger.run(
        "documentation",
        Count::One,
        cargo(&["doc", "--no-deps"])
            .args(EVERYTHING)
            .env("RUSTDOCFLAGS", "-D warnings"),
    );
    quick_figures(&mut ledger);
    deny(&mut ledger);
    ledger
}

/// Runs an example of `shared` that the build has left.
fn example(ledger: &mut Ledger, name: &str, arguments: &[&str]) {
    ledger.call(name, || {
        let program = paths::program(&format!("examples/{name}"))?;
        build::run(
            Command::new(program)
                .args(arguments)
                .current_dir(paths::repository()),
        )
    });
}

/// That figures can be measured: a little of each, by a process of its own, since some enter network namespaces.
fn quick_figures(ledger: &mut Ledger) {
    for (name, needs_root) in QUICK_FIGURES {
        if needs_root && !namespace::can_be_made() {
            println!("\n=== figures {name}: left out, it needs root");
            continue;
        }
        ledger.call(&format!("figures {name}"), || {
            let short = ["--quick", "--repeats", "1", "--rounds", "2"];
            // This program's own file may have been built anew since it was started.
            let mut command = Command::new(paths::program("xtask")?);
            command.args(["figures", name]).args(short);
            build::run(command.current_dir(paths::repository()))
        });
    }
}

/// Licences, sources and bans of all dependencies.
fn deny(ledger: &mut Ledger) {
    ledger.call("dependencies", || {
        let tools = paths::programs()?.join("tools");
        let own = tools.join("bin").join("cargo-deny");
        let installed = |mut command: Command| {
            command
                .arg("--version")
                .output()
                .is_ok_and(|output| output.status.success())
        };
        let program = if installed(Command::new("cargo-deny")) {
            PathBuf::from("cargo-deny")
        } else {
            if !installed(Command::new(&own)) {
                // Beside the built programs: nothing of the person's own is changed.
                build::run(
                    cargo(&[
                        "install",
                        "cargo-deny",
                        "--locked",
                        "--version",
                        DENY,
                        "--root",
                    ])
                    .arg(&tools),
                )?;
            }
            own
        };
        let checks = ["check", "bans", "licenses", "sources"];
        build::run(
            Command::new(program)
                .args(checks)
                .current_dir(paths::repository()),
        )
    });
}
