//! Cuts encoded frames into messages that every data channel carries, and joins them again.
//!
//! A message is a header of [`CHUNK_HEADER_BYTES`] (number of the frame u32, index of the piece u16,
//! length of the whole frame u32, little-endian) and a piece of [`CHUNK_BYTES_MAX`] bytes, shorter only
//! at a frame's end. A frame of one piece crosses both ends without a copy of its own.
//!
//! One [`Chunker`] and one [`Joiner`] serve one direction of one link, or of one of its channels; a link
//! that is opened anew begins with new ones. Messages may come in any order and more than once, and
//! pieces of several frames may be mixed. What the bytes mean is not known here.
//!
//! Invariant: a joiner never keeps more than [`REASSEMBLY_BYTES_MAX`] bytes of unfinished frames, and gives
//! each frame once.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};

use crate::limits::{
    CHUNK_BYTES_MAX, FRAME_BYTES_MAX, FRAMES_AHEAD_MAX, HALF_FRAMES_MAX, REASSEMBLY_BYTES_MAX,
};

/// Length of what stands before each piece.
pub const CHUNK_HEADER_BYTES: usize = 10;

/// Why a message was refused. Close the link: the peer is faulty, or the channel lost messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkError {
    /// Too short for a header.
    #[error("message of {len_bytes} bytes has no chunk header")]
    Truncated {
        /// How long it is.
        len_bytes: usize,
    },
    /// A frame that is empty or longer than [`FRAME_BYTES_MAX`].
    #[error("frame of {total_bytes} bytes, must be 1 to {FRAME_BYTES_MAX}")]
    Total {
        /// How long the frame is said to be.
        total_bytes: usize,
    },
    /// The piece is none of the frame's, or its length does not follow from its index.
    #[error("piece {index} of {len_bytes} bytes does not fit a frame of {total_bytes} bytes")]
    Piece {
        /// Its index.
        index: u16,
        /// Its length.
        len_bytes: usize,
        /// How long the frame is said to be.
        total_bytes: usize,
    },
    /// Two messages tell different lengths of the same frame.
    #[error("frame {frame} has {before_bytes} bytes in one message, {now_bytes} in another")]
    Inconsistent {
        /// The frame's number.
        frame: u32,
        /// Its length as first told.
        before_bytes: usize,
        /// Its length as told now.
        now_bytes: usize,
    },
    /// More frames are half received than any correct peer has under way.
    #[error("more than {HALF_FRAMES_MAX} frames are half received")]
    HalfFrames,
    /// Half-received frames hold more than [`REASSEMBLY_BYTES_MAX`].
    #[error("half-received frames hold more than {REASSEMBLY_BYTES_MAX} bytes")]
    Bytes,
    /// The frame is too far beyond the oldest one that has not arrived.
    #[error(
        "frame {frame} comes while frame {oldest} is missing, more than {FRAMES_AHEAD_MAX} ahead"
    )]
    Ahead {
        /// The frame's number.
        frame: u32,
        /// The oldest frame that has not arrived.
        oldest: u32,
    },
}

/// Numbers frames and cuts them.
#[derive(Clone, Debug, Default)]
pub struct Chunker {
    next_frame: u32,
}

impl Chunker {
    /// Cuts `frame` into messages, first piece first.
    ///
    /// # Panics
    /// If the frame is empty or longer than [`FRAME_BYTES_MAX`].
    pub fn cut(&mut self, frame: Bytes) -> impl Iterator<Item = Bytes> + use<> {
        assert!(
            (1..=FRAME_BYTES_MAX).contains(&frame.len()),
            "frame of {} bytes",
            frame.len()
        );
        let number = self.next_frame;
        self.next_frame = number.wrapping_add(1);
        let total = u32::try_from(frame.len()).expect("FRAME_BYTES_MAX fits u32");
        (0..piece_count(frame.len())).map(move |index| {
            let piece = &frame[piece_start(index)..piece_start(index) + piece_bytes(index, total)];
            let mut message = BytesMut::with_capacity(CHUNK_HEADER_BYTES + piece.len());
            message.put_u32_le(number);
            message.put_u16_le(index);
            message.put_u32_le(total);
            message.put_slice(piece);
            message.freeze()
        })
    }
}

/// A frame of which pieces are missing.
#[derive(Clone, Debug)]
struct HalfFrame {
    total: u32,
    pieces: BTreeMap<u16, Bytes>,
}

/// Joins messages to frames.
#[derive(Clone, Debug, Default)]
pub struct Joiner {
    half: BTreeMap<u32, HalfFrame>,
    half_bytes: usize,
    /// The oldest frame that has not arrived whole: all before it have.
    oldest: u32,
    /// Frames beyond `oldest` that have arrived whole.
    whole: BTreeSet<u32>,
}

/// A message, taken apart and found sound in itself.
struct Piece {
    frame: u32,
    index: u16,
    total: u32,
    bytes: Bytes,
}

