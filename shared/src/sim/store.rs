//! The host's store: manifests are written or not, and old ones are cleared away with their blobs.

use std::collections::BTreeSet;

use super::world::World;
use crate::coordinator::history::{Row, only_stored};
use crate::units::{Digest, Round};

/// Newest manifests that are kept. Fewer than a host keeps, so that a run sometimes goes back beyond them.
const MANIFESTS_KEPT: usize = 2;

impl World {
    /// A manifest was written, or the disk was full.
    pub(super) fn end_manifest(&mut self, round: Round) {
        let written = !self.dice.once_in(10);
        let Some(host) = &mut self.host else { return };
        host.handle_manifest(self.now, round, written);
        if written {
            self.stored.insert(round);
            self.clear_away();
        }
    }

    /// Old manifests go, and blobs that nothing names any more, once the host was told.
    fn clear_away(&mut self) {
        let Some(host) = &mut self.host else { return };
        let standing = host.history().manifests();
        let kept: BTreeSet<Round> = standing
            .iter()
            .rev()
            .take(MANIFESTS_KEPT)
            .copied()
            .collect();
        host.handle_manifests_kept(&kept);
        // What is newer may be on its way to a manifest.
        let newest = kept.last().copied();
        let is_kept = |round: Round| kept.contains(&round) || Some(round) > newest;
        let commits = host.history().commits();
        let named: BTreeSet<Digest> = commits
            .filter(|commit| is_kept(commit.round))
            .flat_map(|commit| &commit.stages)
            .map(|held| held.blob)
            .collect();
        self.blobs.retain(|blob, _| named.contains(blob));
        self.stored.retain(|round| kept.contains(round));
    }

    /// The journal as a host reads it at its start: manifests that are gone are left out.
    pub(super) fn stored_rows(&self) -> Vec<Row> {
        only_stored(self.rows.clone(), |round| self.stored.contains(&round))
    }
}
