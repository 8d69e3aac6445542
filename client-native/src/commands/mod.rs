//! What each command of `shoal` does.
//!
//! A command gets what was typed and the settings file, and ends with an exit code or a [`Failure`]
//! that `main` prints. Results go to standard output: words for people, or JSON where it was asked for.

mod bench;
mod doctor;
mod export;
mod generate;
mod status;

use std::process::ExitCode;
use std::time::Duration;

use shared::config::run::RunConfig;
use shared::model::device::{self, DeviceChoice, Opened};
use shared::wire::frame::VERSION;
use shared::wire::signal::Down;

use crate::cli::{Cli, Command, LogFormat, Writer};
use crate::failure::{Code, Failure};
use crate::host::HostLink;
use crate::host::socket::{HostSocket, SocketEvent};
use crate::report::Reporter;
use crate::settings::{self, FileSettings, Settings};
use crate::volunteer;

/// How long a host may take to introduce its run.
const HELLO_MAX: Duration = Duration::from_secs(15);

/// Does what was typed.
///
/// # Errors
/// Why it could not be done; to be printed.
pub async fn run(cli: Cli, file: FileSettings, reporter: Reporter) -> Result<ExitCode, Failure> {
    let json = log_format(&cli, &file) == LogFormat::Json;
    match cli.command {
        Command::Join(args) => {
            let settings = Settings::resolve(args, &file)?;
            let opened = open(&settings.gpu).await?;
            return Ok(volunteer::join(settings, opened, reporter).await);
        }
        Command::Doctor(args) => return doctor::doctor(args, &file, json).await,
        Command::Bench(args) => bench::bench(args, &file, json).await?,
        Command::Status(args) => status::status(args, &file, json).await?,
        Command::Export(args) => export::export(args, &file, json).await?,
        Command::Generate(args) => generate::generate(args, &file).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether what was typed looks for the adapters of this machine, which loads its graphics drivers.
pub fn looks_for_adapters(cli: &Cli, file: &FileSettings) -> bool {
    let asked = match &cli.command {
        Command::Doctor(_) => return true,
        Command::Bench(args) if args.device.gpu.is_none() && file.gpu.is_none() => return true,
        Command::Join(args) => &args.device,
        Command::Bench(args) => &args.device,
        Command::Generate(args) if matches!(args.writer, Writer::Folder(_)) => &args.device,
        Command::Generate(_) | Command::Status(_) | Command::Export(_) => return false,
    };
    let Ok(choice) = settings::gpu(asked.gpu.clone(), file).parse::<DeviceChoice>();
    device::will_look(&choice)
}

/// How to report: as typed, else from the file, else as text.
pub fn log_format(cli: &Cli, file: &FileSettings) -> LogFormat {
    cli.log_format.or(file.log_format).unwrap_or_default()
}

/// The device that was asked for: `auto`, `cpu`, a number or a name.
async fn open(asked: &str) -> Result<Opened, Failure> {
    let Ok(choice) = asked.parse::<DeviceChoice>();
    Ok(device::open(&choice).await?)
}

/// The run that a host introduces to whoever connects. Nothing is joined.
async fn introduce(link: &HostLink) -> Result<RunConfig, Failure> {
    let mut socket = HostSocket::open(link);
    let outcome = tokio::time::timeout(HELLO_MAX, hear_hello(&mut socket)).await;
    socket.close().await;
    outcome.unwrap_or_else(|_| {
        let what = format!("{link} says nothing in {} s", HELLO_MAX.as_secs());
        Err(Failure::new(Code::Network, what, "Check the link."))
    })
}

async fn hear_hello(socket: &mut HostSocket) -> Result<RunConfig, Failure> {
    loop {
        match socket.next().await {
            SocketEvent::Connected => {}
            SocketEvent::Lost { reason, .. } => {
                return Err(Failure::new(
                    Code::Network,
                    format!("the host cannot be reached: {reason}"),
                    "Check the link, and that the host is up: its page should open in a browser.",
                ));
            }
            SocketEvent::Message(message) => {
                if let Some(config) = introduction(*message)? {
                    return Ok(config);
                }
            }
        }
    }
}

/// What the host's first message says; `None` if it is not an introduction.
fn introduction(message: Down) -> Result<Option<RunConfig>, Failure> {
    if let Down::Hello {
        version, config, ..
    } = message
    {
        if version == VERSION {
            return Ok(Some(*config));
        }
        return Err(Failure::new(
            Code::Version,
            format!("the host speaks version {version}, this build {VERSION}"),
            "Use the build that the host's page names.",
        ));
    }
    if let Down::Refuse { code, text, remedy } = message {
        return Err(Failure::refused(code, text, remedy));
    }
    tracing::debug!(?message, "not an introduction");
    Ok(None)
}

/// Prints a line of results. A reader that went away (`| head`) ends nothing.
fn print_line(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
