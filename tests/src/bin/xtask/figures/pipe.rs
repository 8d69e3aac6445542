//! One pipeline of four volunteers whose devices only wait, each at an end of a link: how long its steps take, and what
//! its seats do meanwhile.
//!
//! The devices wait as long as ones of a stated speed work (`volunteer::pretend` of the native client), so what is looked at is
//! what the rest costs: frames, links, order, hand-overs. But in short, programs are of cargo's release profile. Measured is the head's time from a step's end to the next one's,
//! in its trace; what seats waited for comes from theirs. What of that is compared with what is for [`super::overlap`] and
//! [`super::time_to_loss`]. Begin with [`Pipe::measure`].

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};
use std::time::{Duration, Instant};

use ::tests::link::{Access, Link};
use ::tests::process::Program;
use ::tests::run::{Host, HostOptions, Launch, Place};
use ::tests::traces::{Span, Trace};
use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::cost::{cpu_seconds, median};
use super::{NAMES, load};

/// Seats of the pipeline.
pub(super) const SEATS: u64 = 4;
/// Steps before any is looked at: links are measured meanwhile.
pub(super) const STEPS_BEFORE: u64 = 3;
/// For all seats to be taken, and for each step beyond what it should take.
const GATHER_MAX: Duration = Duration::from_secs(120);
const LATE_MAX: Duration = Duration::from_secs(20);
/// After which volunteers have told the host of their links, and the host has looked at them.
const LINKS_TOLD: Duration = Duration::from_secs(25);

/// What is run. Its first round is longer than what is looked at.
#[derive(Clone, Debug)]
pub(super) struct Pipe {
    /// The run as a host writes it, but for its rounds' length.
    pub(super) config: String,
    /// Microbatches of a step.
    pub(super) microbatches: u64,
    /// How long each takes at a seat.
    pub(super) microbatch_us: u64,
    /// How long a step may take, as far as anybody can say before.
    pub(super) step: Duration,
}

/// What was seen of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Each step's milliseconds.
    pub(super) step_ms: Vec<f64>,
    /// Payload of the head's first forward, in bytes.
    pub(super) forward_bytes: u64,
    /// By seat, along the pipe: what it computed and waited for, as shares of the time.
    pub(super) seats: Vec<Value>,
    /// All volunteers' processor time since they started, and the cores that this was.
    pub(super) cpu_seconds: f64,
    pub(super) cpu_share: f64,
    pub(super) load_before: Option<f64>,
    /// All volunteers' traces in one.
    pub(super) trace: Trace,
}

impl Seen {
    /// The median of the steps: a machine that stands still now and then is not what is measured.
    pub(super) fn step_us(&self) -> f64 {
        median(self.step_ms.clone()) * 1e3
    }
}

/// Ends for the volunteers, all alike, and one around the corner for the host, which this thread enters.
pub(super) fn lay(access: Access) -> anyhow::Result<Link> {
    let mut ends = vec![access; NAMES.len()];
    ends.push(Access::OPEN);
    let link = Link::gather(&ends, 1).context("a link is laid between namespaces")?;
    link.door(NAMES.len()).enter()?;
    Ok(link)
}

impl Pipe {
    /// Starts it, waits until all sit, then looks at so many steps.
    pub(super) fn measure(&self, link: &Link, steps: u64, data: &FilePath) -> anyhow::Result<Seen> {
        let load_before = load();
        let folder = tempfile::Builder::new().prefix("shoal-traces-").tempdir()?;
        let schedule = "round_steps = 1000\n";
        let (mut host, mut volunteers) = self.start(link, schedule, Some(folder.path()), data)?;
        let began = Instant::now();
        // One more: what a killed volunteer did last is not in its trace.
        self.wait_steps(&mut host, STEPS_BEFORE + steps + 1)?;
        let cpu_seconds = cpu_seconds(&volunteers)?;
        let cpu_share = cpu_seconds / began.elapsed().as_secs_f64();
        for volunteer in &mut volunteers {
            volunteer.kill()?;
        }
        let traces = NAMES
            .iter()
            .map(|name| Trace::read(&file(folder.path(), name)));
        let traces: Vec<Trace> = traces.collect::<anyhow::Result<_>>()?;
        let seen = self.look(steps, &traces)?;
        Ok(Seen {
            cpu_seconds,
            cpu_share,
            load_before,
            trace: Trace::join(traces),
            ..seen
        })
    }

    /// Into how many microbatches the host proposes to cut a step, once it has seen three rounds of two steps or more and
    /// volunteers have told of their links.
    pub(super) fn proposed(&self, link: &Link, data: &FilePath) -> anyhow::Result<u64> {
        let (mut host, _volunteers) = self.start(link, "round_steps = 2\n", None, data)?;
        let round = 2 * self.step;
        let told = LINKS_TOLD.as_millis().div_ceil(round.as_millis().max(1));
        let rounds = u32::try_from(told)?.max(3);
        let most = GATHER_MAX + LATE_MAX + 2 * rounds * round;
        host.wait_until("enough commits", most, |run| {
            run["round"].as_u64() >= Some(rounds.into())
        })?;
        let proposed = host.api()?["proposal"]["microbatches"].as_u64();
        Ok(proposed.unwrap_or(self.microbatches))
    }

