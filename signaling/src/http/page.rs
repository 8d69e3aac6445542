//! The page at `/`: what is trained, by whom, how far it is, how to help. Plain HTML from the report.
//!
//! Everything a volunteer wrote is escaped. The page loads its style and its script from this host and nothing
//! from anywhere else; the script fetches `/` again when the run changes and exchanges `main`.

use std::fmt::Write as _;

use shared::config::model::{Codec, NumberFormat};
use shared::wire::report::{RoundReport, RunReport, VolunteerReport, VolunteerState};
use shared::wire::signal::VolunteerKind;

const CHART_WIDTH: f64 = 720.0;
const CHART_HEIGHT: f64 = 260.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
/// Rows of the table of volunteers; the rest is counted.
const VOLUNTEERS_SHOWN: usize = 100;

/// The whole page.
pub(super) fn render(report: &RunReport, link: &str) -> String {
    let name = escape(&report.name);
    let main = main_part(report, link);
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name} · Shoal</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/page.css">
<script src="/page.js" defer></script>
</head>
<body>
{main}
<footer><p>Shoal trains one transformer on many people's machines. Small, compressed tensors travel directly between
volunteers; this host sees none of them. Public here: the text, the weights, the names. Numbers:
<a href="/api/run">JSON</a>, <a href="/metrics">metrics</a>.</p></footer>
</body>
</html>
"#
    )
}

fn main_part(report: &RunReport, link: &str) -> String {
    let mut html = String::from("<main>\n");
    let done = percent(report.samples, report.samples_total);
    let shape = shape(report);
    let _ = write!(
        html,
        r#"<header>
<p class="kind">Shoal run</p>
<h1>{name}</h1>
<p class="lead">{shape}</p>
<p class="reason" role="status">{reason}</p>
</header>
<dl class="figures">
<div><dt>Round</dt><dd>{round}</dd></div>
<div><dt>Loss</dt><dd>{loss}</dd></div>
<div><dt>Held-out loss</dt><dd>{validation}</dd></div>
<div><dt>Tokens</dt><dd>{tokens}</dd></div>
<div><dt>Of the run</dt><dd>{done}</dd></div>
<div><dt>Volunteers</dt><dd>{volunteers}</dd></div>
</dl>
"#,
        name = escape(&report.name),
        reason = escape(&report.reason),
        round = report.round,
        loss = nats(report.loss),
        validation = nats(report.validation_loss),
        tokens = short(report.tokens),
        volunteers = report.volunteers.len(),
    );
    html.push_str("<section>\n<h2>How far it is</h2>\n");
    html.push_str(&chart(&report.rounds));
    let _ = writeln!(
        html,
        "<p>Round {} survives the loss of any one volunteer; {}. A token costs {} \
         bytes at a border, both ways; uncompressed in f16 it would be {}.</p>\n</section>",
        report.safe_round,
        report.checkpoint_round.map_or_else(
            || "no checkpoint is in the host's store yet".to_owned(),
            |round| format!("round {round} lies in the host's store")
        ),
        report.wire_bytes_per_token,
        report.dense_f16_bytes_per_token
    );
    html.push_str("<section>\n<h2>By whom</h2>\n");
    html.push_str(&volunteers(&report.volunteers));
    let _ = writeln!(
        html,
        "</section>\n<section>\n<h2>Help</h2>\n<p>With the headless client, on any machine that reaches this \
         page:</p>\n<pre><code>shoal join {}</code></pre>\n<p>Others in the run see your IP address. Ctrl-C finishes the round \
         and leaves.</p>\n</section>\n</main>",
        escape(link)
    );
    html
}

fn shape(report: &RunReport) -> String {
    let model = &report.model;
    let codec = match model.codec {
        Codec::Dense => "full-width borders".to_owned(),
        Codec::Subspace { rank } => format!("borders in a subspace of rank {rank}"),
    };
    let format = match report.format {
        NumberFormat::F32 => "f32",
        NumberFormat::F16 => "f16",
        NumberFormat::Int8 => "int8",
    };
    let data = &report.data;
    format!(
        "A transformer of {} parameters in {} stages (width {}, {} blocks, context {}), {codec}, sent as {format}. It reads \
         {} files, {}B of {}.",
        short(report.parameters),
        model.stages,
        model.d_model,
        model.blocks,
        model.context,
        data.files,
        short(data.bytes),
        if data.tokenizer == "token shards" {
            "ready tokens".to_owned()
        } else {
            format!("text as {}", escape(&data.tokenizer))
        }
    )
}

