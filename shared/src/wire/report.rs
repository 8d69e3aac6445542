//! What the host tells everybody about the run: the JSON of `/api/run`.
//!
//! Made by the host for its page, `shoal status` and whoever watches. Nothing in it decides anything; numbers are
//! for people. Fields may be added, none changes its meaning.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::signal::VolunteerKind;
use crate::config::model::{ModelConfig, NumberFormat};
use crate::units::{PipelineId, Round, StageRange};

/// The run as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// What the run is called.
    pub name: String,
    /// Version of the host's build, as people install it; empty from a host that does not say.
    #[serde(default)]
    pub build: String,
    /// What it speaks: a volunteer must speak the same [`VERSION`](super::frame::VERSION).
    #[serde(default)]
    pub wire_version: u8,
    /// Sizes of the model.
    pub model: ModelConfig,
    /// How boundaries are packed.
    pub format: NumberFormat,
    /// Trained values in the model.
    pub parameters: u64,
    /// What it is trained on.
    pub data: DataReport,
    /// `waiting`, `forming`, `evaluating`, `training`, `paused` or `over`.
    pub state: String,
    /// Why nothing moves, or what does, in words.
    pub reason: String,
    /// Newest committed round; 0 before the first.
    pub round: Round,
    /// Newest round that survives the loss of any one volunteer.
    pub safe_round: Round,
    /// Newest round in the host's store: survives the loss of all volunteers. `None` before the first checkpoint.
    pub checkpoint_round: Option<Round>,
    /// Pipelines that train beside each other now.
    #[serde(default)]
    pub pipelines: usize,
    /// Steps done in the round under way, by all of them.
    pub steps: u32,
    /// Samples in committed rounds.
    pub samples: u64,
    /// The lowest sample that is leased or waiting: below it, the standing rounds hold every sample.
    pub lowest_open_sample: u64,
    /// Samples after which the run is over.
    pub samples_total: u64,
    /// Tokens in committed rounds.
    pub tokens: u64,
    /// Mean token loss of the newest step, in nats.
    pub loss: Option<f64>,
    /// Mean token loss of the newest evaluation, in nats.
    pub validation_loss: Option<f64>,
    /// Committed rounds, oldest first; of long runs the newest ones.
    pub rounds: Vec<RoundReport>,
    /// Who is here.
    pub volunteers: Vec<VolunteerReport>,
    /// Payload bytes that a token costs at one border, both directions.
    pub wire_bytes_per_token: u64,
    /// The same for the full width in f16.
    pub dense_f16_bytes_per_token: u64,
    /// What the model wrote lately, if it has.
    #[serde(default)]
    pub sample: Option<SampleReport>,
    /// Whether the host has a tokenizer, so that people can ask for texts.
    #[serde(default)]
    pub takes_prompts: bool,
    /// Into how many microbatches a step would better be cut, if another number is clearly better.
    #[serde(default)]
    pub proposal: Option<Proposal>,
}

/// What the model wrote by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleReport {
    /// The newest committed round when it began to write.
    pub round: Round,
    /// Its words.
    pub text: String,
}

/// Another number of microbatches, with which a step would take less time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Microbatches of a step.
    pub microbatches: u16,
    /// Sequences of each.
    pub sequences: u16,
    /// How much shorter a step would be, in percent of what it takes.
    pub shorter_percent: u64,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            microbatches,
            sequences,
            shorter_percent,
        } = self;
        let plural = if *sequences == 1 { "" } else { "s" };
        write!(
            f,
            "as these volunteers and their links are, a step in {microbatches} microbatches of {sequences} sequence{plural} would \
             be {shorter_percent} % shorter: write [training] microbatches = {microbatches} into the next run's file"
        )
    }
}

/// What changes from step to step: an event of `/api/run/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunNews {
    /// As in [`RunReport::state`].
    pub state: String,
    /// As in [`RunReport::reason`].
    pub reason: String,
    /// Newest committed round.
    pub round: Round,
    /// Steps done in the round under way.
    pub steps: u32,
    /// Samples in committed rounds.
    pub samples: u64,
    /// Mean token loss of the newest step, in nats.
    pub loss: Option<f64>,
    /// Mean token loss of the newest evaluation, in nats.
    pub validation_loss: Option<f64>,
    /// How many volunteers are here.
    pub volunteers: u64,
}

impl RunReport {
    /// What changes from step to step.
    #[must_use]
    pub fn news(&self) -> RunNews {
        RunNews {
            state: self.state.clone(),
            reason: self.reason.clone(),
            round: self.round,
            steps: self.steps,
            samples: self.samples,
            loss: self.loss,
            validation_loss: self.validation_loss,
            volunteers: self.volunteers.len() as u64,
        }
    }

    /// Takes over what changed. Whether all of it could be: else the rest is to be asked for at `/api/run`.
    pub fn take(&mut self, news: RunNews) -> bool {
        let whole = self.round == news.round && self.volunteers.len() as u64 == news.volunteers;
        self.state = news.state;
        self.reason = news.reason;
        self.steps = news.steps;
        self.loss = news.loss;
        whole
    }
}

/// What the run is trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataReport {
    /// Files that were read.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Tokens to train on.
    pub train_tokens: u64,
    /// Tokens held out.
    pub validation_tokens: u64,
    /// What made tokens of text.
    pub tokenizer: String,
}

/// A committed round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundReport {
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
    #[serde(default)]
    pub pipelines: usize,
}

/// A volunteer, as everybody may see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolunteerReport {
    /// What it calls itself.
    pub name: String,
    /// Native or browser.
    pub kind: VolunteerKind,
    /// What it does.
    pub state: VolunteerState,
    /// Stages of its seat.
    pub stages: Option<StageRange>,
    /// Number of the pipeline that its seat is in.
    #[serde(default)]
    pub pipeline: Option<PipelineId>,
    /// What it was told last, in words.
    pub reason: String,
    /// Microbatches of it in committed rounds.
    pub microbatches: u64,
}

/// What a volunteer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolunteerState {
    /// Has a seat.
    Seated,
    /// Has none; keeps copies.
    Spare,
    /// Rests.
    Paused,
    /// Leaves after the round.
    Leaving,
    /// Its connection is broken; its seat is kept for a moment.
    Away,
}

impl VolunteerState {
    /// One word for it: on the page, and as a label in `/metrics`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Seated => "seated",
            Self::Spare => "spare",
            Self::Paused => "paused",
            Self::Leaving => "leaving",
            Self::Away => "away",
        }
    }
}
