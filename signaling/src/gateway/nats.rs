//! The connection to NATS: where the servers are, who we are to them, and how subjects are called.
//!
//! Only this module knows how to connect. A connection that breaks is tried again for ever, with pauses that grow; what was
//! published meanwhile waits, within bounds, and the sessions above notice what is lost. Whoever starts without any
//! server in reach is told so and ends: a wrong address does not heal.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, RequestErrorKind, ServerAddr, Subscriber};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use shared::limits::GATEWAY_SILENCE_MAX;
use tokio::time::timeout;

/// Packets for NATS that wait while it is slow or away; then whoever publishes waits.
const WAITING_MAX: usize = 1_024;
/// Between two tries to reach a server, at first; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
/// ... and at most.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long one try may take, and an answer of whoever holds the run's subjects.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Between two questions to the server whether it is there: a broken connection is noticed so.
const PING_EVERY: Duration = Duration::from_secs(2);
/// What stays as it is in a subject.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// Why gateways can't be joined to a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NatsError {
    /// The address is none.
    #[error(
        "--nats: {reason}. Write nats://HOST:4222, or tls://HOST:4222; several servers with commas between them"
    )]
    Address {
        /// What is wrong.
        reason: String,
    },
    /// The credentials can't be read.
    #[error("--nats-credentials {}: {reason}. It must be a file as `nsc generate creds` writes it", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// No server answers, or none lets us in.
    #[error("no NATS server is in reach at {servers}: {reason}. Start one, or correct --nats")]
    Unreachable {
        /// Where it was looked for.
        servers: String,
        /// What the last one said.
        reason: String,
    },
    /// Messages of this run do not fit.
    #[error(
        "the NATS server takes messages of {bytes} bytes at most, and this run needs {needed}: set max_payload: {needed} in \
         its configuration"
    )]
    Payload {
        /// What it takes.
        bytes: usize,
        /// The longest packet of the run.
        needed: usize,
    },
    /// Another host is there.
    #[error(
        "another host serves gateways of a run named '{run}' at this NATS server: stop it, or give this run another name"
    )]
    Taken {
        /// The run's name.
        run: String,
    },
    /// The client gave up.
    #[error("NATS: {reason}")]
    Failed {
        /// What it said.
        reason: String,
    },
}

impl NatsError {
    /// Whether what was asked for can't be done, rather than that something failed.
    #[must_use]
    pub fn is_wrong_use(&self) -> bool {
        match self {
            Self::Address { .. }
            | Self::Credentials { .. }
            | Self::Payload { .. }
            | Self::Taken { .. } => true,
            Self::Unreachable { .. } | Self::Failed { .. } => false,
        }
    }
}

/// Where the servers are, and who we are to them.
#[derive(Clone)]
pub struct Servers {
    addresses: Vec<ServerAddr>,
    credentials: Option<PathBuf>,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Servers").field(&self.places()).finish()
    }
}

impl Servers {
    /// Reads addresses.
    ///
    /// # Errors
    /// [`NatsError::Address`].
    pub fn new(addresses: &[String], credentials: Option<PathBuf>) -> Result<Self, NatsError> {
        let parse = |text: &String| {
            let parsed: Result<ServerAddr, _> = text.parse();
            parsed.map_err(|error| NatsError::Address {
                reason: error.to_string(),
            })
        };
        Ok(Self {
            addresses: addresses.iter().map(parse).collect::<Result<_, _>>()?,
            credentials,
        })
    }

    /// The servers, without names and passwords.
    #[must_use]
    pub fn places(&self) -> String {
        let place = |address: &ServerAddr| format!("{}:{}", address.host(), address.port());
        let places: Vec<String> = self.addresses.iter().map(place).collect();
        places.join(", ")
    }

    /// Connects as `name`; so many messages may wait for each subscription.
    ///
    /// # Errors
    /// See [`NatsError`].
    pub async fn connect(&self, name: &str, waiting_max: usize) -> Result<Client, NatsError> {
        // TLS needs a provider; an error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut options = ConnectOptions::new()
            .name(name)
            .client_capacity(WAITING_MAX)
            .subscription_capacity(waiting_max)
            .connection_timeout(ANSWER_MAX)
            .request_timeout(Some(ANSWER_MAX))
            .ping_interval(PING_EVERY)
            .max_reconnects(None)
            .reconnect_delay_callback(pause)
            .event_callback(tell);
        if let Some((user, password)) = self.addresses.iter().find_map(user) {
            options = match password {
                Some(password) => options.user_and_password(user, password),
                None => options.token(user),
            };
        }
        if let Some(path) = &self.credentials {
            let read = options.credentials_file(path).await;
            options = read.map_err(|error| NatsError::Credentials {
                path: path.clone(),
                reason: error.to_string(),
            })?;
        }
        // Without name and password: the client writes addresses into its log.
        let addresses: Vec<ServerAddr> = self.addresses.iter().filter_map(bare).collect();
        let connected = options.connect(addresses.as_slice()).await;
        connected.map_err(|error| NatsError::Unreachable {
            servers: self.places(),
            reason: error.to_string(),
        })
    }
}

/// Name and password, or a token alone, as an address has them.
fn user(address: &ServerAddr) -> Option<(String, Option<String>)> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let password = address.password().map(decode);
    address.username().map(|user| (decode(user), password))
}

/// The address alone.
fn bare(address: &ServerAddr) -> Option<ServerAddr> {
    let (scheme, rest) = address.as_url_str().split_once("://")?;
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    format!("{scheme}://{place}").parse().ok()
}

