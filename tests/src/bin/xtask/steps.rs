//! Steps that go on after a failure, counted and timed.
//!
//! Owns how a check becomes a number: what `cargo test` runs counts by test, any other step counts
//! one. It knows no step by name.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context;

/// How the outcome of a step is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// One for the step.
    One,
    /// One for each test that `cargo test` reports.
    Tests,
}

/// What has been done so far.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    tally: Tally,
    lines: Vec<String>,
}

/// Passed and failed checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Ledger {
    /// Runs a program to its end and counts it. `true` when all of it passed.
    pub(crate) fn run(&mut self, name: &str, count: Count, command: &mut Command) -> bool {
        self.timed(name, || match count {
            Count::One => Ok(Tally::one(command.status()?.success())),
            Count::Tests => run_tests(command),
        })
    }

    /// Does `work` and counts it as one. `true` when it passed.
    pub(crate) fn call(&mut self, name: &str, work: impl FnOnce() -> anyhow::Result<()>) -> bool {
        self.timed(name, || work().map(|()| Tally::one(true)))
    }

    /// Prints every step's time and result, then the sum. Fails if any check failed.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        println!();
        for line in &self.lines {
            println!("{line}");
        }
        println!("{} passed, {} failed", self.tally.passed, self.tally.failed);
        if self.tally.failed > 0 {
            // The last line stands already: what failed is above it.
            std::process::exit(1);
        }
        Ok(())
    }

    fn timed(&mut self, name: &str, work: impl FnOnce() -> anyhow::Result<Tally>) -> bool {
        println!("\n=== {name}");
        let begun = Instant::now();
        let tally = work().unwrap_or_else(|error| {
            println!("{error:#}");
            Tally::one(false)
        });
        let seconds = begun.elapsed().as_secs_f64();
        let word = if tally.failed == 0 {
            "passed"
        } else {
            "FAILED"
        };
        println!("=== {name}: {word} in {seconds:.1} s");
        self.lines
            .push(format!("{word} {seconds:6.1} s  {name} ({tally})"));
        self.tally.passed += tally.passed;
        self.tally.failed += tally.failed;
        tally.failed == 0
    }
}

impl Tally {
    const fn one(passed: bool) -> Self {
        Self {
            passed: passed as u64,
            failed: !passed as u64,
        }
    }

    /// Adds a line of `cargo test` such as `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
    fn add_line(&mut self, line: &str) {
        let Some(result) = line.trim_start().strip_prefix("test result: ") else {
            return;
        };
        let Some((_, figures)) = result.split_once(". ") else {
            return;
        };
        for figure in figures.split("; ") {
            let Some((number, word)) = figure.split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Runs `cargo test`, shows its output and adds up its results.
fn run_tests(command: &mut Command) -> anyhow::Result<Tally> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("the output is piped")?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.add_line(&line);
    }
    // A program that does not compile, or that dies in the middle, reports no result.
    if !child.wait()?.success() && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::{Count, Ledger, Tally};
    use std::process::Command;

    #[test]
    fn test_results_are_added_up_and_other_lines_are_not() {
        let mut tally = Tally::default();
        tally.add_line(
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; finished in 0.1s",
        );
        tally.add_line("test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured");
        tally.add_line("test mine ... ok");
        tally.add_line("9 passed; 9 failed");
        assert_eq!(
            tally,
            Tally {
                passed: 7,
                failed: 2
            }
        );
    }

    #[test]
    fn a_step_that_fails_without_a_result_counts_as_one_failure() {
        let mut ledger = Ledger::default();
        let mut dies = Command::new("sh");
        dies.args([
            "-c",
            "echo 'test result: ok. 5 passed; 0 failed; 0 ignored'; exit 101",
        ]);
        assert!(!ledger.run("dies", Count::Tests, &mut dies));
        assert!(!ledger.run("absent", Count::One, &mut Command::new("no-such-program")));
        assert!(ledger.call("works", || Ok(())));
        assert_eq!(
            ledger.tally,
            Tally {
                passed: 6,
                failed: 2
            }
        );
    }
}
