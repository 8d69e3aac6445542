//! ICE servers for volunteers, with TURN credentials that expire.
//!
//! The form is coturn's `use-auth-secret` (draft-uberti-behave-turn-rest): the user name is `<expiry>:<id>`,
//! the password the base64 of its HMAC-SHA1 under a secret that host and TURN server share.
//!
//! A volunteer gets credentials with its welcome, and new ones when half of their time is over ([`Renewals`]): whenever
//! it opens or restarts a link, at least half of the time is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use shared::units::{PeerId, Span, Time};
use shared::wire::signal::IceServer;

/// How long credentials are good where nobody says otherwise. A link that is open keeps its relay as long as it
/// refreshes it.
pub const CREDENTIAL_SECS: u32 = 24 * 3_600;

/// The ICE servers of the run.
#[derive(Clone, Default)]
pub struct IceServers {
    urls: Vec<String>,
    secret: Option<String>,
    credential_secs: u32,
}

impl fmt::Debug for IceServers {
    /// Without the secret: this goes to logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IceServers")
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

/// Why ICE servers were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IceServerError {
    /// Not an address of an ICE server.
    #[error("'{url}' is no ICE server: write stun:HOST:PORT, turn:HOST:PORT or turns:HOST:PORT")]
    Scheme {
        /// What was written.
        url: String,
    },
    /// A relay without a way to use it.
    #[error(
        "{url} needs --turn-secret, the shared secret of the TURN server (coturn: use-auth-secret)"
    )]
    Secret {
        /// The relay.
        url: String,
    },
}

fn is_relay(url: &str) -> bool {
    url.starts_with("turn:") || url.starts_with("turns:")
}

impl IceServers {
    /// Checks what was written on the command line.
    ///
    /// # Errors
    /// An address of another kind, or a relay without the secret.
    pub fn new(
        urls: Vec<String>,
        secret: Option<String>,
        credential_secs: u32,
    ) -> Result<Self, IceServerError> {
        for url in &urls {
            if !is_relay(url) && !url.starts_with("stun:") && !url.starts_with("stuns:") {
                return Err(IceServerError::Scheme { url: url.clone() });
            }
            if is_relay(url) && secret.is_none() {
                return Err(IceServerError::Secret { url: url.clone() });
            }
        }
        Ok(Self {
            urls,
            secret,
            credential_secs,
        })
    }

    /// How long after credentials were given new ones are due; `None` where no server needs any.
    #[must_use]
    pub fn renewal(&self) -> Option<Span> {
        let needed = self.urls.iter().any(|url| is_relay(url));
        needed.then(|| Span::from_micros(u64::from(self.credential_secs) * 500_000))
    }

    /// Whether there is none: then only volunteers in one network find each other.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.urls.is_empty()
    }

    /// The list for one volunteer, with credentials that are good from now on for as long as was asked.
    #[must_use]
    pub fn for_peer(&self, peer: PeerId, now: SystemTime) -> Vec<IceServer> {
        let now_secs = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |passed| passed.as_secs());
        self.urls
            .iter()
            .map(|url| {
                let secret = self.secret.as_deref().filter(|_| is_relay(url));
                let credential = secret.map(|secret| {
                    let username = format!("{}:{peer}", now_secs + u64::from(self.credential_secs));
                    let password = password(secret, &username);
                    (username, password)
                });
                let (username, credential) = credential.unzip();
                IceServer {
                    urls: vec![url.clone()],
                    username,
                    credential,
                }
            })
            .collect()
    }
}

/// Which connections need new credentials, and when.
#[derive(Debug, Default)]
pub struct Renewals {
    due: BTreeSet<(Time, u64)>,
    of: BTreeMap<u64, (Time, PeerId)>,
}

impl Renewals {
    /// A connection needs new ones at `at`; what was noted of it before is void.
    pub fn add(&mut self, connection: u64, peer: PeerId, at: Time) {
        self.remove(connection);
        self.due.insert((at, connection));
        self.of.insert(connection, (at, peer));
    }

    /// A connection has ended.
    pub fn remove(&mut self, connection: u64) {
        if let Some((at, _)) = self.of.remove(&connection) {
            self.due.remove(&(at, connection));
        }
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    /// One that is due by now. It is forgotten: [`Renewals::add`] it again.
    pub fn take(&mut self, now: Time) -> Option<(u64, PeerId)> {
        let (_, connection) = *self.due.first().filter(|(at, _)| *at <= now)?;
        self.due.pop_first();
        let (_, peer) = self.of.remove(&connection)?;
        Some((connection, peer))
    }
}

fn password(secret: &str, username: &str) -> String {
    let mut mac =
        Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(username.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_password_is_the_hmac_of_the_user_name() {
        // RFC 2202, test case 2: HMAC-SHA1("Jefe", "what do ya want for nothing?").
        let expected = [
            0xef, 0xfc, 0xdf, 0x6a, 0xe5, 0xeb, 0x2f, 0xa2, 0xd2, 0x74, 0x16, 0xd5, 0xf1, 0x84,
            0xdf, 0x9c, 0x25, 0x9a, 0x7c, 0x79,
        ];
        assert_eq!(
            password("Jefe", "what do ya want for nothing?"),
            STANDARD.encode(expected)
        );
    }

    #[test]
    fn only_relays_get_credentials_and_these_expire() {
        let urls = vec!["stun:a:3478".to_owned(), "turn:b:3478".to_owned()];
        let servers = IceServers::new(urls, Some("secret".to_owned()), CREDENTIAL_SECS).unwrap();
        let list = servers.for_peer(PeerId(9), UNIX_EPOCH + Duration::from_secs(1_000));
        assert_eq!(list[0].username, None);
        assert_eq!(list[1].username.as_deref(), Some("87400:9"));
        assert_eq!(list[1].credential, Some(password("secret", "87400:9")));
        assert!(!format!("{servers:?}").contains("secret"));
    }

    #[test]
    fn credentials_are_renewed_when_half_of_their_time_is_over_and_only_where_needed() {
        let servers = |url: &str| {
            IceServers::new(vec![url.to_owned()], Some("secret".to_owned()), 60).unwrap()
        };
        assert_eq!(servers("turn:b").renewal(), Some(Span::from_secs(30)));
        assert_eq!(servers("stun:b").renewal(), None);
    }

    #[test]
    fn each_connection_is_due_once_at_its_time_and_never_after_its_end() {
        let at = |seconds| Time::ZERO + Span::from_secs(seconds);
        let mut renewals = Renewals::default();
        renewals.add(1, PeerId(11), at(30));
        renewals.add(2, PeerId(12), at(20));
        renewals.add(3, PeerId(13), at(10));
        renewals.add(3, PeerId(13), at(25));
        renewals.remove(2);
        assert_eq!(renewals.next(), Some(at(25)));
        assert_eq!(renewals.take(at(24)), None);
        assert_eq!(renewals.take(at(30)), Some((3, PeerId(13))));
        assert_eq!(renewals.take(at(30)), Some((1, PeerId(11))));
        assert_eq!((renewals.take(at(99)), renewals.next()), (None, None));
    }

    #[test]
    fn other_addresses_and_relays_without_secret_are_refused() {
        let refused = |url: &str| {
            IceServers::new(vec![url.to_owned()], None, CREDENTIAL_SECS)
                .unwrap_err()
                .to_string()
        };
        assert!(refused("https://a").starts_with("'https://a' is no ICE server"));
        assert!(refused("turns:a").starts_with("turns:a needs --turn-secret"));
    }
}
