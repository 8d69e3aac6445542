//! One seat's part in merging a round between pipelines: reduce-scatter and all-gather with the replicas of its stages.
//!
//! For each stage: what it changed is packed and cut into one part a member ([`stage`]); each part goes to the member that
//! averages it, in slices ([`lane`]: never more than agreed are on their way to one peer); the average of our part goes
//! to all, or first through further levels of other groups; from all averages comes the stage's new state. Stages follow
//! each other only where one job must wait for another. Where gradients are merged, all stages wait for what clipping makes
//! of all of them ([`pipe`]).
//!
//! Knows no links, no host and no mathematics: slices and jobs leave as values. What fails is told and never mended here: the
//! host begins another attempt, which is another `Merging`.
//!
//! Invariant: members that were told the same order end with the same weights, in whatever order slices come. Begin
//! reading at [`Merging::handle_slice`] and [`Merging::handle_done`].

mod lane;
mod part;
mod pipe;
mod residuals;
mod stage;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::compute::{Done, Job, Snapshot, StageState};
use crate::config::model::NumberFormat;
use crate::limits::{MERGE_GROUP_MAX, MERGE_LEVELS_MAX};
use crate::units::{Attempt, PeerId, Round, StageId};
use crate::wire::frame::{Frame, Header};
use crate::wire::merge::{Group, Leg, Level, Shape};
use crate::wire::signal::{MergeOrder, Neighbour};
use lane::Lane;
use pipe::Told;
use stage::{Outgoing, StageMerge};

pub use pipe::Pipe;
pub use residuals::Residuals;

/// A stage as the round began and as it ended here.
#[derive(Clone, Debug)]
pub struct Ends {
    /// The stage.
    pub stage: StageId,
    /// Trained values of it.
    pub values: u64,
    /// At the round's beginning.
    pub start: StageState,
    /// At its end.
    pub end: Bytes,
    /// The gradient of its only step, where those are merged.
    pub gradient: Bytes,
    /// What packing lost before; empty for nothing.
    pub residual: Bytes,
}

/// A merged stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// Its new state.
    pub snapshot: Snapshot,
    /// What packing lost, for the next merge.
    pub residual: Bytes,
}

/// What a merge wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum MergeOutput {
    /// Send this to a peer.
    Frame(PeerId, Frame),
    /// A peer sent what no correct build sends: what.
    Refuse(PeerId, String),
    /// All stages of the seat are merged, in order.
    Merged(Vec<Merged>),
    /// Nothing can come of it any more, and nobody else is at fault.
    Failed,
}

/// One attempt at one seat.
#[derive(Clone, Debug)]
pub struct Merging {
    attempt: Attempt,
    result: Round,
    stages: Vec<StageMerge>,
    keys: BTreeMap<PeerId, Neighbour>,
    lanes: BTreeMap<PeerId, Lane>,
    /// Where gradients are merged.
    pipe: Option<Pipe>,
    /// Whether a job is under way.
    is_busy: bool,
    /// Whether nothing can come of it any more.
    failed: bool,
    outputs: VecDeque<MergeOutput>,
}

impl Merging {
    /// Begins what the host ordered, with the seat's stages in order. `None` if the order does not fit them, or us.
    ///
    /// With its place in the `pipe` the seat merges gradients, else what the round changed.
    pub fn new(
        me: PeerId,
        order: &MergeOrder,
        format: NumberFormat,
        ends: Vec<Ends>,
        pipe: Option<Pipe>,
    ) -> Option<Self> {
        if order.stages.len() != ends.len() {
            return None;
        }
        let mut merging = Self {
            attempt: order.attempt,
            result: order.result,
            stages: Vec::new(),
            keys: BTreeMap::new(),
            lanes: BTreeMap::new(),
            pipe,
            is_busy: false,
            failed: false,
            outputs: VecDeque::new(),
        };
        for (groups, ends) in order.stages.iter().zip(ends) {
            let shape = Shape {
                stage: ends.stage,
                values: ends.values,
                format,
                samples: order.samples,
                levels: levels(me, groups)?,
            };
            let others = groups.iter().flat_map(|group| &group.peers);
            let others = others.filter(|it| it.peer != me);
            merging
                .keys
                .extend(others.map(|neighbour| (neighbour.peer, *neighbour)));
            let peers = |group: &Group| group.peers.iter().map(|it| it.peer).collect();
            let peers = groups.iter().map(peers).collect();
            let stage = StageMerge::new(shape, peers, ends, pipe.is_some());
            merging.stages.push(stage);
        }
        for stage in &merging.stages {
            for (peer, leg_bytes) in stage.exchanges() {
                merging.lanes.entry(peer).or_default().expect(leg_bytes);
            }
        }
        Some(merging)
    }

