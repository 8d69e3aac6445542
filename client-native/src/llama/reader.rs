//! Reading a growing text: scores of the next token, each token read once.
//!
//! Keys and values of what was read are kept while the text fits into the model's context. When it no
//! longer does, every position moves, and nothing that was kept is right any more. So the window moves
//! by half a context at a time: its rest is read again, and the next half context of tokens costs one
//! token each. What the model sees of a long text are thus its last half to whole context of tokens.
//!
//! Invariant: the scores are those of reading the whole window afresh ([`Reading::Afresh`]).

use burn::tensor::Device;
use shared::model::memory::Memory;
use shared::model::stage::Stage;
use shared::wire::generate::window_start;

use super::PlainModel;

/// How a text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Each token once: what was computed of it is kept.
    Once,
    /// The whole window for each next token: slower, for comparison.
    Afresh,
}

/// A model that reads a text as it grows.
pub struct Reader {
    stage: Stage,
    device: Device,
    context: usize,
    reading: Reading,
    memory: Memory,
    /// The tokens in the memory: from the window's first to the last one read.
    start: usize,
    end: usize,
}

/// Why the next token is not known: the device failed, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device failed: {0}")]
pub struct ReadError(String);

impl Reader {
    /// A reader that has read nothing.
    pub fn new(model: &PlainModel, reading: Reading, device: &Device) -> Self {
        Self {
            stage: model.stage(device),
            device: device.clone(),
            context: model.config().context,
            reading,
            memory: Memory::default(),
            start: 0,
            end: 0,
        }
    }

    /// Scores of the token after `text`, which goes on from the text of the call before; `[vocabulary]`.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// If `text` is not longer than in the call before.
    pub fn next_logits(&mut self, text: &[u32]) -> Result<Vec<f32>, ReadError> {
        assert!(text.len() > self.end, "a text that goes on");
        let start = window_start(text.len(), self.context);
        if start != self.start || self.reading == Reading::Afresh {
            self.memory = Memory::default();
            (self.start, self.end) = (start, start);
        }
        let fresh = PlainModel::batch(&text[self.end..], &self.device);
        self.end = text.len();
        let logits = self.stage.next_logits(None, &fresh, &mut self.memory);
        let values = logits.into_data().try_to_vec();
        values.map_err(|error| ReadError(format!("{error:?}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{random_model, sizes};
    use super::*;
    use shared::config::model::Codec;

    /// Largest difference of logits of about 1: the same sums over other shapes.
    const LOGITS_TOLERANCE: f32 = 1e-5;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn reading_each_token_once_gives_the_scores_of_reading_afresh(
            seed in any::<u64>(),
            subspace in any::<bool>(),
            text in proptest::collection::vec(0_u32..40, 2..40),
            steps in proptest::collection::vec(1_usize..4, 20),
        ) {
            let codec = if subspace { Codec::fixed_subspace(8) } else { Codec::Dense };
            let model = random_model(&sizes(codec), seed);
            let device = Device::flex();
            let mut once = Reader::new(&model, Reading::Once, &device);
            let mut afresh = Reader::new(&model, Reading::Afresh, &device);
            let mut len = 0;
            for step in steps {
                len += step;
                if len > text.len() {
                    break;
                }
                let found = once.next_logits(&text[..len]).unwrap();
                let expected = afresh.next_logits(&text[..len]).unwrap();
                prop_assert_eq!(found.len(), 40);
                prop_assert_eq!(once.memory.positions(), once.end - once.start);
                let spread = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                prop_assert!(spread > 0.05, "logits that are all alike compare nothing");
                for (a, b) in expected.iter().zip(&found) {
                    prop_assert!((a - b).abs() < LOGITS_TOLERANCE, "{} {} at {}", a, b, len);
                }
            }
        }
    }
}
