//! Runs simulated worlds, one a seed, on all cores; prints each seed that fails.
//!
//! `cargo xtask sim --seeds 1000 [--first-seed N]`. A failing seed is replayed by `--first-seed SEED --seeds 1`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use shared::sim::{Sabotage, Summary, run};

fn option(name: &str, otherwise: u64) -> u64 {
    let mut arguments = std::env::args()
        .skip_while(|argument| argument != name)
        .skip(1);
    arguments
        .next()
        .map_or(otherwise, |value| value.parse().expect("a whole number"))
}

fn world(seed: u64) -> Result<Summary, String> {
    let result = catch_unwind(AssertUnwindSafe(|| run(seed, Sabotage::default())));
    match result {
        Ok(result) => result.map_err(|failure| failure.to_string()),
        Err(_) => Err(format!("seed {seed}: a panic, printed above")),
    }
}

#[expect(clippy::print_stdout, reason = "its output is what it is for")]
fn main() -> ExitCode {
    let (first, seeds) = (option("--first-seed", 1), option("--seeds", 100));
    let began = Instant::now();
    let next = AtomicU64::new(first);
    let total = Mutex::new((Summary::default(), Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    let result = world(seed);
                    let mut total = total.lock().expect("no worker panics while it holds this");
                    match result {
                        Ok(summary) => {
                            total.0.rounds += summary.rounds;
                            total.0.rewinds += summary.rewinds;
                            total.0.merges += summary.merges;
                            total.0.line_ups += summary.line_ups;
                            total.0.faults += summary.faults;
                            total.0.echoes += summary.echoes;
                            total.0.texts += summary.texts;
                            total.0.texts_given_up += summary.texts_given_up;
                            total.0.tokens_written += summary.tokens_written;
                            total.0.incarnations += summary.incarnations;
                        }
                        Err(failure) => {
                            println!("{failure}");
                            total.1.push(seed);
                        }
                    }
                }
            });
        }
    });
    let (summary, failed) = total.into_inner().expect("no worker panicked");
    println!("{summary:?}");
    println!("{} s", began.elapsed().as_secs());
    println!(
        "{} passed, {} failed",
        seeds - failed.len() as u64,
        failed.len()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
