//! Chromium's DevTools protocol over a pair of pipes: questions, answers, events.
//!
//! Owns one Chromium process and everything that it says. Pipes instead of a port: nobody else on
//! the machine can drive it, and it ends by itself when this process does. Events are filed by
//! session as they come; nothing is read while nobody asks. It does not know what a page is for;
//! `page` does.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Chromium answers what takes no time of its own within this, however busy the machine.
pub(super) const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);
/// For Chromium to close its profile in good order.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Bytes kept of what Chromium itself prints, for the message of a failure.
const PRINTED_BYTES_MAX: usize = 8 * 1024;

/// A Chromium process and the connection to it.
#[derive(Debug)]
pub(super) struct Connection {
    child: Child,
    /// Gone once closed.
    questions: Option<ChildStdin>,
    messages: Receiver<Value>,
    printed: Arc<Mutex<String>>,
    asked: u64,
    answers: BTreeMap<u64, Value>,
    sessions: BTreeMap<String, Session>,
    /// A profile that goes with the process.
    _profile: Option<TempDir>,
}

/// What came from one page, worker or frame.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// The session that it belongs to, for a worker.
    parent: Option<String>,
    /// What it is: `page`, `worker`, `iframe`.
    pub(super) kind: String,
    /// It has gone: closed, or crashed.
    pub(super) is_gone: bool,
    /// Events that came, in order, until they are taken.
    pub(super) events: Vec<Event>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) method: String,
    pub(super) params: Value,
}

