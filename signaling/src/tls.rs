//! https without a proxy in front: certificate and key from files, checked at the start, and TLS on each connection.
//!
//! Only this module knows TLS. What it accepts are streams like those of a plain listener, so that all else is the
//! same over http and https. Handshakes run beside each other, bounded in number and time: whoever is slow or speaks no
//! TLS keeps nobody else waiting.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::serve::Listener;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Handshakes at a time; a newcomer beyond them waits in the system's queue.
const HANDSHAKES_MAX: usize = 256;
/// How long one may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Connections that wait to be served.
const ACCEPTED_MAX: usize = 64;
/// Pause after the system gave no connection, when it has run out of files for example.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// Why https is not possible with the files given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file can't be read, or holds nothing of the kind.
    #[error("{option} {}: {reason}. It must be a PEM file with {wanted}", path.display())]
    File {
        /// The flag that named it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
        /// What it must hold.
        wanted: &'static str,
    },
    /// They do not belong together, or the key is of an unknown kind.
    #[error("--tls-cert {} and --tls-key {} do not fit together: {reason}. Give the key that the certificate was made for", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What the TLS library said.
        reason: String,
    },
    /// Nobody would accept it today.
    #[error("--tls-cert {}: the certificate {problem}. Renew it, or correct this machine's clock", path.display())]
    Time {
        /// The certificate's file.
        path: PathBuf,
        /// Since or until when.
        problem: String,
    },
}

/// Certificate and key, ready to use.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    /// The first host name that the certificate is for, if it names one that is not a pattern.
    pub name: Option<String>,
}

impl Tls {
    /// Reads and checks certificate chain and key.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn read(certificate: &Path, key: &Path, now: SystemTime) -> Result<Self, TlsError> {
        let (wanted, option) = ("the certificate and those that signed it", "--tls-cert");
        let refuse = |reason: String| TlsError::File {
            option,
            path: certificate.to_owned(),
            reason,
            wanted,
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect)
            .map_err(|error| refuse(error.to_string()))?;
        let Some(first) = chain.first() else {
            return Err(refuse("no certificate is in it".to_owned()));
        };
        let (_, parsed) = X509Certificate::from_der(first)
            .map_err(|error| refuse(format!("the certificate can't be read: {error}")))?;
        check_time(certificate, &parsed, now)?;
        let name = host_name(&parsed);
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::File {
            option: "--tls-key",
            path: key.to_owned(),
            reason: error.to_string(),
            wanted: "the certificate's private key",
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(chain, private)
            });
        let mut config = config.map_err(|error| TlsError::Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            reason: error.to_string(),
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }
}

fn check_time(path: &Path, parsed: &X509Certificate<'_>, now: SystemTime) -> Result<(), TlsError> {
    let now_secs = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |passed| passed.as_secs());
    let now_secs = i64::try_from(now_secs).unwrap_or(i64::MAX);
    let (from, to) = (parsed.validity().not_before, parsed.validity().not_after);
    let problem = if to.timestamp() < now_secs {
        format!("expired on {to}")
    } else if from.timestamp() > now_secs {
        format!("is not valid before {from}")
    } else {
        return Ok(());
    };
    Err(TlsError::Time {
        path: path.to_owned(),
        problem,
    })
}

fn host_name(parsed: &X509Certificate<'_>) -> Option<String> {
    let names = parsed.subject_alternative_name().ok().flatten()?;
    names.value.general_names.iter().find_map(|name| {
        let GeneralName::DNSName(name) = name else {
            return None;
        };
        (!name.contains('*')).then(|| (*name).to_owned())
    })
}

/// Listens as a [`TcpListener`] does, and gives connections whose TLS handshake is done.
pub struct TlsListener {
    address: SocketAddr,
    accepted: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    /// Begins to accept. Ends when it is dropped.
    ///
    /// # Errors
    /// The system does not say where it listens.
    pub fn new(listener: TcpListener, tls: &Tls) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, accepted) = mpsc::channel(ACCEPTED_MAX);
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
        tokio::spawn(accept_all(listener, acceptor, sender));
        Ok(Self { address, accepted })
    }
}

