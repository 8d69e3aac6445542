//! What becomes of a world: what it went through, or the first rule that was broken.

/// What a world went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Rounds that stand at its end.
    pub rounds: u32,
    /// Times that the run went back.
    pub rewinds: u32,
    /// Rounds of them that several pipelines trained.
    pub merges: u32,
    /// Line-ups.
    pub line_ups: u32,
    /// Faults.
    pub faults: u32,
    /// Messages and frames that came twice.
    pub echoes: u32,
    /// Texts that were written to their end, and those that were given up.
    pub texts: u32,
    /// See before.
    pub texts_given_up: u32,
    /// Tokens of them.
    pub tokens_written: u32,
    /// Starts of the host.
    pub incarnations: u32,
}

/// A rule was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}, at {at_ms} ms: {what}")]
pub struct Failure {
    /// Replays it.
    pub seed: u64,
    /// Virtual time.
    pub at_ms: u64,
    /// What was wrong.
    pub what: String,
}
