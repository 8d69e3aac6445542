//! Two pipelines that merge, on real engines: replicas agree to the bit each round, and the loss falls as that of one.

#![cfg(feature = "compute")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "any answer but the expected one fails the test"
)]

#[allow(dead_code, reason = "each test uses what it needs of it")]
mod pipeline;

use burn::tensor::Device;
use bytes::Bytes;
use expect_test::{Expect, expect};
use pollster::block_on;
use shared::compute::{Change, Compute, Done, Job, Snapshot, StageState as Source};
use shared::config::model::NumberFormat;
use shared::config::run::{MergeKind, RunConfig};
use shared::derive::Derivation;
use shared::model::engine::Engine;
use shared::model::state::StageState;
use shared::units::{Digest, Round, StageId};
use shared::wire::merge::{Level, Shape};

use pipeline::{ADAPTED, LEARNED, Pipeline, SUBSPACE, counting, run_config};

/// Pipelines of one seat each, and the states that they begin the next round from.
struct Merging {
    run: RunConfig,
    pipelines: Vec<Pipeline>,
    /// Each pipeline's, stage by stage; none before the first round.
    starts: Vec<Vec<Snapshot>>,
    /// What packing lost, likewise; empty for nothing.
    residuals: Vec<Vec<Bytes>>,
    /// Steps of all pipelines so far.
    steps_done: u32,
}

impl Merging {
    fn new(run: &RunConfig, pipelines: usize) -> Self {
        Self {
            run: run.clone(),
            pipelines: (0..pipelines)
                .map(|_| Pipeline::new(run, &[], None))
                .collect(),
            starts: vec![Vec::new(); pipelines],
            residuals: vec![vec![Bytes::new(); run.model.stages]; pipelines],
            steps_done: 0,
        }
    }

    fn shape(&self, stage: usize, own: usize, steps: &[u32]) -> Shape {
        let batch = u64::from(self.run.training.batch);
        Shape {
            stage: StageId(u16::try_from(stage).expect("few")),
            values: self.run.model.parameter_count_of(stage) as u64,
            format: self.run.merge.format,
            samples: steps.iter().map(|steps| u64::from(*steps) * batch).sum(),
            levels: vec![Level {
                weights: steps
                    .iter()
                    .map(|steps| u64::from(*steps) * batch)
                    .collect(),
                shares: vec![3, 1],
                own: u16::try_from(own).expect("few"),
            }],
        }
    }

    /// A round in which each pipeline trains so many steps, and their merge; the losses of all steps.
    fn round(&mut self, round: u32, steps: &[u32]) -> Vec<f64> {
        let done = self.pipelines[0].samples_done;
        let mut losses = Vec::new();
        for (pipeline, steps) in self.pipelines.iter_mut().zip(steps) {
            for _ in 0..*steps {
                losses.push(pipeline.train(&counting(&self.run, self.steps_done)).loss);
                self.steps_done += 1;
            }
        }
        let ends: Vec<Vec<Snapshot>> = self.pipelines.iter_mut().map(Pipeline::snapshot).collect();
        let stages = 0..self.run.model.stages;
        let merged: Vec<Vec<Snapshot>> = stages
            .map(|stage| self.merge(Round(round), stage, &ends, steps))
            .collect();
        for (own, pipeline) in self.pipelines.iter_mut().enumerate() {
            self.starts[own] = merged
                .iter()
                .map(|replicas| replicas[own].clone())
                .collect();
            let agreed: Vec<Digest> = merged.iter().map(|replicas| replicas[0].agreed).collect();
            assert_eq!(pipeline.take(Some(&self.starts[own])), agreed);
            pipeline.next_round();
            pipeline.samples_done = done + losses.len() as u64 * u64::from(self.run.training.batch);
        }
        losses
    }

