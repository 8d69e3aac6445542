//! How fast a device is: forward and backward of a block of the run's model, measured before a volunteer joins, and
//! now and then while it has nothing else to do.

use bytes::Bytes;

use super::Clock;
use crate::compute::{Compute, Done, Input, Job, StageState};
use crate::config::run::RunConfig;
use crate::units::{Epoch, Microbatch, PipelineId, Round, Span, StageRange, Step};
use crate::wire::frame::{Mode, Place, Slot};
use crate::wire::signal::Speed;

/// Most time to spend on measuring, beside first tries, which compile kernels and fill caches.
const MEASURE_MAX: Span = Span::from_secs(2);
/// Most time that a whole microbatch may be expected to take, where a device is measured again.
const AGAIN_MAX: Span = Span::from_millis(250);
/// Measurements of which the fastest counts: the others met something else on the machine.
const TRIES: usize = 5;

/// How fast a compute is with the run's model.
///
/// Leaves the compute without gradients of any use: the next [`Job::Seat`] clears them.
///
/// # Errors
/// The device cannot run the model: why, in words.
pub async fn speed<C: Compute, K: Clock>(
    compute: &mut C,
    clock: &K,
    config: &RunConfig,
) -> Result<Speed, String> {
    let blocks = config.model.blocks_of(0).len() as u64;
    let whole = config.microbatch_sequences();
    // The first one of a size compiles kernels for it and fills caches: it says nothing of the speed.
    once(compute, clock, config, 1).await?;
    let alone = fastest(compute, clock, config, 1).await?;
    let of_block = |took: Span, sequences: u16| took.as_micros() / (blocks * u64::from(sequences));
    let alone_us = of_block(alone, 1).max(1);
    if whole == 1 || alone.times(u64::from(whole)) > MEASURE_MAX {
        return Ok(Speed::of(alone_us));
    }
    once(compute, clock, config, whole).await?;
    let together = fastest(compute, clock, config, whole).await?;
    let block_us = of_block(together, whole).max(1);
    Ok(Speed {
        block_us,
        alone_us: Some(alone_us.max(block_us)),
    })
}

/// The fastest of some forwards and backwards of stage 0 over so many sequences.
async fn fastest<C: Compute, K: Clock>(
    compute: &mut C,
    clock: &K,
    config: &RunConfig,
    sequences: u16,
) -> Result<Span, String> {
    let began = clock.now();
    let mut fastest = once(compute, clock, config, sequences).await?;
    for _ in 1..TRIES {
        if clock.now().since(began) > MEASURE_MAX {
            break;
        }
        fastest = fastest.min(once(compute, clock, config, sequences).await?);
    }
    Ok(fastest)
}

/// Microseconds of forward and backward of one block for one sequence, measured once more: as short as it can be, so that
/// a seat's order does not wait for it. `None` when the device cannot do it now; its next job will tell why.
pub async fn again<C: Compute, K: Clock>(
    mut compute: C,
    clock: &K,
    config: RunConfig,
) -> (C, Option<u64>) {
    let blocks = config.model.blocks_of(0).len() as u64;
    let mut sequences = 1;
    let mut took = once(&mut compute, clock, &config, sequences).await;
    let whole = config.microbatch_sequences();
    // What a whole microbatch takes is what a seat waits for; one sequence alone costs more than its share.
    if let Ok(one) = took
        && one.times(u64::from(whole)) <= AGAIN_MAX
    {
        sequences = whole;
        took = once(&mut compute, clock, &config, sequences).await;
    }
    let block_us = took.map(|took| (took.as_micros() / (blocks * u64::from(sequences))).max(1));
    (compute, block_us.ok())
}

/// Forward and backward of stage 0 over that many sequences, from a fresh seat.
async fn once<C: Compute, K: Clock>(
    compute: &mut C,
    clock: &K,
    config: &RunConfig,
    sequences: u16,
) -> Result<Span, String> {
    let last = config.training.microbatches - 1;
    // What begins or ends a step is not what a microbatch takes, where there is one in between.
    let microbatch = if last > 1 { last - 1 } else { last };
    let slot = Slot {
        place: Place {
            pipeline: PipelineId(0),
            epoch: Epoch::default(),
            round: Round(0),
        },
        step: Step(0),
        microbatch: Microbatch(microbatch),
    };
    let count = usize::from(sequences) * (config.model.context + 1);
    let token = |index: usize| u32::try_from(index * 31 % config.model.vocabulary).unwrap_or(0);
    let seat = Job::Seat {
        stages: StageRange { first: 0, end: 1 },
        states: vec![StageState::Seed],
        keeps_texts: false,
    };
    let forward = Job::Forward {
        slot,
        mode: Mode::Train,
        input: Input {
            tokens: (0..count).map(token).collect(),
            boundary: None,
            first_sample: 0,
        },
    };
    succeed(compute.run(seat).await)?;
    let began = clock.now();
    let done = succeed(compute.run(forward).await)?;
    let Done::Forward { boundary, .. } = done else {
        return Err(format!("a forward gave {done:?}"));
    };
    let backward = Job::Backward {
        slot,
        gradient: boundary.map(|boundary| gradient(config, slot, &boundary)),
        step_tokens: (microbatch == last).then_some(count as u64),
    };
    let done = succeed(compute.run(backward).await)?;
    if !matches!(done, Done::Backward { .. }) {
        return Err(format!("a backward gave {done:?}"));
    }
    Ok(clock.now().since(began))
}

/// A gradient of the right form for a boundary that came: any numbers will do, its own are.
fn gradient(config: &RunConfig, slot: Slot, boundary: &[u8]) -> Bytes {
    let packed = config.boundary_bytes();
    let behind = config.forward_boundary_bytes(Mode::Train.opens(slot)) - packed;
    let follows = config.backward_payload_bytes(slot.place.round, slot.microbatch) - packed;
    let mut gradient = boundary[..boundary.len().saturating_sub(behind)].to_vec();
    gradient.resize(gradient.len() + follows, 0);
    gradient.into()
}

/// A result, unless it is that nothing came of the job.
fn succeed(done: Done) -> Result<Done, String> {
    if let Done::Failed { reason } | Done::Refused { reason } = done {
        return Err(reason);
    }
    Ok(done)
}
