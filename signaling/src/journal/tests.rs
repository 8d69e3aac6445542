//! Journals in files, and what they refuse. Over a server: `signaling/tests/postgres.rs`.

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

fn at(folder: &TempDir) -> Address {
    Address::Sqlite(folder.path().join("journal.sqlite"))
}

/// What is open beneath a journal.
fn beneath(journal: &mut Journal) -> &mut Database {
    journal.database.as_mut().unwrap()
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
    let address = at(&folder);
    let (mut journal, history) = Journal::open(&address, &identity()).await.unwrap();
    assert_eq!(history, []);
    journal.append(&[row(0), row(1)]).await.unwrap();
    journal.append(&[row(2)]).await.unwrap();
    drop(journal);
    let (mut journal, history) = Journal::open(&address, &identity()).await.unwrap();
    assert_eq!(history, [row(0), row(1), row(2)]);
    journal.append(&[row(3)]).await.unwrap();
    let (read_identity, history) = read(&address).await.unwrap();
    assert_eq!(read_identity, identity());
    assert_eq!(history.len(), 4, "read while another holds it open");
}

#[tokio::test]
async fn one_host_at_a_time_writes_a_journal() {
    let folder = TempDir::new().unwrap();
    let address = at(&folder);
    let (journal, _) = Journal::open(&address, &identity()).await.unwrap();
    let second = Journal::open(&address, &identity()).await.unwrap_err();
    assert!(matches!(second, JournalError::InUse { .. }), "{second}");
    journal.close().await.unwrap();
    Journal::open(&address, &identity()).await.unwrap();
}

#[tokio::test]
async fn a_journal_of_another_run_is_refused_with_what_differs() {
    let folder = TempDir::new().unwrap();
    let address = at(&folder);
    let (journal, _) = Journal::open(&address, &identity()).await.unwrap();
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
        match Journal::open(&address, &other).await {
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
    assert!(Journal::open(&address, &identity()).await.is_ok());
}

#[tokio::test]
async fn rows_are_never_changed_or_deleted() {
    let folder = TempDir::new().unwrap();
    let address = at(&folder);
    let (mut journal, _) = Journal::open(&address, &identity()).await.unwrap();
    journal.append(&[row(0)]).await.unwrap();
    for statement in ["UPDATE rows SET json = ''", "DELETE FROM rows"] {
        let changed = beneath(&mut journal).execute(statement).await;
        assert!(changed.unwrap_err().to_string().contains("rows are never"));
    }
    journal.append(&[row(1)]).await.unwrap();
    assert_eq!(read(&address).await.unwrap().1, [row(0), row(1)]);
}

#[tokio::test]
async fn a_full_disk_refuses_rows_and_takes_the_same_ones_once_there_is_space() {
    let folder = TempDir::new().unwrap();
    let address = at(&folder);
    let (mut journal, _) = Journal::open(&address, &identity()).await.unwrap();
    journal.append(&[row(0)]).await.unwrap();
    // SQLite's own page limit makes the same error as a file system without space.
    let limit = beneath(&mut journal).execute("PRAGMA max_page_count = 1");
    limit.await.unwrap();
    let large = Record {
        json: "x".repeat(1 << 20),
        ..row(1)
    };
    let error = journal
        .append(std::slice::from_ref(&large))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("full"), "{error}");
    assert_eq!(read(&address).await.unwrap().1, [row(0)]);
    let limit = beneath(&mut journal).execute("PRAGMA max_page_count = 1000000");
    limit.await.unwrap();
    journal.append(std::slice::from_ref(&large)).await.unwrap();
    assert_eq!(read(&address).await.unwrap().1, [row(0), large]);
}

#[tokio::test]
async fn what_is_no_journal_is_said_to_be_none() {
    let folder = TempDir::new().unwrap();
    let address = at(&folder);
    assert!(matches!(read(&address).await, Err(JournalError::Io { .. })));
    std::fs::write(
        folder.path().join("journal.sqlite"),
        "some text, long enough to be looked at by SQLite".repeat(9),
    )
    .unwrap();
    let error = Journal::open(&address, &identity()).await.err().unwrap();
    assert!(error.to_string().contains("not a database"), "{error}");
}
