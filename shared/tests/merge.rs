//! The mathematics of a merge, on lists of values: equal bits at all members, the weighted mean, nothing lost over
//! the rounds, and the outer step of an independent program.

#![cfg(feature = "compute")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "random f32 values, and references in f64"
)]

use std::sync::Arc;

use bytes::Bytes;
use expect_test::{Expect, expect};
use half::bf16;
use proptest::prelude::*;
use shared::config::model::{INT4_TILE, NumberFormat};
use shared::config::run::{MergeConfig, MergeKind};
use shared::model::merge::{Average, Contribution, average, contribute, outer_step};
use shared::model::state::StageState;
use shared::random::Words;
use shared::schedule::grouping;
use shared::units::{Digest, StageId};
use shared::wire::merge::{Level, Shape, TILE};
use shared::wire::number::unpack;

type Lists = Vec<Vec<f32>>;

/// Members that merge one stage.
#[derive(Clone, Debug)]
struct Group {
    weights: Vec<u64>,
    /// Each member's groups.
    levels: Vec<Vec<Arc<grouping::Group>>>,
    config: MergeConfig,
}

/// What a merge left behind.
#[derive(Clone, Debug, PartialEq)]
struct Merged {
    weights: Lists,
    momentum: Lists,
    /// Each member's contribution, packed, all parts in order.
    said: Vec<Vec<u8>>,
    /// The averages that were applied, packed, all parts in order.
    averages: Vec<u8>,
    /// What each member's packing lost.
    residuals: Vec<Bytes>,
}

impl Group {
    fn new(weights: &[u64], shares: &[u32], format: NumberFormat) -> Self {
        let config = MergeConfig {
            kind: MergeKind::Outer,
            format,
            learning_rate: 0.7,
            momentum: 0.9,
            group_max: 16,
        };
        let group = Arc::new(grouping::Group {
            members: (0..weights.len()).collect(),
            samples: weights.to_vec(),
            shares: shares.to_vec(),
        });
        Self {
            weights: weights.to_vec(),
            levels: vec![vec![group]; weights.len()],
            config,
        }
    }

    /// As many of them in a group at most.
    fn dealt(weights: &[u64], group_max: usize, format: NumberFormat) -> Self {
        let replica = |(member, samples): (usize, &u64)| grouping::Replica {
            samples: *samples,
            rate: 1 + member as u64 % 3,
        };
        let replicas: Vec<_> = weights.iter().enumerate().map(replica).collect();
        let fastest_first: Vec<usize> = (0..weights.len()).rev().collect();
        Self {
            levels: grouping::groups(&replicas, &fastest_first, group_max),
            ..Self::new(weights, &vec![1; weights.len()], format)
        }
    }

    fn shape(&self, own: usize, values: usize) -> Shape {
        let level = |group: &Arc<grouping::Group>| Level {
            weights: group.samples.clone(),
            shares: group.shares.clone(),
            own: own_place(own, group),
        };
        Shape {
            stage: StageId(0),
            values: values as u64,
            format: self.config.format,
            samples: self.weights.iter().sum(),
            levels: self.levels[own].iter().map(level).collect(),
        }
    }

    /// What each member brings to a level, and what its packing lost, once its part of the one before is averaged.
    fn averaged(
        &self,
        level: usize,
        shapes: &[Shape],
        brought: &[(Vec<Bytes>, Bytes)],
    ) -> Vec<(Vec<Bytes>, Bytes)> {
        let average = |own: usize| {
            let Some(group) = self.levels[own].get(level) else {
                return brought[own].clone();
            };
            let place = usize::from(own_place(own, group));
            let of = |member: &usize| brought[*member].0[place].clone();
            let parts: Vec<Bytes> = group.members.iter().map(of).collect();
            let done = average(&shapes[own], level, &parts, &brought[own].1);
            let Average { parts, residual } = done.expect("they fit");
            (parts, residual)
        };
        (0..shapes.len()).map(average).collect()
    }

    /// A member's part of a level, averaged of all, from what the last level's owners of each made of it.
    fn returned(&self, level: usize, member: usize, averaged: &[(Vec<Bytes>, Bytes)]) -> Bytes {
        match self.levels[member].get(level + 1) {
            None => averaged[member].0[0].clone(),
            Some(group) => {
                let members = group.members.iter();
                let parts = members.map(|it| self.returned(level + 1, *it, averaged));
                parts.collect::<Vec<Bytes>>().concat().into()
            }
        }
    }

