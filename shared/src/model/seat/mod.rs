//! A seat: contiguous stages `[first, end)`, and the border inputs they keep between forward and backward.
//!
//! Numbers are packed and unpacked only where the seat meets the network; inside it borders stay in f32
//! on the device. In a forward each stage's border input is kept; a backward goes through the stages in
//! reverse, each running its own forward again with a tape. So a seat computes the same bits as the
//! single-stage seats that it could be cut into, and no tape is longer than one stage.
//!
//! What it remembers of texts that are being written is [`generate`]'s.
//!
//! One read from the device a microbatch brings border, loss and norm together. Knows no peers and
//! no optimizer schedule: what arrives is checked, refused or computed.

mod adapted;
mod blame;
mod generate;
mod learned;

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{Device, Tensor, Transaction};

use self::adapted::Adapted;
use self::learned::Learned;
use crate::compute::{Input, Snapshot};
use crate::config::run::{Opens, RunConfig};
use crate::model::adamw::AdamW;
use crate::model::block::{Numerics, tensor};
use crate::model::codec::{Batch, BorderCodec};
use crate::model::memory::Memory;
use crate::model::stage::{Objective, Stage};
use crate::model::state::{DeviceLost, StageState, read_all, to_bytes};
use crate::units::{RequestId, StageId};
use crate::wire::frame::{Mode, Slot};
use crate::wire::number::{Direction, Noise, Rounding, pack, unpack};

/// Stages in a row with what they need to train.
#[derive(Debug)]
pub struct Seat {
    run: RunConfig,
    codec: BorderCodec,
    device: Device,
    stages: Vec<Stage>,
    kept: BTreeMap<Slot, Kept>,
    /// What the bases of borders are learned by here.
    learned: Learned,
    /// The run's subspace, where it is adapted.
    adapted: Option<Adapted>,
    /// Whether all gradients that came in since the last update were finite.
    gradients_finite: bool,
    /// Where pipelines merge gradients: each stage's, of the last step's mean loss.
    last_gradients: Vec<Vec<Tensor<1>>>,
    /// What each stage remembers of the texts that are being written.
    texts: BTreeMap<RequestId, Vec<Memory>>,
}

/// What a forward leaves for its backward.
#[derive(Debug)]
struct Kept {
    batch: Batch,
    /// Border input of each stage from the seat's first on; the last seat's are completed in the backward.
    inputs: Vec<Option<Tensor<3>>>,
    first_sample: u64,
    sequences: usize,
    /// Whether what came in was finite.
    finite: bool,
}

/// What a forward gives.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardDone {
    /// What the next seat receives; `None` at the last seat.
    pub boundary: Option<Vec<u8>>,
    /// Sum of token losses, at the last seat in evaluation.
    pub loss_sum: Option<f64>,
}

/// What a backward gives.
#[derive(Clone, Debug, PartialEq)]
pub struct BackwardDone {
    /// What the seat before receives; `None` at the head.
    pub gradient: Option<Vec<u8>>,
    /// Sum of token losses, at the last seat.
    pub loss_sum: Option<f64>,
    /// Sum of squared gradients of the step's mean loss over the seat, if it was asked for.
    pub norm_squared: Option<f64>,
}

/// Why a job was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SeatError {
    /// What came in does not fit. Refuse the frame; the seat is as before.
    #[error("{reason}")]
    Refused {
        /// What was wrong with it.
        reason: String,
    },
    /// A result is NaN or infinite. Go back to the round's start.
    #[error("{stage:?} gave a number that is not finite")]
    NonFinite {
        /// The first stage, in order of computing, whose result is not finite.
        stage: StageId,
        /// Whether all that came into the seat was finite.
        own: bool,
    },
    /// The device is gone. No further job can be done.
    #[error(transparent)]
    Device(#[from] DeviceLost),
}

