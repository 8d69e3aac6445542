//! From text to token ids: bytes, a BPE trained on the run's own text, or a given tokenizer.json.
//!
//! Whatever it is, it can be written down as a tokenizer.json that the usual loaders read, so that an exported
//! model is complete. `bytes` is written as a byte-level BPE without merges whose 256 ids are the bytes themselves.
//!
//! Invariants: training is deterministic, the same text gives the same merges; it never sees what is held out.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use serde_json::json;
use shared::config::model::VOCABULARY_MAX;
use shared::units::Digest;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{DecoderWrapper, PreTokenizerWrapper, Tokenizer};

use super::corpus::{Content, Source};
use super::passage::Passages;
use super::{DataError, TokenSink, held_out, shard};

/// Ids of a byte-level tokenizer before any merge.
const BYTE_IDS: usize = 256;
/// Text that a BPE is trained on at most; of more, every n-th piece is taken.
const TRAINING_BYTES_MAX: u64 = 256 << 20;
/// Bytes of text that a token of a model stands for, at most, on average: held-out passages are at
/// least one sequence of tokens long, whatever the tokenizer.
const TOKEN_TEXT_BYTES_MAX: u64 = 8;

/// Which tokenizer to use, as `--tokenizer` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSpec {
    /// Each byte is a token.
    Bytes,
    /// Byte-level BPE with so many ids, trained on the data.
    Bpe(usize),
    /// A tokenizer.json.
    File(PathBuf),
}

/// Text that names no tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is no tokenizer: write bytes, bpe:N with N from 257 to {VOCABULARY_MAX}, or a path ending in .json"
)]
pub struct TokenizerSpecError {
    /// What was written.
    pub text: String,
}

impl FromStr for TokenizerSpec {
    type Err = TokenizerSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || TokenizerSpecError {
            text: text.to_owned(),
        };
        if text == "bytes" {
            return Ok(Self::Bytes);
        }
        if let Some(ids) = text.strip_prefix("bpe:") {
            let ids: usize = ids.parse().map_err(|_| refuse())?;
            return if (BYTE_IDS + 1..=VOCABULARY_MAX).contains(&ids) {
                Ok(Self::Bpe(ids))
            } else {
                Err(refuse())
            };
        }
        if text.ends_with(".json") {
            return Ok(Self::File(text.into()));
        }
        Err(refuse())
    }
}

