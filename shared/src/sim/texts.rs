//! People who want texts, and whether they get them: what comes must be what the fake compute says of what came before.
//!
//! They ask now and then, whatever else happens, and some lose interest. A token that is lost, repeated or of a seat that
//! missed a portion is another one than is expected here, and a text that just stops is noticed, too.

use std::collections::BTreeMap;

use super::Dice;
use super::compute::next_token;
use super::summary::Failure;
use super::world::{Event, World};
use crate::coordinator::texts::{TextNews, Wanted};
use crate::units::{Span, Time};
use crate::wire::generate::{Sampling, window_start};

/// Longer than any text may take: the host gives it up before.
const TEXT_MAX: Span = Span::from_secs(900);

/// Somebody who waits for a text.
#[derive(Debug)]
struct Asked {
    tokens: Vec<u32>,
    left: u32,
    since: Time,
}

/// Those who ask, with dice of their own.
#[derive(Debug)]
pub(super) struct Askers {
    dice: Dice,
    texts: BTreeMap<u64, Asked>,
    asked: u64,
}

impl Askers {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            dice: Dice::new(seed ^ 0x7e47),
            texts: BTreeMap::new(),
            asked: 0,
        }
    }

    /// The host is gone, and with it all that it was asked for.
    pub(super) fn forget(&mut self) {
        self.texts.clear();
    }
}

impl World {
    /// Somebody wants a text, or does not any more; and the next one later.
    pub(super) fn want(&mut self) -> Result<(), Failure> {
        let now = self.now;
        let askers = &mut self.askers;
        let wait = askers.dice.millis(100, 9_000);
        let late = askers.texts.iter();
        let late = late
            .filter(|(_, it)| now.since(it.since) > TEXT_MAX)
            .count();
        if late > 0 {
            return Err(self.failure(format!("{late} texts neither end nor are given up")));
        }
        let loses_interest = askers.dice.once_in(8);
        if let Some(host) = &mut self.host {
            if loses_interest && let Some((number, _)) = askers.texts.pop_first() {
                host.handle_unwanted(now, number);
            }
            let vocabulary = self.config.model.vocabulary as u64;
            let len = askers.dice.between(1, 12);
            let token = |_| u32::try_from(askers.dice.below(vocabulary)).expect("small");
            let tokens: Vec<u32> = (0..len).map(token).collect();
            let left = u32::try_from(askers.dice.between(1, 16)).expect("small");
            askers.asked += 1;
            let wanted = Wanted {
                tokens: tokens.clone(),
                count: left,
                sampling: Sampling {
                    temperature: 1.0,
                    top_p: 1.0,
                    seed: askers.asked,
                },
            };
            let asked = Asked {
                tokens,
                left,
                since: now,
            };
            askers.texts.insert(askers.asked, asked);
            host.handle_wanted(now, askers.asked, wanted);
        }
        self.after(wait, Event::Wanted);
        Ok(())
    }

    /// News of a text.
    pub(super) fn text_news(&mut self, number: u64, news: TextNews) -> Result<(), Failure> {
        let model = &self.config.model;
        // What is told while somebody loses interest is heard by nobody.
        let Some(asked) = self.askers.texts.get_mut(&number) else {
            return Ok(());
        };
        let start = window_start(asked.tokens.len(), model.context);
        let expected = next_token(&asked.tokens[start..], model.vocabulary);
        match news {
            TextNews::Token(token) if token == expected && asked.left > 0 => {
                asked.tokens.push(token);
                asked.left -= 1;
                self.summary.tokens_written += 1;
                Ok(())
            }
            TextNews::Over if asked.left == 0 => {
                self.askers.texts.remove(&number);
                self.summary.texts += 1;
                Ok(())
            }
            TextNews::GivenUp(_) => {
                self.askers.texts.remove(&number);
                self.summary.texts_given_up += 1;
                Ok(())
            }
            TextNews::Token(_) | TextNews::Over => {
                let what = format!("{news:?} of text {number}, not {expected}: {asked:?}");
                Err(self.failure(what))
            }
        }
    }
}