    /// The merge of one stage; each member's result.
    fn merge(
        &mut self,
        round: Round,
        stage: usize,
        ends: &[Vec<Snapshot>],
        steps: &[u32],
    ) -> Vec<Snapshot> {
        let members = 0..self.pipelines.len();
        let mut said = Vec::new();
        for own in members.clone() {
            let job = Job::Contribute {
                shape: self.shape(stage, own, steps),
                change: Change::Round {
                    start: self.start(own, stage),
                    end: ends[own][stage].blob.clone(),
                },
                residual: self.residuals[own][stage].clone(),
            };
            match self.run_job(own, job) {
                Done::Contributed {
                    parts, residual, ..
                } => said.push((parts, residual)),
                other => panic!("{other:?}"),
            }
        }
        let mut averages = Vec::new();
        for own in members.clone() {
            let job = Job::Average {
                shape: self.shape(stage, own, steps),
                level: 0,
                parts: said.iter().map(|(parts, _)| parts[own].clone()).collect(),
                residual: said[own].1.clone(),
            };
            match self.run_job(own, job) {
                Done::Averaged {
                    mut parts,
                    residual,
                    ..
                } => {
                    averages.append(&mut parts);
                    self.residuals[own][stage] = residual;
                }
                other => panic!("{other:?}"),
            }
        }
        let results: Vec<Snapshot> = members
            .map(|own| {
                let job = Job::OuterStep {
                    shape: self.shape(stage, own, steps),
                    round,
                    start: self.start(own, stage),
                    end: ends[own][stage].blob.clone(),
                    parts: averages.clone(),
                };
                match self.run_job(own, job) {
                    Done::Merged { snapshot, .. } => snapshot,
                    other => panic!("{other:?}"),
                }
            })
            .collect();
        assert!(
            results
                .iter()
                .all(|result| result.agreed == results[0].agreed)
        );
        results
    }

    fn start(&self, own: usize, stage: usize) -> Source {
        let kept = self.starts[own].get(stage);
        kept.map_or(Source::Seed, |kept| Source::Blob(kept.blob.clone()))
    }

    fn run_job(&mut self, own: usize, job: Job) -> Done {
        block_on(self.pipelines[own].seats[0].1.run(job))
    }
}

/// The mean loss of as many steps as both pipelines train in a round.
fn mean_of_round(losses: &[f64], round: usize) -> f64 {
    let steps = &losses[8 * round..8 * (round + 1)];
    steps.iter().sum::<f64>() / steps.len() as f64
}

#[test]
fn two_pipelines_that_merge_agree_each_round_and_learn_what_one_does() {
    const ROUNDS: u32 = 12;
    let mut run = run_config(SUBSPACE, NumberFormat::F32, 3);
    run.schedule.pipelines_max = 2;
    let mut alone = Pipeline::new(&run, &[], None);
    let alone: Vec<f64> = (0..8 * ROUNDS)
        .map(|step| alone.train(&counting(&run, step)).loss)
        .collect();
    for format in [NumberFormat::F32, NumberFormat::Int8] {
        run.merge.format = format;
        let mut merging = Merging::new(&run, 2);
        // The second one is slower.
        let losses: Vec<f64> = (1..=ROUNDS)
            .flat_map(|round| merging.round(round, &[5, 3]))
            .collect();
        assert_eq!(losses.len(), alone.len());
        // As much text as one pipeline alone has seen by then.
        let both = |round| (mean_of_round(&alone, round), mean_of_round(&losses, round));
        let curve: Vec<(f64, f64)> = (0..12).map(both).collect();
        let (_, first) = curve[0];
        assert!(first > 2.0, "{format:?}: {curve:.4?}");
        for (alone, together) in &curve[6..] {
            assert!(*together < 0.02, "{format:?}: {curve:.4?}");
            assert!(together <= alone, "{format:?}: {curve:.4?}");
        }
    }
}

/// Two pipelines after a round with a merge and the training of another one.
fn in_their_second_round() -> Merging {
    let mut run = run_config(SUBSPACE, NumberFormat::Int8, 5);
    run.schedule.pipelines_max = 2;
    let mut merging = Merging::new(&run, 2);
    merging.round(1, &[2, 2]);
    for pipeline in &mut merging.pipelines {
        pipeline.train(&counting(&run, 9));
    }
    merging
}

#[test]
fn a_merge_leaves_the_seat_alone_and_may_be_tried_again() {
    let mut merging = in_their_second_round();
    let ends: Vec<Vec<Snapshot>> = merging
        .pipelines
        .iter_mut()
        .map(Pipeline::snapshot)
        .collect();
    let before = merging.residuals.clone();
    let first = merging.merge(Round(2), 1, &ends, &[1, 1]);
    assert_ne!(merging.residuals, before);
    // The attempt failed: its residuals are not taken over.
    merging.residuals = before;
    assert_eq!(merging.merge(Round(2), 1, &ends, &[1, 1]), first);
    let after: Vec<Vec<Snapshot>> = merging
        .pipelines
        .iter_mut()
        .map(Pipeline::snapshot)
        .collect();
    assert_eq!(after, ends);
}

