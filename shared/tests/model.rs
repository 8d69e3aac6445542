//! Properties of stages, seats and engines on the CPU: cut = whole, replay, refusal, recovery.

#![cfg(feature = "compute")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "any answer but the expected one fails the test"
)]

#[allow(dead_code, reason = "each test uses what it needs of it")]
mod pipeline;

use burn::tensor::Device;
use bytes::Bytes;
use pollster::block_on;
use proptest::prelude::*;
use shared::compute::{Compute, Done, Input, Job, StageState as Source};
use shared::config::model::{Codec, NumberFormat};
use shared::config::run::RunConfig;
use shared::driver::{Clock, measure};
use shared::model::engine::Engine;
use shared::units::{StageRange, Time};
use shared::wire::frame::Mode;
use shared::wire::number::payload_bytes;

use pipeline::{CODECS, FORMATS, LEARNED, Pipeline, SUBSPACE, counting, run_config};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn cut_anywhere_trains_the_same_bits_as_not_cut(
        codec in proptest::sample::select(CODECS.to_vec()), seed in any::<u64>(), cuts in proptest::sample::subsequence(vec![1_u16, 2, 3], 0..=3),
    ) {
        let run = run_config(codec, NumberFormat::F32, seed);
        let mut whole = Pipeline::new(&run, &[], None);
        let mut cut = Pipeline::new(&run, &cuts, None);
        for step in 0..3 {
            let tokens = counting(&run, step);
            let (a, b) = (whole.train(&tokens), cut.train(&tokens));
            prop_assert_eq!(a.loss, b.loss);
            prop_assert!((a.norm_squared - b.norm_squared).abs() <= 1e-9 * a.norm_squared);
        }
        let digests = |mut pipeline: Pipeline| {
            pipeline.snapshot().into_iter().map(|stage| (stage.stage, stage.agreed)).collect::<Vec<_>>()
        };
        prop_assert_eq!(digests(whole), digests(cut));
    }
}

#[test]
fn every_border_byte_is_in_the_formula() {
    for format in FORMATS {
        let run = run_config(SUBSPACE, format, 1);
        let mut pipeline = Pipeline::new(&run, &[1, 2, 3], None);
        pipeline.train(&counting(&run, 0));
        let rows = usize::try_from(run.step_tokens()).expect("small");
        // Three borders, both ways.
        assert_eq!(
            pipeline.border_bytes,
            6 * payload_bytes(format, rows, 4),
            "{format:?}"
        );
    }
}

#[test]
fn a_learned_basis_goes_on_once_a_step_and_its_gradient_comes_back_once() {
    let format = NumberFormat::Int8;
    let run = run_config(LEARNED, format, 1);
    let mut pipeline = Pipeline::new(&run, &[1, 2, 3], None);
    pipeline.train(&counting(&run, 0));
    let rows = usize::try_from(run.step_tokens()).expect("small");
    let basis_bytes = 4 * 16 * 4;
    assert_eq!(
        pipeline.border_bytes,
        6 * (payload_bytes(format, rows, 4) + basis_bytes)
    );
}

struct StoppedClock;

impl Clock for StoppedClock {
    fn now(&self) -> Time {
        Time::from_micros(1)
    }

    async fn sleep_until(&self, _: Time) {}
}

#[test]
fn a_device_is_measured_whatever_crosses_the_borders() {
    let adapted = [1, 2].map(|adapt_rounds| Codec::Subspace {
        rank: 4,
        adapt_rounds,
    });
    for codec in CODECS.into_iter().chain(adapted) {
        for (format, microbatches) in FORMATS.into_iter().zip([1, 2, 4, 2]) {
            let mut run = run_config(codec, format, 3);
            run.training.microbatches = microbatches;
            let mut engine = Engine::new(run.clone(), Device::flex());
            let measured = block_on(measure::speed(&mut engine, &StoppedClock, &run));
            assert!(measured.is_ok(), "{codec:?} {format:?}: {measured:?}");
        }
    }
}