    /// The attempt.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// The number that the result gets.
    pub fn result(&self) -> Round {
        self.result
    }

    /// Whom it is done with.
    pub fn others(&self) -> Vec<Neighbour> {
        self.keys.values().copied().collect()
    }

    /// Whether it is done with `peer`.
    pub fn involves(&self, peer: PeerId) -> bool {
        self.lanes.contains_key(&peer)
    }

    /// Whether anything must still go to or come from `peer`.
    pub fn needs(&self, peer: PeerId) -> bool {
        let in_lane = self.lanes.get(&peer).is_some_and(|lane| !lane.is_done());
        in_lane || self.pipe.is_some_and(|pipe| pipe.needs(peer))
    }

    /// The link to `peer` is up.
    pub fn handle_link(&mut self, peer: PeerId) {
        if let Some(lane) = self.lanes.get_mut(&peer).filter(|_| !self.failed) {
            lane.open();
        }
        self.pump_lane(peer);
    }

    /// The link to `peer` is lost, with what was on its way.
    pub fn handle_lost(&mut self, peer: PeerId) {
        self.failed |= self.needs(peer);
    }

    /// A slice came from `peer`, of this attempt.
    pub fn handle_slice(
        &mut self,
        peer: PeerId,
        (stage, leg, offset): (StageId, Leg, u64),
        payload: Bytes,
    ) {
        if self.failed {
            return;
        }
        let merged = self.stages.iter_mut().find(|it| it.stage() == stage);
        let taken = merged
            .ok_or("a slice of a stage that is not merged here")
            .and_then(|merged| merged.take(peer, leg, offset, payload));
        let (attempt, lane) = (self.attempt, self.lanes.get_mut(&peer));
        match (taken, lane) {
            (Ok(true), Some(lane)) => {
                let taken = lane.take();
                let header = Header::MergeTaken { attempt, taken };
                self.outputs
                    .push_back(MergeOutput::Frame(peer, Frame::from(header)));
                self.return_averages(stage);
            }
            // It came twice.
            (Ok(_), _) => {}
            (Err(what), _) => self.refuse(peer, what),
        }
    }

    /// `peer` has taken so many of our slices in all.
    pub fn handle_taken(&mut self, peer: PeerId, taken: u64) {
        match self.lanes.get_mut(&peer).map(|lane| lane.taken(taken)) {
            Some(true) => self.pump_lane(peer),
            Some(false) => self.refuse(peer, "it has taken more slices than it was sent"),
            None => self.refuse(peer, "slices are taken by one who merges nothing with us"),
        }
    }

    /// The seat after says what the squared norm of all stages from it on is.
    pub fn handle_norm(&mut self, peer: PeerId, norm_squared: f64) {
        let taken = self
            .pipe
            .as_mut()
            .map(|it| it.handle_norm(peer, norm_squared));
        if taken != Some(true) {
            return self.refuse(peer, "a norm that is not its to tell");
        }
        self.tell_norm();
    }

    /// The seat before says what clipping multiplies by.
    pub fn handle_scale(&mut self, peer: PeerId, scale: f32) {
        let told = self
            .pipe
            .as_mut()
            .and_then(|it| it.handle_scale(peer, scale));
        self.tell(told);
    }

