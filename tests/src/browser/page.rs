//! One tab: where it goes, what it shows, what it says, and a person's hands on it.
//!
//! What a person sees is found by role and name, as a screen reader finds it: what cannot be found
//! here cannot be found by everybody (`hands`). A page's workers count as the page in what is said, loaded
//! and broken. Begin with [`Page::wait_for`], [`Page::click`] and [`Page::errors`].

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Shared;
use super::devtools::{ANSWER_WAIT_MAX, Event};

/// For a page of this machine to load.
const LOAD_WAIT_MAX: Duration = Duration::from_secs(60);
/// Between two looks at a page while it says nothing.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// Runs in every document before its own scripts: keeps what the browser calls long tasks.
const BEFORE_SCRIPTS: &str = "(() => {
  const kept = [];
  Object.defineProperty(globalThis, '__long_tasks_ms', { value: kept });
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) kept.push(entry.duration);
  }).observe({ type: 'longtask', buffered: true });
})()";

/// A tab. Dropping it leaves it open in its browser; [`Page::close`] closes it.
#[derive(Debug)]
pub struct Page {
    pub(super) connection: Shared,
    target: String,
    pub(super) session: String,
    said: Vec<Said>,
    requests: Vec<String>,
    sent: Vec<String>,
}

/// Something that a page, or a worker of it, said or broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// `log`, `info`, `warning`, `error`, `exception`.
    pub level: String,
    /// The text, and where it was said.
    pub text: String,
}

impl Page {
    pub(super) fn blank(connection: Shared) -> anyhow::Result<Self> {
        let (target, session) = {
            let mut held = connection.lock();
            let mut call =
                |method: &str, params: Value| held.call(None, method, &params, ANSWER_WAIT_MAX);
            let made = call("Target.createTarget", json!({ "url": "about:blank" }))?;
            let target = made["targetId"].as_str().context("a tab has a name")?;
            let attached = call(
                "Target.attachToTarget",
                json!({ "targetId": target, "flatten": true }),
            )?;
            let session = attached["sessionId"]
                .as_str()
                .context("a session has a name")?;
            (target.to_owned(), session.to_owned())
        };
        let page = Self {
            connection,
            target,
            session,
            said: vec![],
            requests: vec![],
            sent: vec![],
        };
        for domain in ["Page", "DOM", "Accessibility", "Log", "Performance"] {
            page.call(&format!("{domain}.enable"), &json!({}))?;
        }
        page.before_scripts(BEFORE_SCRIPTS)?;
        Ok(page)
    }

