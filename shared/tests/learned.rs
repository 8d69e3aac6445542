//! Bases that are learned: their gradient is the slope of the loss, and they carry more than those of the seed.

#![cfg(feature = "compute")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "any answer but the expected one fails the test"
)]

#[allow(dead_code, reason = "each test uses what it needs of it")]
mod pipeline;

use pollster::block_on;
use shared::compute::{Compute, Done, Input, Job, Snapshot};
use shared::config::model::NumberFormat;
use shared::config::run::{MergeKind, RunConfig};
use shared::model::state::StageState;
use shared::wire::frame::Mode;

use pipeline::{LEARNED, PROJECTOR, Pipeline, counting, run_config};

/// How far the slope may be from the gradient's length: a quotient of differences in f32.
const SLOPE_TOLERANCE: f64 = 0.02;
/// Length of the step to either side.
const STEP: f32 = 0.02;

/// The mean loss on `tokens` from these states.
fn loss(run: &RunConfig, states: &[Snapshot], tokens: &[u32]) -> f64 {
    let mut pipeline = Pipeline::new(run, &[1, 2], Some(states));
    let slot = pipeline.slot(0);
    let sum = pipeline.forward(slot, Mode::Evaluate, tokens);
    sum.expect("the last seat's loss") / run.step_tokens() as f64
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to the nearest f32 is the point"
)]
fn narrow(value: f64) -> f32 {
    value as f32
}

#[test]
fn the_gradient_of_a_learned_basis_is_the_slope_of_the_loss() {
    let mut run = run_config(LEARNED, NumberFormat::F32, 3);
    // Such runs tell the gradient of their last step.
    run.merge.kind = MergeKind::Gradient;
    run.schedule.pipelines_max = 2;
    run.schedule.round_steps = 1;
    // As evaluation takes it: one microbatch.
    run.training.microbatches = 1;
    let mut pipeline = Pipeline::new(&run, &[1, 2], None);
    for step in 0..12 {
        pipeline.train(&counting(&run, step));
    }
    let states = pipeline.snapshot();
    let tokens = counting(&run, 12);
    let mut again = Pipeline::new(&run, &[1, 2], Some(&states));
    again.train(&tokens);
    // Borders between seats and, the last one, inside a seat.
    for (stage, ended) in again.snapshot().iter().enumerate().take(3) {
        let parameters = run.model.parameters_of(stage);
        let position = parameters.iter().position(|it| it.basis_rank().is_some());
        let position = position.expect("it learns the basis of its border");
        let before: usize = parameters[..position].iter().map(|it| it.values()).sum();
        let (words, _) = ended.gradient.as_chunks::<4>();
        let gradient = words[before..before + parameters[position].values()].iter();
        let gradient: Vec<f32> = gradient.map(|word| f32::from_le_bytes(*word)).collect();
        let length = gradient
            .iter()
            .map(|it| f64::from(*it).powi(2))
            .sum::<f64>()
            .sqrt();
        assert!(length > 1e-3, "border {stage}: {length}");
        let [up, down] = [STEP, -STEP].map(|step| {
            let mut moved = states.clone();
            let blob = &states[stage].blob;
            let mut state = StageState::from_blob(&run.model, stage, blob).expect("our own");
            for (value, gradient) in state.weights[position].iter_mut().zip(&gradient) {
                *value += step * gradient / narrow(length);
            }
            moved[stage].blob = state.to_blob(&run.model, stage).into();
            loss(&run, &moved, &tokens)
        });
        let slope = (up - down) / f64::from(2.0 * STEP);
        assert!(
            (slope - length).abs() <= SLOPE_TOLERANCE * length,
            "border {stage}: the loss rises by {slope}, the gradient says {length}"
        );
    }
}

#[test]
fn bases_that_are_learned_carry_more_than_those_of_the_seed() {
    let train = |codec| {
        let run = run_config(codec, NumberFormat::F32, 3);
        let mut pipeline = Pipeline::new(&run, &[2], None);
        let losses = (0..60).map(|step| pipeline.train(&counting(&run, step)).loss);
        losses.sum::<f64>()
    };
    let (fixed, learned) = (train(PROJECTOR), train(LEARNED));
    assert!(learned < fixed, "learned {learned}, fixed {fixed}");
}

/// A run whose bases have left their seed, its states, and what comes next.
fn after_six_steps() -> (RunConfig, Vec<Snapshot>, Vec<u32>) {
    let run = run_config(LEARNED, NumberFormat::F32, 3);
    let mut trained = Pipeline::new(&run, &[], None);
    for step in 0..6 {
        trained.train(&counting(&run, step));
    }
    let states = trained.snapshot();
    let tokens = counting(&run, 6);
    (run, states, tokens)
}

#[test]
fn each_microbatch_of_an_evaluation_bears_the_basis() {
    let (run, states, tokens) = after_six_steps();
    // The second one is there first, at seats that have not trained.
    let evaluate = |cuts: &[u16]| {
        let mut pipeline = Pipeline::new(&run, cuts, Some(&states));
        let slot = pipeline.slot(1);
        pipeline.forward(slot, Mode::Evaluate, &tokens)
    };
    assert_eq!(evaluate(&[1, 2]), evaluate(&[]));
}

#[test]
fn the_basis_of_an_evaluation_that_comes_late_does_not_stay() {
    let (run, states, tokens) = after_six_steps();
    let forward = |pipeline: &mut Pipeline, seat: usize, of: (u16, Mode), boundary| {
        let (slot, mode) = (pipeline.slot(of.0), of.1);
        let input = Input {
            tokens: tokens.clone(),
            boundary,
            first_sample: 0,
        };
        let job = Job::Forward { slot, mode, input };
        match block_on(pipeline.seats[seat].1.run(job)) {
            Done::Forward { boundary, .. } => boundary,
            other => panic!("{other:?}"),
        }
    };
    let mut of_seed = Pipeline::new(&run, &[1, 2], None);
    let late = forward(&mut of_seed, 0, (0, Mode::Evaluate), None);
    let second = |is_late: bool| {
        let mut pipeline = Pipeline::new(&run, &[1, 2], Some(&states));
        let came = [0, 1].map(|at| forward(&mut pipeline, 0, (at, Mode::Train), None));
        let [first, second] = came;
        forward(&mut pipeline, 1, (0, Mode::Train), first);
        if is_late {
            forward(&mut pipeline, 1, (1, Mode::Evaluate), late.clone());
        }
        forward(&mut pipeline, 1, (1, Mode::Train), second)
    };
    assert_eq!(second(true), second(false));
}
