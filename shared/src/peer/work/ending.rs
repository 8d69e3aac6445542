//! A round's end at one seat: what it trained by itself, what a merge made of that, and which of both the host commits.
//!
//! The own result stays here, with its states, until a commit: every merge begins from it, and it is what stands
//! if the others fall out. A merged result takes its place in what is kept; the weights in the compute are still our own
//! then, so a commit of the merged one has the compute take it before anything else.

use bytes::Bytes;

use super::{Begun, Head, Phase, Work, WorkOutput};
use crate::compute::{Done, Job, Snapshot, StageState};
use crate::units::{Attempt, Digest, PeerId, Round, Step};
use crate::wire::frame::Place;
use crate::wire::leases::Leases;
use crate::wire::signal::{Held, Holds, Resume, Up};

/// A result, as the host was told of it, and its states.
#[derive(Clone, Debug)]
pub(super) struct RoundEnd {
    pub(super) holds: Holds,
    pub(super) result: Round,
    pub(super) states: Vec<(Held, Bytes)>,
    /// Of the round's only step, where those are merged: one a stage.
    pub(super) gradients: Vec<Bytes>,
}

/// What a seat brings into a merge of a round.
#[derive(Clone, Copy, Debug)]
pub struct OwnResult<'a> {
    /// Its states, stages in order.
    pub states: &'a [(Held, Bytes)],
    /// Gradients of the round's only step, where those are merged: one a stage.
    pub gradients: &'a [Bytes],
    /// Samples of the run before the round.
    pub samples_done: u64,
}

/// What a commit of this seat's result comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Microbatches of this seat in it.
    pub microbatches: u64,
    /// Whether it is a merge's result, not the seat's own.
    pub merged: bool,
}

impl RoundEnd {
    /// What the compute gave out as the end of round `result`, once `steps` of it are done.
    pub(super) fn new(
        place: Place,
        attempt: Attempt,
        steps: u32,
        result: Round,
        snapshots: Vec<Snapshot>,
    ) -> Self {
        let gradients = snapshots.iter().map(|it| it.gradient.clone()).collect();
        let states = named(result, snapshots);
        let holds = Holds {
            place,
            attempt,
            steps,
            stages: states.iter().map(|(held, _)| *held).collect(),
        };
        Self {
            holds,
            result,
            states,
            gradients,
        }
    }

    fn is_named(&self, attempt: Attempt, round: Round) -> bool {
        self.holds.attempt == attempt && self.result == round
    }
}

/// Names of what the compute gave out as a round's states.
fn named(round: Round, snapshots: impl IntoIterator<Item = Snapshot>) -> Vec<(Held, Bytes)> {
    let name = |snapshot: Snapshot| {
        let held = Held {
            round,
            stage: snapshot.stage,
            agreed: snapshot.agreed,
            blob: Digest::of(&snapshot.blob),
        };
        (held, snapshot.blob)
    };
    snapshots.into_iter().map(name).collect()
}

impl Work {
    /// Keeps a result, and tells the host.
    pub(super) fn hold(&mut self, end: &RoundEnd) {
        self.outputs.push_back(WorkOutput::Keep(end.states.clone()));
        let holds = end.holds.clone();
        self.outputs.push_back(WorkOutput::Up(Up::Holds(holds)));
    }

