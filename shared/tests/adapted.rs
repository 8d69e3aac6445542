//! The subspace where it is adapted: it turns to where the loss depends on the stream, everywhere alike, and takes along what
//! was trained.

#![cfg(feature = "compute")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "any answer but the expected one fails the test"
)]

#[allow(dead_code, reason = "each test uses what it needs of it")]
mod pipeline;

use pollster::block_on;
use shared::compute::{Compute, Done, Input, Job, Snapshot};
use shared::config::model::{Codec, NumberFormat};
use shared::config::run::RunConfig;
use shared::derive::Derivation;
use shared::model::state::StageState;
use shared::units::Round;
use shared::wire::frame::Mode;

use pipeline::{ADAPTED, Pipeline, SUBSPACE, counting, run_config};

const WIDTH: usize = 16;
const RANK: usize = 4;
/// Steps of a round here.
const ROUND: u32 = 5;

/// Rounds of training; each step's loss.
fn train(pipeline: &mut Pipeline, rounds: std::ops::Range<u32>) -> Vec<f64> {
    let run = pipeline.run.clone();
    let mut losses = Vec::new();
    for round in rounds {
        for step in 0..ROUND {
            losses.push(pipeline.train(&counting(&run, round * ROUND + step)).loss);
        }
        pipeline.next_round();
    }
    losses
}

fn read(run: &RunConfig, snapshot: &Snapshot) -> StageState {
    let stage = usize::from(snapshot.stage.0);
    StageState::from_blob(&run.model, stage, &snapshot.blob).expect("our own")
}

/// A parameter's place among those of its stage.
fn position(run: &RunConfig, stage: usize, name: &str) -> usize {
    let parameters = run.model.parameters_of(stage);
    let position = parameters.iter().position(|it| it.name == name);
    position.expect("the stage has it")
}

fn basis(run: &RunConfig, states: &[Snapshot], stage: usize, name: &str) -> Vec<f32> {
    read(run, &states[stage]).weights[position(run, stage, name)].clone()
}

/// How far `U^T V` is from orthogonal, and from one.
fn apart(u: &[f32], v: &[f32]) -> (f64, f64) {
    let product = |a: usize, b: usize| -> f64 {
        let rows = u.chunks_exact(RANK).zip(v.chunks_exact(RANK));
        rows.map(|(u, v)| f64::from(u[a]) * f64::from(v[b])).sum()
    };
    let mut lost = 0.0_f64;
    let mut moved = 0.0_f64;
    for a in 0..RANK {
        let kept: f64 = (0..RANK).map(|b| product(b, a).powi(2)).sum();
        lost = lost.max(1.0 - kept);
        for b in 0..RANK {
            let one = f64::from(u8::from(a == b));
            moved = moved.max((product(a, b) - one).abs());
        }
    }
    (lost, moved)
}

#[test]
fn the_subspace_turns_when_a_round_begins_and_everywhere_alike() {
    let run = run_config(ADAPTED, NumberFormat::Int8, 3);
    let seed = Derivation::new(run.model.clone(), run.seed).basis();
    let seed = seed.expect("a subspace");
    let mut pipeline = Pipeline::new(&run, &[1, 3], None);
    train(&mut pipeline, 0..1);
    let first = pipeline.snapshot();
    for stage in 0..4 {
        assert_eq!(basis(&run, &first, stage, "basis"), seed, "stage {stage}");
    }
    let next = basis(&run, &first, 0, "basis.next");
    assert!(apart(&next, &next).1 < 1e-6, "orthonormal columns");
    assert!(apart(&seed, &next).0 > 1e-3, "{:?}", apart(&seed, &next));
    pipeline.train(&counting(&run, 5));
    let second = pipeline.snapshot();
    for stage in 0..4 {
        assert_eq!(basis(&run, &second, stage, "basis"), next, "stage {stage}");
    }
}

#[test]
fn the_same_numbers_come_wherever_the_model_is_cut() {
    let run = run_config(ADAPTED, NumberFormat::F32, 3);
    let mut whole = Pipeline::new(&run, &[], None);
    let expected = (train(&mut whole, 0..3), whole.snapshot());
    for cuts in [&[1][..], &[1, 2, 3], &[2]] {
        let mut cut = Pipeline::new(&run, cuts, None);
        let found = (train(&mut cut, 0..3), cut.snapshot());
        assert_eq!(found.0, expected.0, "{cuts:?}");
        assert!(found.1 == expected.1, "{cuts:?}");
    }
}

#[test]
fn a_round_that_is_begun_again_from_its_state_turns_again() {
    let run = run_config(ADAPTED, NumberFormat::Int8, 3);
    let mut trained = Pipeline::new(&run, &[2], None);
    train(&mut trained, 0..2);
    let states = trained.snapshot();
    let on = trained.train(&counting(&run, 10));
    let mut again = Pipeline::new(&run, &[1, 2], Some(&states));
    again.samples_done = trained.samples_done - u64::from(run.training.batch);
    again.round = 2;
    let begun = again.train(&counting(&run, 10));
    // It is cut otherwise, so int8 rounds otherwise.
    assert!((on.loss - begun.loss).abs() < 1e-2, "{on:?} {begun:?}");
    let now = basis(&run, &again.snapshot(), 3, "basis");
    assert_eq!(now, basis(&run, &states, 0, "basis.next"));
    assert_ne!(now, basis(&run, &states, 3, "basis"));
}