fn pause(tries: usize) -> Duration {
    let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or(u32::MAX);
    RETRY_MIN
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(RETRY_MAX)
}

async fn tell(event: Event) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => {
            tracing::warn!("the connection to NATS is lost: it is tried again by itself");
        }
        Event::SlowConsumer(_) => {
            tracing::warn!("messages from NATS were dropped: they come faster than they are taken");
        }
        Event::ServerError(error) => tracing::warn!(%error, "NATS"),
        Event::ClientError(error) => tracing::debug!(%error, "NATS"),
        Event::LameDuckMode | Event::Draining | Event::Closed => {
            tracing::info!(%event, "NATS");
        }
    }
}

/// How a run's subjects are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subjects {
    run: String,
}

impl Subjects {
    /// Those of the run with this name.
    #[must_use]
    pub fn new(run: &str) -> Self {
        Self {
            run: format!("shoal.{}", utf8_percent_encode(run, KEPT)),
        }
    }

    /// From that gateway to the host.
    #[must_use]
    pub fn up(&self, gateway: u64) -> String {
        format!("{}.up.{gateway:016x}", self.run)
    }

    /// From all gateways to the host.
    #[must_use]
    pub fn all_up(&self) -> String {
        format!("{}.up.*", self.run)
    }

    /// Which gateway speaks under this subject.
    #[must_use]
    pub fn gateway(&self, subject: &str) -> Option<u64> {
        let (_, number) = subject.rsplit_once('.')?;
        u64::from_str_radix(number, 16).ok()
    }

    /// From the host to that gateway.
    #[must_use]
    pub fn down(&self, gateway: u64) -> String {
        format!("{}.down.{gateway:016x}", self.run)
    }

    /// Where a host answers that it is there.
    #[must_use]
    pub fn host(&self) -> String {
        format!("{}.host", self.run)
    }
}

/// Whether the client has a server at the moment.
#[must_use]
pub fn is_connected(client: &Client) -> bool {
    match client.connection_state() {
        State::Connected => true,
        State::Pending | State::Disconnected => false,
    }
}

/// Listens.
///
/// # Errors
/// The client gave up.
pub async fn subscribe(client: &Client, subject: String) -> Result<Subscriber, NatsError> {
    let subscribed = client.subscribe(subject).await;
    subscribed.map_err(|error| NatsError::Failed {
        reason: error.to_string(),
    })
}

/// Whether a host of this run answers.
pub async fn is_served(client: &Client, subjects: &Subjects) -> bool {
    match client.request(subjects.host(), Bytes::new()).await {
        Ok(_) => true,
        Err(error) => {
            if error.kind() != RequestErrorKind::NoResponders {
                tracing::warn!(%error, "whether another host serves this run is not known");
            }
            false
        }
    }
}

/// Publishes; why not, where NATS takes nothing for so long that the other end is lost anyway.
///
/// # Errors
/// What to say of the session.
pub async fn publish(client: &Client, subject: String, packet: Bytes) -> Result<(), String> {
    let span = Duration::from_micros(GATEWAY_SILENCE_MAX.as_micros());
    publish_within(client, subject, packet, span).await
}

/// Publishes; why not, where NATS takes nothing for so long.
///
/// # Errors
/// What to say of it.
pub async fn publish_within(
    client: &Client,
    subject: String,
    packet: Bytes,
    span: Duration,
) -> Result<(), String> {
    match timeout(span, client.publish(subject, packet)).await {
        Ok(published) => published.map_err(|error| error.to_string()),
        Err(_) => Err("NATS takes nothing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(addresses: &[&str]) -> Result<Servers, NatsError> {
        let addresses: Vec<String> = addresses.iter().map(|&text| text.to_owned()).collect();
        Servers::new(&addresses, None)
    }

    #[test]
    fn addresses_are_read_and_told_without_their_passwords() {
        let servers = servers(&["nats://fish:s%40fe@one:1234", "tls://two", "three"]).unwrap();
        assert_eq!(servers.places(), "one:1234, two:4222, three:4222");
        let bare: Vec<String> = servers
            .addresses
            .iter()
            .filter_map(bare)
            .map(|it| it.as_url_str().to_owned())
            .collect();
        assert_eq!(bare, ["nats://one:1234", "tls://two", "nats://three"]);
        assert!(!format!("{servers:?}").contains("fe@"));
        let known: Vec<_> = servers.addresses.iter().map(user).collect();
        let fish = Some(("fish".to_owned(), Some("s@fe".to_owned())));
        assert_eq!(known, [fish, None, None]);
    }

    #[test]
    fn what_is_no_address_is_refused_in_words() {
        let refused = servers(&["http://one"]).unwrap_err();
        assert!(refused.is_wrong_use());
        let text = refused.to_string();
        assert!(
            text.contains("http") && text.contains("Write nats://"),
            "{text}"
        );
    }

    #[test]
    fn a_run_of_any_name_has_subjects_of_its_own() {
        let subjects = Subjects::new("school <of> fish.*");
        assert_eq!(subjects.host(), "shoal.school%20%3Cof%3E%20fish%2E%2A.host");
        assert_eq!(subjects.gateway(&subjects.up(0xbeef)), Some(0xbeef));
        assert_eq!(subjects.gateway(&subjects.all_up()), None);
        assert_ne!(Subjects::new("a"), Subjects::new("A"));
    }

    #[test]
    fn pauses_grow_and_end_growing() {
        let pauses: Vec<u128> = [0, 1, 2, 3, 9, usize::MAX]
            .map(|tries| pause(tries).as_millis())
            .into();
        assert_eq!(pauses, [100, 100, 200, 400, 2_000, 2_000]);
    }
}
