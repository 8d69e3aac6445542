//! The mathematics of a merge: what replicas of a stage trained apart becomes one state again.
//!
//! In three parts, as the members of a group exchange them: [`contribute`] packs what a stage changed over the round,
//! a part for each member; [`average`] makes the weighted mean of the own part from everybody's; [`outer_step`]
//! moves the stage from the round's beginning by the means of all parts. What packing to fewer bits loses is returned and
//! goes into the next round's contribution, so that over the rounds nothing is lost.
//!
//! Invariant: members that hold the same start and the same averages end with the same bits on any machine. So all of
//! it is plain f32 on the CPU, value by value, sums in order of members, nothing fused, no function of a platform.
//! Knows lists of values and bytes: no devices, no files, no peers.
//!
//! # Source
//! DiLoCo, arXiv 2311.08105, algorithm 1.

mod gradient;

use std::ops::Range;

use bytes::Bytes;

use super::block::narrow;
use super::state::to_bytes;
use crate::config::model::NumberFormat;
use crate::config::run::MergeConfig;
use crate::wire::merge::{Shape, TILE};
use crate::wire::number::{self, NumberError, Rounding};

pub use gradient::{Update, contribute_gradient, gradient_step, norm_squared};

/// Bytes of one value of a residual.
const RESIDUAL_BYTES: usize = size_of::<f32>();

/// What a stage changed, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contribution {
    /// Packed, one part for each member, in order.
    pub parts: Vec<Bytes>,
    /// What packing lost of each value, f32 little-endian; empty where it loses nothing.
    pub residual: Bytes,
}

/// The average of the own part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Average {
    /// Packed.
    pub part: Bytes,
    /// What packing both lost of each value; empty where it loses nothing.
    pub residual: Bytes,
}

/// Why a merge was refused. Begin another attempt; the states are as they were.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// Who merges makes no sense.
    #[error(
        "member {own} of a group with {weights} weights, {shares} shares and {samples} samples in all"
    )]
    Group {
        /// Which member we should be.
        own: u16,
        /// Weights that are given.
        weights: usize,
        /// Shares that are given.
        shares: usize,
        /// Sum of the weights.
        samples: u128,
    },
    /// The stage is of another size.
    #[error("the stage has {expected} values, the merge is about {found}")]
    Values {
        /// Values of the stage.
        expected: usize,
        /// Values that the merge is about.
        found: u64,
    },
    /// Not one part of each member.
    #[error("{found} parts of {expected} members")]
    Parts {
        /// Members.
        expected: usize,
        /// Parts that there are.
        found: usize,
    },
    /// A part has not the length that was agreed.
    #[error("the part of member {member} has {found} bytes, should have {expected}")]
    Length {
        /// Who sent it.
        member: usize,
        /// Bytes that it should have.
        expected: usize,
        /// Bytes that it has.
        found: usize,
    },
    /// A scale is negative, infinite or not a number.
    #[error(
        "the part of member {member}: the scale of tile {tile} is not a finite positive number"
    )]
    Scale {
        /// Who sent it.
        member: usize,
        /// Which of the part's tiles.
        tile: usize,
    },
    /// A part holds NaN or infinity.
    #[error("the part of member {member} is NaN or infinite in {count} places")]
    Part {
        /// Who sent it.
        member: usize,
        /// How many of its values are.
        count: usize,
    },
    /// What packing lost before is of another size.
    #[error("what packing lost before has {found} bytes, should have {expected} or none")]
    Residual {
        /// Bytes that it should have.
        expected: usize,
        /// Bytes that it has.
        found: usize,
    },
    /// A result is NaN or infinite.
    #[error("{what} is NaN or infinite in {count} places")]
    NonFinite {
        /// Of what.
        what: &'static str,
        /// How many of its values are.
        count: usize,
    },
}

/// What the own stage changed over the round, `start - end`, and what packing lost before, packed for each member.
///
/// # Errors
/// If shape, states and residual do not fit each other, or the change is not finite.
pub fn contribute(
    shape: &Shape,
    start: &[Vec<f32>],
    end: &[Vec<f32>],
    residual: &[u8],
) -> Result<Contribution, MergeError> {
    let cut = Cut::of(shape)?;
    cut.check_values(start)?;
    cut.check_values(end)?;
    let mut carried = vec![0.0; cut.filled()];
    let mut rest = carried.as_mut_slice();
    for (start, end) in start.iter().zip(end) {
        let (own, after) = rest.split_at_mut(start.len());
        for ((value, start), end) in own.iter_mut().zip(start).zip(end) {
            *value = start - end;
        }
        rest = after;
    }
    cut.pack_parts(carried, residual)
}

