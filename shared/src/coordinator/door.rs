//! Who is let in, and who is gone.

use std::collections::{BTreeMap, BTreeSet};

use super::incident::What;
use super::pipeline::Phase;
use super::roster::{ConnectionId, Volunteer, presentable};
use super::{Coordinator, Output};
use crate::limits::{AWAY_MAX, LINKS_MAX, VOLUNTEERS_MAX};
use crate::schedule::placement::Measured;
use crate::units::{Digest, PeerId, StageId, Time};
use crate::wire::frame::{BUILD, VERSION};
use crate::wire::signal::{
    Capabilities, Down, Held, Join, LinkFigures, Pause, RefuseCode, Resume, Welcome, join_message,
    verifies,
};

/// What whoever misbehaved for good is told.
const REMOVED: &str = "this volunteer is removed from the run: two others received from it what no correct build sends";

impl Coordinator {
    /// A connection is open: the host speaks first.
    pub fn handle_connected(&mut self, connection: ConnectionId) {
        self.roster.connect(connection);
        let nonce = self.nonce(connection);
        let config = Box::new(self.config().clone());
        self.out(Output::Send(
            connection,
            Down::Hello {
                version: VERSION,
                nonce,
                config,
            },
        ));
    }

    fn nonce(&self, connection: ConnectionId) -> Digest {
        let mut message = b"nonce".to_vec();
        message.extend_from_slice(&connection.0.to_le_bytes());
        Digest(*blake3::keyed_hash(&self.start.secret, &message).as_bytes())
    }

    fn refuse(&mut self, connection: ConnectionId, code: RefuseCode, text: String, remedy: String) {
        self.out(Output::Send(
            connection,
            Down::Refuse { code, text, remedy },
        ));
        self.roster.disconnect(connection);
        self.out(Output::Close(connection));
    }

    /// Somebody spoke before joining.
    pub(super) fn refuse_silent(&mut self, connection: ConnectionId) {
        if self.roster.is_waiting(connection) {
            let text = "the first message must be `join`".to_owned();
            self.refuse(connection, RefuseCode::Malformed, text, install());
        }
    }

    /// A message that could not be read.
    pub fn handle_malformed(&mut self, now: Time, connection: ConnectionId, reason: String) {
        let peer = self.roster.speaker(connection);
        self.refuse(connection, RefuseCode::Malformed, reason, install());
        if let Some(peer) = peer {
            self.lose(peer, What::Malformed);
        }
        self.reconsider(now);
    }

    pub(super) fn join(&mut self, now: Time, connection: ConnectionId, join: Join) {
        if !self.roster.is_waiting(connection) {
            return;
        }
        if let Some((code, text, remedy)) = self.objection(connection, &join) {
            return self.refuse(connection, code, text, remedy);
        }
        let known = join
            .resume
            .as_ref()
            .filter(|resume| self.is_known(resume, &join));
        let resume = known.cloned();
        let before = match &resume {
            Some(_) => None,
            None => {
                let same = self.roster.of_session(&join.key, join.session);
                // A process that was killed and started again has another session: its old one is no more.
                let is_new = join.resume.is_none();
                same.or_else(|| is_new.then(|| self.away_of(&join.key)).flatten())
            }
        };
        let peer = resume
            .as_ref()
            .map_or_else(|| self.new_peer(), |resume| resume.peer);
        let mut volunteer = self.volunteer(now, peer, join);
        if let Some(before) = before {
            self.succeed(before, &mut volunteer);
        }
        if let Some(older) = self.roster.join(connection, volunteer) {
            self.out(Output::Close(older));
        }
        self.lose_texts_of(now, peer);
        let resumed = resume
            .as_ref()
            .is_some_and(|resume| self.may_resume(resume));
        let welcome = Welcome {
            peer,
            config: self.config().clone(),
            data: self.start.data.clone(),
            ice_servers: Vec::new(),
            round: self.history.newest(),
            resumed,
        };
        self.tell(peer, Down::Welcome(Box::new(welcome)));
        if resume.is_none() {
            self.incident(peer, What::Joined);
        }
        let safe = Down::Safe {
            round: self.safe,
            securing: self.securing_round(),
        };
        self.tell(peer, safe);
        match resume {
            Some(resume) if resumed => self.resync(now, peer, resume),
            Some(_) if self.is_seated(peer) => self.break_pipeline_of(peer),
            Some(_) | None => {}
        }
    }

    /// A new process of whoever is in the books: a page was loaded again, a program started. It gets another number, so that
    /// nobody takes it for the old one, and the seat of the old one if that is still free.
    fn succeed(&mut self, before: PeerId, volunteer: &mut Volunteer) {
        self.break_pipeline_of(before);
        let seats = self
            .given_up
            .values_mut()
            .flat_map(|line_up| &mut line_up.seats);
        for (peer, _) in seats.filter(|(peer, _)| *peer == before) {
            *peer = volunteer.peer;
        }
        if let Some(before) = self.roster.get(before) {
            volunteer.inherit(before);
        }
        self.links.renumber(before, volunteer.peer);
        self.forget(before);
    }

