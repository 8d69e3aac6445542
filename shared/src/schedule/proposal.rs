//! Into how many microbatches a step is best cut, with seats and links as they were measured.
//!
//! Many small ones fill the pipe sooner; few large ones pay less often for what work costs whatever its size. With m microbatches
//! a step takes (m - 1) times the slowest part, a seat's microbatch or its bytes on a link, and each part once: every seat's
//! microbatch, every border's bytes and its delay, there and back. With s equal seats of t behind links whose bytes hide
//! behind compute that is (m + s - 1) t + 2 (s - 1) l, l a frame's delay and transfer. Rests of who lends a part of the time come behind
//! its microbatches: they make it slower, not the pipe longer. The gradient of a step is the same sum
//! however it is cut, so this is about time only; updates, the same for all, are left out.
//!
//! Begin with [`propose`]. Integers only: the same figures give the same proposal anywhere.
//!
//! # Source
//! Filling and draining a pipe of microbatches: `GPipe`, arXiv 1811.06965, section 2.3; here with unequal seats and with links.

use super::placement::{Border, Candidate, GAIN_PERCENT_MIN, Links, StageCosts};
use crate::config::run::RunConfig;
use crate::units::StageRange;
use crate::wire::report::Proposal;
use crate::wire::signal::Speed;

/// A seat at work.
#[derive(Clone, Debug)]
pub struct Seated {
    /// Who sits there.
    pub volunteer: Candidate,
    /// How fast its device is.
    pub speed: Speed,
    /// What it holds.
    pub stages: StageRange,
}

/// The best number of microbatches for these line-ups, head first each; `None` where the run's own is as good, or where not all
/// devices and links are known well enough. What was proposed before (`standing`) stays while nothing is clearly better.
#[must_use]
pub fn propose(
    config: &RunConfig,
    line_ups: &[Vec<Seated>],
    links: &Links,
    standing: Option<u16>,
) -> Option<Proposal> {
    if !line_ups.iter().all(|seats| is_known(seats, links)) {
        return None;
    }
    let now_us = steps_us(config, config, line_ups, links)?;
    let batch = config.training.batch;
    let cuts = (1..=u16::MAX).take_while(|count| u32::from(*count) <= batch);
    let times: Vec<(u128, u16)> = cuts
        .filter(|count| batch.is_multiple_of(u32::from(*count)))
        .filter_map(|microbatches| {
            let mut cut = config.clone();
            cut.training.microbatches = microbatches;
            cut.validate().ok()?;
            Some((steps_us(config, &cut, line_ups, links)?, microbatches))
        })
        .collect();
    let best = *times.iter().min()?;
    let is_as_good = |(step_us, count): &&(u128, u16)| {
        let limit_us = best.0 * u128::from(100 + GAIN_PERCENT_MIN);
        Some(*count) == standing && step_us * 100 <= limit_us
    };
    let (step_us, microbatches) = *times.iter().find(is_as_good).unwrap_or(&best);
    let saved_us = now_us.checked_sub(step_us)?;
    let is_worth_it = saved_us * 100 > now_us * u128::from(GAIN_PERCENT_MIN);
    is_worth_it.then(|| Proposal {
        microbatches,
        sequences: u16::try_from(batch / u32::from(microbatches)).unwrap_or(u16::MAX),
        shorter_percent: u64::try_from(saved_us * 100 / now_us).unwrap_or(100),
    })
}

/// Whether each device was measured with one sequence, too, and each border.
fn is_known(seats: &[Seated], links: &Links) -> bool {
    let is_measured = |pair: &[Seated]| {
        let [a, b] = pair else { return false };
        links.are_measured(a.volunteer.peer, b.volunteer.peer)
    };
    seats.iter().all(|seat| seat.speed.alone_us.is_some()) && seats.windows(2).all(is_measured)
}

/// Microseconds of a step of each line-up, summed, if it were cut as in `cut`; `None` if not all of them can.
pub(crate) fn steps_us(
    config: &RunConfig,
    cut: &RunConfig,
    line_ups: &[Vec<Seated>],
    links: &Links,
) -> Option<u128> {
    let costs = StageCosts::new(cut);
    let steps = line_ups.iter().map(|seats| {
        let measured = u64::from(config.microbatch_sequences());
        step_us(seats, measured, cut, &costs, links)
    });
    steps.sum()
}

