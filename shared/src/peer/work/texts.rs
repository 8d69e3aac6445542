//! Texts that a seat writes with the others of its pipeline, beside the training.
//!
//! The head has the text and its beginning; each portion of it goes down the pipe, and the token that the last seat draws
//! comes back. A portion follows the token before, so a seat has at most one of each text, and at most
//! [`TEXTS_MAX`] texts: the one that was idle longest makes room. A line-up that ends takes all of it with it.
//!
//! Weights change meanwhile, at every step. What is remembered of a text is of the weights with which it was read,
//! which is as good as the text itself: it was drawn with those, too.
//!
//! Nothing of a text acts twice: portions of one bear the number of their draw. Whoever lacks what came before says so, and
//! the host begins again. Between two jobs for texts one of training goes first, if there is one.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{Side, Work, WorkOutput};
use crate::compute::{Job, Portion, Written};
use crate::limits::{TEXT_EVERY_JOBS, TEXT_IDLE_MAX, TEXTS_MAX};
use crate::units::{RequestId, Time};
use crate::wire::frame::{Header, Place};
use crate::wire::generate::{Generate, Sampling, window_start};
use crate::wire::payload;
use crate::wire::signal::Up;

/// Why a head does not go on with a text whose token was lost behind it.
const LOST: &str = "a seat of the pipeline does not remember the text";
/// ... or with one that gives no token.
const NOTHING: &str = "the model gives a number that is not finite";

/// A text at one seat.
#[derive(Clone, Debug)]
struct Text {
    heard: Time,
    /// Tokens of its window that were read, or are about to be.
    read: u32,
    /// The draw that the newest portion is for.
    drawn: u32,
    /// Whether its token is still to come.
    awaited: bool,
    /// At the head: all of it.
    own: Option<Own>,
}

/// Texts that ended here and are remembered by their number: what was said of them may still come twice.
const ENDED_MAX: usize = 8 * TEXTS_MAX;

/// What only the head has of a text.
#[derive(Clone, Debug)]
struct Own {
    tokens: Vec<u32>,
    /// Where in it the window begins.
    start: usize,
    left: u32,
    sampling: Sampling,
}

/// The texts at one seat.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    context: usize,
    texts: BTreeMap<RequestId, Text>,
    waiting: VecDeque<Portion>,
    /// What the compute is to remember no more.
    over: VecDeque<RequestId>,
    /// Texts that ended, and the draw that they were at, newest last.
    ended: VecDeque<(RequestId, u32)>,
    /// Jobs of training since the last one for a text.
    trained: u32,
}

impl Texts {
    /// None yet, of a model with that context.
    pub(super) fn new(context: usize) -> Self {
        Self {
            context,
            texts: BTreeMap::new(),
            waiting: VecDeque::new(),
            over: VecDeque::new(),
            ended: VecDeque::new(),
            trained: 0,
        }
    }

    /// Whether a text's job comes before one of training.
    pub(super) fn is_due(&self) -> bool {
        self.trained >= TEXT_EVERY_JOBS
    }

    /// A job of training is being done.
    pub(super) fn trains(&mut self) {
        self.trained = self.trained.saturating_add(1);
    }

    /// The next job for a text.
    pub(super) fn next_job(&mut self) -> Option<Job> {
        let forget = self.over.pop_front();
        let job = match forget {
            Some(request) => Job::Forget { request },
            None => Job::Generate(self.waiting.pop_front()?),
        };
        self.trained = 0;
        Some(job)
    }

    /// Remembers a text no more. Whether it was there.
    fn end(&mut self, request: RequestId) -> bool {
        let Some(text) = self.texts.remove(&request) else {
            return false;
        };
        self.waiting.retain(|portion| portion.request != request);
        self.over.push_back(request);
        self.remember_ended(request, text.drawn);
        true
    }

    fn remember_ended(&mut self, request: RequestId, drawn: u32) {
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back((request, drawn));
    }

    /// Whether a text ended here after that draw, or at it.
    fn has_ended(&self, request: RequestId, drawn: u32) -> bool {
        let mut ended = self.ended.iter();
        ended.any(|(of, at)| *of == request && drawn <= *at)
    }