    /// A session of that key whose connection broke without a word: one that has a seat, if there is.
    fn away_of(&self, key: &Digest) -> Option<PeerId> {
        let mut away: Vec<PeerId> = self.roster.away_of(key).collect();
        away.sort_by_key(|peer| !self.is_seated(*peer));
        away.first().copied()
    }

    pub(super) fn is_seated(&self, peer: PeerId) -> bool {
        self.pipelines.is_seated(peer)
    }

    fn objection(
        &self,
        connection: ConnectionId,
        join: &Join,
    ) -> Option<(RefuseCode, String, String)> {
        let mut proof = [0; 64];
        let is_written = hex::decode_to_slice(&join.proof, &mut proof).is_ok();
        let message = join_message(&self.nonce(connection), join.session);
        if join.version != VERSION {
            let text = format!(
                "you speak version {} of the protocol, this host {VERSION}",
                join.version
            );
            Some((RefuseCode::Version, text, install()))
        } else if !(is_written && verifies(&join.key, &message, &proof)) {
            let text = "the proof does not fit the key".to_owned();
            let remedy = format!(
                "start again; if that does not help, {}. The identity file is not at fault: keep it",
                install()
            );
            Some((RefuseCode::Proof, text, remedy))
        } else if join.seed_hash != self.start.seed_hash {
            let text = format!(
                "this machine derives {:?} from the run's seed, the host {:?}",
                join.seed_hash, self.start.seed_hash
            );
            let remedy = format!(
                "{}; if it is that already, this machine computes otherwise: tell us what `shoal doctor` says",
                install()
            );
            Some((RefuseCode::SeedHash, text, remedy))
        } else if self.conduct.is_refused(&join.key) {
            Some((RefuseCode::Removed, REMOVED.to_owned(), removed_remedy()))
        } else if self.over {
            let text = "the run has reached its length".to_owned();
            let remedy = "export the model from the host's page".to_owned();
            Some((RefuseCode::Over, text, remedy))
        } else if self.roster.len() >= VOLUNTEERS_MAX && !self.comes_again(join) {
            let text = format!("this host holds {VOLUNTEERS_MAX} volunteers");
            Some((RefuseCode::Full, text, "try again later".to_owned()))
        } else {
            None
        }
    }

    pub(super) fn refuse_for_conduct(&mut self, connection: ConnectionId) {
        let text = REMOVED.to_owned();
        self.refuse(connection, RefuseCode::Removed, text, removed_remedy());
    }

    fn new_peer(&mut self) -> PeerId {
        self.peers += 1;
        PeerId((u64::from(self.history.incarnation()) << 32) | u64::from(self.peers))
    }

    /// Whether `resume` names a volunteer that we know, now or from the journal, and it is the same.
    fn is_known(&self, resume: &Resume, join: &Join) -> bool {
        let here = self
            .roster
            .get(resume.peer)
            .map(|volunteer| (volunteer.key, volunteer.session));
        let seat = self.pipelines.seat(resume.peer);
        let journaled = seat.map(|seat| (seat.row.key, seat.row.session));
        here.or(journaled) == Some((join.key, join.session))
    }

    /// Whether its session is in the books: then it takes the place that it has.
    fn comes_again(&self, join: &Join) -> bool {
        let is_known = |resume| self.is_known(resume, join);
        join.resume.as_ref().is_some_and(is_known)
            || self.roster.of_session(&join.key, join.session).is_some()
    }

    fn volunteer(&self, now: Time, peer: PeerId, join: Join) -> Volunteer {
        let is_kept = self.kept_rounds();
        let kept = join
            .kept
            .into_iter()
            .filter(|held| {
                let commit = self.history.get(held.round);
                let is_held = |one: &Held| (one.stage, one.agreed) == (held.stage, held.agreed);
                let stands = commit.is_some_and(|commit| commit.stages.iter().any(is_held));
                // It drops older ones as soon as it hears which are safe.
                stands && is_kept(held.round)
            })
            .map(|held| ((held.round, held.stage), held.blob));
        Volunteer {
            peer,
            key: join.key,
            session: join.session,
            name: presentable(&join.name),
            kept: kept.collect::<BTreeMap<_, _>>(),
            capabilities: sound(join.capabilities),
            connection: None,
            away_until: None,
            heard: now,
            answer_by: None,
            delay_us: None,
            bytes_per_second: None,
            suspected_by: BTreeSet::new(),
            copying: None,
            finishing: false,
            struck: self.conduct.is_struck(&join.key),
            released: false,
            returning: false,
            paused: join.paused,
            benched_until: None,
            overtaken: false,
            accepted: 0,
            reason: String::new(),
        }
    }