    /// The seat's own result of the round, for a merge under that attempt: stages in order. `None` unless there is one,
    /// of an older attempt.
    pub fn own_result(&self, attempt: Attempt) -> Option<OwnResult<'_>> {
        let ended = self.ended.as_ref()?;
        let is_held = self.phase == Phase::Held && ended.holds.attempt < attempt;
        let samples_done = self.begun?.samples_done;
        is_held.then_some(OwnResult {
            states: &ended.states,
            gradients: &ended.gradients,
            samples_done,
        })
    }

    /// A merge of the seat's own result is done.
    pub fn handle_merged(&mut self, attempt: Attempt, result: Round, snapshots: Vec<Snapshot>) {
        let Some(ended) = self.ended.as_ref().filter(|_| self.phase == Phase::Held) else {
            return;
        };
        let steps = ended.holds.steps;
        let merged = RoundEnd::new(self.place(), attempt, steps, result, snapshots);
        self.hold(&merged);
        self.merged = Some(merged);
    }

    /// What was merged is void: the seat's own result is kept in its place again.
    pub fn unmerge(&mut self) {
        let (Some(merged), Some(ended)) = (self.merged.take(), &self.ended) else {
            return;
        };
        self.outputs
            .push_back(WorkOutput::Drop(merged.holds.stages));
        self.outputs
            .push_back(WorkOutput::Keep(ended.states.clone()));
    }

    /// What the seat holds of the round that no commit has named, its own and a merge's.
    pub fn provisional(&self) -> impl Iterator<Item = &Held> {
        let ends = self.ended.iter().chain(&self.merged);
        ends.flat_map(|end| &end.holds.stages)
    }

    /// Whether the round is over here and its commit is waited for.
    pub fn waits_for_commit(&self) -> bool {
        self.phase == Phase::Held
    }

    /// The host committed this seat's result, or a merge's of it: the next round starts from that.
    ///
    /// Returns `None` if it was neither: then nothing changes.
    pub fn handle_commit(
        &mut self,
        round: Round,
        place: Place,
        attempt: Attempt,
    ) -> Option<Committed> {
        if self.phase != Phase::Held || place != self.place() {
            return None;
        }
        let is_named = |end: &RoundEnd| end.is_named(attempt, round);
        let merged = self.merged.take_if(|merged| is_named(merged));
        let is_own = |begun: Begun| begun.attempt == attempt && begun.result == round;
        if merged.is_none() && !self.begun.is_some_and(is_own) {
            return None;
        }
        self.unmerge();
        let committed = Committed {
            microbatches: u64::from(self.applied) * u64::from(self.microbatches),
            merged: merged.is_some(),
        };
        self.reseat = merged;
        self.order.place.round = round;
        self.phase = Phase::Steps;
        self.begun = None;
        self.applied = 0;
        self.step = Step(0);
        self.entered = None;
        self.order_in_step = self.fresh_order();
        self.inputs.clear();
        self.gradients.clear();
        self.ends.clear();
        self.last_step = None;
        self.snapshot_asked = false;
        self.ended = None;
        self.head = Head::default();
        Some(committed)
    }

    /// Has the compute take what was merged and committed, before anything else.
    pub(super) fn reseat_job(&self) -> Option<Job> {
        let merged = self.reseat.as_ref()?;
        let states = merged.states.iter();
        Some(Job::Seat {
            stages: self.order.stages,
            states: states
                .map(|(_, blob)| StageState::Blob(blob.clone()))
                .collect(),
            keeps_texts: true,
        })
    }

    /// The compute has taken what was committed, or could not.
    pub(super) fn reseated(&mut self, done: &Done) {
        let Some(merged) = self.reseat.take() else {
            return;
        };
        let mut wrong = merged.holds.stages;
        if let Done::Seated { agreed } = done {
            let mut agreed = agreed.iter();
            wrong.retain(|held| agreed.next() != Some(&held.agreed));
        }
        if !wrong.is_empty() {
            self.halt(WorkOutput::Wrong(wrong));
        }
    }

    /// What the host must know after its connection broke.
    pub fn resume(&self, peer: PeerId) -> Resume {
        let holds = |end: &Option<RoundEnd>| end.as_ref().map(|end| end.holds.clone());
        Resume {
            peer,
            place: Some(self.place()),
            attempt: self.begun.map(|begun| begun.attempt),
            report: self.head.report,
            leases: Leases::pack(self.head.leases.values()),
            holds: holds(&self.ended),
            merged: holds(&self.merged),
        }
    }
}
