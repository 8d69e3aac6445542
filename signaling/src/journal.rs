//! The run's journal: rows that are only ever appended, in one SQLite file or a Postgres database.
//!
//! What a row says is the coordinator's business; here it is a number, a kind and JSON. [`Journal::append`]
//! returns after the rows are synced (see [`database`]), and the host says `commit` only then. A failed append leaves the
//! journal as it was, or, where a server's answer was lost, holds exactly the rows that are offered again: then they are
//! found and not written twice. The `meta` table says which run the journal belongs to; another run's is refused
//! before anything is changed.
//!
//! Invariant: rows are numbered without a gap from 0, never changed, never deleted (triggers see to it), and written by
//! one host at a time.

pub mod database;
#[cfg(test)]
mod tests;

use std::time::{SystemTime, UNIX_EPOCH};

use shared::units::Digest;

pub use database::Address;
use database::{Database, DatabaseError, Purpose};

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
    /// What it is, for people who look into the journal.
    pub kind: String,
    /// What it says.
    pub json: String,
}

/// Why the journal can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The journal belongs to another run.
    #[error(
        "the journal {place} belongs to another run: its {what}. Name another --store or --journal, or start with what this one was made with"
    )]
    Foreign {
        /// Where it is.
        place: String,
        /// What differs, and how.
        what: String,
    },
    /// Another host writes it.
    #[error(
        "the journal {place} is in use by another shoal-host: stop that one, or name another --journal"
    )]
    InUse {
        /// Where it is.
        place: String,
    },
    /// The disk is full, it can't be reached or written, or it is no journal.
    #[error(
        "the journal {place} can't be used: {reason}. What was committed before is untouched; see to the disk or the server, and start again"
    )]
    Io {
        /// Where it is.
        place: String,
        /// What the database said.
        reason: String,
    },
    /// Rows can't be written now: the disk is full or fails, or the server is away.
    #[error(
        "the journal {place} can't be written: {reason}. No committed round is lost; free some space, or see to the disk or the server, and the run goes on by itself"
    )]
    Append {
        /// Where it is.
        place: String,
        /// What the database said.
        reason: String,
    },
    /// Since the connection broke, the journal holds other rows than this host wrote: it must not go on.
    #[error(
        "the journal {place} holds other rows than this host wrote: {reason}. Another host has gone on with it, or it was put back to an older state; start again, once you know which"
    )]
    Diverged {
        /// Where it is.
        place: String,
        /// Which.
        reason: String,
    },
}

/// An open journal, the only one over its database.
#[derive(Debug)]
pub struct Journal {
    address: Address,
    /// Open; `None` since a server's connection broke.
    database: Option<Database>,
    next_seq: u64,
}

fn io_error(address: &Address) -> impl Fn(DatabaseError) -> JournalError {
    let place = address.to_string();
    move |error| match error {
        DatabaseError::InUse => JournalError::InUse {
            place: place.clone(),
        },
        DatabaseError::Unsafe(_)
        | DatabaseError::Silent
        | DatabaseError::Lock(_)
        | DatabaseError::Sql(_) => JournalError::Io {
            place: place.clone(),
            reason: error.to_string(),
        },
    }
}

fn now_ms() -> i64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    passed.map_or(0, |passed| {
        i64::try_from(passed.as_millis()).unwrap_or(i64::MAX)
    })
}

fn number(seq: u64) -> i64 {
    i64::try_from(seq).expect("fewer than 2^63 rows")
}

impl Journal {
    /// Opens the journal at `address`, or begins one, for the run that `identity` names; returns its rows, too.
    ///
    /// # Errors
    /// It belongs to another run ([`JournalError::Foreign`]; nothing was changed), another host writes it, or it can't be
    /// read or written.
    pub async fn open(
        address: &Address,
        identity: &Identity,
    ) -> Result<(Self, Vec<Record>), JournalError> {
        let fail = io_error(address);
        let mut database = Database::open(address, Purpose::Host)
            .await
            .map_err(&fail)?;
        match read_identity(&mut database, address).await? {
            Some(theirs) => compare(address, &theirs, identity)?,
            None => write_identity(&mut database, identity)
                .await
                .map_err(&fail)?,
        }
        let history = read_rows(&mut database, address).await?;
        let journal = Self {
            address: address.clone(),
            database: Some(database),
            next_seq: history.len() as u64,
        };
        Ok((journal, history))
    }

