//! What a browser keeps of a run's states: under which names, and how much of it.
//!
//! A name is the run's hash, what the state is, and its size in bytes, so that the names alone tell how much is kept.
//! Knows no database. A name that this version did not write is none of its own, and is cleared away like
//! the states of other runs.
//!
//! Invariant: what is kept stays below the shelf's size; a state that would not fit is refused.

use std::collections::BTreeMap;

use shared::units::Digest;
use shared::wire::signal::Held;

/// States that are kept of one run, with their sizes.
#[derive(Clone, Debug)]
pub struct Catalogue {
    bytes_max: u64,
    sizes: BTreeMap<Held, u64>,
}

impl Catalogue {
    /// An empty one, for at most so many bytes.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            sizes: BTreeMap::new(),
        }
    }

    /// Takes in the state that a name stands for; `None` if it is of another run.
    pub fn found(&mut self, run: Digest, name: &str) -> Option<Held> {
        let (held, bytes) = parse(run, name)?;
        self.sizes.insert(held, bytes);
        Some(held)
    }

    /// The name of a state that is kept.
    #[must_use]
    pub fn name(&self, run: Digest, held: &Held) -> Option<String> {
        let bytes = self.sizes.get(held)?;
        Some(key(run, held, *bytes))
    }

    /// Makes room for a state; gives its name.
    ///
    /// # Errors
    /// It does not fit: why, in words.
    pub fn admit(&mut self, run: Digest, held: Held, bytes: u64) -> Result<String, String> {
        let others = self.sizes.iter().filter(|(other, _)| **other != held);
        let kept: u64 = others.map(|(_, bytes)| bytes).sum();
        if kept + bytes > self.bytes_max {
            let megabytes = self.bytes_max / 1_000_000;
            return Err(format!(
                "{megabytes}\u{a0}MB are kept already, as much as you lend"
            ));
        }
        self.sizes.insert(held, bytes);
        Ok(key(run, &held, bytes))
    }

    /// It is kept no more; gives the name that it had.
    pub fn forget(&mut self, run: Digest, held: &Held) -> Option<String> {
        let bytes = self.sizes.remove(held)?;
        Some(key(run, held, bytes))
    }
}

fn key(run: Digest, held: &Held, bytes: u64) -> String {
    let held = serde_json::to_string(held).expect("numbers and hashes can be written");
    format!("{run} {held} {bytes}")
}

fn parse(run: Digest, name: &str) -> Option<(Held, u64)> {
    let (of, rest) = name.split_once(' ')?;
    if of.parse() != Ok(run) {
        return None;
    }
    let (held, bytes) = rest.rsplit_once(' ')?;
    Some((serde_json::from_str(held).ok()?, bytes.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use shared::units::{Round, StageId};

    use super::*;

    fn held(round: u32) -> Held {
        Held {
            round: Round(round),
            stage: StageId(3),
            agreed: Digest::of(b"agreed"),
            blob: Digest::of(&round.to_le_bytes()),
        }
    }

    #[test]
    fn a_name_leads_back_to_its_state_and_to_no_other_run() {
        let (run, other) = (Digest::of(b"run"), Digest::of(b"other"));
        let mut catalogue = Catalogue::new(100);
        let name = catalogue.admit(run, held(17), 60).unwrap();
        assert_eq!(catalogue.name(run, &held(17)), Some(name.clone()));
        let mut again = Catalogue::new(100);
        assert_eq!(again.found(other, &name), None);
        assert_eq!(again.found(run, "identity"), None);
        assert_eq!(again.found(run, &format!("{name}x")), None);
        let without_size = name.rsplit_once(' ').unwrap().0;
        assert_eq!(again.found(run, without_size), None, "an older version's");
        assert_eq!(again.found(run, &name), Some(held(17)));
        assert_eq!(again.forget(run, &held(17)), Some(name));
        assert_eq!(again.name(run, &held(17)), None);
    }

    #[test]
    fn what_would_not_fit_is_refused_until_something_goes() {
        let run = Digest::of(b"run");
        let mut catalogue = Catalogue::new(2_000_000);
        let first = catalogue.admit(run, held(1), 1_500_000).unwrap();
        let refused = catalogue.admit(run, held(2), 600_000).unwrap_err();
        assert_eq!(
            refused.replace('\u{a0}', " "),
            "2 MB are kept already, as much as you lend"
        );
        assert_eq!(catalogue.name(run, &held(2)), None);
        // What is found at a start counts as what was written.
        let mut again = Catalogue::new(2_000_000);
        again.found(run, &first).unwrap();
        again.admit(run, held(2), 600_000).unwrap_err();
        again
            .admit(run, held(1), 1_500_000)
            .expect("no second copy");
        again.forget(run, &held(1));
        again.admit(run, held(2), 600_000).expect("there is room");
    }
}
