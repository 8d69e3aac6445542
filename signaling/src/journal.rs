//! The run's journal: rows that are only ever appended, in one SQLite file.
//!
//! What a row says is the coordinator's business; here it is a number, a kind and JSON. [`Journal::append`]
//! returns after the rows are on the disk (write-ahead log, `synchronous = FULL`), and the host says `commit` only
//! then. A failed append leaves the journal as it was. The `meta` table says which run the journal belongs
//! to; another run's is refused before anything is changed.
//!
//! Invariant: rows are numbered without a gap from 0, never changed, never deleted (triggers see to it).

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use shared::units::Digest;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rows (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, json TEXT NOT NULL, at_ms INTEGER NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS rows_stay BEFORE UPDATE ON rows
    BEGIN SELECT RAISE(ABORT, 'rows are never changed'); END;
CREATE TRIGGER IF NOT EXISTS rows_are_kept BEFORE DELETE ON rows
    BEGIN SELECT RAISE(ABORT, 'rows are never deleted'); END;
";

/// Which run a journal belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Hash of the run's configuration.
    pub config: Digest,
    /// The configuration as JSON, to say what differs.
    pub config_json: String,
    /// Hash of the run's data.
    pub data: Digest,
    /// Seed of the run.
    pub seed: u64,
    /// Version of the wire between peers and host.
    pub wire: u8,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is, for people who look into the file.
    pub kind: String,
    /// What it says.
    pub json: String,
}

/// Why the journal can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The journal belongs to another run.
    #[error("the journal {} belongs to another run: its {what}. Name another --store, or start with what this one was made with", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What differs, and how.
        what: String,
    },
    /// The disk is full, the file can't be written, or it is no journal.
    #[error("the journal {} can't be used: {reason}. What was committed before is untouched; see to the disk and start again", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        reason: String,
    },
    /// Rows can't be written now: the disk is full, or fails.
    #[error("the journal {} can't be written: {reason}. No committed round is lost; free some space, or see to the disk, and the run goes on by itself", path.display())]
    Append {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        reason: String,
    },
}

/// An open journal, the only one over its file: the store's lock sees to that.
pub struct Journal {
    connection: SqliteConnection,
    path: PathBuf,
    next_seq: u64,
}

fn io_error(path: &Path) -> impl Fn(sqlx::Error) -> JournalError {
    let path = path.to_owned();
    move |error| JournalError::Io {
        path: path.clone(),
        reason: error.to_string(),
    }
}

fn now_ms() -> i64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    passed.map_or(0, |passed| {
        i64::try_from(passed.as_millis()).unwrap_or(i64::MAX)
    })
}

async fn connect(path: &Path, create: bool) -> Result<SqliteConnection, JournalError> {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(create)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging()
        .connect()
        .await
        .map_err(io_error(path))
}

impl Journal {
    /// Opens the journal at `path`, or begins one, for the run that `identity` names; returns its rows, too.
    ///
    /// # Errors
    /// It belongs to another run ([`JournalError::Foreign`]; nothing was changed), or can't be read or written.
    pub async fn open(
        path: &Path,
        identity: &Identity,
    ) -> Result<(Self, Vec<Record>), JournalError> {
        let mut connection = connect(path, true).await?;
        let fail = io_error(path);
        sqlx::raw_sql(SCHEMA)
            .execute(&mut connection)
            .await
            .map_err(&fail)?;
        match read_identity(&mut connection, path).await? {
            Some(theirs) => compare(path, &theirs, identity)?,
            None => write_identity(&mut connection, identity)
                .await
                .map_err(&fail)?,
        }
        let history = read_rows(&mut connection, path).await?;
        let journal = Self {
            connection,
            path: path.to_owned(),
            next_seq: history.len() as u64,
        };
        Ok((journal, history))
    }

    /// Appends rows, all or none; on return they are on the disk.
    ///
    /// # Errors
    /// The disk is full or fails: nothing was appended, and the same rows may be offered again.
    pub async fn append(&mut self, rows: &[Record]) -> Result<(), JournalError> {
        let fail = |error: sqlx::Error| JournalError::Append {
            path: self.path.clone(),
            reason: error.to_string(),
        };
        let mut transaction = self.connection.begin().await.map_err(&fail)?;
        let mut next_seq = self.next_seq;
        for row in rows {
            sqlx::query("INSERT INTO rows (seq, kind, json, at_ms) VALUES (?, ?, ?, ?)")
                .bind(i64::try_from(next_seq).expect("fewer than 2^63 rows"))
                .bind(&row.kind)
                .bind(&row.json)
                .bind(now_ms())
                .execute(&mut *transaction)
                .await
                .map_err(&fail)?;
            next_seq += 1;
        }
        transaction.commit().await.map_err(&fail)?;
        self.next_seq = next_seq;
        Ok(())
    }

