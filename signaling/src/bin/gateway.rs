//! `shoal-gateway`: serves volunteers' WebSockets for a host elsewhere until it is told to stop.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use signaling::descriptors;
use signaling::gateway::args::GatewayArgs;
use signaling::gateway::serve::{GatewayError, start};
use signaling::process::{Asked, log};

fn main() -> ExitCode {
    let args = GatewayArgs::parse();
    log(args.log_format);
    if let Err(few) = descriptors::raise() {
        tracing::info!("{few}");
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody reads it: the exit code says it all the same.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: GatewayArgs) -> Result<(), GatewayError> {
    let failed = |what| {
        move |error: std::io::Error| GatewayError::System {
            what,
            reason: error.to_string(),
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(failed("starting threads"))?;
    let ended = runtime.block_on(async {
        let mut asked = Asked::listen().map_err(failed("listening for signals"))?;
        let port = std::env::var("PORT").ok();
        let mut gateway = tokio::select! {
            gateway = start(args, port.as_deref()) => gateway?,
            () = asked.to_end() => return Ok(()),
        };
        tokio::select! {
            () = asked.to_end() => {}
            error = gateway.failed() => return Err(error),
        }
        tracing::info!("stopping");
        tokio::select! {
            () = gateway.stop() => {}
            () = asked.to_end() => {}
        }
        Ok(())
    });
    runtime.shutdown_background();
    ended
}
