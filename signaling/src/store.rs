//! The run's folder: blobs of stage state, the manifests that name them, and who may use the folder.
//!
//! A blob lies at `blobs/<hash of its bytes>` and gets that name only once all bytes are there and their hash
//! is right. A manifest, `manifests/<round>.json`, is written last and atomically: it names blobs that are
//! all there. Whatever fails in between leaves the older manifests valid.
//! Only the newest [`MANIFESTS_KEPT`] and every [`MANIFESTS_STRIDE`]th manifest are kept, with their blobs; which ones
//! is said ([`Store::manifests_to_keep`]) before the others go, so that nobody is sent for what is gone.
//!
//! Goes through `object_store`; only the lock and the tidying of half-written files know that it is a folder.
//! Invariant: every blob that a listed manifest names is there.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::{
    GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload,
};
use serde::{Deserialize, Serialize};
use shared::coordinator::Manifest;
use shared::units::{Digest, Round};

/// Newest manifests that are kept.
pub const MANIFESTS_KEPT: usize = 3;
/// Of older ones, each so many is kept for good.
pub const MANIFESTS_STRIDE: u64 = 20;
/// Blobs are written in parts of this size; what other stores than folders ask for as a minimum is 5 MiB.
const PART_BYTES: usize = 8 << 20;

/// A checkpoint as it lies in the store: the coordinator's manifest and its place among the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredManifest {
    /// Counts manifests of this store, from 0.
    pub number: u64,
    /// What it says.
    #[serde(flatten)]
    pub manifest: Manifest,
}

/// Why the store could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another host uses the folder.
    #[error("{} is in use by another shoal-host: stop that one, or name another --store", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The folder can't be read or written.
    #[error(
        "the store {place} can't be used: {reason}. Older checkpoints are untouched; free some space, or see to the disk"
    )]
    Io {
        /// The folder, or a place in it.
        place: String,
        /// What the system said.
        reason: String,
    },
    /// There is nothing of that name.
    #[error("{place} is not in the store")]
    Missing {
        /// The name.
        place: String,
    },
    /// A range outside of what is there.
    #[error("the range lies outside of the {len_bytes} bytes")]
    Range {
        /// Bytes that are there.
        len_bytes: u64,
    },
    /// The bytes are not those that were announced.
    #[error("the bytes have the hash {found:?}, {expected:?} was announced")]
    Hash {
        /// What was announced.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// More bytes came than may.
    #[error("more than {limit_bytes} bytes")]
    TooLarge {
        /// Most that are taken.
        limit_bytes: u64,
    },
    /// The sender stopped half-way.
    #[error("the upload ended early: {reason}")]
    Interrupted {
        /// What was said.
        reason: String,
    },
}

fn io_error(place: impl ToString) -> impl Fn(object_store::Error) -> StoreError {
    let place = place.to_string();
    move |error| {
        if matches!(error, object_store::Error::NotFound { .. }) {
            StoreError::Missing {
                place: place.clone(),
            }
        } else {
            StoreError::Io {
                place: place.clone(),
                reason: error.to_string(),
            }
        }
    }
}

/// Part of something in the store, as a stream.
pub struct Read {
    /// Bytes of the whole.
    pub len_bytes: u64,
    /// Which of them come.
    pub range: Range<u64>,
    /// They come in order.
    pub body: BoxStream<'static, Result<Bytes, object_store::Error>>,
}

