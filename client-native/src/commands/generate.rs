//! `shoal generate`: a run's volunteers ([`asked`]), or an exported model here, go on writing from a prompt.
//!
//! Each token is drawn from the model's own distribution, sharpened by the temperature and cut to
//! the likeliest tokens. The draws come from a generator that a seed fixes. When text and prompt are longer
//! than the model's context, it sees the last part of them ([`crate::llama::reader`]).
//!
//! A model writes what it likes: on a terminal nothing but line ends and tabs acts on it ([`visible`]); into
//! a file or another program the text goes as it is.

mod asked;

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::path::Path;

use shared::wire::generate::{GenerateRequest, Sampling};
use tokenizers::Tokenizer;

use super::open;
use crate::cli::{GenerateArgs, Writer};
use crate::failure::{Code, Failure};
use crate::llama::reader::{Reader, Reading};
use crate::llama::{LlamaError, PlainModel, TOKENIZER_FILE};
use crate::report::printable;
use crate::settings::{self, FileSettings};

/// What the text is made of.
enum Alphabet {
    Tokenizer(Box<Tokenizer>),
    /// Each token is a byte.
    Bytes,
}

pub(super) async fn generate(args: GenerateArgs, file: &FileSettings) -> Result<(), Failure> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => getrandom::u64()
            .map_err(|error| Failure::new(Code::Failed, error, "Give a number with --seed."))?,
    };
    let sampling = Sampling {
        temperature: args.temperature,
        top_p: args.top_p,
        seed,
    };
    if !sampling.is_sound() {
        return Err(Failure::new(
            Code::Usage,
            "--temperature must not be negative, --top-p lies above 0 and at most at 1",
            "See shoal generate --help.",
        ));
    }
    let folder = match &args.writer {
        Writer::Folder(folder) => folder.clone(),
        Writer::Run(link) => {
            let request = GenerateRequest {
                prompt: args.prompt.clone(),
                tokens: args.tokens,
                temperature: args.temperature,
                top_p: args.top_p,
                seed: Some(seed),
            };
            return asked::ask(link, &request).await;
        }
    };
    let opened = open(&settings::gpu(args.device.gpu.clone(), file)).await?;
    let work = tokio::task::spawn_blocking(move || write(&args, &folder, sampling, &opened.device));
    work.await.unwrap_or_else(|_| {
        Err(Failure::new(
            Code::NoDevice,
            "the device failed",
            "Try --gpu cpu.",
        ))
    })
}

fn write(
    args: &GenerateArgs,
    folder: &Path,
    sampling: Sampling,
    device: &burn::tensor::Device,
) -> Result<(), Failure> {
    let model = PlainModel::load(folder).map_err(not_loaded)?;
    let vocabulary = model.config().vocabulary;
    let alphabet = Alphabet::load(folder, vocabulary)?;
    let mut tokens = alphabet.encode(&args.prompt, vocabulary)?;
    if tokens.is_empty() {
        return Err(Failure::new(
            Code::Usage,
            "the prompt has no token",
            "Give some text with --prompt.",
        ));
    }
    let reading = if args.no_cache {
        Reading::Afresh
    } else {
        Reading::Once
    };
    let mut reader = Reader::new(&model, reading, device);
    let stdout = std::io::stdout();
    let mut printer = Printer {
        on_terminal: stdout.is_terminal(),
        out: stdout.lock(),
        written: 0,
    };
    for drawn in 0..args.tokens {
        let logits = reader
            .next_logits(&tokens)
            .map_err(|error| Failure::new(Code::NoDevice, error, "Try --gpu cpu."))?;
        tokens.push(sampling.draw(&logits, drawn));
        printer.print_new(&alphabet.decode(&tokens)?, false);
    }
    printer.print_new(&alphabet.decode(&tokens)?, true);
    // A reader that went away has read enough.
    let _ = writeln!(printer.out);
    Ok(())
}

/// A text as it is printed.
fn shown(text: &str, on_terminal: bool) -> Cow<'_, str> {
    if on_terminal {
        printable(text)
    } else {
        Cow::Borrowed(text)
    }
}