    /// The whole route, at every member for itself: all must end alike.
    fn merge(
        &self,
        start: &Lists,
        momentum: &Lists,
        ends: &[Lists],
        residuals: &[Bytes],
    ) -> Merged {
        let values = start.iter().map(Vec::len).sum();
        let members = 0..self.weights.len();
        let shapes: Vec<Shape> = members.map(|own| self.shape(own, values)).collect();
        let said = shapes.iter().zip(ends).zip(residuals);
        let said: Vec<Contribution> = said
            .map(|((shape, end), residual)| contribute(shape, start, end, residual))
            .collect::<Result<_, _>>()
            .expect("they fit");
        let deepest = self.levels.iter().map(Vec::len).max().expect("members");
        let brought = said
            .iter()
            .map(|it| (it.parts.clone(), it.residual.clone()));
        let averaged = (0..deepest).fold(brought.collect::<Vec<_>>(), |brought, level| {
            self.averaged(level, &shapes, &brought)
        });
        let gathered = |member: usize| -> Vec<Bytes> {
            let members = self.levels[member][0].members.iter();
            members.map(|it| self.returned(0, *it, &averaged)).collect()
        };
        let averages: Vec<Vec<Bytes>> = (0..shapes.len()).map(gathered).collect();
        let residuals: Vec<Bytes> = averaged.into_iter().map(|(_, lost)| lost).collect();
        let results = shapes.iter().zip(&averages).map(|(shape, averages)| {
            let (mut weights, mut momentum) = (start.clone(), momentum.clone());
            outer_step(shape, &self.config, &mut weights, &mut momentum, averages)
                .expect("they fit");
            Merged {
                weights,
                momentum,
                said: said.iter().map(|said| said.parts.concat()).collect(),
                averages: averages.concat(),
                residuals: residuals.clone(),
            }
        });
        let results: Vec<Merged> = results.collect();
        let digests: Vec<Digest> = results.iter().map(digest).collect();
        assert!(digests.iter().all(|digest| *digest == digests[0]));
        results.into_iter().next().expect("a group has members")
    }

    /// A member's share of the average.
    fn share(&self, member: usize) -> f64 {
        self.weights[member] as f64 / self.weights.iter().sum::<u64>() as f64
    }
}

fn own_place(own: usize, group: &grouping::Group) -> u16 {
    let place = group.members.iter().position(|it| *it == own);
    u16::try_from(place.expect("its own group")).expect("few")
}

fn digest(merged: &Merged) -> Digest {
    let mut state = StageState::untrained(merged.weights.clone());
    state.outer = Some(merged.momentum.clone());
    state.agreed_digest(MergeKind::Outer)
}

/// Uniform in (-deviation, deviation), in lists of these lengths.
fn random(words: &mut Words, lengths: &[usize], deviation: f64) -> Lists {
    let mut value =
        || ((f64::from(words.next_word()) / 4_294_967_296.0 - 0.5) * 2.0 * deviation) as f32;
    let list = |length: &usize| (0..*length).map(|_| value()).collect();
    lengths.iter().map(list).collect()
}

/// Each member's end, somewhere around the start.
fn ends(words: &mut Words, start: &Lists, members: usize) -> Vec<Lists> {
    let lengths: Vec<usize> = start.iter().map(Vec::len).collect();
    let end = |_| {
        let mut end = random(words, &lengths, 0.05);
        for (end, start) in end.iter_mut().flatten().zip(start.iter().flatten()) {
            *end += start;
        }
        end
    };
    (0..members).map(end).collect()
}

fn zeros(like: &Lists) -> Lists {
    like.iter().map(|list| vec![0.0; list.len()]).collect()
}

