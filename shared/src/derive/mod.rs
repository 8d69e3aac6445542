//! From the run's seed to numbers that are never sent: bases, fixed rows, initial weights.
//!
//! Everything is a pure function of (seed, name, element) and equal to the last bit natively
//! and in WASM. What makes it so: integers from a counter-based generator, sums of uniforms as
//! normal numbers, only `+ - * / sqrt` in f64 (IEEE rounds these alike everywhere), one fixed
//! order of operations, no fused multiply-add, no platform `sin` or `ln`.
//!
//! Begin with [`Derivation`]. The hash of [`Derivation::seed_hash`] is compared at the door, so
//! that a volunteer whose machine computes other numbers is refused before it spoils a run.
//! Bases that a run learns or adapts are state, and no business of this module.

mod basis;
pub mod samples;

use crate::config::model::{Codec, Initial, ModelConfig, Parameter};
use crate::random::Words;

pub use basis::orthonormal_columns;

/// Values of each weight that go into the seed hash.
const HASHED_VALUES: usize = 1024;
/// Rows of `F` that go into the seed hash, spread over the vocabulary.
const HASHED_ROWS: usize = 64;
/// Uniform 16-bit integers that add up to one normal number.
const UNIFORMS: u32 = 8;

/// Everything that a run's seed determines for a model of given sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Derivation {
    config: ModelConfig,
    seed: u64,
}

impl Derivation {
    /// Derives for a `config` that passed [`ModelConfig::validate`].
    #[must_use]
    pub const fn new(config: ModelConfig, seed: u64) -> Self {
        Self { config, seed }
    }

    /// The sizes that it derives for.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The run's seed.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// `U`: orthonormal columns that span the subspace of all borders; `None` without one.
    ///
    /// # Shapes
    /// - returns `[d_model, rank]`, row by row
    #[must_use]
    pub fn basis(&self) -> Option<Vec<f32>> {
        let Codec::Subspace { rank, .. } = self.config.codec else {
            return None;
        };
        Some(self.orthonormal("basis", rank))
    }

    /// `A_s` of the border after `stage`: orthonormal columns; `None` where borders have none of their own.
    ///
    /// # Shapes
    /// - returns `[d_model, rank]`, row by row
    #[must_use]
    pub fn border_basis(&self, stage: usize) -> Option<Vec<f32>> {
        let Codec::Projector { rank, .. } = self.config.codec else {
            return None;
        };
        Some(self.orthonormal(&format!("basis.{stage}"), rank))
    }

    /// `P`: what a receiver knows of a token becomes a part of the stream by it, as large as an embedding's; `None` where
    /// receivers know nothing of their own.
    ///
    /// # Shapes
    /// - returns `[anchor, d_model]`, row by row
    #[must_use]
    pub fn anchor_out(&self) -> Option<Vec<f32>> {
        let Codec::Projector { anchor, .. } = self.config.codec else {
            return None;
        };
        let deviation = 1.0 / (anchor as f64).sqrt();
        let mut normals = Normals::new(self.seed, "anchor_out");
        let values = (0..anchor * self.config.d_model).map(|_| round(normals.next() * deviation));
        Some(values.collect())
    }

    fn orthonormal(&self, name: &str, rank: usize) -> Vec<f32> {
        let rows = self.config.d_model;
        let mut normals = Normals::new(self.seed, name);
        let columns: Vec<f64> = (0..rows * rank).map(|_| normals.next()).collect();
        orthonormal_columns(columns, rows, rank)
            .expect("random columns are no combinations of each other")
    }

    /// `F[token]` for each of `tokens`: random signs, never trained and never sent.
    ///
    /// # Shapes
    /// - returns `[tokens, d_model]`, row by row
    #[must_use]
    pub fn fixed_rows(&self, tokens: &[u32]) -> Vec<f32> {
        let width = self.config.d_model;
        let words_per_row = width.div_ceil(32) as u64;
        let mut words = Words::new("fixed", &[self.seed]);
        let mut rows = Vec::with_capacity(tokens.len() * width);
        for &token in tokens {
            words.seek(u64::from(token) * words_per_row);
            let mut word = 0;
            for column in 0..width {
                if column % 32 == 0 {
                    word = words.next_word();
                }
                rows.push(if (word >> (column % 32)) & 1 == 0 {
                    -1.0
                } else {
                    1.0
                });
            }
        }
        rows
    }

