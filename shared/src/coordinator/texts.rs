//! Texts that somebody wants the model to go on with: which pipeline writes which, and what becomes of them.
//!
//! A pipeline that is formed writes texts beside its training, whatever its round is at. Its head says each token; all that
//! there is of a text is kept here, so whenever the pipeline is lost, or silent for too long, another one goes on from
//! there. Each such try has a number of its own, by which what still comes of an earlier one is known.
//!
//! Limits: [`TEXTS_AT_HOST_MAX`] texts, [`TEXTS_MAX`] at a pipeline, [`TEXT_TRIES_MAX`] line-ups of one; a text that waits is
//! given up after [`TEXT_WAIT_MAX`], in words. No text outlives the host, and none is journaled.

use std::collections::BTreeMap;

use super::pipeline::{Phase, Pipeline};
use super::{Coordinator, Output};
use crate::limits::{
    TEXT_SILENCE_MAX, TEXT_TRIES_MAX, TEXT_WAIT_MAX, TEXTS_AT_HOST_MAX, TEXTS_MAX,
};
use crate::units::{PeerId, RequestId, Time};
use crate::wire::frame::Place;
use crate::wire::generate::{Generate, Sampling, window_start};
use crate::wire::signal::Down;

/// What somebody wants written.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// What to go on from: not empty, all of the vocabulary.
    pub tokens: Vec<u32>,
    /// Tokens to write: not none.
    pub count: u32,
    /// How they are drawn.
    pub sampling: Sampling,
}

/// News of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextNews {
    /// Its next token.
    Token(u32),
    /// All of it was told.
    Over,
    /// It is given up: why, in words.
    GivenUp(String),
}

/// Where a text is being written.
#[derive(Clone, Copy, Debug)]
struct At {
    request: RequestId,
    place: Place,
    head: PeerId,
}

#[derive(Clone, Debug)]
struct Text {
    /// The prompt, then what was drawn.
    tokens: Vec<u32>,
    drawn: u32,
    count: u32,
    sampling: Sampling,
    at: Option<At>,
    tries: u32,
    /// When its last token came, or its waiting began.
    since: Time,
}

/// All texts, by the numbers that whoever asked gave them.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts(BTreeMap<u64, Text>);

impl Texts {
    /// Whether nobody wants any.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text that this try is of.
    fn of(&mut self, head: PeerId, request: RequestId) -> Option<(u64, &mut Text)> {
        let is_it = |at: At| (at.head, at.request) == (head, request);
        let found = self.0.iter_mut().find(|(_, it)| it.at.is_some_and(is_it));
        found.map(|(number, text)| (*number, text))
    }

    /// Texts that a line-up writes.
    fn at(&self, place: Place) -> usize {
        let is_there = |at: At| is_same(at.place, place);
        let texts = self.0.values();
        texts.filter(|it| it.at.is_some_and(is_there)).count()
    }
}

/// Whether both are of one line-up, in whatever rounds.
fn is_same(one: Place, other: Place) -> bool {
    (one.pipeline, one.epoch) == (other.pipeline, other.epoch)
}

/// Whether all its seats are at work.
fn is_formed(pipeline: &Pipeline) -> bool {
    match pipeline.phase {
        Phase::Evaluating
        | Phase::Training
        | Phase::Merging
        | Phase::Committing
        | Phase::Boundary => !pipeline.broken,
        Phase::Journaling | Phase::Forming | Phase::Resuming { .. } => false,
    }
}

impl Coordinator {
    /// Somebody wants a text. `number` is new, and names it in [`Output::Text`].
    ///
    /// # Panics
    /// If nothing is to be gone on from, or nothing is wanted.
    pub fn handle_wanted(&mut self, now: Time, number: u64, wanted: Wanted) {
        let Wanted {
            tokens,
            count,
            sampling,
        } = wanted;
        assert!(!tokens.is_empty() && count > 0, "a text to go on with");
        if self.texts.0.len() >= TEXTS_AT_HOST_MAX {
            let reason = "this host has as many texts to write as it takes; try again in a while";
            let news = TextNews::GivenUp(reason.to_owned());
            return self.out(Output::Text { number, news });
        }
        let text = Text {
            tokens,
            drawn: 0,
            count,
            sampling,
            at: None,
            tries: 0,
            since: now,
        };
        self.texts.0.insert(number, text);
        self.pump_texts(now);
    }

    /// Nobody wants a text any more.
    pub fn handle_unwanted(&mut self, now: Time, number: u64) {
        if let Some(text) = self.texts.0.remove(&number) {
            self.end_try(text.at);
        }
        self.pump_texts(now);
    }

    fn end_try(&mut self, at: Option<At>) {
        if let Some(At {
            request,
            place,
            head,
        }) = at
        {
            self.tell(head, Down::Forget { place, request });
        }
    }

    /// A head's next token of a text.
    pub(super) fn written(
        &mut self,
        now: Time,
        peer: PeerId,
        request: RequestId,
        (drawn, token): (u32, u32),
    ) {
        let vocabulary = self.config().model.vocabulary;
        let is_known = usize::try_from(token).is_ok_and(|token| token < vocabulary);
        let Some((number, text)) = self.texts.of(peer, request) else {
            return;
        };
        if drawn != text.drawn || !is_known {
            return;
        }
        text.tokens.push(token);
        text.drawn += 1;
        text.since = now;
        text.tries = 0;
        let is_over = text.drawn == text.count;
        let news = TextNews::Token(token);
        self.out(Output::Text { number, news });
        if is_over {
            self.texts.0.remove(&number);
            let news = TextNews::Over;
            self.out(Output::Text { number, news });
        }
    }