fn volunteers(list: &[VolunteerReport]) -> String {
    if list.is_empty() {
        return "<p>Nobody yet.</p>\n".to_owned();
    }
    let mut html = String::from(
        "<div class=\"wide\"><table>\n<thead><tr><th scope=\"col\">Name</th><th scope=\"col\">Where</th>\
         <th scope=\"col\">State</th><th scope=\"col\">Microbatches</th><th scope=\"col\">Why</th></tr></thead>\n<tbody>\n",
    );
    for volunteer in list.iter().take(VOLUNTEERS_SHOWN) {
        let kind = match volunteer.kind {
            VolunteerKind::Native => "headless",
            VolunteerKind::Browser => "browser",
        };
        let state = match (volunteer.state, volunteer.stages) {
            (VolunteerState::Seated, Some(stages)) => stages.to_string(),
            (state, _) => state_name(state).to_owned(),
        };
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{kind}</td><td>{state}</td><td>{}</td><td>{}</td></tr>",
            escape(&volunteer.name),
            volunteer.microbatches,
            escape(&volunteer.reason)
        );
    }
    html.push_str("</tbody>\n</table></div>\n");
    if list.len() > VOLUNTEERS_SHOWN {
        let _ = writeln!(html, "<p>And {} more.</p>", list.len() - VOLUNTEERS_SHOWN);
    }
    html
}

/// One word for a state, as in `/metrics`.
pub(crate) fn state_name(state: VolunteerState) -> &'static str {
    match state {
        VolunteerState::Seated => "seated",
        VolunteerState::Spare => "spare",
        VolunteerState::Paused => "paused",
        VolunteerState::Leaving => "leaving",
        VolunteerState::Away => "away",
    }
}

/// Loss over samples as an SVG, training as a line and evaluations as dots on another.
fn chart(rounds: &[RoundReport]) -> String {
    if rounds.len() < 2 {
        return "<p>The loss curve begins with the second round.</p>\n".to_owned();
    }
    let mut training = Vec::new();
    let mut validation = Vec::new();
    for round in rounds {
        if round.loss.is_finite() {
            training.push((round.samples, round.loss));
        }
        if let Some(loss) = round.validation_loss.filter(|loss| loss.is_finite()) {
            validation.push((round.samples, loss));
        }
    }
    let losses = || training.iter().chain(&validation).map(|(_, loss)| *loss);
    let scale = Scale::new(
        rounds.last().map_or(0, |round| round.samples),
        losses().fold(f64::INFINITY, f64::min),
        losses().fold(f64::NEG_INFINITY, f64::max),
    );
    let mut svg = format!(
        "<figure>\n<svg viewBox=\"0 0 {CHART_WIDTH} {CHART_HEIGHT}\" role=\"img\" aria-label=\"Loss over samples, from {} to {} nats\">\n",
        nats(training.first().map(|point| point.1)),
        nats(training.last().map(|point| point.1)),
    );
    scale.axes(&mut svg);
    let _ = writeln!(
        svg,
        "<polyline class=\"training\" points=\"{}\"/>",
        scale.line(&training)
    );
    if !validation.is_empty() {
        let _ = writeln!(
            svg,
            "<polyline class=\"validation\" points=\"{}\"/>",
            scale.line(&validation)
        );
        for (samples, loss) in &validation {
            let (x, y) = scale.place(*samples, *loss);
            let _ = writeln!(
                svg,
                "<circle class=\"validation\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>"
            );
        }
    }
    svg.push_str(
        "</svg>\n<figcaption><span class=\"key training\"></span> training <span class=\"key validation\"></span> held out. \
         Nats a token over samples.</figcaption>\n</figure>\n",
    );
    svg
}

/// From samples and nats to the chart's units.
struct Scale {
    samples: f64,
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    fn new(samples: u64, low: f64, high: f64) -> Self {
        let span = (high - low).max(0.1);
        let rough = span / 4.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| *step >= rough)
            .unwrap_or(10.0 * power);
        Self {
            samples: samples.max(1) as f64,
            low: (low / step).floor() * step,
            high: ((low + span) / step).ceil() * step,
            step,
        }
    }

    fn place(&self, samples: u64, loss: f64) -> (f64, f64) {
        let x = LEFT + samples as f64 / self.samples * (CHART_WIDTH - LEFT - RIGHT);
        let share = (loss - self.low) / (self.high - self.low);
        let y = CHART_HEIGHT - BOTTOM - share * (CHART_HEIGHT - TOP - BOTTOM);
        (x, y)
    }

    fn line(&self, points: &[(u64, f64)]) -> String {
        let mut line = String::new();
        for (samples, loss) in points {
            let (x, y) = self.place(*samples, *loss);
            let _ = write!(line, "{x:.1},{y:.1} ");
        }
        line
    }

    fn axes(&self, svg: &mut String) {
        let right = CHART_WIDTH - RIGHT;
        let mut loss = self.low;
        while loss <= self.high + self.step / 2.0 {
            let (_, y) = self.place(0, loss);
            let label = if self.step < 1.0 {
                format!("{loss:.2}")
            } else {
                format!("{loss:.0}")
            };
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 6.0,
                y + 4.0
            );
            loss += self.step;
        }
        for quarter in 0..=4_u32 {
            let samples = self.samples * f64::from(quarter) / 4.0;
            let x = LEFT + f64::from(quarter) / 4.0 * (right - LEFT);
            let anchor = match quarter {
                0 => "start",
                4 => "end",
                _ => "middle",
            };
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                CHART_HEIGHT - BOTTOM + 20.0,
                short_f64(samples)
            );
        }
    }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

