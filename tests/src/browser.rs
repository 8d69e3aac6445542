//! A page in headless Chromium: what it holds once its scripts have run.
//!
//! One process and one fresh profile a call, without a network beyond this machine's, bounded in
//! time. It does not know what the page is.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};

/// Names under which Chromium is found in `PATH`.
const NAMES: [&str; 5] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
];

/// Switches that keep Chromium from talking to anybody and from asking anything.
const QUIET: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
];

/// Chromium on this machine: `SHOAL_CHROMIUM` if set, else what `PATH` holds.
#[must_use]
pub fn chromium() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("SHOAL_CHROMIUM") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).flat_map(|folder| NAMES.map(|name| folder.join(name)));
    found.into_iter().find(|file| file.is_file())
}

/// The document at `url` as text, after its scripts had `script_time` of the page's own clock.
///
/// The page's clock stands still while it loads anything, so a slow machine changes nothing.
///
/// # Errors
/// There is no Chromium, or it did not end within `wait_max`.
pub fn document(url: &str, script_time: Duration, wait_max: Duration) -> anyhow::Result<String> {
    let chromium = chromium().context("no Chromium found; `cargo xtask setup` installs it")?;
    let profile = tempfile::tempdir()?;
    let child = Command::new(chromium)
        .args(QUIET)
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--virtual-time-budget={}", script_time.as_millis()))
        .args(["--dump-dom", url])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("Chromium did not start")?;
    let mut running = Running(child);
    let mut output = running.0.stdout.take().context("the output is piped")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = output.read_to_string(&mut text).map(|_| text);
        // Nobody listens any more when the time was up.
        drop(sender.send(read));
    });
    let Ok(text) = receiver.recv_timeout(wait_max) else {
        bail!("Chromium did not end within {} s", wait_max.as_secs());
    };
    Ok(text?)
}

/// Ends the process with the value, whatever happens in between.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only where it has ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
