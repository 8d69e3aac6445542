//! Which stage made a number that is not finite: looked for only after one was seen.
//!
//! The border or loss that leaves a seat is looked at anyway. If it is bad, the borders inside the seat
//! are read one by one, in the order of computing, until the first bad one is found.

use burn::tensor::Tensor;

use super::{Kept, Seat, SeatError, all_finite, number, read};
use crate::model::state::DeviceLost;
use crate::units::StageId;

impl Seat {
    /// The first stage whose output in a forward is not finite; without `output`, the last one has a loss.
    pub(super) async fn blame_forward(
        &self,
        kept: &Kept,
        output: Option<Tensor<3>>,
    ) -> Result<SeatError, DeviceLost> {
        let inner = kept.inputs[1..].iter().cloned().chain([output]);
        let mut stage = self.first();
        for output in inner.flatten() {
            if !all_finite(&read(vec![output.flatten(0, 2)]).await?[0]) {
                break;
            }
            stage += 1;
        }
        Ok(SeatError::NonFinite {
            stage: StageId(number(stage)),
            own: kept.finite,
        })
    }

    /// The first stage, from the seat's end, whose input gradient is not finite.
    pub(super) async fn blame_backward(
        &self,
        kept: &Kept,
        flowed: &[(StageId, Tensor<3>)],
    ) -> Result<SeatError, DeviceLost> {
        let mut blamed = StageId(number(self.first()));
        for (stage, gradient) in flowed {
            if !all_finite(&read(vec![gradient.clone().flatten(0, 2)]).await?[0]) {
                blamed = *stage;
                break;
            }
        }
        Ok(SeatError::NonFinite {
            stage: blamed,
            own: self.gradients_finite && kept.finite,
        })
    }
}
