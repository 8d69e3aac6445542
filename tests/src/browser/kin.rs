//! Chromium's own processes, as Linux lists them.

use std::path::Path;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Ends, as a fault does, the process that Chromium (`browser`) started as its `--type=KIND`.
///
/// # Errors
/// There is none, or it cannot be ended.
pub(super) fn kill(browser: u32, kind: &str) -> anyhow::Result<()> {
    let switch = format!("--type={kind}");
    for pid in all(browser)? {
        // One that has just ended has no files any more.
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Chromium writes its own, with spaces.
        let mut arguments = command.split(|byte| b"\0 ".contains(byte));
        if arguments.any(|one| one == switch.as_bytes()) {
            return send(pid, Signal::KILL);
        }
    }
    bail!("no {switch}")
}

/// Stops or continues Chromium with all that it started, as a machine that goes to sleep and wakes up does.
///
/// # Errors
/// Its own process has ended.
pub(super) fn sleep(browser: u32, is_asleep: bool) -> anyhow::Result<()> {
    let signal = if is_asleep {
        Signal::STOP
    } else {
        Signal::CONT
    };
    for pid in all(browser)? {
        let sent = send(pid, signal);
        if pid == browser {
            sent?;
        }
    }
    Ok(())
}

fn send(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(pid.context("a number of a process")?, signal)?;
    Ok(())
}

/// Chromium's process and those that it started.
fn all(browser: u32) -> anyhow::Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc")?.filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|&pid| is_below(pid, browser)).collect())
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