    /// Room for a text that is not there yet.
    fn make_room(&mut self) {
        if self.texts.len() < TEXTS_MAX {
            return;
        }
        let texts = self.texts.iter();
        let idlest = texts.min_by_key(|(_, text)| (text.awaited, text.heard));
        if let Some(request) = idlest.map(|(request, _)| *request) {
            self.end(request);
        }
    }

    /// At the head: what comes next of a text, as far as it was not read.
    fn next_portion(&mut self, request: RequestId) {
        let Some(text) = self.texts.get_mut(&request) else {
            return;
        };
        let Some(own) = &mut text.own else { return };
        let start = window_start(own.tokens.len(), self.context);
        if start != own.start {
            (own.start, text.read) = (start, 0);
        }
        let at = start + usize::try_from(text.read).expect("a context fits usize");
        let portion = Portion {
            request,
            position: text.read,
            tokens: own.tokens[at..].to_vec(),
            boundary: None,
            sampling: own.sampling,
            drawn: text.drawn,
        };
        text.read += u32::try_from(portion.tokens.len()).expect("a context fits u32");
        text.awaited = true;
        self.waiting.push_back(portion);
    }
}

impl Work {
    fn send_of_text(&mut self, side: Side, make: impl FnOnce(Place) -> Header, payload: Bytes) {
        let header = make(self.place());
        self.send(side, header, payload);
    }

    /// The host wants a text to be gone on with, at the head.
    pub fn handle_generate(&mut self, now: Time, order: Generate) {
        let Generate {
            request,
            tokens,
            drawn,
            count,
            sampling,
            place: _,
        } = order;
        if self.texts.texts.contains_key(&request) {
            return;
        }
        let fits = |token: &u32| usize::try_from(*token).is_ok_and(|it| it < self.vocabulary);
        let is_sound =
            !tokens.is_empty() && tokens.iter().all(fits) && count > 0 && sampling.is_sound();
        let is_sound = is_sound && drawn.checked_add(count).is_some();
        if !self.is_head() || !is_sound || self.texts.texts.len() >= TEXTS_MAX {
            let reason = "the pipeline has no room for it";
            return self.not_written(request, reason);
        }
        let own = Own {
            tokens,
            start: 0,
            left: count,
            sampling,
        };
        let text = Text {
            heard: now,
            read: 0,
            drawn,
            awaited: false,
            own: Some(own),
        };
        self.texts.texts.insert(request, text);
        self.texts.next_portion(request);
    }

    fn not_written(&mut self, request: RequestId, reason: &str) {
        let place = self.place();
        let reason = reason.to_owned();
        self.outputs.push_back(WorkOutput::Up(Up::NotWritten {
            place,
            request,
            reason,
        }));
    }

    /// A portion from the previous seat.
    pub fn handle_text(&mut self, now: Time, portion: Portion) {
        let request = portion.request;
        let rows = u32::try_from(portion.tokens.len()).unwrap_or(u32::MAX);
        let has_ended = self.texts.has_ended(request, portion.drawn);
        match self.texts.texts.get_mut(&request) {
            // It came before.
            Some(text) if portion.drawn <= text.drawn => {}
            Some(text) if text.awaited => {
                self.refuse(Side::Previous, "more of a text before its token is drawn");
            }
            Some(text) if portion.position == 0 || portion.position == text.read => {
                text.heard = now;
                text.read = portion.position.saturating_add(rows);
                text.drawn = portion.drawn;
                text.awaited = true;
                self.texts.waiting.push_back(portion);
            }
            // It came before, and the text ended since.
            None if has_ended => {}
            // Texts that end have jobs of their own: no more of them than are remembered.
            None if portion.position == 0 && self.texts.over.len() < ENDED_MAX => {
                self.texts.make_room();
                let text = Text {
                    heard: now,
                    read: rows,
                    drawn: portion.drawn,
                    awaited: true,
                    own: None,
                };
                self.texts.texts.insert(request, text);
                self.texts.waiting.push_back(portion);
            }
            Some(_) | None => self.send_drawn(request, portion.drawn, None),
        }
    }

    fn send_drawn(&mut self, request: RequestId, drawn: u32, token: Option<u32>) {
        let make = |place: Place| Header::Drawn {
            pipeline: place.pipeline,
            epoch: place.epoch,
            request,
            drawn,
            token,
        };
        self.send_of_text(Side::Previous, make, Bytes::new());
    }

