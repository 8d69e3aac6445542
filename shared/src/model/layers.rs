//! A stage's layers: the module that burn differentiates, and its parameters by name.
//!
//! Owns which layers a stage has and in what order they run. Knows nothing of moments, steps or
//! loss scales: [`super::stage`] does. Invariant: [`Layers::slots`] lists the parameters exactly as
//! [`ModelConfig::parameters_of`] does, sorted by name.

use burn::module::{Module, Param};
use burn::nn::{Embedding, Linear, RmsNorm};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};

use super::block::{Block, Numerics, Positions, View, linear, norm};
use super::memory::Memory;
use crate::config::model::{ModelConfig, SUBSPACE, SUBSPACE_NEXT};

/// A stage's layers, without a tape.
#[derive(Module, Debug)]
pub(super) struct Layers {
    embed: Option<Embedding>,
    anchor: Option<Embedding>,
    basis: Option<Param<Tensor<2>>>,
    /// The run's subspace where it is adapted, and what becomes of it; no layer reads them here.
    subspace: Option<Param<Tensor<2>>>,
    subspace_next: Option<Param<Tensor<2>>>,
    blocks: Vec<Block>,
    norm_final: Option<RmsNorm>,
    head: Option<Linear>,
    pub(super) positions: Positions,
    index: usize,
}

impl Layers {
    pub(super) fn new(
        config: &ModelConfig,
        index: usize,
        numerics: Numerics,
        device: &Device,
        mut take: impl FnMut(&str) -> TensorData,
    ) -> Self {
        let mut table = |name: &str| Embedding {
            weight: Param::from_data(take(name), device),
        };
        let embed = (index == 0).then(|| table("embed"));
        let anchor = config.anchor_width(index);
        let anchor = anchor.map(|_| table(&format!("anchor.{index}")));
        let basis = config.learned_rank(index);
        let basis = basis.map(|_| Param::from_data(take(&format!("basis.{index}")), device));
        let adapted = config.adapted_rank();
        let subspace = adapted.map(|_| Param::from_data(take(SUBSPACE), device));
        let subspace_next = adapted.filter(|_| index == 0);
        let subspace_next = subspace_next.map(|_| Param::from_data(take(SUBSPACE_NEXT), device));
        let blocks = config
            .blocks_of(index)
            .map(|block| {
                let take = |part: &str| take(&format!("block.{block}.{part}"));
                Block::new(config, numerics, take, device)
            })
            .collect();
        let last = config.is_last(index);
        let norm_final = last.then(|| norm(take("norm_final"), numerics, device));
        let head = last.then(|| linear(take("head"), device));
        let positions = Positions::new(config, numerics, device);
        Self {
            embed,
            anchor,
            basis,
            subspace,
            subspace_next,
            blocks,
            norm_final,
            head,
            positions,
            index,
        }
    }

    /// The state after all blocks: the border, or the stream at the last stage.
    ///
    /// With a `memory`, what comes in are the positions after those in it.
    pub(super) fn forward(
        &self,
        input: Option<Tensor<3>>,
        tokens: Tensor<2, Int>,
        view: &View,
        mut memory: Option<&mut Memory>,
    ) -> Tensor<3> {
        let state = match (&self.embed, input) {
            (Some(embed), None) => embed.forward(tokens),
            (None, Some(input)) => {
                let anchored = self.anchor.as_ref().map(|anchor| anchor.forward(tokens));
                view.enter(self.index, input, anchored)
            }
            (Some(_), Some(_)) => panic!("stage 0 reads tokens, not a border"),
            (None, None) => panic!("a stage after stage 0 reads a border"),
        };
        // The last stage writes into the whole stream, for its head to read.
        let is_last = self.head.is_some();
        let (state, within) = if is_last {
            (view.stream(state), &View::Whole)
        } else {
            (state, view)
        };
        let blocks = self.blocks.iter().enumerate();
        let state = blocks.fold(state, |state, (index, block)| {
            let seen = memory.as_mut().map(|memory| memory.block(index));
            block.forward(state, within, &self.positions, seen)
        });
        if is_last {
            state
        } else {
            let learned = self.basis.as_ref().map(Param::val);
            view.leave(self.index, state, learned)
        }
    }

    /// The basis of the border after the stage, where it is learned.
    pub(super) fn basis(&self) -> Option<Tensor<2>> {
        self.basis.as_ref().map(Param::val)
    }