/// Prints a text as it grows.
struct Printer<W> {
    out: W,
    on_terminal: bool,
    /// Bytes of the text that were printed.
    written: usize,
}

impl<W: Write> Printer<W> {
    /// Prints what was not printed yet; an unfinished character at the end waits for its other bytes,
    /// unless this is `all`.
    fn print_new(&mut self, text: &str, all: bool) {
        let whole = if all {
            text
        } else {
            text.trim_end_matches(char::REPLACEMENT_CHARACTER)
        };
        let Some(new) = whole.get(self.written..) else {
            return;
        };
        let _ = self
            .out
            .write_all(shown(new, self.on_terminal).as_bytes())
            .and_then(|()| self.out.flush());
        self.written = whole.len();
    }
}

impl Alphabet {
    fn load(folder: &Path, vocabulary: usize) -> Result<Self, Failure> {
        let path = folder.join(TOKENIZER_FILE);
        if path.exists() {
            let tokenizer = Tokenizer::from_file(&path).map_err(|error| {
                let what = format!("{}: {error}", path.display());
                Failure::new(Code::Failed, what, "Export the model again.")
            })?;
            return Ok(Self::Tokenizer(Box::new(tokenizer)));
        }
        if vocabulary == 256 {
            return Ok(Self::Bytes);
        }
        Err(Failure::new(
            Code::Failed,
            format!("there is no {}", path.display()),
            "Put the tokenizer.json there that the run's data was made with.",
        ))
    }

    fn encode(&self, text: &str, vocabulary: usize) -> Result<Vec<u32>, Failure> {
        let tokens = match self {
            Self::Bytes => text.bytes().map(u32::from).collect(),
            Self::Tokenizer(tokenizer) => tokenizer
                .encode(text, false)
                .map_err(|error| Failure::new(Code::Failed, error, ""))?
                .get_ids()
                .to_vec(),
        };
        match tokens.iter().find(|token| **token as usize >= vocabulary) {
            None => Ok(tokens),
            Some(token) => Err(Failure::new(
                Code::Failed,
                format!("tokenizer.json knows token {token}, the model has {vocabulary}"),
                "Both must come from the same export.",
            )),
        }
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, Failure> {
        match self {
            Self::Bytes => {
                let bytes: Vec<u8> = tokens
                    .iter()
                    .map(|token| u8::try_from(*token).unwrap_or(b'?'))
                    .collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Self::Tokenizer(tokenizer) => tokenizer
                .decode(tokens, false)
                .map_err(|error| Failure::new(Code::Failed, error, "")),
        }
    }
}

fn not_loaded(error: LlamaError) -> Failure {
    Failure::new(
        Code::Failed,
        error,
        "Give the folder that `shoal export LINK -o FOLDER` wrote.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(tokens: &[u8], on_terminal: bool) -> String {
        let tokens: Vec<u32> = tokens.iter().copied().map(u32::from).collect();
        let mut printer = Printer {
            out: Vec::new(),
            on_terminal,
            written: 0,
        };
        for count in 1..=tokens.len() {
            let text = Alphabet::Bytes.decode(&tokens[..count]).unwrap();
            printer.print_new(&text, count == tokens.len());
        }
        String::from_utf8(printer.out).unwrap()
    }

    #[test]
    fn a_character_is_printed_once_all_its_bytes_are_there() {
        assert_eq!(printed("aé!".as_bytes(), false), "aé!");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_such() {
        assert_eq!(
            printed(b"a\xff\xfeb\xc3", true),
            "a\u{fffd}\u{fffd}b\u{fffd}"
        );
    }

    #[test]
    fn nothing_that_a_model_writes_acts_on_a_terminal() {
        let text = "a\x1b[2Jb\r\n\tc\x07\u{9b}5m\u{202e}d\x7f";
        let shown = "a\u{241b}[2Jb\u{240d}\n\tc\u{2407}\u{fffd}5m\u{fffd}d\u{2421}";
        assert_eq!(printed(text.as_bytes(), true), shown);
        assert_eq!(printed(text.as_bytes(), false), text, "a file gets it all");
    }
}
