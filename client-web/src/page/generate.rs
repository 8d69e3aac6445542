//! A text that a person asks the run's volunteers for: what may be asked, what has come, and how it ended, in sentences.
//!
//! It knows no browser. The form itself is `app::generate`, the stream's format [`shared::wire::generate`]. What was
//! written stays, however the text ends. Begin with [`Text`].

use shared::limits::{PROMPT_BYTES_MAX, PROMPT_TOKENS_MAX};
use shared::wire::generate::{
    GenerateNews, GenerateRequest, NewsReader, usual_temperature, usual_tokens, usual_top_p,
};
use shared::wire::report::{DataReport, RunReport};

use super::format::{count, plural};
use super::markup::sentence;
use super::words;

/// What the tokenizer is called whose tokens are bytes.
const BYTES: &str = "bytes";
/// Nobody answered.
pub const UNREACHABLE: &str =
    "The host does not answer. Look at your connection, or ask again in a moment.";
/// The answer ended without a last word.
pub const BROKEN_OFF: &str = "The host stopped in the middle of the text. Ask again in a moment.";
/// A person has read enough.
pub const STOPPED: &str = "Stopped. The volunteers write no more of it.";
/// Before the first word.
const ASKED: &str = "The volunteers have the prompt. They write beside their training, so the first word may take a moment.";
/// After it.
const WRITING: &str = "The volunteers write, and train on.";

/// Why nobody can be asked now, if so.
#[must_use]
pub fn barrier(report: &RunReport) -> Option<&'static str> {
    if !report.takes_prompts {
        return Some(
            "This run’s host has no tokenizer for the run’s tokens, so the model cannot be asked for text here.",
        );
    }
    match report.state.as_str() {
        words::OVER => Some(
            "The run is over, so no volunteers hold the model any more. Exported, it writes with the headless client: \
             shoal generate.",
        ),
        "paused" => Some("The run is paused: nobody could write before it goes on."),
        "waiting" => Some(
            "No volunteers hold the whole model at the moment: once they do, it can be asked to write.",
        ),
        _ => None,
    }
}

/// Most bytes of a prompt. Where a token is more than a byte, only the host can count tokens.
fn prompt_bytes_max(data: &DataReport) -> usize {
    match data.tokenizer.as_str() {
        BYTES => PROMPT_TOKENS_MAX.min(PROMPT_BYTES_MAX),
        _ => PROMPT_BYTES_MAX,
    }
}

/// How long a prompt may be, in words.
#[must_use]
pub fn limit(data: &DataReport) -> String {
    let bytes = count(prompt_bytes_max(data) as f64);
    match data.tokenizer.as_str() {
        BYTES => format!("At most {bytes} bytes are read; a plain letter is one."),
        _ => format!(
            "At most {bytes} bytes and {} tokens are read.",
            count(PROMPT_TOKENS_MAX as f64)
        ),
    }
}

/// What a prompt asks for, in the usual way.
///
/// # Errors
/// Why it need not be sent: the host would refuse it.
pub fn request(prompt: &str, data: &DataReport) -> Result<GenerateRequest, String> {
    if prompt.is_empty() {
        return Err("Write a few words first, for the model to go on from.".to_owned());
    }
    let (len, most) = (prompt.len(), prompt_bytes_max(data));
    if len > most {
        return Err(format!(
            "The prompt has {len} bytes, of which {} too many: shorten it.",
            len - most
        ));
    }
    Ok(GenerateRequest {
        prompt: prompt.to_owned(),
        tokens: usual_tokens(),
        temperature: usual_temperature(),
        top_p: usual_top_p(),
        seed: None,
    })
}

/// What an answer without a text means, by its status and the host's own words.
#[must_use]
pub fn refused(status: u16, text: &str) -> String {
    let says = |otherwise: &str| match text.trim() {
        "" => otherwise.to_owned(),
        text => sentence(text),
    };
    match status {
        400 | 422 => says("The host cannot read this prompt."),
        404 | 405 => "This host does not write texts: it is of another version.".to_owned(),
        413 => "The prompt is too long for this host: shorten it.".to_owned(),
        429 => says("You have asked for several texts already: wait for one of them."),
        501 => says("This host has no tokenizer, so it writes no text."),
        503 => "The host is stopping. Ask again in a moment.".to_owned(),
        502 | 504 => UNREACHABLE.to_owned(),
        status => format!("The host refused, with status {status}."),
    }
}

/// A text as it comes.
#[derive(Debug, Default)]
pub struct Text {
    reader: NewsReader,
    prompt: String,
    written: String,
    status: String,
    is_busy: bool,
}

impl Text {
    /// Asked for just now.
    #[must_use]
    pub fn asked(prompt: String) -> Self {
        Self {
            prompt,
            status: ASKED.to_owned(),
            is_busy: true,
            ..Self::default()
        }
    }

