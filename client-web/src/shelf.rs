//! Names under which a browser keeps the states of a run: the run's hash, then what the state is.
//!
//! Knows no database. A name that this version did not write is none of its own, and is cleared away like
//! the states of other runs.

use shared::units::Digest;
use shared::wire::signal::Held;

/// The name of a state.
#[must_use]
pub fn key(run: Digest, held: &Held) -> String {
    let held = serde_json::to_string(held).expect("numbers and hashes can be written");
    format!("{run} {held}")
}

/// The state of `run` that a name stands for; `None` if it is of another run.
#[must_use]
pub fn parse(run: Digest, key: &str) -> Option<Held> {
    let (of, held) = key.split_once(' ')?;
    if of.parse() != Ok(run) {
        return None;
    }
    serde_json::from_str(held).ok()
}

#[cfg(test)]
mod tests {
    use shared::units::{Round, StageId};

    use super::*;

    #[test]
    fn a_name_leads_back_to_its_state_and_to_no_other_run() {
        let held = Held {
            round: Round(17),
            stage: StageId(3),
            agreed: Digest::of(b"agreed"),
            blob: Digest::of(b"blob"),
        };
        let (run, other) = (Digest::of(b"run"), Digest::of(b"other"));
        let key = key(run, &held);
        assert_eq!(parse(run, &key), Some(held));
        assert_eq!(parse(other, &key), None);
        assert_eq!(parse(run, &format!("{key}0")), None);
        assert_eq!(parse(run, "identity"), None);
    }
}