async fn accept_all(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let (stream, address) = match accepted {
            Ok((stream, address)) => {
                // As without TLS: see `start`.
                drop(stream.set_nodelay(true));
                (stream, address)
            }
            Err(error) => {
                tracing::warn!(%error, "no connection could be taken");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
                // An error means that the host stops.
                Ok(Ok(stream)) => drop(sender.send((stream, address)).await),
                Ok(Err(error)) => tracing::debug!(%address, %error, "no TLS handshake"),
                Err(_) => tracing::debug!(%address, "the TLS handshake took too long"),
            }
            drop(permit);
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            // Its task ends only with this.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tempfile::TempDir;

    use super::*;

    /// 1 July 2026.
    const NOW: Duration = Duration::from_secs(1_782_864_000);

    fn check(certificate: &str, key: &str) -> Result<Option<String>, String> {
        let folder = TempDir::new().unwrap();
        let (cert_path, key_path) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        for (path, text) in [(&cert_path, certificate), (&key_path, key)] {
            if !text.is_empty() {
                std::fs::write(path, text).unwrap();
            }
        }
        let read = Tls::read(&cert_path, &key_path, UNIX_EPOCH + NOW);
        let hide = |error: TlsError| {
            let text = error.to_string();
            text.replace(&folder.path().display().to_string(), "DIR")
        };
        read.map(|tls| tls.name).map_err(hide)
    }

    fn pair(names: &[&str], from_year: i32, to_year: i32) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(from_year, 1, 1);
        params.not_after = date_time_ymd(to_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn a_certificate_with_its_key_is_taken_and_gives_the_links_name() {
        let (certificate, key) = pair(&["*.a.example", "fish.a.example"], 2025, 2027);
        assert_eq!(check(&certificate, &key), Ok(Some("fish.a.example".into())));
        let (certificate, key) = pair(&["10.0.0.1"], 2025, 2027);
        assert_eq!(check(&certificate, &key), Ok(None));
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_to_do() {
        let (certificate, key) = pair(&["a.example"], 2025, 2027);
        let (_, other) = pair(&["a.example"], 2025, 2027);
        let (old, old_key) = pair(&["a.example"], 2020, 2021);
        let (early, early_key) = pair(&["a.example"], 2030, 2031);
        let said = [
            check("", &key),
            check("not PEM", &key),
            check(&key, &key),
            check(&certificate, ""),
            check(&certificate, &certificate),
            check(&certificate, &other),
            check(&old, &old_key),
            check(&early, &early_key),
        ]
        .map(Result::unwrap_err)
        .join("\n");
        expect_test::expect![[r#"
            --tls-cert DIR/c.pem: I/O error: No such file or directory (os error 2). It must be a PEM file with the certificate and those that signed it
            --tls-cert DIR/c.pem: no certificate is in it. It must be a PEM file with the certificate and those that signed it
            --tls-cert DIR/c.pem: no certificate is in it. It must be a PEM file with the certificate and those that signed it
            --tls-key DIR/k.pem: I/O error: No such file or directory (os error 2). It must be a PEM file with the certificate's private key
            --tls-key DIR/k.pem: no items found. It must be a PEM file with the certificate's private key
            --tls-cert DIR/c.pem and --tls-key DIR/k.pem do not fit together: keys may not be consistent: KeyMismatch. Give the key that the certificate was made for
            --tls-cert DIR/c.pem: the certificate expired on Jan  1 00:00:00 2021 +00:00. Renew it, or correct this machine's clock
            --tls-cert DIR/c.pem: the certificate is not valid before Jan  1 00:00:00 2030 +00:00. Renew it, or correct this machine's clock"#]]
        .assert_eq(&said);
    }
}