#[test]
fn merged_bases_are_equal_and_have_orthonormal_columns() {
    let mut run = run_config(LEARNED, NumberFormat::Int8, 5);
    run.schedule.pipelines_max = 2;
    let mut merging = Merging::new(&run, 2);
    for round in 1..4 {
        merging.round(round, &[4, 3]);
    }
    let basis = |of: usize, stage: usize| {
        let blob = &merging.starts[of][stage].blob;
        let state = StageState::from_blob(&run.model, stage, blob).expect("our own");
        let parameters = run.model.parameters_of(stage);
        let position = parameters.iter().position(|it| it.basis_rank().is_some());
        position.map(|position| state.weights[position].clone())
    };
    let derivation = Derivation::new(run.model.clone(), run.seed);
    for stage in 0..3 {
        let ours = basis(0, stage).expect("it learns the basis of its border");
        assert_eq!(Some(&ours), basis(1, stage).as_ref());
        assert_ne!(Some(&ours), derivation.border_basis(stage).as_ref());
        for (a, b) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))) {
            let rows = ours.chunks_exact(4);
            let dot: f64 = rows.map(|row| f64::from(row[a]) * f64::from(row[b])).sum();
            let expected = f64::from(u8::from(a == b));
            assert!((dot - expected).abs() < 1e-6, "stage {stage}: {dot}");
        }
    }
    assert_eq!(basis(0, 3), None, "behind the last stage is no border");
}

#[test]
fn pipelines_turn_alike_and_average_where_to_turn_next() {
    for format in [NumberFormat::Int8, NumberFormat::F32] {
        let mut run = run_config(ADAPTED, format, 5);
        run.schedule.pipelines_max = 2;
        let mut merging = Merging::new(&run, 2);
        let mut losses = Vec::new();
        let mut seen = Vec::new();
        for round in 1..9 {
            // That each stage's replicas agree to the bit is looked at in here.
            losses.extend(merging.round(round, &[4, 3]));
            let lists = |stage: usize, name: &str| {
                let blob = &merging.starts[0][stage].blob;
                let state = StageState::from_blob(&run.model, stage, blob).expect("our own");
                let parameters = run.model.parameters_of(stage);
                let position = parameters.iter().position(|it| it.name == name);
                let position = position.expect("the stage has it");
                let outer = state.outer.expect("a merge leaves momentum");
                (state.weights[position].clone(), outer[position].clone())
            };
            let (own, momentum) = lists(0, "basis");
            for stage in 1..4 {
                assert_eq!(lists(stage, "basis"), (own.clone(), momentum.clone()));
            }
            let (next, next_momentum) = lists(0, "basis.next");
            assert!(momentum.iter().chain(&next_momentum).all(|it| *it == 0.0));
            for (a, b) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))) {
                let rows = next.chunks_exact(4);
                let dot: f64 = rows.map(|row| f64::from(row[a]) * f64::from(row[b])).sum();
                assert!((dot - f64::from(u8::from(a == b))).abs() < 1e-6, "{dot}");
            }
            // What was chosen in a round is what the next one is in.
            if let Some(chosen) = seen.last() {
                assert_eq!(&own, chosen);
            }
            assert_ne!(next, own);
            seen.push(next);
        }
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.2 * first, "{format:?}: {losses:.3?}");
    }
}

#[test]
fn replicas_agree_on_weights_and_outer_momentum_and_each_carries_its_own_moments() {
    let merging = in_their_second_round();
    let [ours, theirs] = &merging.starts[..] else {
        panic!("two pipelines");
    };
    for (stage, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert_eq!(ours.agreed, theirs.agreed);
        assert_ne!(ours.blob, theirs.blob);
        let read = |blob| StageState::from_blob(&merging.run.model, stage, blob).expect("own blob");
        let (ours, theirs) = (read(&ours.blob), read(&theirs.blob));
        assert!(ours.outer.is_some());
        assert_eq!(
            (ours.weights, ours.outer, ours.updates),
            (theirs.weights, theirs.outer, theirs.updates)
        );
        assert_ne!(ours.first, theirs.first);
    }
}

