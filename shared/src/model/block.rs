//! One transformer block: causal attention with rotary positions, then a SwiGLU MLP, both pre-norm.
//!
//! Built from burn's layers, without biases. What a branch writes may be narrower than the residual
//! stream: [`View`] says how the running state and the stream are related, and the block
//! neither knows nor cares which codec chose it.

use burn::module::{Module, Param};
use burn::nn::{Linear, RmsNorm, RotaryEncoding, SwiGlu};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};

use super::codec::Projector;
use super::memory::Seen;
use crate::config::model::ModelConfig;

/// Added to the score of a position ahead: its exponential is zero, and no shader has to like infinity.
const MASKED: f32 = -1e30;

/// How the state that blocks add to becomes the residual stream that they read.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "few of them exist, and boxing a tensor gains nothing"
)]
pub enum View {
    /// The state is the stream, `[batch, context, d_model]`.
    Whole,
    /// The state holds coordinates `[batch, context, rank]`; the stream is `state · lift + fixed`.
    Coordinates {
        /// `U^T`, `[rank, d_model]`.
        lift: Tensor<2>,
        /// `F[token]`, `[batch, context, d_model]`.
        fixed: Tensor<3>,
    },
    /// The state is the stream within a stage; at borders it is projected.
    Projected(Projector),
}

impl View {
    /// The residual stream, `[batch, context, d_model]`.
    #[must_use]
    pub fn stream(&self, state: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Whole | Self::Projected(_) => state,
            Self::Coordinates { lift, fixed } => {
                state.matmul(lift.clone().unsqueeze()) + fixed.clone()
            }
        }
    }

    /// The same view for tensors with a tape.
    #[must_use]
    pub fn autodiff(self) -> Self {
        match self {
            Self::Whole => Self::Whole,
            Self::Coordinates { lift, fixed } => Self::Coordinates {
                lift: lift.autodiff(),
                fixed: fixed.autodiff(),
            },
            Self::Projected(Projector { bases, anchor_out }) => Self::Projected(Projector {
                bases: bases.into_iter().map(Tensor::autodiff).collect(),
                anchor_out: anchor_out.autodiff(),
            }),
        }
    }

    /// The same view but for the basis of the border before `stage`.
    #[must_use]
    pub(super) fn entered_by(mut self, stage: usize, basis: Tensor<2>) -> Self {
        if let Self::Projected(Projector { bases, .. }) = &mut self {
            bases[stage - 1] = basis;
        }
        self
    }

    /// The state at the beginning of `stage`, from the border before it and what the stage knows of the tokens.
    pub(super) fn enter(
        &self,
        stage: usize,
        border: Tensor<3>,
        anchored: Option<Tensor<3>>,
    ) -> Tensor<3> {
        match (self, anchored) {
            (Self::Projected(Projector { bases, anchor_out }), Some(anchored)) => {
                let lifted = border.matmul(bases[stage - 1].clone().transpose().unsqueeze());
                lifted + anchored.matmul(anchor_out.clone().unsqueeze())
            }
            (Self::Projected(_), None) => panic!("a stage after stage 0 has anchors"),
            (Self::Whole | Self::Coordinates { .. }, _) => border,
        }
    }

    /// What crosses the border after `stage`, from the state at its end and the basis that the stage learns, if it does.
    pub(super) fn leave(
        &self,
        stage: usize,
        state: Tensor<3>,
        learned: Option<Tensor<2>>,
    ) -> Tensor<3> {
        match self {
            Self::Projected(Projector { bases, .. }) => {
                let basis = learned.unwrap_or_else(|| bases[stage].clone());
                state.matmul(basis.unsqueeze())
            }
            Self::Whole | Self::Coordinates { .. } => state,
        }
    }
}

/// Constants of the architecture that no run chooses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Numerics {
    /// Added to the mean square inside RMS norms.
    pub norm_epsilon: f64,
    /// Base of the rotary angles.
    pub rotary_base: f64,
}

impl Default for Numerics {
    fn default() -> Self {
        use crate::config::model::{NORM_EPSILON, ROTARY_BASE};
        Self {
            norm_epsilon: NORM_EPSILON,
            rotary_base: ROTARY_BASE,
        }
    }
}

/// One block's layers.
#[derive(Module, Debug)]
pub struct Block {
    pub(super) norm_attention: RmsNorm,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) attention_out: Linear,
    pub(super) norm_mlp: RmsNorm,
    pub(super) gate_and_up: SwiGlu,
    pub(super) down: Linear,
    heads: usize,
}

/// What all blocks of a stage share: angles of positions, and which positions see which.
#[derive(Module, Debug)]
pub struct Positions {
    rotary: RotaryEncoding,
    /// 0 where a position may look, hugely negative ahead of it; `[context, context]`.
    mask: Tensor<2>,
}

