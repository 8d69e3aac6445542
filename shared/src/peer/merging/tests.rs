//! Members whose machines are joined by a wire that delivers in any order.

use proptest::prelude::*;

use super::*;
use crate::config::run::RunConfig;
use crate::limits::{MERGE_SLICE_BYTES, MERGE_SLICES_AHEAD};
use crate::sim::Dice;
use crate::sim::compute::FakeCompute;
use crate::units::{Digest, PipelineId};
use crate::wire::frame::Place;
use crate::wire::signal::Member;

/// Seed of the order in which things happen, and what is merged.
#[derive(Clone, Debug)]
struct Group {
    seed: u64,
    /// Samples of each member.
    samples: Vec<u64>,
    /// Trained values and members' shares of each stage.
    stages: Vec<(u64, Vec<u32>)>,
    /// Whether a member's stages are seats of their own.
    cut: Vec<bool>,
}

fn attempt(counter: u32) -> Attempt {
    Attempt {
        incarnation: 1,
        counter,
    }
}

fn config() -> RunConfig {
    RunConfig::preset("tiny").expect("a preset")
}

fn digest_of(label: &str, numbers: &[u64]) -> [u8; 32] {
    Digest::of(format!("{label} {numbers:?}").as_bytes()).0
}

impl Group {
    fn stage(index: usize) -> StageId {
        StageId(u16::try_from(index).expect("few stages"))
    }

    fn holder(&self, member: usize, stage: usize) -> PeerId {
        let seat = if self.cut[member] { stage } else { 0 };
        PeerId(100 * (member as u64 + 1) + seat as u64)
    }

    /// A stage at the round's end: weights and moments of that member.
    fn end(&self, member: usize, stage: usize) -> Bytes {
        let numbers = [self.seed, self.samples[member], stage as u64];
        let halves = [
            digest_of("weights", &numbers),
            digest_of("moments", &numbers),
        ];
        halves.concat().into()
    }

    fn members(&self) -> Vec<Member> {
        let member = |(index, samples): (usize, &u64)| Member {
            pipeline: PipelineId(u16::try_from(index).expect("few members")),
            epoch: attempt(1),
            steps: 1,
            samples: *samples,
        };
        self.samples.iter().enumerate().map(member).collect()
    }

    fn order(&self, stages: &[usize], attempt: Attempt) -> MergeOrder {
        let replicas = |stage: &usize| {
            let holders = (0..self.samples.len()).map(|member| Neighbour {
                peer: self.holder(member, *stage),
                key: Digest::default(),
            });
            Replicas {
                peers: holders.collect(),
                shares: self.stages[*stage].1.clone(),
            }
        };
        MergeOrder {
            place: Place {
                pipeline: PipelineId(0),
                epoch: attempt,
                round: Round(3),
            },
            attempt,
            result: Round(4),
            members: self.members(),
            stages: stages.iter().map(replicas).collect(),
        }
    }

    /// The seats that hold a stage, by volunteer: member and stages.
    fn seats(&self) -> BTreeMap<PeerId, (usize, Vec<usize>)> {
        let mut seats: BTreeMap<PeerId, (usize, Vec<usize>)> = BTreeMap::new();
        for member in 0..self.samples.len() {
            for stage in 0..self.stages.len() {
                let seat = seats.entry(self.holder(member, stage));
                seat.or_insert((member, Vec::new())).1.push(stage);
            }
        }
        seats
    }

