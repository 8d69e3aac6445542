//! Trying a run's STUN and TURN servers by themselves: do they answer, and what do they say.
//!
//! A connection tells only which candidates it found, never why there are no others. So each server is asked
//! once in the way in which a connection asks it, by the same stack: a binding from a STUN server, an allocation
//! from a TURN server, which is given back at once. Nothing here is needed for a link to open.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rtc::ice::url::{SchemeType, Url};
use rtc::sansio::Protocol;
use rtc::shared::{TaggedBytesMut, TransportContext, TransportProtocol};
use rtc::turn::client::{Client, ClientConfig, Event};
use shared::wire::signal::IceServer;
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::timeout;
use webrtc::peer_connection::RTCIceServer;

/// How long a server may take to answer, the lookup of its name and an allocation's two questions included.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long its name may take to be looked up, before that is what is wrong.
pub(super) const LOOKUP_MAX: Duration = Duration::from_secs(1);
/// A STUN message is never longer.
const DATAGRAM_BYTES_MAX: usize = 2_048;

/// What a server is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A STUN server: our address as the world sees it.
    Reflexive(SocketAddr),
    /// A TURN server: the address that it would receive for us.
    Relayed(SocketAddr),
}

/// Why a server is of no use to this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IceError {
    /// The address can't be read.
    #[error("it is no address of an ICE server: {reason}")]
    Url {
        /// What the reader said.
        reason: String,
    },
    /// This build reaches servers over UDP only.
    #[error("this client reaches STUN and TURN servers over UDP only; a browser may use it")]
    Transport,
    /// Its name has no address, or none that we could send from.
    #[error("its name has no address that can be reached from here: {reason}")]
    Name {
        /// What the system said.
        reason: String,
    },
    /// No answer.
    #[error("no answer within {} s: it is down, or a firewall keeps UDP from it", ANSWER_MAX.as_secs())]
    Silent,
    /// The credentials are wrong.
    #[error(
        "it refuses the run's credentials ({reason}): the host's --turn-secret is not that server's"
    )]
    Credentials {
        /// What it said.
        reason: String,
    },
    /// It answered with an error.
    #[error("it refuses: {reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
    /// The system refuses.
    #[error("this machine could not ask: {reason}")]
    System {
        /// What it said.
        reason: String,
    },
}

/// One address that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The address, as the host named it.
    pub url: String,
    /// Whether it is a TURN server.
    pub is_relay: bool,
    /// What came of it.
    pub outcome: Result<Answer, IceError>,
}

/// Asks each address of each server, all at once.
pub async fn try_servers(servers: &[IceServer]) -> Vec<Tried> {
    let each = servers.iter().flat_map(|server| {
        server.urls.iter().map(|url| async {
            let alone = IceServer {
                urls: vec![url.clone()],
                ..server.clone()
            };
            Tried {
                url: url.clone(),
                is_relay: alone.is_relay(),
                outcome: try_server(&alone).await,
            }
        })
    });
    futures_util::future::join_all(each).await
}

async fn try_server(server: &IceServer) -> Result<Answer, IceError> {
    let parsed = RTCIceServer {
        urls: server.urls.clone(),
        username: server.username.clone().unwrap_or_default(),
        credential: server.credential.clone().unwrap_or_default(),
    };
    let url = parsed.urls().map_err(|error| IceError::Url {
        reason: error.to_string(),
    })?;
    let url = url.first().ok_or_else(|| IceError::Url {
        reason: "it is empty".to_owned(),
    })?;
    if url.is_secure() || url.proto.to_string() != "udp" {
        return Err(IceError::Transport);
    }
    let answer = async {
        let to = look_up(url).await?;
        let socket = connected(to).await.map_err(system)?;
        ask(&socket, url, to).await
    };
    timeout(ANSWER_MAX, answer)
        .await
        .unwrap_or(Err(IceError::Silent))
}

async fn look_up(url: &Url) -> Result<SocketAddr, IceError> {
    let refuse = |reason: String| IceError::Name { reason };
    let host = url.host.trim_start_matches('[').trim_end_matches(']');
    let found = timeout(LOOKUP_MAX, lookup_host((host, url.port))).await;
    let found = found.map_err(|_| refuse("the lookup takes too long".to_owned()))?;
    let mut found = found.map_err(|error| refuse(error.to_string()))?;
    found
        .next()
        .ok_or_else(|| refuse("no address came back".to_owned()))
}

fn system(error: std::io::Error) -> IceError {
    IceError::System {
        reason: error.to_string(),
    }
}

