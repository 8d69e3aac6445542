//! `cargo xtask`: everything one does with this repository besides writing it.
//!
//! Owns the order of things and what is printed; the work is done by cargo and by the programs
//! that it builds. It depends on nothing that takes long to compile, because it is the first thing
//! that a newcomer builds. Begin with [`Verb`].

#![allow(
    clippy::print_stdout,
    reason = "what a person at a terminal reads is this program's product"
)]

mod build;
mod chaos;
mod check;
mod demo;
mod e2e;
mod figures;
mod link;
mod setup;
mod steps;
mod trace;
mod web;

use clap::{Parser, Subcommand};

/// Builds, tests and shows Shoal.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Find or install what the tests need: the wasm target, Chromium, a Vulkan driver
    Setup,
    /// Build everything and run all tests
    Test,
    /// Tabs of headless Chromium in runs with headless volunteers: the tests of the page alone
    E2e(e2e::EndToEnd),
    /// All tests, formatting, lints, documentation, dependencies, golden figures, simulation
    Ci,
    /// Train a small model with a host and three volunteers on this machine, and let it write
    Demo(demo::Demo),
    /// Compare the mathematics with the reference figures, and print each comparison
    Golden,
    /// Run the simulation over seeds; a seed that fails is printed
    Sim {
        /// How many seeds
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// The first of them
        #[arg(long, default_value_t = 0)]
        first_seed: u64,
    },
    /// A run to which something happens every 20 seconds: it must go on, lose nothing and learn as well
    Chaos(chaos::Chaos),
    /// Ends with slow links to each other: network namespaces to run something in (root)
    Link(link::Link),
    /// Put traces of several volunteers (`shoal join --trace`) into one file
    Trace(trace::Trace),
    /// Measure, and write tests/figures/NAME.json
    Figures(figures::Figures),
    /// Build the web client into www/pkg, for a host to serve
    Web {
        /// As people load it: small, and slow to build
        #[arg(long)]
        release: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Setup => setup::setup(),
        Verb::Test => check::test().finish(),
        Verb::E2e(asked) => e2e::e2e(&asked).finish(),
        Verb::Ci => check::ci().finish(),
        Verb::Demo(asked) => demo::demo(&asked),
        Verb::Chaos(asked) => chaos::chaos(&asked),
        Verb::Link(asked) => link::link(&asked),
        Verb::Trace(asked) => trace::trace(&asked),
        Verb::Figures(asked) => figures::figures(&asked),
        Verb::Golden => build::run(&mut build::cargo(&[
            "run",
            "-p",
            "shared",
            "--features",
            "compute",
            "--example",
            "golden",
        ])),
        Verb::Sim { seeds, first_seed } => build::run(
            build::cargo(&[
                "run",
                "-p",
                "shared",
                "--features",
                "sim",
                "--example",
                "sim",
                "--",
            ])
            .args([
                "--seeds",
                &seeds.to_string(),
                "--first-seed",
                &first_seed.to_string(),
            ]),
        ),
        Verb::Web { release } => {
            setup::target()?;
            web::programs()?;
            web::web(if release {
                web::For::People
            } else {
                web::For::Tests
            })
        }
    }
}
