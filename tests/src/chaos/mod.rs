//! One run, and something that goes wrong every few seconds: it must go on committing, lose nothing and learn as well.
//!
//! A host, headless volunteers and tabs train a small model over real WebRTC. Faults are drawn from a seed (`deed`) and are
//! what machines do: they die, stand still, are cut off, come again. Afterwards the run is held to its rules (`report`), the
//! journal and the states on the volunteers' disks to each other (`watch`), the loss to that of a run with the same seed to
//! which nothing happens. Only times differ from run to run: what a fault meets is the run's own affair. Begin with [`run`].

mod cast;
mod deed;
mod report;
mod watch;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;

pub use cast::NAMES;
pub use deed::Kind;
pub use report::{Happened, Report, quantile};

use crate::community::{Community, Small, losses};
use crate::judge;
use crate::lan::Lan;
use crate::process::now_ms;
use cast::{Cast, Heard};
use deed::Deed;
use watch::Watch;

/// For everybody to join, and for everybody to be back after the last fault, tabs included.
const GATHER_MAX: Duration = Duration::from_secs(180);
/// Between two looks at what is due.
const LOOK: Duration = Duration::from_millis(250);
/// Samples after which a run would be over: more than are trained here.
const SAMPLES: u64 = 400_000;
/// Rounds that must follow after the last fault.
const ROUNDS_AFTER: usize = 2;
/// Rounds whose mean loss is compared. One round's loss is that of a few samples, on weights that another device rounded
/// otherwise: two sound runs differ by 3 % in it.
const COMPARED_ROUNDS: usize = 10;

/// What is to happen.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What the run and its faults follow from.
    pub seed: u64,
    /// How long faults are made.
    pub time: Duration,
    /// Time between two.
    pub every: Duration,
    /// Headless volunteers, [`NAMES`] at most.
    pub natives: usize,
    /// Tabs.
    pub tabs: usize,
    /// Pipelines at most.
    pub pipelines: u16,
    /// Samples after which losses are compared at most; none for all that were trained.
    pub compared_samples: Option<u64>,
    /// Where to keep what everybody said.
    pub logs: Option<PathBuf>,
}

impl Asked {
    /// The run that is trained: seats that others can take over, checkpoints now and then.
    fn small(&self) -> Small {
        let natives = u16::try_from(self.natives).unwrap_or(u16::MAX);
        Small {
            seed: self.seed,
            seats_min: 3.min(natives),
            checkpoint_minutes: 0.5,
            samples: SAMPLES,
            rewind_wait_seconds: 15,
            pipelines_max: self.pipelines,
            ..Small::default()
        }
    }
}

/// Lets it happen, tells it line by line, and judges.
///
/// Moves this thread into a network of its own where the machine lets it; otherwise nobody is cut off.
///
/// # Errors
/// Something is not built or does not start, or everything stands still. What is only wrong is in the report.
pub fn run(asked: &Asked, say: &mut dyn FnMut(&str)) -> anyhow::Result<Report> {
    let lan = match Lan::gather(asked.natives) {
        Ok(lan) => {
            lan.enter()?;
            Some(lan)
        }
        Err(error) => {
            say(&format!("nobody can be cut off here: {error:#}"));
            None
        }
    };
    let cast = Cast::gather(
        &asked.small(),
        asked.natives,
        asked.tabs,
        lan,
        asked.logs.clone(),
    )?;
    let mut chaos = Chaos {
        asked,
        began: Instant::now(),
        watch: Watch::default(),
        report: Report::of(asked, cast.can(Kind::Partition)),
        cast,
        differed: vec![],
        say,
    };
    let lived = chaos.live();
    lived.with_context(|| chaos.cast.said())?;
    chaos.judge()
}

struct Chaos<'a> {
    asked: &'a Asked,
    began: Instant,
    cast: Cast,
    watch: Watch,
    report: Report,
    /// What differed between disks and journal at the last look.
    differed: Vec<String>,
    say: &'a mut dyn FnMut(&str),
}

