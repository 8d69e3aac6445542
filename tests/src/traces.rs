//! Traces that volunteers write with `--trace`: read, put into one, and asked what happened when.
//!
//! Knows the form of such a file (Chrome's trace event format, as an array with an event a line) and what its events are
//! called; what they should hold is for the tests and figures that ask. Begin with [`Trace::read`].

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

/// What one volunteer did, or several.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// In the order of the file.
    pub events: Vec<Value>,
}

/// A piece of time on a track that has one thing at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What it was.
    pub name: String,
    /// Microseconds since 1970.
    pub began_us: u64,
    /// Microseconds since 1970.
    pub ended_us: u64,
    /// Round, step and microbatch, where it is about one.
    pub slot: Option<(u64, u64, u64)>,
}

impl Trace {
    /// Reads a file, also one whose writer was killed: what is not whole at its end is left out.
    ///
    /// # Errors
    /// It cannot be read, or is no trace.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| name.to_string())?;
        Self::parse(&text).with_context(|| format!("{name} is no trace"))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let whole = serde_json::from_str(text);
        let events = whole.or_else(|_| serde_json::from_str(&format!("{text}\n]")));
        let events = events.or_else(|error| {
            let (whole, _) = text.rsplit_once(",\n").ok_or(error)?;
            serde_json::from_str(&format!("{whole}\n]"))
        });
        Ok(Self { events: events? })
    }

    /// Puts several into one, which shows as many processes.
    #[must_use]
    pub fn join(traces: Vec<Self>) -> Self {
        let events = traces.into_iter().flat_map(|trace| trace.events);
        Self {
            events: events.collect(),
        }
    }

    /// As a file.
    #[must_use]
    pub fn text(&self) -> String {
        let lines: Vec<String> = self.events.iter().map(Value::to_string).collect();
        format!("[\n{}\n]\n", lines.join(",\n"))
    }

    /// What the volunteer is called.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        let mut events = self.events.iter();
        let named = events.find(|event| event["name"] == "process_name")?;
        named["args"]["name"].as_str()
    }

    /// Spans of a track, such as `compute`, in order of time.
    ///
    /// # Errors
    /// An event lacks what each has.
    pub fn spans(&self, track: &str) -> anyhow::Result<Vec<Span>> {
        let whole = |event: &&Value| event["ph"] == "X" && event["cat"] == track;
        let spans = self.events.iter().filter(whole).map(|event| {
            let field = |name: &str| event[name].as_u64();
            let part = |name: &str| event["args"][name].as_u64();
            let slot = || Some((part("round")?, part("step")?, part("microbatch")?));
            let span = || {
                let began_us = field("ts")?;
                Some(Span {
                    name: event["name"].as_str()?.to_owned(),
                    began_us,
                    ended_us: began_us + field("dur")?,
                    slot: slot(),
                })
            };
            span().with_context(|| format!("no span: {event}"))
        });
        let mut spans = spans.collect::<anyhow::Result<Vec<_>>>()?;
        spans.sort_by_key(|span| (span.began_us, span.ended_us));
        Ok(spans)
    }

    /// When each microbatch's frame of that name was sent or was there, in microseconds since 1970: the first moment of
    /// each event of `track`.
    #[must_use]
    pub fn frames(&self, track: &str, name: &str) -> BTreeMap<(u64, u64, u64), u64> {
        let is_it = |event: &&Value| {
            event["cat"] == track && event["name"] == name && event["args"].is_object()
        };
        let frames = self.events.iter().filter(is_it).filter_map(|event| {
            let part = |name: &str| event["args"][name].as_u64();
            let slot = (part("round")?, part("step")?, part("microbatch")?);
            Some((slot, event["ts"].as_u64()?))
        });
        frames.collect()
    }
}

/// Checks that no two of them overlap. Each must be in order of time.
///
/// # Errors
/// Two do: which.
pub fn follow_each_other(spans: &[Span]) -> anyhow::Result<()> {
    for pair in spans.windows(2) {
        let [one, next] = pair else { continue };
        ensure!(one.ended_us <= next.began_us, "{one:?} overlaps {next:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_breaks_off_anywhere_is_read_as_far_as_it_goes() {
        let line = r#"{"ph":"X","cat":"compute","name":"update","ts":5,"dur":2,"args":{}}"#;
        let whole = format!("[\n{line},\n{line},\n{line}\n]\n");
        let count = |text: &str| Trace::parse(text).map(|trace| trace.events.len());
        assert_eq!(count(&whole).expect("whole"), 3);
        let second = whole.find(line).expect("a line") + line.len() + 2;
        for end in second + line.len()..whole.len() {
            let found = count(&whole[..end]).expect("as far as it goes");
            assert!((1..=3).contains(&found), "{found}");
        }
        assert!(count("no trace").is_err());
    }

    #[test]
    fn spans_that_overlap_are_told() {
        let span = |began_us, ended_us| Span {
            name: "update".to_owned(),
            began_us,
            ended_us,
            slot: None,
        };
        assert!(follow_each_other(&[span(1, 3), span(3, 4), span(9, 9)]).is_ok());
        assert!(follow_each_other(&[span(1, 3), span(2, 4)]).is_err());
    }
}
