//! The auditor's rule over a journal, written apart from the coordinator that fills it.
//!
//! Folds over the rows with plain means: the rounds that stand, and each stretch of samples with its round. It shares the
//! rows' types with the coordinator and nothing else, so that a mistake there is seen here. Begin with [`audit`].
//!
//! The rule: commits chain by parent; no round number comes twice; no sample stands twice; below the lowest sample
//! that is still leased or waiting none is missing; a commit is of the line-up that was journaled last; rewinds and
//! manifests name rounds that stand; a later start has a higher number.

use std::collections::BTreeMap;

use shared::coordinator::history::{CommitRow, MemberRow, Row};
use shared::units::{Epoch, PipelineId, Round, SampleRange};

/// What a journal holds, once it was found to be in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Rows.
    pub rows: usize,
    /// Starts of the host.
    pub starts: usize,
    /// Commits, void ones included.
    pub commits: usize,
    /// Times the run went back.
    pub rewinds: usize,
    /// Newest round that stands.
    pub newest: Round,
    /// Rounds that stand.
    pub standing: usize,
    /// Samples in them.
    pub samples: u64,
    /// Below it, every sample stands.
    pub complete_below: u64,
}

/// What is wrong, and in which row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {row}: {fault}")]
pub struct Fault {
    /// Number of the row, from 0; the number of rows if it is about all of them.
    pub row: usize,
    /// What is wrong.
    pub fault: Wrong,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// A round number was given out before.
    #[error("round {round} comes after round {before}")]
    Number {
        /// The commit.
        round: Round,
        /// The highest number before it.
        before: Round,
    },
    /// A commit does not build on the newest round that stands.
    #[error("round {round} builds on round {parent}, but round {newest} is the newest that stands")]
    Parent {
        /// The commit.
        round: Round,
        /// What it says it builds on.
        parent: Round,
        /// What it should build on.
        newest: Round,
    },
    /// A commit of a line-up that is not the pipeline's last.
    #[error("round {round} is of line-up {epoch}, which is not the one that was journaled last")]
    LineUp {
        /// The commit.
        round: Round,
        /// Its line-up.
        epoch: Epoch,
    },
    /// A commit without samples, or of states of another round.
    #[error("round {round} {what}")]
    Commit {
        /// The commit.
        round: Round,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A sample stands twice.
    #[error("sample {sample} is in round {round} and in round {before}, and both stand")]
    Twice {
        /// The sample.
        sample: u64,
        /// The later round.
        round: Round,
        /// The earlier one.
        before: Round,
    },
    /// A sample was passed over.
    #[error(
        "sample {sample} is in no round that stands, though only samples from {lowest_open} on are leased or waiting"
    )]
    Missing {
        /// The lowest one.
        sample: u64,
        /// The lowest that may be missing.
        lowest_open: u64,
    },
    /// A rewind or a manifest names a round that does not stand.
    #[error("{what} of round {round}, which does not stand")]
    Void {
        /// Rewind or manifest.
        what: &'static str,
        /// The round.
        round: Round,
    },
    /// A start's number is not above the one before.
    #[error("start {incarnation} comes after start {before}")]
    Start {
        /// Its number.
        incarnation: u32,
        /// The one before.
        before: u32,
    },
}

#[derive(Default)]
struct Auditor {
    /// Rounds that stand, oldest first.
    standing: Vec<Round>,
    /// Where each stretch of samples that stands begins: its end and its round.
    stretches: BTreeMap<u64, (u64, Round)>,
    line_ups: BTreeMap<PipelineId, Epoch>,
    highest: Round,
    incarnation: u32,
    findings: Findings,
}

/// Judges a whole journal. `lowest_open` is the lowest sample that is leased or waiting, as `/api/run` tells it; without
/// it, no sample below the highest committed one may be missing.
///
/// # Errors
/// The first thing that is wrong.
pub fn audit(rows: &[Row], lowest_open: Option<u64>) -> Result<Findings, Fault> {
    let mut auditor = Auditor::default();
    for (index, row) in rows.iter().enumerate() {
        auditor
            .take(row)
            .map_err(|fault| Fault { row: index, fault })?;
    }
    auditor.findings.rows = rows.len();
    auditor.finish(lowest_open).map_err(|fault| Fault {
        row: rows.len(),
        fault,
    })
}

impl Auditor {
    fn newest(&self) -> Round {
        self.standing.last().copied().unwrap_or(Round(0))
    }