async fn connected(to: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// Asks until there is an answer; the caller bounds it.
async fn ask(socket: &UdpSocket, url: &Url, to: SocketAddr) -> Result<Answer, IceError> {
    let refused = |error: rtc::shared::error::Error| {
        let reason = error.to_string();
        match reason.contains("401") || reason.contains("Unauthorized") {
            true => IceError::Credentials { reason },
            false => IceError::Refused { reason },
        }
    };
    let is_relay = url.scheme == SchemeType::Turn;
    let local_addr = socket.local_addr().map_err(system)?;
    let config = ClientConfig {
        stun_serv_addr: to.to_string(),
        turn_serv_addr: to.to_string(),
        local_addr,
        transport_protocol: TransportProtocol::UDP,
        username: url.username.clone(),
        password: url.password.clone(),
        ..ClientConfig::default()
    };
    let provider = rtc::crypto::default_provider().map_err(|error| IceError::System {
        reason: error.to_string(),
    })?;
    let mut client = Client::new(config, provider).map_err(refused)?;
    if is_relay {
        client.allocate(Instant::now()).map_err(refused)?;
    } else {
        client
            .send_binding_request(Instant::now())
            .map_err(refused)?;
    }
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        send_all(socket, &mut client).await?;
        while let Some(event) = client.poll_event() {
            if let Event::BindingResponse(_, address) = event {
                return Ok(Answer::Reflexive(address));
            } else if let Event::AllocateResponse(_, address) = event {
                // Given back: others may need it.
                if let Ok(mut relay) = client.relay(address) {
                    drop(relay.close(Instant::now()));
                }
                send_all(socket, &mut client).await?;
                return Ok(Answer::Relayed(address));
            } else if let Event::BindingError(_, error) | Event::AllocateError(_, error) = event {
                return Err(refused(error));
            }
        }
        let at = client
            .poll_timeout()
            .unwrap_or_else(|| Instant::now() + ANSWER_MAX);
        tokio::select! {
            received = socket.recv(&mut datagram) => {
                // A refused datagram may come back as an error: the same as silence, but sooner.
                let len = received.map_err(|_| IceError::Silent)?;
                let message = TaggedBytesMut {
                    now: Instant::now(),
                    transport: TransportContext {
                        local_addr,
                        peer_addr: to,
                        ecn: None,
                        transport_protocol: TransportProtocol::UDP,
                    },
                    message: BytesMut::from(&datagram[..len]),
                };
                client.handle_read(message).map_err(refused)?;
            }
            () = tokio::time::sleep_until(at.into()) => {
                client.handle_timeout(Instant::now()).map_err(refused)?;
            }
        }
    }
}

async fn send_all(socket: &UdpSocket, client: &mut Client) -> Result<(), IceError> {
    while let Some(message) = client.poll_write() {
        socket.send(&message.message).await.map_err(system)?;
    }
    Ok(())
}

/// What a person is told of relays that are of no use; `None` if all is well.
#[must_use]
pub fn trouble(tried: &[Tried], relay_only: bool) -> Option<String> {
    let failed = |one: &&Tried| one.outcome.is_err();
    let said: Vec<String> = tried
        .iter()
        .filter(|one| one.is_relay)
        .filter(failed)
        .filter_map(|one| Some(format!("{}: {}", one.url, one.outcome.as_ref().err()?)))
        .collect();
    let relays = tried.iter().filter(|one| one.is_relay).count();
    if relay_only && relays == 0 {
        return Some(
            "--relay-only, but the run has no TURN server: no link can be opened. Leave --relay-only out, or ask \
             the host for one (--ice-server turn:...)"
                .to_owned(),
        );
    }
    if said.is_empty() {
        return None;
    }
    let rest = match (relay_only, said.len() == relays) {
        (true, true) => "no link can be opened with --relay-only; tell the host",
        (false, true) => "only direct links can be opened; tell the host",
        (_, false) => "other relays work; tell the host",
    };
    Some(format!(
        "a relay does not work: {}: {rest}",
        said.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(url: &str, outcome: Result<Answer, IceError>) -> Tried {
        Tried {
            url: url.to_owned(),
            is_relay: url.starts_with("turn"),
            outcome,
        }
    }

    #[test]
    fn a_person_is_told_what_is_wrong_with_relays_and_what_follows() {
        let well = || Ok(Answer::Relayed(([10, 0, 0, 1], 9).into()));
        let wrong = || {
            let reason = "error 401".to_owned();
            Err(IceError::Credentials { reason })
        };
        assert_eq!(trouble(&[tried("turn:a", well())], true), None);
        let stun = tried("stun:a", Err(IceError::Silent));
        assert_eq!(
            trouble(std::slice::from_ref(&stun), false),
            None,
            "links open without"
        );
        let said = [
            trouble(&[stun], true),
            trouble(&[tried("turn:a", wrong())], true),
            trouble(&[tried("turn:a", Err(IceError::Silent))], false),
            trouble(&[tried("turn:a", wrong()), tried("turn:b", well())], false),
        ];
        for (text, part) in said.into_iter().zip([
            "the run has no TURN server",
            "turn:a: it refuses the run's credentials (error 401): the host's --turn-secret is not that server's: no \
             link can be opened with --relay-only; tell the host",
            "turn:a: no answer within 2 s: it is down, or a firewall keeps UDP from it: only direct links can be \
             opened; tell the host",
            "other relays work",
        ]) {
            let text = text.unwrap();
            assert!(text.contains(part), "{text}");
        }
    }

    #[tokio::test]
    async fn a_server_that_swallows_packets_is_silent_and_one_that_is_none_is_said_so() {
        let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = dead.local_addr().unwrap().port();
        let server = |url: String| IceServer {
            urls: vec![url],
            username: Some("u".to_owned()),
            credential: Some("c".to_owned()),
        };
        let servers = [
            server(format!("stun:127.0.0.1:{port}")),
            server(format!("turn:127.0.0.1:{port}")),
            server("turns:127.0.0.1:5349".to_owned()),
            server("turn:127.0.0.1?transport=tcp".to_owned()),
        ];
        let began = Instant::now();
        let outcomes: Vec<_> = try_servers(&servers)
            .await
            .into_iter()
            .map(|one| one.outcome.unwrap_err())
            .collect();
        let expected = [
            IceError::Silent,
            IceError::Silent,
            IceError::Transport,
            IceError::Transport,
        ];
        assert_eq!(outcomes, expected);
        assert!(began.elapsed() < 2 * ANSWER_MAX, "they are asked at once");
    }
}
