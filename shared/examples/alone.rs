//! Trains a run in this one process, without host or network: `alone run.toml DATA ROUNDS SEATS`.
//!
//! DATA is a folder with the host's `train.bin` and `validation.bin`. Model, initial weights, samples and
//! their order, steps and updates are the run's own; the engines are called directly, one a seat, and pass
//! each other the bytes that volunteers would send. With one seat it is the whole model without any border:
//! what splitting costs is measured against that. With as many seats as a run has volunteers its losses are
//! that run's. Prints a JSON object a round: losses of its steps, seconds they took, and the loss on held-out
//! text where the run says that it is evaluated.

use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use shared::compute::{Compute, Done, Input, Job, StageState, clip_scale};
use shared::config::run::RunConfig;
use shared::config::written;
use shared::derive::samples::{Samples, Split};
use shared::model::device;
use shared::model::engine::Engine;
use shared::units::{Epoch, Microbatch, PipelineId, Round, StageRange, Step};
use shared::wire::frame::{Mode, Place, Slot};
use shared::wire::payload::{decode_tokens, token_bytes};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, data, rounds, seats] = &arguments[..] else {
        return Err("usage: alone run.toml DATA ROUNDS SEATS".into());
    };
    let config = written::read(&std::fs::read_to_string(config)?, &[])?;
    let folder = Path::new(data);
    let train = Data::open(&folder.join("train.bin"), Split::Train, &config)?;
    let held_out = Data::open(&folder.join("validation.bin"), Split::Validation, &config)?;
    let mut pipeline = Pipeline::new(&config, seats.parse()?)?;
    for round in 0..rounds.parse()? {
        let began = Instant::now();
        let mut losses = Vec::new();
        for step in 0..config.schedule.round_steps {
            losses.push(pipeline.train(&train, Round(round), step)?);
        }
        let seconds = began.elapsed().as_secs_f64();
        let due = |every: u32| every > 0 && (round + 1).is_multiple_of(every);
        let validation_loss = if due(config.schedule.eval_rounds) {
            pipeline.evaluate(&held_out, Round(round + 1))?.to_string()
        } else {
            "null".to_owned()
        };
        print_line(&format!(
            r#"{{"event":"round","round":{},"seconds":{seconds},"losses":{losses:?},"validation_loss":{validation_loss}}}"#,
            round + 1
        ));
    }
    Ok(())
}

/// One engine a seat, head first.
struct Pipeline<'a> {
    config: &'a RunConfig,
    engines: Vec<Engine>,
}

impl<'a> Pipeline<'a> {
    /// Cuts the model into seats of about as many stages each.
    fn new(config: &'a RunConfig, seats: usize) -> Result<Self, Failure> {
        let stages = config.model.stages;
        if !(1..=stages).contains(&seats) {
            return Err(format!("1 to {stages} seats").into());
        }
        let border = |seat: usize| u16::try_from(seat * stages / seats);
        let mut engines = Vec::new();
        for seat in 0..seats {
            let mut engine = Engine::new(config.clone(), device::cpu().device);
            let stages = StageRange {
                first: border(seat)?,
                end: border(seat + 1)?,
            };
            let states = vec![StageState::Seed; stages.iter().count()];
            let done = pollster::block_on(engine.run(Job::Seat {
                stages,
                states,
                keeps_texts: false,
            }));
            if !matches!(done, Done::Seated { .. }) {
                return Err(format!("no seat: {done:?}").into());
            }
            engines.push(engine);
        }
        Ok(Self { config, engines })
    }

    /// A microbatch through all seats; the sum of its token losses in evaluation.
    fn forward(
        &mut self,
        slot: Slot,
        mode: Mode,
        tokens: &[u32],
        first_sample: u64,
    ) -> Result<Option<f64>, Failure> {
        let mut border = None;
        let mut loss = None;
        for engine in &mut self.engines {
            let input = Input {
                tokens: tokens.to_vec(),
                boundary: border.take(),
                first_sample,
            };
            let done = pollster::block_on(engine.run(Job::Forward { slot, mode, input }));
            let Done::Forward {
                boundary, loss_sum, ..
            } = done
            else {
                return Err(format!("a forward gave {done:?}").into());
            };
            (border, loss) = (boundary, loss_sum);
        }
        Ok(loss)
    }

