//! The run's data: from a file or folder on the host's disk to token files that are served.
//!
//! [`prepare`] is the only door. It lists what is there ([`corpus`] for text, [`shard`] for ready tokens),
//! holds 2 % out ([`held_out`]; of text before it becomes ids: [`passage`]), makes ids of it ([`tokenizer`]) and leaves three files in a folder that is named
//! by the source's hash: `train.bin`, `validation.bin` and `tokenizer.json`, with `data.json` written last.
//! A second start over the same source finds them and does nothing; another source's folder is not touched,
//! so that a start that is refused costs the run nothing.
//!
//! Knows nothing of rounds or samples: which tokens make sample i is the volunteers' arithmetic.
//! Invariant: the same source and tokenizer give the same token files, byte for byte.

pub mod corpus;
pub mod held_out;
mod passage;
pub mod shard;
pub mod tokenizer;

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shared::config::model::ModelConfig;
use shared::units::Digest;
use shared::wire::signal::DataInfo;

use corpus::Source;
use tokenizer::{Encoder, TokenizerSpec};

/// The token file that `/data/train.bin` serves.
pub const TRAIN_FILE: &str = "train.bin";
/// The token file that `/data/validation.bin` serves.
pub const VALIDATION_FILE: &str = "validation.bin";
/// What `/data/tokenizer.json` serves; absent where token shards came without one.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
const DESCRIPTION_FILE: &str = "data.json";
const SCRATCH_FILE: &str = "tokens.tmp";
const COPY_BYTES: usize = 1 << 20;

/// Prepared data, as it lies in the store's `data` folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// What volunteers are told.
    pub info: DataInfo,
    /// Hash over the source as it was read, the tokenizer and how it was cut.
    pub source: Digest,
    /// Files that were read.
    pub files: u64,
    /// Binary files that were left out.
    pub binary_files: u64,
    /// Bytes of text, or of tokens in shards.
    pub source_bytes: u64,
    /// Token ids are below this.
    pub vocabulary: u32,
    /// Bytes of one token in the files: 2, or 4 where the model's vocabulary exceeds 65,536.
    pub token_bytes: u8,
    /// What made the ids, for people.
    pub tokenizer: String,
    /// Name of the folder that holds the files.
    pub folder: String,
}

/// Why data could not be prepared. All of them are for the person who starts the host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The path is not there or can't be read.
    #[error("cannot read {}: {reason}. Make it readable, or name another --data", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Nothing in the folder is text or a token shard.
    #[error("no text in {} ({binary_files} binary files were left out, hidden ones are not looked at): put .txt, .md or source files there, or name another --data", path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
        /// Binary files seen.
        binary_files: u64,
    },
    /// Too few tokens for a single batch.
    #[error("{} holds {tokens} tokens, one batch needs {needed} ({batch} samples of {sequence} tokens, and one held out): add text, or make training.batch or model.context smaller", path.display())]
    TooSmall {
        /// The file or folder.
        path: PathBuf,
        /// Tokens in it.
        tokens: u64,
        /// Tokens that are needed.
        needed: u64,
        /// Samples a batch.
        batch: u32,
        /// Tokens a sample.
        sequence: u64,
    },
    /// Token ids that the model has no rows for.
    #[error("{tokenizer} gives token ids up to {largest}, the model's vocabulary is {vocabulary}: set model.vocabulary = {} or larger, or choose another tokenizer", largest + 1)]
    Vocabulary {
        /// What made the ids.
        tokenizer: String,
        /// Largest id.
        largest: u32,
        /// The model's vocabulary.
        vocabulary: usize,
    },
    /// A token shard whose header does not fit.
    #[error("{} is not a token shard: {reason}. Expected 256 int32 of header (20240520, 1, number of tokens), then u16 tokens", path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The tokenizer can't be used.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// What is wrong and what to do.
        reason: String,
    },
    /// The store's folder can't be written.
    #[error("cannot write {}: {reason}. Free some space or name another --store", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file changed between two readings.
    #[error("{} changed while it was read: start again when nothing writes there", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

impl DataError {
    fn unreadable(path: &Path, error: impl ToString) -> Self {
        Self::Unreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }

    fn unwritable(path: &Path, error: impl ToString) -> Self {
        Self::Unwritable {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }
}

/// What to prepare, and where to put it.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// File or folder of text, or of `.bin` token shards.
    pub source: &'a Path,
    /// What makes ids of text.
    pub tokenizer: &'a TokenizerSpec,
    /// For vocabulary and context.
    pub model: &'a ModelConfig,
    /// Samples a step.
    pub batch: u32,
    /// Holds one folder a source; made if it is not there.
    pub folder: &'a Path,
    /// A folder inside `source` that is not data: the store itself.
    pub leave_out: &'a Path,
}