    fn start(
        &self,
        link: &Link,
        schedule: &str,
        traces: Option<&FilePath>,
        data: &FilePath,
    ) -> anyhow::Result<(Host, Vec<Program>)> {
        let hub = NAMES.len();
        let host = Host::start_as(
            HostOptions {
                config: format!(
                    "{}\n[schedule]\n{schedule}seats_min = {SEATS}\neval_rounds = 0\ncheckpoint_minutes = 600\n",
                    self.config
                ),
                data: data.to_owned(),
                port: 0,
                arguments: ["--host", "0.0.0.0"].map(str::to_owned).into(),
            },
            Launch {
                wrapper: link.wrapper(hub),
                ..Launch::default()
            },
        )?;
        let join = |(end, name): (usize, &&str)| {
            let mut wrapper = link.wrapper(end);
            let pretend = format!("SHOAL_PRETEND_US={}", self.microbatch_us);
            wrapper.extend(["env".to_owned(), pretend]);
            let place = Place {
                wrapper,
                address: Some(link.address(hub).to_string()),
            };
            let Some(folder) = traces else {
                return host.volunteer_at(name, &[], &place);
            };
            let file = file(folder, name);
            let file = file.to_str().context("a folder's name is text")?;
            host.volunteer_at(name, &["--trace", file], &place)
        };
        let volunteers: anyhow::Result<Vec<Program>> = NAMES.iter().enumerate().map(join).collect();
        let volunteers = volunteers?;
        Ok((host, volunteers))
    }

    /// Waits until so many steps of the first round are done.
    fn wait_steps(&self, host: &mut Host, steps: u64) -> anyhow::Result<()> {
        host.wait_until("all seats", GATHER_MAX + 2 * self.step, |run| {
            run["steps"].as_u64() >= Some(1)
        })?;
        let expected = self.step.mul_f64(2.0 * steps as f64);
        host.wait_until("enough steps", LATE_MAX + expected, |run| {
            run["steps"].as_u64() >= Some(steps)
        })?;
        Ok(())
    }

    /// What the traces say of the last `steps` steps.
    fn look(&self, steps: u64, traces: &[Trace]) -> anyhow::Result<Seen> {
        // Along the pipe: whose first forward was earlier sits before.
        let mut seats = Vec::new();
        for trace in traces {
            let spans = trace.spans("compute")?;
            let first = spans.iter().find(|span| span.name == "forward");
            let first = first.context("a seat computed nothing")?.began_us;
            seats.push((first, trace, spans));
        }
        seats.sort_by_key(|(first, ..)| *first);
        let (_, head, head_spans) = seats.first().context("seats")?;
        let ends: Vec<u64> = (STEPS_BEFORE - 1..STEPS_BEFORE + steps)
            .map(|step| {
                let last = Some((0, step, self.microbatches - 1));
                let mut spans = head_spans.iter();
                let end = spans.find(|span| span.name == "backward" && span.slot == last);
                end.map(|end| end.ended_us)
                    .with_context(|| format!("the head did not end step {step}"))
            })
            .collect::<anyhow::Result<_>>()?;
        let (Some(&from_us), Some(&to_us)) = (ends.first(), ends.last()) else {
            bail!("no steps");
        };
        let step_ms = ends
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) as f64 / 1e3)
            .collect();
        let mut events = head.events.iter();
        let sent = events.find(|event| event["cat"] == "sent" && event["name"] == "forward");
        let forward_bytes = sent.and_then(|event| event["args"]["bytes"].as_u64());
        let rows: anyhow::Result<Vec<Value>> = seats
            .iter()
            .map(|(_, trace, spans)| {
                let waits = trace.spans("wait")?;
                Ok(json!({
                    "name": trace.name(),
                    "computes": share(spans, from_us, to_us),
                    "waits": share(&waits, from_us, to_us),
                }))
            })
            .collect();
        Ok(Seen {
            step_ms,
            forward_bytes: forward_bytes.context("the head sent something")?,
            seats: rows?,
            ..Seen::default()
        })
    }
}

/// Where a volunteer's trace lies.
fn file(folder: &FilePath, name: &str) -> PathBuf {
    folder.join(format!("{name}.json"))
}

/// What a seat's device did between two moments.
fn share(spans: &[Span], from_us: u64, to_us: u64) -> BTreeMap<String, f64> {
    let mut by_name: BTreeMap<String, f64> = BTreeMap::new();
    for span in spans {
        let (began, ended) = (span.began_us.max(from_us), span.ended_us.min(to_us));
        *by_name.entry(span.name.clone()).or_default() += ended.saturating_sub(began) as f64;
    }
    by_name.retain(|_, took_us| *took_us > 0.0);
    let whole = (to_us - from_us) as f64;
    by_name.values_mut().for_each(|took_us| *took_us /= whole);
    by_name
}
