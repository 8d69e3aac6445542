//! The mathematics of a merge: what replicas of a stage trained apart becomes one state again.
//!
//! In three parts, as the members of a group exchange them: [`contribute`] packs what a stage changed over the round,
//! a part for each member; [`average`] makes the weighted mean of the own part from everybody's, on each level of groups after
//! the other; [`outer_step`] moves the stage from the round's beginning by the means of all parts. What packing to
//! fewer bits loses is returned and goes into the next round's contribution, so that over the rounds nothing is lost.
//!
//! Invariant: members that hold the same start and the same averages end with the same bits on any machine. So all of
//! it is plain f32 on the CPU, value by value, sums in order of members, nothing fused, no function of a platform.
//! Knows lists of values and bytes: no devices, no files, no peers.
//!
//! # Source
//! DiLoCo, arXiv 2311.08105, algorithm 1.

mod gradient;
pub mod subspace;

use std::ops::Range;

use bytes::Bytes;

use super::basis;
use super::block::narrow;
use super::state::to_bytes;
use crate::config::model::{NumberFormat, Parameter};
use crate::config::run::MergeConfig;
use crate::wire::merge::{Shape, TILE};
use crate::wire::number::{self, NumberError, Rounding};

pub use gradient::{Update, contribute_gradient, gradient_step, norm_squared};

/// Bytes of one value of a residual.
const RESIDUAL_BYTES: usize = size_of::<f32>();

/// What a stage changed, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contribution {
    /// Packed, one part for each member of the first level, in order.
    pub parts: Vec<Bytes>,
    /// What packing lost of each value, f32 little-endian; empty where it loses nothing.
    pub residual: Bytes,
}

/// The average of the own part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Average {
    /// Packed: one part for each member of the next level, or one, where there is none.
    pub parts: Vec<Bytes>,
    /// What packing all lost of each value; empty where it loses nothing.
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
    /// There is no such level.
    #[error("level {level} of a merge of {levels}")]
    Level {
        /// Which one.
        level: usize,
        /// How many there are.
        levels: usize,
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
    /// The average of learned bases is none.
    #[error("the merged basis has columns that depend on each other")]
    Basis,
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
    let cut = Cut::of(shape, 0)?;
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

/// The average of the own part of what all members of a level's group bring, weighted by the samples behind it.
///
/// What packing it loses is lost to all that it is averaged of alike. The own next contribution brings it back: it counts
/// for the own weight only, so it is that much larger.
///
/// # Errors
/// If shape, level, parts and residual do not fit each other, or the average is not finite.
pub fn average(
    shape: &Shape,
    level: usize,
    parts: &[Bytes],
    residual: &[u8],
) -> Result<Average, MergeError> {
    let cut = Cut::of(shape, level)?;
    cut.check_residual(residual)?;
    cut.check_parts(parts)?;
    let own = shape.levels[level].own();
    let range = cut.parts[own].clone();
    let mut mean = vec![0.0; range.len()];
    for (member, (bytes, weight)) in parts.iter().zip(&shape.levels[level].weights).enumerate() {
        let share = narrow(*weight as f64 / cut.samples.max(1.0));
        for (mean, value) in mean.iter_mut().zip(cut.unpack(own, member, bytes)?) {
            *mean += share * value;
        }
    }
    // What fills the last tile up is nobody's value.
    let values = cut.values.saturating_sub(range.start).min(range.len());
    mean[values..].fill(0.0);
    check_finite("the average", &mean)?;
    let weight = shape.levels[0].weights[shape.levels[0].own()];
    // A member without weight cannot bring anything back.
    let factor = (weight > 0).then(|| narrow(cut.samples / weight as f64));
    let mut carried = residual.to_vec();
    let mut packed = Vec::new();
    for tiles in shape.parts_of_average(level) {
        let part = tiles.start * TILE..tiles.end * TILE;
        let (bytes, lost) = pack(
            shape.format,
            &mean[part.start - range.start..part.end - range.start],
        );
        packed.push(bytes.into());
        if let Some(lost) = lost {
            carried.resize(cut.values * RESIDUAL_BYTES, 0);
            let part = part.start.min(cut.values)..part.end.min(cut.values);
            let ours = part.start * RESIDUAL_BYTES..part.end * RESIDUAL_BYTES;
            if let Some(factor) = factor {
                feed_back(&mut carried[ours], &lost, factor)?;
            }
        }
    }
    Ok(Average {
        parts: packed,
        residual: carried.into(),
    })
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
    let cut = Cut::of(shape, 0)?;
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

/// Makes the columns of learned bases orthonormal again.
///
/// # Errors
/// If what was merged has columns that depend on each other.
pub fn restore_bases(parameters: &[Parameter], weights: &mut [Vec<f32>]) -> Result<(), MergeError> {
    for (parameter, values) in parameters.iter().zip(weights) {
        if let Some(rank) = parameter.basis_rank()
            && !basis::restore(values, rank)
        {
            return Err(MergeError::Basis);
        }
    }
    Ok(())
}

/// Whether packing can lose anything.
const fn loses(format: NumberFormat) -> bool {
    match format {
        NumberFormat::F32 => false,
        NumberFormat::F16 | NumberFormat::Int8 | NumberFormat::Int4 => true,
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

/// Adds what was lost, times `factor`, to a residual.
fn feed_back(residual: &mut [u8], lost: &[f32], factor: f32) -> Result<(), MergeError> {
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

/// A shape that makes sense, and where each member's part of a level lies.
struct Cut<'a> {
    shape: &'a Shape,
    /// Values of the stage.
    values: usize,
    /// Sum of the level's weights.
    samples: f64,
    /// Each member's values, in order; the last ones go beyond the stage's, to the end of their tile.
    parts: Vec<Range<usize>>,
}

impl<'a> Cut<'a> {
    fn of(shape: &'a Shape, level: usize) -> Result<Self, MergeError> {
        let deepest = shape.levels.len().checked_sub(1);
        if deepest.is_none_or(|deepest| level > deepest) {
            return Err(MergeError::Level {
                level,
                levels: shape.levels.len(),
            });
        }
        for (at, group) in shape.levels.iter().enumerate() {
            let members = group.members();
            let samples = group.samples();
            let is_group = group.shares.len() == members && group.own() < members;
            // A row that trained nothing brings nothing; all together bring something.
            if !is_group || samples == 0 && Some(at) == deepest {
                return Err(MergeError::Group {
                    own: group.own,
                    weights: members,
                    shares: group.shares.len(),
                    samples,
                });
            }
        }
        let values = usize::try_from(shape.values).map_err(|_| MergeError::Values {
            expected: usize::MAX,
            found: shape.values,
        })?;
        let parts = shape.parts(level).into_iter();
        Ok(Self {
            shape,
            values,
            samples: shape.levels[level].samples() as f64,
            parts: parts
                .map(|tiles| tiles.start * TILE..tiles.end * TILE)
                .collect(),
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
