//! What a run's journal says: which rounds are committed, which samples they hold, what comes next.
//!
//! [`Row`] is what is journaled; [`History`] is the fold over all rows, and the rule by which an auditor judges
//! them. A commit row *is* the commit; a rewind voids the commits after it.
//!
//! Invariant: in the surviving history no sample stands twice, and each commit names the one it builds on.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::units::{Attempt, Digest, Epoch, PeerId, PipelineId, Round, SampleRange, StageRange};
use crate::wire::frame::Place;
use crate::wire::signal::Held;

/// A seat of a line-up, as it is journaled: enough to know its volunteer again after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatRow {
    /// The volunteer's number.
    pub peer: PeerId,
    /// Its public key.
    pub key: Digest,
    /// Its session.
    pub session: u64,
    /// Stages of the seat.
    pub stages: StageRange,
}

/// A round's commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommitRow {
    /// The new round.
    pub round: Round,
    /// The round it was trained from.
    pub parent: Round,
    /// The pipelines that trained it, in order of their numbers.
    pub members: Vec<MemberRow>,
    /// The attempt that all seats agree on.
    pub attempt: Attempt,
    /// Hashes of all stages, in order.
    pub stages: Vec<Held>,
    /// Mean token loss over the round, in nats.
    pub loss: f64,
    /// How long the round took, in microseconds, as the slowest head measured it.
    pub elapsed_us: u64,
}

/// What one pipeline did for a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    /// Its line-up, and the round it trained from.
    pub place: Place,
    /// Samples of each of its steps, in order of steps.
    pub steps: Vec<SampleRange>,
}

impl MemberRow {
    /// Number of samples.
    pub fn samples(&self) -> u64 {
        self.steps.iter().map(|step| u64::from(step.count)).sum()
    }
}

impl CommitRow {
    /// The steps of all pipelines.
    pub fn steps(&self) -> impl Iterator<Item = &SampleRange> {
        self.members.iter().flat_map(|member| &member.steps)
    }

    /// Number of samples.
    pub fn samples(&self) -> u64 {
        self.members.iter().map(MemberRow::samples).sum()
    }

    /// What that line-up did for it.
    pub fn member(&self, pipeline: PipelineId, epoch: Epoch) -> Option<&MemberRow> {
        let is_it = |it: &&MemberRow| (it.place.pipeline, it.place.epoch) == (pipeline, epoch);
        self.members.iter().find(is_it)
    }
}

/// One entry of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "row", rename_all = "snake_case")]
pub enum Row {
    /// The host started over this journal.
    Started {
        /// How often it did, this time included.
        incarnation: u32,
    },
    /// A pipeline has a new line-up. Synced before any of its seats hears of it.
    LineUp {
        /// Pipeline, epoch, and the round it starts from.
        place: Place,
        /// The seats, in order; none when it is given up.
        seats: Vec<SeatRow>,
    },
    /// A round is committed.
    Commit(CommitRow),
    /// The mean token loss on held-out data, in nats.
    Evaluated {
        /// The round that was evaluated.
        round: Round,
        /// Its loss.
        loss: f64,
    },
    /// A manifest of that round was written.
    Manifest {
        /// The round.
        round: Round,
        /// What is stored of it, in order of stages: blobs of whoever uploaded them.
        stages: Vec<Held>,
    },
    /// Commits after `to` are void.
    Rewind {
        /// The newest round that stands.
        to: Round,
    },
    /// The run stopped itself: going on would only spoil more.
    Paused {
        /// Why, and what to do, in words.
        reason: String,
    },
    /// A person wants it to go on.
    Resumed,
}

