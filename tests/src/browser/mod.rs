//! Real headless Chromium, driven as a person would drive it.
//!
//! [`Browser`] is one process with one profile; a volunteer in a tab gets one of its own. [`Page`]
//! is a tab: it is opened, looked at, clicked by role and name, and everything that it says, loads
//! and breaks is kept. Every wait has a limit. Nothing here knows what Shoal's page is.

mod axe;
mod devtools;
mod hands;
mod kin;
mod page;
mod trace;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use serde_json::json;
use tempfile::TempDir;

pub use axe::{AXE_VERSION, axe_file, axe_folder};
pub use page::{Page, Said};
pub use trace::Task;

use devtools::{ANSWER_WAIT_MAX, Connection};

/// Names under which Chromium is found in `PATH`.
const NAMES: [&str; 5] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
];

/// Switches that keep Chromium from talking to anybody, from asking anything, and from slowing
/// down a tab because no one looks at it.
const QUIET: [&str; 13] = [
    "--headless",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-breakpad",
    "--hide-scrollbars",
    "--mute-audio",
];

/// What computes on this machine for `navigator.gpu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WebGpu {
    /// Nothing: a page finds no adapter and works on the CPU.
    #[default]
    Absent,
    /// SwiftShader, which comes with Chromium and computes on the CPU: slow, and the real path.
    SwiftShader,
}

/// How a browser is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether pages find a GPU.
    pub webgpu: WebGpu,
    /// A folder to keep keys, storage and settings in; none gives a new one that goes with the browser.
    pub profile: Option<PathBuf>,
    /// More switches.
    pub arguments: Vec<String>,
}

/// One Chromium process. It ends when this value and all its pages are gone.
#[derive(Debug)]
pub struct Browser {
    connection: Shared,
}

/// The connection, as the browser and its pages hold it.
#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<Connection>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Chromium on this machine: `SHOAL_CHROMIUM` if set, else what `PATH` holds.
#[must_use]
pub fn chromium() -> Option<PathBuf> {
    program("SHOAL_CHROMIUM", &NAMES)
}

/// Firefox on this machine: `SHOAL_FIREFOX` if set, else what `PATH` holds.
#[must_use]
pub fn firefox() -> Option<PathBuf> {
    program("SHOAL_FIREFOX", &["firefox-esr", "firefox"])
}

/// What the system's Vulkan loader must be told to find Chromium's SwiftShader, for other programs to compute with.
///
/// # Errors
/// There is no Chromium, or it came without.
pub fn swiftshader() -> anyhow::Result<PathBuf> {
    const NAME: &str = "vk_swiftshader_icd.json";
    let program = chromium().context("no Chromium found; `cargo xtask setup` installs it")?;
    let program = std::fs::canonicalize(program)?;
    let beside = program.parent().map(|folder| folder.join(NAME));
    // Debian's program is a script elsewhere.
    let known = [beside, Some(PathBuf::from("/usr/lib/chromium").join(NAME))];
    let mut found = known.into_iter().flatten().filter(|file| file.is_file());
    found
        .next()
        .with_context(|| format!("{} came without {NAME}", program.display()))
}

/// What a variable of the environment names, else the first of `names` on `PATH`.
fn program(variable: &str, names: &[&str]) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    let mut folders = std::env::split_paths(&path);
    folders.find_map(|folder| {
        let files = names.iter().map(|name| folder.join(name));
        files.into_iter().find(|file| file.is_file())
    })
}

impl Browser {
    /// Starts Chromium.
    ///
    /// # Errors
    /// There is none on this machine, or it does not come up.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        let program = chromium().context("no Chromium found; `cargo xtask setup` installs it")?;
        let fresh = match &options.profile {
            Some(_) => None,
            None => Some(
                tempfile::Builder::new()
                    .prefix("shoal-profile-")
                    .tempdir()?,
            ),
        };
        let profile = options
            .profile
            .as_deref()
            .or(fresh.as_ref().map(TempDir::path));
        let profile = profile.context("a profile was given or made")?;
        let webgpu: &[&str] = match options.webgpu {
            WebGpu::Absent => &["--disable-gpu"],
            WebGpu::SwiftShader => &["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"],
        };
        let arguments: Vec<String> = QUIET
            .iter()
            .chain(webgpu)
            .map(|&switch| switch.to_owned())
            .chain([format!("--user-data-dir={}", profile.display())])
            .chain(options.arguments.iter().cloned())
            .collect();
        let mut connection = Connection::start(&program, &arguments, fresh)?;
        // Its first answer says that it is up.
        connection.call(None, "Browser.getVersion", &json!({}), ANSWER_WAIT_MAX)?;
        Ok(Self {
            connection: Shared(Arc::new(Mutex::new(connection))),
        })
    }

    /// Opens `url` in a new tab and waits until it is loaded.
    ///
    /// # Errors
    /// It does not load.
    pub fn open(&self, url: &str) -> anyhow::Result<Page> {
        let mut page = self.blank()?;
        page.goto(url)?;
        Ok(page)
    }

    /// An empty tab, to be set up before it goes anywhere.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn blank(&self) -> anyhow::Result<Page> {
        Page::blank(self.connection.clone())
    }

    /// Number of the process, for measuring it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.connection.lock().pid()
    }

    /// Ends the process that talks to the GPU, as a driver's fault does; Chromium starts another.
    ///
    /// # Errors
    /// There is none.
    pub fn kill_gpu(&self) -> anyhow::Result<()> {
        kin::kill(self.pid(), "gpu-process")
    }

    /// Puts the browser to sleep, as a closed lid does, or wakes it. One that sleeps answers nothing.
    ///
    /// # Errors
    /// It has ended.
    pub fn sleep(&self, is_asleep: bool) -> anyhow::Result<()> {
        kin::sleep(self.pid(), is_asleep)
    }

    /// Closes all tabs and the browser as a person does, so that a kept profile is whole.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn close(self) -> anyhow::Result<()> {
        self.connection.lock().close()
    }

    /// Ends the process at once, as a power cut does.
    pub fn kill(self) {
        self.connection.lock().kill();
    }
}

#[cfg(test)]
mod tests;
