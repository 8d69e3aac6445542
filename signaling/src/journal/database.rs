//! The database under a journal: SQLite in one file, or Postgres, both through sqlx.
//!
//! Knows where it is ([`Address`]), how it is opened for one host at a time, and the few statements, which are the same
//! words to both. What rows say, whether they follow each other, and when to open it anew is the journal's business.
//!
//! Invariant: [`Database::append`] returns after the rows are synced: SQLite with a write-ahead log and
//! `synchronous = FULL`, Postgres with `synchronous_commit = on` over a server that does not leave `fsync` out.
//! A file beside SQLite's, and an advisory lock in Postgres, are held as long as the database is open by a host. Postgres
//! lets its lock go with the connection, so no pooler may stand in between.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, SqliteConnection};

use super::Record;

/// What a host that is started anew waits for the one before to let go of the database.
const LOCK_WAIT: &str = "3s";
/// How long Postgres may take for one statement, as it reads it.
const STATEMENT_WAIT: &str = "10s";
/// How long Postgres may take for all that one call asks of it; then the connection is taken for dead.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// What Postgres says when the lock is not to be had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

const SQLITE_SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rows (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, json TEXT NOT NULL, at_ms INTEGER NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS rows_stay BEFORE UPDATE ON rows
    BEGIN SELECT RAISE(ABORT, 'rows are never changed'); END;
CREATE TRIGGER IF NOT EXISTS rows_are_kept BEFORE DELETE ON rows
    BEGIN SELECT RAISE(ABORT, 'rows are never deleted'); END;
";

const POSTGRES_SCHEMA: &str = "
CREATE SCHEMA IF NOT EXISTS shoal;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (
    seq BIGINT PRIMARY KEY, kind TEXT NOT NULL, json TEXT NOT NULL, at_ms BIGINT NOT NULL
);
CREATE OR REPLACE FUNCTION rows_stay() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'rows are never changed or deleted'; END $$;
CREATE OR REPLACE TRIGGER rows_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON rows
    FOR EACH STATEMENT EXECUTE FUNCTION rows_stay();
";

/// Where a journal is.
#[derive(Clone, PartialEq)]
pub enum Address {
    /// A file.
    Sqlite(PathBuf),
    /// A database of a server; the journal lies in its schema `shoal`.
    Postgres(Target),
}

/// A database of a Postgres server, as its URL names it.
#[derive(Clone)]
pub struct Target {
    url: String,
    options: Box<PgConnectOptions>,
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

/// What is given as a journal's address is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{scheme}' is no journal: sqlite:FILE or postgres://USER:PASSWORD@HOST/DATABASE{reason}")]
pub struct AddressError {
    /// What comes before the first colon: the rest may hold a password.
    scheme: String,
    /// What is wrong, where that is known.
    reason: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
        let wrong = |reason: String| AddressError {
            scheme: scheme.to_owned(),
            reason,
        };
        match scheme {
            "sqlite" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                if path.is_empty() {
                    return Err(wrong(" (no file is named)".to_owned()));
                }
                Ok(Self::Sqlite(path.into()))
            }
            "postgres" | "postgresql" => {
                let options = PgConnectOptions::from_str(text);
                let options = options.map_err(|error| wrong(format!(" ({error})")))?;
                Ok(Self::Postgres(Target {
                    url: text.to_owned(),
                    options: Box::new(options),
                }))
            }
            _ => Err(wrong(String::new())),
        }
    }
}

impl fmt::Display for Address {
    /// Without a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(Target { options, .. }) => {
                let database = options.get_database().unwrap_or(options.get_username());
                match options.get_socket() {
                    Some(socket) => write!(f, "postgres:{}/{database}", socket.display()),
                    None => {
                        let (host, port) = (options.get_host(), options.get_port());
                        write!(f, "postgres://{host}:{port}/{database}")
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a database did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum DatabaseError {
    /// Another host has it.
    #[error("another host has it")]
    InUse,
    /// Postgres may lose what it says is written.
    #[error(
        "this server runs with fsync = {0}, so that a committed round could be lost: turn it on"
    )]
    Unsafe(String),
    /// It took too long.
    #[error("no answer within {} s", ANSWER_MAX.as_secs())]
    Silent,
    /// What the system said of the file that keeps others away.
    #[error("{0}")]
    Lock(std::io::Error),
    /// What the database said.
    #[error("{0}")]
    Sql(#[from] sqlx::Error),
}

/// What a database is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// One host at a time writes.
    Host,
    /// Anybody may read along.
    Read,
}

/// An open database.
#[derive(Debug)]
pub(super) enum Database {
    /// The connection, and the file that keeps other hosts away.
    Sqlite(SqliteConnection, Option<File>),
    /// The connection, which keeps other hosts away.
    Postgres(PgConnection),
}

/// Says the same to either database.
macro_rules! to_either {
    ($database:expr, $connection:ident => $say:expr) => {
        match $database {
            Database::Sqlite($connection, _) => $say,
            Database::Postgres($connection) => within(async { $say }).await,
        }
    };
}

/// What a server that may be far away, or gone, is asked.
async fn within<T>(
    asking: impl Future<Output = Result<T, DatabaseError>>,
) -> Result<T, DatabaseError> {
    let answer = tokio::time::timeout(ANSWER_MAX, asking).await;
    answer.unwrap_or(Err(DatabaseError::Silent))
}

impl Database {
    /// Opens what lies there. For a host it is made if need be.
    pub(super) async fn open(address: &Address, purpose: Purpose) -> Result<Self, DatabaseError> {
        match address {
            Address::Sqlite(path) => open_sqlite(path, purpose).await,
            Address::Postgres(target) => within(open_postgres(target, purpose)).await,
        }
    }

