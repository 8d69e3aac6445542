//! The subspace that all borders share, where it is adapted: how a seat follows it.
//!
//! The last stage measures how much of the loss's gradient lies where; with the last backward of each step of a round that
//! ends with a turn, that goes up the pipe to stage 0, which keeps what the subspace is to be in its state. It takes effect
//! when the next round begins: the head turns its stages before its first forward, and sends the basis on with it, so that
//! all seats compute with the same bits from there on.

use burn::tensor::Tensor;

use super::{Seat, SeatError, all_finite, read, refuse, to_bytes};
use crate::config::model::{ModelConfig, SUBSPACE, SUBSPACE_NEXT};
use crate::model::basis;
use crate::model::block::tensor;
use crate::model::stage::Turn;
use crate::model::state::StageState;

/// How far columns may be from orthonormal ones: they were rounded to f32.
const ORTHONORMAL_TOLERANCE: f32 = 1e-3;
/// How much each direction keeps of itself in one turn, at least: a cosine. What `model/basis` turns by keeps 0.89, and a
/// merge turns by a mean of such.
const KEPT_MIN: f32 = 0.5;

/// The subspace as a seat knows it; all of it `[d_model, rank]`, row by row.
#[derive(Clone, Debug)]
pub(super) struct Adapted {
    rank: usize,
    /// What the seat's coordinates are in.
    pub(super) basis: Vec<f32>,
    /// What they are to be in when a round begins; anywhere but at the head that comes with the round.
    next: Vec<f32>,
    /// At the seat that measures: what this step's microbatches saw so far.
    measured: Option<Tensor<2>>,
    /// At the head: what the steps of this round saw.
    energy: Vec<f64>,
    /// At the head: what the step saw that is not applied yet; empty for nothing.
    step_energy: Vec<f32>,
}

impl Adapted {
    /// As the state of the seat's first stage says; none where the subspace stays as it is.
    pub(super) fn of(model: &ModelConfig, first: usize, state: &StageState) -> Option<Self> {
        let rank = model.adapted_rank()?;
        let basis = state.parameter(model, first, SUBSPACE)?.to_vec();
        let next = state.parameter(model, first, SUBSPACE_NEXT);
        Some(Self {
            rank,
            next: next.map_or_else(|| basis.clone(), <[f32]>::to_vec),
            measured: None,
            energy: vec![0.0; basis.len()],
            step_energy: Vec::new(),
            basis,
        })
    }

    /// Adds what a microbatch saw.
    pub(super) fn add(&mut self, seen: Tensor<2>) {
        self.measured = Some(match self.measured.take() {
            Some(sum) => sum + seen,
            None => seen,
        });
    }

    /// The step will not be applied.
    pub(super) fn forget_step(&mut self) {
        self.measured = None;
        self.step_energy.clear();
    }
}

impl Seat {
    /// A round begins: the head goes on in the basis that the rounds before led to.
    pub(super) fn turn_head(&mut self) {
        if let Some(adapted) = &mut self.adapted {
            adapted.energy.fill(0.0);
            let next = adapted.next.clone();
            self.turn(next);
        }
    }

    /// Goes on in the basis that came with a round's first border.
    pub(super) fn turn_to(&mut self, basis: Vec<f32>) -> Result<(), SeatError> {
        let Some(adapted) = &self.adapted else {
            return Ok(());
        };
        let rank = adapted.rank;
        let squares = basis::rotation(&basis, &basis, rank);
        let error = squares.iter().enumerate().map(|(at, value)| {
            let expected = if at / rank == at % rank { 1.0 } else { 0.0 };
            (value - expected).abs()
        });
        // Also where one is not a number.
        if !error.fold(0.0, f32::max).le(&ORTHONORMAL_TOLERANCE) || !all_finite(&squares) {
            return refuse("what came as a basis has no orthonormal columns".to_owned());
        }
        let across = basis::rotation(&adapted.basis, &basis, rank);
        let kept = across.iter().step_by(rank + 1);
        if kept.copied().fold(f32::INFINITY, f32::min) < KEPT_MIN {
            return refuse("a basis came that no turn leads to".to_owned());
        }
        self.turn(basis);
        Ok(())
    }

    fn turn(&mut self, to: Vec<f32>) {
        let Some(adapted) = &mut self.adapted else {
            return;
        };
        if to == adapted.basis {
            return;
        }
        let rank = adapted.rank;
        let rotation = basis::rotation(&adapted.basis, &to, rank);
        let square = |values: Vec<f32>| tensor(values, [rank, rank], &self.device);
        let turn = Turn {
            shares: square(basis::shares(&rotation, rank)),
            rotation: square(rotation),
            basis: tensor(to.clone(), [to.len() / rank, rank], &self.device),
        };
        self.stages.iter_mut().for_each(|stage| stage.turn(&turn));
        self.codec.set_subspace(&turn.basis);
        adapted.next.clone_from(&to);
        adapted.basis = to;
    }

    /// The head keeps what the step saw until it is applied; any other seat sends it on.
    pub(super) async fn end_energy(
        &mut self,
        came: Vec<f32>,
        gradient: &mut Option<Vec<u8>>,
    ) -> Result<(), SeatError> {
        let Some(adapted) = &mut self.adapted else {
            return Ok(());
        };
        let seen = match adapted.measured.take() {
            Some(measured) => read(vec![measured.flatten(0, 1)]).await?.remove(0),
            None => came,
        };
        match gradient {
            Some(gradient) => gradient.extend(to_bytes(&seen)),
            None => adapted.step_energy = seen,
        }
        Ok(())
    }

    /// The step was applied: what it saw counts, and stage 0 keeps what the subspace is to be.
    pub(super) fn count_energy(&mut self) {
        let Some(adapted) = &mut self.adapted else {
            return;
        };
        let seen = std::mem::take(&mut adapted.step_energy);
        // A number that is not finite would stay in the sum: such a step says nothing.
        if seen.is_empty() || !all_finite(&seen) {
            return;
        }
        for (sum, seen) in adapted.energy.iter_mut().zip(seen) {
            *sum += f64::from(seen);
        }
        if let Some(next) = basis::turned(&adapted.basis, &adapted.energy, adapted.rank) {
            let shape = [next.len() / adapted.rank, adapted.rank];
            adapted.next.clone_from(&next);
            self.stages[0].set_subspace_next(tensor(next, shape, &self.device));
        }
    }
}
