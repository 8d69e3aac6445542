//! Texts between the host, the seat and its neighbours: what comes is brought to the seat's work.
//!
//! A text belongs to a line-up, whatever round that is in: rounds go on while it is written. What is of another line-up has
//! no effect; a frame from the wrong side of the pipe, or of a size that no text has, costs the link.
//! How a text is written is [`work`](super::work)'s business.

use super::Peer;
use super::work::Work;
use crate::compute::Portion;
use crate::units::{Epoch, PeerId, PipelineId, RequestId, Time};
use crate::wire::frame::{Frame, Header, Place};
use crate::wire::generate::Generate;
use crate::wire::payload;

impl Peer {
    /// The seat's work in that line-up.
    fn work_of(&mut self, pipeline: PipelineId, epoch: Epoch) -> Option<&mut Work> {
        let is_of = |place: Place| (place.pipeline, place.epoch) == (pipeline, epoch);
        self.work.as_mut().filter(|work| is_of(work.place()))
    }

    /// The host wants a text.
    pub(super) fn generate(&mut self, now: Time, order: Generate) {
        if let Some(work) = self.work_of(order.place.pipeline, order.place.epoch) {
            work.handle_generate(now, order);
        }
    }

    /// Nobody wants a text any more.
    pub(super) fn forget_text(&mut self, place: Place, request: RequestId) {
        if let Some(work) = self.work_of(place.pipeline, place.epoch) {
            work.end_text(request);
        }
    }

    /// Forgets texts that nothing more comes of.
    pub(super) fn forget_idle_texts(&mut self, now: Time) {
        if let Some(work) = &mut self.work {
            work.forget_idle_texts(now);
        }
    }

    /// A frame about a text.
    pub(super) fn text_frame(&mut self, now: Time, peer: PeerId, frame: Frame) {
        let (Header::Text {
            pipeline, epoch, ..
        }
        | Header::Drawn {
            pipeline, epoch, ..
        }
        | Header::Forget {
            pipeline, epoch, ..
        }) = frame.header
        else {
            return;
        };
        let Some(config) = self.config.clone() else {
            return;
        };
        let Some(work) = self.work_of(pipeline, epoch) else {
            return;
        };
        let order = work.order();
        let from_previous = order.previous.is_some_and(|it| it.peer == peer);
        let from_next = order.next.is_some_and(|it| it.peer == peer);
        let is_back = matches!(frame.header, Header::Drawn { .. });
        if !(if is_back { from_next } else { from_previous }) {
            return self.refuse_link(peer, "a text from the wrong side of the pipe");
        }
        if let Header::Text {
            request,
            position,
            drawn,
            sampling,
            ..
        } = frame.header
        {
            let model = &config.model;
            let row_bytes = config.format.row_bytes(model.boundary_width());
            let (context, vocabulary) = (model.context, model.vocabulary);
            let read = payload::decode_text(&frame.payload, context, vocabulary, row_bytes);
            let Ok((tokens, boundary)) = read else {
                return self.refuse_link(peer, "a text that does not fit the model");
            };
            let portion = Portion {
                request,
                position,
                tokens,
                boundary: Some(boundary),
                sampling,
                drawn,
            };
            work.handle_text(now, portion);
        } else if let Header::Drawn {
            request,
            drawn,
            token,
            ..
        } = frame.header
        {
            work.handle_drawn(now, request, drawn, token);
        } else if let Header::Forget { request, .. } = frame.header {
            work.end_text(request);
        }
    }
}
