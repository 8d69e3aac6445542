//! Peer connections, which only a page may hold: single steps carried out, messages moved.
//!
//! Data channels are the worker's where the browser lets it have them: they are handed over as soon as they are
//! there, and the worker says when they open and close. Elsewhere each message passes here.
//!
//! Which step comes next, retries and time limits are [`shared::peer::link`]'s business, in the worker. Each
//! connection has a number of its own; what comes late from an older one is dropped here.
//!
//! Invariant: `Open` comes before a connection's first message, `Down` at most once and last.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use js_sys::{Array, ArrayBuffer, JSON};
use shared::transport::{Channel, Flow, IceServer, LinkEvent, LinkStep, certificate};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{
    MessageEvent, RtcConfiguration, RtcDataChannel, RtcDataChannelEvent, RtcDataChannelInit,
    RtcDataChannelState, RtcDataChannelType, RtcOfferOptions, RtcPeerConnection,
    RtcPeerConnectionIceEvent, RtcPeerConnectionState, RtcSdpType, RtcSessionDescriptionInit,
};

use super::Tell;
use crate::flow::Reported;
use crate::js::{Listener, call, get, object};
use crate::messages::{LinkId, Parcel, Rtc, ToWorker, channel_number};

/// How long a connection that is being closed may still bring out what waits on `control`: a `bye`.
const LINGER_MS: i32 = 200;

/// Labels of the two channels on the wire.
const LABELS: [(&str, Channel); 2] = [("control", Channel::Control), ("tensors", Channel::Tensors)];

/// All connections of a volunteer.
pub(super) struct Links {
    tell: Tell,
    servers: Vec<IceServer>,
    relay_only: bool,
    /// Whether the worker takes data channels.
    hand_over: bool,
    open: BTreeMap<Flow, Rc<Link>>,
}

/// One connection.
struct Link {
    at: LinkId,
    /// Of its opening, or of its newest restart.
    generation: Cell<u32>,
    /// Whether it was opened with relayed candidates only.
    relay_only: bool,
    tell: Tell,
    connection: RtcPeerConnection,
    /// `control` and `tensors`.
    channels: RefCell<[End; 2]>,
    /// Whether they go to the worker.
    hand_over: bool,
    /// What came before the worker was told that the link is open; `None` from then on.
    early: RefCell<Option<VecDeque<Parcel<ArrayBuffer>>>>,
    over: Cell<bool>,
    listeners: RefCell<Vec<Listener>>,
}

/// One data channel.
#[derive(Default)]
enum End {
    /// Not there yet.
    #[default]
    Awaited,
    /// The worker has it.
    HandedOver,
    /// Its messages pass here.
    Here(RtcDataChannel, Reported),
}

impl Links {
    pub(super) fn new(tell: Tell) -> Self {
        Self {
            tell,
            servers: Vec::new(),
            relay_only: false,
            hand_over: false,
            open: BTreeMap::new(),
        }
    }

    /// Whether the worker takes data channels, of connections that are made from now on.
    pub(super) fn hand_over(&mut self, hand_over: bool) {
        self.hand_over = hand_over;
    }

    /// For connections that are made or restarted from now on.
    pub(super) fn set_servers(&mut self, servers: &[IceServer], relay_only: bool) {
        self.servers = servers.to_vec();
        self.relay_only = relay_only;
    }

    /// Carries out one step.
    pub(super) fn step(&mut self, Rtc { at, what: step }: Rtc<LinkStep>) {
        let (generation, relay_only) = match &step {
            LinkStep::Offer {
                generation,
                relay_only,
            } => (*generation, *relay_only || self.relay_only),
            LinkStep::Answer { generation, .. } => (*generation, self.relay_only),
            LinkStep::Restart { generation } | LinkStep::AnswerRestart { generation, .. } => {
                if let Some(link) = self.open.get(&at.flow).filter(|link| link.at == at) {
                    link.prepare_restart(*generation, &self.servers);
                    link.step(step);
                }
                return;
            }
            LinkStep::Accept { .. } | LinkStep::Candidate { .. } | LinkStep::Close => {
                if let Some(link) = self.open.get(&at.flow).filter(|link| link.at == at) {
                    if step == LinkStep::Close {
                        link.close_soon();
                        self.open.remove(&at.flow);
                    } else {
                        link.step(step);
                    }
                }
                return;
            }
        };
        if let Some(older) = self.open.remove(&at.flow) {
            older.close();
        }
        let made =
            RtcPeerConnection::new_with_configuration(&configuration(&self.servers, relay_only));
        let Ok(connection) = made else {
            // Too many connections, or WebRTC is switched off: to the worker a link that went down.
            let what = LinkEvent::Down { generation };
            return self.tell.tell(ToWorker::Rtc(Rtc { at, what }));
        };
        let link = Rc::new(Link {
            at,
            generation: Cell::new(generation),
            relay_only,
            tell: self.tell.clone(),
            connection,
            channels: RefCell::default(),
            hand_over: self.hand_over,
            early: RefCell::new(Some(VecDeque::new())),
            over: Cell::new(false),
            listeners: RefCell::default(),
        });
        link.listen();
        link.step(step);
        self.open.insert(at.flow, link);
    }

