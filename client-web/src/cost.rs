//! What lending costs and brings, estimated before anybody joins: stages that fit, bytes an hour.
//!
//! For people, never for the scheduler. Errs on the large side: a seat between two others, always busy.

use shared::config::run::RunConfig;
use shared::schedule::placement::StageCosts;
use shared::units::StageRange;

use crate::messages::{Cost, Reachability, Verdict};

/// Times that a seat's state leaves between two checkpoints: to the host and to whoever keeps a copy.
const COPIES: f64 = 2.0;

/// Stages in a row that fit into `memory_bytes`, the longest such seat; `None` if not even one fits.
#[must_use]
pub fn seat(config: &RunConfig, memory_bytes: u64) -> Option<StageRange> {
    let costs = StageCosts::new(config);
    let end = costs.all().end;
    let longest = |first: u16| {
        let fits = |end: &u16| {
            let stages = StageRange { first, end: *end };
            costs.memory_of(stages) <= memory_bytes
        };
        let end = (first + 1..=end).take_while(fits).last()?;
        Some(StageRange { first, end })
    };
    (0..end).filter_map(longest).max_by_key(|seat| seat.count())
}

/// What would come of lending so much memory where others are reached so.
#[must_use]
pub fn verdict(
    config: &RunConfig,
    memory_bytes: u64,
    reach: &Reachability,
    relay_only: bool,
) -> Verdict {
    unreachable(reach, relay_only).unwrap_or_else(|| fit(config, memory_bytes))
}

/// Why no link to another volunteer can be opened, if that is so.
fn unreachable(reach: &Reachability, relay_only: bool) -> Option<Verdict> {
    if !reach.webrtc {
        let what =
            "this browser makes no connections to other volunteers (WebRTC is off)".to_owned();
        let remedy = "Switch WebRTC on, or use another browser.";
        return Some(Verdict::cannot(what, remedy));
    }
    if relay_only && !reach.relay {
        let relays = if reach.has_relays {
            "no relay of this run works from here"
        } else {
            "this run has no relay"
        };
        let what = format!("{relays}, and you want to be reached through relays only");
        let remedy = "Switch “Through relays only” off (others in the run then see your IP address), or ask whoever \
                      hosts this run for a relay.";
        return Some(Verdict::cannot(what, remedy));
    }
    let nobody = !(reach.host || reach.reflexive || reach.relay);
    nobody.then(|| {
        let remedy = "Look whether a VPN, a firewall or an extension keeps WebRTC from working, or use another browser.";
        Verdict::cannot("nobody can reach this browser", remedy)
    })
}

/// What would come of lending so much memory.
fn fit(config: &RunConfig, memory_bytes: u64) -> Verdict {
    let of = u16::try_from(config.model.stages).unwrap_or(u16::MAX);
    if let Some(seat) = seat(config, memory_bytes) {
        let stages = u16::try_from(seat.count()).unwrap_or(of);
        return Verdict::CanHelp { stages, of };
    }
    let costs = StageCosts::new(config);
    let smallest = costs
        .all()
        .iter()
        .map(|stage| {
            costs.memory_of(StageRange {
                first: stage.0,
                end: stage.0 + 1,
            })
        })
        .min();
    let needed = memory(smallest.unwrap_or_default());
    let lent = memory(memory_bytes);
    Verdict::cannot(
        format!("a stage of this model needs {needed} of memory, and {lent} is lent"),
        format!("Lend {needed}, if this machine has that much to spare."),
    )
}

/// An amount of memory, rounded up: who lends what is said has enough.
fn memory(bytes: u64) -> String {
    match bytes.div_ceil(1_000_000) {
        megabytes @ ..1_000 => format!("{megabytes} MB"),
        megabytes => {
            let tenths = megabytes.div_ceil(100);
            format!("{}.{} GB", tenths / 10, tenths % 10)
        }
    }
}

