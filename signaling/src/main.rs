//! `shoal-host`: hosts a run until it is told to stop.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use signaling::args::{Args, LogFormat};
use signaling::descriptors;
use signaling::start::{HostError, start};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

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
    let handler = |kind| {
        signal(kind).map_err(|error| HostError::System {
            what: "listening for signals",
            reason: error.to_string(),
        })
    };
    let mut interrupt = handler(SignalKind::interrupt())?;
    let mut terminate = handler(SignalKind::terminate())?;
    let port = std::env::var("PORT").ok();
    let mut host = tokio::select! {
        host = start(args, port.as_deref()) => host?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        error = host.failed() => return Err(error),
    }
    tracing::info!("stopping");
    tokio::select! {
        ended = host.stop() => ended,
        // Whoever asks twice does not want to wait. The journal is whole at any moment.
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // https://no-color.org
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = std::io::stderr().is_terminal() && !unwanted;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
