//! What `/metrics` says, in OpenMetrics text. No volunteer's name or number is in a label.
//!
//! Counters count from this process's start, but for rounds and tokens, which begin at what the journal holds.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use shared::wire::report::RunReport;
use shared::wire::signal::VolunteerKind;

use crate::http::state_name;

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
    /// Tokens and rounds that the counters hold.
    counted: Mutex<(u64, u64)>,
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
        let registry = &mut metrics.registry;
        registry.register(
            "shoal_volunteers",
            "Volunteers that are here",
            metrics.volunteers.clone(),
        );
        registry.register(
            "shoal_stage_copies",
            "Volunteers that keep the newest round of a stage",
            metrics.stage_copies.clone(),
        );
        registry.register(
            "shoal_rounds",
            "Rounds that were committed",
            metrics.rounds.clone(),
        );
        registry.register(
            "shoal_tokens",
            "Tokens in committed rounds",
            metrics.tokens.clone(),
        );
        registry.register(
            "shoal_loss",
            "Mean token loss of the newest round, in nats",
            metrics.loss.clone(),
        );
        registry.register(
            "shoal_validation_loss",
            "Mean token loss of the newest evaluation, in nats",
            metrics.validation_loss.clone(),
        );
        registry.register(
            "shoal_wire_bytes",
            "Payload bytes between volunteers, as heads report them",
            metrics.wire_bytes.clone(),
        );
        registry.register(
            "shoal_recoveries",
            "Line-ups and rewinds after something went wrong",
            metrics.recoveries.clone(),
        );
        registry.register(
            "shoal_join_seconds",
            "From a connection to its welcome",
            metrics.join_seconds.clone(),
        );
        registry.register(
            "shoal_build",
            "This build",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        metrics
    }
}

impl Metrics {
    /// Brings gauges and totals up to the report.
    pub fn observe(&self, report: &RunReport, stage_copies: &[usize]) {
        self.volunteers.clear();
        for volunteer in &report.volunteers {
            let kind = match volunteer.kind {
                VolunteerKind::Native => "native",
                VolunteerKind::Browser => "browser",
            };
            let state = state_name(volunteer.state);
            self.volunteers
                .get_or_create(&VolunteerLabels { kind, state })
                .inc();
        }
        for (stage, copies) in (0..).zip(stage_copies) {
            self.stage_copies
                .get_or_create(&StageLabels { stage })
                .set(i64::try_from(*copies).unwrap_or(i64::MAX));
        }
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let rounds = u64::from(report.round.0);
        self.rounds.inc_by(rounds.saturating_sub(counted.0));
        self.tokens.inc_by(report.tokens.saturating_sub(counted.1));
        *counted = (counted.0.max(rounds), counted.1.max(report.tokens));
        if let Some(loss) = report.loss {
            self.loss.set(loss);
        }
        if let Some(loss) = report.validation_loss {
            self.validation_loss.set(loss);
        }
    }

    /// Heads sent that many bytes of payload more.
    pub fn add_forward_bytes(&self, bytes: u64) {
        let direction = "forward";
        self.wire_bytes
            .get_or_create(&DirectionLabels { direction })
            .inc_by(bytes);
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
