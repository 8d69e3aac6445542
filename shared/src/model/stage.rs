//! One stage: a few blocks, with the embedding if it is first, final norm, head and loss if it is last.
//!
//! A stage owns weights, moments and the gradients that a step has added up so far. Weights are kept
//! without a tape; [`Stage::backward`] runs the forward again with one, from the border input that
//! the caller kept, so that nothing but borders is stored between the two.
//!
//! Gradients are of the **sum** of token losses; they are divided by the step's token count when
//! the norm is taken and when they are applied. Invariant: tensors are always in the order of
//! [`ModelConfig::parameters_of`], sorted by name.

mod adapted;
mod learned;

use burn::module::Module;
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use super::adamw::{AdamW, Moments};
use super::block::{Numerics, View, narrow};
use super::codec::Batch;
use super::layers::{Layers, cross_entropy_sum, rows};
use super::memory::Memory;
use super::state::StageState;
use crate::config::model::{ModelConfig, Parameter};

pub(super) use adapted::Turn;
pub(super) use learned::BasisDue;

/// Logits that exist at once: 64 MiB, a few times over on the tape. More tokens go in turns.
const LOGITS_MAX: usize = 16 << 20;

/// A stage in training.
#[derive(Debug)]
pub struct Stage {
    config: ModelConfig,
    index: usize,
    parameters: Vec<Parameter>,
    layers: Layers,
    moments: Vec<Moments>,
    updates: u64,
    gradients: Option<Vec<Tensor<1>>>,
    /// The basis of the border before the stage, where the stage before it learns it.
    entering: Option<Tensor<2>>,
    /// What the learned basis is to be stepped by: it is not the optimizer's.
    basis_due: Option<Tensor<1>>,
    /// Logits that exist at once.
    logits_max: usize,
}

/// What a backward gives besides the gradients that it adds to the stage's.
#[derive(Debug)]
pub struct Backward {
    /// Gradient of the border input; none at stage 0, whose input are tokens.
    pub input_gradient: Option<Tensor<3>>,
    /// Gradient of the basis that lifts the border input, where it is learned: a part of what the stage before learns by.
    pub basis_gradient: Option<Tensor<2>>,
    /// What the run's subspace turns by, `[d_model, rank]`, at the last stage where it is adapted.
    pub energy: Option<Tensor<2>>,
    /// Sum of token losses, `[1]`, at the last stage.
    pub loss_sum: Option<Tensor<1>>,
}

/// Where a backward begins.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "few of them exist, and boxing a tensor gains nothing"
)]
pub enum Objective {
    /// The gradient that the next stage sent, as large as the border.
    Gradient(Tensor<3>),
    /// The batch's own targets, at the last stage.
    Targets,
}

/// Loss over the head, and how it depends on what the head reads.
struct HeadLoss {
    loss_sum: Tensor<1>,
    hidden_gradient: Tensor<2>,
    head_gradient: Tensor<2>,
}

impl Stage {
    /// A stage from its state.
    ///
    /// # Panics
    /// If `state` has other shapes than stage `index` of `config`; [`StageState`] sees to that.
    #[must_use]
    pub fn new(
        config: &ModelConfig,
        index: usize,
        numerics: Numerics,
        state: StageState,
        device: &Device,
    ) -> Self {
        let parameters = config.parameters_of(index);
        let StageState {
            weights,
            first,
            second,
            updates,
            // Training does not touch it: whoever merges takes it from the round's beginning.
            outer: _,
        } = state;
        let mut weights: Vec<Option<Vec<f32>>> = weights.into_iter().map(Some).collect();
        let layers = Layers::new(config, index, numerics, device, |name| {
            let position = parameters
                .iter()
                .position(|parameter| parameter.name == name);
            let position = position.expect("layers take their parameters by the list's own names");
            let values = weights[position]
                .take()
                .expect("each parameter is taken once");
            TensorData::new(values, parameters[position].shape.clone())
        });
        let upload = |values: Vec<f32>| Tensor::<1>::from_floats(values.as_slice(), device);
        let moments = first
            .into_iter()
            .zip(second)
            .map(|(first, second)| Moments {
                first: upload(first),
                second: upload(second),
            })
            .collect();
        Self {
            config: config.clone(),
            index,
            parameters,
            layers,
            moments,
            updates,
            gradients: None,
            entering: None,
            basis_due: None,
            logits_max: LOGITS_MAX,
        }
    }

