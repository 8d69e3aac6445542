//! The volunteer's side of a merge: whom it is done with, which slices belong to it, and what becomes of its result.
//!
//! The host names an attempt; one that is older than the newest it named is void for good. Slices of a newer one are kept
//! unread, a few of each peer, until the host makes it current. A link that breaks may have lost slices: the attempt has
//! failed then, the host hears whom we suspect, and begins another one, from the same results.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Peer;
use super::link::Link;
use super::merging::{Ends, MergeOutput, Merged, Merging, Pipe, Residuals};
use super::work::Work;
use crate::compute::{Done, Job, StageState};
use crate::limits::MERGE_SLICES_AHEAD;
use crate::units::{Attempt, PeerId, StageId, Time};
use crate::wire::frame::{Frame, Header};
use crate::wire::merge::Leg;
use crate::wire::signal::{MergeOrder, SeatOrder, Source, Up};

/// A slice of a merge, as it came.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    pub(super) attempt: Attempt,
    pub(super) stage: StageId,
    pub(super) leg: Leg,
    pub(super) offset: u64,
    pub(super) payload: Bytes,
}

/// What a volunteer knows of merges.
#[derive(Clone, Debug, Default)]
pub(super) struct Merge {
    running: Option<Merging>,
    /// The newest attempt that the host told: older ones are void.
    told: Option<Attempt>,
    /// Slices of the newest attempt that a peer is at, which the host has not told us of.
    early: BTreeMap<PeerId, Vec<Slice>>,
    /// What the seat after said of such an attempt.
    early_norm: Option<(PeerId, Attempt, f64)>,
    residuals: Residuals,
}

impl Merge {
    /// Whether an attempt is under way here.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether a merge with `peer` is under way.
    pub(super) fn involves(&self, peer: PeerId) -> bool {
        self.running.as_ref().is_some_and(|it| it.involves(peer))
    }

    /// Whether a merge must still send something to `peer`, or get something from it.
    pub(super) fn needs(&self, peer: PeerId) -> bool {
        self.running.as_ref().is_some_and(|it| it.needs(peer))
    }

    /// The link to `peer` is lost, with what was on its way.
    pub(super) fn handle_lost(&mut self, peer: PeerId) {
        self.early.remove(&peer);
        self.early_norm.take_if(|(from, ..)| *from == peer);
        if let Some(running) = &mut self.running {
            running.handle_lost(peer);
        }
    }

    /// All links are closed: numbers of before mean nothing any more.
    pub(super) fn forget_slices(&mut self) {
        self.early.clear();
        self.early_norm = None;
    }

    /// The host begins that attempt at the seat's own result: a merge under an older one is void.
    pub(super) fn begun(&mut self, attempt: Attempt) {
        self.running.take_if(|running| running.attempt() < attempt);
    }

    /// The seat is given up.
    pub(super) fn stop(&mut self) {
        self.running = None;
        self.early_norm = None;
    }

    /// What packing lost in the merges that are committed.
    pub(super) fn residuals_mut(&mut self) -> &mut Residuals {
        &mut self.residuals
    }

    /// That attempt is committed: a merge's, or the seat's own.
    pub(super) fn committed(&mut self, attempt: Attempt) {
        self.running = None;
        self.residuals.commit(attempt);
    }

    /// Whether peers merge under an attempt that the host has not told us of.
    pub(super) fn is_behind(&self) -> bool {
        let slices = self.early.values().flatten().map(|slice| slice.attempt);
        let norm = self.early_norm.map(|(_, attempt, _)| attempt);
        slices.chain(norm).max() > self.told
    }

    /// The next job of a merge, and its attempt.
    pub(super) fn next_job(&mut self) -> Option<(Attempt, Job)> {
        let running = self.running.as_mut()?;
        Some((running.attempt(), running.next_job()?))
    }

    /// A job of that attempt is done.
    pub(super) fn handle_done(&mut self, attempt: Attempt, job: &Job, done: Done) {
        if let Some(running) = self.current(attempt) {
            running.handle_done(job, done);
        }
    }

