//! A trained model as other programs load it: Llama's layout in one safetensors file.
//!
//! In a run the model is cut into stages, and with the `subspace` codec its borders are coordinates:
//! branches write through `U^T`, tokens add fixed rows `F`. All of that is linear, so it folds
//! away ([`PlainModel::fold`]): what is left is an ordinary transformer of full width, the same function.
//! Llama's files hold each matrix as `[out, in]`, and rotate the halves of a head where we rotate
//! neighbouring pairs; [`layout`] is that change of order, both ways.
//!
//! Invariant: a [`PlainModel`] has exactly the tensors of its configuration, in their shapes.

mod layout;
pub mod reader;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use shared::config::model::{Codec, ModelConfig, NORM_EPSILON, Parameter, ROTARY_BASE};
use shared::derive::Derivation;
use shared::model::block::Numerics;
use shared::model::codec::{Batch, BorderCodec};
use shared::model::stage::Stage;
use shared::model::state::StageState;

/// The weights' file in an exported folder.
pub const MODEL_FILE: &str = "model.safetensors";
/// The sizes' file.
pub const CONFIG_FILE: &str = "config.json";
/// The tokenizer's file.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// A whole model of full width in a single stage.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainModel {
    config: ModelConfig,
    /// By name, each as [`ModelConfig::parameters_of`] says.
    weights: BTreeMap<String, Vec<f32>>,
}

/// Why a folder holds no model that we can load.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LlamaError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path}: {reason}")]
    Content {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// `config.json`, as far as it decides what is computed.
#[derive(Debug, Serialize, Deserialize)]
struct Sizes {
    architectures: Vec<String>,
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    max_position_embeddings: usize,
    vocab_size: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    hidden_act: String,
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    torch_dtype: Option<String>,
}

impl PlainModel {
    /// Folds the run's codec into the weights of all stages, in their order.
    ///
    /// # Panics
    /// If `stages` are not the parameters of all stages of the derivation's configuration, or its borders lose something.
    pub fn fold(derivation: &Derivation, stages: Vec<Vec<(Parameter, Vec<f32>)>>) -> Self {
        let run = derivation.config();
        assert_eq!(stages.len(), run.stages, "one list of weights a stage");
        let is_lossy = matches!(run.codec, Codec::Projector { .. });
        assert!(!is_lossy, "what a projector loses does not fold away");
        let device = Device::flex();
        // Where the subspace turned while the model trained, its stages say where it is.
        let turned = stages.iter().flatten().find(|(it, _)| it.is_subspace());
        let turned = turned.map(|(_, values)| values.clone());
        let lift = turned.or_else(|| derivation.basis()).map(|basis| {
            let shape = [run.d_model, run.boundary_width()];
            Tensor::<2>::from_data(TensorData::new(basis, shape), &device).transpose()
        });
        let mut weights = BTreeMap::new();
        for (stage, parameters) in stages.into_iter().enumerate() {
            for (parameter, values) in parameters {
                let folded = match &lift {
                    _ if parameter.is_subspace() => continue,
                    Some(lift) if run.holds_coordinates(stage, &parameter) => {
                        widen(values, &parameter, lift, &device)
                    }
                    Some(_) | None => values,
                };
                weights.insert(parameter.name, folded);
            }
        }
        if lift.is_some() {
            let tokens = u32::try_from(run.vocabulary).expect("a validated vocabulary");
            let embed = weights.get_mut("embed").expect("stage 0 has an embedding");
            for token in 0..tokens {
                let start = token as usize * run.d_model;
                let row = &mut embed[start..start + run.d_model];
                for (value, fixed) in row.iter_mut().zip(derivation.fixed_rows(&[token])) {
                    *value += fixed;
                }
            }
        }
        Self::new(run, weights).expect("the stages' parameters are the model's")
    }

    fn new(sizes: &ModelConfig, weights: BTreeMap<String, Vec<f32>>) -> Result<Self, String> {
        let config = ModelConfig {
            codec: Codec::Dense,
            stages: 1,
            ..sizes.clone()
        };
        for Parameter { name, shape, .. } in config.parameters_of(0) {
            let expected: usize = shape.iter().product();
            match weights.get(&name).map(Vec::len) {
                Some(found) if found == expected => {}
                Some(found) => return Err(format!("{name} has {found} values, not {expected}")),
                None => return Err(format!("there is no {name}")),
            }
        }
        Ok(Self { config, weights })
    }

    /// Its sizes; one stage, no codec.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The model on a device, ready to compute.
    pub fn stage(&self, device: &Device) -> Stage {
        let of = |parameter: &Parameter| self.weights[&parameter.name].clone();
        let weights = self.config.parameters_of(0).iter().map(of).collect();
        let state = StageState::untrained(weights);
        Stage::new(&self.config, 0, Numerics::default(), state, device)
    }

    /// One row of tokens for [`Self::stage`]; at most the model's context.
    pub fn batch(tokens: &[u32], device: &Device) -> Batch {
        BorderCodec::Dense.batch_of(tokens, tokens, tokens.len(), device)
    }

    /// Writes model and sizes into `folder`, each file whole or not at all.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, folder: &Path, model_file: &str) -> Result<(), LlamaError> {
        let tensors = layout::to_llama(&self.config, &self.weights);
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .map(|(name, shape, values)| {
                let bytes = values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect();
                (name, shape, bytes)
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            (name.as_str(), view.expect("shapes and bytes agree"))
        });
        // Loaders look at the format to know whose order of axes it is.
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let file = safetensors::serialize(views, Some(metadata))
            .expect("tensors of known shapes serialise");
        let config = serde_json::to_vec_pretty(&self.sizes()).expect("plain values");
        write_whole(&folder.join(model_file), &file)?;
        write_whole(&folder.join(CONFIG_FILE), &config)
    }

    /// Loads what [`Self::save`] wrote, or another model of Llama's kind with as many key as query heads.
    ///
    /// # Errors
    /// A file is missing, is no safetensors or JSON, or describes a model that we do not compute.
    pub fn load(folder: &Path) -> Result<Self, LlamaError> {
        let config_path = folder.join(CONFIG_FILE);
        let content = |path: &Path, reason: String| LlamaError::Content {
            path: path.to_owned(),
            reason,
        };
        let sizes: Sizes = serde_json::from_slice(&read(&config_path)?)
            .map_err(|error| content(&config_path, error.to_string()))?;
        let config = sizes
            .config()
            .map_err(|reason| content(&config_path, reason))?;
        let model_path = folder.join(MODEL_FILE);
        let bytes = read(&model_path)?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|error| content(&model_path, error.to_string()))?;
        let weights = layout::from_llama(&config, |name, shape| values_of(&file, name, shape));
        weights
            .and_then(|weights| Self::new(&config, weights))
            .map_err(|reason| content(&model_path, reason))
    }

    fn sizes(&self) -> Sizes {
        let config = &self.config;
        Sizes {
            architectures: vec!["LlamaForCausalLM".to_owned()],
            model_type: "llama".to_owned(),
            hidden_size: config.d_model,
            intermediate_size: config.d_ff,
            num_hidden_layers: config.blocks,
            num_attention_heads: config.heads,
            num_key_value_heads: config.heads,
            max_position_embeddings: config.context,
            vocab_size: config.vocabulary,
            rms_norm_eps: NORM_EPSILON,
            rope_theta: ROTARY_BASE,
            hidden_act: "silu".to_owned(),
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            torch_dtype: Some("float32".to_owned()),
        }
    }
}

