//! What the host says, and what follows from it. See protocol: sections 3 and 5.

use std::collections::{BTreeSet, VecDeque};

use ed25519_dalek::Signer;

use super::fetch::Transfer;
use super::link::Link;
use super::rhythm::Rhythm;
use super::work::{Begun, Work};
use super::{Event, Exit, Gathering, Leaving, Output, Peer};
use crate::compute::{Done, Job, StageState};
use crate::units::{Attempt, Digest, PeerId, Round, Time};
use crate::wire::frame::{Mode, Place, VERSION};
use crate::wire::leases::Leases;
use crate::wire::signal::{
    Down, Fetch, Held, IceServer, Join, Neighbour, RefuseCode, Resume, SeatOrder, Source, Speed,
    Up, Welcome, join_message,
};

/// Why nothing new begins while the host is away.
const HOST_LOST: &str = "the connection to the host is lost; what is leased goes on";

impl Peer {
    /// The connection to the host is open; it speaks first.
    pub fn handle_host_open(&mut self) {
        self.host_away = None;
    }

    /// The connection to the host broke. What is leased goes on; the caller connects again.
    pub fn handle_host_closed(&mut self, now: Time) {
        self.joined = false;
        self.host_away.get_or_insert(now);
        if let Some(work) = &mut self.work {
            work.end_own_texts();
        }
        self.nonce = None;
        if !self.over {
            // Whoever was not let in yet has nothing that could be lost: it may still be preparing.
            if self.me.is_some() {
                HOST_LOST.clone_into(&mut self.tally.reason);
            }
            self.out(Output::Event(Event::HostLost));
        }
    }

    /// The model is known and measured, as [`Output::Prepare`] asked.
    pub fn handle_prepared(&mut self, now: Time, seed_hash: Digest, speed: Speed) {
        self.seed_hash = Some(seed_hash);
        self.identity.capabilities.speed = speed;
        self.join();
        self.pump(now);
    }

    /// Asks to be let in, once the host has greeted us and the model is prepared.
    fn join(&mut self) {
        // The nonce is kept until it is signed: preparing may outlast a connection.
        let (Some(nonce), Some(seed_hash)) = (self.nonce, self.seed_hash) else {
            return;
        };
        self.nonce = None;
        let identity = &self.identity;
        let signature = identity.key.sign(&join_message(&nonce, identity.session));
        let join = Join {
            version: VERSION,
            key: Digest(identity.key.verifying_key().to_bytes()),
            proof: hex::encode(signature.to_bytes()),
            session: identity.session,
            name: identity.name.clone(),
            seed_hash,
            capabilities: identity.capabilities.clone(),
            paused: self.pause_now(),
            kept: self.kept.list(),
            resume: self.me.map(|peer| self.resumption(peer)),
            invite: None,
        };
        self.joined = true;
        self.up(Up::Join(Box::new(join)));
    }

    fn resumption(&self, peer: PeerId) -> Resume {
        let place = self
            .gathering
            .as_ref()
            .map(|gathering| gathering.order.place);
        let waiting = Resume {
            peer,
            place,
            attempt: None,
            report: None,
            leases: Leases::default(),
            holds: None,
            merged: None,
        };
        self.work.as_ref().map_or(waiting, |work| work.resume(peer))
    }

    /// The host says something.
    pub fn handle_host(&mut self, now: Time, message: Down) {
        match message {
            Down::Hello {
                version,
                nonce,
                config,
            } => self.hello(version, nonce, *config),
            Down::Welcome(welcome) => self.welcome(*welcome),
            Down::Refuse {
                code: RefuseCode::Over,
                ..
            } => self.exit(Exit::RunOver),
            Down::Refuse { code, text, remedy } => {
                self.exit(Exit::Refused { code, text, remedy });
            }
            Down::Seat(order) => self.seat(now, *order),
            Down::Spare { place } => self.spare(place),
            Down::Signal { from, key, signal } => {
                if let Some(link) = self.link_mut(now, from, Some(key)) {
                    link.handle_signal(now, signal);
                }
            }
            Down::Begin {
                place,
                mode,
                attempt,
                result,
                samples_done,
            } => {
                let begun = Begun {
                    attempt,
                    result,
                    samples_done,
                };
                if mode == Mode::Train && self.work_at(place).is_some() {
                    // A newer attempt voids a merge, too; an older one comes before any.
                    self.merge.begun(attempt);
                }
                if let Some(work) = self.work_at(place) {
                    work.handle_begin(now, mode, begun);
                }
            }
            Down::Lease(lease) => {
                if let Some(work) = self.work_at(lease.place) {
                    work.handle_lease(lease);
                }
            }
            Down::Close { place } => {
                if let Some(work) = self.work_at(place) {
                    work.handle_close();
                }
            }
            Down::Merge(order) => self.merge(now, &order),
            Down::Generate(order) => self.generate(now, *order),
            Down::Forget { place, request } => self.forget_text(place, request),
            Down::Commit {
                round,
                place,
                attempt,
                stages,
            } => {
                self.commit(now, round, place, attempt, &stages);
            }
            Down::Safe { round, securing } => {
                self.safe = round;
                self.securing = securing;
                self.drop_old();
            }
            Down::Rewind { to } => self.rewind(to),
            Down::Copy { fetch, keys } => self.copy(now, fetch, &keys),
            Down::Upload { held, ticket } => self.upload(held, ticket),
            Down::Released => {
                if self.leaving != Leaving::No {
                    self.exit(Exit::Finished);
                }
            }
            Down::IceServers { ice_servers } => self.ice_servers(ice_servers),
            Down::Reason { text } => {
                self.tally.reason.clone_from(&text);
                self.out(Output::Event(Event::Reason(text)));
            }
            Down::Ping { nonce } => self.up(Up::Pong { nonce }),
        }
        self.pump(now);
    }