#[test]
fn the_loss_falls_whatever_crosses_the_borders() {
    for codec in CODECS {
        for format in FORMATS {
            let run = run_config(codec, format, 3);
            let mut pipeline = Pipeline::new(&run, &[1, 3], None);
            let first = pipeline.train(&counting(&run, 0)).loss;
            let last = (1..80)
                .map(|step| pipeline.train(&counting(&run, step)).loss)
                .last();
            let last = last.expect("eighty steps");
            assert!(
                (first - 11_f64.ln()).abs() < 1e-3,
                "{codec:?} {format:?} began at {first}"
            );
            assert!(
                last < 0.5,
                "{codec:?} {format:?} came from {first} to {last} only"
            );
            let tokens = counting(&run, 0);
            let slot = pipeline.slot(0);
            let sum = pipeline
                .forward(slot, Mode::Evaluate, &tokens)
                .expect("the last seat's loss");
            assert!(
                sum / run.step_tokens() as f64 <= 0.5,
                "{codec:?} {format:?} evaluates to {sum}"
            );
        }
    }
}

#[test]
fn a_restored_snapshot_goes_on_with_the_same_bits() {
    let run = run_config(SUBSPACE, NumberFormat::Int8, 5);
    let mut original = Pipeline::new(&run, &[2], None);
    for step in 0..3 {
        original.train(&counting(&run, step));
    }
    let snapshots = original.snapshot();
    let mut restored = Pipeline::new(&run, &[2], Some(&snapshots));
    assert_eq!(restored.snapshot(), snapshots);
    restored.step = original.step;
    restored.samples_done = original.samples_done;
    for step in 3..6 {
        let tokens = counting(&run, step);
        assert_eq!(original.train(&tokens), restored.train(&tokens));
    }
    assert_eq!(original.snapshot(), restored.snapshot());
}

#[test]
fn taking_the_seat_again_forgets_everything_since() {
    let run = run_config(Codec::Dense, NumberFormat::F32, 5);
    let mut pipeline = Pipeline::new(&run, &[], None);
    let untouched = pipeline.snapshot();
    let slot = pipeline.slot(0);
    pipeline.forward(slot, Mode::Train, &counting(&run, 0));
    let stages = StageRange { first: 0, end: 4 };
    let job = Job::Seat {
        stages,
        states: vec![Source::Seed; 4],
        keeps_texts: false,
    };
    let seated = block_on(pipeline.seats[0].1.run(job));
    let agreed = untouched.iter().map(|stage| stage.agreed).collect();
    assert_eq!(seated, Done::Seated { agreed });
    let job = Job::Backward {
        slot,
        gradient: None,
        step_tokens: None,
    };
    assert!(matches!(
        block_on(pipeline.seats[0].1.run(job)),
        Done::Refused { .. }
    ));
    assert_eq!(pipeline.snapshot(), untouched);
}

#[test]
fn generation_continues_what_was_learnt() {
    let run = run_config(SUBSPACE, NumberFormat::F32, 3);
    let mut pipeline = Pipeline::new(&run, &[], None);
    for step in 0..80 {
        pipeline.train(&counting(&run, step));
    }
    let seat = pipeline.seats[0].1.seat().expect("it was taken");
    let mut tokens = vec![3, 4];
    // Past the context, too: the window slides.
    while tokens.len() < 14 {
        let logits = block_on(seat.next_token_logits(&tokens)).expect("logits");
        let best = (0..11_u32).max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize]));
        tokens.push(best.expect("eleven tokens"));
    }
    assert_eq!(tokens, [3, 4, 5, 6, 7, 8, 9, 10, 0, 1, 2, 3, 4, 5]);
}

