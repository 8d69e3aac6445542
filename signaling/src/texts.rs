//! Between people's words and the model's: prompts become ids, ids become text, and nobody asks for too much at once.
//!
//! The run's tokenizer does both; a host whose data came as token shards without one writes no text. Who writes a
//! text, and for how long it is waited for, is the coordinator's business.
//!
//! Invariant: an address has at most [`TEXTS_AN_ADDRESS_MAX`] texts, each until its [`Permit`] is dropped.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use shared::limits::{PROMPT_BYTES_MAX, PROMPT_TOKENS_MAX, TEXT_TOKENS_MAX, TEXTS_AN_ADDRESS_MAX};
use shared::units::Time;
use tokenizers::Tokenizer;
use tokio::sync::mpsc;

use crate::app::Event;
use crate::door::{Door, TEXT_EVERY, TEXTS_BURST, neighbourhood};

/// Why a text is not asked for at all. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The data came as token shards without a tokenizer.
    #[error(
        "this host has no tokenizer for its run, so it writes no text; its person can give one with --tokenizer"
    )]
    NoTokenizer,
    /// Nothing to go on from.
    #[error("the prompt has no token: give some text to go on from")]
    Empty,
    /// Too much to go on from.
    #[error(
        "the prompt is too long: at most {PROMPT_BYTES_MAX} bytes and {PROMPT_TOKENS_MAX} tokens are read"
    )]
    TooLong,
    /// None wanted, or too much.
    #[error("{tokens} tokens cannot be written at once: ask for 1 to {TEXT_TOKENS_MAX}")]
    Count {
        /// How many were asked for.
        tokens: u32,
    },
    /// No token can be drawn so.
    #[error("temperature must not be negative, top_p lies above 0 and at most at 1")]
    Sampling,
    /// The tokenizer's own words.
    #[error("the tokenizer refuses the prompt: {reason}")]
    Tokenizer {
        /// What it said.
        reason: String,
    },
    /// The address asks too often.
    #[error("your address asks for texts too often: wait for {} seconds", TEXT_EVERY.as_secs_f64())]
    TooOften,
    /// The address has as many as it may.
    #[error(
        "{TEXTS_AN_ADDRESS_MAX} texts are being written for your address: wait for one of them"
    )]
    TooMany,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Texts {
    tokenizer: Option<Tokenizer>,
    vocabulary: usize,
    asked: AtomicU64,
    by_address: Mutex<BTreeMap<IpAddr, usize>>,
    rates: Door,
}

/// One text of an address. Dropped, nobody wants it any more.
#[derive(Debug)]
pub struct Permit {
    texts: Arc<Texts>,
    address: IpAddr,
    /// The text's number.
    pub number: u64,
    inbox: mpsc::Sender<Event>,
}

impl Texts {
    /// With the tokenizer in that file, if there is one.
    #[must_use]
    pub fn new(tokenizer: &Path, vocabulary: usize) -> Self {
        let loaded = tokenizer.exists().then(|| Tokenizer::from_file(tokenizer));
        let tokenizer = loaded.and_then(|loaded| {
            loaded
                .inspect_err(|error| tracing::warn!(%error, "no text can be written"))
                .ok()
        });
        Self {
            tokenizer,
            vocabulary,
            asked: AtomicU64::new(0),
            by_address: Mutex::default(),
            rates: Door::new(TEXTS_BURST, TEXT_EVERY),
        }
    }

    /// Whether prompts can be read at all.
    #[must_use]
    pub fn has_tokenizer(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// Lets an address have a text.
    ///
    /// # Errors
    /// It has too many, or asks too often.
    pub fn admit(
        self: Arc<Self>,
        now: Time,
        address: IpAddr,
        inbox: mpsc::Sender<Event>,
    ) -> Result<Permit, TextError> {
        if !self.rates.admit(now, address) {
            return Err(TextError::TooOften);
        }
        let address = neighbourhood(address);
        let mut by_address = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_default();
        if *count >= TEXTS_AN_ADDRESS_MAX {
            return Err(TextError::TooMany);
        }
        *count += 1;
        drop(by_address);
        Ok(Permit {
            number: self.number(),
            texts: self,
            address,
            inbox,
        })
    }

    /// A number that no other text has.
    pub fn number(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::Relaxed)
    }

    /// The ids of a prompt.
    ///
    /// # Errors
    /// It has none, or too many.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>, TextError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(TextError::NoTokenizer)?;
        if prompt.len() > PROMPT_BYTES_MAX {
            return Err(TextError::TooLong);
        }
        let encoding = tokenizer
            .encode(prompt, false)
            .map_err(|error| TextError::Tokenizer {
                reason: error.to_string(),
            })?;
        let tokens = encoding.get_ids().to_vec();
        let is_known = |token: &u32| usize::try_from(*token).is_ok_and(|it| it < self.vocabulary);
        match tokens.len() {
            0 => Err(TextError::Empty),
            1..=PROMPT_TOKENS_MAX if tokens.iter().all(is_known) => Ok(tokens),
            1..=PROMPT_TOKENS_MAX => Err(TextError::Tokenizer {
                reason: "it knows tokens that the model does not have".to_owned(),
            }),
            _ => Err(TextError::TooLong),
        }
    }

    /// The text of ids. A character that is not whole yet ends in a replacement character.
    fn decode(&self, tokens: &[u32]) -> String {
        let tokenizer = self.tokenizer.as_ref();
        let decoded = tokenizer.and_then(|it| it.decode(tokens, false).ok());
        decoded.unwrap_or_default()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut by_address = self
            .texts
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
        let number = self.number;
        // Where the inbox is full the text is written to its end, for nobody: it has one.
        let _ = self.inbox.try_send(Event::Unwanted { number });
    }
}

