//! The host as a volunteer sees it: an address, a WebSocket and a few files over HTTP.
//!
//! [`HostLink`] is what a person types; [`socket`] keeps the conversation going, [`http`] fetches
//! token windows and blobs and sends uploads. What the messages mean is decided elsewhere.
//!
//! Invariant: whatever the host sends is bounded before it is kept.

pub mod http;
pub mod socket;

use std::net::IpAddr;
use std::str::FromStr;

use reqwest::Url;

/// Path of the WebSocket under the host's address.
pub const SOCKET_PATH: &str = "ws";

/// A link to a run: `https://host/`, `https://host/r/CODE`, or just `host:8080`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLink {
    /// The host's address; its path ends with a slash.
    base: Url,
    /// What follows `/r/`: an invitation.
    pub invite: Option<String>,
}

/// Text that is no link to a run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is not a link to a run: {reason}. Links look like https://host/ or http://localhost:8080"
)]
pub struct HostLinkError {
    text: String,
    reason: String,
}

impl FromStr for HostLink {
    type Err = HostLinkError;

    fn from_str(text: &str) -> Result<Self, HostLinkError> {
        let refuse = |reason: &str| HostLinkError {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let full = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let mut base = Url::parse(&full).map_err(|error| refuse(&error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(refuse("it must begin with http:// or https://"));
        }
        if base.host_str().is_none_or(str::is_empty) {
            return Err(refuse("it names no host"));
        }
        base.set_query(None);
        base.set_fragment(None);
        let path = base.path().trim_end_matches('/').to_owned();
        let (folder, invite) = match path.rsplit_once("/r/") {
            Some((folder, code)) if !code.is_empty() && !code.contains('/') => {
                (folder.to_owned(), Some(code.to_owned()))
            }
            _ => (path, None),
        };
        base.set_path(&format!("{folder}/"));
        Ok(Self { base, invite })
    }
}

impl std::fmt::Display for HostLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.base.fmt(f)
    }
}

impl HostLink {
    /// The address of something under the host's own; a leading slash means nothing.
    ///
    /// # Errors
    /// The path leads elsewhere: the host names paths under its own address only.
    pub fn at(&self, path: &str) -> Result<Url, HostError> {
        let elsewhere = || HostError::Path {
            path: path.to_owned(),
        };
        let relative = path.trim_start_matches('/');
        let url = self.base.join(relative).map_err(|_| elsewhere())?;
        let inside = url.origin() == self.base.origin() && url.path().starts_with(self.base.path());
        if inside { Ok(url) } else { Err(elsewhere()) }
    }

    /// The address of the host's WebSocket.
    pub fn socket(&self) -> Url {
        let mut url = self.at(SOCKET_PATH).expect("a plain word is a path");
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        url.set_scheme(scheme)
            .expect("ws and wss are schemes of the same kind as http");
        url
    }

    /// Whether what is said to the host and by it can be read and changed on the way.
    pub fn is_encrypted(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// Whether the host runs on this machine, so that peers may do so too.
    pub fn is_loopback(&self) -> bool {
        let host = self.base.host_str().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// Why something could not be had from the host, or given to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// No answer, or the connection broke. Worth another try.
    #[error("{url} cannot be reached: {reason}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// The host answered, and not with what was asked for.
    #[error("{url} answered {status}{text}")]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP's status.
        status: u16,
        /// The beginning of what it said, after a colon.
        text: String,
    },
    /// The answer is larger than it may be, or not as long as it must be.
    #[error("{url} sent {got} bytes instead of {wanted}")]
    Length {
        /// What was asked for.
        url: String,
        /// What came, at least.
        got: u64,
        /// What was wanted, at most.
        wanted: u64,
    },
    /// The content is not what its name says. Take another source.
    #[error("{url} does not hold what its hash says")]
    Hash {
        /// What was asked for.
        url: String,
    },
    /// The host named a path that is not under its address.
    #[error("\"{path}\" is not a path of this host")]
    Path {
        /// What it named.
        path: String,
    },
    /// The answer is no JSON of the kind that was asked for.
    #[error("{url} is not a Shoal host of this version: {reason}")]
    Format {
        /// What was asked for.
        url: String,
        /// What the reader said.
        reason: String,
    },
}

/// Makes TLS usable: once a process, before the first connection.
pub(crate) fn prepare_tls() {
    // An error means that a provider was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What an error and all that caused it say, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = inner.source();
    }
    text
}

/// What is behind an error: the last of its causes, which says what a person can act on.
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(inner) = last.source() {
        last = inner;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_read_in_every_form_that_people_type() {
        let check = |text: &str, base: &str, socket: &str, invite: Option<&str>| {
            let link: HostLink = text.parse().expect(text);
            assert_eq!(link.to_string(), base);
            assert_eq!(link.socket().as_str(), socket);
            assert_eq!(link.invite.as_deref(), invite);
        };
        check(
            "localhost:8080",
            "http://localhost:8080/",
            "ws://localhost:8080/ws",
            None,
        );
        check(
            "https://a.example",
            "https://a.example/",
            "wss://a.example/ws",
            None,
        );
        check(
            "https://a.example/r/K7?x=1#y",
            "https://a.example/",
            "wss://a.example/ws",
            Some("K7"),
        );
        check(
            "https://a.example/shoal/r/K7/",
            "https://a.example/shoal/",
            "wss://a.example/shoal/ws",
            Some("K7"),
        );
        for bad in ["", "ftp://a.example", "http://", "https://a b/"] {
            assert!(bad.parse::<HostLink>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (text, expected) in [
            ("http://localhost:1", true),
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("http://10.0.0.1:1", false),
            ("https://localhost.example", false),
        ] {
            assert_eq!(
                text.parse::<HostLink>().unwrap().is_loopback(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn a_path_that_leads_away_from_the_host_is_refused() {
        let link: HostLink = "http://a.example/shoal/".parse().unwrap();
        assert_eq!(
            link.at("/store/blobs/ab").unwrap().as_str(),
            "http://a.example/shoal/store/blobs/ab"
        );
        for bad in ["../secret", "https://b.example/x", "/../x"] {
            assert!(link.at(bad).is_err(), "{bad}");
        }
        assert!(
            link.at("//b.example/x")
                .is_ok_and(|url| url.host_str() == Some("a.example"))
        );
    }
}