/// An open store, the only one over its folder.
pub struct Store {
    objects: LocalFileSystem,
    folder: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens the folder, making it if need be, and clears away what a killed host left half-written.
    ///
    /// # Errors
    /// Another host uses it, or it can't be made or written.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let fail = |error: std::io::Error| StoreError::Io {
            place: folder.display().to_string(),
            reason: error.to_string(),
        };
        for name in ["blobs", "manifests"] {
            std::fs::create_dir_all(folder.join(name)).map_err(fail)?;
        }
        let lock = File::create(folder.join("lock")).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(StoreError::InUse {
                    path: folder.to_owned(),
                });
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(fail(error)),
        }
        for name in ["blobs", "manifests"] {
            for entry in std::fs::read_dir(folder.join(name)).map_err(fail)? {
                let path = entry.map_err(fail)?.path();
                if path.to_string_lossy().contains('#') {
                    std::fs::remove_file(path).map_err(fail)?;
                }
            }
        }
        let objects = LocalFileSystem::new_with_prefix(folder)
            .map_err(io_error(folder.display()))?
            .with_fsync(true);
        Ok(Self {
            objects,
            folder: folder.to_owned(),
            _lock: lock,
        })
    }

    /// The folder it lies in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes a blob of at most `limit_bytes` and keeps it if its hash is `digest`; returns its size.
    ///
    /// # Errors
    /// The hash differs, too much came, the sender stopped or the disk is full: nothing is kept.
    pub async fn put_blob<E: std::fmt::Display>(
        &self,
        digest: Digest,
        limit_bytes: u64,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<u64, StoreError> {
        let place = blob_path(digest);
        let mut upload = self
            .objects
            .put_multipart(&place)
            .await
            .map_err(io_error(&place))?;
        match write_parts(upload.as_mut(), digest, limit_bytes, body).await {
            Ok(len_bytes) => {
                upload.complete().await.map_err(io_error(&place))?;
                Ok(len_bytes)
            }
            Err(error) => {
                if let Err(abort) = upload.abort().await {
                    tracing::warn!(%abort, "a half-written upload stays until the next start");
                }
                Err(error)
            }
        }
    }

    /// Opens the blob of that hash.
    ///
    /// # Errors
    /// It is not there, or the range lies outside.
    pub async fn blob(&self, digest: Digest, range: Option<GetRange>) -> Result<Read, StoreError> {
        self.read(&blob_path(digest), range).await
    }

    /// Opens a file by its path below the folder, with `/` between its parts.
    ///
    /// # Errors
    /// It is not there, or the range lies outside.
    pub async fn file(&self, path: &str, range: Option<GetRange>) -> Result<Read, StoreError> {
        self.read(&object_store::path::Path::from(path), range)
            .await
    }

    async fn read(
        &self,
        place: &object_store::path::Path,
        range: Option<GetRange>,
    ) -> Result<Read, StoreError> {
        if let Some(range) = &range {
            let len_bytes = self
                .objects
                .head(place)
                .await
                .map_err(io_error(place))?
                .size;
            let outside = match range {
                GetRange::Bounded(range) => range.start >= len_bytes,
                GetRange::Offset(start) => *start >= len_bytes,
                GetRange::Suffix(count) => *count == 0 || len_bytes == 0,
            };
            if outside {
                return Err(StoreError::Range { len_bytes });
            }
        }
        let options = GetOptions {
            range,
            ..GetOptions::default()
        };
        let result = self
            .objects
            .get_opts(place, options)
            .await
            .map_err(io_error(place))?;
        Ok(Read {
            len_bytes: result.meta.size,
            range: result.range.clone(),
            body: result.into_stream(),
        })
    }

    /// Writes a manifest; its blobs must be there.
    ///
    /// # Errors
    /// A blob is missing or the disk is full: the older manifests stand.
    pub async fn write_manifest(&self, manifest: Manifest) -> Result<(), StoreError> {
        for held in &manifest.stages {
            let place = blob_path(held.blob);
            self.objects.head(&place).await.map_err(io_error(&place))?;
        }
        let newest = self.manifests().await?.pop();
        let number = newest.map_or(0, |newest| newest.number + 1);
        let place = manifest_path(manifest.round);
        let stored = StoredManifest { number, manifest };
        let text = serde_json::to_vec_pretty(&stored).expect("plain data");
        self.objects
            .put(&place, PutPayload::from(text))
            .await
            .map_err(io_error(&place))?;
        Ok(())
    }

    /// All manifests that can be read, by number.
    ///
    /// # Errors
    /// The folder can't be listed. A manifest that is damaged or names a missing blob is passed over with a warning.
    pub async fn manifests(&self) -> Result<Vec<StoredManifest>, StoreError> {
        let prefix = object_store::path::Path::from("manifests");
        let places: Vec<_> = self
            .objects
            .list(Some(&prefix))
            .try_collect()
            .await
            .map_err(io_error(&prefix))?;
        let mut manifests = Vec::new();
        for meta in places {
            match self.read_manifest(&meta.location).await {
                Ok(manifest) => manifests.push(manifest),
                Err(error) => {
                    tracing::warn!(place = %meta.location, %error, "manifest passed over")
                }
            }
        }
        manifests.sort_by_key(|manifest| manifest.number);
        Ok(manifests)
    }

    async fn read_manifest(
        &self,
        place: &object_store::path::Path,
    ) -> Result<StoredManifest, StoreError> {
        let result = self.objects.get(place).await.map_err(io_error(place))?;
        let text = result.bytes().await.map_err(io_error(place))?;
        let stored: StoredManifest =
            serde_json::from_slice(&text).map_err(|error| StoreError::Io {
                place: place.to_string(),
                reason: error.to_string(),
            })?;
        for held in &stored.manifest.stages {
            let blob = blob_path(held.blob);
            self.objects.head(&blob).await.map_err(io_error(&blob))?;
        }
        Ok(stored)
    }

    /// Which manifests of `standing` rounds are to be kept: the newest ones, and of older ones each so many.
    ///
    /// # Errors
    /// The folder can't be listed.
    pub async fn manifests_to_keep(
        &self,
        standing: &BTreeSet<Round>,
    ) -> Result<BTreeSet<Round>, StoreError> {
        let mut valid = self.manifests().await?;
        valid.retain(|stored| standing.contains(&stored.manifest.round));
        let newest_from = valid.len().saturating_sub(MANIFESTS_KEPT);
        let is_kept = |index: usize, stored: &StoredManifest| {
            index >= newest_from || (stored.number + 1).is_multiple_of(MANIFESTS_STRIDE)
        };
        let kept = valid
            .iter()
            .enumerate()
            .filter(|(index, stored)| is_kept(*index, stored));
        Ok(kept.map(|(_, stored)| stored.manifest.round).collect())
    }

    /// Deletes all manifests but those of `kept` rounds, then blobs that none of the kept ones names.
    ///
    /// Manifests newer than all of `kept` are left alone, and so are blobs in `spared`: they belong to a checkpoint that
    /// is being written. A newer one that is void goes with the next newer one that is kept.
    ///
    /// # Errors
    /// Something could not be listed or deleted; what is kept is whole all the same.
    pub async fn collect_garbage(
        &self,
        kept: &BTreeSet<Round>,
        spared: &BTreeSet<Digest>,
    ) -> Result<(), StoreError> {
        let newest = kept.last().copied();
        let (staying, dropped): (Vec<_>, Vec<_>) =
            self.manifests().await?.into_iter().partition(|stored| {
                let round = stored.manifest.round;
                kept.contains(&round) || newest.is_none_or(|newest| round > newest)
            });
        let mut named = spared.clone();
        let blobs = staying.iter().flat_map(|stored| &stored.manifest.stages);
        named.extend(blobs.map(|held| held.blob));
        for stored in dropped {
            let place = manifest_path(stored.manifest.round);
            self.objects
                .delete(&place)
                .await
                .map_err(io_error(&place))?;
        }
        let prefix = object_store::path::Path::from("blobs");
        let blobs: Vec<_> = self
            .objects
            .list(Some(&prefix))
            .try_collect()
            .await
            .map_err(io_error(&prefix))?;
        for meta in blobs {
            let digest: Option<Digest> =
                meta.location.filename().and_then(|name| name.parse().ok());
            if digest.is_some_and(|digest| !named.contains(&digest)) {
                self.objects
                    .delete(&meta.location)
                    .await
                    .map_err(io_error(&meta.location))?;
            }
        }
        Ok(())
    }
}

