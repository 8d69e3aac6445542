//! Which rounds would survive a loss: copies at other volunteers, manifests in the store.
//!
//! One round at a time is *secured*: copied until two volunteers hold each stage, and uploaded when a checkpoint
//! is due. Training never waits for it. Volunteers keep the newest round, the safe one and the one
//! being secured.

use std::collections::{BTreeMap, BTreeSet};

use super::history::Row;
use super::{Awaited, Coordinator, Manifest, Output};
use crate::limits::{CHECKPOINT_RETRY, COPY_MAX, UPLOAD_MAX};
use crate::units::{Digest, PeerId, Round, StageId, Time};
use crate::wire::signal::{Down, Held};

/// Volunteers that are to keep each stage: the loss of any one is survived.
const COPIES_MIN: usize = 2;

/// A round on its way to be safe.
#[derive(Clone, Debug)]
pub(super) struct Securing {
    round: Round,
    until: Time,
    /// Stages that are to be uploaded and are not stored yet.
    uploads: BTreeMap<StageId, Asked>,
    /// What is stored of it by now.
    stored: BTreeMap<StageId, Held>,
    /// Whether a checkpoint is wanted.
    checkpoint: bool,
    /// Whether all its blobs are stored and the manifest is being written.
    writing: bool,
}

/// An upload that somebody was asked for.
#[derive(Clone, Debug)]
struct Asked {
    ticket: String,
    holder: PeerId,
    held: Held,
}

impl Coordinator {
    /// Hash of the blob that the store has of a state.
    pub(super) fn stored_blob(&self, round: Round, stage: StageId) -> Option<Digest> {
        let stored = self.history.manifests().get(&round)?;
        Some(stored.get(usize::from(stage.0))?.blob)
    }

    /// Whether the store can give the whole round.
    pub(super) fn has_manifest(&self, round: Round) -> bool {
        #[cfg(any(test, feature = "sim"))]
        if self.broken.void_manifest {
            return true;
        }
        round.0 == 0 || self.history.manifests().contains_key(&round)
    }

    pub(super) fn securing_round(&self) -> Option<Round> {
        self.securing.as_ref().map(|securing| securing.round)
    }

    pub(super) fn stop_securing(&mut self) {
        self.securing = None;
    }

    /// Begins to secure the newest round, unless one is under way; `at_once` asks for a checkpoint too.
    pub(super) fn secure(&mut self, now: Time, at_once: bool) {
        let newest = self.history.newest();
        let every = self.config().schedule.checkpoint;
        let is_due = self
            .manifest_tried
            .is_none_or(|tried| now.since(tried) >= every);
        let is_under_way = match &self.securing {
            Some(securing) if at_once => securing.round == newest && securing.checkpoint,
            // Copies that nobody is there to make don't hold up a checkpoint.
            Some(securing) => securing.checkpoint || !is_due,
            None => false,
        };
        let has_just_failed = self
            .manifest_failed
            .is_some_and(|failed| now.since(failed) < CHECKPOINT_RETRY);
        if is_under_way
            || newest.0 == 0
            || self.safe == newest && !at_once
            || at_once && has_just_failed
        {
            return;
        }
        let checkpoint = at_once || is_due;
        self.securing = Some(Securing {
            round: newest,
            until: now + UPLOAD_MAX,
            uploads: BTreeMap::new(),
            stored: BTreeMap::new(),
            checkpoint,
            writing: false,
        });
        self.say_safe();
        if checkpoint {
            self.manifest_tried = Some(now);
            self.order_uploads();
        }
        self.order_copies(now);
    }

    fn say_safe(&mut self) {
        let (round, securing) = (self.safe, self.securing_round());
        self.tell_all(&Down::Safe { round, securing });
    }

    /// Asks one holder of each stage to upload it; if a stage has none, there is no checkpoint now.
    fn order_uploads(&mut self) {
        let round = self.securing_round();
        let Some(commit) = round.and_then(|round| self.history.get(round)) else {
            return;
        };
        let stages = commit.stages.clone();
        if stages.iter().all(|held| self.uploader(held).is_some()) {
            for held in stages {
                self.order_upload(held);
            }
        } else {
            self.manifest_tried = None;
            if let Some(securing) = &mut self.securing {
                securing.checkpoint = false;
            }
        }
    }

    /// Who is asked for an upload: of the holders, whoever left the fewest undone.
    fn uploader(&self, held: &Held) -> Option<PeerId> {
        let holders = self.roster.holders(held).map(|holder| holder.peer);
        holders.min_by_key(|peer| (self.undone_uploads.get(peer).copied(), *peer))
    }

