//! ICE servers for volunteers, with TURN credentials that expire.
//!
//! The form is coturn's `use-auth-secret` (draft-uberti-behave-turn-rest): the user name is `<expiry>:<id>`,
//! the password the base64 of its HMAC-SHA1 under a secret that host and TURN server share.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use shared::units::PeerId;
use shared::wire::signal::IceServer;

/// How long credentials are good: links that are open stay open after, new ones need a new join.
pub const CREDENTIAL_SECS: u64 = 24 * 3_600;

/// The ICE servers of the run.
#[derive(Clone, Default)]
pub struct IceServers {
    urls: Vec<String>,
    secret: Option<String>,
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
    pub fn new(urls: Vec<String>, secret: Option<String>) -> Result<Self, IceServerError> {
        for url in &urls {
            if !is_relay(url) && !url.starts_with("stun:") && !url.starts_with("stuns:") {
                return Err(IceServerError::Scheme { url: url.clone() });
            }
            if is_relay(url) && secret.is_none() {
                return Err(IceServerError::Secret { url: url.clone() });
            }
        }
        Ok(Self { urls, secret })
    }

    /// Whether there is none: then only volunteers in one network find each other.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.urls.is_empty()
    }

    /// The list for one volunteer, with credentials good for [`CREDENTIAL_SECS`] from now.
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
                    let username = format!("{}:{peer}", now_secs + CREDENTIAL_SECS);
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
        let servers = IceServers::new(urls, Some("secret".to_owned())).unwrap();
        let list = servers.for_peer(PeerId(9), UNIX_EPOCH + Duration::from_secs(1_000));
        assert_eq!(list[0].username, None);
        assert_eq!(list[1].username.as_deref(), Some("87400:9"));
        assert_eq!(list[1].credential, Some(password("secret", "87400:9")));
        assert!(!format!("{servers:?}").contains("secret"));
    }

    #[test]
    fn other_addresses_and_relays_without_secret_are_refused() {
        let refused = |url: &str| {
            IceServers::new(vec![url.to_owned()], None)
                .unwrap_err()
                .to_string()
        };
        assert!(refused("https://a").starts_with("'https://a' is no ICE server"));
        assert!(refused("turns:a").starts_with("turns:a needs --turn-secret"));
    }
}