    fn current(&mut self, attempt: Attempt) -> Option<&mut Merging> {
        self.running
            .as_mut()
            .filter(|running| running.attempt() == attempt)
    }
}

impl Peer {
    /// The host orders a merge of what the round made of our stages. One that is not newer, or not ours, has no effect.
    pub(super) fn merge(&mut self, now: Time, order: &MergeOrder) {
        let Some(merging) = self.merging(order) else {
            let is_ours = self
                .work
                .as_ref()
                .is_some_and(|it| it.place() == order.place);
            if is_ours && Some(order.attempt) > self.merge.told {
                self.merge.told = Some(order.attempt);
                self.merge_failed(order.attempt);
            }
            return;
        };
        if let Some(work) = &mut self.work {
            work.unmerge();
        }
        while self.pump_work(now) {}
        let others = merging.others();
        // Known first: by it links are kept.
        self.merge.running = Some(merging);
        self.merge.told = Some(order.attempt);
        let mut has_room = true;
        for other in others {
            let link = self.link_mut(now, other.peer, Some(other.key));
            has_room &= link.is_some();
            let is_up = link.map(|link| {
                link.want(now);
                link.is_up()
            });
            match (is_up, &mut self.merge.running) {
                (Some(true), Some(running)) => running.handle_link(other.peer),
                (None, Some(running)) => running.handle_lost(other.peer),
                (Some(false), _) | (_, None) => {}
            }
        }
        if !has_room {
            // More links than a volunteer keeps: nothing comes of it here, and that is no other one's fault.
            self.merge_failed(order.attempt);
        }
        let early = std::mem::take(&mut self.merge.early);
        for (peer, slices) in early {
            for slice in slices {
                self.merge_slice(peer, slice);
            }
        }
        if let Some((peer, attempt, norm_squared)) = self.merge.early_norm.take() {
            self.merge_norm(peer, attempt, norm_squared);
        }
    }

    fn merge_failed(&mut self, attempt: Attempt) {
        if let Some(place) = self.work.as_ref().map(Work::place) {
            self.up(Up::MergeFailed { place, attempt });
        }
    }

    fn merging(&self, order: &MergeOrder) -> Option<Merging> {
        if Some(order.attempt) <= self.merge.told {
            return None;
        }
        let config = self.config.as_ref()?;
        let work = self.work.as_ref().filter(|it| it.place() == order.place)?;
        let own = work.own_result(order.attempt)?;
        let stages = own.states.iter().zip(own.gradients);
        let ends = stages.map(|((held, end), gradient)| {
            Some(Ends {
                stage: held.stage,
                values: config.model.parameter_count_of(usize::from(held.stage.0)) as u64,
                start: self.start_of(held.stage)?,
                end: end.clone(),
                gradient: gradient.clone(),
                residual: self.merge.residuals.of(held.stage),
            })
        });
        let ends: Option<Vec<Ends>> = ends.collect();
        let SeatOrder { previous, next, .. } = work.order();
        let neighbours = (previous.map(|it| it.peer), next.map(|it| it.peer));
        let pipe = Pipe::new(neighbours, config.training.clip, own.samples_done);
        let pipe = config.merges_gradients().then_some(pipe);
        Merging::new(self.me?, order, config.merge.format, ends?, pipe)
    }

    /// A stage of the seat as its round began: what is kept of it, or what the seed gives.
    fn start_of(&self, stage: StageId) -> Option<StageState> {
        let order = self.work.as_ref()?.order();
        let is_seeds = order.state.iter().any(|fetch| {
            (fetch.held.round, fetch.held.stage) == (order.place.round, stage)
                && fetch.sources.contains(&Source::Seed)
        });
        if is_seeds {
            return Some(StageState::Seed);
        }
        let kept = self.kept.at(order.place.round, stage);
        kept.map(|(_, blob)| StageState::Blob(blob.clone()))
    }