impl Joiner {
    /// Takes one message; gives the frame that it completes.
    ///
    /// # Errors
    /// What no correct peer sends over a reliable channel, or more than the limits allow.
    pub fn push(&mut self, message: Bytes) -> Result<Option<Bytes>, ChunkError> {
        let piece = Piece::read(message)?;
        let frame = piece.frame;
        let ahead = frame.wrapping_sub(self.oldest);
        if ahead > u32::MAX / 2 || self.whole.contains(&frame) {
            return Ok(None); // a repeated message of a frame that is complete
        }
        if ahead > FRAMES_AHEAD_MAX {
            return Err(ChunkError::Ahead {
                frame,
                oldest: self.oldest,
            });
        }
        if piece.bytes.len() == piece.total as usize {
            self.complete(frame);
            return Ok(Some(piece.bytes));
        }
        self.keep(piece)?;
        Ok(self.take_if_whole(frame))
    }

    /// Bytes of half-received frames that are kept.
    #[must_use]
    pub const fn half_bytes(&self) -> usize {
        self.half_bytes
    }

    fn keep(&mut self, piece: Piece) -> Result<(), ChunkError> {
        let half_frames = self.half.len();
        let half = match self.half.get_mut(&piece.frame) {
            Some(half) => half,
            None if half_frames == HALF_FRAMES_MAX => return Err(ChunkError::HalfFrames),
            None => self.half.entry(piece.frame).or_insert(HalfFrame {
                total: piece.total,
                pieces: BTreeMap::new(),
            }),
        };
        if half.total != piece.total {
            return Err(ChunkError::Inconsistent {
                frame: piece.frame,
                before_bytes: half.total as usize,
                now_bytes: piece.total as usize,
            });
        }
        if half.pieces.contains_key(&piece.index) {
            return Ok(());
        }
        if self.half_bytes + piece.bytes.len() > REASSEMBLY_BYTES_MAX {
            return Err(ChunkError::Bytes);
        }
        self.half_bytes += piece.bytes.len();
        half.pieces.insert(piece.index, piece.bytes);
        Ok(())
    }

    fn take_if_whole(&mut self, frame: u32) -> Option<Bytes> {
        let half = self.half.get(&frame)?;
        let total = half.total as usize;
        if half.pieces.len() < usize::from(piece_count(total)) {
            return None;
        }
        let half = self.half.remove(&frame)?;
        self.half_bytes -= total;
        self.complete(frame);
        let mut whole = BytesMut::with_capacity(total);
        half.pieces
            .values()
            .for_each(|piece| whole.put_slice(piece));
        Some(whole.freeze())
    }

    fn complete(&mut self, frame: u32) {
        self.whole.insert(frame);
        while self.whole.remove(&self.oldest) {
            self.oldest = self.oldest.wrapping_add(1);
        }
    }
}

impl Piece {
    fn read(message: Bytes) -> Result<Self, ChunkError> {
        let truncated = ChunkError::Truncated {
            len_bytes: message.len(),
        };
        let Some((header, _)) = message.split_first_chunk::<CHUNK_HEADER_BYTES>() else {
            return Err(truncated);
        };
        let [f0, f1, f2, f3, i0, i1, t0, t1, t2, t3] = *header;
        let piece = Self {
            frame: u32::from_le_bytes([f0, f1, f2, f3]),
            index: u16::from_le_bytes([i0, i1]),
            total: u32::from_le_bytes([t0, t1, t2, t3]),
            bytes: message.slice(CHUNK_HEADER_BYTES..),
        };
        let total_bytes = piece.total as usize;
        if !(1..=FRAME_BYTES_MAX).contains(&total_bytes) {
            return Err(ChunkError::Total { total_bytes });
        }
        if piece.index >= piece_count(total_bytes)
            || piece.bytes.len() != piece_bytes(piece.index, piece.total)
        {
            return Err(ChunkError::Piece {
                index: piece.index,
                len_bytes: piece.bytes.len(),
                total_bytes,
            });
        }
        Ok(piece)
    }
}

/// Pieces of a frame of so many bytes.
fn piece_count(frame_bytes: usize) -> u16 {
    const { assert!(FRAME_BYTES_MAX / CHUNK_BYTES_MAX < u16::MAX as usize) }
    u16::try_from(frame_bytes.div_ceil(CHUNK_BYTES_MAX)).expect("FRAME_BYTES_MAX keeps this small")
}

/// Where in the frame a piece begins.
fn piece_start(index: u16) -> usize {
    usize::from(index) * CHUNK_BYTES_MAX
}

/// Length of a piece of a frame that has it.
fn piece_bytes(index: u16, total: u32) -> usize {
    (total as usize - piece_start(index)).min(CHUNK_BYTES_MAX)
}

#[cfg(test)]
mod tests;
