//! Blobs of a stage's state come from strangers: what is not exactly that stage's is refused.

#![cfg(feature = "compute")]

use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use shared::config::model::{Codec, ModelConfig};
use shared::config::run::MergeKind;
use shared::derive::Derivation;
use shared::model::state::{StageState, StateError};

fn config() -> ModelConfig {
    ModelConfig {
        d_model: 8,
        heads: 2,
        d_ff: 6,
        blocks: 3,
        stages: 3,
        vocabulary: 5,
        context: 4,
        codec: Codec::fixed_subspace(3),
    }
}

fn initial(stage: usize) -> StageState {
    StageState::initial(&Derivation::new(config(), 1), stage)
}

fn refusal(stage: usize, blob: &[u8]) -> StateError {
    StageState::from_blob(&config(), stage, blob).expect_err("refused")
}

/// What a merge left, with an outer momentum of small numbers.
fn merged(stage: usize) -> StageState {
    let mut state = initial(stage);
    state.outer = Some(state.weights.clone());
    state
}

/// The blob of stage 1 with one tensor replaced.
fn forged(name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> Vec<u8> {
    forged_of(&initial(1), name, dtype, shape, data)
}

fn forged_of(
    state: &StageState,
    name: &str,
    dtype: Dtype,
    shape: &[usize],
    data: &[u8],
) -> Vec<u8> {
    let blob = state.to_blob(&config(), 1);
    let file = SafeTensors::deserialize(&blob).expect("own blob");
    let mut tensors: Vec<(String, TensorView<'_>)> = file.tensors();
    tensors.retain(|(other, _)| other != name);
    let view = TensorView::new(dtype, shape.to_vec(), data).expect("shape fits");
    tensors.push((name.to_owned(), view));
    safetensors::serialize(tensors, None).expect("serialises")
}

#[test]
fn a_state_reads_back_what_it_wrote_and_hashes_alike() {
    for stage in 0..3 {
        let mut state = initial(stage);
        state.updates = 7;
        state.second[0][0] = 0.5;
        let blob = state.to_blob(&config(), stage);
        assert_eq!(blob, state.to_blob(&config(), stage));
        let read = StageState::from_blob(&config(), stage, &blob).expect("own blob");
        assert_eq!(read, state);
        assert_eq!(
            read.agreed_digest(MergeKind::Outer),
            initial(stage).agreed_digest(MergeKind::Outer)
        );
    }
}

#[test]
fn the_agreed_digest_covers_every_weight() {
    let reference = initial(1).agreed_digest(MergeKind::Outer);
    for index in 0..initial(1).weights.len() {
        let mut state = initial(1);
        *state.weights[index].last_mut().expect("not empty") += 1.0;
        assert_ne!(
            state.agreed_digest(MergeKind::Outer),
            reference,
            "tensor {index}"
        );
    }
}

#[test]
fn a_state_with_outer_momentum_reads_back_what_it_wrote_and_hashes_alike() {
    for stage in 0..3 {
        let state = merged(stage);
        let blob = state.to_blob(&config(), stage);
        let read = StageState::from_blob(&config(), stage, &blob).expect("own blob");
        assert_eq!(read, state);
        assert_eq!(
            read.agreed_digest(MergeKind::Outer),
            state.agreed_digest(MergeKind::Outer)
        );
        assert_ne!(blob, initial(stage).to_blob(&config(), stage));
    }
}

#[test]
fn where_gradients_are_merged_the_agreed_digest_covers_moments_and_updates() {
    let digest = |change: &dyn Fn(&mut StageState)| {
        let mut state = initial(1);
        change(&mut state);
        state.agreed_digest(MergeKind::Gradient)
    };
    let reference = digest(&|_| ());
    for index in 0..initial(1).weights.len() {
        for list in [0, 1, 2] {
            let changed = digest(&|state| {
                let lists = [&mut state.weights, &mut state.first, &mut state.second];
                let values: Vec<&mut Vec<Vec<f32>>> = lists.into_iter().collect();
                let list = values.into_iter().nth(list).expect("one of three");
                *list[index].last_mut().expect("not empty") += 1.0;
            });
            assert_ne!(changed, reference, "tensor {index} of list {list}");
        }
    }
    assert_ne!(digest(&|state| state.updates += 1), reference);
}

#[test]
fn the_agreed_digest_covers_the_outer_momentum_if_there_is_one() {
    let reference = merged(1).agreed_digest(MergeKind::Outer);
    assert_ne!(reference, initial(1).agreed_digest(MergeKind::Outer));
    for index in 0..initial(1).weights.len() {
        let mut state = merged(1);
        let outer = state.outer.as_mut().expect("it has one");
        *outer[index].last_mut().expect("not empty") += 1.0;
        assert_ne!(
            state.agreed_digest(MergeKind::Outer),
            reference,
            "tensor {index}"
        );
        let mut state = merged(1);
        *state.first[index].last_mut().expect("not empty") += 1.0;
        assert_eq!(
            state.agreed_digest(MergeKind::Outer),
            reference,
            "tensor {index}"
        );
    }
}

#[test]
fn a_forged_outer_momentum_is_refused_by_name() {
    let nan = [f32::NAN.to_le_bytes(); 8].concat();
    let zeros = [0_u8; 8 * 4];
    let name = "outer/block.1.norm_mlp";
    let cases = [
        (
            forged_of(&merged(1), name, Dtype::F32, &[8], &nan),
            "outer/block.1.norm_mlp holds a value",
        ),
        (
            forged_of(&merged(1), name, Dtype::F32, &[2, 4], &zeros),
            "outer/block.1.norm_mlp is F32 [2, 4], should be F32 [8]",
        ),
        (
            forged_of(&merged(1), "extra", Dtype::F32, &[8], &zeros),
            "38 tensors, stage 1 has 28",
        ),
        // A part of a momentum is none.
        (
            forged(name, Dtype::F32, &[8], &zeros),
            "29 tensors, stage 1 has 28",
        ),
    ];
    for (blob, expected) in cases {
        let text = refusal(1, &blob).to_string();
        assert!(text.starts_with(expected), "{text}");
    }
}

#[test]
fn another_stage_s_blob_is_refused() {
    let blob = initial(0).to_blob(&config(), 0);
    assert!(matches!(
        refusal(1, &blob),
        StateError::Count { stage: 1, .. }
    ));
}

#[test]
fn forged_tensors_are_refused_by_name() {
    let nan = [f32::NAN.to_le_bytes(); 8].concat();
    let negative = [(-1.0_f32).to_le_bytes(); 8].concat();
    let zeros = [0_u8; 8 * 4];
    let gain = "block.1.norm_mlp";
    let cases = [
        (
            forged(gain, Dtype::F32, &[8], &nan),
            "block.1.norm_mlp holds a value",
        ),
        (
            forged(&format!("second/{gain}"), Dtype::F32, &[8], &negative),
            "second/block.1.norm_mlp holds",
        ),
        (
            forged(gain, Dtype::F32, &[2, 4], &zeros),
            "block.1.norm_mlp is F32 [2, 4], should be F32 [8]",
        ),
        (
            forged(gain, Dtype::I32, &[8], &zeros),
            "block.1.norm_mlp is I32 [8], should be F32 [8]",
        ),
        (
            forged("extra", Dtype::F32, &[8], &zeros),
            "29 tensors, stage 1 has 28",
        ),
        (
            forged("updates", Dtype::F32, &[8], &zeros),
            "updates is F32 [8], should be U64 [1]",
        ),
    ];
    for (blob, expected) in cases {
        let text = refusal(1, &blob).to_string();
        assert!(text.starts_with(expected), "{text}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(StageState::from_blob(&config(), 1, &bytes).is_err());
    }

    #[test]
    fn a_corrupted_blob_never_panics(at in 0_usize..4000, value in any::<u8>()) {
        let mut blob = initial(1).to_blob(&config(), 1);
        let at = at % blob.len();
        blob[at] = value;
        if let Ok(state) = StageState::from_blob(&config(), 1, &blob) {
            prop_assert!(state.weights.iter().flatten().all(|value| value.is_finite()));
        }
    }
}