    /// A slice came from `peer`: of the attempt under way, of a void one, or of one to come.
    pub(super) fn merge_slice(&mut self, peer: PeerId, slice: Slice) {
        let is_up = self.links.get(&peer).is_some_and(Link::is_up);
        if is_up && let Some(running) = self.merge.current(slice.attempt) {
            let at = (slice.stage, slice.leg, slice.offset);
            return running.handle_slice(peer, at, slice.payload);
        }
        let is_void = match self.merge.told {
            Some(told) if is_up => slice.attempt <= told,
            // Its `hello` may be on its way: what is sent on the other channel overtakes it.
            Some(told) => slice.attempt < told,
            None => false,
        };
        if is_void {
            return;
        }
        let early = self.merge.early.entry(peer).or_default();
        let newest = early.first().map(|slice| slice.attempt);
        if newest > Some(slice.attempt) {
            return;
        }
        if newest < Some(slice.attempt) {
            // It has gone on, and so the one of before is void.
            early.clear();
        }
        if early.len() < MERGE_SLICES_AHEAD as usize {
            early.push(slice);
        } else {
            self.refuse_link(peer, "more slices of a merge than may be on their way");
        }
    }

    /// `peer` has taken so many of our slices.
    pub(super) fn merge_taken(&mut self, peer: PeerId, attempt: Attempt, taken: u64) {
        if let Some(running) = self.merge.current(attempt) {
            running.handle_taken(peer, taken);
        }
    }

    /// The seat after says what the squared norm from it on is, in a merge of gradients.
    pub(super) fn merge_norm(&mut self, peer: PeerId, attempt: Attempt, norm_squared: f64) {
        if let Some(running) = self.merge.current(attempt) {
            running.handle_norm(peer, norm_squared);
            return;
        }
        let next = self.work.as_ref().and_then(|it| it.order().next);
        let is_next = next.is_some_and(|next| next.peer == peer);
        let newest = self.merge.early_norm.map(|(_, attempt, _)| attempt);
        if is_next && Some(attempt) > self.merge.told.max(newest) {
            self.merge.early_norm = Some((peer, attempt, norm_squared));
        }
    }

    /// The seat before says what clipping multiplies merged gradients by.
    pub(super) fn merge_scale(&mut self, peer: PeerId, attempt: Attempt, scale: f32) {
        if let Some(running) = self.merge.current(attempt) {
            running.handle_scale(peer, scale);
        }
    }

    /// The link to `peer` is up.
    pub(super) fn merge_linked(&mut self, peer: PeerId) {
        if let Some(running) = &mut self.merge.running {
            running.handle_link(peer);
        }
        for slice in self.merge.early.remove(&peer).unwrap_or_default() {
            self.merge_slice(peer, slice);
        }
    }

    /// Carries out what a merge wants. Returns whether there was anything.
    pub(super) fn pump_merge(&mut self, now: Time) -> bool {
        let Some(running) = &mut self.merge.running else {
            return false;
        };
        let (attempt, result) = (running.attempt(), running.result());
        let Some(output) = running.poll_output() else {
            return false;
        };
        match output {
            MergeOutput::Frame(peer, frame) => self.send(now, peer, frame),
            MergeOutput::Refuse(peer, what) => self.refuse_link(peer, &what),
            MergeOutput::Failed => self.merge_failed(attempt),
            MergeOutput::Merged(stages) => {
                let residual = |it: &Merged| (it.snapshot.stage, it.residual.clone());
                let residuals = stages.iter().map(residual);
                self.merge.residuals.propose(attempt, residuals);
                let snapshots = stages.into_iter().map(|it| it.snapshot).collect();
                if let Some(work) = &mut self.work {
                    work.handle_merged(attempt, result, snapshots);
                }
            }
        }
        true
    }
}

impl Slice {
    /// The slice that a frame carries, if it does.
    pub(super) fn of(frame: &Frame) -> Option<Self> {
        let Header::Merge {
            attempt,
            stage,
            leg,
            offset,
        } = frame.header
        else {
            return None;
        };
        let payload = frame.payload.clone();
        Some(Self {
            attempt,
            stage,
            leg,
            offset,
            payload,
        })
    }
}