    /// Gives a message to the browser.
    pub(super) fn send(&mut self, parcel: &Parcel<ArrayBuffer>) {
        let link = self.open.get(&parcel.at.flow);
        if let Some(link) = link.filter(|link| link.at == parcel.at) {
            link.send(parcel);
        }
    }

    /// The worker's channels of a connection are open.
    pub(super) fn opened(&self, at: LinkId) {
        if let Some(link) = self.open.get(&at.flow).filter(|link| link.at == at) {
            link.open();
        }
    }

    /// One of them is closed.
    pub(super) fn closed(&self, at: LinkId) {
        if let Some(link) = self.open.get(&at.flow).filter(|link| link.at == at) {
            link.down();
        }
    }

    /// Closes all connections, now.
    pub(super) fn close_all(&mut self) {
        for (_, link) in std::mem::take(&mut self.open) {
            link.close();
        }
    }
}

/// `RTCConfiguration` with these servers.
pub(super) fn configuration(servers: &[IceServer], relay_only: bool) -> RtcConfiguration {
    let list = Array::new();
    for server in servers {
        let urls: Array = server
            .urls
            .iter()
            .map(|url| JsValue::from_str(url))
            .collect();
        let text = |text: &Option<String>| {
            text.as_deref()
                .map_or(JsValue::UNDEFINED, JsValue::from_str)
        };
        list.push(&object(&[
            ("urls", urls.into()),
            ("username", text(&server.username)),
            ("credential", text(&server.credential)),
        ]));
    }
    let policy = if relay_only { "relay" } else { "all" };
    object(&[
        ("iceServers", list.into()),
        ("iceTransportPolicy", JsValue::from_str(policy)),
    ])
    .unchecked_into()
}

impl Link {
    /// Hears what the connection says.
    fn listen(self: &Rc<Self>) {
        self.on("icecandidate", |link, event| {
            let event: RtcPeerConnectionIceEvent = event.unchecked_into();
            // The last one is none: there is nothing to tell of it.
            let Some(candidate) = event.candidate().filter(|one| !one.candidate().is_empty())
            else {
                return;
            };
            if let Ok(candidate) = JSON::stringify(&candidate) {
                link.event(LinkEvent::Candidate {
                    generation: link.generation.get(),
                    candidate: candidate.into(),
                });
            }
        });
        self.on("connectionstatechange", |link, _| link.state_changed());
        self.on("datachannel", |link, event| {
            let event: RtcDataChannelEvent = event.unchecked_into();
            link.adopt(event.channel());
        });
    }

    /// Hears one kind of event of the connection.
    fn on(self: &Rc<Self>, kind: &'static str, hear: impl Fn(&Rc<Self>, JsValue) + 'static) {
        let target = self.connection.clone();
        self.on_target(target.as_ref(), kind, hear);
    }

    fn on_target(
        self: &Rc<Self>,
        target: &web_sys::EventTarget,
        kind: &'static str,
        hear: impl Fn(&Rc<Self>, JsValue) + 'static,
    ) {
        let link = Rc::downgrade(self);
        let listener = Listener::new(target, kind, move |event| {
            if let Some(link) = link.upgrade().filter(|link| !link.over.get()) {
                hear(&link, event);
            }
        });
        self.listeners.borrow_mut().push(listener);
    }

    fn event(&self, what: LinkEvent) {
        let at = self.at;
        self.tell.tell(ToWorker::Rtc(Rtc { at, what }));
    }

    /// ICE lost the path, or found one again. A connection that never opened has nothing to keep.
    fn state_changed(self: &Rc<Self>) {
        let (state, generation) = (self.connection.connection_state(), self.generation.get());
        let is_open = self.early.borrow().is_none();
        let failed = state == RtcPeerConnectionState::Failed;
        if failed && !is_open {
            self.down();
        } else if is_open && (failed || state == RtcPeerConnectionState::Disconnected) {
            self.event(LinkEvent::Disturbed { generation });
        } else if is_open && state == RtcPeerConnectionState::Connected {
            let link = Rc::clone(self);
            spawn_local(async move {
                let relayed = is_relayed(&link.connection).await;
                if !link.over.get() {
                    link.event(LinkEvent::Resumed {
                        generation,
                        relayed,
                    });
                }
            });
        }
    }