    fn begin(&self, counter: u32, residuals: &BTreeMap<PeerId, Residuals>) -> World {
        let attempt = attempt(counter);
        let node = |(me, (member, stages)): (PeerId, (usize, Vec<usize>))| {
            let ends = stages.iter().map(|stage| Ends {
                stage: Self::stage(*stage),
                values: self.stages[*stage].0,
                start: StageState::Seed,
                end: self.end(member, *stage),
                residual: residuals
                    .get(&me)
                    .map(|residuals| residuals.of(Self::stage(*stage)))
                    .unwrap_or_default(),
            });
            let order = self.order(&stages, attempt);
            let merging = Merging::new(me, &order, NumberFormat::Int8, ends.collect());
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
    fn expected(&self) -> Vec<Digest> {
        let mut compute = FakeCompute::new(config());
        let members = self.samples.len();
        let of_stage = |stage: usize| {
            // The first averages all of it.
            let shape = Shape {
                stage: Self::stage(stage),
                values: 256,
                format: NumberFormat::Int8,
                weights: self.samples.clone(),
                shares: [vec![1], vec![0; members - 1]].concat(),
                own: 0,
            };
            let start = StageState::Seed;
            let mut contributed = |member: usize| {
                let done = compute.run(&Job::Contribute {
                    shape: shape.clone(),
                    start: start.clone(),
                    end: self.end(member, stage),
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
                parts,
                residual,
            });
            let Done::Averaged { part, .. } = done else {
                panic!("{done:?}")
            };
            let done = compute.run(&Job::OuterStep {
                shape: shape.clone(),
                round: Round(4),
                start,
                end: self.end(0, stage),
                parts: [vec![part], vec![Bytes::new(); members - 1]].concat(),
            });
            let Done::Merged { snapshot, .. } = done else {
                panic!("{done:?}")
            };
            snapshot.agreed
        };
        (0..self.stages.len()).map(of_stage).collect()
    }

    /// Without that member.
    fn without(&self, member: usize) -> Self {
        let mut rest = self.clone();
        rest.samples.remove(member);
        rest.cut.remove(member);
        for (_, shares) in &mut rest.stages {
            shares.remove(member);
        }
        rest
    }
}

struct Node {
    merging: Merging,
    job: Option<Job>,
    merged: Option<Vec<Merged>>,
}

/// All seats, and what is on its way between them.
struct World {
    dice: Dice,
    compute: FakeCompute,
    nodes: BTreeMap<PeerId, Node>,
    wire: Vec<(PeerId, PeerId, Frame)>,
    /// Slices sent and known to be taken, by sender and receiver.
    sent: BTreeMap<(PeerId, PeerId), (u64, u64)>,
    most_ahead: u64,
    refused: Vec<(PeerId, PeerId, String)>,
    /// Whether what is averaged may be garbage: then no step is made of it.
    is_poisoned: bool,
}

impl World {
    fn new(seed: u64, nodes: BTreeMap<PeerId, Node>) -> Self {
        let mut world = Self {
            dice: Dice::new(seed),
            compute: FakeCompute::new(config()),
            nodes,
            wire: Vec::new(),
            sent: BTreeMap::new(),
            most_ahead: 0,
            refused: Vec::new(),
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
    fn settle(&mut self) {
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
                }
            }
        }
    }

    /// One thing happens; `false` if nothing can.
    fn step(&mut self) -> bool {
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
    fn compute(&mut self, peer: PeerId) {
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

    fn deliver(&mut self, from: PeerId, to: PeerId, frame: Frame) {
        let Some(node) = self.nodes.get_mut(&to) else {
            return;
        };
        match frame.header {
            Header::Merge {
                stage, leg, offset, ..
            } => node
                .merging
                .handle_slice(from, (stage, leg, offset), frame.payload),
            Header::MergeTaken { taken, .. } => {
                let (_, known) = self.sent.entry((to, from)).or_default();
                *known = taken.max(*known);
                node.merging.handle_taken(from, taken);
            }
            other => panic!("a merge sends no {other:?}"),
        }
    }

    fn run(&mut self) {
        while self.step() {}
    }

    /// Everybody's hashes, by stage; `None` unless all merged all.
    fn agreed(&self) -> Option<BTreeMap<StageId, Vec<Digest>>> {
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
    fn check(&self, expected: &[Digest]) {
        assert_eq!(self.refused, Vec::new());
        let agreed = self.agreed().expect("all merged all");
        for (stage, expected) in expected.iter().enumerate() {
            let of_stage = &agreed[&Group::stage(stage)];
            assert!(of_stage.iter().all(|it| it == expected), "stage {stage}");
        }
        for node in self.nodes.values() {
            let others = node.merging.others();
            assert!(others.iter().all(|it| !node.merging.needs(it.peer)));
        }
        assert!(self.most_ahead <= u64::from(MERGE_SLICES_AHEAD));
    }
}

fn groups(members: usize, stages: usize) -> impl Strategy<Value = Group> {
    let share = prop_oneof![Just(0_u32), 1..100_u32, Just(u32::MAX)];
    let shares = proptest::collection::vec(share, members);
    let values = prop_oneof![1..2_000_u64, 1..900_000_u64];
    (
        any::<u64>(),
        proptest::collection::vec(0..10_000_u64, members),
        proptest::collection::vec((values, shares), stages),
        proptest::collection::vec(any::<bool>(), members),
    )
        .prop_map(|(seed, mut samples, stages, cut)| {
            // Each has other weights at the end.
            for (index, samples) in samples.iter_mut().enumerate() {
                *samples += 10_000 * index as u64;
            }
            Group {
                seed,
                samples,
                stages,
                cut,
            }
        })
}

fn any_group() -> impl Strategy<Value = Group> {
    (prop_oneof![Just(2_usize), Just(3), Just(5)], 1..3_usize)
        .prop_flat_map(|(members, stages)| groups(members, stages))
}

/// Two members of one stage that has so many values.
fn pair(values: u64) -> Group {
    Group {
        seed: 1,
        samples: vec![100, 300],
        stages: vec![(values, vec![1, 1])],
        cut: vec![false; 2],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn members_that_were_told_the_same_end_with_the_same_weights(group in any_group()) {
        let mut world = group.begin(1, &BTreeMap::new());
        world.run();
        world.check(&group.expected());
    }

    #[test]
    fn after_a_loss_the_members_that_stay_give_what_they_alone_give(
        group in groups(3, 2),
        lost in 0..3_usize,
        after in 0..60_usize,
    ) {
        let mut world = group.begin(1, &BTreeMap::new());
        for _ in 0..after {
            world.step();
        }
        let gone: Vec<PeerId> = (0..2).map(|stage| group.holder(lost, stage)).collect();
        world.nodes.retain(|peer, _| !gone.contains(peer));
        for node in world.nodes.values_mut() {
            gone.iter().for_each(|peer| node.merging.handle_lost(*peer));
        }
        world.run();
        let rest = group.without(lost);
        let mut world = rest.begin(2, &BTreeMap::new());
        world.run();
        world.check(&rest.expected());
        prop_assert_ne!(rest.expected(), group.expected(), "the lost one counted");
    }

    #[test]
    fn garbage_is_refused_or_nothing_and_never_ends_a_member(
        group in groups(3, 1),
        garbage in proptest::collection::vec(
            (0..6_u64, 0..3_u16, any::<bool>(), 0..4_u64, 0..3_usize, any::<u64>()),
            1..40,
        ),
    ) {
        let mut world = group.begin(1, &BTreeMap::new());
        world.is_poisoned = true;
        let slice = MERGE_SLICE_BYTES as u64;
        for (from, stage, is_scatter, at, bytes, taken) in garbage {
            world.step();
            let from = PeerId(100 * from);
            let offset = [0, 1, slice, u64::MAX][usize::try_from(at).expect("small")];
            let payload = Bytes::from(vec![7; [1, 258, MERGE_SLICE_BYTES][bytes]]);
            let leg = if is_scatter { Leg::Scatter } else { Leg::Gather };
            let node = world.nodes.values_mut().next().expect("a member");
            node.merging.handle_slice(from, (StageId(stage), leg, offset), payload);
            node.merging.handle_taken(from, taken % 20);
        }
    }
}

#[test]
fn slices_never_exceed_the_window_and_fill_it() {
    let values = 2 * 12 * MERGE_SLICE_BYTES as u64;
    let group = pair(values);
    let mut world = group.begin(1, &BTreeMap::new());
    // Both contribute; nothing is taken yet.
    while world.nodes.values().any(|node| node.job.is_some()) {
        let busy = world.nodes.iter().find(|(_, node)| node.job.is_some());
        let peer = *busy.expect("one computes").0;
        world.compute(peer);
        world.settle();
    }
    assert_eq!(world.wire.len(), 2 * MERGE_SLICES_AHEAD as usize);
    world.run();
    assert_eq!(world.most_ahead, u64::from(MERGE_SLICES_AHEAD));
    world.check(&group.expected());
}

#[test]
fn what_packing_lost_is_what_the_last_committed_attempt_lost() {
    let group = pair(1_000);
    let mut residuals: BTreeMap<PeerId, Residuals> = BTreeMap::new();
    let lost = |world: &World, residuals: &mut BTreeMap<PeerId, Residuals>, counter| {
        let mut all = Vec::new();
        for (peer, node) in &world.nodes {
            let merged = node.merged.as_ref().expect("merged");
            let of = merged
                .iter()
                .map(|it| (it.snapshot.stage, it.residual.clone()));
            all.extend(merged.iter().map(|it| it.residual.clone()));
            residuals
                .entry(*peer)
                .or_default()
                .propose(attempt(counter), of);
        }
        all
    };
    let mut run = |counter: u32, is_committed: bool| {
        let mut world = group.begin(counter, &residuals);
        world.run();
        let lost = lost(&world, &mut residuals, counter);
        if is_committed {
            let all = residuals.values_mut();
            all.for_each(|residuals| residuals.commit(attempt(counter)));
        }
        assert_eq!(lost[0], lost[1]);
        lost[0].clone()
    };
    assert_eq!(run(1, true), "ca");
    assert_eq!(run(2, false), "caca");
    assert_eq!(run(3, true), "caca", "the second never was");
    assert_eq!(run(4, true), "cacaca");
}

#[test]
fn a_member_whose_slices_may_be_lost_does_nothing_more() {
    let group = pair(1_000);
    let mut world = group.begin(1, &BTreeMap::new());
    let (one, other) = (PeerId(100), PeerId(200));
    world.compute(one);
    world.settle();
    let node = world.nodes.get_mut(&one).expect("it is here");
    node.merging.handle_lost(other);
    node.merging.handle_link(other);
    world.run();
    assert!(world.nodes.values().all(|node| node.merged.is_none()));
    // Once all is exchanged a link may go.
    let mut world = group.begin(2, &BTreeMap::new());
    world.run();
    let node = world.nodes.get_mut(&one).expect("it is here");
    assert!(!node.merging.needs(other) && node.merging.involves(other));
}

#[test]
fn the_same_slice_twice_is_one_and_another_one_in_its_place_is_refused() {
    let group = pair(1_000);
    let mut world = group.begin(1, &BTreeMap::new());
    let (one, other) = (PeerId(100), PeerId(200));
    world.compute(other);
    world.settle();
    let (from, to, frame) = world.wire.pop().expect("a slice");
    assert_eq!((from, to), (other, one));
    world.deliver(from, to, frame.clone());
    world.deliver(from, to, frame.clone());
    world.settle();
    let taken = |(_, _, frame): &(PeerId, PeerId, Frame)| match frame.header {
        Header::MergeTaken { taken, .. } => Some(taken),
        _ => None,
    };
    let answers: Vec<u64> = world.wire.iter().filter_map(taken).collect();
    assert_eq!(answers, [1]);
    assert!(world.refused.is_empty());
    let payload = frame.payload.iter().map(|byte| !byte).collect();
    world.deliver(from, to, Frame { payload, ..frame });
    world.settle();
    assert_eq!(world.refused.len(), 1, "{:?}", world.refused);
}

#[test]
fn an_order_that_does_not_fit_is_none() {
    let group = pair(1_000);
    let ends = || {
        vec![Ends {
            stage: StageId(0),
            values: 1_000,
            start: StageState::Seed,
            end: group.end(0, 0),
            residual: Bytes::new(),
        }]
    };
    let fits = |me: u64, change: &dyn Fn(&mut MergeOrder)| {
        let mut order = group.order(&[0], attempt(1));
        change(&mut order);
        Merging::new(PeerId(me), &order, NumberFormat::Int8, ends()).is_some()
    };
    assert!(fits(100, &|_| ()));
    assert!(!fits(101, &|_| ()), "somebody else's");
    assert!(!fits(100, &|order| order.stages.clear()));
    assert!(!fits(100, &|order| order.members.truncate(1)));
    assert!(!fits(100, &|order| order.stages[0].shares.truncate(1)));
    assert!(!fits(100, &|order| {
        order.stages[0].peers[1] = order.stages[0].peers[0];
    }));
}

#[test]
fn who_sent_numbers_that_are_none_is_named() {
    let group = pair(1_000);
    let mut world = group.begin(1, &BTreeMap::new());
    world.compute(PeerId(100));
    world.compute(PeerId(200));
    world.settle();
    for (_, _, frame) in &mut world.wire {
        // Scales that are not finite.
        frame.payload = vec![0xff; frame.payload.len()].into();
    }
    while let Some((from, to, frame)) = world.wire.pop() {
        world.deliver(from, to, frame);
    }
    let node = world.nodes.get_mut(&PeerId(100)).expect("it is here");
    let job = node.merging.next_job().expect("an average");
    let reason = "not finite".to_owned();
    node.merging.handle_done(&job, Done::Refused { reason });
    world.settle();
    let whom: Vec<PeerId> = world.refused.iter().map(|(_, whom, _)| *whom).collect();
    assert_eq!(whom, [PeerId(200)]);
}