    /// Number of the stage in the model.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// Its parameters, in the order of all lists of tensors.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// What the next stage receives.
    ///
    /// # Shapes
    /// - `input`: `[sequences, context, boundary_width]`, or `None` at stage 0
    /// - returns `[sequences, context, boundary_width]`
    #[must_use]
    pub fn forward(&self, input: Option<Tensor<3>>, batch: &Batch) -> Tensor<3> {
        self.layers
            .forward(input, batch.tokens.clone(), &self.view(batch), None)
    }

    /// How border values become the stream here, with the basis as it is learned.
    fn view(&self, batch: &Batch) -> View {
        let view = batch.view.clone();
        match &self.entering {
            Some(basis) => view.entered_by(self.index, basis.clone()),
            None => view,
        }
    }

    /// Scores of every next token, `[sequences, context, vocabulary]`; last stage only.
    #[must_use]
    pub fn logits(&self, input: Option<Tensor<3>>, batch: &Batch) -> Tensor<3> {
        let hidden = self.layers.hidden(self.forward(input, batch));
        self.layers.head().forward(hidden)
    }

    /// What the next stage receives of `batch`, the tokens that follow what is in `memory`; they are added to it.
    ///
    /// # Shapes
    /// As [`Stage::forward`], with as many positions as `batch` has.
    ///
    /// # Panics
    /// If memory and batch together exceed the model's context.
    #[must_use]
    pub fn read_on(
        &self,
        input: Option<Tensor<3>>,
        batch: &Batch,
        memory: &mut Memory,
    ) -> Tensor<3> {
        let [_, fresh] = batch.tokens.dims();
        assert!(
            memory.positions() + fresh <= self.config.context,
            "{} positions and {fresh} more exceed the context",
            memory.positions()
        );
        let tokens = batch.tokens.clone();
        self.layers
            .forward(input, tokens, &self.view(batch), Some(memory))
    }

    /// Scores of the token after `batch`, `[sequences, 1, vocabulary]`; last stage only. Else as [`Stage::read_on`].
    #[must_use]
    pub fn next_logits(
        &self,
        input: Option<Tensor<3>>,
        batch: &Batch,
        memory: &mut Memory,
    ) -> Tensor<3> {
        let stream = self.read_on(input, batch, memory);
        let [sequences, fresh] = batch.tokens.dims();
        let last = stream.slice([0..sequences, fresh - 1..fresh]);
        self.layers.head().forward(self.layers.hidden(last))
    }

    /// Sum of token losses in natural log, `[1]`; last stage only.
    #[must_use]
    pub fn loss_sum(&self, input: Option<Tensor<3>>, batch: &Batch) -> Tensor<1> {
        let hidden = rows(self.layers.hidden(self.forward(input, batch)));
        let targets = batch.targets.clone().reshape([-1, 1]);
        let turns = self.turns(hidden.dims()[0]);
        let sums = turns.map(|turn| {
            let logits = self
                .layers
                .head()
                .forward(hidden.clone().slice([turn.clone()]));
            cross_entropy_sum(logits, targets.clone().slice([turn]))
        });
        sums.reduce(|a, b| a + b).expect("a batch has tokens")
    }

    /// Runs the forward again with a tape, then back; adds to the step's gradients.
    ///
    /// # Panics
    /// If `objective` are targets anywhere but at the last stage, or the other way round.
    pub fn backward(
        &mut self,
        input: Option<Tensor<3>>,
        batch: &Batch,
        objective: Objective,
    ) -> Backward {
        let live = self.layers.clone().train();
        let mut view = self.view(batch);
        let lift = self.measured_lift(&view);
        let input = match (&lift, input) {
            (Some(_), Some(input)) => {
                let stream = view.stream(input);
                view = View::Whole;
                Some(stream)
            }
            (_, input) => input,
        };
        let input = input.map(|input| input.autodiff().require_grad());
        let mut view = view.autodiff();
        let entering = self.entering.clone();
        let entering = entering.map(|basis| basis.autodiff().require_grad());
        if let Some(basis) = &entering {
            view = view.entered_by(self.index, basis.clone());
        }
        let tokens = batch.tokens.clone().autodiff();
        let output = live.forward(input.clone(), tokens, &view, None);
        let (mut tape, head) = match objective {
            Objective::Gradient(gradient) => {
                assert!(
                    !self.config.is_last(self.index),
                    "the last stage starts from its targets"
                );
                ((output * gradient.autodiff()).sum().backward(), None)
            }
            Objective::Targets => {
                let hidden = rows(live.hidden(output));
                let head = self.head_loss(hidden.clone().inner(), batch);
                (
                    (hidden * head.hidden_gradient.clone().autodiff())
                        .sum()
                        .backward(),
                    Some(head),
                )
            }
        };
        let fresh = self.collect(live, &mut tape, head.as_ref());
        self.gradients = Some(match self.gradients.take() {
            None => fresh,
            Some(sums) => sums
                .into_iter()
                .zip(fresh)
                .map(|(sum, fresh)| sum + fresh)
                .collect(),
        });
        let input_gradient = input.map(|input| {
            input
                .grad_remove(&mut tape)
                .expect("the output depends on the border input")
        });
        let basis_gradient = entering.map(|basis| {
            basis
                .grad_remove(&mut tape)
                .expect("the output depends on the basis that lifts its input")
        });
        let (input_gradient, energy) = match (lift, input_gradient) {
            (Some(lift), Some(gradient)) => {
                let (gradient, energy) = adapted::measured(gradient, lift);
                (Some(gradient), Some(energy))
            }
            (_, gradient) => (gradient, None),
        };
        Backward {
            input_gradient,
            basis_gradient,
            energy,
            loss_sum: head.map(|head| head.loss_sum),
        }
    }

