//! Seats of several members, and a wire between them that delivers in any order.

use std::sync::Arc;

use super::super::*;
use crate::compute::Change;
use crate::config::run::RunConfig;
use crate::limits::MERGE_SLICES_AHEAD;
use crate::schedule::grouping::{self, Replica};
use crate::sim::Dice;
use crate::sim::compute::FakeCompute;
use crate::units::{Digest, PipelineId};
use crate::wire::frame::Place;

/// Seed of the order in which things happen, and what is merged.
#[derive(Clone, Debug)]
pub(super) struct Members {
    pub(super) seed: u64,
    /// Samples of each member.
    pub(super) samples: Vec<u64>,
    /// Trained values and members' shares of each stage.
    pub(super) stages: Vec<(u64, Vec<u32>)>,
    /// Whether a member's stages are seats of their own.
    pub(super) cut: Vec<bool>,
    /// Members that merge in one group, where its shares are not given.
    pub(super) group_max: usize,
}

pub(super) fn attempt(counter: u32) -> Attempt {
    Attempt {
        incarnation: 1,
        counter,
    }
}

pub(super) fn config() -> RunConfig {
    RunConfig::preset("tiny").expect("a preset")
}

pub(super) fn digest_of(label: &str, numbers: &[u64]) -> [u8; 32] {
    Digest::of(format!("{label} {numbers:?}").as_bytes()).0
}

impl Members {
    pub(super) fn stage(index: usize) -> StageId {
        StageId(u16::try_from(index).expect("few stages"))
    }

    pub(super) fn holder(&self, member: usize, stage: usize) -> PeerId {
        let seat = if self.cut[member] { stage } else { 0 };
        PeerId(100 * (member as u64 + 1) + seat as u64)
    }

    /// A stage at the round's end: weights and moments of that member.
    pub(super) fn end(&self, member: usize, stage: usize) -> Bytes {
        let numbers = [self.seed, self.samples[member], stage as u64];
        let halves = [
            digest_of("weights", &numbers),
            digest_of("moments", &numbers),
        ];
        halves.concat().into()
    }

    pub(super) fn order(&self, member: usize, stages: &[usize], attempt: Attempt) -> MergeOrder {
        MergeOrder {
            place: Place {
                pipeline: PipelineId(0),
                epoch: attempt,
                round: Round(3),
            },
            attempt,
            result: Round(4),
            samples: self.samples.iter().sum(),
            stages: stages.iter().map(|it| self.groups(member, *it)).collect(),
        }
    }

    /// One group where shares are given; else as they are dealt.
    fn groups(&self, member: usize, stage: usize) -> Vec<Group> {
        let neighbour = |member: usize| Neighbour {
            peer: self.holder(member, stage),
            key: Digest::default(),
        };
        let members = 0..self.samples.len();
        let (_, shares) = &self.stages[stage];
        if !shares.is_empty() {
            return vec![Group {
                peers: members.map(neighbour).collect(),
                samples: self.samples.clone(),
                shares: shares.clone(),
            }];
        }
        let replica = |(member, samples): (usize, &u64)| Replica {
            samples: *samples,
            rate: 1 + (member as u64 * 7 + self.seed) % 5,
        };
        let replicas: Vec<Replica> = self.samples.iter().enumerate().map(replica).collect();
        let mut fastest_first: Vec<usize> = members.collect();
        fastest_first.sort_by_key(|it| std::cmp::Reverse(replicas[*it].rate));
        let levels = grouping::groups(&replicas, &fastest_first, self.group_max);
        let told = |group: &Arc<grouping::Group>| Group {
            peers: group.members.iter().map(|it| neighbour(*it)).collect(),
            samples: group.samples.clone(),
            shares: group.shares.clone(),
        };
        levels[member].iter().map(told).collect()
    }

    /// The seats that hold a stage, by volunteer: member and stages.
    pub(super) fn seats(&self) -> BTreeMap<PeerId, (usize, Vec<usize>)> {
        let mut seats: BTreeMap<PeerId, (usize, Vec<usize>)> = BTreeMap::new();
        for member in 0..self.samples.len() {
            for stage in 0..self.stages.len() {
                let seat = seats.entry(self.holder(member, stage));
                seat.or_insert((member, Vec::new())).1.push(stage);
            }
        }
        seats
    }

