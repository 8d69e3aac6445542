//! What is here: key, disk, devices, memory and WebRTC.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use shared::config::run::RunConfig;
use shared::config::written;
use shared::model::device::{self, DeviceKind, Opened};
use shared::model::engine::Engine;
use shared::wire::signal::Speed;

use super::self_link::self_link;
use super::{Findings, broken, kind_words};
use crate::cli::Memory;
use crate::commands::open;
use crate::failure::Failure;
use crate::identity::Identity;
use crate::memory::{self, words};
use crate::volunteer::compute::measure_speed;

/// What the person wants to join with.
pub(super) struct Wish {
    /// Device, as typed.
    pub(super) gpu: String,
    /// Memory to lend; `None` for a careful default.
    pub(super) memory: Option<Memory>,
    /// Where the key is.
    pub(super) identity_path: PathBuf,
    /// Whether links may go through relays only.
    pub(super) relay_only: bool,
}

/// What of this machine could join: what is missing has been told.
pub(super) struct Machine {
    pub(super) identity: Option<Identity>,
    /// With memory to lend.
    pub(super) device: Option<Opened>,
    /// Memory that it would lend.
    pub(super) memory_bytes: Option<u64>,
}

/// Looks at all of it.
pub(super) async fn look(findings: &mut Findings, wish: &Wish) -> Machine {
    let identity = identity(findings, &wish.identity_path);
    adapters(findings);
    let device = match open(&wish.gpu).await {
        Ok(opened) => Some(opened),
        Err(failure) => {
            findings.fail("device", failure);
            None
        }
    };
    let mut memory_bytes = None;
    if let Some(opened) = &device {
        if opened.kind == DeviceKind::SoftwareGpu {
            let text = format!("{} for --gpu {}, on the CPU", opened.name, wish.gpu);
            findings.note("device", &text, "Slower than --gpu cpu.");
        } else {
            findings.ok("device", &format!("{} for --gpu {}", opened.name, wish.gpu));
        }
        memory_bytes = memory(findings, opened, wish.memory).await;
    }
    if identity.is_some() {
        disk(findings, &wish.identity_path, memory_bytes);
    }
    self_link(findings).await;
    Machine {
        identity,
        device: device.filter(|_| memory_bytes.is_some()),
        memory_bytes,
    }
}

impl Machine {
    /// Its speed where no run says what to compute.
    pub(super) async fn preset_speed(&self, findings: &mut Findings) {
        let Some(opened) = &self.device else { return };
        let config = written::read("[run]\npreset = \"tiny\"\n", &[]).expect("a preset is valid");
        speed(findings, opened, &config, "a block of preset tiny").await;
    }
}

fn identity(findings: &mut Findings, path: &Path) -> Option<Identity> {
    match Identity::open(path) {
        Ok(identity) => {
            let digits = identity.public().to_string();
            let text = format!("{} in {}", &digits[..16], path.display());
            if identity.exclusive {
                findings.ok("identity", &text);
            } else {
                let text = format!("{text}, in use by another process");
                let remedy = "Fine: each process joins under its own session; weights are kept by the first one.";
                findings.note("identity", &text, remedy);
            }
            Some(identity)
        }
        Err(error) => {
            findings.fail("identity", error.into());
            None
        }
    }
}

/// The folder where the key lies and weights are kept over a restart: that it takes files, and how many.
fn disk(findings: &Findings, identity_path: &Path, lent_bytes: Option<u64>) {
    let folder = match identity_path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let place = folder.display();
    let lost = "Without it a restart of this machine fetches its weights anew.";
    if let Err(error) = take_a_file(identity_path) {
        let remedy = format!(
            "{lost} Let this user write there, or choose another place with --identity-path."
        );
        return findings.note("disk", &format!("{place} takes no file: {error}"), &remedy);
    }
    let kept_bytes_max = lent_bytes.unwrap_or(0);
    let kept = match lent_bytes {
        Some(bytes) => format!("up to {} of weights are", words(bytes)),
        None => "weights are".to_owned(),
    };
    let kept = format!("{kept} kept there over a restart");
    let Some(free) = free_disk_bytes(folder) else {
        return findings.ok("disk", &format!("{place} can be written; {kept}"));
    };
    let text = format!("{} free in {place}; {kept}", words(free));
    if free < kept_bytes_max {
        let remedy = format!("{lost} Make room, or choose another place with --identity-path.");
        findings.note("disk", &text, &remedy);
    } else {
        findings.ok("disk", &text);
    }
}