    /// And back; the sum of token losses, and the squared norm of the step's gradients if it is asked for.
    fn backward(&mut self, slot: Slot, step_tokens: Option<u64>) -> Result<(f64, f64), Failure> {
        let mut passed: Option<Bytes> = None;
        let (mut loss, mut norm) = (None, 0.0);
        for engine in self.engines.iter_mut().rev() {
            let job = Job::Backward {
                slot,
                gradient: passed.take(),
                step_tokens,
            };
            let done = pollster::block_on(engine.run(job));
            let Done::Backward {
                gradient,
                loss_sum,
                norm_squared,
                ..
            } = done
            else {
                return Err(format!("a backward gave {done:?}").into());
            };
            passed = gradient;
            loss = loss.or(loss_sum);
            norm += norm_squared.unwrap_or(0.0);
        }
        Ok((loss.ok_or("the last seat gave no loss")?, norm))
    }

    /// One step of the run; its mean token loss.
    fn train(&mut self, data: &Data, round: Round, step: u32) -> Result<f64, Failure> {
        let config = self.config;
        let batch = u64::from(config.training.batch);
        let steps_before =
            u64::from(round.0) * u64::from(config.schedule.round_steps) + u64::from(step);
        let done_before = steps_before * batch;
        let (mut loss, mut norm) = (0.0, 0.0);
        for microbatch in 0..config.training.microbatches {
            let slot = slot(round, step, microbatch);
            let (first_sample, tokens) = data.microbatch(config, done_before, microbatch)?;
            self.forward(slot, Mode::Train, &tokens, first_sample)?;
            let is_last = microbatch + 1 == config.training.microbatches;
            let (sum, squared) = self.backward(slot, is_last.then(|| config.step_tokens()))?;
            loss += sum;
            norm = squared.sqrt();
        }
        for engine in &mut self.engines {
            let done = pollster::block_on(engine.run(Job::Apply {
                step: Step(step),
                scale: clip_scale(config.training.clip, norm),
                samples_done: done_before,
                step_tokens: config.step_tokens(),
            }));
            if !matches!(done, Done::Applied { .. }) {
                return Err(format!("an update gave {done:?}").into());
            }
        }
        Ok(loss / config.step_tokens() as f64)
    }

    /// Mean token loss on held-out text, over as many microbatches as the run evaluates.
    fn evaluate(&mut self, data: &Data, round: Round) -> Result<f64, Failure> {
        let (mut loss, mut tokens) = (0.0, 0);
        for microbatch in 0..self.config.schedule.eval_microbatches {
            let (first_sample, ids) = data.microbatch(self.config, 0, microbatch)?;
            let sum = self.forward(
                slot(round, 0, microbatch),
                Mode::Evaluate,
                &ids,
                first_sample,
            )?;
            loss += sum.ok_or("the last seat gave no loss")?;
            tokens += usize::from(self.config.microbatch_sequences()) * self.config.model.context;
        }
        Ok(loss / tokens as f64)
    }
}

fn slot(round: Round, step: u32, microbatch: u16) -> Slot {
    Slot {
        place: Place {
            pipeline: PipelineId(0),
            epoch: Epoch::default(),
            round,
        },
        step: Step(step),
        microbatch: Microbatch(microbatch),
    }
}

/// One of the host's token files, and where samples lie in it.
struct Data {
    ids: Vec<u32>,
    samples: Samples,
}

impl Data {
    fn open(path: &Path, split: Split, config: &RunConfig) -> Result<Self, Failure> {
        let model = &config.model;
        let bytes = std::fs::read(path)?;
        let count = (bytes.len() / token_bytes(model.vocabulary)) as u64;
        let samples = Samples::new(split, config.seed, model.context, count)
            .ok_or("the file holds no whole sample")?;
        Ok(Self {
            ids: decode_tokens(&bytes, model.vocabulary)?,
            samples,
        })
    }

    /// The first sample of a microbatch of the step that begins at sample `first`, and its tokens, row after row.
    fn microbatch(
        &self,
        config: &RunConfig,
        first: u64,
        microbatch: u16,
    ) -> Result<(u64, Vec<u32>), Failure> {
        let count = u64::from(config.microbatch_sequences());
        let first = first + u64::from(microbatch) * count;
        let mut tokens = Vec::new();
        for sample in first..first + count {
            let place = self.samples.place(sample).tokens;
            let range = usize::try_from(place.start)?..usize::try_from(place.end)?;
            tokens.extend_from_slice(&self.ids[range]);
        }
        Ok((first, tokens))
    }
}

#[expect(clippy::print_stdout, reason = "its output is what it is for")]
fn print_line(line: &str) {
    println!("{line}");
}
