//! Ready token shards, as FineWeb's are laid out: 256 little-endian int32 of header, then u16 tokens.
//!
//! The header's first three numbers are a magic number, the version and the count of tokens.
//! Which tokenizer made them is not in the file: `--tokenizer FILE.json` says it, where it is known.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::{DataError, TokenSink};

/// First number of the header.
pub const MAGIC: i32 = 20_240_520;
/// Second number of the header.
pub const VERSION: i32 = 1;
/// Bytes before the first token.
pub const HEADER_BYTES: usize = 256 * 4;

/// Whether a file with this name and beginning is meant to be a shard.
pub(crate) fn is_shard(path: &Path, beginning: &[u8]) -> bool {
    path.extension().is_some_and(|extension| extension == "bin")
        && beginning.get(..4) == Some(&MAGIC.to_le_bytes())
}

/// Appends the tokens of the shard at `path`.
pub(crate) fn write_tokens(path: &Path, sink: &mut TokenSink<'_>) -> Result<(), DataError> {
    let refuse = |reason: String| DataError::Shard {
        path: path.to_owned(),
        reason,
    };
    let file = File::open(path).map_err(|error| DataError::unreadable(path, error))?;
    let len_bytes = file
        .metadata()
        .map_err(|error| DataError::unreadable(path, error))?
        .len();
    let mut input = BufReader::new(file);
    let mut header = [0; HEADER_BYTES];
    input
        .read_exact(&mut header)
        .map_err(|_| refuse(format!("{len_bytes} bytes are shorter than its header")))?;
    let number = |index: usize| {
        let bytes = &header[index * 4..index * 4 + 4];
        i32::from_le_bytes(bytes.try_into().expect("four bytes"))
    };
    if number(1) != VERSION {
        return Err(refuse(format!(
            "version {} instead of {VERSION}",
            number(1)
        )));
    }
    let tokens = u64::try_from(number(2)).map_err(|_| refuse("a negative count".to_owned()))?;
    if len_bytes != HEADER_BYTES as u64 + 2 * tokens {
        return Err(refuse(format!(
            "{len_bytes} bytes do not hold the {tokens} tokens that its header names"
        )));
    }
    let mut block = vec![0; super::COPY_BYTES];
    let mut left = 2 * tokens;
    while left > 0 {
        let take = usize::try_from(left)
            .unwrap_or(block.len())
            .min(block.len());
        input
            .read_exact(&mut block[..take])
            .map_err(|error| DataError::unreadable(path, error))?;
        sink.push(
            block[..take]
                .chunks_exact(2)
                .map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]]))),
        )?;
        left -= take as u64;
    }
    Ok(())
}