    /// A head cannot go on with a text.
    pub(super) fn not_written(&mut self, now: Time, peer: PeerId, request: RequestId) {
        if let Some((number, _)) = self.texts.of(peer, request) {
            self.lose_text(now, number);
        }
    }

    /// A volunteer joined again: as head it remembers no text.
    pub(super) fn lose_texts_of(&mut self, now: Time, head: PeerId) {
        let texts = self.texts.0.iter();
        let own = texts.filter(|(_, text)| text.at.is_some_and(|at| at.head == head));
        let own: Vec<u64> = own.map(|(number, _)| *number).collect();
        for number in own {
            self.lose_text(now, number);
        }
    }

    /// A text's pipeline is lost for it: another one goes on, or the same again.
    fn lose_text(&mut self, now: Time, number: u64) {
        let Some(text) = self.texts.0.get_mut(&number) else {
            return;
        };
        let at = text.at.take();
        text.since = now;
        text.tries += 1;
        let tries = text.tries;
        self.end_try(at);
        if tries >= TEXT_TRIES_MAX {
            self.give_up(
                number,
                format!(
                    "the pipeline that wrote it was lost {tries} times: volunteers came and went"
                ),
            );
        }
    }

    fn give_up(&mut self, number: u64, reason: String) {
        self.texts.0.remove(&number);
        let news = TextNews::GivenUp(reason);
        self.out(Output::Text { number, news });
    }

    /// Takes texts from line-ups that are gone, and gives those that wait to line-ups with room.
    pub(super) fn pump_texts(&mut self, now: Time) {
        if self.texts.is_empty() {
            return;
        }
        let is_gone = |at: At| {
            let pipeline = self.pipelines.get(at.place.pipeline);
            let is_there = pipeline.is_some_and(|it| is_same(it.place, at.place) && is_formed(it));
            let head = self.roster.get(at.head);
            !is_there || head.is_none_or(|head| head.connection.is_none())
        };
        let texts = self.texts.0.iter();
        let lost = texts.filter(|(_, text)| text.at.is_some_and(is_gone));
        let lost: Vec<u64> = lost.map(|(number, _)| *number).collect();
        for number in lost {
            self.lose_text(now, number);
        }
        let texts = self.texts.0.iter();
        let waiting = texts.filter(|(_, text)| text.at.is_none());
        let waiting: Vec<u64> = waiting.map(|(number, _)| *number).collect();
        for number in waiting {
            let Some(place) = self.place_with_room() else {
                return;
            };
            self.have_written(now, number, place);
        }
    }

    /// A formed line-up with room for a text: the one that writes fewest.
    fn place_with_room(&self) -> Option<Place> {
        let has_head = |it: &Pipeline| {
            let head = self.roster.get(it.head());
            head.is_some_and(|head| head.connection.is_some())
        };
        let formed = self.pipelines.iter().filter(|it| is_formed(it));
        let counted = formed
            .filter(|it| has_head(it))
            .map(|it| (self.texts.at(it.place), it.place));
        let fewest = counted.min_by_key(|(count, _)| *count);
        fewest.and_then(|(count, place)| (count < TEXTS_MAX).then_some(place))
    }

    fn have_written(&mut self, now: Time, number: u64, place: Place) {
        let request = self.issue();
        let context = self.config().model.context;
        let Some(head) = self.pipelines.get(place.pipeline).map(Pipeline::head) else {
            return;
        };
        let Some(text) = self.texts.0.get_mut(&number) else {
            return;
        };
        text.since = now;
        text.at = Some(At {
            request,
            place,
            head,
        });
        let start = window_start(text.tokens.len(), context);
        let order = Generate {
            place,
            request,
            tokens: text.tokens[start..].to_vec(),
            drawn: text.drawn,
            count: text.count - text.drawn,
            sampling: text.sampling,
        };
        self.tell(head, Down::Generate(Box::new(order)));
    }

    /// Gives up what waited for too long, and has begun again what is silent.
    pub(super) fn check_texts(&mut self, now: Time) {
        let texts = self.texts.0.iter();
        let waited = |text: &Text| now.since(text.since);
        let silent = texts
            .clone()
            .filter(|(_, text)| text.at.is_some() && waited(text) > TEXT_SILENCE_MAX);
        let late = texts.filter(|(_, text)| text.at.is_none() && waited(text) > TEXT_WAIT_MAX);
        let silent: Vec<u64> = silent.map(|(number, _)| *number).collect();
        let late: Vec<u64> = late.map(|(number, _)| *number).collect();
        for number in late {
            let why = self.why_no_text();
            self.give_up(number, why);
        }
        for number in silent {
            self.lose_text(now, number);
        }
    }

    fn why_no_text(&self) -> String {
        let paused = self.history.paused().map(str::to_owned);
        let why = paused.or_else(|| self.waits_for.clone());
        let why = why.unwrap_or_else(|| "all pipelines are busy with others".to_owned());
        format!("no pipeline of volunteers could take it: {why}")
    }
}