    /// Asks a holder of that state to upload it. Whether there is one.
    fn order_upload(&mut self, held: Held) -> bool {
        self.tickets += 1;
        let ticket = self.ticket();
        let holder = self.uploader(&held);
        let blob = holder.and_then(|it| self.roster.get(it)?.blob_of(held.round, held.stage));
        let (Some(holder), Some(blob), Some(securing)) = (holder, blob, &mut self.securing) else {
            return false;
        };
        let held = Held { blob, ..held };
        let deadline = securing.until;
        let asked = Asked {
            ticket: ticket.clone(),
            holder,
            held,
        };
        securing.uploads.insert(held.stage, asked);
        self.out(Output::ExpectUpload {
            ticket: ticket.clone(),
            held,
            deadline,
        });
        self.tell(holder, Down::Upload { held, ticket });
        true
    }

    /// An upload will not come from whom it was asked of: another holder is asked. If there is none, the checkpoint is
    /// tried again later.
    fn reorder_upload(&mut self, stage: StageId) {
        let round = self.securing_round();
        let commit = round.and_then(|round| self.history.get(round));
        let held = commit.map(|commit| commit.stages[usize::from(stage.0)]);
        if !held.is_some_and(|held| self.order_upload(held)) {
            self.securing = None;
            self.manifest_tried = None;
        }
    }

    /// Whose upload of which stage is to come with that ticket.
    fn expected_with(&self, ticket: &str) -> Option<(StageId, PeerId)> {
        let mut uploads = self.securing.iter().flat_map(|it| &it.uploads);
        let expected = uploads.find(|(_, asked)| asked.ticket == ticket);
        expected.map(|(stage, asked)| (*stage, asked.holder))
    }

    fn ticket(&self) -> String {
        let mut message = b"ticket".to_vec();
        message.extend_from_slice(&self.tickets.to_le_bytes());
        Digest(*blake3::keyed_hash(&self.start.secret, &message).as_bytes()).to_string()
    }

    /// A blob was stored under this ticket, and its hash is right.
    pub fn handle_stored(&mut self, now: Time, ticket: &str) {
        let expected = self.expected_with(ticket);
        let Some(securing) = &mut self.securing else {
            return;
        };
        let round = securing.round;
        if let Some((stage, holder)) = expected {
            if let Some(asked) = securing.uploads.remove(&stage) {
                securing.stored.insert(stage, asked.held);
            }
            self.undone_uploads.remove(&holder);
        }
        if securing.uploads.is_empty() && securing.checkpoint && !securing.writing {
            securing.writing = true;
            self.write_manifest(round);
        }
        self.reconsider(now);
    }

    /// The store could not take the upload with this ticket: the checkpoint is given up, and the old one stands.
    pub fn handle_not_stored(&mut self, now: Time, ticket: &str) {
        let round = self.securing_round();
        if let (Some(round), Some(_)) = (round, self.expected_with(ticket)) {
            self.handle_manifest(now, round, false);
        }
    }

    /// What came with this ticket is not the state it was made for: whoever sent it does not hold that, and another
    /// holder is asked.
    pub fn handle_not_held(&mut self, now: Time, ticket: &str) {
        if let (Some(round), Some((stage, holder))) =
            (self.securing_round(), self.expected_with(ticket))
        {
            self.roster.drop_kept(holder, round, stage);
            self.reorder_upload(stage);
            self.reconsider(now);
        }
    }

    /// A volunteer does not have a state; if it was to upload it, another one is asked.
    pub(super) fn upload_is_missing(&mut self, peer: PeerId, (round, stage): (Round, StageId)) {
        let is_asked = self.securing.as_ref().is_some_and(|securing| {
            let asked = securing.uploads.get(&stage);
            securing.round == round && asked.is_some_and(|asked| asked.holder == peer)
        });
        if is_asked {
            self.reorder_upload(stage);
        }
    }

    /// What was stored of the round being secured, in order of stages.
    fn stored_stages(&self) -> Vec<Held> {
        let stored = self.securing.iter().flat_map(|it| it.stored.values());
        stored.copied().collect()
    }

    fn write_manifest(&mut self, round: Round) {
        let Some(commit) = self.history.get(round) else {
            return;
        };
        let manifest = Manifest {
            round,
            parent: commit.parent,
            config: self.config().digest(),
            data: self.start.data.digest,
            stages: self.stored_stages(),
        };
        self.out(Output::WriteManifest(manifest));
    }

    /// A manifest is in the store, or (`written` false) could not be written: then the old one stands.
    pub fn handle_manifest(&mut self, now: Time, round: Round, written: bool) {
        let stands = self.history.get(round).is_some() && !self.is_being_voided(round);
        if written && stands && self.securing_round() == Some(round) {
            let stages = self.stored_stages();
            self.note(Row::Manifest { round, stages });
        }
        if let Some(securing) = self
            .securing
            .as_mut()
            .filter(|securing| securing.round == round)
        {
            securing.checkpoint = false;
            securing.writing = false;
            securing.uploads.clear();
            securing.stored.clear();
        }
        self.manifest_failed = (!written).then_some(now);
        self.judge_safety(now);
        self.reconsider(now);
    }