    /// What it says about its run.
    pub(super) async fn meta(&mut self) -> Result<Vec<(String, String)>, DatabaseError> {
        to_either!(self, connection => {
            let meta = sqlx::query_as("SELECT key, value FROM meta");
            Ok(meta.fetch_all(connection).await?)
        })
    }

    /// Writes what it says about its run.
    pub(super) async fn put_meta(&mut self, meta: &[(&str, String)]) -> Result<(), DatabaseError> {
        to_either!(self, connection => {
            let mut transaction = connection.begin().await?;
            for (key, value) in meta {
                sqlx::query("INSERT INTO meta (key, value) VALUES ($1, $2)")
                    .bind(*key)
                    .bind(value)
                    .execute(&mut *transaction)
                    .await?;
            }
            Ok(transaction.commit().await?)
        })
    }

    /// Its rows from that number on, with their numbers.
    pub(super) async fn rows_from(
        &mut self,
        seq: i64,
    ) -> Result<Vec<(i64, String, String)>, DatabaseError> {
        to_either!(self, connection => {
            let rows = sqlx::query_as("SELECT seq, kind, json FROM rows WHERE seq >= $1 ORDER BY seq");
            Ok(rows.bind(seq).fetch_all(connection).await?)
        })
    }

    /// Appends rows from that number on, all or none; on return they are synced.
    pub(super) async fn append(
        &mut self,
        mut seq: i64,
        rows: &[Record],
        at_ms: i64,
    ) -> Result<(), DatabaseError> {
        to_either!(self, connection => {
            let mut transaction = connection.begin().await?;
            for row in rows {
                sqlx::query("INSERT INTO rows (seq, kind, json, at_ms) VALUES ($1, $2, $3, $4)")
                    .bind(seq)
                    .bind(&row.kind)
                    .bind(&row.json)
                    .bind(at_ms)
                    .execute(&mut *transaction)
                    .await?;
                seq += 1;
            }
            Ok(transaction.commit().await?)
        })
    }

    /// Closes it in good order.
    pub(super) async fn close(self) -> Result<(), DatabaseError> {
        match self {
            Self::Sqlite(connection, _lock) => Ok(connection.close().await?),
            Self::Postgres(connection) => within(async { Ok(connection.close().await?) }).await,
        }
    }

    /// Whether its connection may break while all is well with it.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Says something of a test's to it.
    #[cfg(test)]
    pub(super) async fn execute(&mut self, statement: &'static str) -> Result<(), DatabaseError> {
        to_either!(self, connection => {
            sqlx::raw_sql(statement).execute(connection).await?;
            Ok(())
        })
    }
}

async fn open_sqlite(path: &Path, purpose: Purpose) -> Result<Database, DatabaseError> {
    let lock = match purpose {
        Purpose::Host => Some(lock_beside(path)?),
        Purpose::Read => None,
    };
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(lock.is_some())
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging()
        .connect()
        .await?;
    if lock.is_some() {
        sqlx::raw_sql(SQLITE_SCHEMA)
            .execute(&mut connection)
            .await?;
    }
    Ok(Database::Sqlite(connection, lock))
}

fn lock_beside(path: &Path) -> Result<File, DatabaseError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock = File::create(name).map_err(DatabaseError::Lock)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(DatabaseError::InUse),
        Err(std::fs::TryLockError::Error(error)) => Err(DatabaseError::Lock(error)),
    }
}

async fn open_postgres(target: &Target, purpose: Purpose) -> Result<Database, DatabaseError> {
    let options = PgConnectOptions::clone(&target.options)
        .application_name("shoal-host")
        .options([
            ("search_path", "shoal"),
            ("synchronous_commit", "on"),
            ("lock_timeout", LOCK_WAIT),
            ("statement_timeout", STATEMENT_WAIT),
            ("client_min_messages", "warning"),
            // The lock of a host whose machine went off is free again within half a minute.
            ("tcp_keepalives_idle", "10"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
        ])
        .disable_statement_logging();
    let mut connection = options.connect().await?;
    if purpose == Purpose::Host {
        let fsync: (String,) = sqlx::query_as("SHOW fsync")
            .fetch_one(&mut connection)
            .await?;
        if fsync.0 != "on" {
            return Err(DatabaseError::Unsafe(fsync.0));
        }
        let locked = sqlx::query("SELECT pg_advisory_lock(hashtext('shoal journal'))");
        if let Err(error) = locked.execute(&mut connection).await {
            let code = error.as_database_error().and_then(|error| error.code());
            return Err(match code.as_deref() {
                Some(LOCK_NOT_AVAILABLE) => DatabaseError::InUse,
                Some(_) | None => error.into(),
            });
        }
        sqlx::raw_sql(POSTGRES_SCHEMA)
            .execute(&mut connection)
            .await?;
    }
    Ok(Database::Postgres(connection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_told_without_their_password() {
        for (text, told) in [
            ("sqlite:a/b.sqlite", "a/b.sqlite"),
            ("sqlite:///a/b.sqlite", "/a/b.sqlite"),
            (
                "postgres://me:secret@db.example:6543/run",
                "postgres://db.example:6543/run",
            ),
            (
                "postgresql://me:secret@localhost/run?host=/run/db",
                "postgres:/run/db/run",
            ),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), told);
            assert!(!format!("{address:?}").contains("secret"));
        }
        for text in ["", "sqlite:", "mysql://a/b", "run.sqlite", "postgres://[/"] {
            let refused = text.parse::<Address>().unwrap_err().to_string();
            assert!(refused.contains("sqlite:FILE or postgres://"), "{refused}");
        }
    }
}
