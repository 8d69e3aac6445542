//! What so many pipelines bring in the simulation, a line of JSON each; see `shared::sim::scaling`.
//!
//! `cargo xtask figures scaling` runs it: `scaling ROUNDS ROUND_STEPS MICROBATCH_MS DELAY_MS BYTES_PER_SECOND PIPELINES...`.

use std::process::ExitCode;

use serde_json::json;
use shared::sim::scaling::{Setting, measure};
use shared::units::Span;

#[expect(clippy::print_stdout, reason = "its output is what it is for")]
fn main() -> ExitCode {
    let arguments = std::env::args().skip(1);
    let numbers: Result<Vec<u64>, _> = arguments.map(|it| it.parse()).collect();
    let numbers = numbers.expect("whole numbers");
    let [
        rounds,
        round_steps,
        microbatch_ms,
        delay_ms,
        bytes_per_second,
        ref counts @ ..,
    ] = numbers[..]
    else {
        panic!("five numbers, and how many pipelines")
    };
    let rounds = u32::try_from(rounds).expect("few rounds");
    let setting = Setting {
        round_steps: u32::try_from(round_steps).expect("few steps"),
        microbatch_ms,
        delay: Span::from_millis(delay_ms),
        bytes_per_second,
    };
    for pipelines in counts {
        let count = u16::try_from(*pipelines).expect("a thousand");
        match measure(count, rounds, setting) {
            Ok(brought) => println!(
                "{}",
                json!({
                    "pipelines": pipelines,
                    "samples": brought.samples,
                    "seconds": brought.elapsed.as_secs_f64(),
                    "seconds_in_rounds": brought.in_rounds.as_secs_f64(),
                })
            ),
            Err(failure) => {
                println!("{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