impl fmt::Display for TokenizerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes => f.write_str("bytes"),
            Self::Bpe(ids) => write!(f, "bpe:{ids}"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl TokenizerSpec {
    /// Hash of all that the ids follow from, beside the text.
    pub(crate) fn digest(&self) -> Result<Digest, DataError> {
        match self {
            Self::Bytes => Ok(Digest::of(self.to_string().as_bytes())),
            // A BPE that was trained on the whole text has other merges.
            Self::Bpe(_) => Ok(Digest::of(
                format!("{self} of the training part").as_bytes(),
            )),
            Self::File(path) => std::fs::read(path)
                .map(|text| Digest::of(&text))
                .map_err(|error| DataError::unreadable(path, error)),
        }
    }

    /// Bytes of text that hold at least one sequence of so many tokens.
    pub(crate) fn text_bytes(&self, sequence: u64) -> u64 {
        match self {
            Self::Bytes => sequence,
            Self::Bpe(_) | Self::File(_) => TOKEN_TEXT_BYTES_MAX * sequence,
        }
    }

    /// Ids that the tokenizer gives, where that is known before the text is read.
    #[must_use]
    pub fn vocabulary(&self) -> Option<usize> {
        match self {
            Self::Bytes => Some(BYTE_IDS),
            Self::Bpe(ids) => Some(*ids),
            Self::File(_) => None,
        }
    }
}

/// A tokenizer that is ready to make ids of one source.
pub(crate) struct Encoder {
    name: String,
    vocabulary: u32,
    /// As it is served; absent where shards came without one.
    json: Option<String>,
    work: Work,
}

enum Work {
    Bytes,
    Model(Box<Tokenizer>),
    Copy,
}

impl Encoder {
    /// Loads, trains or just names the tokenizer; refuses one that is larger than the model's vocabulary.
    ///
    /// `held_out`: bytes of the text that training must not see.
    pub(crate) fn prepare(
        spec: &TokenizerSpec,
        source: &Source,
        held_out: &[Range<u64>],
        vocabulary: usize,
    ) -> Result<Self, DataError> {
        let encoder = match (source.content, spec) {
            (Content::Text, TokenizerSpec::Bytes) => Self {
                name: "bytes".to_owned(),
                vocabulary: 256,
                json: Some(bytes_tokenizer_json()),
                work: Work::Bytes,
            },
            (Content::Text, TokenizerSpec::Bpe(ids)) => {
                let tokenizer = train(source, held_out, *ids)?;
                Self::of_model(spec, tokenizer, Work::Model)?
            }
            (Content::Text, TokenizerSpec::File(_)) => {
                Self::of_model(spec, load(spec)?, Work::Model)?
            }
            (Content::Shards, TokenizerSpec::File(_)) => {
                Self::of_model(spec, load(spec)?, |_| Work::Copy)?
            }
            (Content::Shards, TokenizerSpec::Bytes) => Self {
                name: "token shards".to_owned(),
                vocabulary: u32::try_from(vocabulary).unwrap_or(u32::MAX),
                json: None,
                work: Work::Copy,
            },
            (Content::Shards, TokenizerSpec::Bpe(_)) => {
                return Err(DataError::Tokenizer {
                    reason: "token shards hold ids already: leave --tokenizer out, or name the tokenizer.json that made them".to_owned(),
                });
            }
        };
        if encoder.vocabulary as usize > vocabulary {
            return Err(DataError::Vocabulary {
                tokenizer: encoder.name,
                largest: encoder.vocabulary - 1,
                vocabulary,
            });
        }
        Ok(encoder)
    }

    fn of_model(
        spec: &TokenizerSpec,
        tokenizer: Tokenizer,
        work: impl FnOnce(Box<Tokenizer>) -> Work,
    ) -> Result<Self, DataError> {
        let vocabulary = tokenizer
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |largest| largest + 1);
        Ok(Self {
            name: spec.to_string(),
            vocabulary,
            json: Some(tokenizer.to_string(false).map_err(tokenizer_error)?),
            work: work(Box::new(tokenizer)),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    pub(crate) fn tokenizer_json(&self) -> Option<&str> {
        self.json.as_deref()
    }

    /// Appends the ids of all files, and gives the ranges of ids that are held out.
    ///
    /// Of text, those are the ids of the bytes in `passages`; of shards, so many `sequence`s long as there
    /// are ids enough.
    pub(crate) fn write_all(
        &self,
        source: &Source,
        passages: &[Range<u64>],
        sequence: u64,
        sink: &mut TokenSink<'_>,
    ) -> Result<Vec<Range<u64>>, DataError> {
        if matches!(self.work, Work::Copy) {
            for path in &source.files {
                shard::write_tokens(path, sink)?;
            }
            return Ok(held_out::ranges(sink.count(), sequence));
        }
        let mut held_out: Vec<Range<u64>> = Vec::new();
        for passage in Passages::new(source, passages) {
            let passage = passage?;
            let start = sink.count();
            self.write_text(&passage.text, sink)?;
            if passage.held_out {
                match held_out.last_mut().filter(|last| last.end == start) {
                    Some(last) => last.end = sink.count(),
                    None => held_out.push(start..sink.count()),
                }
            }
        }
        Ok(held_out)
    }

    fn write_text(&self, text: &str, sink: &mut TokenSink<'_>) -> Result<(), DataError> {
        match &self.work {
            Work::Bytes => sink.push(text.bytes().map(u32::from)),
            Work::Model(tokenizer) => {
                let encoding = tokenizer
                    .encode_fast(text, false)
                    .map_err(tokenizer_error)?;
                sink.push(encoding.get_ids().iter().copied())
            }
            Work::Copy => Ok(()),
        }
    }
}

fn tokenizer_error(error: impl fmt::Display) -> DataError {
    DataError::Tokenizer {
        reason: error.to_string(),
    }
}

fn load(spec: &TokenizerSpec) -> Result<Tokenizer, DataError> {
    Tokenizer::from_file(spec.to_string()).map_err(|error| DataError::Tokenizer {
        reason: format!("{spec} can't be loaded: {error}. It must be a tokenizer.json"),
    })
}

fn train(source: &Source, held_out: &[Range<u64>], ids: usize) -> Result<Tokenizer, DataError> {
    let stride = usize::try_from(source.bytes.div_ceil(TRAINING_BYTES_MAX)).unwrap_or(usize::MAX);
    let mut failure = None;
    let texts = Passages::new(source, held_out)
        .map_while(|passage| passage.map_err(|error| failure = Some(error)).ok())
        .filter(|passage| !passage.held_out)
        .map(|passage| passage.text)
        .step_by(stride.max(1));
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(byte_level)))
        .with_decoder(Some(DecoderWrapper::ByteLevel(byte_level)));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(ids)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    tokenizer
        .train(&mut trainer, texts)
        .map_err(tokenizer_error)?;
    match failure {
        Some(error) => Err(error),
        None => Ok(tokenizer),
    }
}

/// A tokenizer.json whose ids are the bytes of the text.
///
/// The usual byte-level alphabet (printable stand-ins for all 256 bytes) as the vocabulary of a BPE without merges.
#[must_use]
pub fn bytes_tokenizer_json() -> String {
    let mut vocabulary = serde_json::Map::new();
    let mut stand_in = 256;
    for byte in 0..=255_u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            u32::from(byte)
        } else {
            stand_in += 1;
            stand_in - 1
        };
        let character = char::from_u32(code).expect("below 512 all numbers are characters");
        vocabulary.insert(character.to_string(), json!(byte));
    }
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": []
        }
    })
    .to_string()
}