    /// Takes a piece of the answer, cut anywhere. Whether more is to come.
    pub fn push(&mut self, piece: &[u8]) -> bool {
        match self.reader.push(piece) {
            Ok(news) => news.into_iter().for_each(|news| self.take(news)),
            Err(reason) => self.end(format!(
                "The host’s answer cannot be read, so this page may be older than the host; load it again. It says: {reason}."
            )),
        }
        self.is_busy
    }

    fn take(&mut self, news: GenerateNews) {
        if !self.is_busy {
            return;
        }
        match news {
            GenerateNews::Text { text } => {
                self.written.push_str(&text);
                WRITING.clone_into(&mut self.status);
            }
            GenerateNews::Over { tokens } => self.end(format!(
                "Written: {}. It says what it finds likely, true or not.",
                plural(u64::from(tokens), "token", "tokens")
            )),
            GenerateNews::GivenUp { reason } => {
                let ended = if self.written.is_empty() {
                    "Nothing was written"
                } else {
                    "The text ends here"
                };
                self.end(sentence(&format!("{ended}: {reason}")));
            }
        }
    }

    /// Nothing more comes: why, as a sentence.
    pub fn end(&mut self, why: String) {
        self.status = why;
        self.is_busy = false;
    }

    /// What it goes on from.
    #[must_use]
    pub fn prompt(&self) -> &str {
        &self.prompt
    }

    /// What came after the prompt so far.
    #[must_use]
    pub fn written(&self) -> &str {
        &self.written
    }

    /// How it stands, as a sentence; empty before anything was asked.
    #[must_use]
    pub fn status(&self) -> &str {
        &self.status
    }

    /// Whether more is to come.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(tokenizer: &str) -> DataReport {
        DataReport {
            files: 1,
            bytes: 1,
            train_tokens: 1,
            validation_tokens: 1,
            tokenizer: tokenizer.to_owned(),
        }
    }

    fn stream(last: &str) -> String {
        format!(
            ": alive\n\ndata: {{\"type\":\"text\",\"text\":\"Sé\"}}\n\ndata: {{\"type\":\"text\",\"text\":\"a <b>\\n\"}}\n\n\
             data: {last}\n\n"
        )
    }

    /// The text that a stream gives in pieces of each size, and how it ended.
    fn check(stream: &str, written: &str, status: &str) {
        for size in 1..=stream.len() {
            let mut text = Text::asked("The ".to_owned());
            for piece in stream.as_bytes().chunks(size) {
                text.push(piece);
            }
            assert_eq!(text.written(), written, "pieces of {size}");
            assert_eq!(text.status(), status, "pieces of {size}");
        }
    }

    #[test]
    fn a_text_is_the_same_wherever_its_stream_is_cut() {
        let over = stream(r#"{"type":"over","tokens":7}"#);
        check(
            &over,
            "Séa <b>\n",
            "Written: 7\u{a0}tokens. It says what it finds likely, true or not.",
        );
    }

    #[test]
    fn what_was_written_stays_however_it_ends() {
        let given_up = stream(r#"{"type":"given_up","reason":"volunteers came and went"}"#);
        check(
            &given_up,
            "Séa <b>\n",
            "The text ends here: volunteers came and went.",
        );
        let mut text = Text::asked("The ".to_owned());
        assert!(text.push(stream("x").split_at(60).0.as_bytes()));
        text.end(BROKEN_OFF.to_owned());
        assert!(!text.is_busy());
        assert_eq!((text.written(), text.status()), ("Sé", BROKEN_OFF));
        let mut text = Text::asked("The ".to_owned());
        assert!(!text.push(stream("x").as_bytes()), "no host sends this");
    }

    #[test]
    fn what_the_host_would_refuse_is_not_sent() {
        assert!(request("", &data("bytes")).is_err());
        let long = "é".repeat(PROMPT_TOKENS_MAX / 2);
        assert!(request(&long, &data("bytes")).is_ok());
        let error = request(&format!("{long}é"), &data("bytes")).unwrap_err();
        assert_eq!(
            error,
            "The prompt has 4098 bytes, of which 2 too many: shorten it."
        );
        assert!(request(&format!("{long}é"), &data("gpt2")).is_ok());
    }

    #[test]
    fn refusals_are_the_hosts_words_as_sentences_or_ours() {
        let too_often = "your address asks for texts too often: wait for 3 seconds";
        assert_eq!(
            refused(429, too_often),
            "Your address asks for texts too often: wait for 3 seconds."
        );
        for status in [400, 404, 413, 429, 500, 501, 502, 503] {
            let said = refused(status, "");
            assert!(said.ends_with('.') && said.contains(' '), "{said}");
        }
    }
}