    /// Closes the file in good order. Rows need none of it: they were on the disk when they were appended.
    ///
    /// # Errors
    /// SQLite could not tidy its files.
    pub async fn close(self) -> Result<(), JournalError> {
        self.connection.close().await.map_err(io_error(&self.path))
    }
}

/// Reads a journal without taking part in the run, also while a host writes it.
///
/// # Errors
/// There is no journal at `path`, or it can't be read.
pub async fn read(path: &Path) -> Result<(Identity, Vec<Record>), JournalError> {
    let mut connection = connect(path, false).await?;
    let identity = read_identity(&mut connection, path).await?;
    let identity = identity.ok_or_else(|| JournalError::Io {
        path: path.to_owned(),
        reason: "no run was ever started over it".to_owned(),
    })?;
    Ok((identity, read_rows(&mut connection, path).await?))
}

async fn read_rows(
    connection: &mut SqliteConnection,
    path: &Path,
) -> Result<Vec<Record>, JournalError> {
    let rows = sqlx::query("SELECT seq, kind, json FROM rows ORDER BY seq")
        .fetch_all(connection)
        .await
        .map_err(io_error(path))?;
    let damaged = |reason: String| JournalError::Io {
        path: path.to_owned(),
        reason,
    };
    rows.iter()
        .enumerate()
        .map(|(index, row)| {
            let seq: i64 = row.try_get(0).map_err(io_error(path))?;
            if seq != i64::try_from(index).expect("fewer than 2^63 rows") {
                return Err(damaged(format!("row {index} is missing")));
            }
            Ok(Record {
                kind: row.try_get(1).map_err(io_error(path))?,
                json: row.try_get(2).map_err(io_error(path))?,
            })
        })
        .collect()
}

async fn write_identity(
    connection: &mut SqliteConnection,
    identity: &Identity,
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    for (key, value) in [
        ("config", identity.config.to_string()),
        ("config_json", identity.config_json.clone()),
        ("data", identity.data.to_string()),
        ("seed", identity.seed.to_string()),
        ("wire", identity.wire.to_string()),
    ] {
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?)")
            .bind(key)
            .bind(value)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await
}

async fn read_identity(
    connection: &mut SqliteConnection,
    path: &Path,
) -> Result<Option<Identity>, JournalError> {
    let rows = sqlx::query("SELECT key, value FROM meta")
        .fetch_all(connection)
        .await
        .map_err(io_error(path))?;
    if rows.is_empty() {
        return Ok(None);
    }
    let mut values = std::collections::BTreeMap::new();
    for row in rows {
        let key: String = row.try_get(0).map_err(io_error(path))?;
        let value: String = row.try_get(1).map_err(io_error(path))?;
        values.insert(key, value);
    }
    let identity = (|| {
        Some(Identity {
            config: values.get("config")?.parse().ok()?,
            config_json: values.get("config_json")?.clone(),
            data: values.get("data")?.parse().ok()?,
            seed: values.get("seed")?.parse().ok()?,
            wire: values.get("wire")?.parse().ok()?,
        })
    })();
    identity.map(Some).ok_or_else(|| JournalError::Io {
        path: path.to_owned(),
        reason: "what it says about its run can't be read".to_owned(),
    })
}

fn compare(path: &Path, theirs: &Identity, ours: &Identity) -> Result<(), JournalError> {
    let what = if theirs.wire != ours.wire {
        format!(
            "wire version is {}, this build speaks {}",
            theirs.wire, ours.wire
        )
    } else if theirs.seed != ours.seed {
        format!("seed is {}, not {}", theirs.seed, ours.seed)
    } else if theirs.config != ours.config {
        first_difference(&theirs.config_json, &ours.config_json)
    } else if theirs.data != ours.data {
        format!(
            "data has the hash {:?}, the data given now has {:?}",
            theirs.data, ours.data
        )
    } else {
        return Ok(());
    };
    Err(JournalError::Foreign {
        path: path.to_owned(),
        what,
    })
}

