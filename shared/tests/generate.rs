//! Writing through a pipeline: a seat reads each token once, and the model may be cut anywhere.

#![cfg(feature = "compute")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "any answer but the expected one fails the test"
)]

#[allow(dead_code, reason = "each test uses what it needs of it")]
mod pipeline;

use bytes::Bytes;
use pollster::block_on;
use proptest::prelude::*;
use shared::compute::{Compute, Done, Job, Portion, StageState as Source, Written};
use shared::config::model::{Codec, NumberFormat};
use shared::units::{RequestId, StageRange};
use shared::wire::frame::Mode;
use shared::wire::generate::{Sampling, window_start};
use shared::wire::number::payload_bytes;

use pipeline::{CODECS, FORMATS, LEARNED, Pipeline, SUBSPACE, counting, run_config};

const GREEDY: Sampling = Sampling {
    temperature: 0.0,
    top_p: 1.0,
    seed: 0,
};
const DRAWN: Sampling = Sampling {
    temperature: 1.0,
    top_p: 0.95,
    seed: 11,
};

fn request(counter: u32) -> RequestId {
    RequestId {
        incarnation: 1,
        counter,
    }
}

/// A text that a pipeline goes on with, portion by portion.
struct Text {
    request: RequestId,
    sampling: Sampling,
    tokens: Vec<u32>,
    start: usize,
    read: usize,
    drawn: u32,
}

impl Text {
    fn new(counter: u32, prompt: &[u32], sampling: Sampling) -> Self {
        Self {
            request: request(counter),
            sampling,
            tokens: prompt.to_vec(),
            start: 0,
            read: 0,
            drawn: 0,
        }
    }