    /// Gradients of all parameters from a tape, flat, in name order.
    fn collect(
        &self,
        mut live: Layers,
        tape: &mut Gradients,
        head: Option<&HeadLoss>,
    ) -> Vec<Tensor<1>> {
        let slots = live.slots(self.config.blocks_of(self.index).start);
        let gradients = slots
            .into_iter()
            .zip(&self.parameters)
            .map(|((name, slot), parameter)| {
                assert_eq!(
                    name, parameter.name,
                    "layers and list are in the same order"
                );
                match head {
                    // It changes at rounds' ends alone.
                    _ if parameter.is_subspace() => {
                        Tensor::zeros([parameter.values()], &self.device())
                    }
                    Some(head) if name == "head" => head.head_gradient.clone().flatten(0, 1),
                    Some(_) | None => slot
                        .gradient(tape)
                        .expect("the output depends on every parameter"),
                }
            });
        gradients.collect()
    }

    /// Loss and gradients over the head, so many tokens at a time that their logits fit.
    fn head_loss(&self, hidden: Tensor<2>, batch: &Batch) -> HeadLoss {
        let targets = batch.targets.clone().reshape([-1, 1]);
        let weight = self.layers.head().weight.val();
        let turns = self.turns(hidden.dims()[0]);
        let parts = turns.map(|turn| {
            let hidden = hidden
                .clone()
                .slice([turn.clone()])
                .autodiff()
                .require_grad();
            let weight = weight.clone().autodiff().require_grad();
            let targets = targets.clone().slice([turn]).autodiff();
            let loss_sum = cross_entropy_sum(hidden.clone().matmul(weight.clone()), targets);
            let mut tape = loss_sum.backward();
            let depends = "the loss depends on both factors of the logits";
            HeadLoss {
                hidden_gradient: hidden.grad_remove(&mut tape).expect(depends),
                head_gradient: weight.grad_remove(&mut tape).expect(depends),
                loss_sum: loss_sum.inner(),
            }
        });
        let joined = parts.reduce(|a, b| HeadLoss {
            loss_sum: a.loss_sum + b.loss_sum,
            hidden_gradient: Tensor::cat(vec![a.hidden_gradient, b.hidden_gradient], 0),
            head_gradient: a.head_gradient + b.head_gradient,
        });
        joined.expect("a batch has tokens")
    }

    /// Ranges of token rows whose logits exist at once.
    fn turns(&self, tokens: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let step = (self.logits_max / self.config.vocabulary).max(1);
        (0..tokens)
            .step_by(step)
            .map(move |start| start..(start + step).min(tokens))
    }

    /// Squared norm of each tensor's gradient of the step's mean loss, `[parameters]`.
    ///
    /// Zero before any backward. The caller reads it once a step and adds up in f64.
    #[must_use]
    pub fn norms_squared(&self, step_tokens: u64) -> Tensor<1> {
        let gradients = self.mean_gradients(step_tokens).into_iter();
        let squares = gradients.map(|gradient| (gradient.clone() * gradient).sum());
        let squares: Vec<Tensor<1>> = squares.collect();
        if squares.is_empty() {
            return Tensor::zeros([1], &self.device());
        }
        Tensor::cat(squares, 0)
    }

