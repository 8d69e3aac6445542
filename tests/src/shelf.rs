//! What volunteers keep over a restart, as it lies on the disk: one folder a run, one file a state.
//!
//! Knows the files' names (`round-stage-hash-hash`) and nothing of what is in them. Begin with [`kept`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// A state on a volunteer's shelf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptState {
    /// Its file.
    pub path: PathBuf,
    /// Round that it begins.
    pub round: u64,
    /// Stage that it is of.
    pub stage: u64,
    /// Hash of what all replicas agree on, in hexadecimal.
    pub agreed: String,
    /// Hash of all of it, in hexadecimal.
    pub blob: String,
}

/// The folder beside an identity's file in which its states lie.
#[must_use]
pub fn folder(identity: &Path) -> PathBuf {
    let mut name = identity.file_name().unwrap_or_default().to_owned();
    name.push(".kept");
    identity.with_file_name(name)
}

/// The folders of single runs under it.
///
/// # Errors
/// There is none.
pub fn runs(identity: &Path) -> anyhow::Result<Vec<PathBuf>> {
    list(&folder(identity))
}

/// All whole states that an identity keeps of any run.
///
/// # Errors
/// It keeps none.
pub fn kept(identity: &Path) -> anyhow::Result<Vec<KeptState>> {
    let mut states = Vec::new();
    for run in runs(identity)? {
        states.extend(list(&run)?.into_iter().filter_map(parse));
    }
    Ok(states)
}

/// The newest round up to `newest` of which each of so many stages is among `states`; 0, which follows from the seed, if
/// there is none.
#[must_use]
pub fn newest_whole(states: &[KeptState], stages: usize, newest: u64) -> u64 {
    let mut rounds: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for state in states.iter().filter(|state| state.round <= newest) {
        rounds.entry(state.round).or_default().insert(state.stage);
    }
    let mut newest_first = rounds.iter().rev();
    newest_first
        .find(|(_, held)| held.len() == stages)
        .map_or(0, |(round, _)| *round)
}

fn list(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn parse(path: PathBuf) -> Option<KeptState> {
    let name = path.file_name()?.to_str()?.to_owned();
    let mut parts = name.split('-');
    let (round, stage) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    // Two hashes follow; a draft ends otherwise.
    let (agreed, blob) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let is_whole = blob.len() == 64 && parts.next().is_none();
    is_whole.then_some(KeptState {
        path,
        round,
        stage,
        agreed,
        blob,
    })
}

#[cfg(test)]
mod tests {
    use super::{KeptState, newest_whole};

    #[test]
    fn the_newest_whole_round_is_one_that_is_committed_and_has_all_stages() {
        let states =
            [(3, 0), (3, 1), (4, 0), (4, 1), (5, 0), (6, 0), (6, 1)].map(|(round, stage)| {
                KeptState {
                    path: "state".into(),
                    round,
                    stage,
                    agreed: String::new(),
                    blob: String::new(),
                }
            });
        assert_eq!(newest_whole(&states, 2, 6), 6);
        assert_eq!(newest_whole(&states, 2, 5), 4);
        assert_eq!(newest_whole(&states, 2, 2), 0);
        assert_eq!(newest_whole(&states, 3, 6), 0);
    }
}
