//! A peer connection as the `webrtc` crate makes it: sockets, limits, callbacks, who is in between.
//!
//! [`connect`] gives a connection without any description; [`super::link`] takes it from there.
//! Callbacks run inside the connection's own loop, so they pass a [`Notice`] on and never wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rtc::ice::mdns::MulticastDnsMode;
use rtc::peer_connection::configuration::setting_engine::SctpMaxMessageSize;
use shared::wire::signal::IceServer;
use tokio::sync::mpsc;
use webrtc::data_channel::DataChannel;
use webrtc::error::Error;
use webrtc::peer_connection::{
    PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCConfiguration,
    RTCConfigurationBuilder, RTCIceCandidateType, RTCIceServer, RTCIceTransportPolicy,
    RTCPeerConnectionIceEvent, RTCPeerConnectionState, RTCStatsReportEntry, SettingEngineBuilder,
    StatsSelector,
};

use super::link::Notice;
use super::socket::{Rounds, TunedRuntime};
use super::{RtcConfig, STACK_BYTES_MAX};

/// Largest message on a data channel: what every WebRTC stack of today accepts at most.
const MESSAGE_BYTES_MAX: u32 = 262_144;
/// Silence after which a connection counts as disturbed.
const ICE_DISCONNECTED: Duration = Duration::from_secs(1);
/// Disturbance after which it counts as lost: a killed peer is noticed 3 s after its last packet.
const ICE_FAILED: Duration = Duration::from_secs(2);
/// Between ICE's own keepalives.
const ICE_KEEPALIVE: Duration = Duration::from_millis(300);
/// Passes callbacks on. They run inside the connection's loop: waiting here would stall it.
struct Handler {
    notices: mpsc::Sender<Notice>,
}

impl Handler {
    fn tell(&self, notice: Notice) {
        if self.notices.try_send(notice).is_err() {
            tracing::debug!("a notice of a link was dropped: too many wait, or it has ended");
        }
    }
}

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_ice_candidate(&self, event: RTCPeerConnectionIceEvent) {
        match event.candidate.to_json() {
            Ok(candidate) => self.tell(Notice::Candidate(candidate)),
            Err(error) => tracing::debug!(%error, "a candidate could not be written"),
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        self.tell(Notice::State(state));
    }

    async fn on_data_channel(&self, channel: Arc<dyn DataChannel>) {
        self.tell(Notice::Channel(channel));
    }
}

/// ICE servers and policy, as the stack wants them.
pub(super) fn configuration(config: &RtcConfig) -> RTCConfiguration {
    let servers = config
        .ice_servers
        .iter()
        .map(|server| RTCIceServer {
            urls: server.urls.clone(),
            username: server.username.clone().unwrap_or_default(),
            credential: server.credential.clone().unwrap_or_default(),
        })
        .collect();
    let policy = if config.relay_only {
        RTCIceTransportPolicy::Relay
    } else {
        RTCIceTransportPolicy::All
    };
    RTCConfigurationBuilder::new()
        .with_ice_servers(servers)
        .with_ice_transport_policy(policy)
        .build()
}

/// Whether there is a relay to go through.
pub(super) fn has_relays(config: &RtcConfig) -> bool {
    config.ice_servers.iter().any(IceServer::is_relay)
}

/// A connection with its sockets bound, before any description.
pub(super) async fn connect(
    config: &RtcConfig,
    notices: mpsc::Sender<Notice>,
) -> Result<(Arc<dyn PeerConnection>, Arc<Rounds>), Error> {
    match build(config, notices.clone(), MulticastDnsMode::QueryOnly).await {
        Ok(made) => Ok(made),
        Err(error) => {
            // Without multicast (a container, a firewall) `.local` candidates stay unknown, but a
            // browser's packets still show its address.
            tracing::debug!(%error, "once more without multicast DNS");
            build(config, notices, MulticastDnsMode::Disabled).await
        }
    }
}

async fn build(
    config: &RtcConfig,
    notices: mpsc::Sender<Notice>,
    multicast: MulticastDnsMode,
) -> Result<(Arc<dyn PeerConnection>, Arc<Rounds>), Error> {
    let rounds = Rounds::new(has_relays(config));
    let settings = SettingEngineBuilder::new()
        .with_sctp_max_message_size(SctpMaxMessageSize::Bounded(MESSAGE_BYTES_MAX))
        .with_ice_timeouts(
            Some(ICE_DISCONNECTED),
            Some(ICE_FAILED),
            Some(ICE_KEEPALIVE),
        )
        .with_multicast_dns_mode(multicast)
        .with_include_loopback_candidate(config.loopback)
        // A restart binds new sockets: the old ones may belong to a network that this machine has left.
        .with_discard_local_candidates_during_ice_restart(true)
        .build();
    let connection = PeerConnectionBuilder::new()
        .with_configuration(configuration(config))
        .with_setting_engine(settings)
        .with_handler(Arc::new(Handler { notices }))
        .with_runtime(Arc::new(TunedRuntime {
            rounds: Arc::clone(&rounds),
            traffic: Arc::clone(&config.traffic),
        }))
        .with_udp_addrs(config.bind_addresses())
        .with_data_channel_send_buffer_limit(STACK_BYTES_MAX)
        .build()
        .await?;
    Ok((Arc::new(connection), rounds))
}

/// Whether the pair of candidates in use has a relay at either end.
pub(super) async fn is_relayed(connection: &dyn PeerConnection) -> bool {
    let report = connection
        .get_stats(Instant::now(), StatsSelector::None)
        .await;
    let selected = report
        .transport()
        .map(|transport| transport.selected_candidate_pair_id.clone());
    let Some(pair) = report
        .candidate_pairs()
        .find(|pair| Some(&pair.stats.id) == selected.as_ref())
        .or_else(|| report.candidate_pairs().find(|pair| pair.nominated))
    else {
        return false;
    };
    let in_use = |id: &str| {
        id.ends_with(&pair.local_candidate_id) || id.ends_with(&pair.remote_candidate_id)
    };
    report.iter().any(|entry| {
        matches!(
            entry,
            RTCStatsReportEntry::LocalCandidate(candidate)
            | RTCStatsReportEntry::RemoteCandidate(candidate)
                if candidate.candidate_type == RTCIceCandidateType::Relay && in_use(entry.id())
        )
    })
}