fn step_us(
    seats: &[Seated],
    measured_sequences: u64,
    cut: &RunConfig,
    costs: &StageCosts,
    links: &Links,
) -> Option<u128> {
    let sequences = u64::from(cut.microbatch_sequences());
    let fits = |seat: &Seated| costs.memory_of(seat.stages) <= seat.volunteer.memory_bytes;
    if !seats.iter().all(fits) {
        return None;
    }
    let computes = seats.iter().map(|seat| {
        let lends = |throttle_percent: u8| {
            let microbatch = Candidate {
                block_us: block_us(seat.speed, measured_sequences, sequences),
                throttle_percent,
                relay_only: false,
                ..seat.volunteer.clone()
            };
            u128::from(microbatch.seat_us(costs, seat.stages))
        };
        // It rests behind a microbatch, not before what it made of one is sent.
        Some((lends(seat.volunteer.throttle_percent), lends(100)))
    });
    let borders = seats.windows(2).map(|pair| {
        let [a, b] = pair else { return None };
        let of = |microbatches: u64| {
            let border = Border {
                sequences: 1,
                microbatches,
                ..*costs.border()
            };
            links.border_us(&a.volunteer, &b.volunteer, &border)
        };
        // Alone in its step it bears all of the delay; among countless ones, none.
        Some((u128::from(of(u64::MAX)?), u128::from(of(1)?)))
    });
    let parts: Option<Vec<(u128, u128)>> = computes.chain(borders).collect();
    let parts = parts?;
    let slowest_us = parts.iter().map(|(each_us, _)| *each_us).max()?;
    let once_us: u128 = parts.iter().map(|(_, once_us)| *once_us).sum();
    let microbatches = u128::from(cut.training.microbatches);
    let filled_us = (microbatches - 1) * slowest_us + once_us;
    Some(filled_us.max(microbatches * slowest_us))
}

