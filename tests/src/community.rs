//! A small community: a host, some volunteers and text to learn, gone when the value is.
//!
//! The model is a hundred times smaller than `tiny`, and a round takes about a second, so that a
//! test sees many of them. What it trains on is generated here, the same for every test. Begin
//! with [`Community::gather`].

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Program, Signal};
use crate::run::{Host, HostOptions, Launch};

/// For a round of the small model, with other tests beside it on a slow machine, and for a fault
/// to be noticed and repaired.
pub const ROUND_WAIT_MAX: Duration = Duration::from_secs(90);
/// For a volunteer to leave after the round it is in.
const LEAVE_WAIT_MAX: Duration = Duration::from_secs(60);
/// Bytes of text to learn.
const TEXT_BYTES: usize = 200_000;

/// A host and its volunteers.
#[derive(Debug)]
pub struct Community {
    /// The host.
    pub host: Host,
    /// Who was started and not ended, in order.
    pub volunteers: Vec<Program>,
    _text: TempDir,
}

/// How the small run is organised; all else is the same in every test.
#[derive(Clone, Debug)]
pub struct Small {
    /// What everything follows from.
    pub seed: u64,
    /// Seats that the run waits for.
    pub seats_min: u16,
    /// Minutes between checkpoints.
    pub checkpoint_minutes: f64,
    /// Steps a round.
    pub round_steps: u32,
    /// Samples after which the run is over.
    pub samples: u64,
    /// Microbatches a step.
    pub microbatches: u32,
    /// How long a volunteer that may return is waited for, in seconds.
    pub rewind_wait_seconds: u32,
    /// Blocks of the model, each a stage.
    pub blocks: u16,
    /// Pipelines at most.
    pub pipelines_max: u16,
    /// What they merge: "outer" or "gradient".
    pub merge_kind: &'static str,
    /// Rounds between two evaluations, 0 for none, and microbatches of each.
    pub evaluations: (u32, u32),
    /// What crosses borders, as a host writes it under `[model]`.
    pub codec: &'static str,
}

impl Default for Small {
    fn default() -> Self {
        Self {
            seed: 7,
            seats_min: 2,
            checkpoint_minutes: 5.0,
            round_steps: 10,
            samples: 40_000,
            microbatches: 4,
            rewind_wait_seconds: 3,
            blocks: 4,
            pipelines_max: 1,
            merge_kind: "outer",
            evaluations: (0, 8),
            codec: "codec = \"subspace\"\nrank = 8",
        }
    }
}

impl Small {
    /// The run as a host writes it.
    #[must_use]
    pub fn config(&self) -> String {
        format!(
            r#"
[run]
name = "small"
seed = {}

[model]
d_model = 32
heads = 2
d_ff = 96
blocks = {}
stages = {}
context = 32
{}

[wire]
format = "f32"

[training]
batch = 8
microbatches = {}
learning_rate = 1e-2
samples = {}
warmup_samples = 80

[schedule]
round_steps = {}
seats_min = {}
eval_rounds = {}
eval_microbatches = {}
checkpoint_minutes = {}
rewind_wait_seconds = {}
pipelines_max = {}

[merge]
kind = "{}"
"#,
            self.seed,
            self.blocks,
            self.blocks,
            self.codec,
            self.microbatches,
            self.samples,
            self.round_steps,
            self.seats_min,
            self.evaluations.0,
            self.evaluations.1,
            self.checkpoint_minutes,
            self.rewind_wait_seconds,
            self.pipelines_max,
            self.merge_kind,
        )
    }
}

impl Community {
    /// Starts a host over the small run and `names` as its volunteers.
    ///
    /// # Errors
    /// A program is not built or does not start.
    pub fn gather(small: &Small, names: &[&str]) -> anyhow::Result<Self> {
        Self::gather_all(small, vec![], names, Launch::default())
    }

    /// The same around a host that is started in a special way.
    ///
    /// # Errors
    /// As [`Community::gather`].
    pub fn gather_as(small: &Small, names: &[&str], launch: Launch) -> anyhow::Result<Self> {
        Self::gather_all(small, vec![], names, launch)
    }