fn formats() -> impl Strategy<Value = NumberFormat> {
    prop_oneof![
        Just(NumberFormat::F32),
        Just(NumberFormat::F16),
        Just(NumberFormat::Int8),
        Just(NumberFormat::Int4)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn all_members_end_with_the_same_bits_and_in_f32_with_the_weighted_mean(
        (weights, shares) in (1_usize..9).prop_flat_map(|members| (
            prop::collection::vec(1_u64..1000, members),
            prop::collection::vec(0_u32..5, members),
        )),
        group_max in prop::option::of(2_usize..5),
        lengths in prop::collection::vec(1_usize..700, 1..4),
        format in formats(),
        seed in any::<u64>(),
    ) {
        let mut group = match group_max {
            None => Group::new(&weights, &shares, format),
            Some(group_max) => Group::dealt(&weights, group_max, format),
        };
        let levels = group.levels.iter().map(Vec::len).max().expect("members");
        let mut words = Words::new("merge", &[seed]);
        let start = random(&mut words, &lengths, 0.9);
        let momentum = random(&mut words, &lengths, 0.01);
        let nothing = vec![Bytes::new(); weights.len()];
        let ends = ends(&mut words, &start, weights.len());
        group.merge(&start, &momentum, &ends, &nothing);
        // Without momentum and at rate 1 the outer step ends at the mean of the ends.
        (group.config.learning_rate, group.config.momentum) = (1.0, 0.0);
        let merged = group.merge(&start, &zeros(&start), &ends, &nothing);
        let bound = match format {
            NumberFormat::F32 => 1e-6,
            // Half a step of changes below 0.05, once more than there are levels.
            NumberFormat::F16 => 0.03 / 1024.0 * (levels + 1) as f64,
            NumberFormat::Int8 => 0.03 / 127.0 * (levels + 1) as f64,
            // Sums of 32 errors of half a step, which is a 14th of a rotated tile's largest: five deviations.
            NumberFormat::Int4 => 0.027 * (levels + 1) as f64,
        };
        let all: Vec<Vec<f32>> = ends.iter().map(|end| end.concat()).collect();
        for (position, value) in merged.weights.iter().flatten().enumerate() {
            let shares = all.iter().enumerate();
            let mean: f64 = shares
                .map(|(member, end)| group.share(member) * f64::from(end[position]))
                .sum();
            let error = (f64::from(*value) - mean).abs();
            prop_assert!(error <= bound, "{format:?}, value {position}: {value} for {mean}");
        }
        let lossless = merged.residuals.iter().all(|residual| residual.is_empty());
        prop_assert_eq!(lossless, format == NumberFormat::F32);
    }
}

/// How far what was applied over the rounds is from what should have been, at most, after each of fifty rounds of the
/// same pseudo-gradients: in quantisation steps, half of them of what was contributed and half of the average.
fn drift(group: &Group, fed_back: bool) -> Vec<f64> {
    let format = group.config.format;
    let mut words = Words::new("drift", &[1]);
    let start = vec![vec![0.0; 700], vec![0.0; 333]];
    let values: usize = start.iter().map(Vec::len).sum();
    let members = group.weights.len();
    let ends = ends(&mut words, &start, members);
    let changes: Vec<Vec<f32>> = ends.iter().map(|end| end.concat()).collect();
    let mut residuals = vec![Bytes::new(); members];
    let mut applied = vec![0.0_f64; values];
    let round = |round| {
        let merged = group.merge(&start, &zeros(&start), &ends, &residuals);
        if fed_back {
            residuals = merged.residuals;
        }
        let tiles = values.div_ceil(TILE);
        let average = unpack(format, &merged.averages, tiles, TILE).expect("own bytes");
        let errors = (0..values).map(|position| {
            applied[position] += f64::from(average[position]);
            let mean = |of: &dyn Fn(usize) -> f64| -> f64 {
                (0..members)
                    .map(|member| group.share(member) * of(member))
                    .sum()
            };
            let change = mean(&|member| -f64::from(changes[member][position]));
            let step_said = mean(&|member| step_of(format, &merged.said[member], position));
            let step = f64::midpoint(step_said, step_of(format, &merged.averages, position));
            (applied[position] - f64::from(round) * change).abs() / step
        });
        errors.fold(0.0, f64::max)
    };
    (1..=50).map(round).collect()
}

/// The quantisation step at a value: the scale of its tile in int8, of numbers below 1/16 in f16. In int4 each of a tile's
/// numbers is a part of all its values, so that half of their steps may add up.
fn step_of(format: NumberFormat, packed: &[u8], position: usize) -> f64 {
    match format {
        NumberFormat::F32 => f64::from(f32::EPSILON),
        NumberFormat::F16 => 1.0 / 32_768.0,
        NumberFormat::Int8 => {
            let at = position / TILE * format.row_bytes(TILE);
            f64::from(bf16::from_le_bytes([packed[at], packed[at + 1]]).to_f32())
        }
        NumberFormat::Int4 => {
            let at = position / INT4_TILE * format.row_bytes(INT4_TILE);
            let scale = bf16::from_le_bytes([packed[at], packed[at + 1]]);
            INT4_TILE as f64 * f64::from(scale.to_f32())
        }
    }
}

#[test]
fn what_packing_loses_is_brought_back_and_over_the_rounds_nothing_is_lost() {
    for (format, lost) in [
        (NumberFormat::F16, 10.0),
        (NumberFormat::Int8, 10.0),
        (NumberFormat::Int4, 1.5),
    ] {
        let groups = [
            Group::new(&[3, 1, 2], &[1, 1, 1], format),
            Group::new(&[640, 20, 320], &[1, 3, 2], format),
            // Each level packs once more: four times in all.
            Group::dealt(&[3, 1, 2, 5, 4], 2, format),
        ];
        for group in groups {
            let weights = &group.weights;
            let packings = group.levels.iter().map(Vec::len).max().expect("members") + 1;
            let with = drift(&group, true).into_iter().fold(0.0, f64::max);
            assert!(
                with <= 1.001 * packings as f64 / 2.0,
                "{format:?} {weights:?}: {with} steps off with feedback"
            );
            let without = *drift(&group, false).last().expect("fifty rounds");
            assert!(
                without > lost,
                "{format:?} {weights:?}: {without} steps off without feedback"
            );
        }
    }
}

#[test]
fn an_attempt_that_failed_leaves_nothing() {
    let group = Group::new(&[3, 1], &[1, 1], NumberFormat::Int8);
    let mut words = Words::new("failed", &[1]);
    let start = random(&mut words, &[600], 0.9);
    let ends = ends(&mut words, &start, 2);
    let before = vec![Bytes::new(); 2];
    // Its residuals are not taken over.
    let failed = group.merge(&start, &zeros(&start), &ends, &before);
    assert!(
        failed
            .residuals
            .iter()
            .all(|residual| residual.len() == 2400)
    );
    let again = group.merge(&start, &zeros(&start), &ends, &before);
    assert_eq!(again, failed);
}

#[test]
fn two_rounds_of_the_outer_step_agree_with_a_program_in_f64() {
    let group = Group::new(&[320, 32, 96], &[2, 0, 3], NumberFormat::F32);
    let mut words = Words::new("golden", &[1]);
    let mut start = random(&mut words, &[40, 513], 0.9);
    let mut momentum = zeros(&start);
    // As torch.optim.SGD writes it, on one parameter: a buffer that begins as the first gradient.
    let mut parameter: Vec<f64> = start.concat().iter().map(|v| f64::from(*v)).collect();
    let mut buffer: Option<Vec<f64>> = None;
    for _ in 0..2 {
        let ends = ends(&mut words, &start, 3);
        let all: Vec<Vec<f32>> = ends.iter().map(|end| end.concat()).collect();
        let gradient: Vec<f64> = (0..parameter.len())
            .map(|at| {
                let mean: f64 = (0..3)
                    .map(|member| group.share(member) * f64::from(all[member][at]))
                    .sum();
                f64::from(start.concat()[at]) - mean
            })
            .collect();
        let next: Vec<f64> = match buffer {
            None => gradient.clone(),
            Some(old) => old
                .iter()
                .zip(&gradient)
                .map(|(b, g)| 0.9 * b + g)
                .collect(),
        };
        for ((parameter, gradient), next) in parameter.iter_mut().zip(&gradient).zip(&next) {
            *parameter -= 0.7 * (gradient + 0.9 * next);
        }
        buffer = Some(next);
        let merged = group.merge(&start, &momentum, &ends, &vec![Bytes::new(); 3]);
        (start, momentum) = (merged.weights, merged.momentum);
        for (ours, theirs) in start.iter().flatten().zip(&parameter) {
            assert!(
                (f64::from(*ours) - theirs).abs() <= 1e-6,
                "{ours} for {theirs}"
            );
        }
    }
}

#[test]
fn the_outer_step_in_numbers_that_can_be_checked_by_hand() {
    let group = Group::new(&[1], &[1], NumberFormat::F32);
    let shape = group.shape(0, 1);
    let mut part = 1.0_f32.to_le_bytes().to_vec();
    part.resize(4 * TILE, 0);
    let parts = [Bytes::from(part)];
    let (mut weights, mut momentum) = (vec![vec![0.0]], vec![vec![0.0]]);
    let mut check = |weight: f64, speed: f64| {
        outer_step(&shape, &group.config, &mut weights, &mut momentum, &parts).expect("they fit");
        let errors = [
            f64::from(weights[0][0]) - weight,
            f64::from(momentum[0][0]) - speed,
        ];
        assert!(errors.iter().all(|error| error.abs() < 1e-6), "{errors:?}");
    };
    // 0.7 (1 + 0.9), then 0.7 (1 + 0.9 * 1.9) more.
    check(-1.33, 1.0);
    check(-3.227, 1.9);
}

fn check_refusal(done: Result<(), shared::model::merge::MergeError>, expected: Expect) {
    expected.assert_eq(&done.expect_err("refused").to_string());
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let group = Group::new(&[3, 1], &[1, 1], NumberFormat::Int8);
    let shape = group.shape(1, 600);
    let start = vec![vec![0.5; 600]];
    let said = contribute(&shape, &start, &start, &[]).expect("they fit");
    let contributed = |shape: &Shape, end: &Lists, residual: &[u8]| {
        contribute(shape, &start, end, residual).map(drop)
    };
    let averaged = |parts: &[Bytes]| average(&shape, 0, parts, &said.residual).map(drop);
    // Two of three tiles are ours.
    let part = &said.parts[1];
    assert_eq!(part.len(), 2 * 258);
    let mut infinite = part.to_vec();
    infinite[258..260].copy_from_slice(&[0x80, 0x7f]);
    let stepped = |parts: &[Bytes]| {
        let (mut weights, mut momentum) = (start.clone(), zeros(&start));
        outer_step(&shape, &group.config, &mut weights, &mut momentum, parts)
    };

    check_refusal(
        averaged(std::slice::from_ref(part)),
        expect!["1 parts of 2 members"],
    );
    check_refusal(
        averaged(&[part.clone(), part.slice(1..)]),
        expect!["the part of member 1 has 515 bytes, should have 516"],
    );
    check_refusal(
        averaged(&[part.clone(), infinite.clone().into()]),
        expect!["the part of member 1: the scale of tile 1 is not a finite positive number"],
    );
    check_refusal(
        stepped(&[said.parts[0].clone(), infinite.into()]),
        expect!["the part of member 1: the scale of tile 1 is not a finite positive number"],
    );
    check_refusal(
        stepped(&[part.clone(), part.clone()]),
        expect!["the part of member 0 has 516 bytes, should have 258"],
    );
    check_refusal(
        contributed(&shape, &start, &[0; 2399]),
        expect!["what packing lost before has 2399 bytes, should have 2400 or none"],
    );
    check_refusal(
        contributed(&shape, &vec![vec![0.5; 599]], &[]),
        expect!["the stage has 599 values, the merge is about 600"],
    );
    check_refusal(
        contributed(&shape, &vec![vec![f32::INFINITY; 600]], &[]),
        expect!["what the stage changed is NaN or infinite in 600 places"],
    );
    let with = |change: &dyn Fn(&mut Level)| {
        let mut shape = shape.clone();
        change(&mut shape.levels[0]);
        shape
    };
    let nobody = with(&|group| group.own = 2);
    check_refusal(
        contributed(&nobody, &start, &[]),
        expect!["member 2 of a group with 2 weights, 2 shares and 4 samples in all"],
    );
    let untrained = with(&|group| group.weights = vec![0, 0]);
    check_refusal(
        contributed(&untrained, &start, &[]),
        expect!["member 1 of a group with 2 weights, 2 shares and 0 samples in all"],
    );
}

#[test]
fn a_part_in_f32_that_is_not_finite_is_refused() {
    let group = Group::new(&[3, 1], &[1, 0], NumberFormat::F32);
    let shape = group.shape(0, 10);
    let mut part = vec![0; 4 * TILE];
    part[36..40].copy_from_slice(&f32::NAN.to_le_bytes());
    let parts = [Bytes::from(vec![0; 4 * TILE]), part.into()];
    let done = average(&shape, 0, &parts, &[]).map(drop);
    check_refusal(
        done,
        expect!["the part of member 1 is NaN or infinite in 1 places"],
    );
    let large = |sign: f32| Bytes::from((sign * 3e38).to_le_bytes().repeat(TILE));
    let mut weights = vec![vec![-3e38; 10]];
    let parts = [large(1.0), Bytes::new()];
    let done = outer_step(
        &shape,
        &group.config,
        &mut weights,
        &mut [vec![0.0; 10]],
        &parts,
    );
    check_refusal(
        done,
        expect!["the merged stage is NaN or infinite in 10 places"],
    );
}

#[test]
fn a_member_that_trained_nothing_changes_nothing_and_keeps_what_it_lost() {
    let group = Group::new(&[1, 0], &[0, 1], NumberFormat::Int8);
    let mut words = Words::new("nothing", &[1]);
    let start = random(&mut words, &[300], 0.9);
    let both = ends(&mut words, &start, 2);
    let nothing = vec![Bytes::new(); 2];
    let merged = group.merge(&start, &zeros(&start), &both, &nothing);
    let alone = [both[0].clone(), start.clone()];
    assert_eq!(
        merged.weights,
        group
            .merge(&start, &zeros(&start), &alone, &nothing)
            .weights
    );
}
