//! What the host says on its standard output: sentences for a person, or with `--json` an object a line.
//!
//! Nothing else writes there. Logs go to stderr.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use shared::coordinator::history::CommitRow;
use shared::coordinator::incident::Incident;
use shared::units::Round;
use shared::wire::report::Proposal;

/// Where announcements go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// Sentences.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a person is told at the start.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The link that volunteers use.
    pub link: String,
    /// What is trained, on what.
    pub run: String,
    /// Whether others can use the link, and what to do if not.
    pub reach: String,
}

impl Announce {
    fn line(self, text: &str) {
        let mut out = std::io::stdout().lock();
        // Whoever read this is gone; the run goes on without being watched.
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    /// An object a line. Each bears the time, in milliseconds since 1970: two programs' events can be compared.
    fn event(self, mut value: Value) {
        let passed = SystemTime::now().duration_since(UNIX_EPOCH);
        let passed = passed.unwrap_or_default().as_millis();
        value["time_ms"] = u64::try_from(passed).unwrap_or(u64::MAX).into();
        self.line(&value.to_string());
    }

    /// The host listens.
    pub fn listening(self, opening: &Opening) {
        match self {
            Self::Json => self.event(json!({ "event": "listening", "url": opening.link })),
            Self::Text => {
                self.line(&opening.run);
                self.line(&format!("link    {}", opening.link));
                self.line(&format!("        {}", opening.reach));
                self.line(&format!("join    shoal join {}", opening.link));
                self.line(
                    "public  whoever has the link can read the data's text, the weights and the names of volunteers",
                );
            }
        }
    }

    /// A gateway listens.
    pub fn gateway_listening(self, url: &str, run: &str) {
        match self {
            Self::Json => self.event(json!({ "event": "listening", "url": url })),
            Self::Text => self.line(&format!("gateway of '{run}' at {url}/ws")),
        }
    }

    /// A gateway's way to the host is open, or (with the reason) closed.
    pub fn way(self, closed: Option<&str>) {
        match (self, closed) {
            (Self::Json, closed) => {
                let event = if closed.is_some() { "away" } else { "open" };
                self.event(json!({ "event": event, "text": closed }));
            }
            (Self::Text, None) => self.line("the host is there: volunteers may come"),
            (Self::Text, Some(text)) => self.line(&format!(
                "the host is away: {text}. All volunteers were disconnected; the way is looked for by itself"
            )),
        }
    }

    /// A round was committed.
    pub fn commit(
        self,
        commit: &CommitRow,
        validation_loss: Option<f64>,
        samples_done: u64,
        volunteers: usize,
    ) {
        let seconds = commit.elapsed_us as f64 / 1e6;
        match self {
            Self::Json => self.event(json!({
                "event": "commit",
                "round": commit.round,
                "loss": commit.loss,
                "validation_loss": validation_loss,
                "samples": samples_done,
                "seconds": seconds,
                "volunteers": volunteers,
            })),
            Self::Text => self.line(&format!(
                "round {}: loss {:.3}, {samples_done} samples, {seconds:.1} s, {volunteers} volunteers",
                commit.round, commit.loss
            )),
        }
    }

    /// A round was evaluated.
    pub fn evaluated(self, round: Round, loss: f64) {
        match self {
            Self::Json => {
                self.event(json!({ "event": "evaluated", "round": round, "validation_loss": loss }))
            }
            Self::Text => self.line(&format!("round {round}: held-out loss {loss:.3}")),
        }
    }

    /// The run went back.
    pub fn rewind(self, to: Round) {
        match self {
            Self::Json => self.event(json!({ "event": "rewind", "to": to })),
            Self::Text => self.line(&format!(
                "the state after round {to} is lost with all its copies: the run goes on from there"
            )),
        }
    }

    /// Something happened to a volunteer.
    pub fn incident(self, incident: &Incident) {
        match self {
            Self::Json => self.event(json!({
                "event": "volunteer",
                "what": incident.what.word(),
                "peer": incident.peer,
                "name": incident.name,
                "text": incident.to_string(),
            })),
            Self::Text => self.line(&incident.to_string()),
        }
    }

    /// Another number of microbatches is better.
    pub fn proposal(self, proposal: &Proposal) {
        match self {
            Self::Json => self.event(json!({
                "event": "proposal",
                "microbatches": proposal.microbatches,
                "sequences": proposal.sequences,
                "shorter_percent": proposal.shorter_percent,
            })),
            Self::Text => self.line(&proposal.to_string()),
        }
    }

    /// The host cannot do its work, or (`None`) can again.
    pub fn trouble(self, text: Option<&str>) {
        match (self, text) {
            (Self::Json, text) => self.event(json!({ "event": "trouble", "text": text })),
            (Self::Text, Some(text)) => self.line(text),
            (Self::Text, None) => self.line("the disk takes everything again"),
        }
    }

    /// A checkpoint is in the store.
    pub fn checkpoint(self, round: Round) {
        match self {
            Self::Json => self.event(json!({ "event": "checkpoint", "round": round })),
            Self::Text => self.line(&format!("round {round} is in the store")),
        }
    }
}
