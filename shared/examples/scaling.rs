//! What 1 to 16 pipelines bring in the simulation, a line of JSON each; see `shared::sim::scaling`.
//!
//! `cargo xtask figures scaling` runs it: `scaling ROUNDS ROUND_STEPS MICROBATCH_MS DELAY_MS BYTES_PER_SECOND`.

use std::process::ExitCode;

use serde_json::json;
use shared::limits::MERGE_GROUP_MAX;
use shared::sim::scaling::{Setting, measure};
use shared::units::Span;

fn argument(index: usize) -> u64 {
    let text = std::env::args().nth(index).expect("five numbers");
    text.parse().expect("a whole number")
}

#[expect(clippy::print_stdout, reason = "its output is what it is for")]
fn main() -> ExitCode {
    let rounds = u32::try_from(argument(1)).expect("few rounds");
    let setting = Setting {
        round_steps: u32::try_from(argument(2)).expect("few steps"),
        microbatch_ms: argument(3),
        delay: Span::from_millis(argument(4)),
        bytes_per_second: argument(5),
    };
    let powers = (0..).map(|power| 1 << power);
    for pipelines in powers.take_while(|pipelines| *pipelines <= MERGE_GROUP_MAX) {
        match measure(pipelines, rounds, setting) {
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
