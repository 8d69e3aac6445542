//! A tab that lends, in a browser of its own: what a person clicks, and what its worker tells the page.
//!
//! What passes between page and worker is heard by a script that runs before the page's own, so nothing in the
//! page is there for tests. Begin with [`Tab::lend`].

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::browser::{Browser, Options, Page, WebGpu};
use crate::community::{Community, Small};
use crate::paths;

/// For a module to load and compile, with other tests beside it on a slow machine.
pub const LOAD_MAX: Duration = Duration::from_secs(90);

/// What the page calls the worker that takes part.
pub const VOLUNTEER: &str = "volunteer";
/// What it calls the one that computes.
pub const DEVICE: &str = "device";

/// For a page, before its own scripts: keeps what the volunteer's worker tells it, the newest message of each kind, and
/// when each kind, each phase and the first microbatch was first told, in milliseconds of the page.
pub const HEAR: &str = "(() => {
  const told = { at: {} };
  Object.defineProperty(globalThis, '__told', { value: told });
  const note = (name) => { told.at[name] ??= performance.now(); };
  const Own = globalThis.Worker;
  globalThis.Worker = class extends Own {
    constructor(...rest) {
      super(...rest);
      if (rest[1]?.name !== 'volunteer') return;
      note('asked');
      this.addEventListener('message', ({ data }) => {
        if (typeof data !== 'string') return;
        const message = JSON.parse(data);
        if (typeof message === 'string') return note(message);
        for (const [name, value] of Object.entries(message)) {
          told[name] = value;
          note(name);
          if (name !== 'snapshot') continue;
          note(value.phase);
          if (value.microbatches > 0) note('microbatch');
        }
      });
    }
  };
})()";

/// In the page: keeps when jobs were handed over and work was submitted to the GPU, and how long each job took, in
/// milliseconds; and when Stop was clicked.
const COUNT: &str = "(() => {
  globalThis.__jobs = { handed: [], submitted: [], busy: 0, stopped: null };
  new BroadcastChannel('jobs').onmessage = ({ data }) => {
    if (data.handed) __jobs.handed.push(data.handed);
    else if (data.submitted) __jobs.submitted.push(data.submitted);
    else __jobs.busy += data.busy;
  };
  document.addEventListener('click', ({ target }) => {
    if (target.closest('button')?.textContent === 'Stop') __jobs.stopped = performance.timeOrigin + performance.now();
  }, true);
  return true;
})()";

/// In the volunteer's worker: tells of each message to the device's, and of each answer.
const TELL_JOBS: &str = "(() => {
  const told = new BroadcastChannel('jobs');
  const now = () => performance.timeOrigin + performance.now();
  const post = MessagePort.prototype.postMessage;
  const heard = new WeakSet();
  let since = 0;
  MessagePort.prototype.postMessage = function (...rest) {
    if (!heard.has(this)) {
      heard.add(this);
      this.addEventListener('message', () => told.postMessage({ busy: now() - since }));
    }
    since = now();
    told.postMessage({ handed: since });
    return post.apply(this, rest);
  };
  return true;
})()";

/// In the device's worker: tells of what it submits to the GPU.
const TELL_SUBMISSIONS: &str = "(() => {
  const told = new BroadcastChannel('jobs');
  const submit = GPUQueue.prototype.submit;
  GPUQueue.prototype.submit = function (...rest) {
    told.postMessage({ submitted: performance.timeOrigin + performance.now() });
    return submit.apply(this, rest);
  };
  return true;
})()";

/// How a tab comes to work: what ends a part, in milliseconds of the page, and what the part was.
const JOINING: [(&str, &str); 4] = [
    ("at.asked", "page_loaded"),
    ("at.ready", "worker_loaded"),
    ("at.gathering", "device_measured_admitted_and_seated"),
    ("at.microbatch", "links_open_and_first_microbatch_computed"),
];

/// What computes in a tab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The CPU, in WebAssembly.
    #[default]
    Cpu,
    /// WebGPU, which SwiftShader computes on the CPU.
    WebGpu,
}

/// How a tab is set up before it goes anywhere.
#[derive(Clone, Debug, Default)]
pub struct Lend {
    /// What computes.
    pub device: Device,
    /// Memory that the person lends, in bytes, if not the usual amount.
    pub memory_bytes: Option<u64>,
    /// Share of the time that the device works, in percent, if not all of it.
    pub throttle_percent: Option<u8>,
    /// Whether only relayed links are made.
    pub relay_only: bool,
    /// Scripts that run before the page's own.
    pub before_scripts: Vec<String>,
    /// More switches for the browser.
    pub arguments: Vec<String>,
}

