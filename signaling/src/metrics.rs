//! What `/metrics` says, in OpenMetrics text. No volunteer's name or number is in a label.
//!
//! Counters count from this process's start, but for rounds and tokens, which begin at what the journal holds.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use shared::coordinator::WireBytes;
use shared::wire::report::RunReport;
use shared::wire::signal::VolunteerKind;

/// Upper ends of the join histogram's buckets, in seconds.
const JOIN_SECONDS: [f64; 8] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolunteerLabels {
    kind: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    cause: &'static str,
}

/// Totals that counters were brought up to.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    rounds: u64,
    tokens: u64,
    wire_bytes: WireBytes,
}

/// The host's metrics and the registry that writes them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    volunteers: Family<VolunteerLabels, Gauge>,
    stage_copies: Family<StageLabels, Gauge>,
    rounds: Counter,
    tokens: Counter,
    loss: Gauge<f64, AtomicU64>,
    validation_loss: Gauge<f64, AtomicU64>,
    wire_bytes: Family<DirectionLabels, Counter>,
    recoveries: Family<CauseLabels, Counter>,
    join_seconds: Histogram,
    /// What the counters hold.
    counted: Mutex<Counted>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            volunteers: Family::default(),
            stage_copies: Family::default(),
            rounds: Counter::default(),
            tokens: Counter::default(),
            loss: Gauge::default(),
            validation_loss: Gauge::default(),
            wire_bytes: Family::default(),
            recoveries: Family::default(),
            join_seconds: Histogram::new(JOIN_SECONDS),
            counted: Mutex::default(),
        };
        // Not a number until there is one: a loss of zero would be a claim.
        metrics.loss.set(f64::NAN);
        metrics.validation_loss.set(f64::NAN);
        let registry = metrics.registry.sub_registry_with_prefix("shoal");
        registry.register(
            "volunteers",
            "Volunteers that are here",
            metrics.volunteers.clone(),
        );
        registry.register(
            "stage_copies",
            "Volunteers that keep the newest round of a stage",
            metrics.stage_copies.clone(),
        );
        registry.register(
            "rounds",
            "Rounds that were committed",
            metrics.rounds.clone(),
        );
        registry.register(
            "tokens",
            "Tokens in committed rounds",
            metrics.tokens.clone(),
        );
        registry.register(
            "loss",
            "Mean token loss of the newest round, in nats",
            metrics.loss.clone(),
        );
        registry.register(
            "validation_loss",
            "Mean token loss of the newest evaluation, in nats",
            metrics.validation_loss.clone(),
        );
        registry.register(
            "wire_bytes",
            "Payload bytes across the border behind the first seat, as heads report them",
            metrics.wire_bytes.clone(),
        );
        registry.register(
            "recoveries",
            "Line-ups and rewinds after something went wrong",
            metrics.recoveries.clone(),
        );
        registry.register(
            "join_seconds",
            "From a connection to its welcome",
            metrics.join_seconds.clone(),
        );
        registry.register(
            "build",
            "This build",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        metrics
    }
}

impl Metrics {
    /// Brings gauges and totals up to the report.
    pub fn observe(&self, report: &RunReport, stage_copies: &[usize], wire_bytes: WireBytes) {
        // Counted first: a family is locked and hashed anew at each look, and volunteers are thousands.
        let mut volunteers: BTreeMap<(&'static str, &'static str), i64> = BTreeMap::new();
        for volunteer in &report.volunteers {
            let kind = match volunteer.kind {
                VolunteerKind::Native => "native",
                VolunteerKind::Browser => "browser",
            };
            *volunteers
                .entry((kind, volunteer.state.word()))
                .or_default() += 1;
        }
        self.volunteers.clear();
        for ((kind, state), count) in volunteers {
            let labels = VolunteerLabels { kind, state };
            self.volunteers.get_or_create(&labels).set(count);
        }
        for (stage, copies) in (0..).zip(stage_copies) {
            self.stage_copies
                .get_or_create(&StageLabels { stage })
                .set(i64::try_from(*copies).unwrap_or(i64::MAX));
        }
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let raise = |counter: &Counter, counted: &mut u64, total: u64| {
            counter.inc_by(total.saturating_sub(*counted));
            *counted = total.max(*counted);
        };
        raise(&self.rounds, &mut counted.rounds, u64::from(report.round.0));
        raise(&self.tokens, &mut counted.tokens, report.tokens);
        let WireBytes { forward, backward } = wire_bytes;
        let counted = &mut counted.wire_bytes;
        for (direction, counted, total) in [
            ("forward", &mut counted.forward, forward),
            ("backward", &mut counted.backward, backward),
        ] {
            let counter = self
                .wire_bytes
                .get_or_create(&DirectionLabels { direction });
            raise(&counter, counted, total);
        }
        if let Some(loss) = report.loss {
            self.loss.set(loss);
        }
        if let Some(loss) = report.validation_loss {
            self.validation_loss.set(loss);
        }
    }

    /// Something had to be put right.
    pub fn add_recovery(&self, cause: &'static str) {
        self.recoveries.get_or_create(&CauseLabels { cause }).inc();
    }

    /// A volunteer was welcomed so long after it connected.
    pub fn observe_join(&self, seconds: f64) {
        self.join_seconds.observe(seconds);
    }

    /// All of it as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("a string takes all that is written");
        text
    }
}