    /// Once the norms of all stages are known, here and behind, the seat before hears of it.
    fn tell_norm(&mut self) {
        let norms: Option<Vec<f64>> = self.stages.iter().map(StageMerge::norm).collect();
        if let (Some(norms), Some(pipe)) = (norms, &mut self.pipe) {
            let told = pipe.handle_own(&norms);
            self.tell(told);
        }
    }

    fn tell(&mut self, told: Option<Told>) {
        let attempt = self.attempt;
        let (peer, header) = match told {
            None => return,
            Some(Told::Norm(peer, norm_squared)) => {
                let header = Header::MergeNorm {
                    attempt,
                    norm_squared,
                };
                (peer, header)
            }
            Some(Told::Scale(peer, scale)) => (peer, Header::MergeScale { attempt, scale }),
        };
        self.outputs
            .push_back(MergeOutput::Frame(peer, Frame::from(header)));
    }

    fn refuse(&mut self, peer: PeerId, what: &str) {
        self.outputs
            .push_back(MergeOutput::Refuse(peer, what.to_owned()));
    }

    /// The next job, if anything can be computed now: first what others wait for.
    pub fn next_job(&mut self) -> Option<Job> {
        if self.is_busy || self.failed {
            return None;
        }
        let update = self.pipe.and_then(|pipe| pipe.update());
        let jobs = || {
            let stages = self.stages.iter();
            stages.filter_map(|it| it.next_job(self.result, update))
        };
        let is_average = |job: &Job| matches!(job, Job::Average { .. });
        let job = jobs().find(is_average).or_else(|| jobs().next())?;
        self.is_busy = true;
        Some(job)
    }

    /// A job's result. `job` is what was asked for.
    pub fn handle_done(&mut self, job: &Job, done: Done) {
        self.is_busy = false;
        let of = |stage: StageId| self.stages.iter().position(|it| it.stage() == stage);
        match done {
            Done::Contributed {
                stage,
                parts,
                residual,
            } => {
                let index = of(stage).expect("it was asked for");
                let outgoing = self.stages[index].contributed(&parts, residual);
                self.send(stage, outgoing);
                self.return_averages(stage);
            }
            Done::Averaged {
                stage,
                parts,
                residual,
            } => {
                let Job::Average { level, .. } = job else {
                    panic!("{job:?} averaged")
                };
                let index = of(stage).expect("it was asked for");
                let outgoing = self.stages[index].averaged(*level, &parts, residual);
                self.send(stage, outgoing);
                self.return_averages(stage);
            }
            Done::Normed {
                stage,
                norm_squared,
            } => {
                let index = of(stage).expect("it was asked for");
                self.stages[index].normed(norm_squared);
                self.tell_norm();
            }
            Done::Merged { snapshot, .. } => {
                let index = of(snapshot.stage).expect("it was asked for");
                self.stages[index].merged(snapshot);
                self.finish();
            }
            Done::Refused { .. } => self.refused(job),
            done @ (Done::Seated { .. }
            | Done::Forward { .. }
            | Done::Generated { .. }
            | Done::Forgotten { .. }
            | Done::Backward { .. }
            | Done::Applied { .. }
            | Done::Snapshot { .. }
            | Done::NonFinite { .. }
            | Done::Failed { .. }) => panic!("the compute answered a merge with {done:?}"),
        }
    }

    fn send(&mut self, stage: StageId, outgoing: Vec<Outgoing>) {
        for Outgoing { peer, leg, part } in outgoing {
            if let Some(lane) = self.lanes.get_mut(&peer) {
                lane.push(self.attempt, stage, leg, &part);
            }
            self.pump_lane(peer);
        }
    }

    /// Sends what of a stage's averages can go back a level now.
    fn return_averages(&mut self, stage: StageId) {
        let merged = self.stages.iter_mut().find(|it| it.stage() == stage);
        match merged.map(StageMerge::return_averages) {
            Some(Ok(outgoing)) => self.send(stage, outgoing),
            Some(Err(liars)) => {
                self.failed = true;
                self.refuse_liars(liars);
            }
            None => {}
        }
    }