/// Writes a file beside the key, and removes it.
fn take_a_file(identity_path: &Path) -> std::io::Result<()> {
    let probe = identity_path.with_extension(format!("{}.probe", std::process::id()));
    let written = File::create_new(&probe).and_then(|mut file| {
        file.write_all(b"shoal doctor")
            .and_then(|()| file.sync_all())
    });
    if written.is_ok() || probe.exists() {
        std::fs::remove_file(&probe)?;
    }
    written
}

/// Bytes that this user could still write into `folder`, where the system tells.
#[cfg(unix)]
fn free_disk_bytes(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Bytes that this user could still write into `folder`, where the system tells.
#[cfg(not(unix))]
fn free_disk_bytes(_folder: &Path) -> Option<u64> {
    None
}

fn adapters(findings: &Findings) {
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
}

async fn memory(findings: &mut Findings, opened: &Opened, asked: Option<Memory>) -> Option<u64> {
    match memory::settle(opened, asked).await {
        Ok(lent) => {
            let whose = match asked {
                Some(_) => "as --memory says",
                None => "unless --memory says otherwise",
            };
            let trial = if lent.tried {
                "; that much was taken, written to and given back"
            } else {
                ""
            };
            let text = format!("lends {} {whose}{trial}", words(lent.bytes));
            let beyond = memory::free_bytes().filter(|free| !lent.tried && lent.bytes > *free);
            match (lent.trouble, beyond) {
                (Some(trouble), _) => findings.note("memory", &text, &format!("{trouble}.")),
                (None, Some(free)) => {
                    let remedy = format!(
                        "Only {} are free now: the system may end shoal. Lend less.",
                        words(free)
                    );
                    findings.note("memory", &text, &remedy);
                }
                (None, None) => findings.ok("memory", &text),
            }
            Some(lent.bytes)
        }
        Err(failure) => {
            findings.fail("memory", failure);
            None
        }
    }
}

/// Forward and backward of a block, measured as before joining.
pub(super) async fn speed(
    findings: &mut Findings,
    opened: &Opened,
    config: &RunConfig,
    block: &str,
) -> Option<Speed> {
    let (device, config, context) = (opened.device.clone(), config.clone(), config.model.context);
    let measured = tokio::task::spawn_blocking(move || {
        let mut engine = Engine::new(config.clone(), device);
        measure_speed(&mut engine, &config)
    });
    // A device that is lost may take its thread with it.
    let outcome = measured
        .await
        .unwrap_or_else(|_| Err("it failed without a word".to_owned()));
    match outcome {
        Ok(speed) => {
            let block_us = speed.block_us;
            let text = format!(
                "{block} takes {:.2} ms a sequence, forward and backward: {:.0} tokens/s",
                block_us as f64 / 1e3,
                context as f64 / (block_us as f64 / 1e6)
            );
            findings.ok("speed", &text);
            Some(speed)
        }
        Err(reason) => {
            let remedy = "Choose another device with --gpu.";
            let what = format!("{} computes no block: {reason}", opened.name);
            findings.fail(
                "speed",
                Failure::new(crate::failure::Code::NoDevice, what, remedy),
            );
            None
        }
    }
}

/// What follows from a run's seed on this machine.
pub(super) async fn derive(
    findings: &mut Findings,
    config: &RunConfig,
) -> Option<shared::units::Digest> {
    let (model, seed) = (config.model.clone(), config.seed);
    let derived = tokio::task::spawn_blocking(move || shared::derive::seed_hash(&model, seed));
    match derived.await {
        Ok(hash) => Some(shared::units::Digest(hash)),
        Err(_) => {
            findings.fail("seed", broken("deriving the run's weights failed"));
            None
        }
    }
}
