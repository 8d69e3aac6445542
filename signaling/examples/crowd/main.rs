//! `crowd`: how many volunteers one host process holds, how fast they join, and how long a relay takes among them.
//!
//! Starts the `shoal-host` beside it as a child (or the one that `--program` names), lets so many clients join over
//! loopback WebSockets, relays between them while all answer pings, and prints what it measured as JSON. Ends by itself.
//!
//! `cargo build --release -p signaling --bins --example crowd && target/release/examples/crowd --volunteers 5000`

#![allow(
    clippy::print_stdout,
    reason = "a program whose one answer is a JSON object"
)]

mod clients;
mod drive;
mod process;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::json;
use signaling::descriptors;

use drive::{Plan, drive};
use process::{Gateway, Host};

/// Measures one host under a crowd of volunteers.
#[derive(Debug, Parser)]
struct Args {
    /// Volunteers.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(2..=20_000))]
    volunteers: u32,
    /// Relays between two of them, in all.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    relays: u32,
    /// Relays a second.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    relays_a_second: u32,
    /// Most seconds that all of it may take.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Go through a gateway, joined to the host by the NATS server at this URL.
    #[arg(long, value_name = "URL")]
    through: Option<String>,
    /// The host's program; by default the one that was built beside this.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            println!("{}", json!({ "failed": reason }));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<String, String> {
    // Each client is a file of this process, too.
    descriptors::raise_to(u64::from(args.volunteers) + 512).map_err(|few| few.to_string())?;
    let program = match &args.program {
        Some(program) => program.clone(),
        None => beside()
            .ok_or("no shoal-host stands beside this program: build it, or give --program")?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(measure(args, program))
}

/// Examples are built into a folder beside the programs.
fn beside() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let program = own.parent()?.parent()?.join("shoal-host");
    program.exists().then_some(program)
}

async fn measure(args: &Args, program: PathBuf) -> Result<String, String> {
    let nats = args.through.as_deref();
    let host = Host::start(&program, None, nats).await?;
    let gateway = match nats {
        None => None,
        Some(nats) => {
            let program = program.with_file_name("shoal-gateway");
            Some(Gateway::start(&program, nats).await?)
        }
    };
    let entrance = gateway
        .as_ref()
        .map_or(host.address, |gateway| gateway.address);
    let bytes_before = host.resident_bytes()?;
    let plan = Plan {
        volunteers: args.volunteers,
        relays: args.relays,
        relays_a_second: args.relays_a_second,
        time_max: Duration::from_secs(args.seconds),
    };
    let standing = drive(entrance, plan, || host.cpu_seconds()).await?;
    let bytes_after = host.resident_bytes()?;
    let measured = &standing.measured;
    let grown = bytes_after.saturating_sub(bytes_before) as f64;
    let megabytes = |bytes: f64| (bytes / 1e5).round() / 10.0;
    let found = json!({
        "through_a_gateway": gateway.is_some(),
        "volunteers": args.volunteers,
        "measured": measured,
        "host_mb_before": megabytes(bytes_before as f64),
        "host_mb_after": megabytes(bytes_after as f64),
        "host_mb_a_thousand": megabytes(grown / f64::from(measured.joined.max(1)) * 1e3),
        "host_cpu_seconds": host.cpu_seconds(),
    });
    Ok(serde_json::to_string_pretty(&found).expect("string keys"))
}