fn blob_path(digest: Digest) -> object_store::path::Path {
    format!("blobs/{digest}").into()
}

fn manifest_path(round: Round) -> object_store::path::Path {
    format!("manifests/{round}.json").into()
}

async fn write_parts<E: std::fmt::Display>(
    upload: &mut dyn MultipartUpload,
    digest: Digest,
    limit_bytes: u64,
    body: impl Stream<Item = Result<Bytes, E>>,
) -> Result<u64, StoreError> {
    let mut body = std::pin::pin!(body);
    let mut hasher = blake3::Hasher::new();
    let mut len_bytes = 0;
    let mut part = Vec::new();
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(|error| StoreError::Interrupted {
            reason: error.to_string(),
        })?;
        len_bytes += bytes.len() as u64;
        if len_bytes > limit_bytes {
            return Err(StoreError::TooLarge { limit_bytes });
        }
        hasher.update(&bytes);
        part.extend_from_slice(&bytes);
        if part.len() >= PART_BYTES {
            let full = std::mem::take(&mut part);
            upload
                .put_part(full.into())
                .await
                .map_err(io_error(blob_path(digest)))?;
        }
    }
    let found = Digest(*hasher.finalize().as_bytes());
    if found != digest {
        return Err(StoreError::Hash {
            expected: digest,
            found,
        });
    }
    upload
        .put_part(part.into())
        .await
        .map_err(io_error(blob_path(digest)))?;
    Ok(len_bytes)
}

#[cfg(test)]
mod tests;
