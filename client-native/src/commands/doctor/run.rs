//! A host and its run: whether they can be reached and understood, and whether they would let this machine in.

use std::time::Instant;

use shared::config::run::RunConfig;
use shared::units::Digest;
use shared::wire::report::RunReport;
use shared::wire::signal::{IceServer, Welcome};

use super::Findings;
use super::door::{self, Visitor};
use super::machine::{self, Machine, Wish};
use crate::commands::introduce;
use crate::failure::{Code, Failure};
use crate::host::http::HostFiles;
use crate::host::{HostError, HostLink};
use crate::memory::words;
use crate::rtc::ice::{self, Answer, IceError, Tried};

/// Seconds that two clocks may differ before it is worth a word.
const CLOCK_SECONDS_MAX: f64 = 10.0;

/// Looks at the run behind `link`, as far as it gets. Gives what this machine can help with, if it can.
pub(super) async fn look(
    findings: &mut Findings,
    link: &HostLink,
    machine: Machine,
    wish: &Wish,
) -> Option<String> {
    if !link.is_encrypted() && !link.is_loopback() {
        let text = format!(
            "{link} is plain http: whoever is on the way can read and change what the host says"
        );
        let remedy =
            "Ask the host for an https link; browsers cannot contribute without one at all.";
        findings.note("link", &text, remedy);
    }
    let files = HostFiles::new(link, None);
    let report = host(findings, &files, link).await?;
    let config = match introduce(link).await {
        Ok(config) => config,
        Err(failure) => {
            let is_version = failure.code == Code::Version;
            let what = if is_version { "version" } else { "door" };
            findings.fail(what, failure);
            return None;
        }
    };
    findings.ok("version", "the host speaks the same");
    match files.range("data/train.bin", 0, 2).await {
        Ok(_) => findings.ok("data", "token windows can be fetched"),
        Err(error) => findings.fail("data", error.into()),
    }
    let fitting = fitting(findings, &config, machine.memory_bytes);
    let began = Instant::now();
    let seed_hash = machine::derive(findings, &config).await?;
    let derived_seconds = began.elapsed().as_secs_f64();
    let device = machine.device?;
    let block = format!("a block of {:?}", report.name);
    let speed = machine::speed(findings, &device, &config, &block).await?;
    let visitor = Visitor {
        identity: machine.identity.as_ref()?,
        seed_hash,
        device: device.name,
        speed,
        relay_only: wish.relay_only,
    };
    let welcome = door(findings, link, &visitor, derived_seconds).await?;
    ice_servers(findings, link, &welcome.ice_servers, wish.relay_only).await;
    let (fit, all) = fitting?;
    let milliseconds = speed.block_us as f64 / 1e3;
    Some(format!(
        "you can help with {:?}: {fit} of its {all} stages at a time, a block in {milliseconds:.2} ms. Join with \
         shoal join {link}",
        report.name
    ))
}

/// Whether there is a host, and how the clocks compare.
async fn host(findings: &mut Findings, files: &HostFiles, link: &HostLink) -> Option<RunReport> {
    match files.look::<RunReport>("api/run").await {
        Ok((report, ahead)) => {
            let text = format!("{link} hosts {:?}, {}", report.name, report.state);
            findings.ok("host", &text);
            clock(findings, ahead);
            Some(report)
        }
        Err(error) => {
            let failure = match &error {
                HostError::Status { status: 404, .. } => Failure::new(
                    Code::Network,
                    format!("{link} answers, but no run is hosted at that path"),
                    "Check the link: it should be the one that the host printed when it started.",
                ),
                HostError::Format { .. } => Failure::new(
                    Code::Network,
                    format!("{link} answers, but not as a host of this version does"),
                    "Check the link: it should be the one that the host printed when it started.",
                ),
                HostError::Unreachable { .. }
                | HostError::Status { .. }
                | HostError::Length { .. }
                | HostError::Hash { .. }
                | HostError::Path { .. } => error.into(),
            };
            findings.fail("host", failure);
            None
        }
    }
}

fn clock(findings: &Findings, ahead: Option<f64>) {
    let Some(ahead) = ahead else {
        let text = "the host does not say what time it has";
        return findings.note("clock", text, "Make sure that this machine's is right.");
    };
    let side = if ahead < 0.0 { "behind" } else { "ahead of" };
    let seconds = ahead.abs();
    if seconds <= CLOCK_SECONDS_MAX {
        findings.ok("clock", "the same as the host's, to a second or so");
        return;
    }
    let text = format!("this machine's is {seconds:.0} s {side} the host's");
    let remedy = "Let one of them be set by NTP: training does not look at clocks, but certificates and relay \
                  credentials expire by them.";
    findings.note("clock", &text, remedy);
}

