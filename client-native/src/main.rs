//! `shoal`: lends this machine to a community that trains a language model together.

use std::process::ExitCode;

use clap::Parser;
use client_native::cli::{Cli, Command, LogFormat};
use client_native::commands;
use client_native::failure::{Code, Failure};
use client_native::log;
use client_native::quiet;
use client_native::report::Reporter;
use client_native::settings::FileSettings;

/// Threads for sockets and timers; the device has one of its own, and the CPU's cores are for it.
const NETWORK_THREADS: usize = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match begin(cli) {
        Ok(code) => code,
        Err((failure, LogFormat::Text)) => {
            eprintln!("{failure}");
            failure.exit_code()
        }
        Err((failure, LogFormat::Json)) => {
            Reporter::new(LogFormat::Json).say(&client_native::report::Note::of(&failure));
            failure.exit_code()
        }
    }
}

/// Takes the faults that a test asks for.
#[cfg(feature = "faults")]
fn arm_faults() -> Result<(), Failure> {
    use shared::faults::{VARIABLE, arm};
    let asked = std::env::var(VARIABLE).ok();
    arm(asked.as_deref()).map_err(|error| Failure::new(Code::Usage, error, ""))
}

fn begin(cli: Cli) -> Result<ExitCode, (Failure, LogFormat)> {
    let typed = cli.log_format.unwrap_or_default();
    #[cfg(feature = "faults")]
    arm_faults().map_err(|failure| (failure, typed))?;
    let file = FileSettings::load(cli.config.as_deref()).map_err(|failure| (failure, typed))?;
    if commands::looks_for_adapters(&cli, &file) {
        quiet::leave_out_display_layer();
    }
    let format = commands::log_format(&cli, &file);
    let with_format = |failure| (failure, format);
    // Only a volunteer has a status line; the results of other commands stand alone.
    let reporter = if matches!(cli.command, Command::Join(_)) {
        Reporter::new(format)
    } else {
        Reporter::without_status(format)
    };
    log::start(reporter.bar());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Failed, error, ""))
        .map_err(with_format)?;
    let outcome = runtime.block_on(commands::run(cli, file, reporter));
    // A device at work does not hold the process up.
    runtime.shutdown_background();
    outcome.map_err(with_format)
}
