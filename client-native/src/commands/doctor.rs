//! `shoal doctor`: can this machine take part, and what is to be changed if not.
//!
//! One line a thing looked at: `ok`, `note` where something could be better, `FAIL` with what to do, and at the end
//! what this machine can help with, or the one thing to change first. Ends with the exit code of the first failure.
//! [`machine`] looks at what is here, [`run`] at a host and its run, [`door`] knocks there.
//!
//! Invariant: nobody is disturbed. Whoever looks takes no seat, and what it takes of this machine it gives back.

mod door;
mod machine;
mod run;
mod self_link;

use std::process::ExitCode;

use serde_json::json;
use shared::model::device::DeviceKind;

use super::print_line;
use crate::cli::DoctorArgs;
use crate::failure::{Code, Failure};
use crate::settings::{self, FileSettings};

/// What was found, line by line.
pub(super) struct Findings {
    json: bool,
    /// The first thing that failed, and why.
    first: Option<(String, Failure)>,
}

impl Findings {
    fn tell(&self, what: &str, verdict: &str, text: &str, remedy: &str) {
        if self.json {
            let line = json!({
                "event": "doctor",
                "what": what,
                "verdict": verdict.to_lowercase(),
                "text": text,
                "remedy": remedy,
            });
            print_line(&line.to_string());
            return;
        }
        print_line(&format!("{verdict:<5} {what}: {text}"));
        if !remedy.is_empty() {
            print_line(&format!("      {remedy}"));
        }
    }

    fn ok(&self, what: &str, text: &str) {
        self.tell(what, "ok", text, "");
    }

    fn note(&self, what: &str, text: &str, remedy: &str) {
        self.tell(what, "note", text, remedy);
    }

    fn fail(&mut self, what: &str, failure: Failure) {
        self.tell(what, "FAIL", &failure.what, &failure.remedy);
        self.first.get_or_insert((what.to_owned(), failure));
    }

    /// The last line, and the exit code.
    fn conclude(self, help: &str) -> ExitCode {
        let Some((what, first)) = &self.first else {
            self.ok("verdict", help);
            return ExitCode::SUCCESS;
        };
        let text = format!("this machine cannot help yet: see {what}");
        self.tell("verdict", "FAIL", &text, &first.remedy);
        first.exit_code()
    }
}

pub(super) async fn doctor(
    args: DoctorArgs,
    file: &FileSettings,
    json: bool,
) -> Result<ExitCode, Failure> {
    let wish = machine::Wish {
        gpu: settings::gpu(args.device.gpu, file),
        memory: args.memory.or(file.memory),
        identity_path: settings::identity_path(args.identity.identity_path, file)?,
        relay_only: args.relay_only.or(file.relay_only).unwrap_or(false),
    };
    let link = match (&args.link, &file.link) {
        (None, None) => None,
        _ => Some(settings::link(args.link, file)?),
    };
    let mut findings = Findings { json, first: None };
    let machine = machine::look(&mut findings, &wish).await;
    let Some(link) = link else {
        machine.preset_speed(&mut findings).await;
        let help = "this machine can help. Give a run's link to look at that, too: shoal doctor https://host/";
        return Ok(findings.conclude(help));
    };
    let help = run::look(&mut findings, &link, machine, &wish).await;
    Ok(findings.conclude(&help.unwrap_or_default()))
}

/// What a kind of device is called.
pub(super) fn kind_words(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Gpu => "GPU",
        DeviceKind::SoftwareGpu => "GPU computed by the CPU",
        DeviceKind::Cpu => "CPU",
    }
}

/// A failure of this machine that no setting mends.
fn broken(what: impl std::fmt::Display) -> Failure {
    Failure::new(
        Code::Failed,
        what,
        "Tell us, with what RUST_LOG=debug says.",
    )
}