    fn work_at(&mut self, place: Place) -> Option<&mut Work> {
        self.work.as_mut().filter(|work| work.place() == place)
    }

    fn hello(&mut self, version: u8, nonce: Digest, config: crate::config::run::RunConfig) {
        if version != VERSION {
            return self.exit(Exit::Refused {
                code: RefuseCode::Version,
                text: format!("the host speaks version {version}, this build {VERSION}"),
                remedy: "use the build that the host's page names".to_owned(),
            });
        }
        if let Err(error) = config.validate() {
            return self.exit(Exit::Refused {
                code: RefuseCode::Malformed,
                text: format!("the host's run cannot be trained by this build: {error}"),
                remedy: "tell the host; nothing was computed".to_owned(),
            });
        }
        self.nonce = Some(nonce);
        match &self.config {
            Some(known) if *known == config => self.join(),
            Some(_) => self.exit(Exit::Refused {
                code: RefuseCode::SeedHash,
                text: "this address now hosts another run".to_owned(),
                remedy: "start again to join the new run".to_owned(),
            }),
            None => {
                self.config = Some(config.clone());
                self.out(Output::Prepare(Box::new(config)));
            }
        }
    }

    fn welcome(&mut self, welcome: Welcome) {
        if !welcome.resumed {
            self.leave_seat();
        }
        if self.me.is_some_and(|me| me != welcome.peer) {
            self.close_links();
        }
        self.me = Some(welcome.peer);
        self.figures.forget_told();
        self.newest = welcome.round;
        self.data = Some(welcome.data);
        self.ice_servers(welcome.ice_servers);
        self.out(Output::Event(Event::Welcome {
            peer: welcome.peer,
            round: welcome.round,
        }));
        if self.leaving != Leaving::No {
            self.up(Up::Finish);
        }
        if let Some(work) = &self.work {
            // Said again: the host may have missed it. It has no effect twice.
            let (place, stages) = (work.place(), self.held_for(work.order()));
            self.up(Up::Ready { place, stages });
        }
    }

    fn ice_servers(&mut self, servers: Vec<IceServer>) {
        self.relays = servers.iter().any(IceServer::is_relay);
        for link in self.links.values_mut() {
            link.set_relays(self.relays);
        }
        self.out(Output::IceServers(servers));
    }

    fn seat(&mut self, now: Time, order: SeatOrder) {
        self.told_of(order.place);
        let current = self.order().map(|order| order.place);
        if current.is_some_and(|place| place.epoch >= order.place.epoch) {
            return;
        }
        self.leave_seat();
        self.merge.residuals_mut().retain(order.stages);
        self.out(Output::Event(Event::Seated(Box::new(order.clone()))));
        // Known first: by it links are kept.
        self.gathering = Some(Gathering {
            order: order.clone(),
            loading: false,
            loaded: false,
        });
        let early = std::mem::take(&mut self.early);
        let early = early
            .into_iter()
            .filter(|(from, _)| self.is_neighbour(*from));
        self.early = early.collect();
        for neighbour in order.previous.iter().chain(&order.next) {
            if let Some(link) = self.link_mut(now, neighbour.peer, Some(neighbour.key)) {
                link.want(now);
            }
        }
        for fetch in &order.state {
            self.fetch(now, fetch.clone());
        }
        self.learn_keys(&order.keys);
    }

