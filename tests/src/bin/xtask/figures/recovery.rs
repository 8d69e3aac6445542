//! What the loss of a volunteer costs: until it is noticed, until training goes on, and how much is done again.
//!
//! A volunteer with a seat leaves at once (Ctrl-C twice), is killed, frozen, or its cable is pulled; a community with a spare
//! and one in which everybody sits. All are the same throttled volunteers of a three-stage model, each with a network of its own.
//! Between two faults everybody comes back. Times are of the machine's clock: the host's events bear it, and lines of others
//! bear when they came.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ::tests::chaos::quantile;
use ::tests::community::{Community, Small};
use ::tests::lan::{HUB_ADDRESS, Lan};
use ::tests::process::{Signal, now_ms};
use ::tests::run::Place;
use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{Figures, NAMES, load, save};

/// Seats of either community, one a stage: a fourth volunteer is a spare, however fast the machine.
const SEATS: usize = 3;
/// Share of the time in which devices work: so slow that a round is safe before it is over, however quick the machine.
const THROTTLE: &str = "20";
/// Steps of a round, and samples of a step.
const ROUND_STEPS: u32 = 20;
const BATCH: u64 = 8;
/// Steps of a round after which a fault comes, in turns: there is as much to lose.
const STEPS_BEFORE: [u64; 5] = [2, 12, 5, 15, 8];
/// ... and how much later than asked it may come.
const STEPS_LATE_MAX: u64 = 3;
/// For a community to be as it was.
const GATHER_MAX: Duration = Duration::from_secs(240);
/// For training to go on.
const RECOVER_MAX: Duration = Duration::from_secs(120);
/// Between two looks at the run.
const LOOK: Duration = Duration::from_millis(100);

/// What happens to a volunteer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Close,
    Kill,
    Freeze,
    BlackHole,
}

impl Fault {
    const ALL: [Self; 4] = [Self::Close, Self::Kill, Self::Freeze, Self::BlackHole];

    const fn name(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::BlackHole => "black_hole",
        }
    }
}

/// What one of them cost.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    /// Until the host gave the seat up.
    noticed_seconds: f64,
    /// From the last step before to the first one after.
    stood_seconds: f64,
    /// Steps that were done and were done again.
    steps_again: u64,
}

/// A step that a head told, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    at_ms: u64,
    round: u64,
    /// Steps done in the round, it included.
    steps: u64,
}

/// Measures, and writes the file.
pub(super) fn recovery(asked: &Figures) -> anyhow::Result<()> {
    let lan = Lan::gather(NAMES.len()).context("a volunteer is cut off by a cable of its own")?;
    lan.enter()?;
    let mut rows = Vec::new();
    let mut by_fault = BTreeMap::new();
    for (spares, title) in [(1, "with_spare"), (0, "without_spare")] {
        let mut bench = Bench::gather(&lan, spares)?;
        let mut costs: BTreeMap<Fault, Vec<Cost>> = BTreeMap::new();
        for repeat in 0..asked.repeats() {
            for (turn, fault) in Fault::ALL.into_iter().enumerate() {
                let seat = repeat % SEATS;
                let steps = STEPS_BEFORE[(repeat + turn) % STEPS_BEFORE.len()];
                let cost = bench.measure(fault, seat, steps);
                let cost = cost.with_context(|| format!("{} {title}", fault.name()))?;
                println!("{title}, {}, seat {seat}: {cost:?}", fault.name());
                costs.entry(fault).or_default().push(cost);
                rows.push(json!({
                    "spares": spares, "fault": fault.name(), "repeat": repeat, "seat": seat,
                    "noticed_seconds": cost.noticed_seconds, "stood_seconds": cost.stood_seconds,
                    "steps_again": cost.steps_again, "samples_again": cost.steps_again * BATCH, "load": load(),
                }));
            }
        }
        let summary: BTreeMap<&str, Value> = costs
            .iter()
            .map(|(fault, costs)| (fault.name(), summary(costs)))
            .collect();
        println!("{title}: {:#}", json!(summary));
        by_fault.insert(title, summary);
    }
    let figures = json!({
        "seats": SEATS,
        "throttle_percent": THROTTLE.parse::<u8>()?,
        "round_steps": ROUND_STEPS,
        "batch": BATCH,
        "repeats": asked.repeats(),
        "quantiles": by_fault,
        "faults": rows,
    });
    save("recovery", &figures)
}