/// A browser with one tab on a run's page. Its fields end in this order.
#[derive(Debug)]
pub struct Tab {
    /// The tab.
    pub page: Page,
    /// Its browser.
    pub browser: Browser,
}

/// Devices that a topology is tried on: the CPU, and with `cargo xtask e2e --all` WebGPU, too.
#[must_use]
pub fn devices() -> &'static [Device] {
    if std::env::var_os("SHOAL_E2E_ALL").is_some() {
        &[Device::Cpu, Device::WebGpu]
    } else {
        &[Device::Cpu]
    }
}

/// One test of a program at a time: each has several browsers, and two cores are few for one.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run with a page for tabs.
///
/// # Errors
/// The web client is not built, or as [`Community::gather`].
pub fn gather(small: &Small, names: &[&str]) -> anyhow::Result<Community> {
    gather_with(small, vec![], names)
}

/// The same, with more arguments for the host.
///
/// # Errors
/// As [`gather`].
pub fn gather_with(
    small: &Small,
    arguments: Vec<String>,
    names: &[&str],
) -> anyhow::Result<Community> {
    gather_around(&paths::www()?, small, arguments, names)
}

/// The same with the page in a folder, such as [`www_with`] gives.
///
/// # Errors
/// As [`gather`].
pub fn gather_around(
    www: &Path,
    small: &Small,
    mut arguments: Vec<String>,
    names: &[&str],
) -> anyhow::Result<Community> {
    arguments.extend(["--www".to_owned(), www.display().to_string()]);
    Community::gather_with(small, arguments, names)
}

/// A small run; where a GPU is computed by the CPU, its rounds are short.
#[must_use]
pub fn small_on(device: Device, seats_min: u16) -> Small {
    let usual = Small {
        seats_min,
        ..Small::default()
    };
    match device {
        Device::Cpu => usual,
        Device::WebGpu => Small {
            round_steps: 1,
            microbatches: 1,
            ..usual
        },
    }
}

/// The web client with `script` before its worker's own, in a folder to give a host with `--www`.
///
/// # Errors
/// The web client is not built, or is not packed.
pub fn www_with(script: &str) -> anyhow::Result<TempDir> {
    let built = paths::target()?.join("wasm32-unknown-unknown/web/bindings");
    let www = tempfile::Builder::new().prefix("shoal-www-").tempdir()?;
    let worker = www.path().join("worker");
    std::fs::create_dir(&worker)?;
    for entry in std::fs::read_dir(built.join("worker"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), worker.join(entry.file_name()))?;
    }
    let module = worker.join("worker.js");
    let own = std::fs::read_to_string(&module)?;
    std::fs::write(&module, format!("{script}\n{own}"))?;
    let mut pack = Command::new(paths::program("pack")?);
    pack.arg(www.path().join("pkg")).arg(paths::www()?);
    let packed = pack.arg(built.join("page")).arg(&worker).status()?;
    ensure!(packed.success(), "the web client is not packed: {packed}");
    Ok(www)
}

impl Tab {
    /// Opens the run's page in a new browser; nothing is clicked.
    ///
    /// # Errors
    /// Chromium does not start, or the page does not load.
    pub fn visit(community: &Community, how: &Lend) -> anyhow::Result<Self> {
        Self::open(community.host.url(), how)
    }

    /// The same for the run at `url`.
    ///
    /// # Errors
    /// As [`Self::visit`].
    pub fn open(url: &str, how: &Lend) -> anyhow::Result<Self> {
        let options = Options {
            webgpu: match how.device {
                Device::Cpu => WebGpu::Absent,
                Device::WebGpu => WebGpu::SwiftShader,
            },
            arguments: how.arguments.clone(),
            ..Options::default()
        };
        Self::open_in(Browser::start(&options)?, url, how)
    }

