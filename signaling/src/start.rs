//! From the command line to a host that listens, and to its end in good order.
//!
//! Begin with [`start`]. The order matters: what can be refused without touching anything comes first (configuration,
//! port), then the store's lock, then data, then the journal, which refuses another run's store.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener, ListenerExt as _};

use shared::config::run::RunConfig;
use shared::config::written::{self, WrittenError};
use shared::coordinator::history::{HistoryError, Row, only_stored};
use shared::coordinator::{Coordinator, Start};
use shared::derive::seed_hash;
use shared::limits::STATE_BYTES_MAX;
use shared::schedule::placement::StageCosts;
use shared::units::Digest;
use shared::wire::frame::VERSION;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use crate::announce::{Announce, Opening};
use crate::app::{App, Clock, Entrance, Tickets};
use crate::args::{Args, PortError};
use crate::conductor::{Conductor, Parts, Writer};
use crate::data::{self, Data, DataError, Request};
use crate::door::{FOLLOWERS_MAX, INBOX_MESSAGES_MAX, UPLOADS_MAX};
use crate::http;
use crate::journal::{Address, Identity, Journal, JournalError, Record};
use crate::metrics::Metrics;
use crate::report;
use crate::store::{Store, StoreError};
use crate::tls::{Tls, TlsError, TlsListener};
use crate::turn::{IceServerError, IceServers};
use crate::web::{Web, WebError};

/// The journal's name in the store, where no other place is named.
pub const JOURNAL_FILE: &str = "journal.sqlite";
/// How long open connections may take to end when the host stops.
const STOP_MAX: Duration = Duration::from_secs(1);
/// Values of a stage's blob for each trained one at most: weights, outer momentum and both moments, and one to spare.
const BLOB_VALUES_A_PARAMETER: u64 = 5;
/// Room for a blob's header.
const BLOB_HEADER_BYTES: u64 = 1 << 20;

/// Why the host did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The configuration can't be read.
    #[error("cannot read {}: {reason}. Name a run's configuration (TOML), or leave it out for the preset tiny", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The configuration is not understood.
    #[error("{}: {source}", path.display())]
    Written {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: WrittenError,
    },
    /// See [`PortError`].
    #[error(transparent)]
    Port(#[from] PortError),
    /// See [`TlsError`].
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// See [`IceServerError`].
    #[error(transparent)]
    Ice(#[from] IceServerError),
    /// The public link is none.
    #[error("--public-url '{link}' must begin with https:// or http://")]
    Link {
        /// What was written.
        link: String,
    },
    /// See [`WebError`].
    #[error(transparent)]
    Web(#[from] WebError),
    /// Somebody else listens there, or the address is not ours.
    #[error(
        "cannot listen on {address}: {reason}. Choose another --port (0 takes a free one) or --host"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// See [`DataError`].
    #[error(transparent)]
    Data(#[from] DataError),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// See [`JournalError`].
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A row that this build can't read.
    #[error(
        "row {row} of the journal can't be read: {reason}. It was written by another version; start that one"
    )]
    Row {
        /// Number of the row.
        row: usize,
        /// What is wrong.
        reason: String,
    },
    /// The journal breaks its own rule.
    #[error(
        "the journal is not the history of a run: {source}. Do not go on with it; keep the store and look at it with the auditor"
    )]
    History {
        /// What is wrong.
        source: HistoryError,
    },
    /// The system gives no random numbers, or a task failed.
    #[error("{what} failed: {reason}. Start again")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

impl HostError {
    /// 2 for what was asked for and can't be done, 1 for what failed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config { .. }
            | Self::Written { .. }
            | Self::Port(_)
            | Self::Tls(_)
            | Self::Ice(_)
            | Self::Link { .. }
            | Self::Web(_)
            | Self::Listen { .. }
            | Self::Data(
                DataError::Unreadable { .. }
                | DataError::Empty { .. }
                | DataError::TooSmall { .. }
                | DataError::Vocabulary { .. }
                | DataError::Shard { .. }
                | DataError::Tokenizer { .. },
            )
            | Self::Store(StoreError::InUse { .. })
            | Self::Journal(JournalError::Foreign { .. } | JournalError::InUse { .. }) => 2,
            Self::Data(_)
            | Self::Store(_)
            | Self::Journal(_)
            | Self::Row { .. }
            | Self::History { .. }
            | Self::System { .. } => 1,
        }
    }
}