    /// The same, with more arguments for the host.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn gather_with(
        small: &Small,
        arguments: Vec<String>,
        names: &[&str],
    ) -> anyhow::Result<Self> {
        Self::gather_all(small, arguments, names, Launch::default())
    }

    fn gather_all(
        small: &Small,
        arguments: Vec<String>,
        names: &[&str],
        launch: Launch,
    ) -> anyhow::Result<Self> {
        let text = tempfile::Builder::new().prefix("shoal-text-").tempdir()?;
        std::fs::write(text.path().join("text.txt"), sentences(TEXT_BYTES))?;
        let options = HostOptions {
            config: small.config(),
            data: text.path().to_owned(),
            port: 0,
            arguments,
        };
        let host = Host::start_as(options, launch)?;
        let mut community = Self {
            host,
            volunteers: vec![],
            _text: text,
        };
        for name in names {
            community.join(name)?;
        }
        Ok(community)
    }

    /// Starts one more volunteer.
    ///
    /// # Errors
    /// The program does not start.
    pub fn join(&mut self, name: &str) -> anyhow::Result<()> {
        self.join_with(name, &[])
    }

    /// The same, with more arguments for it.
    ///
    /// # Errors
    /// The program does not start.
    pub fn join_with(&mut self, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
        self.volunteers.push(self.host.volunteer(name, arguments)?);
        Ok(())
    }

    /// Starts one more volunteer in which something goes wrong, as `SHOAL_FAULT` says it.
    ///
    /// # Errors
    /// The program does not start.
    pub fn join_faulty(&mut self, name: &str, fault: &str) -> anyhow::Result<()> {
        let volunteer = self.host.faulty_volunteer(name, &[], Some(fault))?;
        self.volunteers.push(volunteer);
        Ok(())
    }

    /// The volunteer of that name among those that were started.
    ///
    /// # Errors
    /// There is none.
    pub fn volunteer(&mut self, name: &str) -> anyhow::Result<&mut Program> {
        let mut all = self.volunteers.iter_mut();
        all.find(|one| one.name() == name)
            .with_context(|| format!("{name} was not started here"))
    }

    /// Waits for the host to say that `what` happened to `name`, and gives that event.
    ///
    /// # Errors
    /// It does not say so within `wait_max`.
    pub fn hear_of(&mut self, name: &str, what: &str, wait_max: Duration) -> anyhow::Result<Value> {
        let text = format!("{name} {what}");
        let heard = self.host.program().wait_for(&text, wait_max, |event| {
            event["event"] == "volunteer" && event["name"] == name && event["what"] == what
        });
        heard.with_context(|| self.said())
    }

    /// Waits for the host to give `name` up, and tells how long after `since_ms` it did so.
    ///
    /// # Errors
    /// It does not within `wait_max`.
    pub fn lost_after(
        &mut self,
        name: &str,
        since_ms: u64,
        wait_max: Duration,
    ) -> anyhow::Result<Duration> {
        let is_lost = |event: &Value| {
            let what = event["what"].as_str().unwrap_or_default();
            event["event"] == "volunteer"
                && event["name"] == name
                && ["gone", "silent", "left"].contains(&what)
        };
        let text = format!("the loss of {name}");
        let heard = self.host.program().wait_for(&text, wait_max, is_lost);
        let event = heard.with_context(|| self.said())?;
        let at_ms = event["time_ms"]
            .as_u64()
            .context("events bear their time")?;
        Ok(Duration::from_millis(at_ms.saturating_sub(since_ms)))
    }

    /// Waits until the run goes back, and gives the round that it goes back to.
    ///
    /// # Errors
    /// It does not.
    pub fn hear_rewind(&mut self) -> anyhow::Result<u64> {
        let is_rewind = |event: &Value| event["event"] == "rewind";
        let heard = self
            .host
            .program()
            .wait_for("a rewind", ROUND_WAIT_MAX, is_rewind);
        let event = heard.with_context(|| self.said())?;
        event["to"].as_u64().context("a rewind names its round")
    }

    /// Waits until `round` is committed and gives the run. Each round has its time: how long many take together depends on
    /// what else the machine does.
    ///
    /// # Errors
    /// One is not in time; the message holds the run and what everybody said.
    pub fn reach(&mut self, round: u64) -> anyhow::Result<Value> {
        let next = (self.round()? + 1).min(round);
        for earlier in next..round {
            self.reach_next(earlier)?;
        }
        self.reach_next(round)
    }

    fn reach_next(&mut self, round: u64) -> anyhow::Result<Value> {
        let what = format!("commit of round {round}");
        let holds = |run: &Value| run["round"].as_u64() >= Some(round);
        let reached = self.host.wait_until(&what, ROUND_WAIT_MAX, holds);
        reached.with_context(|| self.said())
    }

    /// Waits for the middle of a round, in which the run is as `holds` asks, and gives the run.
    ///
    /// # Errors
    /// As [`Self::reach`].
    pub fn reach_mid_round(
        &mut self,
        mut holds: impl FnMut(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let is_mid_round = |run: &Value| {
            let steps = run["steps"].as_u64();
            run["state"] == "training" && (Some(3)..=Some(7)).contains(&steps)
        };
        let is_it = |run: &Value| is_mid_round(run) && holds(run);
        let what = "the middle of a round";
        let reached = self.host.wait_until(what, ROUND_WAIT_MAX, is_it);
        reached.with_context(|| self.said())
    }

    /// Waits until `count` more rounds are committed than now.
    ///
    /// # Errors
    /// As [`Self::reach`].
    pub fn go_on(&mut self, count: u64) -> anyhow::Result<Value> {
        let round = self.round()?;
        self.reach(round + count)
    }

    /// The newest committed round.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn round(&self) -> anyhow::Result<u64> {
        self.host.api()?["round"]
            .as_u64()
            .context("the run has a round")
    }

    /// Waits until the run's list of volunteers is as `holds` asks.
    ///
    /// # Errors
    /// It is not within `wait_max`.
    pub fn wait_for_volunteers(
        &mut self,
        what: &str,
        wait_max: Duration,
        mut holds: impl FnMut(&[Value]) -> bool,
    ) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let reached = self.host.wait_until(what, wait_max, |run| {
            holds(run["volunteers"].as_array().map_or(&[], Vec::as_slice))
        });
        reached.with_context(|| self.said())?;
        Ok(begun.elapsed())
    }

    /// The index of a volunteer in state `seated` whose stages begin at `first`.
    ///
    /// # Errors
    /// Nobody has that seat.
    pub fn holder_of(&self, first: u64) -> anyhow::Result<usize> {
        let run = self.host.api()?;
        let listed = run["volunteers"].as_array().into_iter().flatten();
        let name = listed
            .filter(|one| one["state"] == "seated" && one["stages"]["first"] == first)
            .find_map(|one| one["name"].as_str())
            .with_context(|| format!("nobody holds stage {first}: {run:#}"))?;
        self.volunteers
            .iter()
            .position(|one| one.name() == name)
            .with_context(|| format!("{name} was not started here"))
    }

    /// Asks a volunteer to finish, as the first Ctrl-C does; gives how it ended.
    ///
    /// # Errors
    /// The system refuses, or the volunteer does not leave.
    pub fn interrupt(&mut self, index: usize) -> anyhow::Result<ExitStatus> {
        let mut volunteer = self.volunteers.remove(index);
        volunteer.signal(Signal::INT)?;
        volunteer.wait_end(LEAVE_WAIT_MAX)
    }

    /// Ends a volunteer as `kill -9` does.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        self.volunteers.remove(index).kill()
    }

    /// Ends the host and all volunteers at the same moment, as a power cut does.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill_all(&mut self) -> anyhow::Result<()> {
        self.host.program().signal(Signal::KILL)?;
        self.kill_volunteers()?;
        self.host.program().kill()
    }

    /// Ends all volunteers at the same moment, as `kill -9` does.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill_volunteers(&mut self) -> anyhow::Result<()> {
        // All are hit before the first is waited for.
        for volunteer in &self.volunteers {
            volunteer.signal(Signal::KILL)?;
        }
        for mut volunteer in self.volunteers.drain(..) {
            volunteer.kill()?;
        }
        Ok(())
    }

    /// Everything that volunteers have said as events so far.
    pub fn events(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        for volunteer in &mut self.volunteers {
            while let Some(event) = volunteer.next_event(Instant::now()) {
                events.push(event);
            }
        }
        events
    }

    /// What everybody said last, for the message of a failure.
    pub fn said(&mut self) -> String {
        self.events();
        self.volunteers
            .iter_mut()
            .map(Program::said)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Mean loss of each standing round by the samples up to and with it.
///
/// # Errors
/// The run lists no rounds.
pub fn losses(run: &Value) -> anyhow::Result<Vec<(u64, f64)>> {
    let mut losses = Vec::new();
    for row in run["rounds"].as_array().context("a run lists its rounds")? {
        let samples = row["samples"].as_u64().context("a round has samples")?;
        losses.push((samples, row["loss"].as_f64().context("a round has a loss")?));
    }
    if losses.is_empty() {
        bail!("no round is committed: {run:#}");
    }
    Ok(losses)
}

/// Text with something to learn: short sentences over a few words, the same each time.
fn sentences(bytes: usize) -> String {
    const SUBJECTS: [&str; 4] = ["the herring", "a sardine", "the old whale", "one crab"];
    const VERBS: [&str; 4] = ["follows", "meets", "sees", "leaves"];
    let mut state = 1_u32;
    let mut pick = |words: [&'static str; 4]| {
        // The constants of Numerical Recipes; the top bits are the good ones.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        words[(state >> 30) as usize]
    };
    let mut text = String::new();
    while text.len() < bytes {
        text.push_str(pick(SUBJECTS));
        text.push(' ');
        text.push_str(pick(VERBS));
        text.push(' ');
        text.push_str(pick(SUBJECTS));
        text.push_str(".\n");
    }
    text
}