/// A text as it grows after its prompt.
#[derive(Debug)]
pub struct Growing {
    tokens: Vec<u32>,
    prompt: usize,
    /// Bytes of the whole text that were told.
    told: usize,
}

impl Growing {
    /// A text that goes on from a prompt.
    #[must_use]
    pub fn new(texts: &Texts, prompt: Vec<u32>) -> Self {
        Self {
            told: whole(&texts.decode(&prompt)).len(),
            prompt: prompt.len(),
            tokens: prompt,
        }
    }

    /// What the next token adds: whole characters, perhaps none.
    pub fn push(&mut self, texts: &Texts, token: u32) -> String {
        self.tokens.push(token);
        let text = texts.decode(&self.tokens);
        self.tell(whole(&text))
    }

    /// What is left of an unfinished character at the end.
    pub fn rest(&mut self, texts: &Texts) -> String {
        let text = texts.decode(&self.tokens);
        self.tell(&text)
    }

    fn tell(&mut self, text: &str) -> String {
        let new = text.get(self.told..).unwrap_or_default().to_owned();
        self.told = self.told.max(text.len());
        new
    }

    /// Tokens after the prompt.
    #[must_use]
    pub fn written(&self) -> u32 {
        u32::try_from(self.tokens.len() - self.prompt).unwrap_or(u32::MAX)
    }
}

/// A text without an unfinished character at its end.
fn whole(text: &str) -> &str {
    text.trim_end_matches(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::data::tokenizer::bytes_tokenizer_json;

    fn bytes() -> Texts {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, bytes_tokenizer_json()).unwrap();
        Texts::new(&path, 256)
    }

    #[test]
    fn a_text_grows_by_whole_characters() {
        let texts = bytes();
        let tokens = texts.encode("né").unwrap();
        assert_eq!(tokens, [110, 195, 169]);
        let mut growing = Growing::new(&texts, tokens);
        let told: Vec<String> = "aü!"
            .bytes()
            .map(|it| growing.push(&texts, it.into()))
            .collect();
        assert_eq!(told, ["a", "", "ü", "!"]);
        assert_eq!(growing.push(&texts, 0xc3), "");
        assert_eq!(growing.rest(&texts), "\u{fffd}");
        assert_eq!(growing.written(), 5);
    }

    #[test]
    fn prompts_that_are_none_or_too_long_are_refused_in_words() {
        let texts = bytes();
        assert_eq!(texts.encode(""), Err(TextError::Empty));
        let long = "a".repeat(PROMPT_TOKENS_MAX + 1);
        assert_eq!(texts.encode(&long), Err(TextError::TooLong));
        assert_eq!(
            texts.encode(&long[1..]).map(|it| it.len()),
            Ok(PROMPT_TOKENS_MAX)
        );
        assert_eq!(
            texts.encode(&"a".repeat(PROMPT_BYTES_MAX + 1)),
            Err(TextError::TooLong)
        );
        let none = Texts::new(Path::new("no/such/file"), 256);
        assert_eq!(none.encode("a"), Err(TextError::NoTokenizer));
    }

    #[test]
    fn an_address_has_few_texts_at_a_time_and_the_end_of_one_is_told() {
        let texts = Arc::new(bytes());
        let (inbox, mut events) = mpsc::channel(8);
        let address = |last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
        let admit = |last| {
            texts
                .clone()
                .admit(Time::ZERO, address(last), inbox.clone())
        };
        let mut held: Vec<Permit> = (0..TEXTS_AN_ADDRESS_MAX)
            .map(|_| admit(1).unwrap())
            .collect();
        assert_eq!(admit(1).unwrap_err(), TextError::TooMany);
        assert!(admit(2).is_ok(), "another address");
        let first = held.remove(0).number;
        let mut ended = Vec::new();
        while let Ok(Event::Unwanted { number }) = events.try_recv() {
            ended.push(number);
        }
        assert!(ended.contains(&first), "{ended:?}");
        assert!(admit(1).is_ok());
    }

    #[test]
    fn an_address_that_lets_texts_go_at_once_gets_no_more_of_them_for_a_while() {
        let texts = Arc::new(bytes());
        let (inbox, _events) = mpsc::channel(64);
        let address = IpAddr::from(Ipv4Addr::new(10, 0, 0, 1));
        let admit = |now| texts.clone().admit(now, address, inbox.clone());
        for _ in 0..TEXTS_BURST {
            assert!(admit(Time::ZERO).is_ok());
        }
        assert_eq!(admit(Time::ZERO).unwrap_err(), TextError::TooOften);
        assert!(admit(Time::ZERO + TEXT_EVERY).is_ok());
    }
}
