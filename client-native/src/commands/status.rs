//! `shoal status`: how a run is doing, as the host tells everybody.

use shared::wire::report::{RunReport, VolunteerReport, VolunteerState};

use super::print_line;
use crate::cli::StatusArgs;
use crate::failure::Failure;
use crate::host::http::HostFiles;
use crate::settings::{self, FileSettings};

/// Volunteers that are listed; of more, only the number is said.
const VOLUNTEERS_SHOWN: usize = 20;

pub(super) async fn status(
    args: StatusArgs,
    file: &FileSettings,
    json: bool,
) -> Result<(), Failure> {
    let link = settings::link(args.link, file)?;
    let files = HostFiles::new(&link, None);
    if args.json || json {
        let said: serde_json::Value = files.json("api/run").await?;
        print_line(&said.to_string());
        return Ok(());
    }
    let report: RunReport = files.json("api/run").await?;
    for line in lines(&report) {
        print_line(&line);
    }
    Ok(())
}

fn lines(report: &RunReport) -> Vec<String> {
    let nats = |loss: Option<f64>| loss.map_or("-".to_owned(), |loss| format!("{loss:.3}"));
    let checkpoint = report
        .checkpoint_round
        .map_or("none yet".to_owned(), |round| format!("round {round}"));
    let share = 100.0 * report.samples as f64 / report.samples_total.max(1) as f64;
    let mut lines = vec![
        format!(
            "{}: {:.1} M parameters in {} stages, trained on {:.1} M tokens of {}",
            report.name,
            report.parameters as f64 / 1e6,
            report.model.stages,
            report.data.train_tokens as f64 / 1e6,
            report.data.tokenizer,
        ),
        format!("{}: {}", report.state, report.reason),
        format!(
            "round {}, step {}; {:.2} M tokens, {share:.1} % of the run",
            report.round,
            report.steps,
            report.tokens as f64 / 1e6,
        ),
        format!(
            "loss {}, on held-out text {} (nats a token)",
            nats(report.loss),
            nats(report.validation_loss),
        ),
        format!(
            "safe against any one loss: round {}; in the store: {checkpoint}",
            report.safe_round
        ),
        format!(
            "a token costs {} bytes at a border, {} at full width in f16",
            report.wire_bytes_per_token, report.dense_f16_bytes_per_token,
        ),
        match report.volunteers.len() {
            0 => "no volunteers".to_owned(),
            1 => "1 volunteer:".to_owned(),
            count => format!("{count} volunteers:"),
        },
    ];
    let shown = report.volunteers.iter().take(VOLUNTEERS_SHOWN);
    lines.extend(shown.map(volunteer));
    if let Some(more) = report.volunteers.len().checked_sub(VOLUNTEERS_SHOWN)
        && more > 0
    {
        lines.push(format!("  and {more} more"));
    }
    lines.extend(report.proposal.map(|proposal| proposal.to_string()));
    lines
}

fn volunteer(one: &VolunteerReport) -> String {
    let does = match (one.state, one.stages) {
        (VolunteerState::Seated, Some(stages)) => stages.to_string(),
        (VolunteerState::Seated, None) => "seated".to_owned(),
        (VolunteerState::Spare, _) => "spare".to_owned(),
        (VolunteerState::Paused, _) => "paused".to_owned(),
        (VolunteerState::Leaving, _) => "leaving".to_owned(),
        (VolunteerState::Away, _) => "away".to_owned(),
    };
    let reason = if one.reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", one.reason)
    };
    format!(
        "  {}: {does}, {} microbatches{reason}",
        one.name, one.microbatches
    )
}