/// What a seat that fits into `memory_bytes` would move, on a machine that needs `block_us` microseconds for a block and a
/// sequence, and works for `throttle_percent` of the time.
#[must_use]
pub fn estimate(
    config: &RunConfig,
    block_us: u64,
    memory_bytes: u64,
    throttle_percent: u8,
) -> Option<Cost> {
    let costs = StageCosts::new(config);
    let longest = seat(config, memory_bytes)?;
    // As more come, seats are split: whoever could hold everything will not have to for long.
    let whole = longest == costs.all() && longest.count() > 1;
    let seat = StageRange {
        end: longest.end - u16::from(whole),
        ..longest
    };
    let blocks = costs.milliblocks_of(seat) as f64 / 1e3;
    let sequences = f64::from(config.microbatch_sequences());
    let share = f64::from(throttle_percent.clamp(10, 100)) / 100.0;
    let seconds = block_us.max(1) as f64 / 1e6 * blocks * sequences / share;
    let microbatches = 3_600.0 / seconds;
    let boundary = if config.model.stages > 1 {
        (config.forward_payload_bytes() + config.boundary_bytes()) as f64
    } else {
        0.0
    };
    let state = costs.state_of(seat) as f64;
    let checkpoints = 3_600.0 / config.schedule.checkpoint.as_secs_f64().max(1.0);
    Some(Cost {
        up_bytes_hour: microbatches * boundary + COPIES * checkpoints * state,
        down_bytes_hour: microbatches * boundary,
        first_bytes: state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> RunConfig {
        let run = shared::config::written::read("[run]\npreset = \"tiny\"\n", &[]);
        run.expect("a preset is a run")
    }

    #[test]
    fn plenty_of_memory_holds_all_stages_and_too_little_none() {
        let run = tiny();
        let of = u16::try_from(run.model.stages).expect("few");
        let verdict = |bytes| verdict(&run, bytes, &near(), false);
        assert_eq!(verdict(1 << 40), Verdict::CanHelp { stages: of, of });
        assert!(matches!(verdict(1_000), Verdict::Cannot { .. }));
        let amounts = [1_000, 600_000_000, 3_010_000_000].map(memory);
        assert_eq!(amounts, ["1 MB", "600 MB", "3.1 GB"]);
        assert_eq!(estimate(&run, 1_000, 1_000, 100), None);
    }

    /// A browser that others in its network reach.
    fn near() -> Reachability {
        Reachability {
            webrtc: true,
            host: true,
            ..Reachability::default()
        }
    }

    #[test]
    fn who_wants_relays_only_and_has_none_is_told_why_it_cannot_help() {
        let run = tiny();
        let told = |reach: &Reachability, relay_only| {
            let verdict = verdict(&run, 1 << 40, reach, relay_only);
            match verdict {
                Verdict::CanHelp { .. } => String::new(),
                Verdict::Cannot { what, .. } => what,
            }
        };
        let mut reach = near();
        assert_eq!(told(&reach, false), "");
        assert!(told(&reach, true).starts_with("this run has no relay"));
        reach.has_relays = true;
        assert!(told(&reach, true).starts_with("no relay of this run works from here"));
        reach.relay = true;
        assert_eq!(told(&reach, true), "");
        reach.webrtc = false;
        assert!(told(&reach, false).contains("WebRTC is off"));
        let alone = Reachability {
            webrtc: true,
            ..Reachability::default()
        };
        assert!(told(&alone, false).contains("nobody can reach"));
    }

    #[test]
    fn a_seat_grows_with_the_memory_that_is_lent() {
        let run = tiny();
        let all = StageCosts::new(&run).memory_of(StageCosts::new(&run).all());
        let counts: Vec<usize> = (0..=8)
            .map(|eighths| seat(&run, all * eighths / 8).map_or(0, StageRange::count))
            .collect();
        assert!(counts.is_sorted(), "{counts:?}");
        assert_eq!(counts.last(), Some(&run.model.stages));
    }

    #[test]
    fn half_the_time_moves_half_the_boundaries() {
        let run = tiny();
        let cost = |percent| estimate(&run, 2_000, 1 << 40, percent).expect("it fits");
        let (whole, half) = (cost(100), cost(50));
        let ratio = half.down_bytes_hour / whole.down_bytes_hour;
        assert!((ratio - 0.5).abs() < 1e-9, "{ratio}");
        assert_eq!(half.first_bytes, whole.first_bytes);
    }

    #[test]
    fn an_hour_of_tiny_costs_what_its_frames_weigh() {
        let run = tiny();
        // One stage fits: a seat of one stage of one or more blocks, 4 sequences a microbatch.
        let one = StageCosts::new(&run).memory_of(StageRange { first: 1, end: 2 });
        let cost = estimate(&run, 10_000, one, 100).expect("one fits");
        let blocks = run.model.blocks_of(1).len() as f64;
        let microbatches = 3_600.0 / (0.010 * 4.0 * blocks);
        let bytes = (1_032 + 17_408 + 17_408) as f64;
        let wanted = microbatches * bytes;
        assert!(
            (cost.down_bytes_hour - wanted).abs() < 1e-6 * wanted,
            "{cost:?}, wanted {wanted}"
        );
    }
}
