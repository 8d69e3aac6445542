//! The same page in real headless Firefox, driven by WebDriver BiDi: a tab that lends its processor beside a headless
//! volunteer. Needs the built web client (`cargo xtask web`).

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::browser;
use tests::community::Small;
use tests::judge::{SAME_LOSS_SHARE_MAX, recovered_within};
use tests::process::Program;
use tests::tab::{HEAR, LOAD_MAX, gather};
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};

/// For Firefox to answer a command, while it starts on a slow machine.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);
/// Between two looks at a file or a page.
const LOOK: Duration = Duration::from_millis(200);

/// Nothing but the run's page: no first-run pages, no updates, no requests of its own.
const PREFERENCES: &str = r#"
user_pref("app.normandy.enabled", false);
user_pref("app.update.disabledForTesting", true);
user_pref("browser.aboutwelcome.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("extensions.update.enabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("services.settings.server", "data:,");
user_pref("toolkit.telemetry.server", "data:,");
"#;

/// A running Firefox with one tab. Its fields end in this order.
struct Firefox {
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
    program: Program,
    context: String,
    last: u64,
    /// What the page complained about on its console.
    complaints: Vec<String>,
    _profile: TempDir,
}

impl Firefox {
    fn start() -> anyhow::Result<Self> {
        let path = browser::firefox().context("no Firefox found: cargo xtask setup")?;
        let profile = tempfile::Builder::new()
            .prefix("shoal-firefox-")
            .tempdir()?;
        std::fs::write(profile.path().join("user.js"), PREFERENCES)?;
        let mut command = Command::new(path);
        command
            .args(["--headless", "--no-remote", "--remote-debugging-port", "0"])
            .arg("--profile")
            .arg(profile.path())
            .env("HOME", profile.path());
        let mut program = Program::start("firefox", &mut command)?;
        let url = told_address(&mut program, profile.path())?;
        let (socket, _) = tungstenite::connect(format!("{url}/session"))?;
        if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
            stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
        }
        let mut firefox = Self {
            socket,
            program,
            context: String::new(),
            last: 0,
            complaints: Vec::new(),
            _profile: profile,
        };
        firefox.call("session.new", &json!({ "capabilities": {} }))?;
        let events = json!({ "events": ["log.entryAdded"] });
        firefox.call("session.subscribe", &events)?;
        let tabs = firefox.call("browsingContext.getTree", &json!({}))?;
        let tab = tabs["contexts"][0]["context"].as_str();
        tab.context("it has a tab")?
            .clone_into(&mut firefox.context);
        Ok(firefox)
    }

    fn call(&mut self, method: &str, params: &Value) -> anyhow::Result<Value> {
        self.last += 1;
        let id = self.last;
        let command = json!({ "id": id, "method": method, "params": params });
        self.socket.send(Message::text(command.to_string()))?;
        loop {
            let said = self.socket.read();
            let said = said.with_context(|| format!("{method}\n{}", self.program.said()))?;
            let Ok(text) = said.to_text() else { continue };
            let mut answer: Value = serde_json::from_str(text)?;
            if answer["method"] == "log.entryAdded" && answer["params"]["level"] == "error" {
                self.complaints.push(answer["params"]["text"].to_string());
            }
            if answer["id"] != id {
                continue;
            }
            if answer["type"] == "error" {
                bail!("{method}: {}", answer["message"]);
            }
            return Ok(answer["result"].take());
        }
    }

    fn open(&mut self, url: &str) -> anyhow::Result<()> {
        let params = json!({ "context": self.context, "url": url, "wait": "complete" });
        self.call("browsingContext.navigate", &params).map(drop)
    }

    /// Runs a script in each page before its own.
    fn before_scripts(&mut self, script: &str) -> anyhow::Result<()> {
        let params = json!({ "functionDeclaration": format!("() => {{ {script} }}") });
        self.call("script.addPreloadScript", &params).map(drop)
    }

    /// What a script in the page gives, as text.
    fn text_of(&mut self, script: &str) -> anyhow::Result<String> {
        let params = json!({
            "expression": format!("String({script})"),
            "target": { "context": self.context },
            "awaitPromise": true,
        });
        let answer = self.call("script.evaluate", &params)?;
        let text = answer["result"]["value"].as_str();
        Ok(text.with_context(|| answer.to_string())?.to_owned())
    }

    /// Waits until the page shows `text` somewhere.
    fn wait_for_text(&mut self, text: &str, wait_max: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + wait_max;
        loop {
            let shown = self.text_of("document.body.innerText")?;
            if shown.contains(text) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let told = self.text_of("JSON.stringify(globalThis.__told)")?;
                bail!(
                    "no '{text}' in {wait_max:?}\n{shown}\n{told}\n{:?}",
                    self.complaints
                );
            }
            self.pause()?;
        }
    }

    /// Presses the button of that name as a mouse does, once it can be pressed.
    fn click(&mut self, name: &str) -> anyhow::Result<()> {
        let script = format!(
            "(() => {{
               const named = (one) => one.innerText.trim() === {} && !one.disabled;
               const button = [...document.querySelectorAll('button')].find(named);
               button?.scrollIntoView({{ block: 'center', behavior: 'instant' }});
               const {{ x, y, width, height }} = button?.getBoundingClientRect() ?? {{}};
               return button ? JSON.stringify([x + width / 2, y + height / 2]) : '';
             }})()",
            json!(name)
        );
        let deadline = Instant::now() + LOAD_MAX;
        let found = loop {
            let found = self.text_of(&script)?;
            if !found.is_empty() {
                break found;
            }
            if Instant::now() >= deadline {
                let shown = self.text_of("document.body.innerText")?;
                bail!(
                    "no button '{name}' in {LOAD_MAX:?}\n{shown}\n{:?}",
                    self.complaints
                );
            }
            self.pause()?;
        };
        let [x, y]: [f64; 2] = serde_json::from_str(&found)?;
        let steps = json!([
            { "type": "pointerMove", "x": x.round(), "y": y.round() },
            { "type": "pointerDown", "button": 0 },
            { "type": "pointerUp", "button": 0 },
        ]);
        let mouse = json!({ "type": "pointer", "id": "mouse", "actions": steps });
        let params = json!({ "context": self.context, "actions": [mouse] });
        self.call("input.performActions", &params).map(drop)
    }

    /// Lets the page go on for a moment.
    fn pause(&mut self) -> anyhow::Result<()> {
        let moment = format!(
            "new Promise((done) => setTimeout(done, {}))",
            LOOK.as_millis()
        );
        let params = json!({
            "expression": moment,
            "target": { "context": self.context },
            "awaitPromise": true,
        });
        self.call("script.evaluate", &params).map(drop)
    }
}