    /// From now on everything is about the restart, which gathers from the newest ICE servers.
    fn prepare_restart(&self, generation: u32, servers: &[IceServer]) {
        self.generation.set(generation);
        let configuration = configuration(servers, self.relay_only);
        let set = self
            .connection
            .set_configuration_with_configuration(&configuration);
        // Refused only if it is no configuration: the old servers may still do.
        drop(set);
    }

    /// Nothing gets through any more: says so, once.
    fn down(&self) {
        if !self.over.get() {
            self.event(LinkEvent::Down {
                generation: self.generation.get(),
            });
            self.close();
        }
    }

    fn close(&self) {
        self.over.set(true);
        self.connection.close();
    }

    /// Closes once what waits on `control` had a moment to leave.
    fn close_soon(self: &Rc<Self>) {
        self.over.set(true);
        let link = Rc::clone(self);
        spawn_local(async move {
            super::surroundings::pause(LINGER_MS).await;
            link.connection.close();
        });
    }

    fn step(self: &Rc<Self>, step: LinkStep) {
        let link = Rc::clone(self);
        spawn_local(async move {
            // A candidate that is not taken is no reason to give up: there are others.
            let fatal = !matches!(step, LinkStep::Candidate { .. });
            if link.carry_out(step).await.is_err() && fatal {
                link.down();
            }
        });
    }

    async fn carry_out(self: &Rc<Self>, step: LinkStep) -> Result<(), JsValue> {
        let connection = &self.connection;
        match step {
            LinkStep::Offer { .. } => {
                for (label, channel) in LABELS {
                    let init = RtcDataChannelInit::new();
                    init.set_ordered(channel == Channel::Control);
                    let channel =
                        connection.create_data_channel_with_data_channel_dict(label, &init);
                    self.adopt(channel);
                }
                let offer = JsFuture::from(connection.create_offer()).await?;
                self.describe(offer).await?;
            }
            LinkStep::Restart { .. } => {
                let options = RtcOfferOptions::new();
                options.set_ice_restart(true);
                let offer = connection.create_offer_with_rtc_offer_options(&options);
                self.describe(JsFuture::from(offer).await?).await?;
            }
            LinkStep::Answer { sdp, .. } | LinkStep::AnswerRestart { sdp, .. } => {
                self.set_remote(RtcSdpType::Offer, &sdp).await?;
                let answer = JsFuture::from(connection.create_answer()).await?;
                self.describe(answer).await?;
            }
            LinkStep::Accept { sdp, .. } => self.set_remote(RtcSdpType::Answer, &sdp).await?,
            LinkStep::Candidate { candidate, .. } => {
                let candidate = JSON::parse(&candidate)?.unchecked_into();
                let added =
                    connection.add_ice_candidate_with_opt_rtc_ice_candidate_init(Some(&candidate));
                JsFuture::from(added).await?;
            }
            LinkStep::Close => unreachable!("closed by its owner"),
        }
        Ok(())
    }

    async fn set_remote(&self, kind: RtcSdpType, sdp: &str) -> Result<(), JsValue> {
        let description = RtcSessionDescriptionInit::new(kind);
        description.set_sdp(sdp);
        JsFuture::from(self.connection.set_remote_description(&description)).await?;
        Ok(())
    }

    /// Takes our own description, and tells it.
    async fn describe(&self, description: JsValue) -> Result<(), JsValue> {
        let description: RtcSessionDescriptionInit = description.unchecked_into();
        JsFuture::from(self.connection.set_local_description(&description)).await?;
        let sdp = description.get_sdp().unwrap_or_default();
        self.event(LinkEvent::Description {
            generation: self.generation.get(),
            sdp,
        });
        Ok(())
    }

