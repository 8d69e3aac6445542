//! How others can be reached from this browser, with the servers that the run's host names.

use serde::{Deserialize, Serialize};

/// How others can be reached from here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reachability {
    /// Whether the browser makes peer connections at all.
    pub webrtc: bool,
    /// An address of this machine: reaches others in the same network.
    pub host: bool,
    /// An address that the world sees (a STUN server answered): mostly reaches others directly.
    pub reflexive: bool,
    /// A relay's address (a TURN server answered).
    pub relay: bool,
    /// Whether the run has any server that tells how the world sees this browser.
    pub has_servers: bool,
    /// Whether one of them is a relay.
    pub has_relays: bool,
    /// Servers of a kind of which none answered in time.
    pub silent: Vec<String>,
    /// Relays that do not take the credentials that the run's host gave.
    pub refusing: Vec<String>,
}

/// Whether an ICE server's address is a relay's.
fn is_relay(url: &str) -> bool {
    url.starts_with("turn:") || url.starts_with("turns:")
}

impl Reachability {
    /// Notes what became of the run's servers: those at `urls`, of which the ones in `refused` (as the browser writes
    /// them, with a transport behind) turned this browser away.
    ///
    /// A browser does not tell which server gave an address that two of them would give, so none is called silent
    /// where another one of its kind answered.
    pub fn note_servers(&mut self, urls: &[String], refused: &[String]) {
        self.has_servers = !urls.is_empty();
        self.has_relays = urls.iter().any(|url| is_relay(url));
        for url in urls {
            let answered = if is_relay(url) {
                self.relay
            } else {
                self.reflexive
            };
            if answered {
                continue;
            }
            let refuses = |by: &String| by.split('?').next() == url.split('?').next();
            if refused.iter().any(refuses) {
                self.refusing.push(url.clone());
            } else {
                self.silent.push(url.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUN: &str = "stun:a.example:3478";
    const TURN: &str = "turn:b.example:3478";

    fn after(found: Reachability, urls: &[&str], refused: &[&str]) -> Reachability {
        let owned = |list: &[&str]| list.iter().map(|&url| url.to_owned()).collect::<Vec<_>>();
        let mut found = found;
        found.note_servers(&owned(urls), &owned(refused));
        found
    }

    #[test]
    fn a_run_without_servers_has_none_that_are_silent() {
        let found = after(Reachability::default(), &[], &[]);
        assert_eq!(found, Reachability::default());
    }

    #[test]
    fn servers_are_silent_by_their_kind() {
        let reflexive = Reachability {
            reflexive: true,
            ..Reachability::default()
        };
        let found = after(reflexive, &[STUN, "stun:c.example", TURN], &[]);
        assert!(found.has_servers && found.has_relays);
        assert_eq!(found.silent, [TURN]);
        let relay = Reachability {
            relay: true,
            ..Reachability::default()
        };
        assert_eq!(after(relay, &[STUN, TURN], &[]).silent, [STUN]);
        let found = after(Reachability::default(), &[STUN], &[]);
        assert!(found.has_servers && !found.has_relays);
    }

    #[test]
    fn a_relay_that_refuses_is_not_silent() {
        let refused = format!("{TURN}?transport=udp");
        let found = after(Reachability::default(), &[STUN, TURN], &[&refused]);
        assert_eq!(found.silent, [STUN]);
        assert_eq!(found.refusing, [TURN]);
    }
}