    /// The values that `stage` begins training from, parameter by parameter in name order.
    ///
    /// # Panics
    /// If `stage` is not a stage of the model.
    pub fn initial_weights(
        &self,
        stage: usize,
    ) -> impl Iterator<Item = (Parameter, Vec<f32>)> + '_ {
        self.config
            .parameters_of(stage)
            .into_iter()
            .map(|parameter| {
                let values = self.initial_values(&parameter, parameter.values());
                (parameter, values)
            })
    }

    /// The first `count` values of a parameter, row by row.
    fn initial_values(&self, parameter: &Parameter, count: usize) -> Vec<f32> {
        let scaled = |deviation: f64| {
            let mut normals = Normals::new(self.seed, &parameter.name);
            (0..count)
                .map(|_| round(normals.next() * deviation))
                .collect()
        };
        match parameter.initial {
            Initial::Zero => vec![0.0; count],
            Initial::One => vec![1.0; count],
            Initial::Linear { fan_in } => scaled(1.0 / (3.0 * fan_in as f64).sqrt()),
            Initial::Normal => scaled(1.0),
            Initial::Basis { stage } => {
                let mut basis = self
                    .border_basis(stage)
                    .expect("a projector has a basis a border");
                basis.truncate(count);
                basis
            }
            Initial::Subspace => {
                let mut basis = self.basis().expect("a subspace has a basis");
                basis.truncate(count);
                basis
            }
        }
    }

    /// BLAKE3 over sizes, `U` or all `A_s` and `P`, 64 rows of `F` and the first 1,024 values of each weight.
    ///
    /// Two machines with the same hash derive the same numbers and may train together.
    #[must_use]
    pub fn seed_hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut add = |name: &str, shape: &[usize], values: &[f32]| {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(&(shape.len() as u64).to_le_bytes());
            for &size in shape {
                hasher.update(&(size as u64).to_le_bytes());
            }
            for value in values {
                hasher.update(&value.to_le_bytes());
            }
        };
        let config = &self.config;
        let sizes = [
            config.d_model,
            config.heads,
            config.d_ff,
            config.blocks,
            config.stages,
        ];
        add("sizes", &sizes, &[]);
        add("ends", &[config.vocabulary, config.context], &[]);
        if let Some(basis) = self.basis() {
            add("basis", &[config.d_model, config.boundary_width()], &basis);
            let tokens: Vec<u32> = (0..HASHED_ROWS)
                .map(|row| u32::try_from(row * config.vocabulary / HASHED_ROWS))
                .map(|token| token.expect("a validated vocabulary is far below 2^32"))
                .collect();
            add(
                "fixed",
                &[tokens.len(), config.d_model],
                &self.fixed_rows(&tokens),
            );
        }
        for stage in 0..config.stages - 1 {
            if let Some(basis) = self.border_basis(stage) {
                let shape = [config.d_model, config.boundary_width()];
                add(&format!("basis.{stage}"), &shape, &basis);
            }
        }
        if let Some(out) = self.anchor_out() {
            add(
                "anchor_out",
                &[out.len() / config.d_model, config.d_model],
                &out,
            );
        }
        for stage in 0..config.stages {
            for parameter in config.parameters_of(stage) {
                let count = parameter.values().min(HASHED_VALUES);
                let values = self.initial_values(&parameter, count);
                add(&parameter.name, &parameter.shape, &values);
            }
        }
        *hasher.finalize().as_bytes()
    }
}

/// [`Derivation::seed_hash`] without keeping the derivation.
#[must_use]
pub fn seed_hash(config: &ModelConfig, seed: u64) -> [u8; 32] {
    Derivation::new(config.clone(), seed).seed_hash()
}

/// Normal numbers as scaled sums of eight uniform 16-bit integers (Irwin-Hall).
///
/// Mean 0 and variance 1 exactly, largest absolute value 4.9, excess kurtosis -0.15: close enough for
/// initial weights, and free of logarithms.
struct Normals {
    words: Words,
    scale: f64,
}

impl Normals {
    fn new(seed: u64, name: &str) -> Self {
        // A uniform integer below n has variance (n^2 - 1) / 12; the sum of eight has eight times that.
        let variance = f64::from(UNIFORMS) * (65_536.0 * 65_536.0 - 1.0) / 12.0;
        Self {
            words: Words::new(name, &[seed]),
            scale: 1.0 / variance.sqrt(),
        }
    }

    fn next(&mut self) -> f64 {
        let mut sum = 0;
        for _ in 0..UNIFORMS / 2 {
            let word = self.words.next_word();
            sum += (word & 0xffff) + (word >> 16);
        }
        // Twice the mean of the sum is the integer UNIFORMS * 65535.
        (f64::from(sum) - f64::from(UNIFORMS * 65_535) / 2.0) * self.scale
    }
}