impl Seat {
    /// A seat over `stages`, from one state a stage.
    ///
    /// # Panics
    /// If the stages are not the model's, or the states not theirs.
    #[must_use]
    pub fn new(
        run: &RunConfig,
        mut codec: BorderCodec,
        stages: Range<usize>,
        states: Vec<StageState>,
        device: &Device,
    ) -> Self {
        assert!(
            !stages.is_empty() && stages.end <= run.model.stages,
            "stages {stages:?}"
        );
        assert_eq!(stages.len(), states.len(), "one state a stage");
        let adapted = Adapted::of(&run.model, stages.start, &states[0]);
        if let Some(adapted) = &adapted {
            let shape = [run.model.d_model, run.model.boundary_width()];
            codec.set_subspace(&tensor(adapted.basis.clone(), shape, device));
        }
        let build =
            |(index, state)| Stage::new(&run.model, index, Numerics::default(), state, device);
        let mut stages: Vec<Stage> = stages.zip(states).map(build).collect();
        learned::enter_inner(&mut stages);
        Self {
            run: run.clone(),
            codec,
            device: device.clone(),
            stages,
            kept: BTreeMap::new(),
            learned: Learned::default(),
            adapted,
            gradients_finite: true,
            last_gradients: Vec::new(),
            texts: BTreeMap::new(),
        }
    }

    /// The first of its stages.
    fn first(&self) -> usize {
        self.stages[0].index()
    }

    /// Whether it ends the model.
    fn is_last(&self) -> bool {
        self.first() + self.stages.len() == self.run.model.stages
    }

    /// Forward through the seat; in training the inputs are kept for the backward.
    ///
    /// # Errors
    /// Refuses inputs that don't fit the model; tells which stage made a number that is not finite.
    pub async fn forward(
        &mut self,
        slot: Slot,
        mode: Mode,
        input: &Input,
    ) -> Result<ForwardDone, SeatError> {
        if mode == Mode::Train && self.kept.contains_key(&slot) {
            return refuse(format!("{slot:?} came twice"));
        }
        let opens = mode.opens(slot);
        if opens == Opens::Round && self.first() == 0 {
            self.turn_head();
        }
        // What an evaluation enters by is its own: training may have gone on meanwhile. It stays only where nothing was.
        let entering = self.stages[0].entering();
        let kept = self.take_in(opens, input)?;
        let done = self.forward_taken(slot, mode, kept).await;
        if mode == Mode::Evaluate && entering.is_some() {
            self.stages[0].set_entering(entering);
        }
        done
    }

    async fn forward_taken(
        &mut self,
        slot: Slot,
        mode: Mode,
        mut kept: Kept,
    ) -> Result<ForwardDone, SeatError> {
        let opens = mode.opens(slot);
        let (boundary, loss_sum) = match (self.is_last(), mode) {
            // The backward runs the forward anyway.
            (true, Mode::Train) => (None, None),
            (true, Mode::Evaluate) => {
                self.run_inner(&mut kept);
                let stage = self.stages.last().expect("a seat has stages");
                let input = kept.inputs.last().expect("one input a stage").clone();
                let losses = read(vec![stage.loss_sum(input, &kept.batch)]).await?;
                let loss_sum = f64::from(losses[0][0]);
                if !loss_sum.is_finite() {
                    return Err(self.blame_forward(&kept, None).await?);
                }
                (None, Some(loss_sum))
            }
            (false, Mode::Train | Mode::Evaluate) => {
                self.run_inner(&mut kept);
                let stage = self.stages.last().expect("a seat has stages");
                let input = kept.inputs.last().expect("one input a stage").clone();
                let output = stage.forward(input, &kept.batch);
                let basis = stage.basis().filter(|_| opens != Opens::Nothing);
                let basis = basis.map(|basis| basis.flatten(0, 1));
                let border = [output.clone().flatten(0, 2)].into_iter();
                let mut lists = read(border.chain(basis).collect()).await?.into_iter();
                let values = lists.next().unwrap_or_default();
                if !all_finite(&values) {
                    return Err(self.blame_forward(&kept, Some(output)).await?);
                }
                let width = self.run.model.boundary_width();
                let mut bytes = pack(self.run.format, &values, width, Rounding::Nearest);
                for basis in lists {
                    bytes.extend(to_bytes(&basis));
                }
                if let Some(adapted) = self.adapted.as_ref().filter(|_| opens == Opens::Round) {
                    bytes.extend(to_bytes(&adapted.basis));
                }
                (Some(bytes), None)
            }
        };
        if mode == Mode::Train {
            self.kept.insert(slot, kept);
        }
        Ok(ForwardDone { boundary, loss_sum })
    }

