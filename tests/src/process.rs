//! A running program: its output as events, signals to it, and its certain end.
//!
//! Programs of Shoal say what happens to them as JSON, a line an event. Waiting is waiting for an
//! event or for the end, with a deadline; nothing here sleeps. What is no JSON is kept for the
//! message of a failure, and of all lines with [`Program::keep_log`]. Dropping a [`Program`] ends it, frozen or not.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use rustix::thread::gettid;
use serde_json::Value;

/// Lines kept of what a program said last, for the message of a failure.
const TAIL_LINES_MAX: usize = 60;
/// The unit of times in `/proc`: the same on every Linux of today.
const TICKS_PER_SECOND: f64 = 100.0;

/// The machine's clock in milliseconds since 1970, as events bear it.
///
/// # Panics
/// It is set to before 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let passed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is after 1970");
    u64::try_from(passed.as_millis()).expect("not for long")
}

/// What goes before whatever else the machine does where time is measured; later ones go before earlier ones.
#[derive(Clone, Copy, Debug)]
pub enum Urgency {
    /// A program whose socket holds what comes until it has time.
    Program,
    /// A browser: its sockets are full after 7 ms at 80 Mbit/s.
    Browser,
    /// What carries packets between them.
    Link,
}

/// From now on this thread goes before less urgent ones, and so do programs and threads that it starts. Who may not (it
/// takes root and `chrt` of util-linux) is as punctual as the machine is idle.
pub fn go_first(urgency: Urgency) {
    let priority = match urgency {
        Urgency::Program => "4",
        Urgency::Browser => "6",
        Urgency::Link => "8",
    };
    let thread = gettid().as_raw_nonzero().to_string();
    let mut command = Command::new("chrt");
    command.args(["--rr", "--pid", priority, &thread]);
    drop(command.stdout(Stdio::null()).stderr(Stdio::null()).status());
}

/// A program that runs until it ends, is ended, or is dropped.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    lines: Receiver<Line>,
    /// Both outputs are closed: the program has ended, or is about to.
    closed: bool,
    tail: VecDeque<String>,
    /// When the line that was read last came.
    heard_ms: u64,
    log: Option<File>,
}

/// A line of output, and when it came.
#[derive(Debug)]
struct Line {
    came_ms: u64,
    text: String,
}

