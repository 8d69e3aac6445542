//! What everybody sees of a run, as HTML: who trains what, how far it is, who helps.
//!
//! The host writes these [`parts`] into its first answer, so that the page can be read before any program is loaded;
//! the page's module replaces the inside of each when the run has moved. One function for both: nothing jumps when the
//! module takes over. A part is the inside of the element that bears its name as `data-part`.
//!
//! Invariant: text that a volunteer or a host's owner wrote is [escaped](escape). No part holds an element that can
//! have focus, because it may be replaced at any moment.

use std::fmt::Write as _;

use shared::config::model::{Codec, NumberFormat};
use shared::units::PipelineId;
use shared::wire::report::{RoundReport, RunReport, SampleReport, VolunteerReport, VolunteerState};
use shared::wire::signal::{Pause, VolunteerKind};

use super::chart::Curve;
use super::format::{bytes, count, nats, percent, plural, span};

/// Why volunteers rest.
const PAUSES: [Pause; 4] = [Pause::Asked, Pause::Battery, Pause::DataCap, Pause::Hung];
/// Rows of the table of volunteers; the rest is counted.
const VOLUNTEERS_SHOWN: usize = 60;
/// Rows of the table of rounds: of long runs, rounds at even distances.
const ROUNDS_SHOWN: usize = 100;