    pub(super) fn begin(&self, counter: u32, residuals: &BTreeMap<PeerId, Residuals>) -> World {
        let attempt = attempt(counter);
        let node = |(me, (member, stages)): (PeerId, (usize, Vec<usize>))| {
            let ends = stages.iter().map(|stage| Ends {
                stage: Self::stage(*stage),
                values: self.stages[*stage].0,
                start: StageState::Seed,
                end: self.end(member, *stage),
                gradient: Bytes::new(),
                residual: residuals
                    .get(&me)
                    .map(|residuals| residuals.of(Self::stage(*stage)))
                    .unwrap_or_default(),
            });
            let order = self.order(member, &stages, attempt);
            let merging = Merging::new(me, &order, NumberFormat::Int8, ends.collect(), None);
            let node = Node {
                merging: merging.expect("the order fits"),
                job: None,
                merged: None,
            };
            (me, node)
        };
        let nodes = self.seats().into_iter().map(node).collect();
        World::new(self.seed, nodes)
    }

    /// The hashes that all must end with, one a stage, without any wire.
    pub(super) fn expected(&self) -> Vec<Digest> {
        let mut compute = FakeCompute::new(config());
        let members = self.samples.len();
        let of_stage = |stage: usize| {
            // The first averages all of it, of all at once.
            let shape = Shape {
                stage: Self::stage(stage),
                values: 256,
                format: NumberFormat::Int8,
                samples: self.samples.iter().sum(),
                levels: vec![Level {
                    weights: self.samples.clone(),
                    shares: [vec![1], vec![0; members - 1]].concat(),
                    own: 0,
                }],
            };
            let start = StageState::Seed;
            let mut contributed = |member: usize| {
                let done = compute.run(&Job::Contribute {
                    shape: shape.clone(),
                    change: Change::Round {
                        start: start.clone(),
                        end: self.end(member, stage),
                    },
                    residual: Bytes::new(),
                });
                let Done::Contributed { parts, .. } = done else {
                    panic!("{done:?}")
                };
                parts[0].clone()
            };
            let parts: Vec<Bytes> = (0..members).map(&mut contributed).collect();
            let residual = Bytes::new();
            let done = compute.run(&Job::Average {
                shape: shape.clone(),
                level: 0,
                parts,
                residual,
            });
            let Done::Averaged { parts, .. } = done else {
                panic!("{done:?}")
            };
            let done = compute.run(&Job::OuterStep {
                shape: shape.clone(),
                round: Round(4),
                start,
                end: self.end(0, stage),
                parts: [parts, vec![Bytes::new(); members - 1]].concat(),
            });
            let Done::Merged { snapshot, .. } = done else {
                panic!("{done:?}")
            };
            snapshot.agreed
        };
        (0..self.stages.len()).map(of_stage).collect()
    }

    /// Without that member.
    pub(super) fn without(&self, member: usize) -> Self {
        let mut rest = self.clone();
        rest.samples.remove(member);
        rest.cut.remove(member);
        for (_, shares) in rest.stages.iter_mut().filter(|(_, it)| !it.is_empty()) {
            shares.remove(member);
        }
        rest
    }
}

pub(super) struct Node {
    pub(super) merging: Merging,
    pub(super) job: Option<Job>,
    pub(super) merged: Option<Vec<Merged>>,
}

/// All seats, and what is on its way between them.
pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) compute: FakeCompute,
    pub(super) nodes: BTreeMap<PeerId, Node>,
    pub(super) wire: Vec<(PeerId, PeerId, Frame)>,
    /// Slices sent and known to be taken, by sender and receiver.
    pub(super) sent: BTreeMap<(PeerId, PeerId), (u64, u64)>,
    pub(super) most_ahead: u64,
    pub(super) refused: Vec<(PeerId, PeerId, String)>,
    /// At whom it failed, by its own fault.
    pub(super) failed: Vec<PeerId>,
    /// Whether what is averaged may be garbage: then no step is made of it.
    pub(super) is_poisoned: bool,
}

impl World {
    pub(super) fn new(seed: u64, nodes: BTreeMap<PeerId, Node>) -> Self {
        let mut world = Self {
            dice: Dice::new(seed),
            compute: FakeCompute::new(config()),
            nodes,
            wire: Vec::new(),
            sent: BTreeMap::new(),
            most_ahead: 0,
            refused: Vec::new(),
            failed: Vec::new(),
            is_poisoned: false,
        };
        for node in world.nodes.values_mut() {
            for other in node.merging.others() {
                node.merging.handle_link(other.peer);
            }
        }
        world.settle();
        world
    }