    /// The same in a browser that is there already: one that closed its tab knows who it was.
    ///
    /// # Errors
    /// As [`Self::visit`].
    pub fn open_in(browser: Browser, url: &str, how: &Lend) -> anyhow::Result<Self> {
        let device = match how.device {
            Device::Cpu => "cpu",
            Device::WebGpu => "webgpu",
        };
        let mut page = browser.blank()?;
        page.before_scripts(HEAR)?;
        for script in &how.before_scripts {
            page.before_scripts(script)?;
        }
        let settings = json!({
            "memory_bytes": how.memory_bytes,
            "throttle_percent": how.throttle_percent.unwrap_or(100),
        });
        // An empty tab has no storage.
        page.before_scripts(&format!(
            "try {{ localStorage['shoal-settings'] ??= {}; }} catch {{}}",
            json!(settings.to_string())
        ))?;
        let relay = if how.relay_only { "&relay=1" } else { "" };
        page.goto(&format!("{url}?device={device}{relay}"))?;
        Ok(Self { page, browser })
    }

    /// Opens the run's page, looks and lends, as a person does.
    ///
    /// # Errors
    /// The page does not offer it.
    pub fn lend(community: &Community, how: &Lend) -> anyhow::Result<Self> {
        Self::visit(community, how)?.lending()
    }

    /// The same tab, once it lends.
    ///
    /// # Errors
    /// As [`Self::contribute`].
    pub fn lending(mut self) -> anyhow::Result<Self> {
        self.contribute()?;
        Ok(self)
    }

    /// Looks and lends, as a person does.
    ///
    /// # Errors
    /// The page does not offer it.
    pub fn contribute(&mut self) -> anyhow::Result<()> {
        for button in ["Check this computer", "Contribute"] {
            self.page.wait_for_role("button", button, LOAD_MAX)?;
            self.page.click("button", button)?;
        }
        self.page.wait_for_role("button", "Stop", LOAD_MAX)
    }

    /// Stops, as a person does, and waits until the page says that it did.
    ///
    /// # Errors
    /// It does not.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.page.click("button", "Stop")?;
        let says = "Nothing is computed here any more";
        self.page.wait_for_text(says, LOAD_MAX)
    }

    /// Waits until the worker's last word on how it stands, `now`, is as `holds` asks, and gives that.
    ///
    /// # Errors
    /// It is not within `wait_max`.
    pub fn stands(&mut self, holds: &str, wait_max: Duration) -> anyhow::Result<Value> {
        let script = format!("((now) => now && ({holds}) && now)(__told.snapshot)");
        self.page.wait_for(holds, wait_max, &script)
    }

    /// Milliseconds of each part of the way from loading the page to the first microbatch, which is computed.
    ///
    /// # Errors
    /// Something was not told on the way.
    pub fn joined(&self) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let mut before = 0.0;
        let mut parts = Vec::new();
        for (moment, part) in JOINING {
            let script = format!("((at) => {moment})(__told.at)");
            let at = self.page.evaluate(&script)?.as_f64();
            let at =
                at.with_context(|| format!("no {moment}: {:?}", self.page.evaluate("__told")))?;
            parts.push((part, at - before));
            before = at;
        }
        Ok(parts)
    }

    /// From now on counts, in the page, the jobs that the worker hands to its device, and how long the device was busy.
    ///
    /// # Errors
    /// There is no worker yet.
    pub fn count_jobs(&self) -> anyhow::Result<()> {
        self.page.evaluate(COUNT)?;
        self.page.evaluate_in_worker(VOLUNTEER, TELL_JOBS).map(drop)
    }

    /// The same for what is submitted to the GPU.
    ///
    /// # Errors
    /// There is no worker for a device yet, or its browser knows no WebGPU.
    pub fn count_submissions(&self) -> anyhow::Result<()> {
        self.count_jobs()?;
        self.page
            .evaluate_in_worker(DEVICE, TELL_SUBMISSIONS)
            .map(drop)
    }

    /// Messages of one kind that this tab sent to the host, in order.
    ///
    /// # Errors
    /// Chromium has ended.
    pub fn sent(&mut self, kind: &str) -> anyhow::Result<Vec<Value>> {
        let sent = self.page.sent()?.iter();
        let messages = sent.filter_map(|text| serde_json::from_str::<Value>(text).ok());
        Ok(messages.filter(|one| one["type"] == kind).collect())
    }

    /// Holds the tab to having said and loaded nothing wrong.
    ///
    /// # Errors
    /// What was wrong.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let errors = self.page.errors()?;
        ensure!(errors.is_empty(), "the tab says {errors:?}");
        Ok(())
    }
}