    fn take(&mut self, row: &Row) -> Result<(), Wrong> {
        match row {
            Row::Started { incarnation } => {
                self.findings.starts += 1;
                let (incarnation, before) = (*incarnation, self.incarnation);
                if incarnation <= before {
                    return Err(Wrong::Start {
                        incarnation,
                        before,
                    });
                }
                self.incarnation = incarnation;
            }
            Row::LineUp { place, seats } => {
                // Without seats it is given up.
                if seats.is_empty() {
                    self.line_ups.remove(&place.pipeline);
                } else {
                    self.line_ups.insert(place.pipeline, place.epoch);
                }
            }
            Row::Commit(commit) => self.commit(commit)?,
            Row::Evaluated { .. } | Row::Paused { .. } | Row::Resumed => {}
            Row::Manifest { round, .. } => self.must_stand("manifest", *round)?,
            Row::Rewind { to } => {
                self.must_stand("rewind to the state", *to)?;
                self.findings.rewinds += 1;
                self.standing.retain(|round| round <= to);
                self.stretches.retain(|_, (_, round)| *round <= *to);
            }
        }
        Ok(())
    }

    fn must_stand(&self, what: &'static str, round: Round) -> Result<(), Wrong> {
        if round == Round(0) || self.standing.contains(&round) {
            Ok(())
        } else {
            Err(Wrong::Void { what, round })
        }
    }

    fn commit(&mut self, commit: &CommitRow) -> Result<(), Wrong> {
        let (round, parent) = (commit.round, commit.parent);
        if round <= self.highest {
            let before = self.highest;
            return Err(Wrong::Number { round, before });
        }
        let of_parent = |member: &MemberRow| member.place.round == parent;
        if parent != self.newest() || !commit.members.iter().all(of_parent) {
            let newest = self.newest();
            return Err(Wrong::Parent {
                round,
                parent,
                newest,
            });
        }
        for member in &commit.members {
            let (pipeline, epoch) = (member.place.pipeline, member.place.epoch);
            if self.line_ups.get(&pipeline) != Some(&epoch) {
                return Err(Wrong::LineUp { round, epoch });
            }
        }
        let wrong = |what| Err(Wrong::Commit { round, what });
        let is_idle = |member: &MemberRow| member.steps.is_empty();
        if commit.members.is_empty()
            || commit.members.iter().any(is_idle)
            || commit.steps().any(|step| step.count == 0)
        {
            return wrong("holds a step without samples, or none at all");
        }
        if commit.stages.iter().any(|held| held.round != round) {
            return wrong("names the state of another round");
        }
        for step in commit.steps() {
            self.add(*step, round)?;
        }
        self.findings.commits += 1;
        self.highest = round;
        self.standing.push(round);
        Ok(())
    }

    fn add(&mut self, samples: SampleRange, round: Round) -> Result<(), Wrong> {
        let (first, end) = (samples.first, samples.end());
        // The last stretch that begins below our end is the only one that can reach into ours.
        let below = self.stretches.range(..end).next_back();
        if let Some((start, (other_end, before))) = below
            && *other_end > first
        {
            return Err(Wrong::Twice {
                sample: first.max(*start),
                round,
                before: *before,
            });
        }
        self.stretches.insert(first, (end, round));
        Ok(())
    }

    fn finish(mut self, lowest_open: Option<u64>) -> Result<Findings, Wrong> {
        let mut covered = 0;
        for (start, (end, _)) in &self.stretches {
            if *start > covered {
                break;
            }
            covered = *end;
        }
        let highest = self
            .stretches
            .last_key_value()
            .map_or(0, |(_, (end, _))| *end);
        let lowest_open = lowest_open.unwrap_or(highest);
        if covered < lowest_open {
            return Err(Wrong::Missing {
                sample: covered,
                lowest_open,
            });
        }
        self.findings.newest = self.newest();
        self.findings.standing = self.standing.len();
        self.findings.samples = self
            .stretches
            .iter()
            .map(|(start, (end, _))| end - start)
            .sum();
        self.findings.complete_below = covered;
        Ok(self.findings)
    }
}

#[cfg(test)]
mod tests {
    use shared::coordinator::history::SeatRow;
    use shared::units::{Digest, Issue, PeerId, StageId, StageRange};
    use shared::wire::frame::Place;
    use shared::wire::signal::Held;

    use super::*;

    fn place(counter: u32, round: u32) -> Place {
        Place {
            pipeline: PipelineId(0),
            epoch: Issue {
                incarnation: 1,
                counter,
            },
            round: Round(round),
        }
    }

