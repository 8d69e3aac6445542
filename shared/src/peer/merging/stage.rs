//! One stage's merge at one member: what it has of the parts, and which job comes next.
//!
//! Contribute, then average as soon as all members' contributions to our own part are here, on each level after the other; what
//! the last level averaged goes back through all of them; then the outer step as soon as all parts' averages are here; with
//! gradients their norm, and the step once it is known what clipping makes of that. A part of no tiles is whole at once, and
//! who has it averages nothing.

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
    /// Our part of that level is to be averaged.
    Average(usize),
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

/// One level's parts at one member.
#[derive(Clone, Debug)]
struct Exchange {
    /// In order of members.
    peers: Vec<PeerId>,
    own: usize,
    /// Bytes of each member's part.
    bytes: Vec<usize>,
    /// What each member brings of our part.
    scattered: Vec<Part>,
    /// The average of each member's part.
    gathered: Vec<Part>,
}

/// One stage at one member.
#[derive(Clone, Debug)]
pub(super) struct StageMerge {
    shape: Shape,
    /// One for each of the shape's levels.
    exchanges: Vec<Exchange>,
    start: StageState,
    end: Bytes,
    /// What is merged, where it is not what the round changed.
    gradient: Option<Bytes>,
    residual: Bytes,
    norm_squared: Option<f64>,
    progress: Progress,
    /// The level whose averages are on their way back; those of deeper ones are whole.
    returning: usize,
    merged: Option<Snapshot>,
}

impl Exchange {
    fn new(shape: &Shape, level: usize, peers: Vec<PeerId>) -> Self {
        let own = shape.levels[level].own();
        let parts = shape.parts(level);
        let bytes: Vec<usize> = parts.iter().map(|part| shape.bytes(part)).collect();
        Self {
            scattered: vec![Part::expected(bytes[own]); peers.len()],
            gathered: bytes.iter().map(|bytes| Part::expected(*bytes)).collect(),
            bytes,
            own,
            peers,
        }
    }

    /// The other members, with their index.
    fn others(&self) -> impl Iterator<Item = (usize, PeerId)> + '_ {
        let members = self.peers.iter().copied().enumerate();
        members.filter(|(member, _)| *member != self.own)
    }

    /// Bytes that go to and come from each other member: once what is brought, once the average.
    fn bytes(&self) -> impl Iterator<Item = (PeerId, (usize, usize))> + '_ {
        let own = self.bytes[self.own];
        self.others().flat_map(move |(member, peer)| {
            let its = self.bytes[member];
            [(peer, (its, own)), (peer, (own, its))]
        })
    }

    /// Each member's part of what we bring.
    fn scatter(&mut self, parts: &[Bytes]) -> Vec<Outgoing> {
        assert_eq!(parts.len(), self.peers.len(), "one part a member");
        self.scattered[self.own].fill(&parts[self.own]);
        let outgoing = self.others().map(|(member, peer)| Outgoing {
            peer,
            leg: Leg::Scatter,
            part: parts[member].clone(),
        });
        outgoing.collect()
    }

    /// The average of our part, for all others.
    fn gather(&mut self, part: &Bytes) -> Vec<Outgoing> {
        self.gathered[self.own].fill(part);
        let outgoing = self.others().map(|(_, peer)| Outgoing {
            peer,
            leg: Leg::Gather,
            part: part.clone(),
        });
        outgoing.collect()
    }
}

/// All parts, if they are here.
fn all(parts: &[Part]) -> Option<Vec<Bytes>> {
    let is_whole = parts.iter().all(Part::is_whole);
    is_whole.then(|| parts.iter().map(Part::whole).collect())
}

impl StageMerge {
    /// A stage of which nothing is done. `peers` are each level's, as many as the shape's members.
    pub(super) fn new(
        shape: Shape,
        peers: Vec<Vec<PeerId>>,
        ends: Ends,
        merges_gradients: bool,
    ) -> Self {
        let exchange = |(level, peers)| Exchange::new(&shape, level, peers);
        Self {
            exchanges: peers.into_iter().enumerate().map(exchange).collect(),
            start: ends.start,
            end: ends.end,
            gradient: merges_gradients.then_some(ends.gradient),
            residual: ends.residual,
            norm_squared: None,
            progress: Progress::Contribute,
            returning: shape.levels.len() - 1,
            merged: None,
            shape,
        }
    }