impl Sizes {
    fn config(&self) -> Result<ModelConfig, String> {
        let computed = self.model_type == "llama"
            && self.hidden_act == "silu"
            && self.num_key_value_heads == self.num_attention_heads
            && !(self.tie_word_embeddings || self.attention_bias || self.mlp_bias)
            && (self.rms_norm_eps - NORM_EPSILON).abs() < 1e-12
            && (self.rope_theta - ROTARY_BASE).abs() < 1e-6;
        if !computed {
            return Err("it describes another kind of model than Shoal trains".to_owned());
        }
        let config = ModelConfig {
            d_model: self.hidden_size,
            heads: self.num_attention_heads,
            d_ff: self.intermediate_size,
            blocks: self.num_hidden_layers,
            stages: 1,
            vocabulary: self.vocab_size,
            context: self.max_position_embeddings,
            codec: Codec::Dense,
        };
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }
}

/// `values · U^T`: coordinates become vectors of full width.
fn widen(values: Vec<f32>, parameter: &Parameter, lift: &Tensor<2>, device: &Device) -> Vec<f32> {
    let narrow = TensorData::new(values, parameter.shape.clone());
    Tensor::<2>::from_data(narrow, device)
        .matmul(lift.clone())
        .into_data()
        .try_to_vec()
        .expect("a product of f32 on the CPU is f32")
}

fn values_of(file: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
    let view = file
        .tensor(name)
        .map_err(|_| format!("there is no {name}"))?;
    if view.dtype() != Dtype::F32 || view.shape() != shape {
        return Err(format!(
            "{name} is {:?} {:?}, should be F32 {shape:?}",
            view.dtype(),
            view.shape()
        ));
    }
    let (words, _) = view.data().as_chunks::<4>();
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

fn read(path: &Path) -> Result<Vec<u8>, LlamaError> {
    std::fs::read(path).map_err(|source| LlamaError::File {
        path: path.to_owned(),
        source,
    })
}

/// Writes a file beside its place, then moves it there: a full disk leaves no half of it.
///
/// # Errors
/// What the system says.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), LlamaError> {
    let draft = path.with_extension("part");
    let written = std::fs::write(&draft, bytes).and_then(|()| std::fs::rename(&draft, path));
    written.map_err(|source| {
        // Half a file is of no use; that it cannot be removed changes nothing.
        let _ = std::fs::remove_file(&draft);
        LlamaError::File {
            path: path.to_owned(),
            source,
        }
    })
}

#[cfg(test)]
mod tests;