impl Connection {
    /// Starts `program` with `arguments`; nothing but these pipes reaches it. `profile` is deleted after it ended.
    pub(super) fn start(
        program: &Path,
        arguments: &[String],
        profile: Option<TempDir>,
    ) -> anyhow::Result<Self> {
        // Chromium reads questions from descriptor 3 and answers on 4.
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >&2"#])
            .arg(program)
            .arg("--remote-debugging-pipe")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("Chromium did not start")?;
        let output = child.stdout.take().context("the output is piped")?;
        let errors = child.stderr.take().context("the errors are piped")?;
        let (sender, messages) = mpsc::channel();
        std::thread::spawn(move || {
            for message in BufReader::new(output).split(0) {
                let Ok(message) = message else { return };
                // What is no JSON would be a fault of Chromium's; the question then stays unanswered.
                let Ok(message) = serde_json::from_slice(&message) else {
                    continue;
                };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let printed = Arc::new(Mutex::new(String::new()));
        keep_tail(errors, Arc::clone(&printed));
        Ok(Self {
            questions: child.stdin.take(),
            child,
            messages,
            printed,
            asked: 0,
            answers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            _profile: profile,
        })
    }

    /// Asks, and waits for the answer. `session` is none for the browser itself.
    ///
    /// # Errors
    /// Chromium refuses, has ended, or does not answer within `wait_max`.
    pub(super) fn call(
        &mut self,
        session: Option<&str>,
        method: &str,
        params: &Value,
        wait_max: Duration,
    ) -> anyhow::Result<Value> {
        let number = self.ask(session, method, params)?;
        let deadline = Instant::now() + wait_max;
        loop {
            if let Some(mut answer) = self.answers.remove(&number) {
                if let Some(error) = answer.get("error") {
                    bail!("{method}: {}", error["message"]);
                }
                return Ok(answer["result"].take());
            }
            if !self.hear(deadline)? {
                bail!("{method}: no answer in {wait_max:?}");
            }
        }
    }

    /// Asks without waiting.
    fn ask(&mut self, session: Option<&str>, method: &str, params: &Value) -> anyhow::Result<u64> {
        self.asked += 1;
        let mut question = json!({ "id": self.asked, "method": method, "params": params });
        if let Some(session) = session {
            question["sessionId"] = json!(session);
        }
        let mut bytes = question.to_string().into_bytes();
        bytes.push(0);
        let sent = match &mut self.questions {
            Some(questions) => questions.write_all(&bytes).and_then(|()| questions.flush()),
            None => bail!("{method}: Chromium was closed"),
        };
        sent.with_context(|| format!("{method}: {}", self.ending()))?;
        Ok(self.asked)
    }

    /// Files the next message. `false` where none came before `deadline`.
    ///
    /// # Errors
    /// Chromium has ended.
    pub(super) fn hear(&mut self, deadline: Instant) -> anyhow::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.messages.recv_timeout(left) {
            Ok(message) => self.file(message).map(|()| true),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(false),
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!(self.ending()),
        }
    }

    fn file(&mut self, mut message: Value) -> anyhow::Result<()> {
        if let Some(number) = message["id"].as_u64() {
            self.answers.insert(number, message);
            return Ok(());
        }
        let session = message["sessionId"].as_str().map(str::to_owned);
        let method = message["method"].as_str().unwrap_or_default().to_owned();
        let params = message["params"].take();
        if method == "Target.attachedToTarget" {
            return self.attached(session, &params);
        }
        if method == "Target.detachedFromTarget" {
            let gone = params["sessionId"].as_str().unwrap_or_default();
            if let Some(gone) = self.sessions.get_mut(gone) {
                gone.is_gone = true;
            }
        }
        // What the browser itself tells, such as a trace, is filed under no name.
        let session = self
            .sessions
            .entry(session.unwrap_or_default())
            .or_default();
        session.events.push(Event { method, params });
        Ok(())
    }

    /// A page was attached to, or a page has a new worker: it is listened to before it runs.
    fn attached(&mut self, parent: Option<String>, params: &Value) -> anyhow::Result<()> {
        let session = params["sessionId"].as_str().context("a session's name")?;
        let kind = params["targetInfo"]["type"].as_str();
        let entry = Session {
            parent,
            kind: kind.unwrap_or_default().to_owned(),
            ..Session::default()
        };
        self.sessions.insert(session.to_owned(), entry);
        for (method, params) in [
            ("Runtime.enable", json!({})),
            ("Network.enable", json!({})),
            (
                "Target.setAutoAttach",
                json!({ "autoAttach": true, "waitForDebuggerOnStart": true, "flatten": true }),
            ),
            ("Runtime.runIfWaitingForDebugger", json!({})),
        ] {
            // Not all kinds know all of these; those refusals are not waited for.
            self.ask(Some(session), method, &params)?;
        }
        Ok(())
    }

    /// What came from a page or from the browser itself (no name).
    pub(super) fn session(&mut self, name: &str) -> &mut Session {
        self.sessions.entry(name.to_owned()).or_default()
    }

    /// The page itself and everything that it started, such as workers, and they in turn.
    pub(super) fn family(&self, page: &str) -> Vec<String> {
        let mut family = vec![page.to_owned()];
        let mut seen = 0;
        while seen < family.len() {
            let parent = family[seen].clone();
            let children = self
                .sessions
                .iter()
                .filter(|(_, session)| session.parent.as_deref() == Some(&parent));
            family.extend(children.map(|(name, _)| name.clone()));
            seen += 1;
        }
        family
    }

    /// The process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Closes Chromium in good order, so that its profile is whole.
    ///
    /// # Errors
    /// It does not end in time.
    pub(super) fn close(&mut self) -> anyhow::Result<()> {
        if self.questions.is_none() {
            return Ok(());
        }
        self.ask(None, "Browser.close", &json!({}))?;
        let deadline = Instant::now() + CLOSE_WAIT_MAX;
        // Its end closes the pipe, which ends the listening.
        while self.hear(deadline).is_ok_and(|heard| heard) {}
        self.questions = None;
        if Instant::now() >= deadline {
            bail!("Chromium did not close within {CLOSE_WAIT_MAX:?}");
        }
        self.child.wait()?;
        Ok(())
    }

    /// Ends Chromium as `kill -9` does.
    pub(super) fn kill(&mut self) {
        self.questions = None;
        // Both fail only where it has ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// How Chromium ended and what it printed last.
    fn ending(&mut self) -> String {
        let state = match self.child.try_wait() {
            Ok(Some(status)) => format!("Chromium ended ({status})"),
            Ok(None) | Err(_) => "Chromium closed its pipes".to_owned(),
        };
        let printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{state}, and printed last:\n{printed}")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Keeps the last of what `output` says.
fn keep_tail(output: impl Read + Send + 'static, kept: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_str(&String::from_utf8_lossy(&line));
            kept.push('\n');
            if kept.len() > PRINTED_BYTES_MAX {
                let cut = kept.ceil_char_boundary(kept.len() - PRINTED_BYTES_MAX);
                kept.drain(..cut);
            }
        }
    });
}