/// The average of the own part of all members' contributions, weighted by their samples.
///
/// What packing it loses is lost to all members alike. The own next contribution brings it back: it counts for the
/// own weight only, so it is that much larger.
///
/// # Errors
/// If shape, parts and residual do not fit each other, or the average is not finite.
pub fn average(shape: &Shape, parts: &[Bytes], residual: &[u8]) -> Result<Average, MergeError> {
    let cut = Cut::of(shape)?;
    cut.check_residual(residual)?;
    cut.check_parts(parts)?;
    let own = usize::from(shape.own);
    let range = cut.parts[own].clone();
    let mut mean = vec![0.0; range.len()];
    for (member, (bytes, weight)) in parts.iter().zip(&shape.weights).enumerate() {
        let share = narrow(*weight as f64 / cut.samples);
        for (mean, value) in mean.iter_mut().zip(cut.unpack(own, member, bytes)?) {
            *mean += share * value;
        }
    }
    let values = cut.values.saturating_sub(range.start).min(range.len());
    // What fills the last tile up is nobody's value.
    mean[values..].fill(0.0);
    check_finite("the average", &mean)?;
    let (packed, lost) = pack(shape.format, &mean);
    let residual = match lost {
        None => Bytes::new(),
        Some(lost) => {
            let mut bytes = residual.to_vec();
            bytes.resize(cut.values * RESIDUAL_BYTES, 0);
            let ours = range.start * RESIDUAL_BYTES..(range.start + values) * RESIDUAL_BYTES;
            // Where the part is empty it may begin in what fills the last tile up.
            if !ours.is_empty() {
                let weight = shape.weights[own];
                let factor = narrow(cut.samples / weight as f64);
                feed_back(&mut bytes[ours], &lost, factor)?;
            }
            bytes.into()
        }
    };
    let part = packed.into();
    Ok(Average { part, residual })
}

/// The outer step: stochastic gradient descent with Nesterov momentum, on the averages of all parts.
///
/// With the average g: `momentum = mu * momentum + g`, then `weights -= rate * (g + mu * momentum)`, which is what
/// `torch.optim.SGD(momentum=mu, nesterov=True)` does (dampening 0, no decay) from a momentum of zero on.
///
/// # Errors
/// If shape, lists and parts do not fit each other, or a result is not finite. Then the lists are spoilt.
pub fn outer_step(
    shape: &Shape,
    config: &MergeConfig,
    weights: &mut [Vec<f32>],
    momentum: &mut [Vec<f32>],
    parts: &[Bytes],
) -> Result<(), MergeError> {
    let cut = Cut::of(shape)?;
    cut.check_values(weights)?;
    cut.check_values(momentum)?;
    let averages = cut.gathered(parts)?;
    let (rate, mu) = (narrow(config.learning_rate), narrow(config.momentum));
    let mut rest = averages.as_slice();
    for (weights, momentum) in weights.iter_mut().zip(momentum) {
        let (own, after) = rest.split_at(weights.len());
        for ((weight, momentum), average) in weights.iter_mut().zip(&mut *momentum).zip(own) {
            *momentum = mu * *momentum + average;
            *weight -= rate * (average + mu * *momentum);
        }
        check_finite("the outer momentum", momentum)?;
        check_finite("the merged stage", weights)?;
        rest = after;
    }
    Ok(())
}

/// Whether packing can lose anything.
const fn loses(format: NumberFormat) -> bool {
    match format {
        NumberFormat::F32 => false,
        NumberFormat::F16 | NumberFormat::Int8 => true,
    }
}

/// Packs whole tiles of finite values; what that loses of each, where it can.
fn pack(format: NumberFormat, values: &[f32]) -> (Vec<u8>, Option<Vec<f32>>) {
    let packed = number::pack(format, values, TILE, Rounding::Nearest);
    if !loses(format) {
        return (packed, None);
    }
    let mut lost = number::unpack(format, &packed, values.len() / TILE, TILE)
        .expect("finite values have finite scales");
    for (lost, value) in lost.iter_mut().zip(values) {
        *lost = value - *lost;
    }
    (packed, Some(lost))
}

/// Adds what was lost, times `factor`, to a residual. A member without weight cannot bring anything back.
fn feed_back(residual: &mut [u8], lost: &[f32], factor: f32) -> Result<(), MergeError> {
    if !factor.is_finite() {
        return Ok(());
    }
    let (words, _) = residual.as_chunks_mut::<RESIDUAL_BYTES>();
    let sums = words.iter().zip(lost);
    let sums: Vec<f32> = sums
        .map(|(word, lost)| f32::from_le_bytes(*word) + lost * factor)
        .collect();
    // Who kept it could never contribute again.
    check_finite("what packing lost", &sums)?;
    for (word, sum) in words.iter_mut().zip(sums) {
        *word = sum.to_le_bytes();
    }
    Ok(())
}