    /// Draws one more token.
    fn go_on(&mut self, pipeline: &mut Pipeline) {
        let start = window_start(self.tokens.len(), pipeline.run.model.context);
        if start != self.start {
            (self.start, self.read) = (start, start);
        }
        let mut portion = Portion {
            request: self.request,
            position: u32::try_from(self.read - self.start).expect("small"),
            tokens: self.tokens[self.read..].to_vec(),
            boundary: None,
            sampling: self.sampling,
            drawn: self.drawn,
        };
        let rows = portion.tokens.len();
        let bytes = payload_bytes(
            pipeline.run.format,
            rows,
            pipeline.run.model.boundary_width(),
        );
        for (_, engine) in &mut pipeline.seats {
            match block_on(engine.run(Job::Generate(portion.clone()))) {
                Done::Generated {
                    written: Written::Boundary(boundary),
                    ..
                } => {
                    assert_eq!(boundary.len(), bytes);
                    portion.boundary = Some(boundary);
                }
                Done::Generated {
                    written: Written::Token(token),
                    ..
                } => {
                    self.read = self.tokens.len();
                    self.tokens.push(token);
                    self.drawn += 1;
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("no seat drew a token");
    }
}

fn written(pipeline: &mut Pipeline, prompt: &[u32], sampling: Sampling, count: usize) -> Vec<u32> {
    let mut text = Text::new(0, prompt, sampling);
    (0..count).for_each(|_| text.go_on(pipeline));
    text.tokens
}

/// What the whole model writes when it reads the whole window again for each token.
fn written_afresh(pipeline: &Pipeline, prompt: &[u32], sampling: Sampling, count: u32) -> Vec<u32> {
    let seat = pipeline.seats[0].1.seat().expect("it is taken");
    let mut tokens = prompt.to_vec();
    for drawn in 0..count {
        let window = &tokens[window_start(tokens.len(), pipeline.run.model.context)..];
        let logits = block_on(seat.next_token_logits(window)).expect("scores");
        tokens.push(sampling.draw(&logits, drawn));
    }
    tokens
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn cut_anywhere_the_model_writes_what_it_writes_alone(
        codec in proptest::sample::select(CODECS.to_vec()),
        seed in any::<u64>(),
        cuts in proptest::sample::subsequence(vec![1_u16, 2, 3], 0..=3),
        prompt in proptest::collection::vec(0_u32..11, 1..20),
        sampling in prop_oneof![Just(GREEDY), Just(DRAWN)],
    ) {
        let run = run_config(codec, NumberFormat::F32, seed);
        let mut whole = Pipeline::new(&run, &[], None);
        for step in 0..3 {
            whole.train(&counting(&run, step));
        }
        let states = whole.snapshot();
        let mut cut = Pipeline::new(&run, &cuts, Some(&states));
        // Learned bases go on with the first microbatch of whatever comes first.
        cut.forward(cut.slot(0), Mode::Evaluate, &counting(&run, 3));
        // Three windows of eight.
        let expected = written_afresh(&whole, &prompt, sampling, 24);
        prop_assert_eq!(&written(&mut whole, &prompt, sampling, 24), &expected);
        prop_assert_eq!(&written(&mut cut, &prompt, sampling, 24), &expected);
    }
}

#[test]
fn a_trained_model_goes_on_as_it_was_taught_in_any_format() {
    for codec in CODECS {
        for format in FORMATS {
            let run = run_config(codec, format, 3);
            let mut pipeline = Pipeline::new(&run, &[1, 3], None);
            for step in 0..80 {
                pipeline.train(&counting(&run, step));
            }
            let text = written(&mut pipeline, &[3, 4], GREEDY, 6);
            assert_eq!(text, [3, 4, 5, 6, 7, 8, 9, 10], "{codec:?} {format:?}");
        }
    }
}

#[test]
fn texts_are_written_beside_each_other_and_training_goes_on_as_without_them() {
    let run = run_config(SUBSPACE, NumberFormat::Int8, 5);
    let mut undisturbed = Pipeline::new(&run, &[2], None);
    let mut pipeline = Pipeline::new(&run, &[2], None);
    let mut texts = [Text::new(0, &[1, 2, 3], GREEDY), Text::new(1, &[7], DRAWN)];
    for step in 0..12 {
        let tokens = counting(&run, step);
        for text in &mut texts {
            text.go_on(&mut pipeline);
        }
        assert_eq!(pipeline.train(&tokens), undisturbed.train(&tokens));
    }
    assert_eq!(pipeline.snapshot(), undisturbed.snapshot());
    // With newer weights they are remembered on; else nothing is.
    for (keeps_texts, is_known) in [(true, true), (false, false)] {
        let states = pipeline.snapshot();
        for (stages, engine) in &mut pipeline.seats {
            let states = stages.iter().map(|stage| {
                let blob = states[usize::from(stage.0)].blob.clone();
                Source::Blob(blob)
            });
            let job = Job::Seat {
                stages: *stages,
                states: states.collect(),
                keeps_texts,
            };
            assert!(matches!(block_on(engine.run(job)), Done::Seated { .. }));
        }
        let text = &mut texts[0];
        if is_known {
            text.go_on(&mut pipeline);
            continue;
        }
        let portion = portion(text.request, 3, &[1], None);
        let done = block_on(pipeline.seats[0].1.run(Job::Generate(portion)));
        assert!(matches!(done, Done::Refused { .. }), "{done:?}");
    }
}

fn portion(request: RequestId, position: u32, tokens: &[u32], boundary: Option<Bytes>) -> Portion {
    Portion {
        request,
        position,
        tokens: tokens.to_vec(),
        boundary,
        sampling: GREEDY,
        drawn: 0,
    }
}

#[test]
fn what_does_not_fit_is_refused_and_what_is_forgotten_is_not_gone_on_with() {
    let run = run_config(Codec::Dense, NumberFormat::Int8, 5);
    let mut pipeline = Pipeline::new(&run, &[2], None);
    let row = run.format.row_bytes(run.model.boundary_width());
    let mut no_scale = vec![0; row];
    no_scale[..2].copy_from_slice(&[0xff, 0xff]);
    let nonsense: [(usize, Portion); 9] = [
        (0, portion(request(0), 0, &[], None)),
        (0, portion(request(0), 0, &[11], None)),
        (0, portion(request(0), 0, &[1; 9], None)),
        (0, portion(request(0), u32::MAX, &[1], None)),
        (0, portion(request(0), 1, &[1], None)),
        (0, portion(request(0), 0, &[1], Some(vec![0; row].into()))),
        (1, portion(request(0), 0, &[1], None)),
        (
            1,
            portion(request(0), 0, &[1, 2], Some(vec![0; row].into())),
        ),
        (1, portion(request(0), 0, &[1], Some(no_scale.into()))),
    ];
    for (seat, portion) in nonsense {
        let done = block_on(pipeline.seats[seat].1.run(Job::Generate(portion.clone())));
        assert!(
            matches!(done, Done::Refused { .. }),
            "{portion:?}: {done:?}"
        );
    }
    let mut text = Text::new(1, &[1, 2], GREEDY);
    text.go_on(&mut pipeline);
    let stages = StageRange { first: 0, end: 2 };
    assert_eq!(pipeline.seats[0].0, stages);
    let request = request(1);
    let engine = &mut pipeline.seats[0].1;
    let forgotten = block_on(engine.run(Job::Forget { request }));
    assert_eq!(forgotten, Done::Forgotten { request });
    let done = block_on(engine.run(Job::Generate(portion(request, 2, &[1], None))));
    assert!(matches!(done, Done::Refused { .. }), "{done:?}");
}

#[test]
fn a_seat_whose_basis_is_still_to_come_draws_nothing_and_accuses_nobody() {
    let run = run_config(LEARNED, NumberFormat::F32, 3);
    let mut pipeline = Pipeline::new(&run, &[2], None);
    let mut portion = Portion {
        request: Text::new(0, &[1, 2], GREEDY).request,
        position: 0,
        tokens: vec![1, 2],
        boundary: None,
        sampling: GREEDY,
        drawn: 0,
    };
    let mut read = |seat: usize, portion: &Portion| {
        let job = Job::Generate(portion.clone());
        match block_on(pipeline.seats[seat].1.run(job)) {
            Done::Generated { written, .. } => written,
            other => panic!("{other:?}"),
        }
    };
    let Written::Boundary(boundary) = read(0, &portion) else {
        panic!("the head lifts nothing");
    };
    portion.boundary = Some(boundary);
    assert_eq!(read(1, &portion), Written::Nothing);
}
