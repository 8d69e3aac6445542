//! The learning rate as a function of samples done: linear warm-up, then a cosine to a tenth.
//!
//! Samples, not steps: volunteers come and go, and a step of several pipelines is worth more
//! samples than that of one.

use crate::config::run::TrainingConfig;

/// What the rate ends at, as a share of its highest value.
const FINAL_SHARE: f64 = 0.1;

/// The rate of a step that begins when `samples_done` samples of the run are done.
///
/// Counted to the step's end, so that the first step does not go to waste with a rate of zero.
#[must_use]
pub fn learning_rate(training: &TrainingConfig, samples_done: u64) -> f64 {
    let samples = samples_done + u64::from(training.batch);
    let warmup = training.warmup_samples;
    if samples < warmup {
        return training.learning_rate * samples as f64 / warmup as f64;
    }
    let length = training.samples.saturating_sub(warmup).max(1);
    let progress = ((samples - warmup) as f64 / length as f64).min(1.0);
    // The same bits on any machine: replicas that merge gradients agree on what they step by.
    let cosine = 0.5 * (1.0 + libm::cos(std::f64::consts::PI * progress));
    training.learning_rate * (FINAL_SHARE + (1.0 - FINAL_SHARE) * cosine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_its_height_and_falls_to_a_tenth() {
        let training = TrainingConfig {
            batch: 10,
            microbatches: 1,
            learning_rate: 1.0,
            clip: 1.0,
            samples: 1100,
            warmup_samples: 100,
        };
        let expected = [
            (0, 0.1),
            (40, 0.5),
            (90, 1.0),
            (590, 0.55),
            (1090, 0.1),
            (9000, 0.1),
        ];
        for (samples_done, rate) in expected {
            let found = learning_rate(&training, samples_done);
            assert!(
                (found - rate).abs() < 1e-12,
                "{samples_done}: {found}, not {rate}"
            );
        }
    }
}
