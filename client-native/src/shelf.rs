//! States kept over restarts in a folder beside the identity: [`Shelf`] on a disk.
//!
//! One folder a run, one file a state; the file's name holds round, stage and both hashes. What is not what its name
//! says, or cannot be read, is told to the person and not used. A file is written whole under another name, synced, and renamed, so a
//! process that is killed leaves either a state or a draft, which the next start removes.
//!
//! Invariant: all runs' states together stay below the shelf's size; a write that would not fit is refused.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use shared::driver::shelf::Shelf;
use shared::units::{Digest, Round, StageId};
use shared::wire::signal::Held;
use tokio::sync::mpsc;

/// Ending of a file that is not whole yet.
const DRAFT: &str = "draft";

/// A folder for states; or none, for a process that shares its identity with another one.
#[derive(Clone, Debug)]
pub struct FolderShelf(Option<Arc<Folder>>);

#[derive(Debug)]
struct Folder {
    root: PathBuf,
    bytes_max: u64,
    troubles: mpsc::Sender<String>,
}

impl FolderShelf {
    /// Keeps at most `bytes_max` in the folder `kept` beside the identity. What is found damaged is told to `troubles`.
    #[must_use]
    pub fn beside(identity_path: &Path, bytes_max: u64, troubles: mpsc::Sender<String>) -> Self {
        let mut name = identity_path.file_name().unwrap_or_default().to_owned();
        name.push(".kept");
        let root = identity_path.with_file_name(name);
        Self(Some(Arc::new(Folder {
            root,
            bytes_max,
            troubles,
        })))
    }

    /// Keeps nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Does `work` where it holds up nobody; `otherwise` if there is no folder.
    async fn with<T: Send + 'static>(
        &self,
        otherwise: T,
        work: impl FnOnce(&Folder) -> T + Send + 'static,
    ) -> T {
        let Some(folder) = self.0.clone() else {
            return otherwise;
        };
        match tokio::task::spawn_blocking(move || work(&folder)).await {
            Ok(done) => done,
            // Only a panic ends it early: then nothing is kept.
            Err(_) => otherwise,
        }
    }
}

impl Shelf for FolderShelf {
    async fn open(&self, run: Digest) -> Vec<Held> {
        self.with(Vec::new(), move |folder| folder.open(run)).await
    }

    async fn get(&self, run: Digest, held: Held) -> Option<Bytes> {
        self.with(None, move |folder| folder.get(run, &held)).await
    }

    async fn put(&self, run: Digest, held: Held, blob: Bytes) -> Result<(), String> {
        let write = move |folder: &Folder| folder.put(run, &held, &blob);
        let done = self.with(Ok(()), write).await;
        done.map_err(|error| error.to_string())
    }

    async fn remove(&self, run: Digest, held: Held) {
        // What is not there is removed; what cannot be removed counts towards the shelf's size.
        self.with((), move |folder| {
            drop(fs::remove_file(folder.path(run, &held)))
        })
        .await;
    }
}

impl Folder {
    fn of(&self, run: Digest) -> PathBuf {
        self.root.join(run.to_string())
    }

    fn path(&self, run: Digest, held: &Held) -> PathBuf {
        let Held {
            round,
            stage,
            agreed,
            blob,
        } = held;
        self.of(run)
            .join(format!("{round}-{stage}-{agreed}-{blob}"))
    }

    /// Names of the run's states. Drafts go, and other runs' states, oldest first, until half of the room is free.
    fn open(&self, run: Digest) -> Vec<Held> {
        let own = self.of(run);
        let mut others: Vec<(SystemTime, PathBuf)> = entries(&self.root)
            .filter(|path| *path != own)
            .map(|path| (changed(&path), path))
            .collect();
        others.sort();
        for (_, path) in others {
            if self.bytes() > self.bytes_max / 2 {
                // One that cannot be removed leaves less room, nothing worse.
                drop(fs::remove_dir_all(path));
            }
        }
        for path in entries(&own) {
            if path.extension().is_some_and(|ending| ending == DRAFT) {
                drop(fs::remove_file(path));
            }
        }
        entries(&own)
            .filter_map(|path| parse(path.file_name()?.to_str()?))
            .collect()
    }

    /// A state that is what its name says. Another one is of no use to anybody: told, and removed.
    fn get(&self, run: Digest, held: &Held) -> Option<Bytes> {
        let path = self.path(run, held);
        let reason = match fs::read(&path) {
            Ok(blob) if Digest::of(&blob) == held.blob => return Some(blob.into()),
            Ok(_) => "is damaged".to_owned(),
            Err(error) => format!("cannot be read: {error}"),
        };
        let Held { round, stage, .. } = held;
        let text = format!(
            "what was kept of stage {stage} of round {round} {reason}. It is removed; \
             if nobody else has it, the run goes back to an earlier round ({})",
            path.display()
        );
        // Whoever has heard of many need not hear of all.
        drop(self.troubles.try_send(text));
        // One that cannot be removed is found again at the next start.
        drop(fs::remove_file(path));
        None
    }

