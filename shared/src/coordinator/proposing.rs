//! What the host would do well to change: into how many microbatches a step is cut.
//!
//! Looked at when a round is committed, not more often than each [`PROPOSAL_EVERY`]; each number is told once. Nothing in a run
//! depends on it: a step's microbatches are part of what everybody agreed on, so a proposal is for the person, and for the next run.

use std::collections::BTreeSet;

use super::pipeline::Pipeline;
use super::{Coordinator, Output};
use crate::limits::PROPOSAL_EVERY;
use crate::schedule::proposal::{Seated, propose};
use crate::units::Time;
use crate::wire::report::Proposal;

/// Pipelines that are looked at: so many tell what a step takes, and thousands would take long.
const PIPELINES_MAX: usize = 4;

/// What was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Proposing {
    /// As of the newest look.
    newest: Option<Proposal>,
    told: BTreeSet<u16>,
    next_look: Time,
}

impl Coordinator {
    /// A round was committed: seats and links may be known better.
    pub(super) fn reconsider_cut(&mut self, now: Time) {
        if now < self.proposing.next_look {
            return;
        }
        self.proposing.next_look = now + PROPOSAL_EVERY;
        let standing = self.proposing.newest.map(|it| it.microbatches);
        let proposal = propose(
            self.config(),
            &self.line_ups_at_work(),
            &self.links,
            standing,
        );
        self.proposing.newest = proposal;
        if let Some(proposal) = proposal
            && self.proposing.told.insert(proposal.microbatches)
        {
            self.out(Output::Propose(proposal));
        }
    }

    /// What is proposed, while anybody is at work.
    pub(super) fn proposal(&self) -> Option<Proposal> {
        self.proposing.newest.filter(|_| !self.pipelines.is_empty())
    }

    /// Those of which nobody has just left.
    fn line_ups_at_work(&self) -> Vec<Vec<Seated>> {
        let line_ups = self.pipelines.iter().take(PIPELINES_MAX);
        line_ups.filter_map(|it| self.seated(it)).collect()
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

    /// Microseconds that all line-ups' steps should take as they are cut, updates left out.
    #[cfg(test)]
    pub fn expected_step_us(&self) -> Option<u128> {
        use crate::schedule::proposal::steps_us;
        let config = self.config();
        steps_us(config, config, &self.line_ups_at_work(), &self.links)
    }
}