/// Why a journal is not a run's history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// A round number came again.
    #[error("round {round} is committed, but {newest} was given out before")]
    RoundReused {
        /// The repeated round.
        round: Round,
        /// The newest number given out.
        newest: Round,
    },
    /// A commit does not build on the newest round that stands.
    #[error("round {round} builds on {parent}, but the newest round that stands is {newest}")]
    Parent {
        /// The commit.
        round: Round,
        /// What it names.
        parent: Round,
        /// What stands.
        newest: Round,
    },
    /// A sample is in two commits.
    #[error("sample {sample} of round {round} is in an earlier round that stands")]
    SampleTwice {
        /// The sample.
        sample: u64,
        /// The later round.
        round: Round,
    },
    /// A sample was passed over.
    #[error("sample {sample} is in no round that stands, nor leased, nor waiting")]
    SampleMissing {
        /// The lowest such sample.
        sample: u64,
    },
    /// A rewind to a round that does not stand.
    #[error("rewind to round {to}, which does not stand")]
    RewindToVoid {
        /// The round it names.
        to: Round,
    },
    /// A manifest of a round that does not stand.
    #[error("manifest of round {round}, which does not stand")]
    ManifestOfVoid {
        /// The round it names.
        round: Round,
    },
}

/// A run's surviving history.
#[derive(Clone, Debug, Default)]
pub struct History {
    commits: BTreeMap<Round, CommitRow>,
    validation: BTreeMap<Round, f64>,
    manifests: BTreeMap<Round, Vec<Held>>,
    /// Samples of the surviving commits: first to end, merged where they touch.
    done: BTreeMap<u64, u64>,
    given_out: Round,
    incarnation: u32,
    line_ups: BTreeMap<PipelineId, (Place, Vec<SeatRow>)>,
    paused: Option<String>,
}

impl History {
    /// Folds over all rows of a journal.
    ///
    /// # Errors
    /// The first row that breaks the rule.
    pub fn replay<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Result<Self, HistoryError> {
        let mut history = Self::default();
        rows.into_iter().try_for_each(|row| history.apply(row))?;
        Ok(history)
    }

    /// Takes one more row.
    ///
    /// # Errors
    /// The row breaks the rule; the history is as it was.
    pub fn apply(&mut self, row: &Row) -> Result<(), HistoryError> {
        match row {
            Row::Started { incarnation } => self.incarnation = *incarnation,
            Row::LineUp { place, seats } if seats.is_empty() => {
                self.line_ups.remove(&place.pipeline);
            }
            Row::LineUp { place, seats } => {
                self.line_ups
                    .insert(place.pipeline, (*place, seats.clone()));
            }
            Row::Commit(commit) => self.commit(commit)?,
            Row::Evaluated { round, loss } => {
                self.validation.insert(*round, *loss);
            }
            Row::Manifest { round, stages } => {
                if *round > self.newest() || (round.0 > 0 && !self.commits.contains_key(round)) {
                    return Err(HistoryError::ManifestOfVoid { round: *round });
                }
                self.manifests.insert(*round, stages.clone());
            }
            Row::Rewind { to } => self.rewind(*to)?,
            Row::Paused { reason } => self.paused = Some(reason.clone()),
            Row::Resumed => self.paused = None,
        }
        Ok(())
    }