    pub(super) fn stage(&self) -> StageId {
        self.shape.stage
    }

    /// Bytes of each part that goes to and comes from each other member.
    pub(super) fn exchanges(&self) -> impl Iterator<Item = (PeerId, (usize, usize))> + '_ {
        self.exchanges.iter().flat_map(Exchange::bytes)
    }

    /// Takes a slice of another member's. `false` if it was here already.
    pub(super) fn take(
        &mut self,
        peer: PeerId,
        leg: Leg,
        offset: u64,
        payload: Bytes,
    ) -> Result<bool, &'static str> {
        // Nobody is met on two levels of a stage.
        let mut met = self.exchanges.iter_mut().filter_map(|exchange| {
            let member = exchange.others().find(|(_, other)| *other == peer)?.0;
            Some((exchange, member))
        });
        let Some((exchange, member)) = met.next() else {
            return Err("a slice of one who does not hold that stage");
        };
        let part = match leg {
            Leg::Scatter => &mut exchange.scattered[member],
            Leg::Gather => &mut exchange.gathered[member],
        };
        part.take(offset, payload)
    }

    /// What is to be computed next, if all it takes is here; `round` is what the result's number will be, `update` what
    /// clipping multiplies gradients by and the samples before the step.
    pub(super) fn next_job(&self, round: Round, update: Option<(f32, u64)>) -> Option<Job> {
        let shape = self.shape.clone();
        let averages = || all(&self.exchanges[0].gathered);
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
            Progress::Average(level) => Some(Job::Average {
                shape,
                level,
                parts: all(&self.exchanges[level].scattered)?,
                residual: self.residual.clone(),
            }),
            Progress::Norm => Some(Job::Norm {
                shape,
                parts: averages()?,
            }),
            Progress::Step => {
                let (start, parts) = (self.start.clone(), averages()?);
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
    pub(super) fn contributed(&mut self, parts: &[Bytes], residual: Bytes) -> Vec<Outgoing> {
        self.residual = residual;
        self.brought(0, parts)
    }

    /// Our part of a level is averaged: it goes on to the next one, or back to all others.
    pub(super) fn averaged(
        &mut self,
        level: usize,
        parts: &[Bytes],
        residual: Bytes,
    ) -> Vec<Outgoing> {
        self.residual = residual;
        if level + 1 < self.exchanges.len() {
            return self.brought(level + 1, parts);
        }
        self.progress = self.after_average();
        self.exchanges[level].gather(&parts[0])
    }

    fn brought(&mut self, level: usize, parts: &[Bytes]) -> Vec<Outgoing> {
        let exchange = &mut self.exchanges[level];
        let owns_any = exchange.bytes[exchange.own] > 0;
        let outgoing = exchange.scatter(parts);
        self.progress = if owns_any {
            Progress::Average(level)
        } else {
            self.after_average()
        };
        outgoing
    }

    /// Averages of deeper levels that are all here go back through the others. Fails with who sent one whose numbers are
    /// none, for it would be ours to answer for.
    pub(super) fn return_averages(&mut self) -> Result<Vec<Outgoing>, Vec<PeerId>> {
        let mut outgoing = Vec::new();
        while self.returning > 0 {
            let level = self.returning;
            let Some(parts) = all(&self.exchanges[level].gathered) else {
                break;
            };
            let liars = self.senders_of_no_numbers(level, &parts);
            if !liars.is_empty() {
                return Err(liars);
            }
            self.returning -= 1;
            outgoing.extend(self.exchanges[level - 1].gather(&parts.concat().into()));
        }
        Ok(outgoing)
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

    /// Who of a level's others sent bytes, among one job's parts, that are no finite numbers.
    pub(super) fn senders_of_no_numbers(&self, level: usize, parts: &[Bytes]) -> Vec<PeerId> {
        let rows = |part: &Bytes| part.len() / self.shape.format.row_bytes(TILE);
        let is_none = |part: &Bytes| {
            number::unpack(self.shape.format, part, rows(part), TILE)
                .map_or(true, |values| values.iter().any(|value| !value.is_finite()))
        };
        let of = self.exchanges[level]
            .others()
            .filter(|(member, _)| parts.get(*member).is_some_and(is_none));
        of.map(|(_, peer)| peer).collect()
    }
}
