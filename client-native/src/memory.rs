//! Memory to lend: as much as the person says, else a careful default; a GPU must show that it has it.
//!
//! A GPU is asked for all of it once, before anybody counts on it ([`Opened::try_memory`]). One that gives less than
//! the careful default lends half of what it gave; one that gives less than a person named lends nothing, since
//! whoever names a number wants to know. What the machine itself has is asked of the system.
//!
//! Invariant: no more is ever taken from the machine's own memory than is free.

use shared::model::device::{DeviceKind, Opened, Trial};

use crate::cli::Memory;
use crate::failure::{Code, Failure};

/// Most that a GPU lends when nobody said how much: every card of the last ten years has it, and beside it what a
/// screen takes. Also what any device lends on a system that does not tell what is free.
pub const CAREFUL_BYTES: u64 = 2_000_000_000;

/// Memory to lend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lent {
    /// How much.
    pub bytes: u64,
    /// Whether a GPU gave it in a trial.
    pub tried: bool,
    /// What the person should know.
    pub trouble: Option<String>,
}

/// Settles what `opened` lends: `asked`, or a careful default.
///
/// # Errors
/// The device does not have what was asked for, or nothing at all.
pub async fn settle(opened: &Opened, asked: Option<Memory>) -> Result<Lent, Failure> {
    let asked_bytes = asked.map(|memory| memory.0);
    let wanted = wanted(opened.kind, asked_bytes, free_bytes());
    let wanted_bytes = wanted.map_err(|free| too_much(&opened.name, asked_bytes, free, None))?;
    let device = opened.clone();
    let trial = tokio::task::spawn_blocking(move || device.try_memory(wanted_bytes)).await;
    // Only a panic of the driver's side ends it early.
    let trial = trial.unwrap_or(Some(Trial {
        given_bytes: 0,
        refusal: Some("the device failed when it was asked for memory".to_owned()),
    }));
    judge(&opened.name, wanted_bytes, asked_bytes.is_some(), trial)
}

/// What to ask the device for; `Err` with what is free where that is less than the person named and a trial would take
/// it from other programs.
fn wanted(kind: DeviceKind, asked: Option<u64>, free: Option<u64>) -> Result<u64, u64> {
    let half = free.map_or(CAREFUL_BYTES, |bytes| bytes / 2);
    match (kind, asked, free) {
        (DeviceKind::SoftwareGpu, Some(asked), Some(free)) if asked > free => Err(free),
        (_, Some(asked), _) => Ok(asked),
        (DeviceKind::Cpu, None, _) => Ok(half),
        (DeviceKind::SoftwareGpu, None, _) => Ok(half.min(CAREFUL_BYTES)),
        (DeviceKind::Gpu, None, _) => Ok(CAREFUL_BYTES),
    }
}

/// What follows from a trial.
fn judge(name: &str, wanted: u64, named: bool, trial: Option<Trial>) -> Result<Lent, Failure> {
    let whole = |tried| Lent {
        bytes: wanted,
        tried,
        trouble: None,
    };
    let Some(trial) = trial else {
        return Ok(whole(false));
    };
    let given = trial.given_bytes;
    let reason = trial.refusal.unwrap_or_default();
    if given >= wanted {
        Ok(whole(true))
    } else if named || given == 0 {
        Err(too_much(
            name,
            named.then_some(wanted),
            given,
            Some(&reason),
        ))
    } else {
        let (given_words, bytes) = (words(given), given / 2);
        let trouble = format!(
            "{name} gave no more than {given_words} of memory ({reason}), so it lends half of that, {}. Close what else \
             uses it, or say how much with --memory",
            words(bytes)
        );
        Ok(Lent {
            bytes,
            tried: true,
            trouble: Some(trouble),
        })
    }
}