/// Stages that fit into what is lent, of all; nothing where none does.
fn fitting(
    findings: &mut Findings,
    config: &RunConfig,
    memory_bytes: Option<u64>,
) -> Option<(usize, usize)> {
    let memory_bytes = memory_bytes?;
    let (fit, all) = door::stages_that_fit(config, memory_bytes);
    if fit == 0 {
        let what = format!("no stage of this run fits into {}", words(memory_bytes));
        let remedy = "Lend more with --memory, or choose another device with --gpu.";
        findings.fail("fit", Failure::new(Code::NoDevice, what, remedy));
        return None;
    }
    findings.ok(
        "fit",
        &format!(
            "{fit} of the model's {all} stages fit into {}",
            words(memory_bytes)
        ),
    );
    Some((fit, all))
}

/// Whether the host lets this machine in. That it does says that both derive the same numbers from the seed.
async fn door(
    findings: &mut Findings,
    link: &HostLink,
    visitor: &Visitor<'_>,
    derived_seconds: f64,
) -> Option<Welcome> {
    match door::visit(link, visitor).await {
        Ok(welcome) => {
            let hash = short(&visitor.seed_hash);
            let text = format!("{hash}, derived in {derived_seconds:.1} s, as the host has it");
            findings.ok("seed", &text);
            let text = format!(
                "the host lets us in, at round {}; we left again",
                welcome.round.0
            );
            findings.ok("door", &text);
            Some(welcome)
        }
        Err(failure) => {
            findings.fail("door", failure);
            None
        }
    }
}

fn short(hash: &Digest) -> String {
    hash.to_string()[..16].to_owned()
}

/// What the run's STUN and TURN servers answer, and what follows for links.
async fn ice_servers(
    findings: &mut Findings,
    link: &HostLink,
    servers: &[IceServer],
    relay_only: bool,
) {
    let tried = ice::try_servers(servers).await;
    for one in &tried {
        ice_server(findings, one);
    }
    let is_relayed = |one: &Tried| matches!(one.outcome, Ok(Answer::Relayed(_)));
    let relayed = tried.iter().any(is_relayed);
    let reflexive = tried
        .iter()
        .any(|one| matches!(one.outcome, Ok(Answer::Reflexive(_))));
    if relay_only && !relayed {
        let what = "no relay works, and --relay-only allows nothing else: no link can be opened";
        let remedy =
            "Leave --relay-only out (others then see this machine's address), or tell the host.";
        return findings.fail("links", Failure::new(Code::Network, what, remedy));
    }
    match (reflexive, relayed) {
        (_, true) => findings.ok("links", "direct, or through a relay where that fails"),
        (true, false) => findings.note(
            "links",
            "direct only: two behind strict routers cannot be linked",
            "Ask the host for a TURN server (--ice-server turn:... --turn-secret ...).",
        ),
        (false, false) if link.is_loopback() => findings.ok("links", "direct, on this machine"),
        (false, false) => findings.note(
            "links",
            "direct, and within one network only: nobody says how the world sees this machine",
            "Ask the host for a STUN and a TURN server (--ice-server).",
        ),
    }
}

fn ice_server(findings: &Findings, tried: &Tried) {
    let what = if tried.is_relay { "TURN" } else { "STUN" };
    let url = &tried.url;
    let error = match &tried.outcome {
        Ok(Answer::Reflexive(address)) => {
            return findings.ok(
                what,
                &format!("{url}: the world sees this machine as {address}"),
            );
        }
        Ok(Answer::Relayed(address)) => {
            return findings.ok(
                what,
                &format!("{url}: it would receive for us at {address}"),
            );
        }
        Err(error) => error,
    };
    let remedy = match error {
        IceError::Silent | IceError::Name { .. } => {
            "Let UDP to it through this machine's firewall, or tell the host that it is down."
        }
        IceError::Transport => "",
        IceError::System { .. } => "See what the system's network settings allow.",
        IceError::Url { .. } | IceError::Credentials { .. } | IceError::Refused { .. } => {
            "Tell the host."
        }
    };
    findings.note(what, &format!("{url}: {error}"), remedy);
}