    /// Backward through the seat from its kept input; adds to the step's gradients.
    ///
    /// `gradient` is of the sum of token losses, and `None` at the last seat. With `step_tokens` the
    /// squared norm of the step's gradients so far is asked for.
    ///
    /// # Errors
    /// Refuses a gradient that doesn't fit or whose forward is not there; tells which stage made a number
    /// that is not finite. After the latter the step's gradients are spoilt.
    pub async fn backward(
        &mut self,
        slot: Slot,
        gradient: Option<&[u8]>,
        step_tokens: Option<u64>,
    ) -> Result<BackwardDone, SeatError> {
        let Some(kept) = self.kept.get(&slot) else {
            return refuse(format!("no forward of {slot:?} is kept"));
        };
        let model = &self.run.model;
        let adapts = model.adapts_in(slot.place.round);
        let energy_bytes = usize::from(adapts) * model.adapted_basis_bytes();
        let behind = step_tokens.map_or(0, |_| model.learned_basis_bytes() + energy_bytes);
        let mut energy = Vec::new();
        let mut objective = match gradient {
            None if self.is_last() => Objective::Targets,
            Some(bytes) if !self.is_last() => {
                let (bytes, behind) = learned::cut_basis(bytes, behind)?;
                let values = self.unpacked(bytes, kept.sequences * self.run.model.context)?;
                self.gradients_finite &= all_finite(&values) && all_finite(&behind);
                if self.adapted.is_some() {
                    energy = behind;
                } else {
                    let basis = learned::uploaded(&self.run.model, behind, &self.device);
                    self.learned
                        .add(self.first() + self.stages.len() - 1, basis);
                }
                Objective::Gradient(self.border(values, kept.sequences))
            }
            Some(_) | None => {
                return refuse("the last seat, and no other, begins from its targets".to_owned());
            }
        };
        let mut kept = self.kept.remove(&slot).expect("it was there above");
        self.run_inner(&mut kept);
        let mut loss = None;
        let mut seen = None;
        let mut flowed = Vec::with_capacity(self.stages.len());
        for (stage, input) in self.stages.iter_mut().zip(&kept.inputs).rev() {
            let back = stage.backward(input.clone(), &kept.batch, objective);
            self.learned
                .add(stage.index().saturating_sub(1), back.basis_gradient);
            seen = seen.or(back.energy);
            loss = loss.or(back.loss_sum);
            let Some(gradient) = back.input_gradient else {
                break;
            };
            flowed.push((StageId(number(stage.index())), gradient.clone()));
            objective = Objective::Gradient(gradient);
        }
        let basis = step_tokens.and_then(|_| self.learned.end_step(&mut self.stages));
        let norms = step_tokens.map(|tokens| self.norms(tokens));
        let border = (self.first() > 0).then(|| flowed.last().expect("not the head").1.clone());
        let border = border.map(|border| (border, basis));
        if let Some((adapted, seen)) = self.adapted.as_mut().zip(seen.filter(|_| adapts)) {
            adapted.add(seen);
        }
        let mut done = self
            .read_backward(slot, &kept, &flowed, border, loss, norms)
            .await?;
        if adapts && step_tokens.is_some() {
            self.end_energy(energy, &mut done.gradient).await?;
        }
        Ok(done)
    }