/// Turns the source into token files, or finds those of an earlier start.
///
/// # Errors
/// Says which file, what is wrong with it and what to do; nothing that an earlier start left is lost
/// before new files are complete.
pub fn prepare(request: &Request<'_>) -> Result<Data, DataError> {
    let source = corpus::scan(request.source, request.leave_out)?;
    let sequence = request.model.context as u64 + 1;
    let digest = source_digest(request, &source)?;
    let folder = request.folder.join(folder_name(digest));
    std::fs::create_dir_all(&folder).map_err(|error| DataError::unwritable(&folder, error))?;
    let data = match read_description(&folder, digest) {
        Some(data) => data,
        None => {
            let data = write_tokens(request, &source, digest, &folder)?;
            write_description(&folder, &data)?;
            data
        }
    };
    let needed = u64::from(request.batch) * sequence;
    if data.info.train_tokens < needed || data.info.validation_tokens < sequence {
        return Err(DataError::TooSmall {
            path: request.source.to_owned(),
            tokens: data.info.train_tokens + data.info.validation_tokens,
            needed: needed + sequence,
            batch: request.batch,
            sequence,
        });
    }
    Ok(data)
}

/// Deletes the token files of other sources than `data`'s.
///
/// # Errors
/// One can't be deleted.
pub fn clear_others(folder: &Path, data: &Data) -> Result<(), DataError> {
    let fail = |error: std::io::Error| DataError::unwritable(folder, error);
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_name() != data.folder.as_str() {
            std::fs::remove_dir_all(entry.path()).map_err(fail)?;
        }
    }
    Ok(())
}

fn folder_name(source: Digest) -> String {
    source.to_string()[..16].to_owned()
}

/// Everything that the token files follow from.
fn source_digest(request: &Request<'_>, source: &Source) -> Result<Digest, DataError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&source.digest.0);
    hasher.update(&request.tokenizer.digest()?.0);
    for number in [
        token_bytes(request.model) as u64,
        request.model.vocabulary as u64,
        request.model.context as u64,
    ] {
        hasher.update(&number.to_le_bytes());
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

fn token_bytes(model: &ModelConfig) -> u8 {
    if model.vocabulary > 1 << 16 { 4 } else { 2 }
}

/// What an earlier start left, if it was made from this very source and is complete.
fn read_description(folder: &Path, source: Digest) -> Option<Data> {
    let text = std::fs::read(folder.join(DESCRIPTION_FILE)).ok()?;
    let data: Data = serde_json::from_slice(&text).ok()?;
    let size = |name: &str| Some(std::fs::metadata(folder.join(name)).ok()?.len());
    let token_bytes = u64::from(data.token_bytes);
    (data.source == source
        && size(TRAIN_FILE)? == data.info.train_tokens * token_bytes
        && size(VALIDATION_FILE)? == data.info.validation_tokens * token_bytes)
        .then_some(data)
}

fn write_description(folder: &Path, data: &Data) -> Result<(), DataError> {
    let path = folder.join(DESCRIPTION_FILE);
    let scratch = folder.join(SCRATCH_FILE);
    let text = serde_json::to_vec_pretty(data).expect("plain data with string keys");
    std::fs::write(&scratch, text)
        .and_then(|()| File::open(&scratch)?.sync_all())
        .and_then(|()| std::fs::rename(&scratch, &path))
        .map_err(|error| DataError::unwritable(&path, error))
}

fn write_tokens(
    request: &Request<'_>,
    source: &Source,
    digest: Digest,
    folder: &Path,
) -> Result<Data, DataError> {
    let scratch = folder.join(SCRATCH_FILE);
    let sequence = request.model.context as u64 + 1;
    let passages = held_out::ranges(source.bytes, request.tokenizer.text_bytes(sequence));
    let vocabulary = request.model.vocabulary;
    let encoder = Encoder::prepare(request.tokenizer, source, &passages, vocabulary)?;
    let width = token_bytes(request.model);
    let (tokens, held_out) = {
        let file =
            File::create(&scratch).map_err(|error| DataError::unwritable(&scratch, error))?;
        let mut sink = TokenSink {
            out: BufWriter::with_capacity(COPY_BYTES, file),
            width,
            vocabulary,
            largest: 0,
            count: 0,
            path: &scratch,
            tokenizer: encoder.name(),
        };
        let held_out = encoder.write_all(source, &passages, sequence, &mut sink)?;
        (sink.finish()?, held_out)
    };
    if let Some(json) = encoder.tokenizer_json() {
        let path = folder.join(TOKENIZER_FILE);
        std::fs::write(&path, json).map_err(|error| DataError::unwritable(&path, error))?;
    }
    let info = split(&scratch, tokens, u64::from(width), held_out, folder)?;
    std::fs::remove_file(&scratch).map_err(|error| DataError::unwritable(&scratch, error))?;
    Ok(Data {
        info,
        source: digest,
        files: source.files.len() as u64,
        binary_files: source.binary_files,
        source_bytes: source.bytes,
        vocabulary: encoder.vocabulary(),
        token_bytes: width,
        tokenizer: encoder.name().to_owned(),
        folder: folder_name(digest),
    })
}

/// Writes ids in the width of the token files, and refuses those the model has no rows for.
pub(crate) struct TokenSink<'a> {
    out: BufWriter<File>,
    width: u8,
    vocabulary: usize,
    largest: u32,
    count: u64,
    path: &'a Path,
    tokenizer: &'a str,
}

impl TokenSink<'_> {
    pub(crate) fn push(&mut self, ids: impl IntoIterator<Item = u32>) -> Result<(), DataError> {
        for id in ids {
            self.largest = self.largest.max(id);
            self.count += 1;
            let bytes = id.to_le_bytes();
            self.out
                .write_all(&bytes[..usize::from(self.width)])
                .map_err(|error| DataError::unwritable(self.path, error))?;
        }
        if self.largest as usize >= self.vocabulary {
            return Err(DataError::Vocabulary {
                tokenizer: self.tokenizer.to_owned(),
                largest: self.largest,
                vocabulary: self.vocabulary,
            });
        }
        Ok(())
    }

    /// Tokens so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    fn finish(mut self) -> Result<u64, DataError> {
        self.out
            .flush()
            .map_err(|error| DataError::unwritable(self.path, error))?;
        Ok(self.count)
    }
}

