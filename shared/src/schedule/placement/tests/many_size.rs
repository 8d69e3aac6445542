//! Several pipelines of very many volunteers: how long placing them takes.

use std::time::{Duration, Instant};

use super::many_properties::{check_all, rate_of};
use super::size::Lot;
use super::*;
use crate::random::Words;

/// How long this test computed: not how long it waited for a processor, where the system tells that.
struct Watch {
    began: Instant,
    computed: Option<Duration>,
}

impl Watch {
    fn new() -> Self {
        let computed = Self::computed();
        let began = Instant::now();
        Self { began, computed }
    }

    fn took(&self) -> Duration {
        let computed = Self::computed().zip(self.computed);
        computed.map_or(self.began.elapsed(), |(now, before)| now - before)
    }

    fn computed() -> Option<Duration> {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        let nanoseconds = text.split(' ').next()?.parse().ok()?;
        Some(Duration::from_nanos(nanoseconds))
    }
}

/// Places a fresh run and, in the same time each, after every tenth pipeline lost a seat and with nothing to do.
fn check_time(count: u32, pipelines_max: u16, time_max: Duration) {
    let costs = StageCosts::new(&RunConfig::preset("base").expect("a preset"));
    let mut lot = Lot(Words::new("test volunteers of many", &[u64::from(count)]));
    let volunteers = lot.volunteers(u64::from(count), 1_000_000_000);
    let links = lot.links(count, 2 * count, 300);
    let given_all = given(&volunteers, &costs, &links, 1);
    let timed = |given: &Given<'_>, old: &BTreeMap<PipelineId, LineUp>, what: &str| {
        let watch = Watch::new();
        let placed = assign_all(given, old, pipelines_max).expect("enough of them");
        let took = watch.took();
        let rate = rate_of(&placed, given) * 1e6;
        println!(
            "{what}: {took:?}, {} pipelines, {rate:.1} samples/s",
            placed.len()
        );
        assert!(took < time_max, "{what}: {took:?}");
        placed
    };
    let placed = timed(&given_all, &BTreeMap::new(), "fresh");
    check_all(&given_all, &placed, pipelines_max);
    assert_eq!(placed.len(), usize::from(pipelines_max));
    assert!(timed(&given_all, &placed, "settled") == placed);

    let lost: BTreeSet<PeerId> = placed
        .values()
        .step_by(10)
        .map(|line_up| line_up.seats[0].0)
        .collect();
    let mut left = volunteers.clone();
    left.retain(|one| !lost.contains(&one.peer));
    let given_left = given(&left, &costs, &links, 1);
    let repaired = timed(&given_left, &placed, "a tenth lost a seat");
    check_all(&given_left, &repaired, pipelines_max);
    let changed = placed
        .iter()
        .filter(|(id, line_up)| repaired.get(id) != Some(line_up));
    assert_eq!(
        changed.count(),
        lost.len(),
        "others than those that lost a seat"
    );
}

#[test]
fn ten_thousand_volunteers_are_placed_in_64_pipelines_within_a_second() {
    check_time(10_000, 64, Duration::from_secs(1));
}

#[test]
fn a_hundred_thousand_volunteers_are_placed_in_a_thousand_pipelines_within_five_seconds() {
    check_time(100_000, 1_000, Duration::from_secs(5));
}