    fn put(&self, run: Digest, held: &Held, blob: &[u8]) -> io::Result<()> {
        if self.bytes() + blob.len() as u64 > self.bytes_max {
            let text = format!("{} MB are kept already", self.bytes_max / 1_000_000);
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        let folder = self.of(run);
        fs::create_dir_all(&folder)?;
        let path = self.path(run, held);
        let draft = path.with_extension(DRAFT);
        let written = File::create(&draft)
            .and_then(|mut file| file.write_all(blob).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&draft, &path));
        if written.is_err() {
            drop(fs::remove_file(&draft));
        }
        written?;
        // The name survives, too.
        File::open(&folder)?.sync_all()
    }

    /// Bytes of all runs' states.
    fn bytes(&self) -> u64 {
        let files = entries(&self.root).flat_map(|run| entries(&run));
        let sizes = files.filter_map(|path| fs::metadata(path).ok());
        sizes.map(|metadata| metadata.len()).sum()
    }
}

/// What lies in a folder; nothing if it is none.
fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

fn changed(path: &Path) -> SystemTime {
    let metadata = fs::metadata(path);
    let changed = metadata.and_then(|metadata| metadata.modified());
    changed.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn parse(name: &str) -> Option<Held> {
    let mut parts = name.split('-');
    let held = Held {
        round: Round(parts.next()?.parse().ok()?),
        stage: StageId(parts.next()?.parse().ok()?),
        agreed: parts.next()?.parse().ok()?,
        blob: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(round: u32, blob: &[u8]) -> Held {
        Held {
            round: Round(round),
            stage: StageId(3),
            agreed: Digest::of(b"agreed"),
            blob: Digest::of(blob),
        }
    }

    fn shelf(folder: &Path, bytes_max: u64) -> FolderShelf {
        let (troubles, _) = mpsc::channel(1);
        FolderShelf::beside(&folder.join("identity"), bytes_max, troubles)
    }

    #[tokio::test]
    async fn what_was_put_is_there_for_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let (run, blob) = (Digest::of(b"run"), Bytes::from_static(b"weights"));
        let state = held(7, &blob);
        let before = shelf(folder.path(), 100);
        before.put(run, state, blob.clone()).await.unwrap();
        let after = shelf(folder.path(), 100);
        assert_eq!(after.open(run).await, [state]);
        assert_eq!(after.get(run, state).await, Some(blob));
        after.remove(run, state).await;
        assert_eq!(after.open(run).await, []);
    }

    #[tokio::test]
    async fn what_is_not_what_its_name_says_is_told_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (troubles, mut told) = mpsc::channel(4);
        let shelf = FolderShelf::beside(&folder.path().join("identity"), 100, troubles);
        let (run, blob) = (Digest::of(b"run"), Bytes::from_static(b"weights"));
        let root = folder.path().join("identity.kept").join(run.to_string());
        for (round, damaged) in [(7, &b"weightz"[..]), (8, b"weigh"), (9, b"")] {
            let state = held(round, &blob);
            shelf.put(run, state, blob.clone()).await.unwrap();
            let path = fs::read_dir(&root).unwrap().next().unwrap().unwrap().path();
            fs::write(&path, damaged).unwrap();
            assert_eq!(shelf.get(run, state).await, None);
            let text = told.try_recv().unwrap();
            let words = format!("stage 3 of round {round} is damaged");
            assert!(text.contains(&words), "{text}");
            assert_eq!(shelf.open(run).await, []);
        }
    }

    #[tokio::test]
    async fn a_full_shelf_refuses_in_words_and_keeps_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let (run, blob) = (Digest::of(b"run"), Bytes::from_static(b"weights"));
        let shelf = shelf(folder.path(), 10);
        shelf.put(run, held(7, &blob), blob.clone()).await.unwrap();
        let refused = shelf.put(run, held(8, &blob), blob.clone()).await;
        assert!(refused.unwrap_err().contains("kept already"));
        assert_eq!(shelf.open(run).await, [held(7, &blob)]);
    }

    #[tokio::test]
    async fn a_draft_of_a_killed_process_is_removed_and_older_runs_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let blob = Bytes::from_static(b"weights");
        let shelf = shelf(folder.path(), 10);
        shelf.put(old, held(1, &blob), blob.clone()).await.unwrap();
        let own = folder.path().join("identity.kept").join(new.to_string());
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("1-2-3.draft"), "half").unwrap();
        assert_eq!(shelf.open(new).await, []);
        assert_eq!(fs::read_dir(own).unwrap().count(), 0);
        assert_eq!(shelf.open(old).await, []);
    }

    #[tokio::test]
    async fn a_second_process_of_an_identity_keeps_nothing() {
        let none = FolderShelf::none();
        let run = Digest::of(b"run");
        none.put(run, held(1, b"x"), Bytes::from_static(b"x"))
            .await
            .unwrap();
        assert_eq!(none.open(run).await, []);
    }
}