fn nats(loss: Option<f64>) -> String {
    loss.filter(|loss| loss.is_finite())
        .map_or_else(|| "–".to_owned(), |loss| format!("{loss:.3}"))
}

fn short(number: u64) -> String {
    short_f64(number as f64)
}

/// A number with at most three digits and a letter for its thousands.
fn short_f64(number: f64) -> String {
    let mut value = number;
    let mut unit = "";
    for next in [" k", " M", " G", " T"] {
        if value < 999.5 {
            break;
        }
        value /= 1_000.0;
        unit = next;
    }
    if unit.is_empty() {
        format!("{value:.0}")
    } else if value < 9.95 {
        format!("{value:.1}{unit}")
    } else {
        format!("{value:.0}{unit}")
    }
}

/// Text that is safe between tags and inside quoted attributes.
fn escape(text: &str) -> String {
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
        let round = |round: u32| RoundReport {
            round: Round(round),
            loss: 2.0 + 3.5 / f64::from(round),
            validation_loss: round
                .is_multiple_of(4)
                .then(|| 2.1 + 3.5 / f64::from(round)),
            samples: u64::from(round) * 256,
            seconds: 12.5,
        };
        let volunteer = |name: &str, state, stages| VolunteerReport {
            name: name.to_owned(),
            kind: VolunteerKind::Native,
            state,
            stages,
            reason: "training".to_owned(),
            microbatches: 412,
        };
        let rounds: Vec<RoundReport> = (1..=rounds).map(round).collect();
        RunReport {
            name: "demo".to_owned(),
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
            steps: 3,
            samples: rounds.last().map_or(0, |round| round.samples),
            lowest_open_sample: 0,
            samples_total: 64_000,
            tokens: 1_310_720,
            loss: rounds.last().map(|round| round.loss),
            validation_loss: Some(2.2),
            rounds,
            volunteers: vec![
                volunteer(
                    "anchovy",
                    VolunteerState::Seated,
                    Some(StageRange { first: 0, end: 2 }),
                ),
                volunteer("<script>alert('&')</script>", VolunteerState::Spare, None),
            ],
            wire_bytes_per_token: 68,
            dense_f16_bytes_per_token: 512,
        }
    }

    #[test]
    fn what_volunteers_write_is_text_and_nothing_else() {
        let html = render(&report(40), "https://a.example/\"><script>");
        assert!(html.contains("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;"));
        assert_eq!(html.matches("<script").count(), 1, "our own");
        assert!(html.contains("<td>stages 0-1</td>") && html.contains("<td>spare</td>"));
    }

    #[test]
    fn the_curve_stays_inside_its_frame_whatever_the_losses() {
        for (first, last) in [(5.5, 2.0), (3.0, 3.0), (0.001, 0.0), (250.0, 1.0)] {
            let mut rounds = report(40).rounds;
            for (index, round) in (0_u32..).zip(&mut rounds) {
                round.loss = first + (last - first) * f64::from(index) / 39.0;
                round.validation_loss = None;
            }
            rounds[7].loss = f64::NAN;
            let svg = chart(&rounds);
            let (_, line) = svg.split_once("points=\"").unwrap();
            let points: Vec<&str> = line.split('"').next().unwrap().split_whitespace().collect();
            assert_eq!(points.len(), 39, "a loss that is not a number is left out");
            for point in points {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=CHART_WIDTH - RIGHT).contains(&x), "{x}");
                assert!(
                    (TOP - 0.1..=CHART_HEIGHT - BOTTOM + 0.1).contains(&y),
                    "{y}"
                );
            }
            let grid_lines = svg.matches("class=\"grid\"").count();
            assert!(
                (2..=8).contains(&grid_lines),
                "{grid_lines} lines for {first} to {last}"
            );
        }
        assert!(chart(&report(1).rounds).contains("second round"));
    }

    #[test]
    fn numbers_are_short() {
        let shown: Vec<String> = [0, 999, 1_000, 9_949, 9_950, 706_688, 999_600, 1_310_720]
            .into_iter()
            .map(short)
            .collect();
        assert_eq!(
            shown,
            [
                "0", "999", "1.0 k", "9.9 k", "10 k", "707 k", "1.0 M", "1.3 M"
            ]
        );
    }

    #[test]
    fn the_script_changes_what_is_inside_main_only() {
        let html = render(&report(3), "http://localhost:8080");
        assert_eq!(html.matches("<main>").count(), 1);
        assert!(html.find("</main>").unwrap() < html.find("<footer>").unwrap());
        assert!(include_str!("page.js").contains("querySelector(\"main\")"));
    }
}
