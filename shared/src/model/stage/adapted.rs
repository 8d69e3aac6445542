//! The subspace that all borders share, where it is adapted: what the last stage sees of it, and how a stage turns with it.
//!
//! What turns is what holds coordinates: the embedding, what branches write, and their moments. No stage chooses where to;
//! the head does ([`crate::model::basis`]), from what the last stage measures.

use burn::tensor::Tensor;

use super::Stage;
use crate::config::model::SUBSPACE_NEXT;
use crate::model::adamw::Moments;
use crate::model::block::View;
use crate::model::layers::rows;

/// From one basis of the subspace to another.
#[derive(Debug)]
pub(in crate::model) struct Turn {
    /// What coordinates are multiplied by, `[rank, rank]`.
    pub(in crate::model) rotation: Tensor<2>,
    /// What second moments are multiplied by, `[rank, rank]`.
    pub(in crate::model) shares: Tensor<2>,
    /// The other one, `[d_model, rank]`.
    pub(in crate::model) basis: Tensor<2>,
}

/// Of the gradient of the stream, `[batch, context, d_model]`: that of the border, and `g^T g U`, summed over tokens.
pub(super) fn measured(stream: Tensor<3>, lift: Tensor<2>) -> (Tensor<3>, Tensor<2>) {
    let border = stream.clone().matmul(lift.transpose().unsqueeze());
    let energy = rows(stream).transpose().matmul(rows(border.clone()));
    (border, energy)
}

impl Stage {
    /// `U^T`, where this is the stage that sees the whole gradient of the stream behind the last border.
    pub(super) fn measured_lift(&self, view: &View) -> Option<Tensor<2>> {
        let measures = self.config.is_last(self.index) && self.config.adapted_rank().is_some();
        match view {
            View::Coordinates { lift, .. } if measures => Some(lift.clone()),
            View::Coordinates { .. } | View::Whole | View::Projected(_) => None,
        }
    }

    /// Goes on in another basis: the nearest vectors there, in its coordinates.
    pub(in crate::model) fn turn(&mut self, turn: &Turn) {
        let [_, rank] = turn.basis.dims();
        let times = |values: Tensor<1>, by: &Tensor<2>| -> Tensor<1> {
            let [count] = values.dims();
            let coordinates: Tensor<2> = values.reshape([count / rank, rank]);
            coordinates.matmul(by.clone()).flatten(0, 1)
        };
        let slots = self.layers.slots(self.config.blocks_of(self.index).start);
        let tensors = slots.into_iter().zip(&mut self.moments);
        for (((_, slot), moments), parameter) in tensors.zip(&self.parameters) {
            if parameter.is_subspace() {
                slot.replace(turn.basis.clone().flatten(0, 1));
            } else if self.config.holds_coordinates(self.index, parameter) {
                let weights = times(slot.value(), &turn.rotation);
                slot.replace(weights);
                *moments = Moments {
                    first: times(moments.first.clone(), &turn.rotation),
                    second: times(moments.second.clone(), &turn.shares),
                };
            }
        }
    }

    /// What the subspace will be when the next round begins; at stage 0.
    pub(in crate::model) fn set_subspace_next(&mut self, basis: Tensor<2>) {
        let slots = self.layers.slots(self.config.blocks_of(self.index).start);
        let next = slots.into_iter().find(|(name, _)| name == SUBSPACE_NEXT);
        let (_, slot) = next.expect("stage 0 has it where the subspace is adapted");
        slot.replace(basis.flatten(0, 1));
    }
}