    /// Reads what a backward gave, all at once, and packs it.
    async fn read_backward(
        &self,
        slot: Slot,
        kept: &Kept,
        flowed: &[(StageId, Tensor<3>)],
        border: Option<(Tensor<3>, Option<Tensor<2>>)>,
        loss: Option<Tensor<1>>,
        norms: Option<Vec<Tensor<1>>>,
    ) -> Result<BackwardDone, SeatError> {
        let (border, basis) = border.map_or((None, None), |(border, basis)| (Some(border), basis));
        let (has_border, has_loss) = (border.is_some(), loss.is_some());
        let has_basis = basis.is_some();
        let tensors = border
            .map(|border| border.flatten(0, 2))
            .into_iter()
            .chain(basis.map(|basis| basis.flatten(0, 1)))
            .chain(loss);
        let mut lists = read(tensors.chain(norms.iter().flatten().cloned()).collect())
            .await?
            .into_iter();
        let border = if has_border { lists.next() } else { None };
        let basis = if has_basis { lists.next() } else { None };
        let loss = if has_loss { lists.next() } else { None };
        let loss_sum = loss.map(|loss| f64::from(loss[0]));
        if loss_sum.is_some_and(|loss| !loss.is_finite()) {
            return Err(self.blame_forward(kept, None).await?);
        }
        let received = border.iter().chain(&basis);
        if received.into_iter().any(|values| !all_finite(values)) {
            return Err(self.blame_backward(kept, flowed).await?);
        }
        let norms: Vec<f64> = lists
            .map(|squares| squares.iter().map(|&square| f64::from(square)).sum())
            .collect();
        if let Some(position) = norms.iter().rposition(|square: &f64| !square.is_finite()) {
            let stage = StageId(number(self.first() + position));
            return Err(SeatError::NonFinite {
                stage,
                own: self.gradients_finite && kept.finite,
            });
        }
        let width = self.run.model.boundary_width();
        let gradient = border.map(|values| {
            let noise = Noise {
                run_seed: self.run.seed,
                round: u64::from(slot.place.round.0),
                first_sample: kept.first_sample,
                border: self.first() as u64 - 1,
                direction: Direction::Backward,
            };
            let mut bytes = pack(self.run.format, &values, width, Rounding::Stochastic(noise));
            if let Some(basis) = basis {
                bytes.extend(to_bytes(&basis));
            }
            bytes
        });
        let norm_squared = (!norms.is_empty()).then(|| norms.iter().sum());
        Ok(BackwardDone {
            gradient,
            loss_sum,
            norm_squared,
        })
    }

    /// The optimizer's update of all stages with the step's gradients, which are then cleared; and a step of each basis
    /// that is learned.
    ///
    /// # Errors
    /// If the device is lost.
    pub async fn apply(
        &mut self,
        scale: f32,
        learning_rate: f64,
        step_tokens: u64,
    ) -> Result<(), DeviceLost> {
        if self.run.merges_gradients() {
            let stages = self.stages.iter();
            self.last_gradients = stages.map(|it| it.mean_gradients(step_tokens)).collect();
        }
        for stage in &mut self.stages {
            stage.apply(&AdamW::default(), learning_rate, scale, step_tokens);
        }
        learned::step_bases(&mut self.stages, learning_rate).await?;
        self.count_energy();
        self.gradients_finite = true;
        Ok(())
    }

    /// Drops kept inputs and the gradients of a step that will not be applied.
    pub fn reset(&mut self) {
        self.kept.clear();
        self.stages.iter_mut().for_each(Stage::clear_gradients);
        self.learned = Learned::default();
        if let Some(adapted) = &mut self.adapted {
            adapted.forget_step();
        }
        self.gradients_finite = true;
    }

    /// Makes a weight of the first stage NaN; see [`crate::faults`].
    #[cfg(feature = "faults")]
    pub fn spoil(&mut self) {
        self.stages[0].spoil();
    }

    /// Copies of all stages, in order.
    ///
    /// # Errors
    /// If the device is lost.
    pub async fn snapshot(&self) -> Result<Vec<Snapshot>, DeviceLost> {
        let mut snapshots = Vec::with_capacity(self.stages.len());
        for (position, stage) in self.stages.iter().enumerate() {
            let state = StageState::read(stage).await?;
            let gradients = self.last_gradients.get(position).cloned();
            let gradients = read(gradients.unwrap_or_default()).await?;
            snapshots.push(Snapshot {
                stage: StageId(number(stage.index())),
                agreed: state.agreed_digest(self.run.merge.kind),
                blob: state.to_blob(&self.run.model, stage.index()).into(),
                gradient: to_bytes(&gradients.concat()).into(),
            });
        }
        Ok(snapshots)
    }

