//! The host's store: manifests are written or not, and old ones are cleared away with their blobs.

use std::collections::{BTreeMap, BTreeSet};

use super::world::World;
use crate::coordinator::history::{Row, only_stored};
use crate::units::{Digest, Round};
use crate::wire::signal::Held;

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
        let standing = host.history().manifests().clone();
        let newest_first = standing.keys().rev().copied();
        let kept: BTreeSet<Round> = newest_first.take(MANIFESTS_KEPT).collect();
        host.handle_manifests_kept(&kept);
        let (kept_ones, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = standing
            .into_iter()
            .partition(|(round, _)| kept.contains(round));
        let blobs = |of: &BTreeMap<Round, Vec<Held>>| -> BTreeSet<Digest> {
            of.values().flatten().map(|held| held.blob).collect()
        };
        // What nothing names may be on its way to a manifest.
        let (named, gone) = (blobs(&kept_ones), blobs(&gone));
        self.blobs
            .retain(|blob, _| named.contains(blob) || !gone.contains(blob));
        self.stored.retain(|round| kept.contains(round));
    }

    /// The journal as a host reads it at its start: manifests that are gone are left out.
    pub(super) fn stored_rows(&self) -> Vec<Row> {
        only_stored(self.rows.clone(), |round| self.stored.contains(&round))
    }
}