    /// Whether a commit may come next: what [`History::apply`] would say of its row.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn judge(&self, commit: &CommitRow) -> Result<(), HistoryError> {
        self.done_after(commit).map(drop)
    }

    /// The first sample of `steps` that a standing round, or a step before it, holds already.
    pub fn sample_twice(&self, steps: impl IntoIterator<Item = SampleRange>) -> Option<u64> {
        let mut done = self.done.clone();
        let mut steps = steps.into_iter();
        steps.find_map(|samples| insert_range(&mut done, samples).err())
    }

    fn commit(&mut self, commit: &CommitRow) -> Result<(), HistoryError> {
        self.done = self.done_after(commit)?;
        self.given_out = commit.round;
        self.commits.insert(commit.round, commit.clone());
        Ok(())
    }

    /// The samples that are done once `commit` stands.
    fn done_after(&self, commit: &CommitRow) -> Result<BTreeMap<u64, u64>, HistoryError> {
        let (round, parent) = (commit.round, commit.parent);
        if round <= self.given_out {
            return Err(HistoryError::RoundReused {
                round,
                newest: self.given_out,
            });
        }
        if parent != self.newest() {
            return Err(HistoryError::Parent {
                round,
                parent,
                newest: self.newest(),
            });
        }
        let mut done = self.done.clone();
        for samples in commit.steps() {
            insert_range(&mut done, *samples)
                .map_err(|sample| HistoryError::SampleTwice { sample, round })?;
        }
        Ok(done)
    }

    fn rewind(&mut self, to: Round) -> Result<(), HistoryError> {
        if to.0 > 0 && !self.commits.contains_key(&to) {
            return Err(HistoryError::RewindToVoid { to });
        }
        self.commits.retain(|round, _| *round <= to);
        self.manifests.retain(|round, _| *round <= to);
        self.validation.retain(|round, _| *round <= to);
        self.done.clear();
        for samples in self.commits.values().flat_map(CommitRow::steps) {
            insert_range(&mut self.done, *samples).expect("checked when it was committed");
        }
        Ok(())
    }

    /// The newest round that stands; round 0 is the seed's.
    pub fn newest(&self) -> Round {
        self.commits
            .last_key_value()
            .map_or(Round(0), |(round, _)| *round)
    }

    /// The number that the next commit takes: numbers of void rounds are not used again.
    pub fn next_round(&self) -> Round {
        self.given_out.next()
    }

    /// The commit of `round`, if it stands.
    pub fn get(&self, round: Round) -> Option<&CommitRow> {
        self.commits.get(&round)
    }

    /// Commits that stand, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &CommitRow> {
        self.commits.values().rev()
    }

    /// Commits that stand, in order.
    pub fn commits(&self) -> impl DoubleEndedIterator<Item = &CommitRow> {
        self.commits.values()
    }

    /// Rounds that stand and have a manifest in the store.
    ///
    /// Each with what is stored of it, in order of stages.
    pub fn manifests(&self) -> &BTreeMap<Round, Vec<Held>> {
        &self.manifests
    }

    /// The newest round that stands and has a manifest in the store; the seed's, if there is none.
    pub fn newest_manifest(&self) -> Round {
        let newest = self.manifests.last_key_value();
        newest.map_or(Round(0), |(round, _)| *round)
    }

    /// Forgets manifests that are no longer in the store. No row says so: the store itself does, at each start.
    pub(super) fn retain_manifests(&mut self, kept: &BTreeSet<Round>) {
        let newest = kept.last().copied();
        // A newer one was written since the store was looked at.
        self.manifests
            .retain(|round, _| kept.contains(round) || newest.is_none_or(|newest| *round > newest));
    }

    /// Why the run has paused itself, if it has.
    pub fn paused(&self) -> Option<&str> {
        self.paused.as_deref()
    }

    /// Loss on held-out data of a round that stands.
    pub fn validation(&self, round: Round) -> Option<f64> {
        self.validation.get(&round).copied()
    }

    /// Loss on held-out data of the newest round that has one.
    pub fn newest_validation(&self) -> Option<f64> {
        self.validation.last_key_value().map(|(_, loss)| *loss)
    }

    /// Samples in the rounds that stand.
    pub fn samples(&self) -> u64 {
        self.done.iter().map(|(first, end)| end - first).sum()
    }

    /// How often the host was started over this journal.
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// The line-up of each pipeline that was journaled last.
    pub fn line_ups(&self) -> &BTreeMap<PipelineId, (Place, Vec<SeatRow>)> {
        &self.line_ups
    }

    /// Samples below the highest committed one that no standing round holds, in pieces of at most
    /// `count`; and the first sample that was never committed.
    pub fn waiting(&self, count: u32) -> (Vec<SampleRange>, u64) {
        let mut gaps = Vec::new();
        let mut from = 0;
        for (&first, &end) in &self.done {
            cut(from, first, count, &mut gaps);
            from = end;
        }
        (gaps, from)
    }

    /// Judges the history as an auditor does: below `lowest_open`, the lowest sample that is leased or
    /// waiting, none may be missing.
    ///
    /// # Errors
    /// The lowest sample that is missing.
    pub fn audit(&self, lowest_open: u64) -> Result<(), HistoryError> {
        let mut covered = 0;
        for (&first, &end) in &self.done {
            if first > covered {
                break;
            }
            covered = end;
        }
        match covered < lowest_open {
            true => Err(HistoryError::SampleMissing { sample: covered }),
            false => Ok(()),
        }
    }
}