/// A host that listens.
pub struct Host {
    stop: watch::Sender<bool>,
    server: JoinHandle<std::io::Result<()>>,
    conductor: JoinHandle<()>,
    writer: Writer,
}

impl Host {
    /// Waits until something ends that should not before [`Host::stop`]: then the host serves nobody, whatever else of it
    /// still answers. There is nothing to stop in good order any more; what is journaled is safe.
    pub async fn failed(&mut self) -> HostError {
        let (what, reason) = tokio::select! {
            ended = &mut self.conductor => ("the coordinator's task", ended.err().map(|it| it.to_string())),
            failed = self.writer.failed() => ("the journal's task", failed),
            ended = &mut self.server => ("the server's task", match ended {
                Ok(served) => served.err().map(|it| it.to_string()),
                Err(error) => Some(error.to_string()),
            }),
        };
        let reason = reason.unwrap_or_else(|| "it ended by itself".to_owned());
        HostError::System { what, reason }
    }

    /// Ends in good order: volunteers are told, rows are written, files are closed.
    ///
    /// # Errors
    /// A task failed.
    pub async fn stop(self) -> Result<(), HostError> {
        self.stop.send_replace(true);
        let failed = |what, reason: String| HostError::System { what, reason };
        self.conductor
            .await
            .map_err(|error| failed("the coordinator's task", error.to_string()))?;
        self.writer.finish().await;
        match tokio::time::timeout(STOP_MAX, self.server).await {
            // Whoever still downloads is cut off.
            Err(_) => Ok(()),
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(failed("listening", error.to_string())),
            Ok(Err(error)) => Err(failed("the server's task", error.to_string())),
        }
    }
}

/// Starts a host; returns once it listens and has said so.
///
/// # Errors
/// What was asked for can't be done, or something failed: see [`HostError::exit_code`].
pub async fn start(args: Args, port_variable: Option<&str>) -> Result<Host, HostError> {
    let clock = Clock::start();
    let config = read_config(&args)?;
    let ice = IceServers::new(
        args.ice_server.clone(),
        args.turn_secret.clone(),
        args.turn_ttl,
    )?;
    let tls = read_tls(&args)?;
    let web = match &args.www {
        Some(folder) => Web::read(folder)?,
        None => Web::embedded()?,
    };
    let address = SocketAddr::new(args.host, args.port(port_variable)?);
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| HostError::Listen {
            address,
            reason: error.to_string(),
        })?;
    let link = link_of(&args, &listener, tls.as_ref())?;
    let store = Arc::new(Store::open(&args.store)?);
    let (data, seed_hash) = prepare_data(&args, &config).await?;
    let (journal, rows) = open_journal(&args, &config, &data).await?;
    data::clear_others(&args.store.join("data"), &data)?;
    let stored = store.manifests().await?;
    let is_stored = |of| stored.iter().any(|stored| stored.manifest.round == of);
    let rows = only_stored(rows, is_stored);

    let start = Start {
        config: config.clone(),
        data: data.info.clone(),
        seed_hash,
        secret: secret()?,
        costs: StageCosts::new(&config),
        resume: args.resume,
    };
    let coordinator = Coordinator::new(clock.now(), start, &rows)
        .map_err(|source| HostError::History { source })?;

    let announce = if args.json {
        Announce::Json
    } else {
        Announce::Text
    };
    let (tickets, metrics) = (Arc::new(Tickets::default()), Arc::new(Metrics::default()));
    let (trouble_sender, trouble) = watch::channel(None);
    let (stop_sender, stop) = watch::channel(false);
    let first = report::of_run(&config, &data, &coordinator, coordinator.view(), None, None);
    let (report_sender, report) = watch::channel(Arc::new(first));
    let (inbox, events) = mpsc::channel(INBOX_MESSAGES_MAX);
    let opening = opening(&args, &config, &data, &link, &ice);
    let entrance = Arc::new(Entrance {
        inbox,
        door: Arc::default(),
        clock,
        stop: stop.clone(),
        signal_bytes_max: config.signal_bytes_max(),
        trust_proxy: args.trust_proxy,
        connections: AtomicU64::new(0),
    });
    let app = App {
        entrance: entrance.clone(),
        report,
        trouble: trouble.clone(),
        stop: stop.clone(),
        store: store.clone(),
        data: data.clone(),
        tickets: tickets.clone(),
        upload_bytes_max: upload_bytes_max(&config),
        metrics: metrics.clone(),
        clock,
        link,
        web,
        followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
        uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
    };
    let parts = Parts {
        coordinator,
        config,
        data,
        store,
        tickets,
        metrics,
        ice,
        clock,
        announce,
        trouble,
        report: report_sender,
    };
    let (mut conductor, writer) = Conductor::new(parts, journal, trouble_sender);
    conductor.prepare().await;
    let conductor = tokio::spawn(conductor.run(events, stop.clone()));
    let server = match tls {
        None => {
            // A signal is not to wait until the ping before it is acknowledged. What fails here fails again at the first
            // read.
            let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
            tokio::spawn(serve(listener, app, stop))
        }
        Some(tls) => {
            let listener = TlsListener::new(listener, &tls).map_err(listening_failed)?;
            // Nothing is tapped: this is what gives handlers the address, as of a plain listener.
            tokio::spawn(serve(listener.tap_io(|_| {}), app, stop))
        }
    };
    announce.listening(&opening);
    Ok(Host {
        stop: stop_sender,
        server,
        conductor,
        writer,
    })
}