    /// Keys of those that states are to be had from.
    fn learn_keys(&mut self, neighbours: &[Neighbour]) {
        let keys = neighbours.iter().map(|it| (it.peer, it.key));
        self.keys.extend(keys);
        let named: BTreeSet<PeerId> = self.transfers.values().flat_map(Transfer::peers).collect();
        self.keys.retain(|peer, _| named.contains(peer));
    }

    /// Begins a transfer unless the state is here, follows from the seed, or is on its way.
    fn fetch(&mut self, now: Time, fetch: Fetch) {
        let at = (fetch.held.round, fetch.held.stage);
        let from_seed = fetch.sources.contains(&Source::Seed);
        let is_here = self.kept.agreeing(&fetch.held).is_some();
        if from_seed || is_here || self.transfers.contains_key(&at) {
            return;
        }
        self.transfers.insert(at, Transfer::new(now, fetch));
    }

    fn copy(&mut self, now: Time, fetch: Fetch, keys: &[Neighbour]) {
        if let Some((held, _)) = self.kept.agreeing(&fetch.held) {
            let held = *held;
            return self.up(Up::Copied { held });
        }
        self.copies.insert((fetch.held.round, fetch.held.stage));
        self.fetch(now, fetch);
        self.learn_keys(keys);
    }

    /// Gives up the seat; links stay for copies.
    fn leave_seat(&mut self) {
        let wanted = std::mem::take(&mut self.gathering);
        if let Some(gathering) = wanted {
            for fetch in &gathering.order.state {
                let at = (fetch.held.round, fetch.held.stage);
                if !self.copies.contains(&at) {
                    self.transfers.remove(&at);
                }
            }
        }
        if let Some(work) = self.work.take() {
            // A result that no commit names is worth nothing once the line-up is over.
            let at = |held: &Held| (held.round, held.stage);
            let provisional: BTreeSet<_> = work.provisional().map(at).collect();
            let newest = self.newest;
            self.kept
                .retain(|round, stage| round <= newest || !provisional.contains(&(round, stage)));
        }
        self.merge.stop();
    }

    fn spare(&mut self, place: Place) {
        self.told_of(place);
        let current = self.order().map(|order| order.place);
        if current.is_some_and(|current| current.epoch <= place.epoch) {
            self.leave_seat();
            self.merge.residuals_mut().clear();
            self.out(Output::Event(Event::Spare));
        }
    }

    fn commit(&mut self, now: Time, round: Round, place: Place, attempt: Attempt, stages: &[Held]) {
        let taken = self.work.as_mut().and_then(|work| {
            Some((
                work.handle_commit(round, place, attempt)?,
                work.order().stages,
            ))
        });
        if let Some((committed, stages)) = taken {
            self.tally.accept(round, committed.microbatches, stages);
            self.merge.committed(attempt);
            // What is committed takes the place of what is not.
            while self.pump_work(now) {}
        }
        self.newest = self.newest.max(round);
        self.kept.commit(round, stages);
        self.drop_old();
        let is_agreed = stages.iter().all(|held| self.kept.agreeing(held).is_some());
        let ours = taken.is_some();
        if ours && !is_agreed {
            // Most replicas hold something else than we merged: the host seats us anew, with their states.
            self.leave_seat();
            self.out(Output::Event(Event::Spare));
        }
        self.out(Output::Event(Event::Commit { round, ours }));
        if ours {
            self.replay_early(now);
        }
    }

    fn rewind(&mut self, to: Round) {
        self.leave_seat();
        self.merge.residuals_mut().clear();
        self.tally.rewind(to);
        self.newest = to;
        self.securing = None;
        self.safe = self.safe.min(to);
        self.transfers.retain(|(round, _), _| *round <= to);
        self.copies.retain(|(round, _)| *round <= to);
        self.kept.retain(|round, _| round <= to);
    }

    /// Keeps the newest committed round, the safe one, the one on its way to be safe, and results that
    /// are not committed yet.
    fn drop_old(&mut self) {
        let (newest, safe, securing) = (self.newest, self.safe, self.securing);
        self.kept
            .retain(|round, _| round >= newest || round == safe || Some(round) == securing);
    }

    fn upload(&mut self, held: Held, ticket: String) {
        match self.kept.get(&held).cloned() {
            Some(blob) => {
                self.tally.file(blob.len() as u64, true);
                self.out(Output::Upload { held, ticket, blob });
            }
            None => self.up(Up::Missing {
                round: held.round,
                stage: held.stage,
            }),
        }
    }

