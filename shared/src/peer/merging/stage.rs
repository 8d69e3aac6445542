//! One stage's merge at one member: what it has of the parts, and which job comes next.
//!
//! Contribute, then average as soon as all members' contributions to our own part are here, then the outer step as
//! soon as all parts' averages are; with gradients their norm, and the step once it is known what clipping makes of that. A part of no tiles is whole at once, and who has it averages nothing.

use bytes::Bytes;

use super::part::Part;
use super::{Ends, Merged};
use crate::compute::{Change, Job, Snapshot, StageState};
use crate::units::{PeerId, Round, StageId};
use crate::wire::merge::{Leg, Shape, TILE};
use crate::wire::number;

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// What it changed is to be packed.
    Contribute,
    /// Our part is to be averaged.
    Average,
    /// The merged gradient's norm is to be taken.
    Norm,
    /// The outer step, or the optimizer's, is to be made.
    Step,
    /// Nothing more is to be done.
    Done,
}

/// A part that is to go to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) peer: PeerId,
    pub(super) leg: Leg,
    pub(super) part: Bytes,
}

/// One stage at one member.
#[derive(Clone, Debug)]
pub(super) struct StageMerge {
    shape: Shape,
    /// In order of members.
    peers: Vec<PeerId>,
    start: StageState,
    end: Bytes,
    /// What is merged, where it is not what the round changed.
    gradient: Option<Bytes>,
    residual: Bytes,
    norm_squared: Option<f64>,
    progress: Progress,
    /// What each member changed of our part.
    scattered: Vec<Part>,
    /// The average of each member's part.
    gathered: Vec<Part>,
    merged: Option<Snapshot>,
}

impl StageMerge {
    /// A stage of which nothing is done. `peers` are as many as the shape's members.
    pub(super) fn new(
        shape: Shape,
        peers: Vec<PeerId>,
        ends: Ends,
        merges_gradients: bool,
    ) -> Self {
        let own_bytes = shape.part_bytes(usize::from(shape.own));
        let members = 0..shape.members();
        let gathered = members.map(|member| Part::expected(shape.part_bytes(member)));
        Self {
            gathered: gathered.collect(),
            scattered: vec![Part::expected(own_bytes); shape.members()],
            peers,
            start: ends.start,
            end: ends.end,
            gradient: merges_gradients.then_some(ends.gradient),
            residual: ends.residual,
            norm_squared: None,
            progress: Progress::Contribute,
            merged: None,
            shape,
        }
    }

    pub(super) fn stage(&self) -> StageId {
        self.shape.stage
    }

    fn own(&self) -> usize {
        usize::from(self.shape.own)
    }