    /// The optimizer's update with the gradients so far, which are then cleared.
    ///
    /// `scale` is what clipping multiplies all gradients by. Without any gradient nothing happens.
    pub fn apply(&mut self, adamw: &AdamW, learning_rate: f64, scale: f32, step_tokens: u64) {
        let Some(gradients) = self.gradients.take() else {
            return;
        };
        let factor = narrow(f64::from(scale) / step_tokens as f64);
        self.updates += 1;
        let slots = self.layers.slots(self.config.blocks_of(self.index).start);
        let tensors = slots
            .into_iter()
            .zip(gradients)
            .zip(&mut self.moments)
            .zip(&self.parameters);
        for ((((_, slot), gradient), moments), parameter) in tensors {
            if parameter.is_subspace() {
                continue;
            }
            if parameter.basis_rank().is_some() {
                self.basis_due = Some(gradient * factor);
                continue;
            }
            let weights = adamw.step(
                slot.value(),
                gradient * factor,
                moments,
                self.updates,
                learning_rate,
                parameter.decays(),
            );
            slot.replace(weights);
        }
    }

    /// Makes the first parameter NaN, as a faulty device would; see [`crate::faults`].
    #[cfg(feature = "faults")]
    pub fn spoil(&mut self) {
        let mut slots = self
            .layers
            .slots(self.config.blocks_of(self.index).start)
            .into_iter();
        if let Some((_, slot)) = slots.next() {
            let spoilt = slot.value() * f32::NAN;
            slot.replace(spoilt);
        }
    }

    /// Drops the gradients of a step that will not be applied.
    pub fn clear_gradients(&mut self) {
        self.gradients = None;
    }

    /// Gradients of the sum of losses so far, flat, in name order; empty before any backward.
    #[must_use]
    pub fn gradients(&self) -> Vec<Tensor<1>> {
        self.gradients.clone().unwrap_or_default()
    }

    /// Gradients of the step's mean loss so far, flat, in name order; empty before any backward.
    #[must_use]
    pub fn mean_gradients(&self, step_tokens: u64) -> Vec<Tensor<1>> {
        let share = narrow(1.0 / step_tokens as f64);
        let sums = self.gradients.iter().flatten();
        sums.map(|sum| sum.clone() * share).collect()
    }

    /// Weights, first and second moments on the device, flat, in name order; and updates so far.
    pub(super) fn tensors(&self) -> (Vec<Tensor<1>>, Vec<Tensor<1>>, Vec<Tensor<1>>, u64) {
        // A clone shares its tensors; slots want to be able to replace them.
        let mut layers = self.layers.clone();
        let slots = layers.slots(self.config.blocks_of(self.index).start);
        let weights = slots.iter().map(|(_, slot)| slot.value()).collect();
        let (first, second) = self
            .moments
            .iter()
            .map(|moments| (moments.first.clone(), moments.second.clone()))
            .unzip();
        (weights, first, second, self.updates)
    }

    /// Where its tensors are.
    fn device(&self) -> Device {
        self.layers.positions.device()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::Derivation;
    use crate::model::codec::BorderCodec;

    #[test]
    fn a_head_that_takes_turns_gives_the_same_loss_and_gradients() {
        let config = ModelConfig {
            blocks: 1,
            stages: 1,
            context: 10,
            ..ModelConfig::tiny()
        };
        let device = Device::flex();
        let derivation = Derivation::new(config.clone(), 1);
        let batch = BorderCodec::from_seed(&derivation, &device).batch(&[7; 22], 10, &device);
        let figures = |logits_max: usize| {
            let mut state = StageState::initial(&derivation, 0);
            // The head is zero at first, and would hide what reaches the layers below it.
            let head = state.weights.len() - 2;
            state.weights[head]
                .iter_mut()
                .enumerate()
                .for_each(|(index, value)| {
                    *value = narrow(((index * 37) % 101) as f64 / 1000.0);
                });
            let mut stage = Stage::new(&config, 0, Numerics::default(), state, &device);
            assert_eq!(stage.parameters[head].name, "head");
            stage.logits_max = logits_max;
            let read = |tensor: Tensor<1>| tensor.into_data().try_to_vec::<f32>().expect("f32");
            let evaluated = read(stage.loss_sum(None, &batch));
            let back = stage.backward(None, &batch, Objective::Targets);
            let trained = read(back.loss_sum.expect("the last stage"));
            [evaluated, trained]
                .into_iter()
                .chain(stage.gradients().into_iter().map(read))
                .collect::<Vec<_>>()
        };
        let whole = figures(LOGITS_MAX);
        for tokens in [1, 3, 19, 20] {
            for (a, b) in whole.iter().zip(figures(tokens * config.vocabulary)) {
                let most = a.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                let difference = a
                    .iter()
                    .zip(&b)
                    .fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(
                    difference <= 1e-5 * most,
                    "{tokens} tokens at once: {difference} of {most}"
                );
            }
        }
    }
}