    /// Checks an input and brings it to the device.
    fn take_in(&mut self, opens: Opens, input: &Input) -> Result<Kept, SeatError> {
        let context = self.run.model.context;
        if input.tokens.is_empty() || !input.tokens.len().is_multiple_of(context + 1) {
            let count = input.tokens.len();
            return refuse(format!("{count} tokens are no sequences of {context} + 1"));
        }
        self.check_ids(&input.tokens)?;
        let sequences = input.tokens.len() / (context + 1);
        let (border, finite) = match (&input.boundary, self.first()) {
            (None, 0) => (None, true),
            (Some(bytes), 1..) => {
                let behind = self.run.forward_boundary_bytes(opens) - self.run.boundary_bytes();
                let (bytes, basis) = learned::cut_basis(bytes, behind)?;
                if basis.iter().any(|value| value.abs() > learned::VALUE_MAX) {
                    return refuse("what came as a basis has no orthonormal columns".to_owned());
                }
                let values = self.unpacked(bytes, sequences * context)?;
                let finite = all_finite(&values) && all_finite(&basis);
                if self.adapted.is_none() {
                    learned::enter_first(&mut self.stages, &self.run.model, basis, &self.device);
                } else if !basis.is_empty() {
                    self.turn_to(basis)?;
                }
                (Some(self.border(values, sequences)), finite)
            }
            (Some(_), 0) => return refuse("the head reads tokens, not a border".to_owned()),
            (None, 1..) => return refuse("a seat after the head reads a border".to_owned()),
        };
        let batch = self.codec.batch(&input.tokens, context, &self.device);
        Ok(Kept {
            batch,
            inputs: vec![border],
            first_sample: input.first_sample,
            sequences,
            finite,
        })
    }

    fn check_ids(&self, tokens: &[u32]) -> Result<(), SeatError> {
        let vocabulary = self.run.model.vocabulary;
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            Some(token) => refuse(format!("token {token} is not below {vocabulary}")),
            None => Ok(()),
        }
    }

    /// Border values of so many tokens.
    fn unpacked(&self, bytes: &[u8], rows: usize) -> Result<Vec<f32>, SeatError> {
        unpack(
            self.run.format,
            bytes,
            rows,
            self.run.model.boundary_width(),
        )
        .map_err(|error| SeatError::Refused {
            reason: error.to_string(),
        })
    }

    /// Border values on the device.
    fn border(&self, values: Vec<f32>, sequences: usize) -> Tensor<3> {
        let shape = [
            sequences,
            self.run.model.context,
            self.run.model.boundary_width(),
        ];
        tensor(values, shape, &self.device)
    }

    /// Runs all stages but the last, as far as their outputs are not known yet.
    fn run_inner(&self, kept: &mut Kept) {
        for position in kept.inputs.len()..self.stages.len() {
            let input = kept.inputs[position - 1].clone();
            kept.inputs
                .push(Some(self.stages[position - 1].forward(input, &kept.batch)));
        }
    }

    fn norms(&self, step_tokens: u64) -> Vec<Tensor<1>> {
        self.stages
            .iter()
            .map(|stage| stage.norms_squared(step_tokens))
            .collect()
    }
}

/// Reads flat tensors, all at once.
async fn read(tensors: Vec<Tensor<1>>) -> Result<Vec<Vec<f32>>, DeviceLost> {
    if tensors.is_empty() {
        return Ok(Vec::new());
    }
    read_all(
        tensors
            .into_iter()
            .fold(Transaction::default(), Transaction::register),
    )
    .await
}

fn all_finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}

fn refuse<T>(reason: String) -> Result<T, SeatError> {
    Err(SeatError::Refused { reason })
}

/// A stage's number as the wire writes it.
fn number(stage: usize) -> u16 {
    u16::try_from(stage).expect("a validated model has at most 512 stages")
}
