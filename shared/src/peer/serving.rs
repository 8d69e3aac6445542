//! Pieces of state for others: few at a time are on their way out of here, the rest wait as requests.
//!
//! A request takes some bytes, a piece [`STATE_CHUNK_BYTES`](crate::limits::STATE_CHUNK_BYTES): so whoever asks for much and takes
//! nothing costs us little. What does not fit is not answered; no correct volunteer asks for so much.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Peer;
use crate::limits::{STATE_PIECES_QUEUED, STATE_REQUESTS_MAX};
use crate::units::{PeerId, Round, StageId, Time};
use crate::wire::frame::{Frame, Header};

/// What one other volunteer asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Serving {
    /// Round, stage and offset of pieces.
    waiting: VecDeque<(Round, StageId, u64)>,
    /// Pieces that were given to the driver and have not left it.
    queued: usize,
}

impl Peer {
    /// `peer` asks for the piece of a state at `offset`.
    pub(super) fn state_asked(
        &mut self,
        now: Time,
        peer: PeerId,
        (round, stage, offset): (Round, StageId, u64),
    ) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.handle_asked(now);
        }
        let waiting = &mut self.serving.entry(peer).or_default().waiting;
        if waiting.len() < STATE_REQUESTS_MAX {
            waiting.push_back((round, stage, offset));
        }
        self.serve(now, peer);
    }

    /// A piece of state for `peer` is out: the transport has the whole of it.
    pub fn handle_state_sent(&mut self, now: Time, peer: PeerId) {
        if let Some(serving) = self.serving.get_mut(&peer) {
            serving.queued = serving.queued.saturating_sub(1);
            self.serve(now, peer);
        }
    }

    fn serve(&mut self, now: Time, peer: PeerId) {
        while let Some(serving) = self.serving.get_mut(&peer)
            && serving.queued < STATE_PIECES_QUEUED
            && let Some((round, stage, offset)) = serving.waiting.pop_front()
        {
            serving.queued += 1;
            let piece = self.kept.piece(round, stage, offset);
            let (payload, total) = piece.unwrap_or((Bytes::new(), 0));
            let header = Header::StateChunk {
                round,
                stage,
                offset,
                total,
            };
            self.send(now, peer, Frame { header, payload });
        }
    }
}
