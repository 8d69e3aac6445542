//! What a volunteer tells the person at its terminal, or the program that reads its output.
//!
//! Everything worth telling is a [`Note`]. As text, each is a line; on a terminal a status line
//! stays below them, without one it is printed once a minute. As JSON, each is an object on
//! standard output, with `event` and `seconds` since the start: the interface of scripts and tests.
//!
//! Invariant: only this module and the commands' own results write to standard output.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use shared::driver::sent::Volumes;
use shared::units::StageRange;

use crate::cli::LogFormat;
use crate::failure::Failure;
use crate::rtc::traffic::Datagrams;

/// Between status lines where there is no terminal.
const STATUS_EVERY: Duration = Duration::from_secs(60);

/// Something that happened to this volunteer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Note {
    /// The process is up; nothing is connected yet.
    Start {
        /// Version of this build.
        version: &'static str,
        /// The run's link.
        link: String,
        /// What we are called.
        name: String,
        /// The public key.
        key: String,
        /// The device.
        device: String,
        /// Memory that is lent.
        memory_bytes: u64,
        /// Share of the time that the device works.
        throttle_percent: u8,
    },
    /// The host told the run; its bases and weights are being derived, the device measured.
    Prepare {
        /// What the run is called.
        run: String,
        /// Parameters of the whole model.
        parameters: u64,
    },
    /// The device was measured.
    Measured {
        /// Microseconds of one block for one sequence, forward and backward.
        block_us: u64,
        /// Hash of what follows from the run's seed.
        seed_hash: String,
    },
    /// The host let us in.
    Welcome {
        /// Our number.
        peer: u64,
        /// Newest committed round.
        round: u32,
    },
    /// We take a seat.
    Seat {
        /// The pipeline.
        pipeline: u16,
        /// Its line-up.
        epoch: String,
        /// The round to start from.
        round: u32,
        /// First stage of the seat.
        first_stage: u16,
        /// One past its last stage.
        end_stage: u16,
        /// The seat before.
        previous: Option<u64>,
        /// The seat after.
        next: Option<u64>,
    },
    /// We have no seat and keep copies.
    Spare,
    /// The first microbatch of a line-up is computed.
    FirstMicrobatch,
    /// As head: a step is done.
    Step {
        /// The round.
        round: u32,
        /// Steps done in it.
        steps: u32,
        /// Mean token loss of the last one, in nats.
        loss: f64,
        /// Tokens a second of the pipeline since the step before.
        tokens_per_second: Option<f64>,
    },
    /// A round is committed.
    Commit {
        /// Its number.
        round: u32,
        /// Whether our own work is in it.
        ours: bool,
    },
    /// A link to another volunteer is up.
    Link {
        /// The other end.
        peer: u64,
        /// Whether packets go through a relay.
        relayed: bool,
    },
    /// Nothing gets through a link for now.
    LinkDisturbed {
        /// The other end.
        peer: u64,
    },
    /// A link is lost.
    LinkLost {
        /// The other end.
        peer: u64,
        /// Why.
        reason: String,
    },
    /// No connection to the host; another try follows.
    Lost {
        /// What happened.
        reason: String,
        /// Pause before the next try.
        retry_ms: u64,
    },
    /// Why we wait, or what we do.
    Reason {
        /// One sentence.
        text: String,
    },
    /// The first Ctrl-C: we leave when the round is committed.
    Finish,
    /// Something does not work as it should, and what follows from it.
    Trouble {
        /// What happened, and what follows from it.
        text: String,
    },
    /// Something ended the command.
    Error {
        /// The exit code.
        code: u8,
        /// What happened, and why.
        text: String,
        /// What to do.
        remedy: String,
    },
    /// The end.
    End {
        /// The exit code.
        code: u8,
        /// Why.
        text: String,
        /// What went over links to other volunteers, from the start to the end.
        carried: Carried,
    },
}

/// What went over links to other volunteers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Carried {
    /// Frames that we sent.
    pub frames: Volumes,
    /// What our UDP sockets carried: frames and all that encryption, transport and ICE add.
    pub sockets: Datagrams,
}

impl Note {
    /// A failure as a note.
    pub fn of(failure: &Failure) -> Self {
        Self::Error {
            code: failure.code as u8,
            text: failure.what.clone(),
            remedy: failure.remedy.clone(),
        }
    }

