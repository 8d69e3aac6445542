//! Compares stages, the chained model and AdamW with golden vectors of an independent program.
//!
//! Used by the example `golden`, which prints the figures, and by the test of that name. All sizes and constants
//! come from the files' metadata. A figure is `norm(a - b) / norm(b)` over a whole tensor, or the
//! largest absolute difference for AdamW; NaN fails.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use shared::config::model::{Basis, Codec, ModelConfig};
use shared::model::adamw::{AdamW, Moments};
use shared::model::block::Numerics;
use shared::model::codec::{Batch, BorderCodec, FixedRows, Projector};
use shared::model::stage::{Objective, Stage};
use shared::model::state::StageState;

/// How far a device may be off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerances {
    /// Borders and gradients of each stage alone, relative.
    pub(crate) stage: f64,
    /// Loss of all stages chained, relative.
    pub(crate) loss: f64,
    /// AdamW, absolute.
    pub(crate) adamw: f64,
}

impl Tolerances {
    /// For the CPU in f32.
    pub(crate) const FLEX: Self = Self {
        stage: 1e-5,
        loss: 1e-6,
        adamw: 1e-6,
    };
    /// For GPUs, whose drivers may reorder and approximate.
    pub(crate) const WGPU: Self = Self {
        stage: 1e-3,
        loss: 1e-4,
        adamw: 1e-6,
    };
}

/// One comparison.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    /// What was compared.
    pub(crate) name: String,
    /// How far apart the two are.
    pub(crate) figure: f64,
    /// How far they may be.
    pub(crate) tolerance: f64,
}

impl Check {
    /// Whether the figure is within its tolerance; NaN never is.
    pub(crate) fn passed(&self) -> bool {
        self.figure <= self.tolerance
    }
}