async fn serve<L>(listener: L, app: App, mut stop: watch::Receiver<bool>) -> std::io::Result<()>
where
    L: Listener<Addr = SocketAddr>,
    SocketAddr: for<'a> Connected<IncomingStream<'a, L>>,
{
    let service = http::router(Arc::new(app)).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service)
        .with_graceful_shutdown(async move {
            // The sender gone means the same.
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}

fn read_config(args: &Args) -> Result<RunConfig, HostError> {
    let Some(path) = &args.run else {
        let mut config = written::read("", &[]).map_err(|source| HostError::Written {
            path: "the preset".into(),
            source,
        })?;
        if let Some(vocabulary) = args.tokenizer.vocabulary() {
            config.model.vocabulary = vocabulary;
        }
        return Ok(config);
    };
    let text = std::fs::read_to_string(path).map_err(|error| HostError::Config {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    written::read(&text, &[]).map_err(|source| HostError::Written {
        path: path.clone(),
        source,
    })
}

fn read_tls(args: &Args) -> Result<Option<Tls>, TlsError> {
    let files = args.tls_cert.as_ref().zip(args.tls_key.as_ref());
    files
        .map(|(certificate, key)| Tls::read(certificate, key, SystemTime::now()))
        .transpose()
}

fn listening_failed(error: std::io::Error) -> HostError {
    HostError::System {
        what: "listening",
        reason: error.to_string(),
    }
}

/// The link that people use: as they said, else where it listens, under the certificate's name if it has one.
fn link_of(args: &Args, listener: &TcpListener, tls: Option<&Tls>) -> Result<String, HostError> {
    if let Some(link) = &args.public_url {
        if !link.starts_with("https://") && !link.starts_with("http://") {
            return Err(HostError::Link { link: link.clone() });
        }
        return Ok(link.trim_end_matches('/').to_owned());
    }
    let mut address = listener.local_addr().map_err(listening_failed)?;
    if address.ip().is_unspecified() {
        let localhost: std::net::IpAddr = if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        };
        address.set_ip(localhost);
    }
    Ok(match tls {
        None => format!("http://{address}"),
        Some(Tls {
            name: Some(name), ..
        }) => format!("https://{name}:{}", address.port()),
        Some(_) => format!("https://{address}"),
    })
}

/// Tokens and the seed's hash: both take their time, so on a thread of their own.
async fn prepare_data(args: &Args, config: &RunConfig) -> Result<(Data, Digest), HostError> {
    let (args, config) = (args.clone(), config.clone());
    let work = move || {
        let data = data::prepare(&Request {
            source: &args.data,
            tokenizer: &args.tokenizer,
            model: &config.model,
            batch: config.training.batch,
            folder: &args.store.join("data"),
            leave_out: &args.store,
        })?;
        Ok((data, Digest(seed_hash(&config.model, config.seed))))
    };
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|error| HostError::System {
        what: "reading the data",
        reason: error.to_string(),
    })?
}

async fn open_journal(
    args: &Args,
    config: &RunConfig,
    data: &Data,
) -> Result<(Journal, Vec<Row>), HostError> {
    let identity = Identity {
        config: config.digest(),
        config_json: serde_json::to_string(config).expect("a configuration has string keys"),
        data: data.info.digest,
        seed: config.seed,
        wire: VERSION,
    };
    let address = match &args.journal {
        Some(address) => address.clone(),
        None => Address::Sqlite(args.store.join(JOURNAL_FILE)),
    };
    let (journal, records) = Journal::open(&address, &identity).await?;
    Ok((journal, parse_rows(&records)?))
}

/// Reads a journal's rows.
///
/// # Errors
/// The first row that is none.
pub fn parse_rows(records: &[Record]) -> Result<Vec<Row>, HostError> {
    let parse = |(row, record): (usize, &Record)| {
        serde_json::from_str(&record.json).map_err(|error| HostError::Row {
            row,
            reason: error.to_string(),
        })
    };
    records.iter().enumerate().map(parse).collect()
}

fn secret() -> Result<[u8; 32], HostError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| HostError::System {
        what: "drawing random numbers",
        reason: error.to_string(),
    })?;
    Ok(secret)
}