    /// A connection broke without a word: most come back.
    pub(super) fn away(&mut self, now: Time, peer: PeerId) {
        let Some(volunteer) = self.roster.get_mut(peer) else {
            return;
        };
        // Who said that it returns is waited for longer.
        volunteer.away_until.get_or_insert(now + AWAY_MAX);
        if volunteer.released {
            self.lose(peer, What::Finished);
        } else if !volunteer.suspected_by.is_empty() {
            // A neighbour's suspicion and a broken connection together are enough.
            self.lose(peer, What::Gone);
        }
    }

    /// A volunteer leaves. Whoever may return keeps its seat for a moment, unless a spare can take it at once.
    pub(super) fn leave(&mut self, now: Time, peer: PeerId, may_return: bool) {
        let is_kept = may_return && !self.has_stand_in(now, peer);
        let wait = self.config().schedule.rewind_wait;
        match self.roster.get_mut(peer) {
            Some(volunteer) if is_kept => {
                volunteer.returning = true;
                volunteer.away_until = Some(now + wait);
            }
            Some(_) | None => return self.lose(peer, What::Left),
        }
        // Its links are closed: the round is lost for its pipeline, whoever goes on with it.
        self.break_pipeline_of(peer);
    }

    /// Whether a spare holds the newest state of all stages of that volunteer's seat, or it has none.
    fn has_stand_in(&self, now: Time, peer: PeerId) -> bool {
        let Some(seat) = self.pipelines.seat(peer) else {
            return true;
        };
        let newest = self.history.newest();
        self.roster
            .keepers(newest, StageId(seat.row.stages.first))
            .any(|spare| {
                let holds = |stage| spare.kept.contains_key(&(newest, stage));
                spare.is_placeable(now)
                    && !self.pipelines.is_seated(spare.peer)
                    && seat.row.stages.iter().all(holds)
            })
    }

    /// What a volunteer lends changed, or it rests, or rests no more.
    pub(super) fn update(
        &mut self,
        peer: PeerId,
        capabilities: Capabilities,
        paused: Option<Pause>,
    ) {
        let Some(volunteer) = self.roster.get_mut(peer) else {
            return;
        };
        volunteer.capabilities = sound(capabilities);
        volunteer.paused = paused;
        let Some(pause) = paused else { return };
        let phase = self.pipelines.of(peer).map(|pipeline| pipeline.phase);
        match (self.is_seated(peer), phase) {
            // Nothing is trained yet: nothing is lost.
            (true, Some(Phase::Forming)) => self.break_pipeline_of(peer),
            // Nothing will be trained any more.
            (true, _) if pause == Pause::Hung => {
                self.incident(peer, What::Hung);
                self.break_pipeline_of(peer);
                self.reason(peer, pause.words().to_owned());
            }
            (true, _) => {
                let text = "pausing: your seat is handed on once this round is committed";
                self.reason(peer, text.to_owned());
            }
            (false, _) => self.reason(peer, pause.words().to_owned()),
        }
    }

    /// What a volunteer measured of its links. It is believed about those who are here, and placement alone listens.
    pub(super) fn measured(
        &mut self,
        by: PeerId,
        bytes_per_second: Option<u64>,
        links: &[LinkFigures],
    ) {
        if let Some(volunteer) = self.roster.get_mut(by) {
            volunteer.bytes_per_second = bytes_per_second.or(volunteer.bytes_per_second);
        }
        let roster = &self.roster;
        let known = links
            .iter()
            .take(LINKS_MAX)
            .filter(|link| roster.get(link.peer).is_some())
            .map(|link| {
                let measured = Measured {
                    delay_us: link.delay_us,
                    bytes_per_second: link.bytes_per_second,
                    relayed: link.relayed,
                };
                (link.peer, measured)
            });
        self.links.measure(by, known);
    }

    /// A volunteer is gone for good; it may come again as a new one.
    pub(super) fn lose(&mut self, peer: PeerId, what: What) {
        self.incident(peer, what);
        self.forget(peer);
    }

    pub(super) fn forget(&mut self, peer: PeerId) {
        if let Some(connection) = self.roster.remove(peer) {
            self.out(Output::Close(connection));
        }
        self.link_failures
            .retain(|pair, _| pair.0 != peer && pair.1 != peer);
        self.links.forget(peer);
        self.conduct.forget(peer);
        self.missing.forget(peer);
        self.drop_uploads_of(peer);
    }
}

/// Which build takes part for sure.
fn install() -> String {
    format!("install Shoal {BUILD}, which this host is")
}

fn removed_remedy() -> String {
    format!("{}; then ask the host to let you in again", install())
}

/// What a volunteer says of itself, within what placement can reckon with.
fn sound(capabilities: Capabilities) -> Capabilities {
    Capabilities {
        throttle_percent: capabilities.throttle_percent.clamp(10, 100),
        speed: capabilities.speed.sound(),
        ..capabilities
    }
}
