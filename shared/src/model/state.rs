//! A stage's state on the host: from the seed, from a blob, to a blob, and its hashes.
//!
//! A **blob** is one safetensors file with weights under their names, moments under `first/NAME` and
//! `second/NAME`, the optimizer's number of updates under `updates`, and, where pipelines merged, the outer
//! momentum under `outer/NAME`. Its own BLAKE3 hash names it in transfers and in the store. The **agreed** digest covers
//! the weights and then the outer momentum, if there is one, each in name order, f32 little-endian: what all replicas
//! must hold alike at a commit. Where pipelines merge gradients they hold the moments and the updates alike, too: the digest
//! covers them next.
//!
//! Blobs come from strangers. Invariant: a [`StageState`] that was read from one has exactly the
//! tensors of its stage, in their shapes, all finite. [`Blob`] reads some of them alone. Knows nothing of devices but
//! how to read one.

use std::borrow::Cow;

use burn::tensor::Transaction;
use safetensors::tensor::View;
use safetensors::{Dtype, SafeTensors};

use super::stage::Stage;
use crate::config::model::{ModelConfig, Parameter};
use crate::config::run::MergeKind;
use crate::derive::Derivation;
use crate::units::Digest;

/// Weights and moments of one stage, in name order.
#[derive(Clone, Debug, PartialEq)]
pub struct StageState {
    /// Values of each parameter, row by row.
    pub weights: Vec<Vec<f32>>,
    /// AdamW's first moments.
    pub first: Vec<Vec<f32>>,
    /// AdamW's second moments.
    pub second: Vec<Vec<f32>>,
    /// AdamW's updates so far, t.
    pub updates: u64,
    /// Momentum of the outer step; none before the first one, and after a round of a single pipeline.
    pub outer: Option<Vec<Vec<f32>>>,
}

/// A stage's blob with exactly its tensors' number; each is checked when it is read.
#[derive(Debug)]
pub struct Blob<'a> {
    file: SafeTensors<'a>,
    parameters: Vec<Parameter>,
    has_outer: bool,
}

/// Why a blob was refused. Fetch it from somebody else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It is no safetensors file.
    #[error("not a safetensors file: {reason}")]
    Format {
        /// What the parser said.
        reason: String,
    },
    /// Another number of tensors than the stage has.
    #[error("{found} tensors, stage {stage} has {expected}")]
    Count {
        /// Number of the stage.
        stage: usize,
        /// Tensors that its blobs have.
        expected: usize,
        /// Tensors that this one has.
        found: usize,
    },
    /// A tensor of the stage is not in it.
    #[error("no tensor {name}")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape or type than the stage needs.
    #[error("{name} is {found}, should be {expected}")]
    Shape {
        /// The tensor.
        name: String,
        /// Type and shape that it should have.
        expected: String,
        /// Type and shape that it has.
        found: String,
    },
    /// A tensor holds NaN or infinity, or a negative second moment.
    #[error("{name} holds a value that training cannot have produced")]
    Value {
        /// The tensor.
        name: String,
    },
}

/// The device could not be read: it is lost, or out of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device failed: {reason}")]
pub struct DeviceLost {
    /// What it said.
    pub reason: String,
}

impl StageState {
    /// What `stage` begins training from.
    #[must_use]
    pub fn initial(derivation: &Derivation, stage: usize) -> Self {
        let weights = derivation.initial_weights(stage);
        Self::untrained(weights.map(|(_, values)| values).collect())
    }

    /// These weights, as if no step had been made yet.
    #[must_use]
    pub fn untrained(weights: Vec<Vec<f32>>) -> Self {
        let zeros = zeros(&weights);
        Self {
            weights,
            first: zeros.clone(),
            second: zeros,
            updates: 0,
            outer: None,
        }
    }

    /// The weights of one parameter of `stage`, if it has that.
    pub(super) fn parameter(
        &self,
        config: &ModelConfig,
        stage: usize,
        name: &str,
    ) -> Option<&[f32]> {
        let parameters = config.parameters_of(stage);
        let position = parameters.iter().position(|it| it.name == name)?;
        self.weights.get(position).map(Vec::as_slice)
    }