impl Chaos<'_> {
    fn say(&mut self, text: &str) {
        let seconds = self.began.elapsed().as_secs();
        (self.say)(&format!("{:>2}:{:02} {text}", seconds / 60, seconds % 60));
    }

    fn live(&mut self) -> anyhow::Result<()> {
        self.gathered("everybody is to be there", 1)?;
        self.say("everybody is there: it begins");
        self.began = Instant::now();
        self.watch.begin(now_ms());
        let every = self.asked.every;
        let of_tabs = |kind: &Kind| *kind != Kind::Tab || self.asked.tabs > 0;
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(of_tabs).collect();
        for deed in deed::draw(self.asked.seed, self.asked.time, every, &kinds) {
            self.wait(self.began + deed.at)?;
            self.commit(&deed)?;
        }
        self.wait(self.began + self.asked.time)?;
        self.say("nothing more is done to anybody");
        let commits = self.watch.commits();
        self.gathered("everybody is to be back", commits + ROUNDS_AFTER)
    }

    fn commit(&mut self, deed: &Deed) -> anyhow::Result<()> {
        let (round, at_ms) = (self.watch.round, now_ms());
        let hit = self.cast.commit(deed)?;
        let seconds = deed.away.as_secs();
        let Some((who, was)) = hit else {
            self.report.left_out(deed.kind);
            self.say(&format!("{:?} is left out: not possible now", deed.kind));
            return Ok(());
        };
        let what = match deed.kind {
            Kind::Kill => "is killed",
            Kind::Freeze => "is frozen",
            Kind::Partition => "is cut off",
            Kind::Host => "was killed and started again, away",
            Kind::Tab => "is closed",
        };
        self.say(&format!(
            "{who} ({was}) {what} for {seconds} s, after round {round}"
        ));
        self.report.happened(Happened {
            at_ms,
            kind: deed.kind,
            who,
            was,
            seconds,
            next_commit_seconds: None,
        });
        self.compare_states()
    }

    /// Lets time pass, undoes what is over, listens.
    fn wait(&mut self, until: Instant) -> anyhow::Result<()> {
        while Instant::now() < until {
            self.turn(until)?;
        }
        Ok(())
    }

    fn turn(&mut self, until: Instant) -> anyhow::Result<()> {
        for done in self.cast.undo()? {
            self.say(&done);
        }
        let deadline = until.min(Instant::now() + LOOK);
        for Heard { by, event } in self.cast.hear(deadline) {
            if let Some(line) = self.watch.hear(by.as_deref(), &event) {
                self.say(&line);
            }
        }
        for said in self.cast.bury()? {
            self.say(&format!("ended by itself: {said}"));
            self.report.broken(format!("ended by itself: {said}"));
        }
        Ok(())
    }

    /// Waits until all take part and so many rounds are committed.
    fn gathered(&mut self, what: &str, commits: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + GATHER_MAX;
        loop {
            self.turn(deadline)?;
            let run = self.cast.community.host.api()?;
            let missing = self.cast.missing(&run);
            let is_whole = self.cast.is_whole() && missing.is_empty();
            if is_whole && self.watch.commits() >= commits {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let text = format!(
                    "{what} within {GATHER_MAX:?}, but {missing:?} are not; {} commits of {commits}: {}",
                    self.watch.commits(),
                    run["reason"]
                );
                self.say(&text);
                self.report.broken(text);
                return Ok(());
            }
        }
    }

    /// Holds the states on all disks to the journal: what differed the last time, too, is wrong.
    fn compare_states(&mut self) -> anyhow::Result<()> {
        let community = &self.cast.community;
        let names = self.cast.names();
        let (count, wrong) = watch::compare_states(community, names, self.asked.pipelines)?;
        self.report.states_compared += count;
        let before = std::mem::replace(&mut self.differed, wrong.clone());
        for text in wrong {
            self.say(&text);
            if before.contains(&text) {
                self.report.broken(text);
            }
        }
        Ok(())
    }

    fn judge(mut self) -> anyhow::Result<Report> {
        // Everybody is back, and rounds have been committed since: nothing of before is left.
        self.differed.clear();
        self.compare_states()?;
        for text in std::mem::take(&mut self.differed) {
            self.report.broken(text);
        }
        match judge::audit(&self.cast.community) {
            Ok(found) => self.report.audit = found,
            Err(error) => self.report.broken(format!("{error:#}")),
        }
        let found = losses(&self.cast.community.host.api()?)?;
        self.report.tabs_lost = self.cast.tabs_lost();
        self.report.tab_errors(self.cast.tab_errors());
        let Self {
            asked,
            cast,
            watch,
            mut report,
            say,
            ..
        } = self;
        watch.tell(&mut report);
        drop(cast);
        let samples = found.last().context("rounds were committed")?.0;
        let samples = asked.compared_samples.unwrap_or(samples).min(samples);
        say(&format!("{samples} samples once more, undisturbed"));
        let undisturbed = undisturbed(asked, samples)?;
        let below: Vec<(u64, f64)> = found.into_iter().filter(|(at, _)| *at <= samples).collect();
        match judge::compared(&below, &undisturbed, COMPARED_ROUNDS) {
            Ok(both) => report.loss(both),
            Err(error) => report.broken(format!("{error:#}")),
        }
        Ok(report)
    }
}

/// Losses of a run of so many samples to which nothing happens.
fn undisturbed(asked: &Asked, samples: u64) -> anyhow::Result<Vec<(u64, f64)>> {
    let small = asked.small();
    // As many as sit, in each pipeline.
    let seats = usize::from(small.seats_min) * usize::from(asked.pipelines);
    let names = &NAMES[..asked.natives.min(seats)];
    let mut community = Community::gather(&small, names)?;
    let mut run = community.host.api()?;
    while run["samples"].as_u64() < Some(samples) {
        run = community.go_on(1)?;
    }
    losses(&run)
}