    /// Whether a rewind that makes `round` void is on its way to the disk: nothing of it may be journaled behind that.
    fn is_being_voided(&self, round: Round) -> bool {
        self.awaited.iter().any(
            |(_, awaited)| matches!(awaited, Awaited::Rewind(Row::Rewind { to }) if *to < round),
        )
    }

    /// The store is about to clear away all manifests but these: nothing may be promised from the others.
    pub fn handle_manifests_kept(&mut self, kept: &BTreeSet<Round>) {
        self.history.retain_manifests(kept);
    }

    /// Orders copies of the round being secured: fewest copies first, one at a time a volunteer.
    fn order_copies(&mut self, now: Time) {
        let Some(round) = self.securing_round() else {
            return;
        };
        let Some(commit) = self.history.get(round) else {
            return;
        };
        let few = commit.stages.iter().filter_map(|held| {
            let count = self.roster.holders(held).count();
            (count < COPIES_MIN).then_some((count, *held))
        });
        let mut copies: Vec<(usize, Held)> = few.collect();
        if copies.is_empty() {
            return;
        }
        for (copy, _) in self.roster.iter().filter_map(|volunteer| volunteer.copying) {
            let is_it = |held: &Held| (held.round, held.stage) == (copy.round, copy.stage);
            if let Some((count, _)) = copies.iter_mut().find(|(_, held)| is_it(held)) {
                *count += 1;
            }
        }
        let free: Vec<PeerId> = self
            .roster
            .iter()
            .filter(|volunteer| {
                volunteer.connection.is_some()
                    && volunteer.copying.is_none()
                    && !volunteer.wants_out()
            })
            .map(|volunteer| volunteer.peer)
            .collect();
        for peer in free {
            copies.retain(|(count, _)| (1..COPIES_MIN).contains(count));
            if copies.is_empty() {
                return;
            }
            copies.sort_by_key(|(count, held)| (*count, held.stage));
            let wanted = copies
                .iter_mut()
                .find(|(_, held)| self.can_copy(peer, held));
            let Some((count, held)) = wanted else {
                continue;
            };
            *count += 1;
            self.order_copy(now, peer, *held);
        }
    }

    /// Whether a volunteer may be asked for a copy: it has room, does not have it, and there is a source that it
    /// has not failed with.
    fn can_copy(&self, peer: PeerId, held: &Held) -> bool {
        let Some(volunteer) = self.roster.get(peer) else {
            return false;
        };
        let at = (held.round, held.stage);
        let is_new = |source: PeerId| !self.missing.has_failed(at, source, &volunteer.key);
        let mut holders = self.roster.holders(held).map(|holder| holder.peer);
        !volunteer.keeps(held)
            && self.has_room(peer, held.stage)
            && (self.has_manifest(held.round) || holders.any(is_new))
    }

    /// Whether a volunteer's memory holds one more state beside its seat's and its copies.
    fn has_room(&self, peer: PeerId, stage: StageId) -> bool {
        let Some(volunteer) = self.roster.get(peer) else {
            return false;
        };
        let bytes = |stage: StageId| self.start.costs.state_bytes(stage);
        let kept: u64 = volunteer.kept.keys().map(|(_, stage)| bytes(*stage)).sum();
        let seat = self.pipelines.seat(peer);
        let seated: u64 = seat
            .iter()
            .flat_map(|seat| seat.row.stages.iter())
            .map(bytes)
            .sum();
        // The seat at work, and the result of its round that is not committed yet.
        kept + 2 * seated + bytes(stage) <= volunteer.capabilities.memory_bytes
    }

    fn order_copy(&mut self, now: Time, peer: PeerId, held: Held) {
        let fetch = self.fetch(held.round, held.stage, peer);
        let keys = self.keys(std::slice::from_ref(&fetch));
        keys.iter()
            .for_each(|source| self.conduct.introduce(peer, source.peer));
        if let Some(volunteer) = self.roster.get_mut(peer) {
            volunteer.copying = Some((held, now + COPY_MAX));
        }
        self.tell(peer, Down::Copy { fetch, keys });
    }

    /// A volunteer has a copy.
    pub(super) fn copied(&mut self, peer: PeerId, held: Held) {
        let is_held = |one: &Held| (one.stage, one.agreed) == (held.stage, held.agreed);
        let commit = self.history.get(held.round);
        let stands = commit.is_some_and(|commit| commit.stages.iter().any(is_held));
        let Some(volunteer) = self.roster.get_mut(peer) else {
            return;
        };
        let at = (held.round, held.stage);
        if volunteer
            .copying
            .is_some_and(|(copy, _)| (copy.round, copy.stage) == at)
        {
            volunteer.copying = None;
        }
        if stands {
            self.roster.keep(peer, &held);
        }
        self.missing.found((held.round, held.stage));
    }

