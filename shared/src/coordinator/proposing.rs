//! What the host would do well to change: into how many microbatches a step is cut.
//!
//! Looked at once a commit; the same number is told once. Nothing in a run depends on it: a step's microbatches are
//! part of what everybody agreed on, so a proposal is for the person, and for the next run.

use std::collections::BTreeSet;

use super::pipeline::Pipeline;
use super::{Coordinator, Output};
use crate::schedule::proposal::{Seated, propose};

/// Pipelines that are looked at: so many tell what a step takes, and thousands would take long.
const PIPELINES_MAX: usize = 16;

impl Coordinator {
    /// A round was committed: seats and links may be known better.
    pub(super) fn reconsider_cut(&mut self) {
        let line_ups: Option<Vec<Vec<Seated>>> = self
            .pipelines
            .iter()
            .take(PIPELINES_MAX)
            .map(|pipeline| self.seated(pipeline))
            .collect();
        // Where somebody has just left, there is nothing to say.
        let Some(line_ups) = line_ups else { return };
        let proposal = propose(self.config(), &line_ups, &self.links);
        let told = self.cut_told;
        if let Some(proposal) = proposal.filter(|it| told != Some(it.microbatches)) {
            self.cut_told = Some(proposal.microbatches);
            self.out(Output::Propose(proposal));
        }
        self.proposal = proposal;
    }

    fn seated(&self, pipeline: &Pipeline) -> Option<Vec<Seated>> {
        let seats = pipeline.seats.iter().map(|seat| {
            let volunteer = self.roster.get(seat.row.peer)?;
            Some(Seated {
                volunteer: volunteer.candidate(BTreeSet::new()),
                speed: volunteer.capabilities.speed,
                stages: seat.row.stages,
            })
        });
        seats.collect()
    }
}