    /// Reads rows as `start 1`, `line-up 0`, `commit 2<1 of 0: 8+8 16+8`, `rewind 1`, `manifest 1`.
    fn rows(text: &str) -> Vec<Row> {
        let number = |text: &str| text.parse::<u32>().unwrap();
        let row = |line: &str| {
            let (kind, rest) = line.split_once(' ').unwrap();
            match kind {
                "start" => Row::Started {
                    incarnation: number(rest),
                },
                "line-up" => Row::LineUp {
                    place: place(number(rest), 0),
                    seats: vec![SeatRow {
                        peer: PeerId(1),
                        key: Digest::default(),
                        session: 1,
                        stages: StageRange { first: 0, end: 1 },
                    }],
                },
                "rewind" => Row::Rewind {
                    to: Round(number(rest)),
                },
                "manifest" => Row::Manifest {
                    round: Round(number(rest)),
                    stages: Vec::new(),
                },
                "commit" => {
                    let (head, steps) = rest.split_once(": ").unwrap();
                    let (rounds, line_up) = head.split_once(" of ").unwrap();
                    let (round, parent) = rounds.split_once('<').unwrap();
                    let round = Round(number(round));
                    let step = |step: &str| {
                        let (first, count) = step.split_once('+').unwrap();
                        SampleRange {
                            first: u64::from(number(first)),
                            count: number(count),
                        }
                    };
                    Row::Commit(CommitRow {
                        round,
                        parent: Round(number(parent)),
                        members: vec![MemberRow {
                            place: place(number(line_up), number(parent)),
                            steps: steps.split_whitespace().map(step).collect(),
                        }],
                        attempt: Issue::default(),
                        stages: vec![Held {
                            round,
                            stage: StageId(0),
                            agreed: Digest::default(),
                            blob: Digest::default(),
                        }],
                        loss: 1.0,
                        elapsed_us: 1,
                    })
                }
                other => panic!("{other}"),
            }
        };
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(row)
            .collect()
    }

    fn refusal(text: &str) -> String {
        audit(&rows(text), None).unwrap_err().to_string()
    }

    #[test]
    fn a_run_with_a_restart_and_a_rewind_is_in_order() {
        let text = "start 1
            line-up 0
            commit 1<0 of 0: 0+8 8+8
            manifest 1
            commit 2<1 of 0: 16+8
            start 2
            line-up 1
            rewind 1
            commit 3<1 of 1: 16+8 24+8";
        let findings = audit(&rows(text), Some(32)).unwrap();
        assert_eq!(
            findings,
            Findings {
                rows: 9,
                starts: 2,
                commits: 3,
                rewinds: 1,
                newest: Round(3),
                standing: 2,
                samples: 32,
                complete_below: 32,
            }
        );
    }

    #[test]
    fn a_sample_that_stands_twice_is_found_wherever_the_stretches_meet() {
        for (second, sample) in [
            ("12+8", 12),
            ("8+16", 8),
            ("4+8", 8),
            ("9+1", 9),
            ("15+9", 15),
        ] {
            let text = format!("line-up 0\ncommit 1<0 of 0: 0+4 8+8\ncommit 2<1 of 0: {second}");
            let expected =
                format!("row 2: sample {sample} is in round 2 and in round 1, and both stand");
            assert_eq!(refusal(&text), expected);
        }
        let in_one = "line-up 0\ncommit 1<0 of 0: 0+8 7+8";
        assert_eq!(
            refusal(in_one),
            "row 1: sample 7 is in round 1 and in round 1, and both stand"
        );
    }

    #[test]
    fn a_missing_sample_is_found_below_the_lowest_open_one_only() {
        let gap = rows("line-up 0\ncommit 1<0 of 0: 0+8 16+8");
        assert!(audit(&gap, Some(8)).is_ok());
        for lowest_open in [Some(9), None] {
            let fault = audit(&gap, lowest_open).unwrap_err();
            assert!(matches!(fault.fault, Wrong::Missing { sample: 8, .. }));
        }
    }

    #[test]
    fn chains_that_break_and_rounds_that_are_void_are_found() {
        assert_eq!(
            refusal("line-up 0\ncommit 1<0 of 0: 0+8\ncommit 2<0 of 0: 8+8"),
            "row 2: round 2 builds on round 0, but round 1 is the newest that stands"
        );
        assert_eq!(
            refusal("line-up 0\ncommit 1<0 of 0: 0+8\nrewind 0\ncommit 1<0 of 0: 0+8"),
            "row 3: round 1 comes after round 1"
        );
        assert_eq!(
            refusal("line-up 0\ncommit 1<0 of 0: 0+8\nrewind 0\nmanifest 1"),
            "row 3: manifest of round 1, which does not stand"
        );
        assert_eq!(
            refusal("line-up 0\nline-up 1\ncommit 1<0 of 0: 0+8"),
            "row 2: round 1 is of line-up 1.0, which is not the one that was journaled last"
        );
        assert_eq!(
            refusal("start 2\nstart 2"),
            "row 1: start 2 comes after start 2"
        );
    }
}
