//! From the command line to a host that listens, and to its end in good order.
//!
//! Begin with [`start`]. The order matters: what can be refused without touching anything comes first (configuration,
//! port, NATS), then the store's lock, then data, then the journal, which refuses another run's store.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use axum::serve::ListenerExt as _;

use shared::config::run::RunConfig;
use shared::config::written;
use shared::coordinator::history::{Row, only_stored};
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
use crate::app::{App, Clock, Entrance, Telling, Tickets};
use crate::args::Args;
use crate::conductor::{Conductor, Parts, Writer};
use crate::data::{self, Data, Request, TOKENIZER_FILE};
use crate::door::{FOLLOWERS_MAX, INBOX_MESSAGES_MAX, UPLOADS_MAX};
pub use crate::failure::HostError;
use crate::gateway::bridge::Bridge;
use crate::gateway::nats::{NatsError, Servers};
use crate::http;
use crate::journal::{Address, Identity, Journal, Record};
use crate::metrics::Metrics;
use crate::report;
use crate::sampler::Sampler;
use crate::store::Store;
use crate::texts::Texts;
use crate::tls::{Tls, TlsError, TlsListener};
use crate::turn::IceServers;
use crate::web::Web;

/// The journal's name in the store, where no other place is named.
pub const JOURNAL_FILE: &str = "journal.sqlite";
/// How long open connections may take to end when the host stops.
const STOP_MAX: Duration = Duration::from_secs(1);
/// Values of a stage's blob for each trained one at most: weights, outer momentum and both moments, and one to spare.
const BLOB_VALUES_A_PARAMETER: u64 = 5;
/// Room for a blob's header.
const BLOB_HEADER_BYTES: u64 = 1 << 20;

/// A host that listens.
pub struct Host {
    stop: watch::Sender<bool>,
    server: JoinHandle<std::io::Result<()>>,
    conductor: JoinHandle<()>,
    writer: Writer,
    /// Carries for gateways, where there are any.
    bridge: Option<JoinHandle<Result<(), NatsError>>>,
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
            ended = ended(&mut self.bridge) => ("the task for gateways", ended),
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
        if let Some(bridge) = self.bridge {
            // A gateway that hears nothing finds out by itself.
            let _ = tokio::time::timeout(STOP_MAX, bridge).await;
        }
        match tokio::time::timeout(STOP_MAX, self.server).await {
            // Whoever still downloads is cut off.
            Err(_) => Ok(()),
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(failed("listening", error.to_string())),
            Ok(Err(error)) => Err(failed("the server's task", error.to_string())),
        }
    }
}

/// Waits for the end of the task for gateways, if there is one; why, if it failed.
async fn ended(bridge: &mut Option<JoinHandle<Result<(), NatsError>>>) -> Option<String> {
    match bridge {
        None => std::future::pending().await,
        Some(bridge) => match bridge.await {
            Ok(carried) => carried.err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        },
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
    let bridge = join_nats(&args, &config).await?;
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
    let folder = args.store.join("data").join(&data.folder);
    let tokenizer = folder.join(TOKENIZER_FILE);
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
        texts: Arc::new(Texts::new(&tokenizer, config.model.vocabulary)),
    };
    let telling = Telling::default();
    let (sample_sender, sample) = watch::channel(None);
    let sampler = Sampler {
        texts: app.texts.clone(),
        inbox: entrance.inbox.clone(),
        report: app.report.clone(),
        sample: sample_sender,
    };
    let takes_prompts = app.texts.has_tokenizer();
    tokio::spawn(sampler.run(stop.clone()));
    let parts = Parts {
        coordinator,
        config,
        data,
        store,
        tickets,
        metrics,
        ice,
        clock,
        telling: telling.clone(),
        announce,
        trouble,
        report: report_sender,
        sample,
        takes_prompts,
    };
    let (mut conductor, writer) = Conductor::new(parts, journal, trouble_sender);
    conductor.prepare().await;
    let conductor = tokio::spawn(conductor.run(events, stop.clone()));
    let bridge = bridge.map(|bridge| tokio::spawn(bridge.run(entrance, telling)));
    let router = http::router(Arc::new(app));
    let server = match tls {
        None => {
            // A signal is not to wait until the ping before it is acknowledged. What fails here fails again at the first
            // read.
            let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
            tokio::spawn(http::serve(listener, router, stop))
        }
        Some(tls) => {
            let listener = TlsListener::new(listener, &tls).map_err(listening_failed)?;
            // Nothing is tapped: this is what gives handlers the address, as of a plain listener.
            tokio::spawn(http::serve(listener.tap_io(|_| {}), router, stop))
        }
    };
    announce.listening(&opening);
    Ok(Host {
        stop: stop_sender,
        server,
        conductor,
        writer,
        bridge,
    })
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

async fn join_nats(args: &Args, config: &RunConfig) -> Result<Option<Bridge>, NatsError> {
    let addresses = args.nats();
    if addresses.is_empty() {
        return Ok(None);
    }
    let servers = Servers::new(&addresses, args.nats_credentials.clone())?;
    let joined = Bridge::join(&servers, &config.name, config.signal_bytes_max()).await;
    joined.map(Some)
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
            bridge: None,
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
