//! What crosses a border between stages, and how it becomes the residual stream again.
//!
//! Of the three codecs here, `dense` sends the stream itself. `subspace` (after "Protocol Models",
//! arXiv 2506.01260, in its re-parametrised form) keeps every branch output and the trainable
//! embedding inside the span of one basis `U`, so that `h = C U^T + F[token]` with fixed rows `F` that
//! both sides derive from the seed. The coordinates `C` are themselves the running state:
//! encoding costs nothing, and `h - F` never cancels. `projector` (after MAPL, arXiv 2606.05484) leaves the blocks as they
//! are and sends `C = h A_s`, coordinates in a basis that each border has for itself; the receiver goes on from
//! `C A_s^T + anchor[token] P`, with a table of its own that it trains. What lies outside the basis is lost.
//!
//! A codec acts at every stage border, inside a seat too. Number formats are not its business.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::block::{View, tensor};
use crate::config::model::{Codec, ModelConfig};
use crate::derive::Derivation;

/// Tables of at most this many values are kept on the device: 64 MiB.
const FIXED_TABLE_VALUES_MAX: usize = 16 << 20;

/// A codec with its tensors on a device.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "few of them exist, and boxing a tensor gains nothing"
)]
pub enum BorderCodec {
    /// The residual stream as it is.
    Dense,
    /// Coordinates in the span of `U`.
    Subspace {
        /// `U^T`, `[rank, d_model]`.
        lift: Tensor<2>,
        /// Where rows of `F` come from.
        fixed: FixedRows,
    },
    /// Coordinates in each border's own basis.
    Projector(Projector),
}

/// What `projector` does at borders.
#[derive(Clone, Debug)]
pub struct Projector {
    /// `A_s` of each border, in order, `[d_model, rank]`; what a run that learns them begins with.
    pub bases: Vec<Tensor<2>>,
    /// `P`, `[anchor, d_model]`.
    pub anchor_out: Tensor<2>,
}

/// Where rows of `F` come from.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "few of them exist, and boxing a tensor gains nothing"
)]
pub enum FixedRows {
    /// A table on the device, `[vocabulary, d_model]`.
    Table(Tensor<2>),
    /// Derived for the tokens at hand.
    Derived(Derivation),
}

/// The tokens of one microbatch on the device, with what the codec needs to know about them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Inputs, `[sequences, context]`.
    pub tokens: Tensor<2, Int>,
    /// What each position should predict, `[sequences, context]`.
    pub targets: Tensor<2, Int>,
    /// How this batch's border values become the stream.
    pub view: View,
}

impl BorderCodec {
    /// The codec of a run, from its seed.
    #[must_use]
    pub fn from_seed(derivation: &Derivation, device: &Device) -> Self {
        let config = derivation.config();
        match config.codec {
            Codec::Dense => Self::Dense,
            Codec::Subspace { .. } => {
                let basis = derivation.basis().expect("a subspace codec has a basis");
                let fixed = if config.vocabulary * config.d_model <= FIXED_TABLE_VALUES_MAX {
                    let last = u32::try_from(config.vocabulary).expect("validated vocabulary");
                    let rows = derivation.fixed_rows(&(0..last).collect::<Vec<_>>());
                    FixedRows::Table(tensor(rows, [config.vocabulary, config.d_model], device))
                } else {
                    FixedRows::Derived(derivation.clone())
                };
                Self::subspace(config, basis, fixed, device)
            }
            Codec::Projector { rank, anchor, .. } => {
                let basis = |stage| {
                    let basis = derivation.border_basis(stage);
                    let basis = basis.expect("a projector has a basis a border");
                    tensor(basis, [config.d_model, rank], device)
                };
                let out = derivation.anchor_out().expect("a projector has anchors");
                Self::Projector(Projector {
                    bases: (0..config.stages - 1).map(basis).collect(),
                    anchor_out: tensor(out, [anchor, config.d_model], device),
                })
            }
        }
    }

    /// A subspace codec with a given basis, `[d_model, rank]` row by row.
    #[must_use]
    pub fn subspace(
        config: &ModelConfig,
        basis: Vec<f32>,
        fixed: FixedRows,
        device: &Device,
    ) -> Self {
        let basis: Tensor<2> = tensor(basis, [config.d_model, config.boundary_width()], device);
        Self::Subspace {
            lift: basis.transpose(),
            fixed,
        }
    }

    /// The same but for the subspace's basis, `[d_model, rank]`.
    pub(super) fn set_subspace(&mut self, basis: &Tensor<2>) {
        if let Self::Subspace { lift, .. } = self {
            *lift = basis.clone().transpose();
        }
    }

    /// Brings a microbatch of whole samples to the device.
    ///
    /// # Shapes
    /// - `samples`: `[sequences, context + 1]` row by row, ids below the vocabulary
    ///
    /// # Panics
    /// If `samples` are not whole sequences.
    #[must_use]
    pub fn batch(&self, samples: &[u32], context: usize, device: &Device) -> Batch {
        assert!(
            samples.len().is_multiple_of(context + 1),
            "samples of {context} + 1 tokens"
        );
        let rows = samples.chunks_exact(context + 1);
        let inputs: Vec<u32> = rows
            .clone()
            .flat_map(|row| &row[..context])
            .copied()
            .collect();
        let targets: Vec<u32> = rows.flat_map(|row| &row[1..]).copied().collect();
        self.batch_of(&inputs, &targets, context, device)
    }

    /// Brings inputs and targets, `[sequences, context]` each, to the device.
    #[must_use]
    pub fn batch_of(
        &self,
        inputs: &[u32],
        targets: &[u32],
        context: usize,
        device: &Device,
    ) -> Batch {
        let sequences = inputs.len() / context;
        let upload = |ids: &[u32]| -> Tensor<2, Int> {
            let ids: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
            Tensor::from_data(TensorData::new(ids, [sequences, context]), device)
        };
        let tokens = upload(inputs);
        let view = match self {
            Self::Dense => View::Whole,
            Self::Projector(projector) => View::Projected(projector.clone()),
            Self::Subspace { lift, fixed } => {
                let [_, d_model] = lift.dims();
                let shape = [sequences, context, d_model];
                let fixed = match fixed {
                    FixedRows::Table(table) => table
                        .clone()
                        .select(0, tokens.clone().flatten(0, 1))
                        .reshape(shape),
                    FixedRows::Derived(derivation) => {
                        tensor(derivation.fixed_rows(inputs), shape, device)
                    }
                };
                View::Coordinates {
                    lift: lift.clone(),
                    fixed,
                }
            }
        };
        Batch {
            tokens,
            targets: upload(targets),
            view,
        }
    }
}
