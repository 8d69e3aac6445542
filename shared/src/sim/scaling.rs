//! What more pipelines bring where nothing fails: samples a second in virtual time.
//!
//! Pipelines of two equally fast seats train a model of two stages beside each other and merge after each round. A volunteer's
//! way out carries so many bytes a second, whoever they are for, and everything takes as long to arrive. Links open, commits are
//! written, and messages of the host travel as in every world; what a processor spends on any of it is not
//! looked at, so this says what rules and wires allow. Begin with [`measure`].
//!
//! Newcomers fetch states of their real length where no more pipelines than one group has take part; beyond, what merges
//! exchange has its length, but states are short: thousands of them would not fit a memory.

use super::summary::Failure;
use super::world::{Sabotage, World};
use crate::config::model::{ModelConfig, NumberFormat};
use crate::config::run::MergeConfig;
use crate::limits::MERGE_GROUP_MAX;
use crate::units::Span;

/// Seats of a pipeline.
const SEATS: usize = 2;
/// For all to take part, or for one more round.
const WAIT_MAX: Span = Span::from_secs(1_200);

/// How volunteers and their wires are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Steps of a round.
    pub round_steps: u32,
    /// Milliseconds of a microbatch at a seat, a multiple of [`Self::MICROBATCH_UNIT_MS`].
    pub microbatch_ms: u64,
    /// Delay of each link, one way.
    pub delay: Span,
    /// Bytes that a volunteer sends a second, at most.
    pub bytes_per_second: u64,
}

impl Setting {
    /// A block and four sequences at the finest pace that a process of a world has.
    pub const MICROBATCH_UNIT_MS: u64 = 3;
    /// An update, and each part of a merge.
    const JOB_MS: u64 = 20;
}

/// What so many pipelines did in some rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brought {
    /// Samples in the rounds' commits.
    pub samples: u64,
    /// From the commit before them to the last one's.
    pub elapsed: Span,
    /// How much of it the rounds took, from `begin` to the slowest pipeline's last step.
    pub in_rounds: Span,
}

/// Lets so many pipelines train until all take part, and then so many rounds more.
///
/// # Errors
/// A rule was broken, not all take part within twenty minutes, or one of the rounds is without some of them.
///
/// # Panics
/// If the microbatch's time is no multiple of its unit.
pub fn measure(pipelines: u16, rounds: u32, setting: Setting) -> Result<Brought, Failure> {
    let mut world = world(pipelines, setting);
    let pipelines = usize::from(pipelines);
    let in_newest = |world: &World| {
        let host = world.host.as_ref()?;
        Some(host.history().newest_first().next()?.members.len())
    };
    world.run_until(WAIT_MAX, |world| in_newest(world) == Some(pipelines))?;
    let (began, before) = (world.now, world.summary.rounds);
    let wanted = before + rounds;
    world.run_until(WAIT_MAX, |world| world.summary.rounds >= wanted)?;
    let host = world.host.as_ref().expect("no host dies in a quiet world");
    let newest = host.history().newest_first();
    let commits: Vec<_> = newest.take(rounds as usize).collect();
    if commits
        .iter()
        .any(|commit| commit.members.len() != pipelines)
    {
        return Err(world.failure("a round without some of the pipelines"));
    }
    Ok(Brought {
        samples: commits.iter().map(|commit| commit.samples()).sum(),
        elapsed: world.now.since(began),
        in_rounds: Span::from_micros(commits.iter().map(|commit| commit.elapsed_us).sum()),
    })
}

/// Two stages, so that a pipeline of two seats is the longest there can be.
fn model() -> ModelConfig {
    ModelConfig {
        d_model: 256,
        d_ff: 704,
        blocks: SEATS,
        stages: SEATS,
        ..ModelConfig::tiny()
    }
}

fn world(pipelines: u16, setting: Setting) -> World {
    let mut world = World::quiet_with(1, Sabotage::default(), |config| {
        config.model = model();
        config.format = NumberFormat::Int8;
        config.training.batch = 32;
        config.training.microbatches = 8;
        config.schedule.round_steps = setting.round_steps;
        config.schedule.round_max = Span::from_secs(600);
        config.schedule.seats_min = u16::try_from(SEATS).expect("few");
        config.schedule.pipelines_max = pipelines;
        config.schedule.eval_rounds = 0;
        config.merge = MergeConfig {
            format: NumberFormat::Int8,
            group_max: MERGE_GROUP_MAX,
            ..config.merge
        };
    });
    world
        .network
        .set_uplinks(setting.delay, setting.bytes_per_second);
    world.states_at_length = pipelines <= MERGE_GROUP_MAX;
    let volunteers = SEATS * usize::from(pipelines);
    while world.processes.len() < volunteers {
        world.spawn();
    }
    world.processes.retain(|id, _| *id < volunteers);
    let microbatch_ms = setting.microbatch_ms;
    assert!(
        microbatch_ms.is_multiple_of(Setting::MICROBATCH_UNIT_MS),
        "{microbatch_ms} ms"
    );
    for process in world.processes.values_mut() {
        process.pace_ms = microbatch_ms / Setting::MICROBATCH_UNIT_MS;
        process.job_ms = Some(Setting::JOB_MS);
        assert_eq!(process.block_us() * 4, 1_000 * microbatch_ms);
    }
    world
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTING: Setting = Setting {
        round_steps: 75,
        microbatch_ms: 60,
        delay: Span::from_millis(20),
        bytes_per_second: 2_500_000,
    };

    fn brought(pipelines: u16) -> Brought {
        measure(pipelines, 3, SETTING).expect("all rules are kept")
    }

    #[test]
    fn four_pipelines_with_rounds_of_43_seconds_train_nearly_four_times_as_much_as_one() {
        let (one, four) = (brought(1), brought(4));
        let rate = |it: Brought| it.samples as f64 / it.elapsed.as_secs_f64();
        let percent = 100.0 * rate(four) / (4.0 * rate(one));
        assert!((95.0..100.0).contains(&percent), "{percent} %");
        // What is merged is as long as the model's, and takes its time: a byte a value, three quarters of them twice.
        let values = model().parameter_count() / SEATS;
        let merge_bytes = 2 * values as u64 * 3 / 4;
        let between = |it: Brought| (it.elapsed.as_micros() - it.in_rounds.as_micros()) / 3;
        let wire_us = merge_bytes * 1_000_000 / SETTING.bytes_per_second;
        assert!(
            (wire_us..4 * wire_us).contains(&(between(four) - between(one))),
            "{} and {} us between rounds, {wire_us} us on the wire",
            between(one),
            between(four)
        );
    }

    #[test]
    fn volunteers_for_sixteen_pipelines_that_come_at_once_get_their_states_of_different_others() {
        // Of one alone all would wait for longer than a round, and with the next one begin again, for ever.
        let rounds = 1;
        let brought = measure(MERGE_GROUP_MAX, rounds, SETTING).expect("all take part");
        assert_eq!(brought.samples, 16 * 75 * 32);
    }
}