fn not_finite(values: &[f32]) -> usize {
    values.iter().filter(|value| !value.is_finite()).count()
}

fn check_finite(what: &'static str, values: &[f32]) -> Result<(), MergeError> {
    let count = not_finite(values);
    if count > 0 {
        return Err(MergeError::NonFinite { what, count });
    }
    Ok(())
}

/// A shape that makes sense, and where each member's part lies.
struct Cut<'a> {
    shape: &'a Shape,
    /// Values of the stage.
    values: usize,
    /// Sum of all weights.
    samples: f64,
    /// Each member's values, in order; the last ones go beyond the stage's, to the end of their tile.
    parts: Vec<Range<usize>>,
}

impl<'a> Cut<'a> {
    fn of(shape: &'a Shape) -> Result<Self, MergeError> {
        let Shape {
            weights,
            shares,
            own,
            ..
        } = shape;
        let samples: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        if weights.len() != shares.len() || usize::from(*own) >= weights.len() || samples == 0 {
            return Err(MergeError::Group {
                own: *own,
                weights: weights.len(),
                shares: shares.len(),
                samples,
            });
        }
        let values = usize::try_from(shape.values).map_err(|_| MergeError::Values {
            expected: usize::MAX,
            found: shape.values,
        })?;
        let mut end = 0;
        let parts = shape.tiles().into_iter().map(|tiles| {
            let start = end;
            end += tiles * TILE;
            start..end
        });
        Ok(Self {
            shape,
            values,
            samples: samples as f64,
            parts: parts.collect(),
        })
    }

    /// Values of all tiles.
    fn filled(&self) -> usize {
        self.values.next_multiple_of(TILE)
    }

    fn check_values(&self, lists: &[Vec<f32>]) -> Result<(), MergeError> {
        let expected = lists.iter().map(Vec::len).sum();
        if expected != self.values {
            return Err(MergeError::Values {
                expected,
                found: self.shape.values,
            });
        }
        Ok(())
    }

    fn check_residual(&self, bytes: &[u8]) -> Result<(), MergeError> {
        let expected = self.values * RESIDUAL_BYTES;
        if !bytes.is_empty() && bytes.len() != expected {
            return Err(MergeError::Residual {
                expected,
                found: bytes.len(),
            });
        }
        Ok(())
    }

    fn check_parts(&self, parts: &[Bytes]) -> Result<(), MergeError> {
        if parts.len() != self.parts.len() {
            return Err(MergeError::Parts {
                expected: self.parts.len(),
                found: parts.len(),
            });
        }
        Ok(())
    }

    /// Packs what the own stage brings, a value for each of all tiles, and what packing lost before.
    fn pack_parts(
        &self,
        mut carried: Vec<f32>,
        residual: &[u8],
    ) -> Result<Contribution, MergeError> {
        self.check_residual(residual)?;
        let (before, _) = residual.as_chunks::<RESIDUAL_BYTES>();
        for (value, before) in carried.iter_mut().zip(before) {
            *value += f32::from_le_bytes(*before);
        }
        check_finite("what the stage changed", &carried)?;
        let format = self.shape.format;
        let parts = self.parts.iter().map(|range| {
            let part = &mut carried[range.clone()];
            let (packed, lost) = pack(format, part);
            if let Some(lost) = lost {
                part.copy_from_slice(&lost);
            }
            Bytes::from(packed)
        });
        let parts = parts.collect();
        let residual = if loses(format) {
            to_bytes(&carried[..self.values]).into()
        } else {
            Bytes::new()
        };
        Ok(Contribution { parts, residual })
    }

    /// The stage's averaged values, from each member's part.
    fn gathered(&self, parts: &[Bytes]) -> Result<Vec<f32>, MergeError> {
        self.check_parts(parts)?;
        let mut averages = Vec::with_capacity(self.filled());
        for (member, bytes) in parts.iter().enumerate() {
            averages.extend(self.unpack(member, member, bytes)?);
        }
        averages.truncate(self.values);
        Ok(averages)
    }

    /// The values of a part that `member` sent, all of them finite.
    fn unpack(&self, part: usize, member: usize, bytes: &[u8]) -> Result<Vec<f32>, MergeError> {
        let tiles = self.parts[part].len() / TILE;
        let unpacked = number::unpack(self.shape.format, bytes, tiles, TILE);
        let values = unpacked.map_err(|error| match error {
            NumberError::Length {
                expected, found, ..
            } => MergeError::Length {
                member,
                expected,
                found,
            },
            NumberError::Scale { row } => MergeError::Scale { member, tile: row },
        })?;
        let count = not_finite(&values);
        if count > 0 {
            return Err(MergeError::Part { member, count });
        }
        Ok(values)
    }
}
