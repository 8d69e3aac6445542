//! Chromium's own processes, as Linux lists them.

use std::path::Path;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

/// Ends, as a fault does, the process that Chromium (`browser`) started as its `--type=KIND`.
///
/// # Errors
/// There is none, or it cannot be ended.
pub(super) fn kill(browser: u32, kind: &str) -> anyhow::Result<()> {
    let switch = format!("--type={kind}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // One that has just ended has no files any more.
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // Chromium writes its own, with spaces.
        let mut arguments = command.split(|byte| b"\0 ".contains(byte));
        if arguments.any(|one| one == switch.as_bytes()) && is_below(pid, browser) {
            found.push(pid);
        }
    }
    let pid = found.first().with_context(|| format!("no {switch}"))?;
    let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
    kill_process(pid.context("a number of a process")?, Signal::KILL)?;
    Ok(())
}

/// Whether `pid` was started by `ancestor`, or by something that was.
fn is_below(pid: u32, ancestor: u32) -> bool {
    let mut next = Some(pid);
    while let Some(pid) = next {
        if pid == ancestor {
            return true;
        }
        next = parent(pid);
    }
    false
}

fn parent(pid: u32) -> Option<u32> {
    let stat = Path::new("/proc").join(pid.to_string()).join("stat");
    let stat = std::fs::read_to_string(stat).ok()?;
    // After the name, which may hold anything: state, parent.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}
