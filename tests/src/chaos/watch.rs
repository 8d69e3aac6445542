//! What is seen of the run while it lives: commits with their times, what is said, states on disks against the journal.
//!
//! Times are those of the host's events. A commit that the host made just before it was killed may stay untold: then the
//! gap seems longer than it was, never shorter. Nothing is decided here. Begin with [`Watch`].

use std::collections::BTreeMap;

use anyhow::Context;
use serde_json::Value;

use super::report::Report;
use crate::community::Community;
use crate::shelf;

/// What happens to volunteers that a person wants to read of.
const TOLD: [&str; 9] = [
    "gone",
    "silent",
    "left",
    "hung",
    "malformed",
    "non_finite",
    "met_non_finite",
    "malformed_frame",
    "finished",
];

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Newest round that was told.
    pub(super) round: u64,
    began_ms: u64,
    commits_ms: Vec<u64>,
    rewinds: usize,
}

impl Watch {
    /// From now on commits count.
    pub(super) fn begin(&mut self, now_ms: u64) {
        self.began_ms = now_ms;
        self.commits_ms.clear();
    }

    /// Commits so far.
    pub(super) fn commits(&self) -> usize {
        self.commits_ms.len()
    }

    /// Takes what somebody said; gives what a person should read of it. The host is none.
    pub(super) fn hear(&mut self, by: Option<&str>, event: &Value) -> Option<String> {
        let text = event["text"].as_str().unwrap_or_default();
        let kind = event["event"].as_str()?;
        match (by, kind) {
            (None, "commit") => {
                self.round = event["round"].as_u64()?;
                self.commits_ms.push(event["time_ms"].as_u64()?);
                None
            }
            (None, "rewind") => {
                self.rewinds += 1;
                Some(format!("host: the run goes back to round {}", event["to"]))
            }
            (None, "trouble") => Some(format!("host: trouble: {text}")),
            (None, "volunteer") => {
                let told = event["what"]
                    .as_str()
                    .is_some_and(|what| TOLD.contains(&what));
                told.then(|| format!("host: {text}"))
            }
            (Some(name), "trouble" | "error" | "end") => Some(format!("{name}: {kind}: {text}")),
            (None | Some(_), _) => None,
        }
    }

    /// Puts it into the report.
    pub(super) fn tell(self, report: &mut Report) {
        report.commits(self.began_ms, &self.commits_ms);
        report.rewinds = self.rewinds;
    }
}

/// Holds each state on the volunteers' disks to the commit of its round: what is agreed on is the same everywhere, and
/// with one pipeline all of it. Gives how many were compared, and what differs.
///
/// What is not committed yet is there, too. Who was away may still have what it would have committed: what differs once
/// is wrong only if it is there for long.
///
/// # Errors
/// The journal cannot be read.
pub(super) fn compare_states(
    community: &Community,
    names: impl Iterator<Item = &'static str>,
    pipelines: u16,
) -> anyhow::Result<(usize, Vec<String>)> {
    // First the disks: what is committed of it stays in the journal.
    let mut kept = Vec::new();
    for name in names {
        // Who has just begun keeps nothing yet.
        let states = shelf::kept(&community.host.identity(name)).unwrap_or_default();
        kept.extend(states.into_iter().map(|state| (name, state)));
    }
    let output = community.host.auditor()?.arg("--rows").output()?;
    let rows = String::from_utf8_lossy(&output.stdout);
    let (committed, mut wrong) = committed(&rows)?;
    let mut compared = 0;
    for (name, state) in &kept {
        let (round, stage) = (state.round, state.stage);
        let Some((agreed, blob)) = committed.get(&(round, stage)) else {
            continue;
        };
        compared += 1;
        if *agreed != state.agreed || (pipelines == 1 && *blob != state.blob) {
            wrong.push(format!(
                "{name} keeps another stage {stage} of round {round} than was committed"
            ));
        }
    }
    Ok((compared, wrong))
}

/// Hashes of what was committed, by round and stage.
type Committed = BTreeMap<(u64, u64), (String, String)>;

/// Reads the commits out of a journal's rows; with what replicas do not agree on, where a row has more than one of a stage.
fn committed(rows: &str) -> anyhow::Result<(Committed, Vec<String>)> {
    let mut committed = Committed::new();
    let mut wrong = Vec::new();
    for line in rows.lines() {
        let row: Value = serde_json::from_str(line).context("rows are JSON")?;
        if row["row"] != "commit" {
            continue;
        }
        for held in row["stages"].as_array().context("a commit has stages")? {
            let number = |name: &str| held[name].as_u64().context("a state has a number");
            let hash = |name: &str| held[name].as_str().context("a state has a hash");
            let key = (number("round")?, number("stage")?);
            let hashes = (hash("agreed")?.to_owned(), hash("blob")?.to_owned());
            let agreed = hashes.0.clone();
            let before = committed.insert(key, hashes);
            if before.is_some_and(|before| before.0 != agreed) {
                let (round, stage) = key;
                wrong.push(format!("replicas of stage {stage} differ in round {round}"));
            }
        }
    }
    Ok((committed, wrong))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::committed;

    #[test]
    fn replicas_that_differ_in_what_is_agreed_on_are_found() {
        let held = |agreed: &str, blob: &str| json!({ "round": 3, "stage": 1, "agreed": agreed, "blob": blob });
        let rows = |both: [serde_json::Value; 2]| {
            format!(
                "{}\n{}\n",
                json!({ "row": "started" }),
                json!({ "row": "commit", "stages": both })
            )
        };
        let (states, wrong) = committed(&rows([held("a", "b"), held("a", "c")])).expect("rows");
        assert_eq!((states.len(), wrong), (1, vec![]));
        let (_, wrong) = committed(&rows([held("a", "b"), held("d", "b")])).expect("rows");
        assert_eq!(wrong, ["replicas of stage 1 differ in round 3"]);
    }
}