    /// A token from the next seat, or that there is none.
    pub fn handle_drawn(&mut self, now: Time, request: RequestId, drawn: u32, token: Option<u32>) {
        let vocabulary = self.vocabulary;
        let is_none = |token: u32| usize::try_from(token).is_ok_and(|it| it >= vocabulary);
        if token.is_some_and(is_none) {
            return self.refuse(Side::Next, "a token that the vocabulary does not have");
        }
        let text = self.texts.texts.get_mut(&request);
        let awaited = text.filter(|text| text.awaited && text.drawn == drawn);
        if let Some(text) = awaited {
            text.heard = now;
            self.drawn(request, token, LOST);
        }
    }

    /// What came of the draw that is awaited.
    fn drawn(&mut self, request: RequestId, token: Option<u32>, why_not: &str) {
        let Some(text) = self.texts.texts.get_mut(&request) else {
            return;
        };
        text.awaited = false;
        let drawn = text.drawn;
        match (&mut text.own, token) {
            (None, _) => {
                if token.is_none() {
                    self.texts.end(request);
                }
                self.send_drawn(request, drawn, token);
            }
            (Some(_), None) => {
                self.not_written(request, why_not);
                self.end_text(request);
            }
            (Some(own), Some(token)) => {
                own.tokens.push(token);
                own.left -= 1;
                text.drawn += 1;
                let is_over = own.left == 0;
                let place = self.place();
                self.outputs.push_back(WorkOutput::Up(Up::Written {
                    place,
                    request,
                    drawn,
                    token,
                }));
                if is_over {
                    self.end_text(request);
                } else {
                    self.texts.next_portion(request);
                }
            }
        }
    }

    /// Ends a text here and in the seats behind.
    pub fn end_text(&mut self, request: RequestId) {
        if !self.texts.end(request) {
            if self.is_head() || self.texts.has_ended(request, u32::MAX) {
                return;
            }
            // The word may have overtaken the text, which is not to begin any more; or it ended here, and goes on behind.
            self.texts.remember_ended(request, u32::MAX);
        }
        if !self.is_last() {
            let make = |place: Place| Header::Forget {
                pipeline: place.pipeline,
                epoch: place.epoch,
                request,
            };
            self.send_of_text(Side::Next, make, Bytes::new());
        }
    }

    /// Ends all texts of this head: the host, who wanted them, is not there, and will have them begun again.
    pub fn end_own_texts(&mut self) {
        let own = self.texts.texts.iter().filter(|(_, it)| it.own.is_some());
        let own: Vec<RequestId> = own.map(|(request, _)| *request).collect();
        own.into_iter().for_each(|request| self.end_text(request));
    }

    /// Forgets texts that nothing more comes of.
    pub fn forget_idle_texts(&mut self, now: Time) {
        let texts = self.texts.texts.iter();
        let idle = texts.filter(|(_, text)| now.since(text.heard) > TEXT_IDLE_MAX);
        let idle: Vec<RequestId> = idle.map(|(request, _)| *request).collect();
        for request in idle {
            self.texts.end(request);
        }
    }

    /// The compute read a portion.
    pub(super) fn text_done(&mut self, portion: &Portion, written: Written) {
        let request = portion.request;
        let text = self.texts.texts.get(&request);
        // It ended while it was read.
        if text.is_none_or(|text| text.drawn != portion.drawn || !text.awaited) {
            return;
        }
        match written {
            Written::Boundary(boundary) => {
                let bytes = payload::encode_forward(&portion.tokens, self.vocabulary, &boundary);
                let (position, drawn) = (portion.position, portion.drawn);
                let sampling = portion.sampling;
                let make = |place: Place| Header::Text {
                    pipeline: place.pipeline,
                    epoch: place.epoch,
                    request,
                    position,
                    drawn,
                    sampling,
                };
                self.send_of_text(Side::Next, make, bytes);
            }
            Written::Token(token) => self.drawn(request, Some(token), NOTHING),
            Written::Nothing => self.drawn(request, None, NOTHING),
        }
    }

    /// The compute could not read a portion: it does not fit the model, or what was read before.
    pub(super) fn text_refused(&mut self, request: RequestId, reason: String) {
        if self.is_head() {
            self.not_written(request, &reason);
        } else {
            self.outputs
                .push_back(WorkOutput::Refuse(Side::Previous, reason));
        }
        self.end_text(request);
    }
}