impl Program {
    /// Starts `command` with no input. `name` is what messages call it.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        Self::start_with(name, command, Stdio::null())
    }

    /// Starts `command` with an input that stays empty and open until this value or process ends, however it does: what
    /// reads its input to the end does not outlive us.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start_bound(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        Self::start_with(name, command, Stdio::piped())
    }

    fn start_with(name: &str, command: &mut Command, input: Stdio) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} did not start: {command:?}"))?;
        let (sender, lines) = mpsc::channel();
        forward(
            child.stdout.take().context("the output is piped")?,
            sender.clone(),
        );
        forward(child.stderr.take().context("the errors are piped")?, sender);
        let tail = VecDeque::new();
        Ok(Self {
            name: name.to_owned(),
            child,
            lines,
            closed: false,
            tail,
            heard_ms: 0,
            log: None,
        })
    }

    /// Gives a program that was started with [`Program::start_bound`] a line of input.
    ///
    /// # Errors
    /// It has ended, or was started without input.
    pub fn tell(&mut self, line: &Value) -> anyhow::Result<()> {
        let input = self.child.stdin.as_mut();
        let input = input.with_context(|| format!("{} has no input", self.name))?;
        writeln!(input, "{line}").with_context(|| format!("{} takes no input", self.name))
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next event that `matches`. Events before it are passed over.
    ///
    /// # Errors
    /// None came within `wait_max`, or the program ended; the message holds what it said last.
    pub fn wait_for(
        &mut self,
        what: &str,
        wait_max: Duration,
        mut matches: impl FnMut(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let deadline = Instant::now() + wait_max;
        loop {
            match self.next_event(deadline) {
                Some(event) if matches(&event) => return Ok(event),
                Some(_) => {}
                None if self.closed => bail!("it ended before {what}\n{}", self.said()),
                None => bail!("no {what} in {wait_max:?}\n{}", self.said()),
            }
        }
    }

    /// The next event, whatever it is; nothing where none came before `deadline` or the program ended.
    pub fn next_event(&mut self, deadline: Instant) -> Option<Value> {
        loop {
            let line = self.next_line(deadline)?;
            if line.starts_with('{')
                && let Ok(event) = serde_json::from_str(&line)
            {
                return Some(event);
            }
        }
    }

    /// Waits for its end and gives how it ended.
    ///
    /// # Errors
    /// It still runs after `wait_max`.
    pub fn wait_end(&mut self, wait_max: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + wait_max;
        while self.next_line(deadline).is_some() {}
        if !self.closed {
            bail!(
                "not at its end after {wait_max:?}
{}",
                self.said()
            );
        }
        Ok(self.child.wait()?)
    }

    /// When the event that was read last came, as [`now_ms`] has it.
    #[must_use]
    pub fn heard_ms(&self) -> u64 {
        self.heard_ms
    }

    /// From now on adds each line that is read to a file, after the time when it came.
    pub fn keep_log(&mut self, log: File) {
        self.log = Some(log);
    }

    /// Its number in the system.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.context("a process id is a positive i32")?;
        kill_process(pid, signal).with_context(|| format!("{} takes no signal", self.name))
    }

    /// Most memory that it has held so far.
    ///
    /// # Errors
    /// It has ended, or this system does not tell.
    pub fn peak_bytes(&self) -> anyhow::Result<u64> {
        let file = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&file).with_context(|| file.clone())?;
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        let kibibytes: u64 = peak
            .with_context(|| format!("{file} has no VmHWM"))?
            .trim()
            .parse()?;
        Ok(kibibytes * 1024)
    }

    /// Seconds of processor time that it has used so far, over all its threads.
    ///
    /// # Errors
    /// It has ended, or this system does not tell.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let file = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(&file).with_context(|| file.clone())?;
        // The name, in brackets, may hold anything; user and system time are fields 14 and 15.
        let fields = stat.rsplit_once(')').context("a name in brackets")?.1;
        let mut times = fields.split_whitespace().skip(11).take(2);
        let mut ticks = || -> anyhow::Result<f64> {
            let field = times.next().with_context(|| format!("{file}: {stat}"))?;
            Ok(field.parse::<u32>()?.into())
        };
        Ok((ticks()? + ticks()?) / TICKS_PER_SECOND)
    }

    /// Ends it at once, as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it still runs, and what it said last.
    #[must_use]
    pub fn said(&mut self) -> String {
        let state = match self.child.try_wait() {
            Ok(Some(status)) => format!("ended ({status})"),
            Ok(None) | Err(_) => "runs".to_owned(),
        };
        let lines: Vec<&str> = self.tail.iter().map(String::as_str).collect();
        format!(
            "{} {state}, and said last:\n{}",
            self.name,
            lines.join("\n")
        )
    }

    fn next_line(&mut self, deadline: Instant) -> Option<String> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(Line { came_ms, text }) => {
                self.heard_ms = came_ms;
                if let Some(log) = &mut self.log {
                    // A log that cannot be written is no reason to fail: it is for a person to look at.
                    drop(writeln!(log, "{came_ms} {text}"));
                }
                if self.tail.len() == TAIL_LINES_MAX {
                    self.tail.pop_front();
                }
                self.tail.push_back(text.clone());
                Some(text)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.closed = true;
                None
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only where it has ended by itself. A frozen program dies of SIGKILL too.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends each line of `output`, until it is closed.
fn forward(output: impl Read + Send + 'static, lines: Sender<Line>) {
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let came_ms = now_ms();
            if lines.send(Line { came_ms, text }).is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::{Program, Signal};
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;
    use std::time::{Duration, Instant};

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(50);

    fn shell(script: &str) -> Program {
        Program::start("shell", Command::new("sh").args(["-c", script])).expect("sh runs")
    }

    #[test]
    fn an_event_is_waited_for_and_other_lines_are_passed_over() {
        let mut program = shell(r#"echo hello; echo '{"n":1}' >&2; echo '{"n":2}'; exec sleep 60"#);
        let event = program
            .wait_for("2", LONG, |event| event["n"] == 2)
            .expect("it comes");
        assert_eq!(event["n"], 2);
        let error = program
            .wait_for("3", SHORT, |event| event["n"] == 3)
            .expect_err("none comes");
        assert!(error.to_string().contains("hello"), "{error}");
    }

    #[test]
    fn waiting_ends_with_the_program() {
        let mut program = shell("echo bad luck >&2; exit 7");
        let error = program.wait_for("x", LONG, |_| true).expect_err("it ends");
        assert!(error.to_string().contains("ended before x"), "{error}");
        assert_eq!(program.wait_end(LONG).expect("it ended").code(), Some(7));
    }

    #[test]
    fn what_reads_its_input_ends_when_that_is_closed_and_not_before() {
        let mut bound = Program::start_bound("cat", &mut Command::new("cat")).expect("cat runs");
        bound.wait_end(SHORT).expect_err("its input is open");
        drop(bound.child.stdin.take());
        assert!(bound.wait_end(LONG).expect("it ended").success());
    }

    #[test]
    fn signals_reach_the_program_and_a_frozen_one_ends_when_dropped() {
        let mut program = shell("exec sleep 60");
        // Not INT: a shell that starts us in the background has it ignored, which children inherit.
        program.signal(Signal::TERM).expect("it runs");
        assert_eq!(
            program.wait_end(LONG).expect("it ended").signal(),
            Some(Signal::TERM.as_raw())
        );
        let frozen = shell("exec sleep 60");
        assert!(frozen.peak_bytes().expect("it runs") > 0);
        frozen.signal(Signal::STOP).expect("it runs");
        let begun = Instant::now();
        drop(frozen);
        assert!(begun.elapsed() < LONG);
    }
}
