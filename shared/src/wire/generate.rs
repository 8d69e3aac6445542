//! Having the model write: what is asked of a host, what a head is told, and how tokens are drawn.
//!
//! A text is gone on with by the pipeline that trains, token by token. [`Sampling`] travels with each of them, so that
//! the last seat keeps nothing of a text but keys and values.
//!
//! Invariant: what a choice of the n-th token depends on is the seed and n, so a text that is begun again at another
//! line-up goes on with the same draws.

use serde::{Deserialize, Serialize};

use super::frame::Place;
use crate::limits::TEXT_TOKENS_MAX;
use crate::random::Words;
use crate::units::RequestId;

/// What a head is told of a text to go on with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// Line-up and round. A text outlives the round.
    pub place: Place,
    /// Which text.
    pub request: RequestId,
    /// What there is of it, from where [`window_start`] says on.
    pub tokens: Vec<u32>,
    /// Tokens of it that were drawn before.
    pub drawn: u32,
    /// Tokens still to be drawn.
    pub count: u32,
    /// How.
    pub sampling: Sampling,
}

/// Longest line of news: a token of a few hundred bytes, in JSON.
const NEWS_BYTES_MAX: usize = 64 << 10;

/// What is asked of a host at `/api/generate`, as JSON. Answered with server-sent events, a [`GenerateNews`] each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// Text to go on from.
    pub prompt: String,
    /// Tokens to write.
    pub tokens: u32,
    /// As [`Sampling::temperature`].
    #[serde(default = "usual_temperature")]
    pub temperature: f32,
    /// As [`Sampling::top_p`].
    #[serde(default = "usual_top_p")]
    pub top_p: f32,
    /// As [`Sampling::seed`]; drawn by the host where none is given.
    #[serde(default)]
    pub seed: Option<u64>,
}

/// Tokens to write where no number is named.
#[must_use]
pub const fn usual_tokens() -> u32 {
    200
}

/// The temperature where none is named.
#[must_use]
pub const fn usual_temperature() -> f32 {
    0.8
}

/// The share of the likeliest tokens where none is named.
#[must_use]
pub const fn usual_top_p() -> f32 {
    0.95
}

/// News of a text, for whoever asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GenerateNews {
    /// The text goes on like this.
    Text {
        /// Whole characters.
        text: String,
    },
    /// That was all of it.
    Over {
        /// Tokens that were written.
        tokens: u32,
    },
    /// There is no more of it: why, in words.
    GivenUp {
        /// What happened.
        reason: String,
    },
}

/// Puts the answer to a [`GenerateRequest`] together from the pieces in which it comes: server-sent events.
#[derive(Debug, Default)]
pub struct NewsReader {
    unread: Vec<u8>,
    events: u32,
}

impl NewsReader {
    /// The news that a piece completes.
    ///
    /// # Errors
    /// What no host sends, in words.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<GenerateNews>, String> {
        self.unread.extend_from_slice(piece);
        let mut news = Vec::new();
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            // Comments keep the connection alive; an empty line ends an event of one line of data.
            if let Some(data) = line.strip_prefix(b"data:") {
                let event = serde_json::from_slice(data).map_err(|error| error.to_string())?;
                news.push(event);
                self.events += 1;
            }
        }
        // A token each, and the end.
        if self.unread.len() > NEWS_BYTES_MAX || self.events > TEXT_TOKENS_MAX + 2 {
            return Err("it sends more than a text has".to_owned());
        }
        Ok(news)
    }
}

/// How tokens are drawn from the model's scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 takes the likeliest token each time, 1 follows the model's own probabilities.
    pub temperature: f32,
    /// Only the likeliest tokens that together have this probability are chosen among.
    pub top_p: f32,
    /// Fixes every choice.
    pub seed: u64,
}

impl Sampling {
    /// Whether its numbers are such as a draw can be made by.
    #[must_use]
    pub fn is_sound(self) -> bool {
        self.temperature.is_finite()
            && self.temperature >= 0.0
            && self.top_p > 0.0
            && self.top_p <= 1.0
    }

    /// The token with these scores that is drawn after `drawn` others.
    ///
    /// # Panics
    /// If there are no scores.
    #[must_use]
    pub fn draw(self, scores: &[f32], drawn: u32) -> u32 {
        self.chosen(scores, self.chance(drawn))
    }

    /// A number in [0, 1) with 32 random bits.
    fn chance(self, drawn: u32) -> f64 {
        let mut words = Words::new("generate", &[self.seed]);
        words.seek(u64::from(drawn));
        f64::from(words.next_word()) / (f64::from(u32::MAX) + 1.0)
    }

    /// The token that `chance` in [0, 1) chooses.
    fn chosen(self, scores: &[f32], chance: f64) -> u32 {
        let mut ranked: Vec<(usize, f64)> = scores
            .iter()
            .map(|score| f64::from(*score))
            .enumerate()
            .collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let token = |index: usize| u32::try_from(index).expect("a vocabulary fits into u32");
        let best = ranked[0];
        if self.temperature == 0.0 {
            return token(best.0);
        }
        for (_, weight) in &mut ranked {
            *weight = ((*weight - best.1) / f64::from(self.temperature)).exp();
        }
        let total: f64 = ranked.iter().map(|(_, weight)| weight).sum();
        let mut kept = 0.0;
        let enough = ranked
            .iter()
            .position(|(_, weight)| {
                kept += weight;
                kept >= f64::from(self.top_p) * total
            })
            .unwrap_or(ranked.len() - 1);
        let mut left = chance * kept;
        for (index, weight) in &ranked[..=enough] {
            left -= weight;
            if left < 0.0 {
                return token(*index);
            }
        }
        token(ranked[enough].0)
    }
}

