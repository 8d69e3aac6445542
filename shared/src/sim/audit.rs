//! The auditor: judges rows as they are synced, knowing only the configuration and the data.

use std::collections::BTreeMap;

use super::compute::Fold;
use crate::config::run::RunConfig;
use crate::coordinator::history::{CommitRow, History, HistoryError, Row};
use crate::units::Round;

/// What an auditor objects to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Objection {
    /// The rows are no history.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// A stage's weights are not what the rows say was done.
    #[error("round {round}: stage {stage} is not what its samples make of round {parent}")]
    Weights {
        round: Round,
        parent: Round,
        stage: u16,
    },
    /// Something was said that is not journaled.
    #[error("round {round} was told as committed before its row was synced")]
    Unsynced { round: Round },
}

/// Knows the rows that are synced.
#[derive(Debug)]
pub(super) struct Auditor {
    config: RunConfig,
    history: History,
    folds: BTreeMap<Round, Fold>,
}

impl Auditor {
    pub(super) fn new(config: RunConfig) -> Self {
        let folds = BTreeMap::from([(Round(0), Fold::new(&config))]);
        Self {
            config,
            history: History::default(),
            folds,
        }
    }

    /// A row was synced.
    pub(super) fn row(&mut self, row: &Row) -> Result<(), Objection> {
        self.history.apply(row)?;
        match row {
            Row::Commit(commit) => self.commit(commit)?,
            Row::Rewind { to } => self.folds.retain(|round, _| round <= to),
            Row::Started { .. }
            | Row::LineUp { .. }
            | Row::Evaluated { .. }
            | Row::Manifest { .. }
            | Row::Paused { .. }
            | Row::Resumed => {}
        }
        Ok(())
    }

    fn commit(&mut self, commit: &CommitRow) -> Result<(), Objection> {
        let (round, parent) = (commit.round, commit.parent);
        let mut fold = self.folds.get(&parent).expect("its parent stands").clone();
        let mut trained: Vec<(u64, Fold)> = commit
            .members
            .iter()
            .map(|member| {
                let mut own = fold.clone();
                own.steps(&self.config, member.place.epoch, &member.steps);
                (member.samples(), own)
            })
            .collect();
        match (trained.pop(), trained.is_empty()) {
            (Some((_, alone)), true) => fold = alone,
            (last, _) => {
                trained.extend(last);
                fold.merge(&self.config, &trained);
            }
        }
        let digests = fold.digests(&self.config);
        let wrong = commit
            .stages
            .iter()
            .zip(&digests)
            .find(|(held, digest)| held.agreed != **digest);
        if let Some((held, _)) = wrong {
            return Err(Objection::Weights {
                round,
                parent,
                stage: held.stage.0,
            });
        }
        if commit.stages.len() != digests.len() {
            let stage = u16::try_from(commit.stages.len()).expect("stages fit u16");
            return Err(Objection::Weights {
                round,
                parent,
                stage,
            });
        }
        self.folds.insert(round, fold);
        Ok(())
    }

    /// The host told a volunteer of a commit.
    pub(super) fn told(&self, round: Round) -> Result<(), Objection> {
        match self.history.get(round) {
            Some(_) => Ok(()),
            None => Err(Objection::Unsynced { round }),
        }
    }

    /// The coordinator says that from `lowest_open` on samples are leased or waiting.
    pub(super) fn open(&self, lowest_open: u64) -> Result<(), Objection> {
        Ok(self.history.audit(lowest_open)?)
    }
}
