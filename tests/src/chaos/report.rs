//! What came of it, and the rules that it is held to.
//!
//! A report is whole without a reader's knowing the run: what was asked, what happened and when the next round followed, what
//! the auditor found, both losses, and what is broken, in words. Begin with [`Report::is_sound`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::Asked;
use super::deed::Kind;
use crate::judge::{Compared, LOSS_SHARE_MAX};

/// Longest time between two commits, whatever happens.
const GAP_MAX: Duration = Duration::from_secs(120);
/// What a tab says only when something in it is broken, not the network.
const BROKEN_TAB: [&str; 4] = ["panicked", "RuntimeError", "unreachable", "assert"];
/// Errors of tabs that are kept.
const TAB_ERRORS_MAX: usize = 10;

/// A fault.
#[derive(Clone, Debug, Serialize)]
pub struct Happened {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    pub kind: Kind,
    /// To whom.
    pub who: String,
    /// What that one did then: `seated`, `spare`, or a tab's phase.
    pub was: String,
    /// How long it lasted.
    pub seconds: u64,
    /// How long after it the next round was committed.
    pub next_commit_seconds: Option<f64>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What it follows from.
    pub seed: u64,
    /// How long faults were made.
    pub seconds: u64,
    /// Headless volunteers.
    pub natives: usize,
    /// Tabs.
    pub tabs: usize,
    /// Pipelines at most.
    pub pipelines: u16,
    /// Whether each headless volunteer had a network of its own, and could be cut off.
    pub has_cables: bool,
    /// Faults by kind.
    pub faults: BTreeMap<Kind, usize>,
    /// Faults that were drawn and could not be done.
    pub left_out: BTreeMap<Kind, usize>,
    /// Rounds that were committed.
    pub commits: usize,
    /// Longest time between two commits, the beginning included.
    pub gap_max_seconds: f64,
    /// 95 of 100 are no longer.
    pub gap_p95_seconds: f64,
    /// Half of them are no longer.
    pub gap_p50_seconds: f64,
    /// Times the run went back.
    pub rewinds: usize,
    /// What the auditor found in the journal.
    pub audit: Value,
    /// States on disks that were held to the journal.
    pub states_compared: usize,
    /// The loss, and that of a run to which nothing happened.
    pub loss: Option<Compared>,
    /// By what share they differ.
    pub loss_share: Option<f64>,
    /// Tabs that did not open again.
    pub tabs_lost: usize,
    /// Errors that tabs wrote to their consoles: how many.
    pub tab_errors: usize,
    /// Some of them.
    pub tab_errors_first: Vec<String>,
    /// Each fault.
    pub happened: Vec<Happened>,
    /// Rules that do not hold, in words.
    pub broken: Vec<String>,
}

impl Report {
    pub(super) fn of(asked: &Asked, has_cables: bool) -> Self {
        Self {
            seed: asked.seed,
            seconds: asked.time.as_secs(),
            natives: asked.natives,
            tabs: asked.tabs,
            pipelines: asked.pipelines,
            has_cables,
            faults: BTreeMap::new(),
            left_out: BTreeMap::new(),
            commits: 0,
            gap_max_seconds: 0.0,
            gap_p95_seconds: 0.0,
            gap_p50_seconds: 0.0,
            rewinds: 0,
            audit: Value::Null,
            states_compared: 0,
            loss: None,
            loss_share: None,
            tabs_lost: 0,
            tab_errors: 0,
            tab_errors_first: vec![],
            happened: vec![],
            broken: vec![],
        }
    }

