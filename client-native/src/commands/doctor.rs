//! `shoal doctor`: can this machine take part, and what is to be changed if not.
//!
//! One line a thing looked at: `ok`, `note` where something could be better, `FAIL` with what to
//! do. Ends with the exit code of the first failure. Nothing is joined and nobody else is bothered.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use shared::config::run::RunConfig;
use shared::model::device::{self, DeviceKind, Opened};
use shared::transport::{LinkEvent, LinkStep, NetEvent, Transport};
use shared::units::PeerId;
use shared::wire::report::RunReport;

use super::{introduce, open, print_line};
use crate::cli::DoctorArgs;
use crate::failure::{Code, Failure};
use crate::host::HostLink;
use crate::host::http::HostFiles;
use crate::identity::Identity;
use crate::rtc::{RtcConfig, RtcTransport};
use crate::settings::{self, FileSettings};
use crate::volunteer::careful_memory;

/// How long a link from this machine to itself may take to open.
const SELF_LINK_MAX: Duration = Duration::from_secs(10);

/// What was found, line by line.
struct Findings {
    json: bool,
    failed: Option<Code>,
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

    fn fail(&mut self, what: &str, failure: &Failure) {
        self.failed = self.failed.or(Some(failure.code));
        self.tell(what, "FAIL", &failure.what, &failure.remedy);
    }
}

pub(super) async fn doctor(
    args: DoctorArgs,
    file: &FileSettings,
    json: bool,
) -> Result<ExitCode, Failure> {
    let mut findings = Findings { json, failed: None };
    let path = settings::identity_path(args.identity.identity_path, file)?;
    match Identity::open(&path) {
        Ok(identity) => {
            let digits = identity.public().to_string();
            let text = format!("{} in {}", &digits[..16], path.display());
            if identity.exclusive {
                findings.ok("identity", &text);
            } else {
                let remedy = "Fine: each process joins under its own session.";
                findings.note(
                    "identity",
                    &format!("{text}, in use by another process"),
                    remedy,
                );
            }
        }
        Err(error) => findings.fail("identity", &error.into()),
    }
    devices(&mut findings, &settings::gpu(args.device.gpu, file)).await;
    self_link(&mut findings).await;
    let link = args
        .link
        .map(Ok)
        .or_else(|| file.link.is_some().then(|| settings::link(None, file)));
    match link {
        Some(link) => host(&mut findings, &link?).await,
        None => findings.note(
            "host",
            "no link was given",
            "Give the run's link to look at it, too: shoal doctor LINK",
        ),
    }
    Ok(findings
        .failed
        .map_or(ExitCode::SUCCESS, |code| ExitCode::from(code as u8)))
}

/// What a kind of device is called.
pub(super) fn kind_words(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Gpu => "GPU",
        DeviceKind::SoftwareGpu => "GPU computed by the CPU",
        DeviceKind::Cpu => "CPU",
    }
}

async fn devices(findings: &mut Findings, asked: &str) {
    for (number, adapter) in device::adapters().iter().enumerate() {
        let text = format!("{number}: {} ({})", adapter.name, kind_words(adapter.kind));
        match adapter.kind {
            DeviceKind::SoftwareGpu => findings.note(
                "adapter",
                &text,
                "Slower than --gpu cpu; never chosen by itself.",
            ),
            DeviceKind::Gpu | DeviceKind::Cpu => findings.ok("adapter", &text),
        }
    }
    match open(asked).await {
        Ok(Opened { name, kind, .. }) => {
            let memory = careful_memory(kind) as f64 / 1e9;
            let text = format!(
                "{name} for --gpu {asked}; lends {memory:.1} GB unless --memory says otherwise"
            );
            findings.ok("device", &text);
        }
        Err(failure) => findings.fail("device", &failure),
    }
}

/// Whether WebRTC works at all here: a link from this machine to itself.
async fn self_link(findings: &mut Findings) {
    let began = Instant::now();
    match tokio::time::timeout(SELF_LINK_MAX, open_self_link()).await {
        Ok(true) => {
            let text = format!(
                "UDP sockets and data channels work; a link to itself took {:.1} s",
                began.elapsed().as_secs_f64()
            );
            findings.ok("WebRTC", &text);
        }
        Ok(false) | Err(_) => findings.fail(
            "WebRTC",
            &Failure::new(
                Code::Network,
                "this machine cannot open a link even to itself",
                "Let UDP through the firewall, at least between ports above 1023.",
            ),
        ),
    }
}

/// Opens a link between two transports on this machine; whether it came up.
async fn open_self_link() -> bool {
    let new = || {
        RtcTransport::new(RtcConfig {
            loopback: true,
            ..RtcConfig::default()
        })
    };
    let (mut left, mut right) = (new(), new());
    let (left_id, right_id) = (PeerId(1), PeerId(2));
    left.link(
        right_id,
        LinkStep::Offer {
            generation: 1,
            relay_only: false,
        },
    );
    let mut open = 0;
    while open < 2 {
        let (event, from_left) = tokio::select! {
            event = left.next_event() => (event, true),
            event = right.next_event() => (event, false),
        };
        let Ok(NetEvent::Link { event, .. }) = event else {
            return false;
        };
        let step = match event {
            LinkEvent::Description { generation, sdp } if from_left => {
                LinkStep::Answer { generation, sdp }
            }
            LinkEvent::Description { generation, sdp } => LinkStep::Accept { generation, sdp },
            LinkEvent::Candidate {
                generation,
                candidate,
            } => LinkStep::Candidate {
                generation,
                candidate,
            },
            LinkEvent::Open { .. } => {
                open += 1;
                continue;
            }
            LinkEvent::Disturbed { .. } | LinkEvent::Resumed { .. } => continue,
            LinkEvent::Down { .. } => return false,
        };
        if from_left {
            right.link(left_id, step);
        } else {
            left.link(right_id, step);
        }
    }
    true
}

async fn host(findings: &mut Findings, link: &HostLink) {
    let files = HostFiles::new(link, None);
    match files.json::<RunReport>("api/run").await {
        Ok(report) => {
            let text = format!("{link} hosts \"{}\", {}", report.name, report.state);
            findings.ok("host", &text);
        }
        Err(error) => return findings.fail("host", &error.into()),
    }
    match introduce(link).await {
        Ok(config) => {
            findings.ok("version", "the host speaks the same");
            model(findings, &config).await;
        }
        Err(failure) => findings.fail("version", &failure),
    }
    match files.range("data/train.bin", 0, 2).await {
        Ok(_) => findings.ok("data", "token windows can be fetched"),
        Err(error) => findings.fail("data", &error.into()),
    }
}

/// What the run asks of this machine before it may join.
async fn model(findings: &mut Findings, config: &RunConfig) {
    let (model, seed) = (config.model.clone(), config.seed);
    let began = Instant::now();
    let derived =
        tokio::task::spawn_blocking(move || shared::derive::seed_hash(&model, seed)).await;
    let Ok(hash) = derived else {
        let failure = Failure::new(
            Code::Failed,
            "deriving the run's weights failed",
            "Tell us.",
        );
        return findings.fail("seed", &failure);
    };
    let digits = shared::units::Digest(hash).to_string();
    let text = format!(
        "derived in {:.1} s, hash {}; the host compares it when you join",
        began.elapsed().as_secs_f64(),
        &digits[..16]
    );
    findings.ok("seed", &text);
}