    /// A volunteer is gone: others that hold what it was to upload are asked.
    pub(super) fn drop_uploads_of(&mut self, peer: PeerId) {
        self.undone_uploads.remove(&peer);
        let uploads = self.securing.iter().flat_map(|it| &it.uploads);
        let asked = uploads.filter(|(_, asked)| asked.holder == peer);
        let stages: Vec<StageId> = asked.map(|(stage, _)| *stage).collect();
        for stage in stages {
            self.reorder_upload(stage);
        }
    }

    /// What was to be secured is not secured in time. Who did not upload is asked after others next time, and is not
    /// believed where somebody else could not get the state from it either.
    fn give_up_securing(&mut self) {
        let Some(securing) = self.securing.take() else {
            return;
        };
        for (stage, Asked { holder, .. }) in securing.uploads {
            *self.undone_uploads.entry(holder).or_default() += 1;
            if self.missing.is_doubted((securing.round, stage), holder) {
                self.roster.drop_kept(holder, securing.round, stage);
            }
        }
        self.say_safe();
    }

    /// Looks at what is being secured.
    pub(super) fn check_durability(&mut self, now: Time) {
        for volunteer in self.roster.iter_mut() {
            volunteer.copying.take_if(|(_, until)| now >= *until);
        }
        self.judge_safety(now);
        if self
            .securing
            .as_ref()
            .is_some_and(|securing| now >= securing.until)
        {
            self.give_up_securing();
        }
        self.order_copies(now);
        let is_anyone_finishing = self.roster.finishing().next().is_some();
        if is_anyone_finishing && !self.has_manifest(self.history.newest()) && self.is_at_rest() {
            self.secure(now, true);
        }
    }

    /// Whether no round is under way that would soon be newer.
    fn is_at_rest(&self) -> bool {
        self.pipelines.is_empty()
    }

    /// Finds out whether a later round became safe.
    fn judge_safety(&mut self, now: Time) {
        let newest_safe = self
            .history
            .newest_first()
            .map(|commit| commit.round)
            .take_while(|round| *round > self.safe)
            .find(|round| self.survives_one(*round));
        let secured = self.securing.as_ref().is_some_and(|securing| {
            self.survives_one(securing.round) && !securing.checkpoint && !securing.writing
        });
        if secured {
            self.securing = None;
        }
        if let Some(round) = newest_safe {
            self.safe = round;
            self.say_safe();
            self.forget_old_copies();
        } else if secured {
            self.say_safe();
        }
        if self.securing.is_none() {
            self.secure(now, false);
        }
    }

    /// The rounds of which volunteers keep states: all of them go by this rule.
    pub(super) fn kept_rounds(&self) -> impl Fn(Round) -> bool + use<> {
        let (newest, safe, securing) = (self.history.newest(), self.safe, self.securing_round());
        move |round| round >= newest || round == safe || Some(round) == securing
    }

    /// The round that volunteers keep beside the newest one, so that it can be gone back to.
    #[cfg(any(test, feature = "sim"))]
    pub fn safe(&self) -> Round {
        self.safe
    }

    /// Drops from the books what volunteers drop.
    pub(super) fn forget_old_copies(&mut self) {
        let is_kept = self.kept_rounds();
        self.roster.retain_rounds(&is_kept);
        self.missing.retain_rounds(is_kept);
    }

    /// Rounds that survive the loss of any one volunteer, and of all of them, as it is now: whoever held a copy may have
    /// left since.
    pub fn survivable(&self) -> (Round, Round) {
        let all = self.history.newest_manifest();
        let any_one = self
            .history
            .newest_first()
            .map(|commit| commit.round)
            .take_while(|round| *round > all)
            .find(|round| self.survives_one(*round));
        (any_one.unwrap_or(all), all)
    }

    /// Whether a round is in the store, or at two volunteers that are here.
    fn survives_one(&self, round: Round) -> bool {
        let Some(commit) = self.history.get(round) else {
            return false;
        };
        self.history.manifests().contains_key(&round)
            || commit
                .stages
                .iter()
                .all(|held| self.roster.holders(held).count() >= COPIES_MIN)
    }

    /// Peers that hold copies, by stage of the newest round: for the page and metrics.
    pub fn stage_copies(&self) -> Vec<usize> {
        let Some(commit) = self.history.get(self.history.newest()) else {
            return Vec::new();
        };
        commit
            .stages
            .iter()
            .map(|held| self.roster.holders(held).count())
            .collect()
    }
}