    /// What the head reads.
    pub(super) fn hidden(&self, stream: Tensor<3>) -> Tensor<3> {
        self.norm_final
            .as_ref()
            .expect("only the last stage has logits")
            .forward(stream)
    }

    pub(super) fn head(&self) -> &Linear {
        self.head.as_ref().expect("only the last stage has logits")
    }

    /// Every parameter with its name, sorted by name.
    pub(super) fn slots(&mut self, first_block: usize) -> Vec<(String, Slot<'_>)> {
        let mut slots = Vec::new();
        if let Some(embed) = &mut self.embed {
            slots.push(("embed".to_owned(), Slot::Matrix(&mut embed.weight)));
        }
        if let Some(anchor) = &mut self.anchor {
            let name = format!("anchor.{}", self.index);
            slots.push((name, Slot::Matrix(&mut anchor.weight)));
        }
        if let Some(basis) = &mut self.basis {
            slots.push((format!("basis.{}", self.index), Slot::Matrix(basis)));
        }
        if let Some(basis) = &mut self.subspace {
            slots.push((SUBSPACE.to_owned(), Slot::Matrix(basis)));
        }
        if let Some(basis) = &mut self.subspace_next {
            slots.push((SUBSPACE_NEXT.to_owned(), Slot::Matrix(basis)));
        }
        for (index, block) in self.blocks.iter_mut().enumerate() {
            let mut add = |part: &str, slot| {
                slots.push((format!("block.{}.{part}", first_block + index), slot));
            };
            add("query", Slot::Matrix(&mut block.query.weight));
            add("key", Slot::Matrix(&mut block.key.weight));
            add("value", Slot::Matrix(&mut block.value.weight));
            add(
                "attention_out",
                Slot::Matrix(&mut block.attention_out.weight),
            );
            add(
                "gate",
                Slot::Matrix(&mut block.gate_and_up.linear_inner.weight),
            );
            add(
                "up",
                Slot::Matrix(&mut block.gate_and_up.linear_outer.weight),
            );
            add("down", Slot::Matrix(&mut block.down.weight));
            add(
                "norm_attention",
                Slot::Vector(&mut block.norm_attention.gamma),
            );
            add("norm_mlp", Slot::Vector(&mut block.norm_mlp.gamma));
        }
        if let Some(norm_final) = &mut self.norm_final {
            slots.push(("norm_final".to_owned(), Slot::Vector(&mut norm_final.gamma)));
        }
        if let Some(head) = &mut self.head {
            slots.push(("head".to_owned(), Slot::Matrix(&mut head.weight)));
        }
        slots.sort_by(|(a, _), (b, _)| a.cmp(b));
        slots
    }
}

/// A parameter in its place.
pub(super) enum Slot<'a> {
    Vector(&'a mut Param<Tensor<1>>),
    Matrix(&'a mut Param<Tensor<2>>),
}

impl Slot<'_> {
    /// Its values, flat.
    pub(super) fn value(&self) -> Tensor<1> {
        match self {
            Self::Vector(param) => param.val(),
            Self::Matrix(param) => param.val().flatten(0, 1),
        }
    }

    /// Puts flat `values` in its place.
    pub(super) fn replace(self, values: Tensor<1>) {
        match self {
            Self::Vector(param) => *param = param.clone().map(|_| values),
            Self::Matrix(param) => *param = param.clone().map(|old| values.reshape(old.dims())),
        }
    }

    /// Its gradient, flat, if the tape has one.
    pub(super) fn gradient(&self, tape: &mut Gradients) -> Option<Tensor<1>> {
        match self {
            Self::Vector(param) => param.val().grad_remove(tape),
            Self::Matrix(param) => Some(param.val().grad_remove(tape)?.flatten(0, 1)),
        }
    }
}

/// `[sequences, context, width]` as token rows, `[tokens, width]`.
pub(super) fn rows(x: Tensor<3>) -> Tensor<2> {
    x.flatten(0, 1)
}

/// Sum of the negative log-probabilities of `targets` `[tokens, 1]`, shape `[1]`.
pub(super) fn cross_entropy_sum(logits: Tensor<2>, targets: Tensor<2, Int>) -> Tensor<1> {
    log_softmax(logits, 1).gather(1, targets).sum().neg()
}