/// Microseconds of a block and a microbatch of so many sequences: what it costs in any case, and each sequence's part.
fn block_us(speed: Speed, measured_sequences: u64, sequences: u64) -> u64 {
    let whole_us = speed.block_us.saturating_mul(measured_sequences);
    let alone_us = speed.alone_us.unwrap_or(speed.block_us);
    let alone_us = alone_us.clamp(speed.block_us, whole_us);
    let others = measured_sequences.saturating_sub(1).max(1);
    let each_us = if measured_sequences > 1 {
        (whole_us - alone_us) / others
    } else {
        alone_us
    };
    let fixed_us = alone_us - each_us.min(alone_us);
    fixed_us.saturating_add(each_us.saturating_mul(sequences))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::placement::Measured;
    use super::*;
    use crate::units::PeerId;

    /// A device on which work costs nothing besides its size.
    fn even(block_us: u64) -> Speed {
        Speed {
            block_us,
            alone_us: Some(block_us),
        }
    }

    /// `tiny` with steps of 32 sequences in so many microbatches, a stage a seat.
    fn run(microbatches: u16) -> RunConfig {
        let mut config = RunConfig::preset("tiny").expect("a preset");
        config.training.batch = 32;
        config.training.microbatches = microbatches;
        config
    }

    /// Four equal seats of a stage each, over links of that delay on which bytes take no time.
    fn pipe(config: &RunConfig, speed: Speed, delay_us: u64) -> (Vec<Seated>, Links) {
        let stages = u16::try_from(config.model.stages).expect("few");
        let seats = (0..stages).map(|stage| Seated {
            volunteer: Candidate {
                peer: PeerId(u64::from(stage)),
                block_us: speed.block_us,
                throttle_percent: 100,
                memory_bytes: 1 << 40,
                relay_only: false,
                delay_us: 0,
                bytes_per_second: None,
                holds: BTreeSet::new(),
            },
            speed,
            stages: StageRange {
                first: stage,
                end: stage + 1,
            },
        });
        let mut links = Links::default();
        for peer in 0..u64::from(stages) {
            let measured = Measured {
                delay_us,
                bytes_per_second: Some(u64::MAX),
                relayed: false,
            };
            let others = [peer.wrapping_sub(1), peer + 1].map(PeerId);
            let others = others.into_iter().filter(|it| it.0 < u64::from(stages));
            links.measure(PeerId(peer), others.map(|other| (other, measured)));
        }
        (seats.collect(), links)
    }

    #[test]
    fn equal_seats_take_what_the_formula_says() {
        let config = run(8);
        let (seats, links) = pipe(&config, even(1_000), 25_000);
        let costs = StageCosts::new(&config);
        let step = step_us(&seats, 4, &config, &costs, &links).expect("it fits");
        // Microbatches of four sequences; the last stage's head is some thousandths of a block more.
        let seat_us = |seat: &Seated| {
            4 * u128::from(costs.milliblocks_of(seat.stages)) * u128::from(seat.speed.block_us)
                / 1_000
        };
        let slowest = seats.iter().map(seat_us).max().expect("seats");
        let once: u128 = seats.iter().map(seat_us).sum();
        assert_eq!(step, 7 * slowest + once + 2 * 3 * 25_000);
        let even: u128 = (8 + 3) * 4_000 + 2 * 3 * 25_000;
        assert!(step >= even && step < even + even / 10, "{step} {even}");
    }

    #[test]
    fn a_pipe_whose_work_costs_its_size_only_is_cut_finest() {
        let config = run(4);
        let (seats, links) = pipe(&config, even(10_000), 0);
        let best =
            propose(&config, &[seats], &links, None).expect("four are too few for four seats");
        assert_eq!((best.microbatches, best.sequences), (32, 1));
        // (4 + 3) * 8 sequences' time or (32 + 3) of one, and a little for the head.
        assert_eq!(best.shorter_percent, 34);
    }

    #[test]
    fn what_each_microbatch_costs_is_weighed_against_filling_the_pipe() {
        // A sequence takes 1 ms, a microbatch 8 ms whatever its size: 32 of them would take 35 * 9 ms, four 7 * 16, two 5 * 24.
        let speed = Speed {
            block_us: 1_000 + 8_000 / 4,
            alone_us: Some(9_000),
        };
        let config = run(8);
        let (seats, links) = pipe(&config, speed, 0);
        let best =
            propose(&config, std::slice::from_ref(&seats), &links, None).expect("8 are too many");
        assert_eq!((best.microbatches, best.sequences), (4, 8));
        let words = best.to_string();
        assert!(words.contains("4 microbatches of 8 sequences"), "{words}");
        assert!(words.contains("[training] microbatches = 4"), "{words}");
        // With no more than its own activations' room for each, larger ones are none.
        let costs = StageCosts::new(&config);
        let mut narrow = seats;
        for seat in &mut narrow {
            seat.volunteer.memory_bytes = costs.memory_of(seat.stages);
        }
        assert_eq!(propose(&config, &[narrow], &links, None), None);
    }

    #[test]
    fn what_is_good_enough_stays() {
        let config = run(32);
        let (seats, links) = pipe(&config, even(10_000), 25_000);
        assert_eq!(propose(&config, &[seats], &links, None), None);
        assert_eq!(propose(&config, &[], &Links::default(), None), None);
    }

    #[test]
    fn what_gains_little_is_not_told_and_what_was_told_stands() {
        // 16 of two sequences take 19 * 20 ms and the links, 32 of one 35 * 10: 6 % less.
        let config = run(16);
        let (seats, links) = pipe(&config, even(10_000), 10_000);
        let all = [seats];
        let [now, finer] = [16, 32].map(|count| steps_us(&config, &run(count), &all, &links));
        assert!(finer < now, "{finer:?} {now:?}");
        assert_eq!(propose(&config, &all, &links, None), None);
        let coarse = run(2);
        let best = propose(&coarse, &all, &links, None).map(|it| it.microbatches);
        assert_eq!(best, Some(32));
        let told = propose(&coarse, &all, &links, Some(16)).map(|it| it.microbatches);
        assert_eq!(told, Some(16));
        let told = propose(&coarse, &all, &links, Some(4)).map(|it| it.microbatches);
        assert_eq!(told, Some(32), "4 are clearly worse");
    }

    #[test]
    fn nothing_is_proposed_on_guesses() {
        let config = run(2);
        let (mut seats, links) = pipe(&config, even(10_000), 10_000);
        let all = [seats.clone()];
        assert!(propose(&config, &all, &links, None).is_some());
        assert_eq!(propose(&config, &all, &Links::default(), None), None);
        seats[1].speed = Speed::of(10_000);
        assert_eq!(propose(&config, &[seats], &links, None), None);
    }

    #[test]
    fn who_lends_a_part_of_the_time_makes_the_pipe_slower_and_not_longer() {
        let config = run(8);
        let (mut seats, links) = pipe(&config, even(10_000), 0);
        let all = |seats: &[Seated]| {
            steps_us(&config, &config, &[seats.to_vec()], &links).expect("it fits")
        };
        let full_us = all(&seats);
        for seat in &mut seats {
            seat.volunteer.throttle_percent = 50;
        }
        // Seven periods more of 40 ms and the head's thousandths, not eleven.
        let more_us = all(&seats) - full_us;
        assert!((7 * 40_000..8 * 42_000).contains(&more_us), "{more_us}");
        // Relayed it waits longer on its borders alone.
        for seat in &mut seats {
            seat.volunteer.throttle_percent = 100;
            seat.volunteer.relay_only = true;
        }
        assert_eq!(all(&seats), full_us, "its links were measured");
    }

    #[test]
    fn times_of_other_sizes_lie_on_the_line_through_those_measured() {
        let speed = Speed {
            block_us: 300,
            alone_us: Some(750),
        };
        // Four take 1,200, one 750: 150 each and 600 in any case.
        let times = [1, 2, 4, 8].map(|sequences| block_us(speed, 4, sequences));
        assert_eq!(times, [750, 900, 1_200, 1_800]);
        // Nonsense is taken for the nearest sense.
        let slower_together = Speed {
            block_us: 300,
            alone_us: Some(100),
        };
        assert_eq!(block_us(slower_together, 4, 1), 300);
        let free_together = Speed {
            block_us: 300,
            alone_us: Some(9_000),
        };
        assert_eq!(
            [1, 4, 8].map(|it| block_us(free_together, 4, it)),
            [1_200; 3]
        );
        assert_eq!(block_us(even(500), 1, 4), 2_000);
    }
}