    /// The note as a line for people; `None` where the status line says it well enough.
    fn line(&self) -> Option<String> {
        Some(match self {
            Self::Start {
                link,
                name,
                device,
                memory_bytes,
                throttle_percent,
                ..
            } => format!(
                "{name} joins {link} with {device}, {:.1} GB, {throttle_percent} % of the time",
                *memory_bytes as f64 / 1e9
            ),
            Self::Prepare { run, parameters } => {
                format!(
                    "run \"{run}\", {:.1} M parameters: preparing",
                    *parameters as f64 / 1e6
                )
            }
            Self::Measured { block_us, .. } => {
                format!(
                    "one block takes {:.1} ms a sequence here",
                    *block_us as f64 / 1e3
                )
            }
            Self::Welcome { peer, round } => {
                format!("welcome: volunteer {peer}, round {round}")
            }
            Self::Seat {
                pipeline, round, ..
            } => {
                format!(
                    "seat: {}, pipeline {pipeline}, from round {round}",
                    self.stages()?
                )
            }
            Self::Spare => "spare: keeping copies".to_owned(),
            Self::FirstMicrobatch => "working".to_owned(),
            Self::Step { .. } => return None,
            Self::Commit { round, ours: true } => {
                format!("round {round} is committed, our work in it")
            }
            Self::Commit { round, ours: false } => format!("round {round} is committed"),
            Self::Link {
                peer,
                relayed: true,
            } => format!("link to volunteer {peer}, through a relay"),
            Self::Link {
                peer,
                relayed: false,
            } => format!("link to volunteer {peer}, direct"),
            Self::LinkDisturbed { peer } => {
                format!("nothing gets through to volunteer {peer}; looking for another path")
            }
            Self::LinkLost { peer, reason } => {
                format!("lost the link to volunteer {peer}: {reason}")
            }
            Self::Lost { reason, retry_ms } => {
                format!(
                    "no connection to the host: {reason}; next try in {:.1} s",
                    *retry_ms as f64 / 1e3
                )
            }
            Self::Reason { text } => text.clone(),
            Self::Finish => {
                "finishing: leaving after this round (press Ctrl-C again to leave at once)"
                    .to_owned()
            }
            Self::Trouble { text } => text.clone(),
            Self::Error { text, remedy, .. } if remedy.is_empty() => format!("error: {text}"),
            Self::Error { text, remedy, .. } => format!("error: {text}\n  {remedy}"),
            Self::End { text, carried, .. } => {
                let Datagrams {
                    sent_bytes,
                    received_bytes,
                    ..
                } = carried.sockets;
                format!(
                    "{text}\n  {:.1} MB sent to other volunteers, {:.1} MB received",
                    sent_bytes as f64 / 1e6,
                    received_bytes as f64 / 1e6
                )
            }
        })
    }

    fn stages(&self) -> Option<StageRange> {
        let Self::Seat {
            first_stage,
            end_stage,
            ..
        } = self
        else {
            return None;
        };
        Some(StageRange {
            first: *first_stage,
            end: *end_stage,
        })
    }
}

/// The parts of the status line, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq)]
struct Status {
    round: Option<u32>,
    seat: Option<String>,
    steps: Option<u32>,
    tokens_per_second: Option<f64>,
    loss: Option<f64>,
    reason: Option<String>,
}

impl Status {
    fn hear(&mut self, note: &Note) {
        match note {
            Note::Welcome { round, .. } | Note::Commit { round, .. } => {
                self.round = Some(*round);
                self.steps = None;
            }
            Note::Seat { .. } => {
                self.seat = note.stages().map(|stages| stages.to_string());
                self.reason = None;
            }
            Note::Spare => self.seat = Some("spare".to_owned()),
            Note::Step {
                steps,
                loss,
                tokens_per_second,
                ..
            } => {
                self.steps = Some(*steps);
                self.loss = Some(*loss);
                self.tokens_per_second = tokens_per_second.or(self.tokens_per_second);
                self.reason = None;
            }
            Note::Lost { .. } => self.reason = Some("no connection to the host".to_owned()),
            Note::Reason { text } => self.reason = Some(text.clone()),
            Note::Finish => self.reason = Some("finishing".to_owned()),
            Note::FirstMicrobatch => self.reason = None,
            Note::Start { .. }
            | Note::Prepare { .. }
            | Note::Measured { .. }
            | Note::Link { .. }
            | Note::LinkDisturbed { .. }
            | Note::LinkLost { .. }
            | Note::Trouble { .. }
            | Note::Error { .. }
            | Note::End { .. } => {}
        }
    }

    fn line(&self) -> String {
        let parts = [
            self.round.map(|round| format!("round {round}")),
            self.seat.clone(),
            self.steps.map(|steps| format!("step {steps}")),
            self.tokens_per_second
                .map(|speed| format!("{speed:.0} tokens/s")),
            self.loss.map(|loss| format!("loss {loss:.3}")),
            self.reason.clone(),
        ];
        let known: Vec<String> = parts.into_iter().flatten().collect();
        if known.is_empty() {
            "connecting".to_owned()
        } else {
            known.join(", ")
        }
    }
}

/// Tells notes as the person asked for.
pub struct Reporter {
    format: LogFormat,
    began: Instant,
    bar: ProgressBar,
    status: Status,
    status_printed: Instant,
}

impl Reporter {
    /// A reporter whose clock starts now; on a terminal it keeps a status line.
    pub fn new(format: LogFormat) -> Self {
        let on_terminal = format == LogFormat::Text && std::io::stderr().is_terminal();
        Self::with_status(format, on_terminal)
    }

    /// A reporter that never keeps a status line.
    pub fn without_status(format: LogFormat) -> Self {
        Self::with_status(format, false)
    }