#[test]
fn the_outer_momentum_goes_with_the_round_s_beginning_and_training_alone_ends_it() {
    let mut merging = in_their_second_round();
    let ends = merging.pipelines[0].snapshot();
    for (end, start) in ends.iter().zip(&merging.starts[0]) {
        let stage = usize::from(end.stage.0);
        let read = |blob| StageState::from_blob(&merging.run.model, stage, blob).expect("own blob");
        assert_eq!(read(&end.blob).outer, None);
        let mut begun = read(&start.blob);
        assert_eq!(begun.agreed_digest(MergeKind::Outer), start.agreed);
        begun.outer = None;
        assert_ne!(begun.agreed_digest(MergeKind::Outer), start.agreed);
    }
}

#[test]
fn the_outer_step_goes_on_from_the_momentum_that_the_round_began_with() {
    let mut merging = in_their_second_round();
    let ends: Vec<Vec<Snapshot>> = merging
        .pipelines
        .iter_mut()
        .map(Pipeline::snapshot)
        .collect();
    let result = merging.merge(Round(2), 1, &ends, &[1, 1]);
    let read = |snapshot: &Snapshot| {
        let state = StageState::from_blob(&merging.run.model, 1, &snapshot.blob);
        let state = state.expect("own blob");
        (
            state.weights.concat(),
            state.outer.expect("it has one").concat(),
        )
    };
    let ((weights, momentum), (start, before)) = (read(&result[0]), read(&merging.starts[0][1]));
    assert!(before.iter().any(|momentum| *momentum != 0.0));
    for at in 0..weights.len() {
        // What the average must have been, and what it must have done.
        let average = momentum[at] - 0.9 * before[at];
        let moved = 0.7 * (average + 0.9 * momentum[at]);
        let error = (start[at] - moved - weights[at]).abs();
        assert!(error < 1e-6, "value {at} is off by {error}");
    }
}

fn check_refusal(done: Done, expected: Expect) {
    match done {
        Done::Refused { reason } => expected.assert_eq(&reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_does_not_fit_the_stage_is_refused_in_words() {
    let run = run_config(SUBSPACE, NumberFormat::Int8, 5);
    let mut engine = Engine::new(run.clone(), Device::flex());
    let end = StageState::initial(&shared::derive::Derivation::new(run.model.clone(), 1), 1);
    let end = Bytes::from(end.to_blob(&run.model, 1));
    let merging = Merging::new(&run, 2);
    let shape = merging.shape(1, 0, &[1, 1]);
    let contribute = |shape: &Shape, start: &Source, end: &Bytes| Job::Contribute {
        shape: shape.clone(),
        change: Change::Round {
            start: start.clone(),
            end: end.clone(),
        },
        residual: Bytes::new(),
    };
    let mut run_job = |job| block_on(engine.run(job));
    // No seat is needed.
    let done = run_job(contribute(&shape, &Source::Seed, &end));
    let Done::Contributed { parts, .. } = done else {
        panic!("{done:?}");
    };
    let cut = end.slice(..end.len() - 1);
    check_refusal(
        run_job(contribute(&shape, &Source::Seed, &cut)),
        expect![
            "merge of stage 1: at the round's end: not a safetensors file: incomplete metadata, file not fully covered"
        ],
    );
    check_refusal(
        run_job(contribute(&shape, &Source::Blob(Bytes::new()), &end)),
        expect!["merge of stage 1: at the round's start: not a safetensors file: header too small"],
    );
    let another = Shape {
        stage: StageId(2),
        ..shape.clone()
    };
    check_refusal(
        run_job(contribute(&another, &Source::Seed, &end)),
        expect!["merge of stage 2: at the round's end: no tensor block.2.attention_out"],
    );
    let nowhere = Shape {
        stage: StageId(4),
        ..shape.clone()
    };
    check_refusal(
        run_job(contribute(&nowhere, &Source::Seed, &end)),
        expect!["merge of stage 4: the model has 4 stages"],
    );
    let smaller = Shape {
        values: shape.values - 1,
        ..shape.clone()
    };
    check_refusal(
        run_job(Job::Average {
            shape: smaller,
            level: 0,
            parts: vec![parts[0].clone(); 2],
            residual: Bytes::new(),
        }),
        expect!["merge of stage 1: the stage has 1728 values, the merge is about 1727"],
    );
    check_refusal(
        run_job(Job::OuterStep {
            shape,
            round: Round(1),
            start: Source::Seed,
            end,
            parts: vec![parts[0].clone(), parts[0].clone()],
        }),
        expect!["merge of stage 1: the part of member 1 has 1290 bytes, should have 516"],
    );
}