    /// Copies a stage's state from its device.
    ///
    /// # Errors
    /// If the device is lost.
    pub async fn read(stage: &Stage) -> Result<Self, DeviceLost> {
        let (weights, first, second, updates) = stage.tensors();
        let count = weights.len();
        let mut transaction = Transaction::default();
        for tensor in weights.into_iter().chain(first).chain(second) {
            transaction = transaction.register(tensor);
        }
        let mut lists = read_all(transaction).await?;
        let second = lists.split_off(2 * count);
        let first = lists.split_off(count);
        Ok(Self {
            weights: lists,
            first,
            second,
            updates,
            outer: None,
        })
    }

    /// Hash of what is equal in all replicas at a commit: weights and outer momentum, or, where gradients are merged,
    /// weights, moments and updates.
    #[must_use]
    pub fn agreed_digest(&self, kind: MergeKind) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for values in self.weights.iter().chain(self.outer.iter().flatten()) {
            hasher.update(&to_bytes(values));
        }
        if kind == MergeKind::Gradient {
            for values in self.first.iter().chain(&self.second) {
                hasher.update(&to_bytes(values));
            }
            hasher.update(&self.updates.to_le_bytes());
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// The state as one safetensors file.
    ///
    /// # Panics
    /// If this is not the state of stage `stage` of `config`.
    #[must_use]
    pub fn to_blob(&self, config: &ModelConfig, stage: usize) -> Vec<u8> {
        let parameters = config.parameters_of(stage);
        assert_eq!(
            parameters.len(),
            self.weights.len(),
            "state of stage {stage}"
        );
        let mut tensors: Vec<(String, Entry<'_>)> = Vec::new();
        for (index, Parameter { name, shape, .. }) in parameters.iter().enumerate() {
            let trained = [
                (name.clone(), &self.weights[index]),
                (first_name(name), &self.first[index]),
                (second_name(name), &self.second[index]),
            ];
            let outer = self.outer.as_ref();
            let outer = outer.map(|outer| (outer_name(name), &outer[index]));
            let entries = trained.into_iter().chain(outer);
            tensors.extend(entries.map(|(name, values)| (name, Entry::Values { shape, values })));
        }
        tensors.push(("updates".to_owned(), Entry::Counter(self.updates)));
        safetensors::serialize(tensors, None).expect("tensors of known shapes serialise")
    }

    /// Reads the state of stage `stage` from a blob that anyone may have made.
    ///
    /// # Errors
    /// If it does not hold exactly that stage's tensors, all finite.
    pub fn from_blob(config: &ModelConfig, stage: usize, blob: &[u8]) -> Result<Self, StateError> {
        let blob = Blob::parse(config, stage, blob)?;
        Ok(Self {
            weights: blob.weights()?,
            first: blob.first()?,
            second: blob.second()?,
            updates: blob.updates()?,
            outer: blob.outer()?,
        })
    }
}

impl<'a> Blob<'a> {
    /// Reads which tensors a blob of stage `stage` has.
    ///
    /// # Errors
    /// If it is no safetensors file, or has another number of tensors than such a blob.
    pub fn parse(config: &ModelConfig, stage: usize, blob: &'a [u8]) -> Result<Self, StateError> {
        let file = parse(blob)?;
        let parameters = config.parameters_of(stage);
        let (found, expected) = (file.len(), 3 * parameters.len() + 1);
        let has_outer = found == expected + parameters.len();
        if found != expected && !has_outer {
            return Err(StateError::Count {
                stage,
                expected,
                found,
            });
        }
        Ok(Self {
            file,
            parameters,
            has_outer,
        })
    }

    /// The weights.
    ///
    /// # Errors
    /// If one is not there, has another shape, or holds NaN or infinity; so in what follows.
    pub fn weights(&self) -> Result<Vec<Vec<f32>>, StateError> {
        self.list(&str::to_owned)
    }

    /// The weights of one parameter.
    ///
    /// # Errors
    /// As [`Self::weights`], and where the stage has no such parameter.
    pub fn parameter(&self, name: &str) -> Result<Vec<f32>, StateError> {
        let of = self.parameters.iter().find(|it| it.name == name);
        let missing = || StateError::Missing {
            name: name.to_owned(),
        };
        values_of(&self.file, name, &of.ok_or_else(missing)?.shape)
    }

    /// AdamW's first moments.
    ///
    /// # Errors
    /// As [`Self::weights`].
    pub fn first(&self) -> Result<Vec<Vec<f32>>, StateError> {
        self.list(&first_name)
    }

    /// AdamW's second moments.
    ///
    /// # Errors
    /// As [`Self::weights`], and where one is negative.
    pub fn second(&self) -> Result<Vec<Vec<f32>>, StateError> {
        let second = self.list(&second_name)?;
        for (parameter, values) in self.parameters.iter().zip(&second) {
            if values.iter().any(|value| *value < 0.0) {
                return Err(StateError::Value {
                    name: second_name(&parameter.name),
                });
            }
        }
        Ok(second)
    }

    /// AdamW's updates so far.
    ///
    /// # Errors
    /// As [`Self::weights`].
    pub fn updates(&self) -> Result<u64, StateError> {
        let updates = bytes_of(&self.file, "updates", Dtype::U64, &[1])?;
        let updates = updates
            .try_into()
            .expect("a U64 of shape [1] is eight bytes");
        Ok(u64::from_le_bytes(updates))
    }

    /// Momentum of the outer step, if there is one.
    ///
    /// # Errors
    /// As [`Self::weights`].
    pub fn outer(&self) -> Result<Option<Vec<Vec<f32>>>, StateError> {
        self.has_outer.then(|| self.list(&outer_name)).transpose()
    }

    fn list(&self, name_of: &dyn Fn(&str) -> String) -> Result<Vec<Vec<f32>>, StateError> {
        self.parameters
            .iter()
            .map(|parameter| values_of(&self.file, &name_of(&parameter.name), &parameter.shape))
            .collect()
    }
}

/// One tensor of a blob. Its bytes are made as they are written: never those of all at once beside the blob.
enum Entry<'a> {
    Values {
        shape: &'a [usize],
        values: &'a [f32],
    },
    Counter(u64),
}

impl View for Entry<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Values { .. } => Dtype::F32,
            Self::Counter(_) => Dtype::U64,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Values { shape, .. } => shape,
            Self::Counter(_) => &[1],
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Values { values, .. } => to_bytes(values).into(),
            Self::Counter(count) => count.to_le_bytes().to_vec().into(),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Self::Values { values, .. } => size_of_val(*values),
            Self::Counter(count) => size_of_val(count),
        }
    }
}

