//! `shoal-host`: hosts a run until it is told to stop.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use signaling::args::{Args, LogFormat};
use signaling::start::{HostError, start};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    log(args.log_format);
    match host(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody reads it: the exit code says it all the same.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
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
    let host = tokio::select! {
        host = start(args, port.as_deref()) => host?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    host.stop().await
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