/// The first key of two configurations whose values differ, in words.
fn first_difference(theirs: &str, ours: &str) -> String {
    fn walk(key: &str, theirs: &serde_json::Value, ours: &serde_json::Value) -> Option<String> {
        if let (Some(a), Some(b)) = (theirs.as_object(), ours.as_object()) {
            let found = a.iter().find_map(|(name, value)| {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                walk(&key, value, b.get(name).unwrap_or(&serde_json::Value::Null))
            });
            return found.or_else(|| (a.len() != b.len()).then(|| format!("{key} has other keys")));
        }
        (theirs != ours).then(|| format!("{key} is {theirs}, not {ours}"))
    }
    let parse = |text: &str| serde_json::from_str(text).unwrap_or_default();
    walk("", &parse(theirs), &parse(ours)).unwrap_or_else(|| "configuration differs".to_owned())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use tempfile::TempDir;

    use super::*;

    fn identity() -> Identity {
        let config_json = r#"{"name":"a","training":{"batch":32,"clip":1.0}}"#.to_owned();
        Identity {
            config: Digest::of(config_json.as_bytes()),
            config_json,
            data: Digest::of(b"data"),
            seed: 7,
            wire: 1,
        }
    }

    fn row(round: u64) -> Record {
        Record {
            kind: "commit".to_owned(),
            json: format!("{{\"round\":{round}}}"),
        }
    }

    #[tokio::test]
    async fn rows_survive_a_restart_and_others_may_read_along() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("journal.sqlite");
        let (mut journal, history) = Journal::open(&path, &identity()).await.unwrap();
        assert_eq!(history, []);
        journal.append(&[row(0), row(1)]).await.unwrap();
        journal.append(&[row(2)]).await.unwrap();
        drop(journal);
        let (mut journal, history) = Journal::open(&path, &identity()).await.unwrap();
        assert_eq!(history, [row(0), row(1), row(2)]);
        journal.append(&[row(3)]).await.unwrap();
        let (read_identity, history) = read(&path).await.unwrap();
        assert_eq!(read_identity, identity());
        assert_eq!(history.len(), 4, "read while another holds it open");
    }

    #[tokio::test]
    async fn a_journal_of_another_run_is_refused_with_what_differs() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("journal.sqlite");
        let (journal, _) = Journal::open(&path, &identity()).await.unwrap();
        journal.close().await.unwrap();
        let mut refusals = String::new();
        let config_json = r#"{"name":"a","training":{"batch":64,"clip":1.0}}"#.to_owned();
        for other in [
            Identity {
                data: Digest::of(b"other"),
                ..identity()
            },
            Identity {
                config: Digest::of(config_json.as_bytes()),
                config_json,
                ..identity()
            },
            Identity {
                seed: 8,
                ..identity()
            },
            Identity {
                wire: 2,
                ..identity()
            },
        ] {
            match Journal::open(&path, &other).await {
                Err(JournalError::Foreign { what, .. }) => refusals += &format!("its {what}\n"),
                Err(error) => panic!("{error}"),
                Ok(_) => panic!("opened"),
            }
        }
        expect![[r#"
            its data has the hash 28a249c2, the data given now has 3f796163
            its training.batch is 32, not 64
            its seed is 7, not 8
            its wire version is 1, this build speaks 2
        "#]]
        .assert_eq(&refusals);
        assert!(Journal::open(&path, &identity()).await.is_ok());
    }

    #[tokio::test]
    async fn rows_are_never_changed_or_deleted() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("journal.sqlite");
        let (mut journal, _) = Journal::open(&path, &identity()).await.unwrap();
        journal.append(&[row(0)]).await.unwrap();
        for statement in ["UPDATE rows SET json = ''", "DELETE FROM rows"] {
            let changed = sqlx::query(statement)
                .execute(&mut journal.connection)
                .await;
            assert!(changed.unwrap_err().to_string().contains("rows are never"));
        }
        journal.append(&[row(1)]).await.unwrap();
        assert_eq!(read(&path).await.unwrap().1, [row(0), row(1)]);
    }

    #[tokio::test]
    async fn a_full_disk_refuses_rows_and_takes_the_same_ones_once_there_is_space() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("journal.sqlite");
        let (mut journal, _) = Journal::open(&path, &identity()).await.unwrap();
        journal.append(&[row(0)]).await.unwrap();
        // SQLite's own page limit makes the same error as a file system without space.
        let limit = |pages: &'static str| sqlx::query(pages);
        limit("PRAGMA max_page_count = 1")
            .execute(&mut journal.connection)
            .await
            .unwrap();
        let large = Record {
            json: "x".repeat(1 << 20),
            ..row(1)
        };
        let error = journal
            .append(std::slice::from_ref(&large))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("full"), "{error}");
        assert_eq!(read(&path).await.unwrap().1, [row(0)]);
        limit("PRAGMA max_page_count = 1000000")
            .execute(&mut journal.connection)
            .await
            .unwrap();
        journal.append(std::slice::from_ref(&large)).await.unwrap();
        assert_eq!(read(&path).await.unwrap().1, [row(0), large]);
    }

    #[tokio::test]
    async fn what_is_no_journal_is_said_to_be_none() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("journal.sqlite");
        assert!(matches!(read(&path).await, Err(JournalError::Io { .. })));
        std::fs::write(
            &path,
            "some text, long enough to be looked at by SQLite".repeat(9),
        )
        .unwrap();
        let error = Journal::open(&path, &identity()).await.err().unwrap();
        assert!(error.to_string().contains("not a database"), "{error}");
    }
}