    /// What everybody wants done is begun.
    pub(super) fn settle(&mut self) {
        for (&me, node) in &mut self.nodes {
            if node.job.is_none() {
                node.job = node.merging.next_job();
            }
            while let Some(output) = node.merging.poll_output() {
                match output {
                    MergeOutput::Frame(to, frame) => {
                        if matches!(frame.header, Header::Merge { .. }) {
                            let (sent, taken) = self.sent.entry((me, to)).or_default();
                            *sent += 1;
                            self.most_ahead = self.most_ahead.max(*sent - *taken);
                        }
                        self.wire.push((me, to, frame));
                    }
                    MergeOutput::Refuse(peer, what) => self.refused.push((me, peer, what)),
                    MergeOutput::Merged(merged) => node.merged = Some(merged),
                    MergeOutput::Failed => self.failed.push(me),
                }
            }
        }
    }

    /// One thing happens; `false` if nothing can.
    pub(super) fn step(&mut self) -> bool {
        let busy = self.nodes.iter().filter(|(_, node)| node.job.is_some());
        let busy: Vec<PeerId> = busy.map(|(peer, _)| *peer).collect();
        let things = busy.len() + self.wire.len();
        if things == 0 {
            return false;
        }
        let thing = usize::try_from(self.dice.below(things as u64)).expect("few");
        match busy.get(thing) {
            Some(peer) => self.compute(*peer),
            None => {
                let (from, to, frame) = self.wire.swap_remove(thing - busy.len());
                self.deliver(from, to, frame);
            }
        }
        self.settle();
        true
    }

    /// A job is done. Packing loses something that tells what was lost before.
    pub(super) fn compute(&mut self, peer: PeerId) {
        let node = self.nodes.get_mut(&peer).expect("it is here");
        let job = node.job.take().expect("it computes");
        let mut done = if self.is_poisoned && matches!(job, Job::OuterStep { .. }) {
            let reason = "garbage".to_owned();
            Done::Refused { reason }
        } else {
            self.compute.run(&job)
        };
        let lost = |before: &Bytes, by: u8| [before, &[by][..]].concat().into();
        match (&job, &mut done) {
            (
                Job::Contribute {
                    residual: before, ..
                },
                Done::Contributed { residual, .. },
            ) => {
                *residual = lost(before, b'c');
            }
            (
                Job::Average {
                    residual: before, ..
                },
                Done::Averaged { residual, .. },
            ) => {
                *residual = lost(before, b'a');
            }
            _ => {}
        }
        node.merging.handle_done(&job, done);
    }

    pub(super) fn deliver(&mut self, from: PeerId, to: PeerId, frame: Frame) {
        let Some(node) = self.nodes.get_mut(&to) else {
            return;
        };
        if let Header::MergeTaken { taken, .. } = frame.header {
            let (_, known) = self.sent.entry((to, from)).or_default();
            *known = taken.max(*known);
            node.merging.handle_taken(from, taken);
        } else if let Header::Merge {
            stage, leg, offset, ..
        } = frame.header
        {
            let at = (stage, leg, offset);
            node.merging.handle_slice(from, at, frame.payload);
        }
    }

    pub(super) fn run(&mut self) {
        while self.step() {}
    }

    /// Everybody's hashes, by stage; `None` unless all merged all.
    pub(super) fn agreed(&self) -> Option<BTreeMap<StageId, Vec<Digest>>> {
        let mut agreed: BTreeMap<StageId, Vec<Digest>> = BTreeMap::new();
        for node in self.nodes.values() {
            for merged in node.merged.as_ref()? {
                let snapshot = &merged.snapshot;
                agreed
                    .entry(snapshot.stage)
                    .or_default()
                    .push(snapshot.agreed);
            }
        }
        Some(agreed)
    }

    /// All have merged all, to these hashes, and nothing more must go or come.
    pub(super) fn check(&self, expected: &[Digest]) {
        assert_eq!(self.refused, Vec::new());
        assert_eq!(self.failed, Vec::new());
        let agreed = self.agreed().expect("all merged all");
        for (stage, expected) in expected.iter().enumerate() {
            let of_stage = &agreed[&Members::stage(stage)];
            assert!(of_stage.iter().all(|it| it == expected), "stage {stage}");
        }
        for node in self.nodes.values() {
            let others = node.merging.others();
            assert!(others.iter().all(|it| !node.merging.needs(it.peer)));
        }
        assert!(self.most_ahead <= u64::from(MERGE_SLICES_AHEAD));
    }
}