/// A journal's rows without the manifests that are no longer in the store: nothing may be promised from those.
pub fn only_stored(mut rows: Vec<Row>, is_stored: impl Fn(Round) -> bool) -> Vec<Row> {
    rows.retain(|row| match row {
        Row::Manifest { round, .. } => is_stored(*round),
        Row::Started { .. }
        | Row::LineUp { .. }
        | Row::Commit(_)
        | Row::Evaluated { .. }
        | Row::Rewind { .. }
        | Row::Paused { .. }
        | Row::Resumed => true,
    });
    rows
}

fn cut(first: u64, end: u64, count: u32, pieces: &mut Vec<SampleRange>) {
    let mut at = first;
    while at < end {
        let count = u32::try_from((end - at).min(u64::from(count))).expect("at most a u32");
        pieces.push(SampleRange { first: at, count });
        at += u64::from(count);
    }
}

/// Adds `samples`; on overlap, the lowest sample that is there already.
fn insert_range(done: &mut BTreeMap<u64, u64>, samples: SampleRange) -> Result<(), u64> {
    let (mut first, mut end) = (samples.first, samples.end());
    if let Some((_, &before)) = done.range(..=first).next_back()
        && before > first
    {
        return Err(first);
    }
    if let Some((&after, _)) = done.range(first..end).next() {
        return Err(after);
    }
    if let Some((&start, &before)) = done.range(..=first).next_back()
        && before == first
    {
        done.remove(&start);
        first = start;
    }
    if let Some(after) = done.remove(&end) {
        end = after;
    }
    done.insert(first, end);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Issue;

    fn commit(round: u32, parent: u32, steps: &[(u64, u32)]) -> Row {
        Row::Commit(CommitRow {
            round: Round(round),
            parent: Round(parent),
            members: vec![MemberRow {
                place: Place {
                    pipeline: PipelineId(0),
                    epoch: Issue::default(),
                    round: Round(parent),
                },
                steps: steps
                    .iter()
                    .map(|&(first, count)| SampleRange { first, count })
                    .collect(),
            }],
            attempt: Issue::default(),
            stages: Vec::new(),
            loss: 1.0,
            elapsed_us: 1,
        })
    }

    #[test]
    fn a_sample_may_stand_once() {
        let rows = [commit(1, 0, &[(0, 8), (8, 8)]), commit(2, 1, &[(12, 8)])];
        let error = History::replay(&rows).unwrap_err();
        assert_eq!(
            error,
            HistoryError::SampleTwice {
                sample: 12,
                round: Round(2)
            }
        );
    }

    #[test]
    fn a_rewind_returns_samples_but_no_round_numbers() {
        let rows = [
            commit(1, 0, &[(0, 8)]),
            commit(2, 1, &[(8, 8)]),
            Row::Rewind { to: Round(1) },
        ];
        let history = History::replay(&rows).unwrap();
        assert_eq!(
            (history.newest(), history.next_round()),
            (Round(1), Round(3))
        );
        assert_eq!(history.waiting(8), (Vec::new(), 8));
    }

    #[test]
    fn what_is_passed_over_is_missing() {
        let history = History::replay(&[commit(1, 0, &[(0, 8), (16, 8)])]).unwrap();
        assert_eq!(history.audit(8), Ok(()));
        assert_eq!(
            history.audit(16),
            Err(HistoryError::SampleMissing { sample: 8 })
        );
        assert_eq!(history.waiting(4).0.len(), 2);
    }
}