#[test]
fn in_another_basis_of_the_same_subspace_the_model_is_the_same_function() {
    let run = run_config(ADAPTED, NumberFormat::F32, 3);
    let mut trained = Pipeline::new(&run, &[], None);
    train(&mut trained, 0..2);
    trained.train(&counting(&run, 10));
    let mut states = trained.snapshot();
    // The columns of what it is in, turned among themselves: by an angle, two and two.
    let (sin, cos) = (0.6_f32, 0.8_f32);
    let own = basis(&run, &states, 0, "basis");
    let turned = own.chunks_exact(RANK).flat_map(|row| {
        let [a, b, c, d] = row else {
            panic!("four columns")
        };
        [
            cos * a + sin * b,
            cos * b - sin * a,
            cos * c - sin * d,
            cos * d + sin * c,
        ]
    });
    let mut head = read(&run, &states[0]);
    head.weights[position(&run, 0, "basis.next")] = turned.collect();
    states[0].blob = head.to_blob(&run.model, 0).into();
    let begin = |cuts: &[u16], next: &[Snapshot]| {
        let mut pipeline = Pipeline::new(&run, cuts, Some(next));
        pipeline.round = 3;
        // Moments go on, too: many steps apart would show it.
        let losses: Vec<f64> = (0..ROUND)
            .map(|step| pipeline.train(&counting(&run, 11 + step)).loss)
            .collect();
        (losses, pipeline.snapshot())
    };
    let mut still = states.clone();
    let mut head = read(&run, &states[0]);
    head.weights[position(&run, 0, "basis.next")] = own.clone();
    still[0].blob = head.to_blob(&run.model, 0).into();
    let (stayed, _) = begin(&[1, 2], &still);
    let (turned, ended) = begin(&[1, 2], &states);
    assert!(apart(&own, &basis(&run, &ended, 2, "basis")).1 > 0.1);
    // The first loss is of the same function; later ones are near, for AdamW's steps depend on the axes.
    let first = (stayed[0] - turned[0]).abs();
    assert!(first < 1e-5, "{stayed:?} {turned:?}");
    for (stayed, turned) in stayed.iter().zip(&turned) {
        assert!((stayed - turned).abs() < 0.1 * stayed, "{stayed} {turned}");
    }
}

#[test]
fn until_the_first_turn_nothing_else_is_computed_than_without() {
    let losses = |codec| {
        let run = run_config(codec, NumberFormat::F32, 3);
        train(&mut Pipeline::new(&run, &[1, 3], None), 0..1)
    };
    let (without, with) = (losses(SUBSPACE), losses(ADAPTED));
    for (without, with) in without.iter().zip(&with) {
        assert!((without - with).abs() < 1e-5 * without, "{without} {with}");
    }
}

#[test]
fn what_the_subspace_turns_by_is_the_energy_of_the_gradient() {
    // One microbatch, so that its border gradient is all that the step saw.
    let mut run = run_config(ADAPTED, NumberFormat::F32, 3);
    run.training.microbatches = 1;
    let mut pipeline = Pipeline::new(&run, &[3], None);
    train(&mut pipeline, 0..1);
    let (slot, tokens) = (pipeline.slot(0), counting(&run, 9));
    pipeline.forward(slot, Mode::Train, &tokens);
    let job = Job::Backward {
        slot,
        gradient: None,
        step_tokens: Some(run.step_tokens()),
    };
    let Done::Backward {
        gradient: Some(bytes),
        ..
    } = block_on(pipeline.seats[1].1.run(job))
    else {
        panic!("the last seat has a gradient for the one before");
    };
    let (words, _) = bytes.as_chunks::<4>();
    let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    let (gradient, energy) = values.split_at(values.len() - WIDTH * RANK);
    let states = pipeline.snapshot();
    let basis = basis(&run, &states, 3, "basis");
    let sum = |a: &[f32], b: &[f32], (row, column): (usize, usize)| -> f64 {
        let rows = a.chunks_exact(RANK).zip(b.chunks_exact(RANK));
        rows.map(|(a, b)| f64::from(a[row]) * f64::from(b[column]))
            .sum()
    };
    // U^T (E U) is the energy of what crosses; and most of the gradient does not.
    let mut crosses = 0.0;
    for at in (0..RANK).flat_map(|row| (0..RANK).map(move |column| (row, column))) {
        let (found, expected) = (sum(&basis, energy, at), sum(gradient, gradient, at));
        assert!(
            (found - expected).abs() < 1e-4 * expected.abs().max(1e-3),
            "{at:?}: {found} {expected}"
        );
        crosses += if at.0 == at.1 { expected } else { 0.0 };
    }
    assert!(crosses > 0.0);
    let all: f64 = energy.iter().map(|it| f64::from(*it).powi(2)).sum();
    let inside: f64 = (0..RANK)
        .flat_map(|row| (0..RANK).map(move |column| (row, column)))
        .map(|at| sum(&basis, energy, at).powi(2))
        .sum();
    assert!(all > 1.1 * inside, "it says where to turn: {all} {inside}");
}

