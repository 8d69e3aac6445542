//! The folded model is the same function as the run's, and a folder gives it back.

use super::reader::{Reader, Reading};
use super::*;
use shared::model::codec::FixedRows;

/// Largest difference of logits of about 1: f32 sums in another order.
const LOGITS_TOLERANCE: f32 = 1e-4;

pub(super) fn sizes(codec: Codec) -> ModelConfig {
    ModelConfig {
        d_model: 32,
        heads: 2,
        d_ff: 48,
        blocks: 3,
        stages: 3,
        vocabulary: 40,
        context: 12,
        codec,
    }
}

/// Weights with no zeros in them, so that every tensor shows in the logits.
fn trained(derivation: &Derivation, seed: u64) -> Vec<Vec<(Parameter, Vec<f32>)>> {
    let config = derivation.config();
    // Where the subspace turned: another one than the seed's.
    let other = Derivation::new(config.clone(), seed + 1).basis();
    let other = other.unwrap_or_default();
    let mut words = shared::random::Words::new("trained", &[seed]);
    let mut value =
        |fan: usize| (words.next_word() as f32 / u32::MAX as f32 - 0.5) / (fan as f32).sqrt();
    (0..config.stages)
        .map(|stage| {
            let parameters = config.parameters_of(stage).into_iter();
            parameters
                .map(|parameter| {
                    let fan = if parameter.shape.len() == 2 {
                        parameter.shape[0]
                    } else {
                        1
                    };
                    let fan = if parameter.name == "embed" { 1 } else { fan };
                    let shift = if parameter.shape.len() == 1 { 1.0 } else { 0.0 };
                    let values = (0..parameter.values()).map(|_| shift + value(fan));
                    let values = if parameter.is_subspace() {
                        other.clone()
                    } else {
                        values.collect()
                    };
                    (parameter, values)
                })
                .collect()
        })
        .collect()
}

/// An exported model with such weights.
pub(super) fn random_model(config: &ModelConfig, seed: u64) -> PlainModel {
    let derivation = Derivation::new(config.clone(), seed);
    let weights = trained(&derivation, seed);
    PlainModel::fold(&derivation, weights)
}

fn logits_of_run(
    derivation: &Derivation,
    weights: &[Vec<(Parameter, Vec<f32>)>],
    tokens: &[u32],
) -> Vec<f32> {
    let device = Device::flex();
    let config = derivation.config();
    let turned = weights[0].iter().find(|(it, _)| it.is_subspace());
    let codec = match turned {
        None => BorderCodec::from_seed(derivation, &device),
        Some((_, basis)) => {
            let fixed = FixedRows::Derived(derivation.clone());
            BorderCodec::subspace(config, basis.clone(), fixed, &device)
        }
    };
    let batch = codec.batch_of(tokens, tokens, tokens.len(), &device);
    let mut border = None;
    for (index, parameters) in weights.iter().enumerate() {
        let values = parameters.iter().map(|(_, values)| values.clone());
        let state = StageState::untrained(values.collect());
        let stage = Stage::new(config, index, Numerics::default(), state, &device);
        if config.is_last(index) {
            return stage
                .logits(border, &batch)
                .into_data()
                .try_to_vec()
                .unwrap();
        }
        border = Some(stage.forward(border, &batch));
    }
    unreachable!("a model has a last stage")
}

fn logits_of(model: &PlainModel, tokens: &[u32]) -> Vec<f32> {
    let device = Device::flex();
    let batch = PlainModel::batch(tokens, &device);
    let logits = model.stage(&device).logits(None, &batch);
    logits.into_data().try_to_vec().unwrap()
}

#[test]
fn the_exported_model_computes_what_the_run_computed() {
    let tokens = [3, 1, 4, 1, 5, 9, 2, 6, 39, 0];
    let adapted = Codec::Subspace {
        rank: 8,
        adapt_rounds: 3,
    };
    for codec in [Codec::Dense, Codec::fixed_subspace(8), adapted] {
        let derivation = Derivation::new(sizes(codec), 7);
        let weights = trained(&derivation, 3);
        let expected = logits_of_run(&derivation, &weights, &tokens);
        let model = PlainModel::fold(&derivation, weights);
        let found = logits_of(&model, &tokens);
        assert_eq!(found.len(), tokens.len() * 40);
        let device = Device::flex();
        let mut reader = Reader::new(&model, Reading::Once, &device);
        let next = reader.next_logits(&tokens).unwrap();
        for (a, b) in found[found.len() - 40..].iter().zip(&next) {
            assert!(
                (a - b).abs() < LOGITS_TOLERANCE,
                "{a} {b}, the next token's"
            );
        }
        let spread = expected
            .iter()
            .fold(0.0, |most: f32, value| most.max(value.abs()));
        assert!(spread > 0.1, "logits that are all alike compare nothing");
        for (a, b) in expected.iter().zip(&found) {
            assert!((a - b).abs() < LOGITS_TOLERANCE, "{a} {b} with {codec:?}");
        }
    }
}

#[test]
fn a_saved_model_loads_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let derivation = Derivation::new(sizes(Codec::fixed_subspace(8)), 7);
    let model = PlainModel::fold(&derivation, trained(&derivation, 3));
    model.save(folder.path(), MODEL_FILE).unwrap();
    assert_eq!(PlainModel::load(folder.path()).unwrap(), model);
}

#[test]
fn a_folder_with_another_kind_of_model_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        PlainModel::load(folder.path()),
        Err(LlamaError::File { .. })
    ));
    let derivation = Derivation::new(sizes(Codec::Dense), 7);
    let model = PlainModel::fold(&derivation, trained(&derivation, 3));
    model.save(folder.path(), MODEL_FILE).unwrap();
    let path = folder.path().join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    for (good, bad, reason) in [
        ("\"llama\"", "\"mamba\"", "another kind of model"),
        (
            "\"vocab_size\": 40",
            "\"vocab_size\": 41",
            "should be F32 [41, 32]",
        ),
    ] {
        std::fs::write(&path, text.replace(good, bad)).unwrap();
        let error = PlainModel::load(folder.path()).expect_err(bad).to_string();
        assert!(error.contains(reason), "{error}");
    }
}