    /// Appends rows, all or none; on return they are synced.
    ///
    /// # Errors
    /// The disk is full or fails, or the server is away: the same rows may be offered again, and no others before them.
    /// Not after [`JournalError::Diverged`].
    pub async fn append(&mut self, rows: &[Record]) -> Result<(), JournalError> {
        let fail = |error: DatabaseError| JournalError::Append {
            place: self.address.to_string(),
            reason: error.to_string(),
        };
        let database = match &mut self.database {
            Some(database) => database,
            None => {
                let opened = Database::open(&self.address, Purpose::Host).await;
                let mut database = opened.map_err(&fail)?;
                let known = self.next_seq.saturating_sub(1);
                let there = database.rows_from(number(known)).await.map_err(&fail)?;
                let are_written = self.are_written(&there, rows)?;
                let database = self.database.insert(database);
                if are_written {
                    self.next_seq += rows.len() as u64;
                    return Ok(());
                }
                database
            }
        };
        let appended = database.append(number(self.next_seq), rows, now_ms()).await;
        if let Err(error) = appended {
            if database.is_remote() {
                // Whether they are written is seen once it is there again.
                self.database = None;
            }
            return Err(fail(error));
        }
        self.next_seq += rows.len() as u64;
        Ok(())
    }

    /// Whether `rows`, which were offered when the connection broke, are written. `there` is what the database holds from
    /// the last row on that is known to be written.
    fn are_written(
        &self,
        there: &[(i64, String, String)],
        rows: &[Record],
    ) -> Result<bool, JournalError> {
        let diverged = |reason: &str| JournalError::Diverged {
            place: self.address.to_string(),
            reason: reason.to_owned(),
        };
        let known = usize::from(self.next_seq > 0);
        if there.len() < known {
            return Err(diverged("rows that were written are gone"));
        }
        let added = &there[known..];
        let is_ours = |(added, row): (&(i64, String, String), &Record)| {
            added.1 == row.kind && added.2 == row.json
        };
        if added.is_empty() {
            Ok(false)
        } else if added.len() == rows.len() && added.iter().zip(rows).all(is_ours) {
            Ok(true)
        } else {
            Err(diverged("somebody else added some"))
        }
    }

    /// Closes it in good order. Rows need none of it: they were synced when they were appended.
    ///
    /// # Errors
    /// The database could not tidy up.
    pub async fn close(self) -> Result<(), JournalError> {
        match self.database {
            Some(database) => database.close().await.map_err(io_error(&self.address)),
            None => Ok(()),
        }
    }
}

/// Reads a journal without taking part in the run, also while a host writes it.
///
/// # Errors
/// There is no journal at `address`, or it can't be read.
pub async fn read(address: &Address) -> Result<(Identity, Vec<Record>), JournalError> {
    let opened = Database::open(address, Purpose::Read).await;
    let mut database = opened.map_err(io_error(address))?;
    let identity = read_identity(&mut database, address).await?;
    let identity = identity.ok_or_else(|| JournalError::Io {
        place: address.to_string(),
        reason: "no run was ever started over it".to_owned(),
    })?;
    Ok((identity, read_rows(&mut database, address).await?))
}

async fn read_rows(
    database: &mut Database,
    address: &Address,
) -> Result<Vec<Record>, JournalError> {
    let rows = database.rows_from(0).await.map_err(io_error(address))?;
    let record = |(index, (seq, kind, json)): (usize, (i64, String, String))| {
        if seq == number(index as u64) {
            Ok(Record { kind, json })
        } else {
            Err(JournalError::Io {
                place: address.to_string(),
                reason: format!("row {index} is missing"),
            })
        }
    };
    rows.into_iter().enumerate().map(record).collect()
}

async fn write_identity(database: &mut Database, identity: &Identity) -> Result<(), DatabaseError> {
    let meta = [
        ("config", identity.config.to_string()),
        ("config_json", identity.config_json.clone()),
        ("data", identity.data.to_string()),
        ("seed", identity.seed.to_string()),
        ("wire", identity.wire.to_string()),
    ];
    database.put_meta(&meta).await
}

async fn read_identity(
    database: &mut Database,
    address: &Address,
) -> Result<Option<Identity>, JournalError> {
    let meta = database.meta().await.map_err(io_error(address))?;
    if meta.is_empty() {
        return Ok(None);
    }
    let values: std::collections::BTreeMap<String, String> = meta.into_iter().collect();
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
        place: address.to_string(),
        reason: "what it says about its run can't be read".to_owned(),
    })
}

fn compare(address: &Address, theirs: &Identity, ours: &Identity) -> Result<(), JournalError> {
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
        place: address.to_string(),
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