fn upload_bytes_max(config: &RunConfig) -> u64 {
    let largest = (0..config.model.stages)
        .map(|stage| config.model.parameter_count_of(stage) as u64)
        .max()
        .unwrap_or(0);
    let bytes = largest * BLOB_VALUES_A_PARAMETER * 4 + BLOB_HEADER_BYTES;
    bytes.min(STATE_BYTES_MAX)
}

fn opening(args: &Args, config: &RunConfig, data: &Data, link: &str, ice: &IceServers) -> Opening {
    let is_https = link.starts_with("https://");
    let is_private = args.host.is_loopback() && args.public_url.is_none();
    let mut reach = if is_https && is_private {
        "for this machine only; for others: --host 0.0.0.0".to_owned()
    } else if is_https {
        "other machines can use it, browsers included".to_owned()
    } else if is_private {
        "for this machine only; for others: --host 0.0.0.0, and https: --tls-cert with --tls-key, or a proxy in front \
         and --public-url"
            .to_owned()
    } else {
        "others reach it at this machine's address with the headless client; browsers need https: --tls-cert with \
         --tls-key, or a proxy in front and --public-url"
            .to_owned()
    };
    if ice.is_empty() && !is_private {
        reach +=
            ". Without an --ice-server (STUN, TURN) only volunteers in one network find each other";
    }
    let left_out = match data.binary_files {
        0 => String::new(),
        count => format!(" ({count} binary files left out)"),
    };
    Opening {
        link: link.to_owned(),
        run: format!(
            "'{}': {} parameters in {} stages, on {} files{left_out}: {} tokens to train on, {} held out ({})",
            config.name,
            config.model.parameter_count(),
            config.model.stages,
            data.files,
            data.info.train_tokens,
            data.info.validation_tokens,
            data.tokenizer
        ),
        reach,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a host says of whose tasks one ends: the coordinator's, the journal's or the server's.
    async fn failure(conductor: bool, writer: bool, server: bool) -> String {
        let task = |ends: bool| async move {
            if !ends {
                std::future::pending::<()>().await;
            }
        };
        let serve = async move {
            task(server).await;
            Err(std::io::Error::other("no more files"))
        };
        let coordinate = async move {
            task(conductor).await;
            panic!("an invariant")
        };
        let mut host = Host {
            stop: watch::Sender::new(false),
            server: tokio::spawn(serve),
            conductor: tokio::spawn(coordinate),
            writer: Writer::of(tokio::spawn(task(writer))),
        };
        let failed = tokio::time::timeout(STOP_MAX, host.failed()).await;
        let error = failed.expect("in time");
        assert_eq!(error.exit_code(), 1);
        error.to_string()
    }

    #[tokio::test]
    async fn a_host_whose_task_ends_says_so() {
        let coordinator = failure(true, false, false).await;
        assert!(
            coordinator.starts_with("the coordinator's task failed: task")
                && coordinator.contains("an invariant")
                && coordinator.ends_with(". Start again"),
            "{coordinator}"
        );
        assert_eq!(
            failure(false, true, false).await,
            "the journal's task failed: it ended by itself. Start again"
        );
        assert_eq!(
            failure(false, false, true).await,
            "the server's task failed: no more files. Start again"
        );
    }
}