    /// From now on `script` runs in every document of this tab, before the document's own scripts.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn before_scripts(&self, script: &str) -> anyhow::Result<()> {
        let params = json!({ "source": script });
        self.call("Page.addScriptToEvaluateOnNewDocument", &params)
            .map(drop)
    }

    /// Goes to `url` and waits until it is loaded.
    ///
    /// # Errors
    /// Nobody answers there, or it is not loaded within a minute.
    pub fn goto(&mut self, url: &str) -> anyhow::Result<()> {
        self.listen()?;
        let answer = self.call("Page.navigate", &json!({ "url": url }))?;
        if let Some(error) = answer["errorText"].as_str() {
            bail!("{url}: {error}");
        }
        self.wait_loaded(url)
    }

    /// Loads the page again, as a person does.
    ///
    /// # Errors
    /// As [`Page::goto`].
    pub fn reload(&mut self) -> anyhow::Result<()> {
        self.listen()?;
        // Marks the document, so that the old one is not taken for the new one.
        self.evaluate("globalThis.__old = true")?;
        self.call("Page.reload", &json!({}))?;
        self.wait_for("the new document", LOAD_WAIT_MAX, "!globalThis.__old")?;
        self.wait_loaded("the page")
    }

    fn wait_loaded(&mut self, what: &str) -> anyhow::Result<()> {
        let loaded = "document.readyState === 'complete' && location.href !== 'about:blank'";
        self.wait_for(what, LOAD_WAIT_MAX, loaded).map(drop)
    }

    /// Closes the tab as a person does: the page hears `pagehide`.
    ///
    /// # Errors
    /// Chromium has ended.
    pub fn close(self) -> anyhow::Result<()> {
        let mut held = self.connection.lock();
        let params = json!({ "targetId": self.target });
        held.call(None, "Target.closeTarget", &params, ANSWER_WAIT_MAX)?;
        let deadline = Instant::now() + ANSWER_WAIT_MAX;
        while !held.session(&self.session).is_gone {
            if !held.hear(deadline)? {
                bail!("the tab is still open after {ANSWER_WAIT_MAX:?}");
            }
        }
        Ok(())
    }

    /// What `script` gives, which may be a promise, as JSON.
    ///
    /// # Errors
    /// The script throws; the message is the page's.
    pub fn evaluate(&self, script: &str) -> anyhow::Result<Value> {
        self.evaluate_in(&self.session, script)
    }

    /// What `script` gives in the page's dedicated worker of that name.
    ///
    /// # Errors
    /// As [`Page::evaluate`], or it has no such worker.
    pub fn evaluate_in_worker(&self, name: &str, script: &str) -> anyhow::Result<Value> {
        for worker in self.workers() {
            if self.evaluate_in(&worker, "self.name")? == name {
                return self.evaluate_in(&worker, script);
            }
        }
        bail!("the page has no worker '{name}'");
    }

    /// The workers that live.
    fn workers(&self) -> Vec<String> {
        let mut held = self.connection.lock();
        let mut family = held.family(&self.session);
        family.retain(|name| {
            let session = held.session(name);
            session.kind == "worker" && !session.is_gone
        });
        family
    }

    /// How many workers the page and its workers have now.
    ///
    /// # Errors
    /// Chromium has ended.
    pub fn worker_count(&mut self) -> anyhow::Result<usize> {
        self.listen()?;
        Ok(self.workers().len())
    }

    /// Waits until the page and its workers have `count` workers: Chromium tells of an end some time after it.
    ///
    /// # Errors
    /// They have not within `wait_max`, or Chromium has ended.
    pub fn wait_for_workers(&mut self, count: usize, wait_max: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + wait_max;
        while self.worker_count()? != count {
            if Instant::now() >= deadline {
                bail!("not {count} workers in {wait_max:?}\n{}", self.state());
            }
            let look = deadline.min(Instant::now() + LOOK);
            let mut held = self.connection.lock();
            while held.hear(look)? {}
        }
        Ok(())
    }

    fn evaluate_in(&self, session: &str, script: &str) -> anyhow::Result<Value> {
        let params = json!({
            "expression": script,
            "awaitPromise": true,
            "returnByValue": true,
            "userGesture": false,
        });
        let mut held = self.connection.lock();
        let mut answer = held.call(Some(session), "Runtime.evaluate", &params, ANSWER_WAIT_MAX)?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            bail!("the page throws {}", thrown_text(thrown));
        }
        Ok(answer["result"]["value"].take())
    }

    /// Waits until `script` gives something true, and gives it.
    ///
    /// # Errors
    /// It does not within `wait_max`; the message holds what the page shows and says.
    pub fn wait_for(
        &mut self,
        what: &str,
        wait_max: Duration,
        script: &str,
    ) -> anyhow::Result<Value> {
        let deadline = Instant::now() + wait_max;
        loop {
            // A document that is being replaced answers nothing; the next one will.
            let found = self.evaluate(script);
            if let Ok(value) = &found
                && is_true(value)
            {
                return found;
            }
            if Instant::now() >= deadline {
                let last = match found {
                    Ok(value) => value.to_string(),
                    Err(error) => format!("{error:#}"),
                };
                bail!("no {what} in {wait_max:?}: {last}\n{}", self.state());
            }
            let look = deadline.min(Instant::now() + LOOK);
            let mut held = self.connection.lock();
            while held.hear(look)? {}
        }
    }

    /// Waits until the page shows `text` somewhere.
    ///
    /// # Errors
    /// As [`Page::wait_for`].
    pub fn wait_for_text(&mut self, text: &str, wait_max: Duration) -> anyhow::Result<()> {
        let script = format!("document.body.innerText.includes({})", json!(text));
        self.wait_for(&format!("text '{text}'"), wait_max, &script)
            .map(drop)
    }

    /// All text that the page shows.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn text(&self) -> anyhow::Result<String> {
        let text = self.evaluate("document.body.innerText")?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Everything that the page and its workers said so far.
    ///
    /// # Errors
    /// Chromium has ended.
    pub fn said(&mut self) -> anyhow::Result<&[Said]> {
        self.listen()?;
        Ok(&self.said)
    }

    /// What was wrong so far: errors on the console, exceptions, refused and failed loads.
    ///
    /// # Errors
    /// Chromium has ended.
    pub fn errors(&mut self) -> anyhow::Result<Vec<String>> {
        let is_wrong = |one: &&Said| ["error", "exception", "assert"].contains(&one.level.as_str());
        let said = self.said()?;
        Ok(said
            .iter()
            .filter(is_wrong)
            .map(|one| one.text.clone())
            .collect())
    }

    /// Addresses of everything that the page and its workers asked for so far.
    ///
    /// # Errors
    /// Chromium has ended.
    pub fn requests(&mut self) -> anyhow::Result<&[String]> {
        self.listen()?;
        Ok(&self.requests)
    }

    /// Texts that the page and its workers sent over WebSockets so far.
    ///
    /// # Errors
    /// Chromium has ended.
    pub fn sent(&mut self) -> anyhow::Result<&[String]> {
        self.listen()?;
        Ok(&self.sent)
    }

    /// Durations by the clock of the main thread's tasks over 50 ms since the document began, in milliseconds.
    ///
    /// On a busy machine that is more than the page's own doing; [`Page::trace`] tells CPU time.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn long_tasks_ms(&self) -> anyhow::Result<Vec<f64>> {
        let kept = self.evaluate("[...globalThis.__long_tasks_ms]")?;
        Ok(kept
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .collect())
    }

    /// Makes the page as wide and high as a screen, in CSS pixels.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn resize(&self, width: u32, height: u32) -> anyhow::Result<()> {
        let params = json!({
            "width": width,
            "height": height,
            "deviceScaleFactor": 1,
            "mobile": width < 600,
        });
        self.call("Emulation.setDeviceMetricsOverride", &params)
            .map(drop)
    }

    /// Tells the page that the person prefers dark colours, or light ones.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn prefer_dark(&self, is_dark: bool) -> anyhow::Result<()> {
        let value = if is_dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": value }]);
        self.call(
            "Emulation.setEmulatedMedia",
            &json!({ "features": features }),
        )
        .map(drop)
    }

    /// Slows down what the page loads to a line of so many bytes a second each way.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn slow_down(&self, latency: Duration, bytes_per_second: u64) -> anyhow::Result<()> {
        let params = json!({
            "offline": false,
            "latency": latency.as_millis(),
            "downloadThroughput": bytes_per_second,
            "uploadThroughput": bytes_per_second,
        });
        self.call("Network.emulateNetworkConditions", &params)
            .map(drop)
    }

    /// Puts the tab before the browser's others: what a hidden one shows, no screen reader is told.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn bring_to_front(&self) -> anyhow::Result<()> {
        self.call("Page.bringToFront", &json!({})).map(drop)
    }

    /// Leaves the page so many bytes of the browser's storage.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn limit_storage(&self, bytes: u64) -> anyhow::Result<()> {
        let origin = self.evaluate("location.origin")?;
        let params = json!({ "origin": origin, "quotaSize": bytes });
        self.call("Storage.overrideQuotaForOrigin", &params)
            .map(drop)
    }

    /// Writes a picture of the whole page into `folder` as `NAME.png`. Gives the file.
    ///
    /// # Errors
    /// Chromium does not answer, or the file cannot be written.
    pub fn screenshot(&self, folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
        let params = json!({ "format": "png", "captureBeyondViewport": true });
        let picture = self.call("Page.captureScreenshot", &params)?;
        let bytes = STANDARD.decode(picture["data"].as_str().context("a picture has data")?)?;
        std::fs::create_dir_all(folder)?;
        let file = folder.join(format!("{name}.png"));
        std::fs::write(&file, bytes).with_context(|| file.display().to_string())?;
        Ok(file)
    }

    /// Asks Chromium about this tab.
    pub(super) fn call(&self, method: &str, params: &Value) -> anyhow::Result<Value> {
        self.connection
            .lock()
            .call(Some(&self.session), method, params, ANSWER_WAIT_MAX)
    }

    /// What the page shows and what it said, for the message of a failure.
    #[must_use]
    pub fn state(&mut self) -> String {
        let text = self.text().unwrap_or_else(|error| format!("{error:#}"));
        let said: Vec<String> = match self.said() {
            Ok(said) => said
                .iter()
                .map(|one| format!("{}: {}", one.level, one.text))
                .collect(),
            Err(error) => vec![format!("{error:#}")],
        };
        format!("the page shows:\n{text}\nand said:\n{}", said.join("\n"))
    }

    /// Takes what came since the last look.
    fn listen(&mut self) -> anyhow::Result<()> {
        let mut events = Vec::new();
        {
            let mut held = self.connection.lock();
            while held.hear(Instant::now())? {}
            for name in held.family(&self.session) {
                events.append(&mut held.session(&name).events);
            }
        }
        for event in events {
            self.file(&event);
        }
        Ok(())
    }

    fn file(&mut self, event: &Event) {
        let params = &event.params;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match event.method.as_str() {
            "Runtime.consoleAPICalled" => {
                let said = params["args"].as_array().into_iter().flatten().map(shown);
                self.said.push(Said {
                    level: text(&params["type"]),
                    text: said.collect::<Vec<_>>().join(" "),
                });
            }
            "Runtime.exceptionThrown" => self.said.push(Said {
                level: "exception".to_owned(),
                text: thrown_text(&params["exceptionDetails"]),
            }),
            "Log.entryAdded" => {
                let entry = &params["entry"];
                self.said.push(Said {
                    level: text(&entry["level"]),
                    text: format!("{} ({})", text(&entry["text"]), text(&entry["url"])),
                });
            }
            "Inspector.targetCrashed" => self.said.push(Said {
                level: "exception".to_owned(),
                text: "the tab crashed".to_owned(),
            }),
            "Network.webSocketFrameSent" => {
                self.sent.push(text(&params["response"]["payloadData"]))
            }
            "Network.requestWillBeSent" => self.requests.push(text(&params["request"]["url"])),
            _ => {}
        }
    }
}

/// As JavaScript sees it.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is_true) => *is_true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

/// A value of the console as text.
fn shown(value: &Value) -> String {
    match (&value["value"], value["description"].as_str()) {
        (Value::String(text), _) => text.clone(),
        (Value::Null, Some(description)) => description.to_owned(),
        (other, _) => other.to_string(),
    }
}

fn thrown_text(details: &Value) -> String {
    let said = details["exception"]["description"]
        .as_str()
        .or(details["exception"]["value"].as_str());
    let text = said.or(details["text"].as_str()).unwrap_or_default();
    format!(
        "{text} ({}:{})",
        details["url"].as_str().unwrap_or_default(),
        details["lineNumber"]
    )
}
