//! A device that is not there: it waits as long as one of a stated speed would work, and computes nothing.
//!
//! *Feature `faults`*, which no release is built with. On a machine with fewer cores than volunteers, what more of them bring
//! cannot be seen while all compute there. [`VARIABLE`] names how long a microbatch takes in a block, forward and
//! backward, in microseconds, and a part of one its part of that; everything else is the real thing, and whatever leaves the seat is as long as the
//! model's ([`FakeCompute`]).
//!
//! A forward takes a quarter of that, a backward, which runs the forward once more, three quarters, an update as long as
//! a forward. Copying and merging take what they take here. A job takes its time from when it is begun, so what this
//! machine does for it meanwhile costs nothing more. Begin with [`Pretend::asked`].

use std::thread;
use std::time::{Duration, Instant};

use shared::compute::{Compute, Done, Job};
use shared::config::run::RunConfig;
use shared::sim::compute::FakeCompute;

/// The environment variable that asks for it.
const VARIABLE: &str = "SHOAL_PRETEND_US";

/// The device.
pub(super) struct Pretend {
    compute: FakeCompute,
    config: RunConfig,
    /// A microbatch in a block, forward and backward.
    block: Duration,
    /// Blocks of the seat.
    blocks: u32,
    /// Tokens of the newest forward.
    tokens: usize,
}

impl Pretend {
    /// One for this run, if it was asked for.
    ///
    /// # Errors
    /// The variable is no number: in words.
    pub(super) fn asked(config: &RunConfig) -> Result<Option<Self>, String> {
        let Some(text) = std::env::var_os(VARIABLE) else {
            return Ok(None);
        };
        let microseconds = text.to_str().and_then(|text| text.parse().ok());
        let block = Duration::from_micros(
            microseconds.ok_or_else(|| format!("{VARIABLE} is no number of microseconds"))?,
        );
        Ok(Some(Self::new(config, block)))
    }

    fn new(config: &RunConfig, block: Duration) -> Self {
        Self {
            compute: FakeCompute::at_length(config.clone()),
            config: config.clone(),
            block,
            blocks: 0,
            tokens: 0,
        }
    }

    /// How long it works on a job.
    fn takes(&mut self, job: &Job) -> Duration {
        if let Job::Seat { stages, .. } = job {
            let blocks = |stage: u16| self.config.model.blocks_of(usize::from(stage)).len();
            let blocks: usize = (stages.first..stages.end).map(blocks).sum();
            self.blocks = u32::try_from(blocks).expect("a model has few blocks");
        }
        if let Job::Forward { input, .. } = job {
            self.tokens = input.tokens.len();
        }
        let whole =
            usize::from(self.config.microbatch_sequences()) * (self.config.model.context + 1);
        let share = self.tokens as f64 / whole as f64;
        let quarter = (self.block * self.blocks).mul_f64(share) / 4;
        match job {
            Job::Forward { .. } | Job::Apply { .. } => quarter,
            Job::Backward { .. } => 3 * quarter,
            // A token is one row of thousands.
            Job::Generate(_)
            | Job::Forget { .. }
            | Job::Seat { .. }
            | Job::Snapshot { .. }
            | Job::Contribute { .. }
            | Job::Average { .. }
            | Job::OuterStep { .. }
            | Job::Norm { .. }
            | Job::GradientStep { .. } => Duration::ZERO,
        }
    }
}

impl Compute for Pretend {
    async fn run(&mut self, job: Job) -> Done {
        let end = Instant::now() + self.takes(&job);
        let done = self.compute.run(&job);
        // As an engine, it has a thread of its own, and holds it while it works.
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            thread::park_timeout(left);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use shared::driver::measure;

    use super::*;
    use crate::volunteer::ProcessClock;

    #[test]
    fn it_is_never_faster_than_it_was_asked_to_be() {
        let config = RunConfig::preset("tiny").expect("a preset");
        let sequences = u64::from(config.microbatch_sequences());
        let mut device = Pretend::new(&config, Duration::from_millis(8));
        let clock = ProcessClock(Instant::now());
        let measured = pollster::block_on(measure::speed(&mut device, &clock, &config));
        let block_us = measured.expect("it measures").block_us;
        // Never faster. How much slower is the machine's business.
        assert!(block_us * sequences >= 8_000, "{block_us}");
    }
}
