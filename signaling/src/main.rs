//! `shoal-host`: hosts a run until it is told to stop.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use signaling::args::Args;
use signaling::descriptors;
use signaling::process::{Asked, log};
use signaling::start::{HostError, start};

fn main() -> ExitCode {
    let args = Args::parse();
    #[cfg(feature = "faults")]
    if let Err(error) = shared::faults::arm(std::env::var(shared::faults::VARIABLE).ok().as_deref())
    {
        let _ = writeln!(std::io::stderr(), "error: {error}");
        return ExitCode::from(2);
    }
    log(args.log_format);
    if let Err(few) = descriptors::raise() {
        tracing::info!("{few}");
    }
    let ended = run(args);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody reads it: the exit code says it all the same.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: Args) -> Result<(), HostError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| HostError::System {
            what: "starting threads",
            reason: error.to_string(),
        })?;
    let ended = runtime.block_on(host(args));
    // Rows are on the disk by now. Whoever asks for the end does not wait for data that is still being read.
    runtime.shutdown_background();
    ended
}

async fn host(args: Args) -> Result<(), HostError> {
    let mut asked = Asked::listen().map_err(|error| HostError::System {
        what: "listening for signals",
        reason: error.to_string(),
    })?;
    let port = std::env::var("PORT").ok();
    let mut host = tokio::select! {
        host = start(args, port.as_deref()) => host?,
        () = asked.to_end() => return Ok(()),
    };
    tokio::select! {
        () = asked.to_end() => {}
        error = host.failed() => return Err(error),
    }
    tracing::info!("stopping");
    tokio::select! {
        ended = host.stop() => ended,
        // Whoever asks twice does not want to wait. The journal is whole at any moment.
        () = asked.to_end() => Ok(()),
    }
}