/// The answer of stage 1 of four to an input of that border.
fn answer(run: &RunConfig, boundary: Option<Vec<u8>>, tokens: Vec<u32>) -> Done {
    let mut engine = Engine::new(run.clone(), Device::flex());
    let stages = StageRange { first: 1, end: 2 };
    engine
        .take_seat(stages, &[Source::Seed], false)
        .expect("stage 1 of four");
    let slot = Pipeline::new(run, &[], None).slot(0);
    let input = Input {
        tokens,
        boundary: boundary.map(Bytes::from),
        first_sample: 0,
    };
    block_on(engine.run(Job::Forward {
        slot,
        mode: Mode::Train,
        input,
    }))
}

#[test]
fn inputs_that_do_not_fit_are_refused_in_words() {
    let run = run_config(SUBSPACE, NumberFormat::Int8, 1);
    let tokens = counting(&run, 0);
    let border = vec![0_u8; payload_bytes(NumberFormat::Int8, 32, 4)];
    assert!(matches!(
        answer(&run, Some(border.clone()), tokens.clone()),
        Done::Forward { .. }
    ));
    let reason = |done: Done| match done {
        Done::Refused { reason } => reason,
        other => panic!("{other:?}"),
    };
    let mut infinite = border.clone();
    infinite[..2].copy_from_slice(&[0x80, 0x7f]);
    let mut large = tokens.clone();
    large[4] = 11;
    let cases = [
        (
            Some(border[1..].to_vec()),
            tokens.clone(),
            "a border of 32 tokens takes 192 bytes, got 191",
        ),
        (None, tokens.clone(), "a seat after the head reads a border"),
        (
            Some(infinite),
            tokens.clone(),
            "scale of token 0 is not a finite positive number",
        ),
        (Some(border.clone()), large, "token 11 is not below 11"),
        (
            Some(border.clone()),
            tokens[1..].to_vec(),
            "35 tokens are no sequences of 8 + 1",
        ),
        (
            Some(border),
            Vec::new(),
            "0 tokens are no sequences of 8 + 1",
        ),
    ];
    for (boundary, tokens, expected) in cases {
        assert_eq!(reason(answer(&run, boundary, tokens)), expected);
    }
}

#[test]
fn whoever_receives_nan_is_not_to_blame_for_it() {
    let run = run_config(SUBSPACE, NumberFormat::F32, 1);
    let mut border = vec![0_u8; payload_bytes(NumberFormat::F32, 32, 4)];
    border[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let done = answer(&run, Some(border), counting(&run, 0));
    assert!(
        matches!(done, Done::NonFinite { own: false, .. }),
        "{done:?}"
    );
}

#[test]
fn a_stage_that_makes_nan_from_finite_input_is_named() {
    use shared::model::state::StageState;
    let run = run_config(Codec::Dense, NumberFormat::F32, 1);
    let mut pipeline = Pipeline::new(&run, &[], None);
    let mut snapshots = pipeline.snapshot();
    let mut state = StageState::from_blob(&run.model, 2, &snapshots[2].blob).expect("own blob");
    // Finite weights whose products overflow; attention's output weights begin at zero.
    state
        .weights
        .iter_mut()
        .for_each(|values| values.fill(3e38));
    snapshots[2].blob = state.to_blob(&run.model, 2).into();
    for cuts in [&[][..], &[2], &[1, 2, 3]] {
        let mut poisoned = Pipeline::new(&run, cuts, Some(&snapshots));
        let slot = poisoned.slot(0);
        let mut boundary = None;
        let mut blamed = None;
        for (_, engine) in &mut poisoned.seats {
            let input = Input {
                tokens: counting(&run, 0),
                boundary,
                first_sample: 0,
            };
            match block_on(engine.run(Job::Forward {
                slot,
                mode: Mode::Evaluate,
                input,
            })) {
                Done::Forward { boundary: out, .. } => boundary = out,
                Done::NonFinite { stage, own, .. } => {
                    blamed = Some((stage.0, own));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(blamed, Some((2, true)), "{cuts:?}");
    }
}