#[test]
fn the_basis_goes_on_once_a_round_and_what_it_turns_by_comes_back_once_a_step() {
    let bytes = |codec| {
        let run = run_config(codec, NumberFormat::Int8, 1);
        let mut pipeline = Pipeline::new(&run, &[1, 2, 3], None);
        train(&mut pipeline, 0..2);
        pipeline.border_bytes
    };
    let basis_bytes = 4 * WIDTH * RANK;
    let of = |adapt_rounds| {
        bytes(Codec::Subspace {
            rank: RANK,
            adapt_rounds,
        })
    };
    let steps = ROUND as usize;
    // Three borders; two rounds begin, and the steps of both, or of the second, say what to turn by.
    assert_eq!(of(1), of(0) + 3 * (2 + 2 * steps) * basis_bytes);
    assert_eq!(of(2), of(0) + 3 * (2 + steps) * basis_bytes);
}

#[test]
fn what_is_no_basis_is_refused_and_changes_nothing() {
    let run = run_config(ADAPTED, NumberFormat::F32, 3);
    let mut pipeline = Pipeline::new(&run, &[2], None);
    let before = pipeline.snapshot();
    let slot = pipeline.slot(0);
    let boundary = vec![0_u8; run.boundary_bytes() + 4 * WIDTH * RANK];
    let input = Input {
        tokens: counting(&run, 0)[..2 * 9].to_vec(),
        boundary: Some(boundary.into()),
        first_sample: 0,
    };
    let mode = Mode::Train;
    match block_on(pipeline.seats[1].1.run(Job::Forward { slot, mode, input })) {
        Done::Refused { reason } => assert!(reason.contains("orthonormal"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(pipeline.snapshot() == before);
}

#[test]
fn a_basis_that_no_turn_leads_to_is_refused() {
    let run = run_config(ADAPTED, NumberFormat::F32, 3);
    let other = Derivation::new(run.model.clone(), run.seed + 1).basis();
    let mut head = Pipeline::new(&run, &[2], None).snapshot().swap_remove(0);
    let mut state = read(&run, &head);
    state.weights[position(&run, 0, "basis.next")] = other.expect("a subspace");
    head.blob = state.to_blob(&run.model, 0).into();
    let mut pipeline = Pipeline::new(&run, &[2], None);
    let mut states = pipeline.snapshot();
    states[0] = head;
    pipeline.take(Some(&states));
    let (slot, mode) = (pipeline.slot(0), Mode::Train);
    let tokens = counting(&run, 0)[..2 * 9].to_vec();
    let mut boundary = None;
    let mut last = None;
    for (_, engine) in &mut pipeline.seats {
        let input = Input {
            tokens: tokens.clone(),
            boundary: boundary.take(),
            first_sample: 0,
        };
        let done = block_on(engine.run(Job::Forward { slot, mode, input }));
        if let Done::Forward { boundary: out, .. } = &done {
            boundary.clone_from(out);
        }
        last = Some(done);
    }
    match last {
        Some(Done::Refused { reason }) => assert!(reason.contains("no turn"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn states_of_different_subspaces_make_no_seat() {
    let run = run_config(ADAPTED, NumberFormat::F32, 3);
    let mut pipeline = Pipeline::new(&run, &[], None);
    let first = pipeline.snapshot();
    train(&mut pipeline, 0..2);
    let mut mixed = pipeline.snapshot();
    mixed[2] = first[2].clone();
    let mut taken = Pipeline::new(&run, &[], None);
    let (stages, engine) = &mut taken.seats[0];
    let states = mixed
        .iter()
        .map(|it| shared::compute::StageState::Blob(it.blob.clone()));
    let job = Job::Seat {
        stages: *stages,
        states: states.collect(),
        keeps_texts: false,
    };
    match block_on(engine.run(job)) {
        Done::Refused { reason } => assert!(reason.contains("different subspaces"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn rounds_that_do_not_adapt_leave_it_alone() {
    let codec = Codec::Subspace {
        rank: RANK,
        adapt_rounds: 3,
    };
    let run = run_config(codec, NumberFormat::F32, 3);
    assert!(!run.model.adapts_in(Round(0)) && run.model.adapts_in(Round(2)));
    let mut pipeline = Pipeline::new(&run, &[1], None);
    let own = |pipeline: &mut Pipeline| basis(&run, &pipeline.snapshot(), 3, "basis");
    let seed = own(&mut pipeline);
    train(&mut pipeline, 0..3);
    assert_eq!(own(&mut pipeline), seed);
    train(&mut pipeline, 3..4);
    let turned = own(&mut pipeline);
    assert_ne!(turned, seed);
    train(&mut pipeline, 4..6);
    assert_eq!(own(&mut pipeline), turned);
}