fn summary(costs: &[Cost]) -> Value {
    let of = |value: fn(&Cost) -> f64| {
        let mut values: Vec<f64> = costs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        json!({ "p50": quantile(&values, 0.5), "p95": quantile(&values, 0.95) })
    };
    json!({
        "noticed_seconds": of(|cost| cost.noticed_seconds),
        "stood_seconds": of(|cost| cost.stood_seconds),
        "steps_again": of(|cost| cost.steps_again as f64),
        "samples_again": of(|cost| (cost.steps_again * BATCH) as f64),
    })
}

/// A community to which things happen.
struct Bench<'a> {
    lan: &'a Lan,
    spares: usize,
    community: Community,
    /// What heads told, in order.
    steps: Vec<Step>,
}

impl<'a> Bench<'a> {
    fn gather(lan: &'a Lan, spares: usize) -> anyhow::Result<Self> {
        let small = Small {
            // A spare refills a seat; without one two do the work of three.
            seats_min: if spares > 0 { 3 } else { 2 },
            blocks: 3,
            round_steps: ROUND_STEPS,
            samples: 400_000,
            ..Small::default()
        };
        let everywhere = ["--host", "0.0.0.0"].map(str::to_owned).into();
        let mut bench = Self {
            lan,
            spares,
            community: Community::gather_with(&small, everywhere, &[])?,
            steps: vec![],
        };
        for name in &NAMES[..SEATS + spares] {
            bench.start(name)?;
        }
        Ok(bench)
    }

    fn start(&mut self, name: &str) -> anyhow::Result<()> {
        let place = Place {
            wrapper: self.lan.wrapper(cable(name)?),
            address: Some(HUB_ADDRESS.to_owned()),
        };
        let host = &self.community.host;
        let volunteer = host.volunteer_at(name, &["--throttle", THROTTLE], &place)?;
        self.community.volunteers.push(volunteer);
        Ok(())
    }

    /// Lets it happen to whoever has that seat, once everybody is there, after so many steps of a round.
    fn measure(&mut self, fault: Fault, seat: usize, steps: u64) -> anyhow::Result<Cost> {
        let name = self.gathered(seat, steps)?;
        let cost = self.suffer(fault, &name);
        cost.with_context(|| self.community.said())
    }

    /// Waits until as many sit as shall, and so many steps of a round are done; gives who has that seat.
    fn gathered(&mut self, seat: usize, after: u64) -> anyhow::Result<String> {
        let deadline = Instant::now() + GATHER_MAX;
        loop {
            self.listen();
            let run = self.community.host.api()?;
            let seated = seated(&run);
            let spares = states(&run).filter(|state| *state == "spare").count();
            let steps = run["steps"].as_u64().unwrap_or(0);
            let is_mid = (after..=after + STEPS_LATE_MAX).contains(&steps);
            // A copy of everything that is needed is somewhere else, too.
            let is_safe = run["safe_round"] == run["round"] && run["round"].as_u64() > Some(0);
            if seated.len() == SEATS && spares == self.spares && is_mid && is_safe {
                return Ok(seated[seat].clone());
            }
            if Instant::now() >= deadline {
                bail!("not {SEATS} seats and {} spares: {run:#}", self.spares);
            }
            self.community
                .host
                .program()
                .next_event(Instant::now() + LOOK);
        }
    }