/// To the nearest f32, ties to even: the same on every IEEE machine.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to the nearest f32 is the point"
)]
fn round(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Basis;
    use expect_test::{Expect, expect};

    fn small() -> ModelConfig {
        ModelConfig {
            d_model: 32,
            heads: 4,
            d_ff: 48,
            blocks: 4,
            stages: 4,
            vocabulary: 61,
            context: 16,
            codec: Codec::fixed_subspace(8),
        }
    }

    fn projector() -> ModelConfig {
        ModelConfig {
            codec: Codec::Projector {
                rank: 8,
                anchor: 6,
                basis: Basis::Fixed,
            },
            ..small()
        }
    }

    fn check_hash(config: &ModelConfig, seed: u64, hash: Expect) {
        hash.assert_eq(&blake3::Hash::from_bytes(seed_hash(config, seed)).to_hex());
    }

    #[test]
    fn the_seed_hash_is_the_same_today_as_when_runs_were_begun_with_it() {
        check_hash(
            &small(),
            1,
            expect!["45e26a6b7b89423fd70323bc1e78f61f062b5976db985a6f05f307a9c89f4ef4"],
        );
        check_hash(
            &ModelConfig {
                codec: Codec::Dense,
                ..small()
            },
            1,
            expect!["5157947a7daed51fa3937a8adf6defb9552a1e34027213a40b2b5faa88d77c46"],
        );
        check_hash(
            &projector(),
            1,
            expect!["66a7f0bad42e0a70a4aca11261bd4aef69b84af60d609b0ef823314ab6fc5da3"],
        );
        check_hash(
            &ModelConfig::tiny(),
            20_261_120,
            expect!["e8316d90c430a7c1c2f9f6509f3c9c2aff6fd93635ce74b5c7486c243d905068"],
        );
    }

    #[test]
    fn another_seed_or_size_has_another_hash() {
        let reference = seed_hash(&small(), 1);
        assert_ne!(seed_hash(&small(), 2), reference);
        assert_ne!(
            seed_hash(
                &ModelConfig {
                    heads: 2,
                    ..small()
                },
                1
            ),
            reference
        );
        assert_ne!(
            seed_hash(
                &ModelConfig {
                    context: 17,
                    ..small()
                },
                1
            ),
            reference
        );
        assert_ne!(
            seed_hash(
                &ModelConfig {
                    stages: 2,
                    ..small()
                },
                1
            ),
            reference
        );
    }

    #[test]
    fn bases_have_orthonormal_columns_each_border_of_a_projector_its_own() {
        let check = |basis: &[f32], rank: usize| {
            for (a, b) in (0..rank).flat_map(|a| (0..rank).map(move |b| (a, b))) {
                let rows = basis.chunks_exact(rank);
                let dot: f64 = rows.map(|row| f64::from(row[a]) * f64::from(row[b])).sum();
                let expected = f64::from(u8::from(a == b));
                assert!((dot - expected).abs() < 1e-6, "{a} {b}: {dot}");
            }
        };
        let subspace = Derivation::new(ModelConfig::tiny(), 3);
        check(&subspace.basis().expect("a subspace"), 32);
        assert_eq!(subspace.border_basis(0), None);
        let projector = Derivation::new(projector(), 1);
        assert_eq!(projector.basis(), None);
        let bases = [0, 1, 2].map(|stage| projector.border_basis(stage).expect("a projector"));
        bases.iter().for_each(|basis| check(basis, 8));
        assert!(bases[0] != bases[1] && bases[1] != bases[2]);
        // What an anchor adds to the stream has a variance of one, as an embedding.
        let out = projector.anchor_out().expect("a projector");
        let square: f64 = out.iter().map(|value| f64::from(*value).powi(2)).sum();
        assert!((square / 32.0 - 1.0).abs() < 0.15, "{square}");
    }

    #[test]
    fn fixed_rows_are_balanced_signs_and_the_same_in_any_company() {
        let derivation = Derivation::new(ModelConfig::tiny(), 3);
        let all: Vec<u32> = (0..256).collect();
        let table = derivation.fixed_rows(&all);
        assert!(table.iter().all(|&sign| sign == 1.0 || sign == -1.0));
        let sum: f32 = table.iter().sum();
        assert!(sum.abs() < 5.0 * (table.len() as f32).sqrt(), "{sum}");
        let some = derivation.fixed_rows(&[200, 3, 200]);
        assert_eq!(some[..128], table[200 * 128..201 * 128]);
        assert_eq!(some[128..256], table[3 * 128..4 * 128]);
        assert_eq!(some[256..], some[..128]);
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let mut normals = Normals::new(5, "test");
        let draws: Vec<f64> = (0..100_000).map(|_| normals.next()).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / 1e5;
        assert!(
            mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02,
            "{mean} {variance}"
        );
    }

    #[test]
    fn linear_weights_have_variance_one_over_three_fan_in() {
        let derivation = Derivation::new(ModelConfig::tiny(), 9);
        let (_, gate) = derivation
            .initial_weights(1)
            .find(|(parameter, _)| parameter.name == "block.1.gate")
            .expect("stage 1 has block 1");
        let variance = gate.iter().map(|&x| f64::from(x * x)).sum::<f64>() / gate.len() as f64;
        assert!((variance * 3.0 * 128.0 - 1.0).abs() < 0.05, "{variance}");
    }
}
