//! Why a host did not start, or ended: in words for the person who started it, and as an exit code.

use std::net::SocketAddr;
use std::path::PathBuf;

use shared::config::written::WrittenError;
use shared::coordinator::history::HistoryError;

use crate::args::PortError;
use crate::data::DataError;
use crate::gateway::nats::NatsError;
use crate::journal::JournalError;
use crate::store::StoreError;
use crate::tls::TlsError;
use crate::turn::IceServerError;
use crate::web::WebError;

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
    /// See [`NatsError`].
    #[error(transparent)]
    Nats(#[from] NatsError),
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
            Self::Nats(error) if !error.is_wrong_use() => 1,
            Self::Config { .. }
            | Self::Written { .. }
            | Self::Port(_)
            | Self::Tls(_)
            | Self::Ice(_)
            | Self::Link { .. }
            | Self::Web(_)
            | Self::Nats(_)
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