    /// The other members, with their index.
    fn others(&self) -> impl Iterator<Item = (usize, PeerId)> + '_ {
        let own = self.own();
        let members = self.peers.iter().copied().enumerate();
        members.filter(move |(member, _)| *member != own)
    }

    /// Bytes of each part that goes to and comes from each other member: once what is changed, once the average.
    pub(super) fn exchanges(&self) -> Vec<(PeerId, (usize, usize))> {
        let own_bytes = self.shape.part_bytes(self.own());
        let exchange = |(member, peer): (usize, PeerId)| {
            let bytes = self.shape.part_bytes(member);
            [(peer, (bytes, own_bytes)), (peer, (own_bytes, bytes))]
        };
        self.others().flat_map(exchange).collect()
    }

    /// Takes a slice of another member's. `false` if it was here already.
    pub(super) fn take(
        &mut self,
        peer: PeerId,
        leg: Leg,
        offset: u64,
        payload: Bytes,
    ) -> Result<bool, &'static str> {
        let Some((member, _)) = self.others().find(|(_, other)| *other == peer) else {
            return Err("a slice of one who does not hold that stage");
        };
        let part = match leg {
            Leg::Scatter => &mut self.scattered[member],
            Leg::Gather => &mut self.gathered[member],
        };
        part.take(offset, payload)
    }

    /// What is to be computed next, if all it takes is here; `round` is what the result's number will be, `update` what
    /// clipping multiplies gradients by and the samples before the step.
    pub(super) fn next_job(&self, round: Round, update: Option<(f32, u64)>) -> Option<Job> {
        let shape = self.shape.clone();
        let all = |parts: &[Part]| -> Option<Vec<Bytes>> {
            let is_whole = parts.iter().all(Part::is_whole);
            is_whole.then(|| parts.iter().map(Part::whole).collect())
        };
        match self.progress {
            Progress::Contribute => Some(Job::Contribute {
                shape,
                change: match &self.gradient {
                    Some(gradient) => Change::Gradient(gradient.clone()),
                    None => Change::Round {
                        start: self.start.clone(),
                        end: self.end.clone(),
                    },
                },
                residual: self.residual.clone(),
            }),
            Progress::Average => Some(Job::Average {
                shape,
                parts: all(&self.scattered)?,
                residual: self.residual.clone(),
            }),
            Progress::Norm => Some(Job::Norm {
                shape,
                parts: all(&self.gathered)?,
            }),
            Progress::Step => {
                let (start, parts) = (self.start.clone(), all(&self.gathered)?);
                Some(if self.gradient.is_some() {
                    let (scale, samples_done) = update?;
                    Job::GradientStep {
                        shape,
                        round,
                        start,
                        parts,
                        scale,
                        samples_done,
                    }
                } else {
                    Job::OuterStep {
                        shape,
                        round,
                        start,
                        end: self.end.clone(),
                        parts,
                    }
                })
            }
            Progress::Done => None,
        }
    }

    /// What the stage changed is packed: its parts go to those who average them.
    pub(super) fn contributed(&mut self, parts: Vec<Bytes>, residual: Bytes) -> Vec<Outgoing> {
        assert_eq!(parts.len(), self.shape.members(), "one part a member");
        let own = self.own();
        self.residual = residual;
        self.scattered[own].fill(&parts[own]);
        self.progress = if self.shape.part_bytes(own) > 0 {
            Progress::Average
        } else {
            self.after_average()
        };
        let outgoing = self.others().map(|(member, peer)| Outgoing {
            peer,
            leg: Leg::Scatter,
            part: parts[member].clone(),
        });
        outgoing.collect()
    }

    /// Our part is averaged: it goes to all others.
    pub(super) fn averaged(&mut self, part: Bytes, residual: Bytes) -> Vec<Outgoing> {
        let own = self.own();
        self.residual = residual;
        self.gathered[own].fill(&part);
        self.progress = self.after_average();
        let outgoing = self.others().map(|(_, peer)| Outgoing {
            peer,
            leg: Leg::Gather,
            part: part.clone(),
        });
        outgoing.collect()
    }

    fn after_average(&self) -> Progress {
        if self.gradient.is_some() {
            Progress::Norm
        } else {
            Progress::Step
        }
    }

    /// The merged gradient's norm is taken.
    pub(super) fn normed(&mut self, norm_squared: f64) {
        self.norm_squared = Some(norm_squared);
        self.progress = Progress::Step;
    }

    /// Sum of squares of the merged gradient, once it is taken.
    pub(super) fn norm(&self) -> Option<f64> {
        self.norm_squared
    }

    /// The step is made.
    pub(super) fn merged(&mut self, snapshot: Snapshot) {
        self.progress = Progress::Done;
        self.merged = Some(snapshot);
    }

    /// What came of it, once it is merged.
    pub(super) fn result(&self) -> Option<Merged> {
        let residual = self.residual.clone();
        let snapshot = self.merged.clone()?;
        Some(Merged { snapshot, residual })
    }

    /// Who of the others sent bytes, among one job's parts, that are no finite numbers.
    pub(super) fn senders_of_no_numbers(&self, parts: &[Bytes]) -> Vec<PeerId> {
        let rows = |part: &Bytes| part.len() / self.shape.format.row_bytes(TILE);
        let is_none = |part: &Bytes| {
            number::unpack(self.shape.format, part, rows(part), TILE)
                .map_or(true, |values| values.iter().any(|value| !value.is_finite()))
        };
        let of = self
            .others()
            .filter(|(member, _)| parts.get(*member).is_some_and(is_none));
        of.map(|(_, peer)| peer).collect()
    }
}