    fn refuse_liars(&mut self, liars: Vec<PeerId>) {
        for peer in liars {
            self.refuse(peer, "a part of a merge whose numbers are none");
        }
    }

    fn pump_lane(&mut self, peer: PeerId) {
        let Some(lane) = self.lanes.get_mut(&peer).filter(|_| !self.failed) else {
            return;
        };
        while let Some(frame) = lane.next_frame() {
            self.outputs.push_back(MergeOutput::Frame(peer, frame));
        }
    }

    /// The compute could not use what came: of whom, the numbers themselves may tell.
    fn refused(&mut self, job: &Job) {
        self.failed = true;
        let (stage, level, parts) = match job {
            Job::Average {
                shape,
                level,
                parts,
                ..
            } => (shape.stage, *level, parts),
            Job::OuterStep { shape, parts, .. }
            | Job::Norm { shape, parts }
            | Job::GradientStep { shape, parts, .. } => (shape.stage, 0, parts),
            Job::Contribute { .. }
            | Job::Seat { .. }
            | Job::Forward { .. }
            | Job::Backward { .. }
            | Job::Apply { .. }
            | Job::Generate(_)
            | Job::Forget { .. }
            | Job::Snapshot { .. } => return self.outputs.push_back(MergeOutput::Failed),
        };
        let merged = self.stages.iter().find(|it| it.stage() == stage);
        let liars = merged.map_or_else(Vec::new, |it| it.senders_of_no_numbers(level, parts));
        if liars.is_empty() {
            // All are numbers, and yet nothing can be made of them here: the host must hear of it, or all would wait.
            return self.outputs.push_back(MergeOutput::Failed);
        }
        self.refuse_liars(liars);
    }

    fn finish(&mut self) {
        let merged: Option<Vec<Merged>> = self.stages.iter().map(StageMerge::result).collect();
        if let Some(merged) = merged {
            self.outputs.push_back(MergeOutput::Merged(merged));
        }
    }

    /// What to do next; `None` when there is nothing more.
    pub fn poll_output(&mut self) -> Option<MergeOutput> {
        self.outputs.pop_front()
    }
}

/// What the groups of a stage are to us. `None` if they fit neither each other nor us.
fn levels(me: PeerId, groups: &[Group]) -> Option<Vec<Level>> {
    let sizes = groups.iter().map(|group| group.peers.len());
    let fits = (1..=MERGE_LEVELS_MAX as usize).contains(&groups.len())
        && sizes.max().is_some_and(|size| size >= 2)
        && groups.iter().all(is_group);
    let named: Vec<PeerId> = groups
        .iter()
        .flat_map(|group| &group.peers)
        .map(|it| it.peer)
        .collect();
    let met: BTreeSet<PeerId> = named.iter().copied().collect();
    // Nobody is met twice, and we are in each group once.
    let are_apart = met.len() + groups.len() == named.len() + 1;
    let levels = groups.iter().map(|group| {
        let own = group.peers.iter().position(|it| it.peer == me)?;
        Some(Level {
            weights: group.samples.clone(),
            shares: group.shares.clone(),
            own: u16::try_from(own).ok()?,
        })
    });
    let levels = levels.collect::<Option<Vec<Level>>>()?;
    let is_sum = |pair: &[Level]| pair[0].samples() == u128::from(pair[1].weights[pair[1].own()]);
    (fits && are_apart && levels.windows(2).all(is_sum)).then_some(levels)
}

/// Whether it is one by itself. Who is met is looked at elsewhere.
fn is_group(group: &Group) -> bool {
    let lengths = [group.samples.len(), group.shares.len()];
    let size = group.peers.len();
    (1..=usize::from(MERGE_GROUP_MAX)).contains(&size) && lengths == [size; 2]
}

#[cfg(all(test, feature = "sim"))]
mod tests;