    /// Whether all rules hold.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.broken.is_empty()
    }

    pub(super) fn happened(&mut self, what: Happened) {
        *self.faults.entry(what.kind).or_default() += 1;
        self.happened.push(what);
    }

    pub(super) fn left_out(&mut self, kind: Kind) {
        *self.left_out.entry(kind).or_default() += 1;
    }

    pub(super) fn broken(&mut self, what: String) {
        self.broken.push(what);
    }

    /// Takes the times of all commits since the beginning.
    pub(super) fn commits(&mut self, began_ms: u64, commits_ms: &[u64]) {
        self.commits = commits_ms.len();
        let before = std::iter::once(&began_ms).chain(commits_ms);
        let gaps = before.zip(commits_ms);
        let gaps = gaps.map(|(before, after)| after.saturating_sub(*before) as f64 / 1e3);
        let mut gaps: Vec<f64> = gaps.collect();
        gaps.sort_by(f64::total_cmp);
        self.gap_max_seconds = gaps.last().copied().unwrap_or(f64::NAN);
        self.gap_p95_seconds = quantile(&gaps, 0.95);
        self.gap_p50_seconds = quantile(&gaps, 0.5);
        // Not a number is no gap below the limit, either.
        let is_short = self.gap_max_seconds <= GAP_MAX.as_secs_f64();
        if !is_short {
            let seconds = self.gap_max_seconds;
            self.broken(format!("no round was committed for {seconds:.0} s"));
        }
        for fault in &mut self.happened {
            let next = commits_ms.iter().find(|at| **at > fault.at_ms);
            fault.next_commit_seconds = next.map(|at| (at - fault.at_ms) as f64 / 1e3);
        }
    }

    pub(super) fn loss(&mut self, both: Compared) {
        let share = both.share();
        self.loss = Some(both);
        self.loss_share = Some(share);
        // A pipeline that stays away leaves the others more steps of as many samples, and at the beginning of training that
        // shows as a lower loss (`figures outer`): where several merge only a higher one is a fault's.
        let is_fewer_pipelines = self.pipelines > 1 && both.loss <= both.undisturbed;
        let is_near = share <= LOSS_SHARE_MAX || is_fewer_pipelines;
        if !is_near {
            self.broken(format!(
                "after {} samples the mean loss of {} rounds is {}, undisturbed {}",
                both.samples, both.rounds, both.loss, both.undisturbed
            ));
        }
    }

    pub(super) fn tab_errors(&mut self, errors: Vec<String>) {
        self.tab_errors = errors.len();
        let is_broken = |text: &&String| BROKEN_TAB.iter().any(|word| text.contains(word));
        let broken: Vec<String> = errors.iter().filter(is_broken).cloned().collect();
        for text in broken {
            self.broken(format!("a tab says: {text}"));
        }
        if self.tabs_lost > 0 {
            self.broken(format!("{} tabs did not open again", self.tabs_lost));
        }
        self.tab_errors_first = errors.into_iter().take(TAB_ERRORS_MAX).collect();
    }
}

/// What a share of the values, in order, is not above.
#[must_use]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a length is an index"
    )]
    let index = (last as f64 * share).ceil() as usize;
    sorted.get(index.min(last)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Kind, Report, quantile};
    use crate::chaos::{Asked, Happened};
    use crate::judge::Compared;

    fn report() -> Report {
        let asked = Asked {
            seed: 1,
            time: Duration::from_secs(60),
            every: Duration::from_secs(20),
            natives: 2,
            tabs: 0,
            pipelines: 1,
            compared_samples: None,
            logs: None,
        };
        Report::of(&asked, true)
    }

    #[test]
    fn a_gap_over_two_minutes_breaks_a_rule_and_so_does_no_commit_at_all() {
        let mut short = report();
        short.happened(Happened {
            at_ms: 3_000,
            kind: Kind::Kill,
            who: "anchovy".to_owned(),
            was: "seated".to_owned(),
            seconds: 2,
            next_commit_seconds: None,
        });
        short.commits(1_000, &[2_000, 4_000, 124_000]);
        assert!(short.is_sound(), "{short:?}");
        assert_eq!(short.happened[0].next_commit_seconds, Some(1.0));
        assert!((short.gap_max_seconds - 120.0).abs() < 1e-9);
        for commits_ms in [&[2_000, 4_000, 125_000][..], &[122_000], &[]] {
            let mut long = report();
            long.commits(1_000, commits_ms);
            assert!(!long.is_sound(), "{commits_ms:?}");
        }
    }

    #[test]
    fn a_loss_that_differs_by_more_than_two_hundredths_breaks_a_rule() {
        for (pipelines, loss, is_sound) in [
            (1, 1.019, true),
            (1, 0.979, false),
            (1, 1.021, false),
            (1, f64::NAN, false),
            // Several that merge learn less from as many samples than one that was left alone.
            (2, 0.9, true),
            (2, 1.021, false),
            (2, f64::NAN, false),
        ] {
            let mut report = report();
            report.pipelines = pipelines;
            report.loss(Compared {
                samples: 80,
                rounds: 1,
                loss,
                undisturbed: 1.0,
            });
            assert_eq!(report.is_sound(), is_sound, "{pipelines}: {loss}");
        }
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        assert!((quantile(&[1.0, 2.0, 3.0], 0.5) - 2.0).abs() < 1e-9);
        assert!((quantile(&[1.0, 2.0, 3.0], 0.95) - 3.0).abs() < 1e-9);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
