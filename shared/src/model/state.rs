//! A stage's state on the host: from the seed, from a blob, to a blob, and its hashes.
//!
//! A **blob** is one safetensors file with weights under their names, moments under `first/NAME` and
//! `second/NAME`, and the optimizer's number of updates under `updates`. Its own BLAKE3 hash
//! names it in transfers and in the store. The **agreed** digest covers the weights alone, in name order, f32
//! little-endian: what all replicas must hold alike at a commit.
//!
//! Blobs come from strangers. Invariant: a [`StageState`] that was read from one has exactly the
//! tensors of its stage, in their shapes, all finite. Knows nothing of devices but how to read one.

use burn::tensor::Transaction;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::stage::Stage;
use crate::config::model::{ModelConfig, Parameter};
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
        let weights: Vec<Vec<f32>> = derivation
            .initial_weights(stage)
            .map(|(_, values)| values)
            .collect();
        let zeros: Vec<Vec<f32>> = weights
            .iter()
            .map(|values| vec![0.0; values.len()])
            .collect();
        Self {
            weights,
            first: zeros.clone(),
            second: zeros,
            updates: 0,
        }
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
        })
    }

    /// Hash of the weights: equal in all replicas at a commit.
    #[must_use]
    pub fn agreed_digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for values in &self.weights {
            hasher.update(&to_bytes(values));
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
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for (index, Parameter { name, shape, .. }) in parameters.iter().enumerate() {
            let mut add = |name: String, values: &[f32]| {
                tensors.push((name, shape.clone(), to_bytes(values)));
            };
            add(name.clone(), &self.weights[index]);
            add(first_name(name), &self.first[index]);
            add(second_name(name), &self.second[index]);
        }
        let updates = self.updates.to_le_bytes();
        let counter = (
            "updates".to_owned(),
            TensorView::new(Dtype::U64, vec![1], &updates),
        );
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| {
                (
                    name.clone(),
                    TensorView::new(Dtype::F32, shape.clone(), bytes),
                )
            })
            .chain([counter])
            .map(|(name, view)| (name, view.expect("shapes and bytes agree")));
        safetensors::serialize(views, None).expect("tensors of known shapes serialise")
    }

    /// Reads the state of stage `stage` from a blob that anyone may have made.
    ///
    /// # Errors
    /// If it does not hold exactly that stage's tensors, all finite.
    pub fn from_blob(config: &ModelConfig, stage: usize, blob: &[u8]) -> Result<Self, StateError> {
        let file = parse(blob)?;
        let parameters = config.parameters_of(stage);
        let expected = 3 * parameters.len() + 1;
        if file.len() != expected {
            return Err(StateError::Count {
                stage,
                expected,
                found: file.len(),
            });
        }
        let list = |name_of: &dyn Fn(&str) -> String| -> Result<Vec<Vec<f32>>, StateError> {
            parameters
                .iter()
                .map(|parameter| values_of(&file, &name_of(&parameter.name), &parameter.shape))
                .collect()
        };
        let weights = list(&str::to_owned)?;
        let first = list(&first_name)?;
        let second = list(&second_name)?;
        for (parameter, values) in parameters.iter().zip(&second) {
            if values.iter().any(|value| *value < 0.0) {
                return Err(StateError::Value {
                    name: second_name(&parameter.name),
                });
            }
        }
        let updates = bytes_of(&file, "updates", Dtype::U64, &[1])?;
        let updates = updates
            .try_into()
            .expect("a U64 of shape [1] is eight bytes");
        Ok(Self {
            weights,
            first,
            second,
            updates: u64::from_le_bytes(updates),
        })
    }
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

fn to_bytes(values: &[f32]) -> Vec<u8> {
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