    fn with_status(format: LogFormat, on_terminal: bool) -> Self {
        let bar = if on_terminal {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let template = if no_color() {
                "{spinner} {wide_msg}"
            } else {
                "{spinner:.green} {wide_msg}"
            };
            bar.set_style(
                ProgressStyle::with_template(template).expect("a template of known fields"),
            );
            bar
        } else {
            ProgressBar::hidden()
        };
        Self {
            format,
            began: Instant::now(),
            bar,
            status: Status::default(),
            status_printed: Instant::now(),
        }
    }

    /// For whoever else writes to the terminal: the line must make room.
    pub fn bar(&self) -> ProgressBar {
        self.bar.clone()
    }

    /// Tells a note.
    pub fn say(&mut self, note: &Note) {
        self.status.hear(note);
        match self.format {
            LogFormat::Json => self.print(&self.json(note)),
            LogFormat::Text => {
                if let Some(line) = note.line() {
                    self.print(&printable(&line));
                }
            }
        }
        self.bar
            .set_message(printable(&self.status.line()).into_owned());
        self.bar.tick();
    }

    fn json(&self, note: &Note) -> String {
        let mut value = serde_json::to_value(note).expect("a note has string keys");
        let seconds = (self.began.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        value["seconds"] = seconds.into();
        value.to_string()
    }

    /// To be called every second or so: keeps the status line alive.
    pub fn tick(&mut self) {
        self.bar.tick();
        let due = self.status_printed.elapsed() >= STATUS_EVERY;
        if due && self.bar.is_hidden() && self.format == LogFormat::Text {
            self.status_printed = Instant::now();
            self.print(&self.status.line());
        }
    }

    /// Removes the status line: nothing more is to be told.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn print(&self, line: &str) {
        self.bar.suspend(|| {
            let mut out = std::io::stdout().lock();
            // A reader that went away is no reason to stop training.
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        });
    }
}

/// Text fit for a terminal: a sign in the place of each character that would act on it instead of being
/// read: escape sequences, returns and bells, and what turns the direction of writing.
///
/// For everything that others wrote: the host, other volunteers, a model. Line ends and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    let acts = |one: char| {
        let turns = matches!(one, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        turns || (one.is_control() && one != '\n' && one != '\t')
    };
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let sign = |one: char| match u32::from(one) {
        // Unicode has a picture of each.
        code @ 0..0x20 => {
            char::from_u32(0x2400 + code).expect("all of U+2400 to U+241F are characters")
        }
        0x7f => '\u{2421}',
        _ => char::REPLACEMENT_CHARACTER,
    };
    let shown = text
        .chars()
        .map(|one| if acts(one) { sign(one) } else { one });
    Cow::Owned(shown.collect())
}

/// Whether colours are unwanted, after <https://no-color.org>.
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat() -> Note {
        Note::Seat {
            pipeline: 0,
            epoch: "1.4".to_owned(),
            round: 7,
            first_stage: 2,
            end_stage: 4,
            previous: Some(3),
            next: None,
        }
    }

    #[test]
    fn a_note_is_one_json_object_with_its_event_and_time() {
        let reporter = Reporter::new(LogFormat::Json);
        let value: serde_json::Value = serde_json::from_str(&reporter.json(&seat())).unwrap();
        assert_eq!(value["event"], "seat");
        assert_eq!(value["first_stage"], 2);
        assert_eq!(value["next"], serde_json::Value::Null);
        assert!(value["seconds"].is_number());
    }

    #[test]
    fn the_status_line_tells_what_is_known_and_why_nothing_moves() {
        let mut status = Status::default();
        assert_eq!(status.line(), "connecting");
        let step = Note::Step {
            round: 7,
            steps: 3,
            loss: 2.5,
            tokens_per_second: Some(5_400.4),
        };
        for note in [
            &Note::Commit {
                round: 7,
                ours: true,
            },
            &seat(),
            &step,
        ] {
            status.hear(note);
        }
        assert_eq!(
            status.line(),
            "round 7, stages 2-3, step 3, 5400 tokens/s, loss 2.500"
        );
        status.hear(&Note::Reason {
            text: "waiting for 1 more volunteer".to_owned(),
        });
        assert!(status.line().ends_with("waiting for 1 more volunteer"));
        status.hear(&step);
        assert!(!status.line().contains("waiting"), "a step ends the wait");
    }

    #[test]
    fn what_would_steer_a_terminal_is_not_printed() {
        assert_eq!(
            printable("a\u{1b}[31mb\rc\u{9b}d\te\nf é"),
            "a\u{241b}[31mb\u{240d}c\u{fffd}d\te\nf é"
        );
    }

    #[test]
    fn every_note_but_a_step_is_a_line_for_people() {
        assert_eq!(
            seat().line().unwrap(),
            "seat: stages 2-3, pipeline 0, from round 7"
        );
        let error = Note::Error {
            code: 13,
            text: "gone".to_owned(),
            remedy: "Check the link.".to_owned(),
        };
        assert_eq!(error.line().unwrap(), "error: gone\n  Check the link.");
    }
}
