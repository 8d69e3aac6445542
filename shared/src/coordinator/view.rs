//! What the host shows of a run: for `/api/run`, the page and metrics. Figures, no decisions.

use serde::{Deserialize, Serialize};

use super::Coordinator;
use super::pipeline::{Phase, Pipeline};
use crate::units::{PeerId, PipelineId, Round, StageRange};
use crate::wire::report::Proposal;
use crate::wire::signal::{Report, VolunteerKind};

/// A committed round, in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundView {
    /// Its number.
    pub round: Round,
    /// Mean token loss over the round, in nats.
    pub loss: f64,
    /// Mean token loss on held-out data after it, in nats, where it was evaluated.
    pub validation_loss: Option<f64>,
    /// Samples done after it.
    pub samples: u64,
    /// How long it took.
    pub seconds: f64,
    /// Pipelines that trained it.
    pub pipelines: usize,
}

/// A volunteer, as everybody may see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolunteerView {
    /// Its number.
    pub peer: PeerId,
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub kind: VolunteerKind,
    /// `seated`, `spare`, `paused`, `leaving` or `away`.
    pub state: String,
    /// Stages of its seat.
    pub stages: Option<StageRange>,
    /// Which pipeline that seat is in.
    pub pipeline: Option<PipelineId>,
    /// Why it waits or what it does.
    pub reason: String,
    /// Microbatches of it in committed rounds.
    pub accepted: u64,
}

/// The whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// Newest committed round.
    pub round: Round,
    /// Samples in committed rounds.
    pub samples: u64,
    /// Tokens in committed rounds.
    pub tokens: u64,
    /// Mean token loss of the pipelines' newest steps, in nats.
    pub loss: Option<f64>,
    /// Newest mean token loss on held-out data, in nats.
    pub validation_loss: Option<f64>,
    /// Steps done in the round under way, by all pipelines.
    pub steps: u32,
    /// Pipelines that train beside each other.
    pub pipelines: usize,
    /// What the pipeline does: `waiting`, `forming`, `evaluating`, `training`, `paused` or `over`.
    pub state: String,
    /// Why, when it does not train.
    pub reason: Option<String>,
    /// Committed rounds that stand, the newest of them last.
    pub rounds: Vec<RoundView>,
    /// Everybody who is here.
    pub volunteers: Vec<VolunteerView>,
    /// Volunteers that hold each stage's newest state.
    pub stage_copies: Vec<usize>,
    /// The newest round that survives the loss of any one volunteer.
    pub survives_one: Round,
    /// The newest round that survives the loss of all of them.
    pub survives_all: Round,
    /// A better number of microbatches, as seats and links were measured lately.
    pub proposal: Option<Proposal>,
}

/// Rounds shown at most: a curve of more points looks the same.
const ROUNDS_SHOWN_MAX: usize = 2_000;

impl Coordinator {
    /// The run as it is now.
    pub fn view(&self) -> RunView {
        let config = self.config();
        let samples = self.history.samples();
        let newest = self.history.newest_first().next();
        let reports: Vec<Report> = self.pipelines.iter().filter_map(|it| it.report).collect();
        let losses: f64 = reports.iter().map(|report| report.loss).sum();
        let loss = (!reports.is_empty()).then(|| losses / reports.len() as f64);
        let (survives_one, survives_all) = self.survivable();
        let rounds = self.round_views();
        RunView {
            round: self.history.newest(),
            samples,
            tokens: samples * config.model.context as u64,
            loss: loss.or(newest.map(|commit| commit.loss)),
            validation_loss: rounds.iter().rev().find_map(|round| round.validation_loss),
            steps: reports.iter().map(|report| report.steps).sum(),
            pipelines: self.pipelines.len(),
            state: self.state_name().to_owned(),
            reason: self.told_reason(),
            rounds,
            volunteers: self.volunteer_views(),
            stage_copies: self.stage_copies(),
            survives_one,
            survives_all,
            proposal: self.proposal(),
        }
    }

    /// Why the run does not train, in the words that its volunteers hear.
    fn told_reason(&self) -> Option<String> {
        if let Some(paused) = self.history.paused() {
            return Some(paused.to_owned());
        }
        match self.state_name() {
            "waiting" if self.roster.iter().next().is_none() => None,
            "waiting" => self.waits_for.clone(),
            "forming" => self.named.clone(),
            _ => None,
        }
    }

    /// Number of volunteers, away ones included.
    pub fn volunteer_count(&self) -> usize {
        self.roster.len()
    }

    fn state_name(&self) -> &'static str {
        if self.over {
            return "over";
        }
        if self.history.paused().is_some() {
            return "paused";
        }
        // Of several, the one that is farthest says it.
        let state = |pipeline: &Pipeline| match pipeline.phase {
            Phase::Resuming { .. } => (0, "waiting"),
            Phase::Journaling | Phase::Forming => (1, "forming"),
            Phase::Evaluating => (2, "evaluating"),
            Phase::Training | Phase::Merging | Phase::Committing | Phase::Boundary => {
                (3, "training")
            }
        };
        let farthest = self.pipelines.iter().map(state).max();
        farthest.map_or("waiting", |(_, name)| name)
    }

    fn round_views(&self) -> Vec<RoundView> {
        let mut samples = 0;
        let mut rounds: Vec<RoundView> = self
            .history
            .commits()
            .map(|commit| {
                samples += commit.samples();
                RoundView {
                    round: commit.round,
                    loss: commit.loss,
                    validation_loss: self.history.validation(commit.round),
                    samples,
                    seconds: commit.elapsed_us as f64 / 1e6,
                    pipelines: commit.members.len(),
                }
            })
            .collect();
        let hidden = rounds.len().saturating_sub(ROUNDS_SHOWN_MAX);
        rounds.drain(..hidden);
        rounds
    }

    fn volunteer_views(&self) -> Vec<VolunteerView> {
        self.roster
            .iter()
            .map(|volunteer| {
                let seat = self.pipelines.seat(volunteer.peer);
                let stages = seat.map(|seat| seat.row.stages);
                let state = match (volunteer.connection, stages) {
                    (None, _) => "away",
                    (Some(_), _) if volunteer.finishing => "leaving",
                    // It keeps its seat until the round is committed.
                    (Some(_), Some(_)) => "seated",
                    (Some(_), None) if volunteer.paused.is_some() => "paused",
                    (Some(_), None) => "spare",
                };
                VolunteerView {
                    peer: volunteer.peer,
                    name: volunteer.name.clone(),
                    kind: volunteer.capabilities.kind,
                    state: state.to_owned(),
                    stages,
                    pipeline: self.pipelines.id_of(volunteer.peer),
                    reason: volunteer.reason.clone(),
                    accepted: volunteer.accepted,
                }
            })
            .collect()
    }
}