    fn suffer(&mut self, fault: Fault, name: &str) -> anyhow::Result<Cost> {
        let cable = cable(name)?;
        let volunteer = self.community.volunteer(name)?;
        let mut since_ms = now_ms();
        match fault {
            Fault::Close => {
                volunteer.signal(Signal::INT)?;
                let is_answer = |event: &Value| event["event"] == "finish";
                volunteer.wait_for("its answer", RECOVER_MAX, is_answer)?;
                since_ms = now_ms();
                volunteer.signal(Signal::INT)?;
            }
            Fault::Kill => volunteer.kill()?,
            Fault::Freeze => volunteer.signal(Signal::STOP)?,
            Fault::BlackHole => self.lan.pull(cable)?,
        }
        let noticed = self.community.lost_after(name, since_ms, RECOVER_MAX)?;
        let noticed_ms = since_ms + u64::try_from(noticed.as_millis())?;
        let deadline = Instant::now() + RECOVER_MAX;
        let cost = loop {
            self.listen();
            if let Some(cost) = cost_of(&self.steps, since_ms, noticed_ms) {
                break cost;
            }
            if Instant::now() >= deadline {
                bail!("no step in {RECOVER_MAX:?} after {name} was given up");
            }
            self.community
                .host
                .program()
                .next_event(Instant::now() + LOOK);
        };
        match fault {
            Fault::Close | Fault::Kill => {
                self.community.volunteers.retain(|one| one.name() != name);
                self.start(name)?;
            }
            Fault::Freeze => self.community.volunteer(name)?.signal(Signal::CONT)?,
            Fault::BlackHole => self.lan.plug(cable)?,
        }
        Ok(cost)
    }

    /// Takes what heads told.
    fn listen(&mut self) {
        for volunteer in &mut self.community.volunteers {
            while let Some(event) = volunteer.next_event(Instant::now()) {
                if event["event"] != "step" {
                    continue;
                }
                let number = |name: &str| event[name].as_u64().unwrap_or(0);
                self.steps.push(Step {
                    at_ms: volunteer.heard_ms(),
                    round: number("round"),
                    steps: number("steps"),
                });
            }
        }
        self.steps.sort_by_key(|step| step.at_ms);
    }
}

/// What a fault cost, once there is a step after it was noticed.
fn cost_of(steps: &[Step], since_ms: u64, noticed_ms: u64) -> Option<Cost> {
    let after = steps.iter().position(|step| step.at_ms > noticed_ms)?;
    let (before, after) = (steps.get(after.checked_sub(1)?)?, steps[after]);
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e3;
    let rounds_back = before.round.saturating_sub(after.round);
    let steps_again = if after.round > before.round {
        // What was done is committed.
        0
    } else {
        rounds_back * u64::from(ROUND_STEPS) + before.steps + 1 - after.steps.min(before.steps + 1)
    };
    Some(Cost {
        noticed_seconds: seconds(since_ms, noticed_ms),
        stood_seconds: seconds(before.at_ms, after.at_ms),
        steps_again,
    })
}

fn cable(name: &str) -> anyhow::Result<usize> {
    let found = NAMES.iter().position(|one| *one == name);
    found.context("it is one of ours")
}

/// Names of those who sit, from the head on.
fn seated(run: &Value) -> Vec<String> {
    let listed = run["volunteers"].as_array().into_iter().flatten();
    let sits = listed.filter(|one| one["state"] == "seated");
    let mut seats: Vec<(u64, String)> = sits
        .filter_map(|one| {
            let first = one["stages"]["first"].as_u64()?;
            Some((first, one["name"].as_str()?.to_owned()))
        })
        .collect();
    seats.sort();
    seats.into_iter().map(|(_, name)| name).collect()
}

fn states(run: &Value) -> impl Iterator<Item = &str> {
    let listed = run["volunteers"].as_array().into_iter().flatten();
    listed.filter_map(|one| one["state"].as_str())
}

#[cfg(test)]
mod tests {
    use super::{Cost, Step, cost_of};

    fn step(at_ms: u64, round: u64, steps: u64) -> Step {
        Step {
            at_ms,
            round,
            steps,
        }
    }

    #[test]
    fn what_is_done_again_is_what_was_done_of_a_round_that_begins_anew() {
        let steps = [
            step(900, 3, 6),
            step(1_050, 3, 7),
            step(5_000, 3, 1),
            step(5_100, 3, 2),
        ];
        assert_eq!(cost_of(&steps[..2], 1_000, 3_000), None);
        let cost = Cost {
            noticed_seconds: 2.0,
            stood_seconds: 3.95,
            steps_again: 7,
        };
        assert_eq!(cost_of(&steps, 1_000, 3_000), Some(cost));
        for (after, again) in [((4, 1), 0), ((3, 8), 0), ((2, 1), 27)] {
            let steps = [step(900, 3, 7), step(5_000, after.0, after.1)];
            let cost = cost_of(&steps, 1_000, 3_000).expect("a step after it");
            assert_eq!(cost.steps_again, again, "{after:?}");
        }
    }
}
