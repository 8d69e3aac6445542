//! The hash that tells whether this browser derives the same numbers from a seed as every other volunteer.

use shared::config::model::ModelConfig;
use shared::derive;
use wasm_bindgen::prelude::wasm_bindgen;

/// Hash of everything that a run of `preset`'s sizes derives from `seed`, as 64 hexadecimal digits;
/// nothing (`undefined` in JavaScript) where no preset has that name.
#[wasm_bindgen]
#[must_use]
pub fn seed_hash(preset: &str, seed: u64) -> Option<String> {
    let config = ModelConfig::preset(preset)?;
    let hash = derive::seed_hash(&config, seed);
    Some(hex::encode(hash))
}

#[cfg(test)]
mod tests {
    use super::seed_hash;

    #[test]
    fn a_hash_is_written_as_64_digits() {
        let hash = seed_hash("tiny", 1).expect("tiny is a preset");
        assert_eq!(hash.len(), 64);
        assert!(hash.bytes().all(|digit| digit.is_ascii_hexdigit()));
    }

    #[test]
    fn an_unknown_preset_has_no_hash() {
        assert_eq!(seed_hash("enormous", 1), None);
    }
}