/// All parts of the page that show the run, by name.
#[must_use]
pub fn parts(report: &RunReport) -> [(&'static str, String); 9] {
    let curve = Curve::new(&report.rounds, report.model.context);
    [
        ("head", head(report)),
        ("figures", figures(report)),
        ("curve", curve.as_ref().map(Curve::svg).unwrap_or_default()),
        (
            "legend",
            curve.as_ref().map(Curve::legend).unwrap_or_default(),
        ),
        (
            "curve-says",
            curve.map_or_else(
                || "The loss curve begins with the second round.".to_owned(),
                |curve| curve.sentence(),
            ),
        ),
        ("rounds", rounds(&report.rounds)),
        ("standing", standing(report)),
        ("volunteers", volunteers(&report.volunteers)),
        ("sample", sample(report.sample.as_ref())),
    ]
}

/// Name of the run, what it is, and why it moves or does not.
fn head(report: &RunReport) -> String {
    let data = &report.data;
    let learns = if data.tokenizer == "token shards" {
        plural(data.train_tokens, "token", "tokens")
    } else {
        format!(
            "{} of text ({})",
            plural(data.files, "file", "files"),
            bytes(data.bytes as f64)
        )
    };
    let here = report.volunteers.len() as u64;
    let seated = report
        .volunteers
        .iter()
        .filter(|one| one.stages.is_some())
        .count() as u64;
    let helpers = match (here, seated) {
        (0, _) => "Nobody trains it at the moment".to_owned(),
        (_, 0) => format!("{} will train it", plural(here, "volunteer", "volunteers")),
        (_, 1) => "One volunteer trains it".to_owned(),
        (_, more) => format!(
            "{} train it together, each a slice of it",
            plural(more, "volunteer", "volunteers")
        ),
    };
    format!(
        "<h1>{name}</h1>\n<p class=\"lead\">A language model of {parameters}&nbsp;parameters that learns from {learns}. \
         {helpers}.</p>\n<p class=\"reason {state}\"><span class=\"dot\" aria-hidden=\"true\"></span>{reason}</p>\n",
        name = escape(&report.name),
        parameters = count(report.parameters as f64),
        state = escape(&report.state),
        reason = escape(&sentence(&report.reason)),
    )
}

fn figures(report: &RunReport) -> String {
    let mut html = String::new();
    let mut figure = |name: &str, value: &str, below: &str| {
        let _ = writeln!(
            html,
            "<div><dt>{name}</dt><dd>{value}</dd><dd class=\"below\">{below}</dd></div>"
        );
    };
    let held_out = report.validation_loss.map_or_else(
        || "not yet measured on held-out text".to_owned(),
        |loss| format!("{} on held-out text", nats(Some(loss))),
    );
    figure("Loss", &nats(report.loss), &held_out);
    figure(
        "Tokens",
        &count(report.tokens as f64),
        &format!(
            "{} of the run",
            percent(report.samples, report.samples_total)
        ),
    );
    let lately = report.rounds.last().map_or_else(
        || "none yet".to_owned(),
        |round| format!("the last took {}", span(round.seconds)),
    );
    figure("Rounds", &report.round.to_string(), &lately);
    let seated = report
        .volunteers
        .iter()
        .filter(|volunteer| volunteer.stages.is_some())
        .count();
    figure(
        "Volunteers",
        &count(report.volunteers.len() as f64),
        &format!("{seated} at work"),
    );
    html
}

/// The rounds as rows of a table, newest first.
fn rounds(rounds: &[RoundReport]) -> String {
    let every = rounds.len().div_ceil(ROUNDS_SHOWN).max(1);
    let mut html = String::new();
    for round in rounds.iter().rev().step_by(every) {
        let _ = writeln!(
            html,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            round.round,
            nats(Some(round.loss)),
            nats(round.validation_loss),
            count(round.samples as f64),
            span(round.seconds)
        );
    }
    html
}

/// What the model wrote by itself.
fn sample(sample: Option<&SampleReport>) -> String {
    let Some(SampleReport { round, text }) = sample else {
        return "<p class=\"soft\">Nothing yet: it writes a few lines by itself now and then.</p>\n".to_owned();
    };
    format!(
        "<figure class=\"sample\"><blockquote>{}</blockquote><figcaption class=\"soft\">By itself, at round {round}. It says \
         what it finds likely, true or not.</figcaption></figure>\n",
        escape(text.trim()),
    )
}

/// What would survive, and what the compression saves.
fn standing(report: &RunReport) -> String {
    let model = &report.model;
    let codec = match model.codec {
        Codec::Dense => "at full width".to_owned(),
        Codec::Subspace {
            rank,
            adapt_rounds: 0,
        } => format!("as {rank} coordinates of a subspace"),
        Codec::Subspace { rank, .. } => {
            format!(
                "as {rank} coordinates of a subspace that turns to where the loss depends most on it"
            )
        }
        Codec::Projector { rank, .. } => {
            format!("as {rank} coordinates of each border's own subspace")
        }
    };
    let format = match report.format {
        NumberFormat::F32 => "f32",
        NumberFormat::F16 => "f16",
        NumberFormat::Int8 => "int8",
        NumberFormat::Int4 => "int4",
    };
    let stored = report.checkpoint_round.map_or_else(
        || "The host has stored no checkpoint yet.".to_owned(),
        |round| format!("Round {round} is stored at the host."),
    );
    let safe = if report.safe_round.0 == 0 {
        "No round has copies at two volunteers yet.".to_owned()
    } else {
        format!(
            "Round {} survives the loss of any one volunteer.",
            report.safe_round
        )
    };
    format!(
        "The model has {} stages: {} blocks, {} wide, {} tokens of context. Between volunteers a token travels {codec} \
         in {format}: {}&nbsp;bytes there and back, where full width in f16 takes {}. {safe} {stored}",
        model.stages,
        model.blocks,
        model.d_model,
        model.context,
        report.wire_bytes_per_token,
        report.dense_f16_bytes_per_token,
    )
}

fn volunteers(list: &[VolunteerReport]) -> String {
    if list.is_empty() {
        return "<p>Nobody yet. The first one may hold all stages; more make it faster.</p>\n"
            .to_owned();
    }
    let are_several = list.iter().any(|one| one.pipeline > Some(PipelineId(0)));
    let mut html = String::from(
        "<table>\n<thead><tr><th scope=\"col\">Name</th><th scope=\"col\">Seat</th>\
         <th scope=\"col\" class=\"number\">Accepted microbatches</th></tr></thead>\n<tbody>\n",
    );
    for volunteer in list.iter().take(VOLUNTEERS_SHOWN) {
        let kind = match volunteer.kind {
            VolunteerKind::Native => "terminal",
            VolunteerKind::Browser => "browser",
        };
        // What volunteers were told is addressed to them, and may be of before: only why one rests says more here than
        // its state does.
        let is_rest = volunteer.state == VolunteerState::Paused;
        let reason = if is_rest
            && PAUSES
                .map(Pause::words)
                .contains(&volunteer.reason.as_str())
        {
            format!("<small>{}</small>", escape(&sentence(&volunteer.reason)))
        } else {
            String::new()
        };
        let seat = match (volunteer.state, volunteer.stages) {
            (VolunteerState::Seated, Some(stages)) => match volunteer.pipeline {
                Some(pipeline) if are_several => {
                    format!("pipeline {}, {stages}", pipeline.0 + 1)
                }
                Some(_) | None => stages.to_string(),
            },
            (state, _) => state.word().to_owned(),
        };
        let _ = writeln!(
            html,
            "<tr><th scope=\"row\">{} <span class=\"tag\">{kind}</span>{reason}</th><td>{seat}</td>\
             <td class=\"number\">{}</td></tr>",
            escape(&volunteer.name),
            count(volunteer.microbatches as f64),
        );
    }
    html.push_str("</tbody>\n</table>\n");
    if let Some(more) = list
        .len()
        .checked_sub(VOLUNTEERS_SHOWN)
        .filter(|more| *more > 0)
    {
        let _ = writeln!(html, "<p>And {more} more.</p>");
    }
    html
}

/// A reason as a sentence: the host's reasons begin small and end without a full stop.
#[must_use]
pub fn sentence(reason: &str) -> String {
    let reason = reason.trim();
    let mut letters = reason.chars();
    let Some(first) = letters.next() else {
        return String::new();
    };
    let mut text: String = first.to_uppercase().chain(letters).collect();
    if !text.ends_with(['.', '!', '?', '…']) {
        text.push('.');
    }
    text
}

/// Text that is safe between tags and inside quoted attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use shared::config::run::RunConfig;
    use shared::units::{Round, StageRange};
    use shared::wire::report::DataReport;

    use super::*;

    fn report(rounds: u32) -> RunReport {
        let config = RunConfig::preset("tiny").unwrap();
        let rounds: Vec<RoundReport> = (1..=rounds)
            .map(|round| RoundReport {
                round: Round(round),
                loss: 2.0 + 3.5 / f64::from(round),
                validation_loss: None,
                samples: u64::from(round) * 256,
                seconds: 12.5,
                pipelines: 1,
            })
            .collect();
        RunReport {
            name: "school of fish".to_owned(),
            build: "0.1.0".to_owned(),
            wire_version: 2,
            parameters: config.model.parameter_count() as u64,
            format: config.format,
            model: config.model,
            data: DataReport {
                files: 53,
                bytes: 457_076,
                train_tokens: 447_940,
                validation_tokens: 9_136,
                tokenizer: "bytes".to_owned(),
            },
            state: "training".to_owned(),
            reason: "training, 3 steps into the round".to_owned(),
            round: rounds.last().map_or(Round(0), |round| round.round),
            safe_round: Round(38),
            checkpoint_round: Some(Round(36)),
            pipelines: 1,
            steps: 3,
            samples: rounds.last().map_or(0, |round| round.samples),
            lowest_open_sample: 0,
            samples_total: 64_000,
            tokens: 1_310_720,
            loss: rounds.last().map(|round| round.loss),
            validation_loss: Some(2.2),
            rounds,
            volunteers: vec![],
            wire_bytes_per_token: 68,
            dense_f16_bytes_per_token: 512,
            sample: None,
            takes_prompts: true,
            proposal: None,
        }
    }

    fn volunteer(name: &str) -> VolunteerReport {
        VolunteerReport {
            name: name.to_owned(),
            kind: VolunteerKind::Browser,
            state: VolunteerState::Seated,
            stages: Some(StageRange { first: 2, end: 4 }),
            pipeline: None,
            reason: name.to_owned(),
            microbatches: 412,
        }
    }

    fn part(report: &RunReport, name: &str) -> String {
        let found = parts(report).into_iter().find(|part| part.0 == name);
        found.unwrap().1
    }

    #[test]
    fn what_people_write_is_text_and_nothing_else() {
        let mut report = report(40);
        let nasty = "<img src=x onerror='a(\"&\")'>";
        report.name = nasty.to_owned();
        report.reason = nasty.to_owned();
        report.state = "\"><b>".to_owned();
        report.volunteers = vec![volunteer(nasty)];
        for (name, html) in parts(&report) {
            assert!(
                !html.contains("<img") && !html.contains("<b>"),
                "{name}: {html}"
            );
        }
        let shown = part(&report, "volunteers");
        assert!(
            shown.contains("&lt;img src=x onerror=&#39;a(&quot;&amp;&quot;)&#39;&gt;"),
            "{shown}"
        );
        assert!(shown.contains("<td>stages 2-3</td>"), "{shown}");
    }

    #[test]
    fn nothing_that_can_have_focus_is_in_a_part() {
        let mut report = report(40);
        report.volunteers = vec![volunteer("anchovy")];
        for (name, html) in parts(&report) {
            for focusable in ["<a ", "<button", "<input", "tabindex", "<details"] {
                assert!(!html.contains(focusable), "{name}: {html}");
            }
        }
    }

    #[test]
    fn long_runs_and_crowds_are_cut_short() {
        let mut report = report(2_000);
        report.volunteers = vec![volunteer("anchovy"); 1_000];
        let table = part(&report, "rounds");
        assert_eq!(table.matches("<tr>").count(), ROUNDS_SHOWN);
        assert!(
            table.starts_with("<tr><th scope=\"row\">2000</th>"),
            "newest first"
        );
        assert!(part(&report, "volunteers").contains("And 940 more."));
        let all: usize = parts(&report).iter().map(|(_, html)| html.len()).sum();
        assert!(all < 150_000, "{all} bytes for every visitor");
    }

    #[test]
    fn a_run_without_a_round_says_so() {
        let report = report(0);
        assert_eq!(part(&report, "curve"), "");
        assert!(part(&report, "curve-says").contains("second round"));
        assert!(part(&report, "figures").contains("none yet"));
        assert!(part(&report, "volunteers").contains("Nobody yet"));
    }

    #[test]
    fn the_legend_names_the_lines_that_are_there() {
        let mut report = report(40);
        report.rounds[7].validation_loss = Some(2.5);
        assert!(part(&report, "legend").contains("on held-out text"));
        report.rounds[7].validation_loss = None;
        let legend = part(&report, "legend");
        assert!(legend.contains("training loss"), "{legend}");
        assert!(!legend.contains("held-out"), "{legend}");
        report.rounds.clear();
        assert_eq!(part(&report, "legend"), "", "no curve, no legend");
    }

    #[test]
    fn what_somebody_was_told_is_not_told_of_it() {
        let told = |state, reason: &str| {
            let mut report = report(4);
            let one = VolunteerReport {
                state,
                reason: reason.to_owned(),
                ..volunteer("anchovy")
            };
            report.volunteers = vec![one];
            part(&report, "volunteers")
        };
        let spare = "spare: you keep copies until a seat is free";
        for state in [
            VolunteerState::Seated,
            VolunteerState::Spare,
            VolunteerState::Paused,
            VolunteerState::Leaving,
            VolunteerState::Away,
        ] {
            let shown = told(state, spare);
            assert!(!shown.contains("you keep"), "{shown}");
            assert!(shown.contains("anchovy"), "{shown}");
        }
        let shown = told(VolunteerState::Paused, Pause::Battery.words());
        assert!(
            shown.contains("<small>Paused: on battery.</small>"),
            "{shown}"
        );
        assert!(shown.contains("<td>paused</td>"), "{shown}");
    }

    #[test]
    fn reasons_become_sentences() {
        assert_eq!(sentence("waiting for 1 more"), "Waiting for 1 more.");
        assert_eq!(sentence("Done."), "Done.");
        assert_eq!(sentence(" "), "");
    }
}