    /// What the seat begins with: of what the host named, our own blobs.
    fn held_for(&self, order: &SeatOrder) -> Vec<Held> {
        let own = |fetch: &Fetch| match self.kept.agreeing(&fetch.held) {
            Some((held, _)) => *held,
            None => fetch.held,
        };
        order.state.iter().map(own).collect()
    }

    /// Goes on with a seat that is being prepared: states, then links, then `ready`. Whether it is at
    /// work now.
    pub(super) fn pump_gathering(&mut self, now: Time) -> bool {
        let Some(gathering) = &self.gathering else {
            return false;
        };
        let order = gathering.order.clone();
        if !gathering.loading {
            let states: Option<Vec<StageState>> = order
                .state
                .iter()
                .map(|fetch| self.state_of(fetch))
                .collect();
            if let (Some(states), None) = (states, &self.job) {
                let job = Job::Seat {
                    stages: order.stages,
                    states,
                    keeps_texts: false,
                };
                self.run(now, order.place.epoch, None, job);
                if let Some(gathering) = &mut self.gathering {
                    gathering.loading = true;
                }
            }
        }
        let linked = order
            .previous
            .iter()
            .chain(&order.next)
            .all(|neighbour| self.links.get(&neighbour.peer).is_some_and(Link::is_up));
        let config = self.config.clone();
        let loaded = self.gathering.as_ref().is_some_and(|it| it.loaded);
        let (Some(config), true, true) = (config, linked, loaded) else {
            return false;
        };
        self.gathering = None;
        self.begin_work(order, &config);
        true
    }

    fn state_of(&self, fetch: &Fetch) -> Option<StageState> {
        if fetch.sources.contains(&Source::Seed) {
            return Some(StageState::Seed);
        }
        let kept = self.kept.agreeing(&fetch.held);
        kept.map(|(_, blob)| StageState::Blob(blob.clone()))
    }

    fn begin_work(&mut self, order: SeatOrder, config: &crate::config::run::RunConfig) {
        let (place, stages) = (order.place, self.held_for(&order));
        self.rhythm = Rhythm::default();
        self.count_blocks(&order);
        let mut work = Work::new(order.clone(), config, self.memory_bytes());
        #[cfg(any(test, feature = "sim"))]
        if self.broken.blind {
            work.be_blind();
        }
        work.set_pace(self.pace(&order));
        work.open();
        if let Some((pipeline, epoch, granted, behind)) = order
            .next
            .and_then(|next| self.credits.get(&next.peer))
            .copied()
            && (pipeline, epoch) == (place.pipeline, place.epoch)
        {
            work.handle_credit(granted, behind);
        }
        self.work = Some(work);
        self.early.retain(|(_, frame)| {
            frame
                .header
                .place()
                .is_none_or(|early| early.epoch >= place.epoch)
        });
        self.up(Up::Ready { place, stages });
    }

    /// The compute answered whether it could take the states of the seat that is being prepared.
    pub(super) fn gathered(&mut self, done: Done) {
        let Some(gathering) = &mut self.gathering else {
            return;
        };
        let named = gathering.order.state.iter().map(|fetch| fetch.held);
        let wrong: Vec<Held> = match done {
            Done::Seated { agreed } => {
                gathering.loaded = true;
                // Of what follows from the seed the host names no hash.
                let is_named = |held: &Held| held.agreed != Digest::default();
                let mut agreed = agreed.into_iter();
                named
                    .filter(|held| agreed.next() != Some(held.agreed) && is_named(held))
                    .collect()
            }
            Done::Refused { .. } | Done::NonFinite { .. } => named.collect(),
            done @ (Done::Forward { .. }
            | Done::Generated { .. }
            | Done::Forgotten { .. }
            | Done::Backward { .. }
            | Done::Applied { .. }
            | Done::Snapshot { .. }
            | Done::Contributed { .. }
            | Done::Averaged { .. }
            | Done::Normed { .. }
            | Done::Merged { .. }
            | Done::Failed { .. }) => panic!("the compute answered a seat with {done:?}"),
        };
        if !wrong.is_empty() {
            self.gathering = None;
            self.states_refused(&wrong);
        }
    }

    /// The compute could not take these states: they are not what the host named.
    pub(super) fn states_refused(&mut self, wrong: &[Held]) {
        for held in wrong {
            let (round, stage) = (held.round, held.stage);
            self.kept.retain(|of, at| (of, at) != (round, stage));
            self.up(Up::Missing { round, stage });
        }
    }

    pub(super) fn replay_early(&mut self, now: Time) {
        let early: VecDeque<_> = std::mem::take(&mut self.early);
        for (from, frame) in early {
            self.handle_frame(now, from, frame);
        }
    }
}