/// Zeros in the shapes of these lists.
pub(super) fn zeros(lists: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let zeros = lists.iter().map(|values| vec![0.0; values.len()]);
    zeros.collect()
}

/// All tensors of a transaction as f32 lists, in order.
pub(super) async fn read_all(transaction: Transaction) -> Result<Vec<Vec<f32>>, DeviceLost> {
    let lost = |reason: String| DeviceLost { reason };
    let data = transaction
        .execute_async()
        .await
        .map_err(|error| lost(error.to_string()))?;
    data.into_iter()
        .map(|data| {
            data.try_to_vec::<f32>()
                .map_err(|error| lost(format!("{error:?}")))
        })
        .collect()
}

fn first_name(name: &str) -> String {
    format!("first/{name}")
}

fn second_name(name: &str) -> String {
    format!("second/{name}")
}

fn outer_name(name: &str) -> String {
    format!("outer/{name}")
}

pub(super) fn to_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn parse(blob: &[u8]) -> Result<SafeTensors<'_>, StateError> {
    SafeTensors::deserialize(blob).map_err(|error| StateError::Format {
        reason: error.to_string(),
    })
}

/// The bytes of a tensor, if it has that type and shape.
fn bytes_of<'a>(
    file: &SafeTensors<'a>,
    name: &str,
    dtype: Dtype,
    shape: &[usize],
) -> Result<&'a [u8], StateError> {
    let missing = |_| StateError::Missing {
        name: name.to_owned(),
    };
    let view = file.tensor(name).map_err(missing)?;
    if view.dtype() != dtype || view.shape() != shape {
        return Err(StateError::Shape {
            name: name.to_owned(),
            expected: format!("{dtype:?} {shape:?}"),
            found: format!("{:?} {:?}", view.dtype(), view.shape()),
        });
    }
    Ok(view.data())
}

/// The values of a tensor, if all are finite.
fn values_of(file: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>, StateError> {
    let (words, _) = bytes_of(file, name, Dtype::F32, shape)?.as_chunks::<4>();
    let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    if values.iter().all(|value| value.is_finite()) {
        Ok(values)
    } else {
        Err(StateError::Value {
            name: name.to_owned(),
        })
    }
}
