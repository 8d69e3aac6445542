//! What lies under `--data`: which files are text, in which order, and their hash.
//!
//! Folders are walked recursively; entries whose name starts with a dot, links and the store itself are
//! passed over. A file with a NUL byte or invalid UTF-8 is binary: left out, and counted. If every other file is
//! a token shard, the source is shards; else shards are binary like the rest.
//!
//! Invariant: the order is that of the relative paths' bytes, so the same folder gives the same tokens anywhere.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use shared::units::Digest;
use walkdir::WalkDir;

use super::{DataError, shard};

/// Text is read in pieces of about this size.
const PIECE_BYTES: usize = 256 << 10;
/// A piece without any line end is cut here.
const PIECE_BYTES_MAX: usize = 4 * PIECE_BYTES;

/// What the files hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// UTF-8.
    Text,
    /// Token shards.
    Shards,
}

/// The files to read, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Text or shards.
    pub content: Content,
    /// The files, in order.
    pub files: Vec<PathBuf>,
    /// Files that were left out because they are neither.
    pub binary_files: u64,
    /// Bytes in `files`.
    pub bytes: u64,
    /// Hash over the contents of `files`, in order.
    pub digest: Digest,
}

enum Kind {
    Text,
    Shard,
    Binary,
}

struct Seen {
    path: PathBuf,
    kind: Kind,
    bytes: u64,
    digest: blake3::Hash,
}

/// Lists and hashes what is to be read under `path`, but for `leave_out`.
///
/// # Errors
/// The path is missing, something in it can't be read, or nothing in it is text or a shard.
pub fn scan(path: &Path, leave_out: &Path) -> Result<Source, DataError> {
    let leave_out = leave_out.canonicalize().ok();
    let mut paths = Vec::new();
    let visible = |entry: &walkdir::DirEntry| {
        entry.depth() == 0
            || (!entry.file_name().as_encoded_bytes().starts_with(b".")
                && (!entry.file_type().is_dir()
                    || leave_out.is_none()
                    || entry.path().canonicalize().ok() != leave_out))
    };
    for entry in WalkDir::new(path).into_iter().filter_entry(visible) {
        let entry = entry.map_err(|error| {
            DataError::unreadable(
                error.path().unwrap_or(path),
                error
                    .io_error()
                    .map_or_else(|| error.to_string(), ToString::to_string),
            )
        })?;
        if entry.file_type().is_file() || (entry.depth() == 0 && entry.path().is_file()) {
            paths.push(entry.into_path());
        }
    }
    paths.sort_by(|a, b| {
        a.as_os_str()
            .as_encoded_bytes()
            .cmp(b.as_os_str().as_encoded_bytes())
    });
    let seen = paths
        .into_iter()
        .map(classify)
        .collect::<Result<Vec<_>, _>>()?;
    let has_text = seen
        .iter()
        .any(|file| matches!(file.kind, Kind::Text) && file.bytes > 0);
    let content = if has_text {
        Content::Text
    } else {
        Content::Shards
    };
    let mut source = Source {
        content,
        files: Vec::new(),
        binary_files: 0,
        bytes: 0,
        digest: Digest::default(),
    };
    let mut hasher = blake3::Hasher::new();
    for file in seen {
        let wanted = match file.kind {
            Kind::Text => content == Content::Text && file.bytes > 0,
            Kind::Shard => content == Content::Shards,
            Kind::Binary => false,
        };
        if wanted {
            hasher.update(file.digest.as_bytes());
            source.bytes += file.bytes;
            source.files.push(file.path);
        } else if !matches!(file.kind, Kind::Text) {
            source.binary_files += 1;
        }
    }
    if source.files.is_empty() {
        return Err(DataError::Empty {
            path: path.to_owned(),
            binary_files: source.binary_files,
        });
    }
    source.digest = Digest(*hasher.finalize().as_bytes());
    Ok(source)
}

fn classify(path: PathBuf) -> Result<Seen, DataError> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0;
    let mut kind = Kind::Text;
    let mut pieces = Pieces::open(&path)?;
    while let Some(piece) = pieces.next_piece()? {
        if bytes == 0 && shard::is_shard(&path, piece) {
            kind = Kind::Shard;
        }
        if matches!(kind, Kind::Text) && (piece.contains(&0) || std::str::from_utf8(piece).is_err())
        {
            kind = Kind::Binary;
        }
        if matches!(kind, Kind::Binary) {
            break;
        }
        hasher.update(piece);
        bytes += piece.len() as u64;
    }
    Ok(Seen {
        path,
        kind,
        bytes,
        digest: hasher.finalize(),
    })
}

/// A file in pieces that end with a line where lines are not very long, and between characters always.
pub(crate) struct Pieces {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// Bytes at the buffer's front that were given out.
    given: usize,
    ended: bool,
}

impl Pieces {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        Ok(Self {
            path: path.to_owned(),
            file: File::open(path).map_err(|error| DataError::unreadable(path, error))?,
            buffer: Vec::new(),
            given: 0,
            ended: false,
        })
    }

    /// The next piece, not empty; `None` at the end of the file.
    pub(crate) fn next_piece(&mut self) -> Result<Option<&[u8]>, DataError> {
        self.buffer.drain(..self.given);
        self.given = 0;
        loop {
            if self.buffer.len() >= PIECE_BYTES || self.ended {
                let cut = if self.ended {
                    Some(self.buffer.len())
                } else if let Some(end) = self.buffer.iter().rposition(|&byte| byte == b'\n') {
                    Some(end + 1)
                } else if self.buffer.len() >= PIECE_BYTES_MAX {
                    Some(last_boundary(&self.buffer))
                } else {
                    None
                };
                if let Some(cut) = cut {
                    self.given = cut;
                    return Ok((cut > 0).then(|| &self.buffer[..cut]));
                }
            }
            let read = (&mut self.file)
                .take(PIECE_BYTES as u64)
                .read_to_end(&mut self.buffer)
                .map_err(|error| DataError::unreadable(&self.path, error))?;
            self.ended = read == 0;
        }
    }

    /// The next piece as text.
    pub(crate) fn next_text(&mut self) -> Result<Option<&str>, DataError> {
        let changed = DataError::Changed {
            path: self.path.clone(),
        };
        match self.next_piece()? {
            None => Ok(None),
            Some(piece) => std::str::from_utf8(piece).map(Some).map_err(|_| changed),
        }
    }
}

/// Where the last whole character of `bytes` ends, if they are UTF-8; their length if they are not.
fn last_boundary(bytes: &[u8]) -> usize {
    let start_of_last = (1..=4.min(bytes.len()))
        .map(|back| bytes.len() - back)
        .find(|&index| bytes[index] & 0xc0 != 0x80);
    match start_of_last {
        Some(index) if index > 0 && std::str::from_utf8(&bytes[index..]).is_err() => index,
        _ => bytes.len(),
    }
}