/// Where it listens, which it writes into its profile.
fn told_address(program: &mut Program, profile: &Path) -> anyhow::Result<String> {
    let file: PathBuf = profile.join("WebDriverBiDiServer.json");
    let deadline = Instant::now() + ANSWER_WAIT_MAX;
    loop {
        let told = std::fs::read_to_string(&file).unwrap_or_default();
        if let Ok(told) = serde_json::from_str::<Value>(&told)
            && let (Some(host), Some(port)) = (told["ws_host"].as_str(), told["ws_port"].as_u64())
        {
            return Ok(format!("ws://{host}:{port}"));
        }
        if Instant::now() >= deadline || program.has_ended()? {
            bail!("Firefox does not listen: {}", program.said());
        }
        let _: Option<Value> = program.next_event(Instant::now() + LOOK);
    }
}

#[test]
fn a_tab_of_firefox_trains_beside_a_headless_volunteer() {
    let mut community = gather(&Small::default(), &["anchovy"]).expect("a community gathers");
    let mut firefox = Firefox::start().expect("Firefox starts");
    let url = community.host.url().to_owned();
    firefox.before_scripts(HEAR).expect("an answer");
    firefox.open(&url).expect("the page loads");
    firefox.click("Check this computer").expect("it can look");
    firefox
        .wait_for_text("It can help on the CPU", LOAD_MAX)
        .expect("a browser without WebGPU is offered the processor");
    let has_channels = firefox.text_of("__told.ready.takes_channels");
    assert_eq!(
        has_channels.expect("an answer"),
        "true",
        "its worker has the channels"
    );
    firefox.click("Contribute").expect("it can lend");
    community.reach(1).expect("they train");
    let run = community.host.api().expect("an answer");
    let here = run["volunteers"].as_array().expect("a list");
    let tab = here.iter().find(|one| one["kind"] == "browser");
    assert_eq!(
        tab.map(|tab| &tab["state"]),
        Some(&json!("seated")),
        "{run:#}"
    );
    recovered_within(&mut community, SAME_LOSS_SHARE_MAX).expect("it trains as all do");
    firefox
        .wait_for_text("accepted", LOAD_MAX)
        .expect("the page shows what was accepted");
    firefox.click("Finish").expect("it can leave");
    community.join("herring").expect("another one comes");
    firefox
        .wait_for_text("Thank you", LOAD_MAX)
        .expect("it leaves without loss");
    assert!(firefox.complaints.is_empty(), "{:?}", firefox.complaints);
}