/// Copies `tokens` tokens into the two served files, `ranges` into that for validation; the digest is over
/// what is served, and where it was cut.
fn split(
    scratch: &Path,
    tokens: u64,
    width: u64,
    ranges: Vec<Range<u64>>,
    folder: &Path,
) -> Result<DataInfo, DataError> {
    let validation_tokens: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let file = File::open(scratch).map_err(|error| DataError::unreadable(scratch, error))?;
    let mut input = BufReader::with_capacity(COPY_BYTES, file);
    let mut train = Part::create(folder.join(TRAIN_FILE))?;
    let mut validation = Part::create(folder.join(VALIDATION_FILE))?;
    let mut position = 0;
    for range in ranges {
        train.copy(&mut input, scratch, (range.start - position) * width)?;
        validation.copy(&mut input, scratch, (range.end - range.start) * width)?;
        position = range.end;
    }
    train.copy(&mut input, scratch, (tokens - position) * width)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(tokens - validation_tokens).to_le_bytes());
    hasher.update(&validation_tokens.to_le_bytes());
    hasher.update(&train.finish()?.0);
    hasher.update(&validation.finish()?.0);
    Ok(DataInfo {
        digest: Digest(*hasher.finalize().as_bytes()),
        train_tokens: tokens - validation_tokens,
        validation_tokens,
    })
}

/// One of the two served files while it is written.
struct Part {
    path: PathBuf,
    out: BufWriter<File>,
    hasher: blake3::Hasher,
}

impl Part {
    fn create(path: PathBuf) -> Result<Self, DataError> {
        let file = File::create(&path).map_err(|error| DataError::unwritable(&path, error))?;
        Ok(Self {
            path,
            out: BufWriter::with_capacity(COPY_BYTES, file),
            hasher: blake3::Hasher::new(),
        })
    }

    fn copy(&mut self, input: &mut impl Read, from: &Path, bytes: u64) -> Result<(), DataError> {
        let mut left = bytes;
        let mut block = vec![0; COPY_BYTES];
        while left > 0 {
            let take = usize::try_from(left).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            input
                .read_exact(&mut block[..take])
                .map_err(|error| DataError::unreadable(from, error))?;
            self.hasher.update(&block[..take]);
            self.out
                .write_all(&block[..take])
                .map_err(|error| DataError::unwritable(&self.path, error))?;
            left -= take as u64;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Digest, DataError> {
        self.out
            .flush()
            .and_then(|()| self.out.get_ref().sync_all())
            .map_err(|error| DataError::unwritable(&self.path, error))?;
        Ok(Digest(*self.hasher.finalize().as_bytes()))
    }
}

#[cfg(test)]
mod tests;