/// All checks on one device.
///
/// # Errors
/// If a file is absent, or lacks a tensor or a size.
pub(crate) fn run(
    folder: &Path,
    device: &Device,
    tolerances: Tolerances,
) -> Result<Vec<Check>, Box<dyn std::error::Error>> {
    let mut checks = Vec::new();
    for name in ["dense", "subspace", "projector"] {
        let bytes = read(folder, name)?;
        let golden = Golden::new(name, &bytes)?;
        checks.extend(Model::new(&golden, device)?.checks(&golden, tolerances)?);
    }
    let bytes = read(folder, "adamw")?;
    checks.extend(adamw(&Golden::new("adamw", &bytes)?, device, tolerances)?);
    Ok(checks)
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>, String> {
    let path = folder.join(format!("golden_{name}.safetensors"));
    std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// One golden file.
struct Golden<'a> {
    name: &'static str,
    file: SafeTensors<'a>,
    metadata: HashMap<String, String>,
}

impl<'a> Golden<'a> {
    fn new(name: &'static str, bytes: &'a [u8]) -> Result<Self, Box<dyn std::error::Error>> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let metadata = header
            .metadata()
            .clone()
            .ok_or("the file has no metadata")?;
        Ok(Self {
            name,
            file: SafeTensors::deserialize(bytes)?,
            metadata,
        })
    }

    fn constant<T: std::str::FromStr>(&self, key: &str) -> Result<T, String> {
        let text = self
            .metadata
            .get(key)
            .ok_or(format!("{}: no {key} in the metadata", self.name))?;
        text.parse()
            .map_err(|_| format!("{}: {key} is {text:?}", self.name))
    }

    fn words(&self, name: &str, dtype: Dtype) -> Result<(Vec<[u8; 4]>, Vec<usize>), String> {
        let view = self
            .file
            .tensor(name)
            .map_err(|error| format!("{}: {name}: {error}", self.name))?;
        if view.dtype() != dtype {
            return Err(format!(
                "{}: {name} is {:?}, not {dtype:?}",
                self.name,
                view.dtype()
            ));
        }
        Ok((
            view.data().as_chunks::<4>().0.to_vec(),
            view.shape().to_vec(),
        ))
    }

    fn floats(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>), String> {
        let (words, shape) = self.words(name, Dtype::F32)?;
        Ok((words.into_iter().map(f32::from_le_bytes).collect(), shape))
    }

    fn ids(&self, name: &str) -> Result<Vec<u32>, String> {
        let (words, _) = self.words(name, Dtype::I32)?;
        Ok(words.into_iter().map(u32::from_le_bytes).collect())
    }

    fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Result<Tensor<D>, String> {
        let (values, shape) = self.floats(name)?;
        if shape.len() != D {
            return Err(format!(
                "{}: {name} has {} dimensions, not {D}",
                self.name,
                shape.len()
            ));
        }
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// Relative distance of `found` from a tensor of the file.
    fn relative<const D: usize>(&self, name: &str, found: Tensor<D>) -> Result<f64, String> {
        let (expected, _) = self.floats(name)?;
        Ok(distance(&values(found)?, &expected))
    }
}

/// The model of one golden file, on a device.
struct Model {
    config: ModelConfig,
    stages: Vec<Stage>,
    batch: Batch,
    /// Number of tokens whose losses the file's mean is over.
    tokens: f32,
    device: Device,
}

impl Model {
    fn new(golden: &Golden<'_>, device: &Device) -> Result<Self, Box<dyn std::error::Error>> {
        let stages = golden.constant("stages")?;
        let codec = match golden.name {
            "subspace" => Codec::fixed_subspace(golden.constant("rank")?),
            "projector" => Codec::Projector {
                rank: golden.constant("rank")?,
                anchor: golden.constant("anchor")?,
                basis: Basis::Fixed,
            },
            _ => Codec::Dense,
        };
        let config = ModelConfig {
            d_model: golden.constant("width")?,
            heads: golden.constant("heads")?,
            d_ff: golden.constant("hidden")?,
            blocks: stages,
            stages,
            vocabulary: golden.constant("vocab")?,
            context: golden.constant("context")?,
            codec,
        };
        config.validate()?;
        let numerics = Numerics {
            norm_epsilon: golden.constant("norm_eps")?,
            rotary_base: golden.constant("rope_base")?,
        };
        let border = match codec {
            Codec::Dense => BorderCodec::Dense,
            Codec::Subspace { .. } => {
                let fixed = FixedRows::Table(golden.tensor("fixed", device)?);
                BorderCodec::subspace(&config, golden.floats("basis")?.0, fixed, device)
            }
            Codec::Projector { .. } => {
                let basis = |border| golden.tensor(&format!("basis.{border}"), device);
                BorderCodec::Projector(Projector {
                    bases: (0..stages - 1).map(basis).collect::<Result<_, _>>()?,
                    anchor_out: golden.tensor("anchor_out", device)?,
                })
            }
        };
        let (inputs, targets) = (golden.ids("tokens")?, golden.ids("targets")?);
        let batch = border.batch_of(&inputs, &targets, config.context, device);
        let stages = (0..stages)
            .map(|index| {
                let state = state(golden, &config, index)?;
                Ok(Stage::new(&config, index, numerics, state, device))
            })
            .collect::<Result<_, String>>()?;
        Ok(Self {
            config,
            stages,
            batch,
            tokens: inputs.len() as f32,
            device: device.clone(),
        })
    }

    fn checks(
        mut self,
        golden: &Golden<'_>,
        tolerances: Tolerances,
    ) -> Result<Vec<Check>, Box<dyn std::error::Error>> {
        let mut checks = Vec::new();
        let last = self.config.stages - 1;
        let mut chained = None;
        for index in 0..last {
            chained = Some(self.stages[index].forward(chained, &self.batch));
        }
        let loss = self.stages[last].loss_sum(chained, &self.batch) / self.tokens;
        checks.push(Check {
            name: format!("{}: loss of all stages chained", golden.name),
            figure: golden.relative("loss", loss)?,
            tolerance: tolerances.loss,
        });
        for index in 0..=last {
            for (name, figure) in self.stage_alone(golden, index)? {
                let name = format!("{}: stage {index} alone, {name}", golden.name);
                checks.push(Check {
                    name,
                    figure,
                    tolerance: tolerances.stage,
                });
            }
        }
        Ok(checks)
    }

    /// Border out, border gradient and parameter gradients of one stage, from the file's border input.
    fn stage_alone(
        &mut self,
        golden: &Golden<'_>,
        index: usize,
    ) -> Result<Vec<(String, f64)>, Box<dyn std::error::Error>> {
        let mut figures = Vec::new();
        let border =
            |name: &str, index: usize| golden.tensor::<3>(&format!("{name}.{index}"), &self.device);
        let input = if index == 0 {
            None
        } else {
            Some(border("boundary", index - 1)?)
        };
        let objective = if self.config.is_last(index) {
            Objective::Targets
        } else {
            let out = self.stages[index].forward(input.clone(), &self.batch);
            figures.push((
                "border out".into(),
                golden.relative(&format!("boundary.{index}"), out)?,
            ));
            // The file's gradients are of the mean loss, a stage's of the sum.
            Objective::Gradient(border("boundary_grad", index)? * self.tokens)
        };
        let back = self.stages[index].backward(input, &self.batch, objective);
        if let Some(gradient) = back.input_gradient {
            let name = format!("boundary_grad.{}", index - 1);
            figures.push((
                "border gradient".into(),
                golden.relative(&name, gradient / self.tokens)?,
            ));
        }
        if let Some(loss_sum) = back.loss_sum {
            figures.push((
                "loss".into(),
                golden.relative("loss", loss_sum / self.tokens)?,
            ));
        }
        let stage = &self.stages[index];
        for (parameter, gradient) in stage.parameters().iter().zip(stage.gradients()) {
            let name = format!("grad.{index}.{}", part(&parameter.name));
            let figure = golden.relative(&name, gradient / self.tokens)?;
            figures.push((format!("gradient of {}", part(&parameter.name)), figure));
        }
        Ok(figures)
    }
}

/// A stage's weights from the file, with moments of zero.
fn state(golden: &Golden<'_>, config: &ModelConfig, index: usize) -> Result<StageState, String> {
    let mut weights = Vec::new();
    for parameter in config.parameters_of(index) {
        let name = format!("param.{index}.{}", part(&parameter.name));
        let (values, shape) = golden.floats(&name)?;
        if shape != parameter.shape {
            return Err(format!(
                "{}: {name} is {shape:?}, not {:?}",
                golden.name, parameter.shape
            ));
        }
        weights.push(values);
    }
    Ok(StageState::untrained(weights))
}

/// A parameter's name without its block or stage.
fn part(name: &str) -> &str {
    match name.split_once('.') {
        Some(("anchor", _)) => "anchor",
        Some(_) | None => name.rsplit('.').next().unwrap_or(name),
    }
}

/// AdamW over the file's gradients, clipped by the norm of all tensors together.
fn adamw(
    golden: &Golden<'_>,
    device: &Device,
    tolerances: Tolerances,
) -> Result<Vec<Check>, Box<dyn std::error::Error>> {
    let adamw = AdamW {
        beta1: golden.constant("beta1")?,
        beta2: golden.constant("beta2")?,
        epsilon: golden.constant("eps")?,
        weight_decay: golden.constant("weight_decay")?,
    };
    let (learning_rate, clip): (f64, f64) = (golden.constant("lr")?, golden.constant("clip")?);
    let mut names: Vec<&str> = golden
        .file
        .names()
        .into_iter()
        .filter_map(|name| name.strip_prefix("before."))
        .collect();
    names.sort_unstable();
    let mut state = HashMap::new();
    for &name in &names {
        let (values, shape) = golden.floats(&format!("before.{name}"))?;
        let weights = Tensor::<1>::from_floats(values.as_slice(), device);
        let zeros = Tensor::zeros_like(&weights);
        let moments = Moments {
            first: zeros.clone(),
            second: zeros,
        };
        state.insert(name, (weights, moments, shape.len() == 2));
    }
    let first = names.first().ok_or("no tensors in golden_adamw")?;
    let updates =
        (1..).take_while(|step| golden.file.tensor(&format!("after.{step}.{first}")).is_ok());
    let mut checks = Vec::new();
    for update in updates {
        let mut square = 0.0;
        for name in &names {
            let (gradient, _) = golden.floats(&format!("grad.{update}.{name}"))?;
            square += gradient
                .iter()
                .map(|&value| f64::from(value).powi(2))
                .sum::<f64>();
        }
        let scale = (clip / square.sqrt()).min(1.0);
        for &name in &names {
            let (weights, moments, decays) =
                state.get_mut(name).ok_or("each tensor has a state")?;
            let (gradient, _) = golden.floats(&format!("grad.{update}.{name}"))?;
            let gradient = Tensor::<1>::from_floats(gradient.as_slice(), device) * scale;
            *weights = adamw.step(
                weights.clone(),
                gradient,
                moments,
                update,
                learning_rate,
                *decays,
            );
            let found = [
                ("after", weights.clone()),
                ("first", moments.first.clone()),
                ("second", moments.second.clone()),
            ];
            for (kind, found) in found {
                let (expected, _) = golden.floats(&format!("{kind}.{update}.{name}"))?;
                checks.push(Check {
                    name: format!("adamw: {kind} of {name}, step {update}, scale {scale:.4}"),
                    figure: largest_difference(&values(found)?, &expected),
                    tolerance: tolerances.adamw,
                });
            }
        }
    }
    Ok(checks)
}

/// The values of a tensor, read from its device.
fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, String> {
    tensor
        .into_data()
        .try_to_vec::<f32>()
        .map_err(|error| format!("{error:?}"))
}

/// `norm(found - expected) / norm(expected)`.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    let square = |value: f64| value * value;
    let difference: f64 = found
        .iter()
        .zip(expected)
        .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
        .sum();
    let size: f64 = expected.iter().map(|&value| square(f64::from(value))).sum();
    (difference / size).sqrt()
}

/// Largest absolute difference; NaN if any value is.
fn largest_difference(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    let differences = found
        .iter()
        .zip(expected)
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    // `f64::max` would pass over NaN.
    differences.fold(0.0, |most: f64, difference| {
        if most.is_nan() || difference <= most {
            most
        } else {
            difference
        }
    })
}