/// What there is is less than what was asked for. `refusal` is what the device said, if it was asked.
fn too_much(name: &str, named: Option<u64>, given: u64, refusal: Option<&str>) -> Failure {
    let there_is = match refusal {
        Some(reason) => format!("it gave {} ({reason})", words(given)),
        None => format!("this machine has {} free", words(given)),
    };
    let what = match named {
        Some(named) => format!(
            "{name} does not have the {} that --memory names: {there_is}",
            words(named)
        ),
        None => format!("{name} gives no memory: {there_is}"),
    };
    let remedy = if given / 2 > 0 && named.is_some() {
        format!(
            "Lend less, such as --memory {}, close what else uses it, or choose another device with --gpu.",
            argument(given / 2)
        )
    } else {
        "Close what else uses it, or choose another device with --gpu.".to_owned()
    };
    Failure::new(Code::NoDevice, what, remedy)
}

/// A size as people read it.
pub fn words(bytes: u64) -> String {
    if bytes >= 100_000_000 {
        format!("{:.1} GB", bytes as f64 / 1e9)
    } else {
        format!("{:.1} MB", bytes as f64 / 1e6)
    }
}

/// A size as `--memory` takes it, rounded down.
fn argument(bytes: u64) -> String {
    if bytes >= 1_000_000 {
        format!("{}MB", bytes / 1_000_000)
    } else {
        format!("{bytes}")
    }
}

/// Bytes of memory that programs could still take, where the system tells (Linux).
pub fn free_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn trial(given_bytes: u64) -> Option<Trial> {
        let refusal = Some("out of memory".to_owned());
        Some(Trial {
            given_bytes,
            refusal,
        })
    }

    #[test]
    fn the_default_is_careful_and_a_persons_word_counts() {
        let (cpu, gpu, software) = (DeviceKind::Cpu, DeviceKind::Gpu, DeviceKind::SoftwareGpu);
        assert_eq!(wanted(cpu, None, Some(12 * GB)), Ok(6 * GB));
        assert_eq!(wanted(cpu, None, None), Ok(2 * GB));
        assert_eq!(wanted(gpu, None, Some(GB)), Ok(2 * GB));
        assert_eq!(wanted(gpu, Some(9 * GB), Some(GB)), Ok(9 * GB));
        assert_eq!(wanted(software, None, Some(12 * GB)), Ok(2 * GB));
        assert_eq!(wanted(software, None, Some(3 * GB)), Ok(3 * GB / 2));
        assert_eq!(wanted(software, Some(3 * GB), Some(4 * GB)), Ok(3 * GB));
        assert_eq!(wanted(software, Some(5 * GB), Some(4 * GB)), Err(4 * GB));
    }

    #[test]
    fn a_gpu_that_gives_less_lends_half_of_it_unless_more_was_named() {
        let lent = judge("card", 2 * GB, false, trial(2 * GB)).expect("enough");
        assert_eq!((lent.bytes, lent.tried, lent.trouble), (2 * GB, true, None));
        let lent = judge("card", 2 * GB, false, trial(GB)).expect("some");
        assert_eq!(lent.bytes, GB / 2);
        let trouble = lent.trouble.expect("it says so");
        assert!(trouble.contains("no more than 1.0 GB"), "{trouble}");
        let named = judge("card", 2 * GB, true, trial(GB)).expect_err("less than was named");
        assert_eq!(named.code, Code::NoDevice);
        assert!(
            named
                .what
                .contains("the 2.0 GB that --memory names: it gave 1.0 GB (out of memory)")
        );
        assert!(named.remedy.contains("--memory 500MB"), "{named}");
        let none = judge("card", 2 * GB, false, trial(0)).expect_err("nothing");
        assert!(
            none.what
                .contains("gives no memory: it gave 0.0 MB (out of memory)"),
            "{none}"
        );
    }

    #[test]
    fn a_cpu_is_not_tried() {
        let lent = judge("CPU", 2 * GB, true, None).expect("as it was said");
        assert_eq!((lent.bytes, lent.tried), (2 * GB, false));
    }
}
