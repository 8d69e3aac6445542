//! Asking the model: scores of the next token, from a seat that covers all stages.
//!
//! Every call runs the whole window again: right for a few tokens in between. Whoever writes long texts
//! keeps keys and values ([`crate::model::memory`]).
//! How a token is picked from the scores is the caller's business.

use super::{Seat, SeatError, read, refuse};

impl Seat {
    /// Scores of the token after `tokens`, by a seat that covers the whole model.
    ///
    /// Only the last `context` tokens are looked at.
    ///
    /// # Errors
    /// If there are no tokens, an id is out of range, or the device is lost.
    ///
    /// # Panics
    /// If the seat does not cover the whole model.
    pub async fn next_token_logits(&self, tokens: &[u32]) -> Result<Vec<f32>, SeatError> {
        assert_eq!(
            self.stages.len(),
            self.run.model.stages,
            "all stages, to generate"
        );
        self.check_ids(tokens)?;
        let window = &tokens[tokens.len().saturating_sub(self.run.model.context)..];
        if window.is_empty() {
            return refuse("no token to go on from".to_owned());
        }
        let batch = self
            .codec
            .batch_of(window, window, window.len(), &self.device);
        let (last, before) = self.stages.split_last().expect("a seat has stages");
        let input = before
            .iter()
            .fold(None, |input, stage| Some(stage.forward(input, &batch)));
        let logits = last.logits(input, &batch);
        let row = logits
            .slice([0..1, window.len() - 1..window.len()])
            .flatten(0, 2);
        Ok(read(vec![row]).await?.remove(0))
    }
}
