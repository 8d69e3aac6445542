//! Which tensors a stage trains, and what each begins from.

use super::{Codec, ModelConfig};

/// The basis of the subspace that a stage's coordinates are in, where that is adapted.
pub(crate) const SUBSPACE: &str = "basis";
/// At stage 0: the one that they will be in when the next round begins.
pub(crate) const SUBSPACE_NEXT: &str = "basis.next";

/// How a parameter begins; see `derive` for the numbers themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// Zero: branch outputs and the head.
    Zero,
    /// One: norm gains.
    One,
    /// Normal with mean 0 and this variance's root as deviation: `1 / (3 fan_in)`.
    Linear {
        /// Rows of the weight, that is, the width of what it is applied to.
        fan_in: usize,
    },
    /// Standard normal: tables of tokens.
    Normal,
    /// Orthonormal columns, those of the border after `stage`; they stay orthonormal.
    Basis {
        /// Whose border it is.
        stage: usize,
    },
    /// Orthonormal columns, those of the subspace that all borders share. No gradient moves it.
    Subspace,
}

/// One parameter tensor of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name within the whole model, such as `block.3.gate`.
    pub name: String,
    /// `[in, out]` for weights, `[width]` for gains, `[vocabulary, width]` for tables.
    pub shape: Vec<usize>,
    /// What it starts from.
    pub initial: Initial,
}

impl ModelConfig {
    /// Every parameter of `stage`, sorted by name: the order of hashes, norms and blobs.
    ///
    /// # Panics
    /// If `stage` is not below `stages`.
    #[must_use]
    pub fn parameters_of(&self, stage: usize) -> Vec<Parameter> {
        let d_model = self.d_model;
        let write = self.branch_width(stage);
        let linear = |fan_in: usize| Initial::Linear { fan_in };
        let mut list = Vec::new();
        let mut add = |name: String, shape: &[usize], initial: Initial| {
            list.push(Parameter {
                name,
                shape: shape.to_vec(),
                initial,
            });
        };
        if stage == 0 {
            add(
                "embed".to_owned(),
                &[self.vocabulary, self.state_width()],
                Initial::Normal,
            );
        }
        if let Some(width) = self.anchor_width(stage) {
            add(
                format!("anchor.{stage}"),
                &[self.vocabulary, width],
                Initial::Normal,
            );
        }
        if let Some(rank) = self.learned_rank(stage) {
            let initial = Initial::Basis { stage };
            add(format!("basis.{stage}"), &[d_model, rank], initial);
        }
        if let Some(rank) = self.adapted_rank() {
            let shape = [d_model, rank];
            add(SUBSPACE.to_owned(), &shape, Initial::Subspace);
            if stage == 0 {
                add(SUBSPACE_NEXT.to_owned(), &shape, Initial::Subspace);
            }
        }
        for block in self.blocks_of(stage) {
            let name = |part: &str| format!("block.{block}.{part}");
            for part in ["query", "key", "value"] {
                add(name(part), &[d_model, d_model], linear(d_model));
            }
            add(name("attention_out"), &[d_model, write], Initial::Zero);
            add(name("gate"), &[d_model, self.d_ff], linear(d_model));
            add(name("up"), &[d_model, self.d_ff], linear(d_model));
            add(name("down"), &[self.d_ff, write], Initial::Zero);
            add(name("norm_attention"), &[d_model], Initial::One);
            add(name("norm_mlp"), &[d_model], Initial::One);
        }
        if self.is_last(stage) {
            add("norm_final".to_owned(), &[d_model], Initial::One);
            add(
                "head".to_owned(),
                &[d_model, self.vocabulary],
                Initial::Zero,
            );
        }
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// Whether each row of a parameter of `stage` is a vector of the stream, as coordinates in the run's subspace.
    #[must_use]
    pub fn holds_coordinates(&self, stage: usize, parameter: &Parameter) -> bool {
        let Codec::Subspace { .. } = self.codec else {
            return false;
        };
        let name = parameter.name.as_str();
        let is_branch = name.ends_with(".attention_out") || name.ends_with(".down");
        name == "embed" || is_branch && !self.is_last(stage)
    }

    /// Number of trained values in `stage`; times 12 bytes with both moments, plus gradients.
    #[must_use]
    pub fn parameter_count_of(&self, stage: usize) -> usize {
        self.parameters_of(stage)
            .iter()
            .map(Parameter::values)
            .sum()
    }

    /// Number of trained values in the whole model.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        (0..self.stages)
            .map(|stage| self.parameter_count_of(stage))
            .sum()
    }
}

impl Parameter {
    /// Number of values in the tensor.
    #[must_use]
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether weight decay acts on it: two-dimensional tensors only, tables included, bases not.
    #[must_use]
    pub fn decays(&self) -> bool {
        self.shape.len() == 2 && self.basis_rank().is_none() && !self.is_subspace()
    }

    /// Columns of a learned basis, which stay orthonormal; `None` for all else.
    #[must_use]
    pub fn basis_rank(&self) -> Option<usize> {
        match self.initial {
            Initial::Basis { .. } => Some(self.shape[1]),
            Initial::Zero
            | Initial::One
            | Initial::Linear { .. }
            | Initial::Normal
            | Initial::Subspace => None,
        }
    }

    /// Whether it is the run's subspace, or what becomes of that: no optimizer touches it.
    #[must_use]
    pub fn is_subspace(&self) -> bool {
        self.initial == Initial::Subspace
    }
}