/// Where what the model sees of a text of `len` tokens begins: at its beginning as long as that fits into the context,
/// then at multiples of half a context.
///
/// So what was read is read again once in half a context of tokens, not for each.
#[must_use]
pub fn window_start(len: usize, context: usize) -> usize {
    let half = (context / 2).max(1);
    len.saturating_sub(context).div_ceil(half) * half
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(temperature: f32, top_p: f32, scores: &[f32]) -> Vec<u32> {
        let sampling = Sampling {
            temperature,
            top_p,
            seed: 1,
        };
        (0..1_000)
            .map(|n| sampling.chosen(scores, f64::from(n) / 1_000.0))
            .collect()
    }

    fn share(drawn: &[u32], token: u32) -> f64 {
        drawn.iter().filter(|one| **one == token).count() as f64 / drawn.len() as f64
    }

    #[test]
    fn events_are_read_whatever_pieces_they_come_in() {
        let stream = b": alive\n\ndata: {\"type\":\"text\",\"text\":\"a\\nb\"}\n\ndata: {\"type\":\"over\",\"tokens\":3}\n\n";
        let text = "a\nb".to_owned();
        let expected = [
            GenerateNews::Text { text },
            GenerateNews::Over { tokens: 3 },
        ];
        for size in 1..stream.len() {
            let mut lines = NewsReader::default();
            let pieces = stream.chunks(size);
            let news: Vec<_> = pieces
                .flat_map(|piece| lines.push(piece).unwrap())
                .collect();
            assert_eq!(news, expected, "pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_event_or_never_ends_is_refused() {
        assert!(
            NewsReader::default()
                .push(b"data: {\"type\":\"other\"}\n")
                .is_err()
        );
        assert!(NewsReader::default().push(b"data: x\n").is_err());
        let mut lines = NewsReader::default();
        let piece = [b'a'; 1 << 10];
        assert!((0..=64).any(|_| lines.push(&piece).is_err()));
        let mut lines = NewsReader::default();
        let event = b"data: {\"type\":\"over\",\"tokens\":3}\n";
        assert!((0..=TEXT_TOKENS_MAX + 2).any(|_| lines.push(event).is_err()));
    }

    #[test]
    fn temperature_one_follows_the_models_own_probabilities() {
        let scores = [0.5_f32.ln(), 0.2_f32.ln(), 0.3_f32.ln()];
        let drawn = draws(1.0, 1.0, &scores);
        for (token, expected) in [(0, 0.5), (1, 0.2), (2, 0.3)] {
            assert!(
                (share(&drawn, token) - expected).abs() < 0.002,
                "token {token}"
            );
        }
    }

    #[test]
    fn a_low_temperature_sharpens_and_zero_takes_the_best() {
        let scores = [0.0, 1.0, 0.5];
        assert!(draws(0.0, 1.0, &scores).iter().all(|token| *token == 1));
        assert!(share(&draws(0.25, 1.0, &scores), 1) > share(&draws(1.0, 1.0, &scores), 1));
    }

    #[test]
    fn top_p_leaves_the_unlikely_out() {
        let scores = [0.6_f32.ln(), 0.3_f32.ln(), 0.1_f32.ln()];
        let drawn = draws(1.0, 0.8, &scores);
        assert_eq!(share(&drawn, 2), 0.0);
        assert!((share(&drawn, 0) - 2.0 / 3.0).abs() < 0.002);
    }

    #[test]
    fn a_draw_depends_on_the_seed_and_its_number_alone() {
        let sampling = |seed| Sampling {
            temperature: 1.0,
            top_p: 1.0,
            seed,
        };
        let scores = [0.0; 64];
        let text =
            |seed| -> Vec<u32> { (0..40).map(|n| sampling(seed).draw(&scores, n)).collect() };
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
        let distinct: std::collections::BTreeSet<u32> = text(7).into_iter().collect();
        assert!(distinct.len() > 20, "the n-th draw is its own");
    }

    #[test]
    fn a_window_is_between_half_a_context_and_a_whole_one_and_moves_rarely() {
        for context in [1, 2, 3, 8, 128] {
            let mut starts = Vec::new();
            for len in 1..5 * context {
                let start = window_start(len, context);
                let seen = len - start;
                assert!(seen <= context && (seen > context / 2 || start == 0));
                if starts.last() != Some(&start) {
                    starts.push(start);
                }
            }
            assert!(context < 8 || starts.len() < 12, "{starts:?}");
        }
    }

    #[test]
    fn a_text_that_is_cut_where_its_window_begins_has_the_same_windows() {
        for context in [2, 8, 10] {
            for cut_at in 1..4 * context {
                let cut = window_start(cut_at, context);
                for len in cut_at..6 * context {
                    let again = cut + window_start(len - cut, context);
                    assert_eq!(
                        again,
                        window_start(len, context),
                        "{context} {cut_at} {len}"
                    );
                }
            }
        }
    }
}