impl Block {
    /// A block from its weights: `take(part)` gives the parameter `block.<index>.<part>`.
    pub(super) fn new(
        config: &ModelConfig,
        numerics: Numerics,
        mut take: impl FnMut(&str) -> TensorData,
        device: &Device,
    ) -> Self {
        let mut linear = |part: &str| linear(take(part), device);
        let [query, key, value] = ["query", "key", "value"].map(&mut linear);
        let attention_out = linear("attention_out");
        let gate_and_up = SwiGlu {
            linear_inner: linear("gate"),
            linear_outer: linear("up"),
        };
        let down = linear("down");
        let mut norm = |part: &str| norm(take(part), numerics, device);
        Self {
            norm_attention: norm("norm_attention"),
            query,
            key,
            value,
            attention_out,
            norm_mlp: norm("norm_mlp"),
            gate_and_up,
            down,
            heads: config.heads,
        }
    }

    /// Adds both branches to `state`.
    ///
    /// With what was `seen`, `state` holds the positions after those, which are then added to it.
    ///
    /// # Shapes
    /// - `state`: `[batch, context, width of the view's state]`, and the same is returned
    #[must_use]
    pub(super) fn forward(
        &self,
        state: Tensor<3>,
        view: &View,
        positions: &Positions,
        seen: Option<&mut Seen>,
    ) -> Tensor<3> {
        let normed = self.norm_attention.forward(view.stream(state.clone()));
        let attended = self.attention(normed, positions, seen);
        let state = state + self.attention_out.forward(attended);
        let normed = self.norm_mlp.forward(view.stream(state.clone()));
        state + self.down.forward(self.gate_and_up.forward(normed))
    }

    /// Causal attention before its output weights, `[batch, context, d_model]` in and out.
    fn attention(&self, x: Tensor<3>, positions: &Positions, seen: Option<&mut Seen>) -> Tensor<3> {
        let [batch, context, d_model] = x.dims();
        let width = d_model / self.heads;
        let split = |y: Tensor<3>| {
            y.reshape([batch, context, self.heads, width])
                .swap_dims(1, 2)
        };
        let start = seen.as_ref().map_or(0, |seen| seen.positions());
        let end = start + context;
        let rotated = |y: Tensor<3>| positions.rotary.apply(split(y), start);
        let query = rotated(self.query.forward(x.clone()));
        let key = rotated(self.key.forward(x.clone()));
        let value = split(self.value.forward(x));
        let (key, value) = match seen {
            None => (key, value),
            Some(seen) => seen.extend(key, value),
        };
        let scores = query.matmul(key.swap_dims(2, 3)) / (width as f64).sqrt();
        let mask = positions.mask.clone().slice([start..end, 0..end]);
        let attended = softmax(scores + mask.unsqueeze(), 3).matmul(value);
        attended.swap_dims(1, 2).reshape([batch, context, d_model])
    }
}

impl Positions {
    /// Angles and mask for up to `config.context` positions.
    ///
    /// The angles are computed here in f64: in f32 they are off by 1e-3 at position 1,000.
    pub(super) fn new(config: &ModelConfig, numerics: Numerics, device: &Device) -> Self {
        let width = config.d_model / config.heads;
        let context = config.context;
        let frequencies: Vec<f64> = (0..width / 2)
            .map(|pair| {
                numerics
                    .rotary_base
                    .powf(-((2 * pair) as f64) / width as f64)
            })
            .collect();
        let mut angles = Vec::with_capacity(context * width * 2);
        for position in 0..context {
            for frequency in &frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                // Both neighbours of a pair turn by the same angle.
                angles.extend([cos, sin, cos, sin].map(narrow));
            }
        }
        let theta = frequencies.iter().copied().map(narrow).collect();
        let mut rotary = burn::nn::RotaryEncodingConfig::new(1, width).init(device);
        rotary.freq_complex = tensor(angles, [context, width, 2], device);
        rotary.theta = tensor(theta, [width / 2], device);
        let mask = (0..context * context)
            .map(|cell| {
                if cell % context > cell / context {
                    MASKED
                } else {
                    0.0
                }
            })
            .collect();
        Self {
            rotary,
            mask: tensor(mask, [context, context], device),
        }
    }

    /// Where its tensors are.
    pub(super) fn device(&self) -> Device {
        self.mask.device()
    }
}

/// To f32, for constants computed in f64.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to the nearest f32 is the point"
)]
pub(super) fn narrow(value: f64) -> f32 {
    value as f32
}

/// Uploads `values` of that shape.
pub(super) fn tensor<const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A linear layer without bias over weights `[in, out]`.
pub(super) fn linear(weight: TensorData, device: &Device) -> Linear {
    Linear {
        weight: Param::from_data(weight, device),
        bias: None,
    }
}

/// An RMS norm with gains `[width]`.
pub(super) fn norm(gain: TensorData, numerics: Numerics, device: &Device) -> RmsNorm {
    RmsNorm {
        gamma: Param::from_data(gain, device),
        epsilon: numerics.norm_epsilon,
    }
}