    /// Takes a data channel in: ours, or the other end's. One of each kind; others are closed.
    fn adopt(self: &Rc<Self>, channel: RtcDataChannel) {
        let label = channel.label();
        let known = LABELS.iter().find(|(known, _)| *known == label);
        let Some(&(_, kind)) = known else {
            return channel.close();
        };
        let place = usize::from(channel_number(kind));
        if !matches!(self.channels.borrow()[place], End::Awaited) {
            return channel.close();
        }
        if self.hand_over {
            self.channels.borrow_mut()[place] = End::HandedOver;
            // Now: a browser hands over no channel that a task has already seen.
            return self.tell.pass(&Parcel {
                at: self.at,
                channel: kind,
                load: channel,
            });
        }
        let reported = Reported::new(kind);
        channel.set_binary_type(RtcDataChannelType::Arraybuffer);
        // A quarter of a megabyte fits into 32 bits.
        channel.set_buffered_amount_low_threshold(
            u32::try_from(reported.low_bytes()).unwrap_or(u32::MAX),
        );
        self.on_target(&channel, "open", |link, _| link.announce());
        self.on_target(&channel, "close", |link, _| link.down());
        self.on_target(&channel, "message", move |link, event| {
            let event: MessageEvent = event.unchecked_into();
            link.arrived(kind, &event.data());
        });
        self.on_target(&channel, "bufferedamountlow", move |link, _| {
            if let End::Here(channel, reported) = &mut link.channels.borrow_mut()[place] {
                let sent_bytes = reported.low(channel.buffered_amount().into());
                link.sent(kind, sent_bytes);
            }
        });
        self.channels.borrow_mut()[place] = End::Here(channel, reported);
        self.announce();
    }

    /// Opens once both channels are, if they are here.
    fn announce(self: &Rc<Self>) {
        let is_open = |end: &End| match end {
            End::Here(channel, _) => channel.ready_state() == RtcDataChannelState::Open,
            End::Awaited | End::HandedOver => false,
        };
        if self.channels.borrow().iter().all(is_open) {
            self.open();
        }
    }

    /// Says that the link is open, then lets messages through.
    fn open(self: &Rc<Self>) {
        let link = Rc::clone(self);
        spawn_local(async move {
            let relayed = is_relayed(&link.connection).await;
            if link.over.get() || link.early.borrow().is_none() {
                return;
            }
            let local = link.connection.local_description();
            let remote = link.connection.remote_description();
            let prints = local.zip(remote).and_then(|(local, remote)| {
                Some((certificate(&local.sdp())?, certificate(&remote.sdp())?))
            });
            let Some((local_fingerprint, remote_fingerprint)) = prints else {
                return link.down();
            };
            link.event(LinkEvent::Open {
                generation: link.generation.get(),
                local_fingerprint,
                remote_fingerprint,
                relayed,
            });
            for parcel in link.early.take().into_iter().flatten() {
                link.tell.pass(&parcel);
            }
        });
    }

    fn arrived(&self, channel: Channel, data: &JsValue) {
        // Text is nothing that any build of ours sends.
        let Some(bytes) = data.dyn_ref::<ArrayBuffer>() else {
            return self.down();
        };
        let parcel = Parcel {
            at: self.at,
            channel,
            load: bytes.clone(),
        };
        if let Some(early) = &mut *self.early.borrow_mut() {
            return early.push_back(parcel);
        }
        self.tell.pass(&parcel);
    }

    fn send(&self, parcel: &Parcel<ArrayBuffer>) {
        let len_bytes = u64::from(parcel.load.byte_length());
        let mut channels = self.channels.borrow_mut();
        let end = &mut channels[usize::from(channel_number(parcel.channel))];
        let End::Here(channel, reported) = end else {
            return;
        };
        let sent = channel.send_with_array_buffer(&parcel.load);
        let report = reported.taken(len_bytes, channel.buffered_amount().into());
        drop(channels);
        if sent.is_err() {
            // Closed in between, or the browser's own limit: what was lost is lost for good.
            self.down();
        } else if let Some(sent_bytes) = report {
            self.sent(parcel.channel, sent_bytes);
        }
    }

    fn sent(&self, channel: Channel, sent_bytes: u64) {
        self.tell.tell(ToWorker::Sent {
            at: self.at,
            channel,
            sent_bytes,
        });
    }
}

/// Whether the pair of candidates in use has a relay at either end.
async fn is_relayed(connection: &RtcPeerConnection) -> bool {
    let Ok(report) = JsFuture::from(connection.get_stats()).await else {
        return false;
    };
    let entry =
        |id: &JsValue| call(&report, "get", std::slice::from_ref(id)).unwrap_or(JsValue::UNDEFINED);
    let Ok(entries) = call(&report, "values", &[]) else {
        return false;
    };
    let Ok(Some(entries)) = js_sys::try_iter(&entries) else {
        return false;
    };
    let selected = entries.flatten().find_map(|one| {
        let pair = get(&one, "selectedCandidatePairId");
        pair.is_string().then(|| entry(&pair))
    });
    let Some(pair) = selected else {
        return false;
    };
    ["localCandidateId", "remoteCandidateId"].iter().any(|end| {
        let candidate = entry(&get(&pair, end));
        !candidate.is_undefined() && get(&candidate, "candidateType") == "relay"
    })
}
