//! From the coordinator's view to what everybody is told.

use shared::config::run::RunConfig;
use shared::coordinator::Coordinator;
use shared::coordinator::view::{RoundView, RunView, VolunteerView};
use shared::wire::frame::{BUILD, VERSION};
use shared::wire::number::payload_bytes;
use shared::wire::report::{DataReport, RoundReport, RunReport, VolunteerReport, VolunteerState};

use crate::data::Data;

/// Bytes of a number in f16.
const F16_BYTES: u64 = 2;
/// A border is crossed forward and backward.
const DIRECTIONS: u64 = 2;

/// The run as the coordinator sees it now. `trouble` is why the host can't do its work, if it can't;
/// `checkpoint_trouble` why it has no newer checkpoint.
#[must_use]
pub fn of_run(
    config: &RunConfig,
    data: &Data,
    coordinator: &Coordinator,
    view: RunView,
    trouble: Option<String>,
    checkpoint_trouble: Option<&str>,
) -> RunReport {
    let model = &config.model;
    let width = model.boundary_width();
    let reason = trouble.unwrap_or_else(|| match checkpoint_trouble {
        Some(trouble) => format!("{}; {trouble}", reason_of(&view)),
        None => reason_of(&view),
    });
    RunReport {
        name: config.name.clone(),
        build: BUILD.to_owned(),
        wire_version: VERSION,
        model: model.clone(),
        format: config.format,
        parameters: model.parameter_count() as u64,
        data: DataReport {
            files: data.files,
            bytes: data.source_bytes,
            train_tokens: data.info.train_tokens,
            validation_tokens: data.info.validation_tokens,
            tokenizer: data.tokenizer.clone(),
        },
        state: view.state,
        reason,
        round: view.round,
        safe_round: view.survives_one,
        checkpoint_round: Some(coordinator.history().newest_manifest()).filter(|round| round.0 > 0),
        pipelines: view.pipelines,
        steps: view.steps,
        samples: view.samples,
        lowest_open_sample: coordinator.lowest_open_sample(),
        samples_total: config.training.samples,
        tokens: view.tokens,
        loss: view.loss,
        validation_loss: view.validation_loss,
        rounds: view.rounds.iter().map(of_round).collect(),
        volunteers: view.volunteers.into_iter().map(of_volunteer).collect(),
        wire_bytes_per_token: DIRECTIONS * payload_bytes(config.format, 1, width) as u64,
        dense_f16_bytes_per_token: DIRECTIONS * F16_BYTES * model.d_model as u64,
        sample: None,
        takes_prompts: false,
        proposal: view.proposal,
    }
}

fn reason_of(view: &RunView) -> String {
    if let Some(reason) = &view.reason {
        return reason.clone();
    }
    match (view.state.as_str(), view.volunteers.len()) {
        ("waiting", 0) => "waiting for the first volunteer".to_owned(),
        ("waiting", _) => {
            "waiting until the volunteers that are here can hold all stages".to_owned()
        }
        ("forming", _) => {
            "volunteers take their seats: states are fetched, links opened".to_owned()
        }
        ("evaluating", _) => "measuring the loss on held-out text".to_owned(),
        ("training", _) if view.pipelines > 1 => format!(
            "training in {} pipelines beside each other, {} into the round",
            view.pipelines,
            steps(view.steps)
        ),
        ("training", _) => format!("training, {} into the round", steps(view.steps)),
        ("over", _) => "the run has reached its length".to_owned(),
        (state, _) => state.to_owned(),
    }
}

fn steps(count: u32) -> String {
    format!("{count} {}", if count == 1 { "step" } else { "steps" })
}

fn of_round(view: &RoundView) -> RoundReport {
    RoundReport {
        round: view.round,
        loss: view.loss,
        validation_loss: view.validation_loss,
        samples: view.samples,
        seconds: view.seconds,
        pipelines: view.pipelines,
    }
}

fn of_volunteer(view: VolunteerView) -> VolunteerReport {
    VolunteerReport {
        name: view.name,
        kind: view.kind,
        state: match view.state.as_str() {
            "seated" => VolunteerState::Seated,
            "paused" => VolunteerState::Paused,
            "leaving" => VolunteerState::Leaving,
            "away" => VolunteerState::Away,
            _ => VolunteerState::Spare,
        },
        stages: view.stages,
        pipeline: view.pipeline,
        reason: view.reason,
        microbatches: view.accepted,
    }
}
