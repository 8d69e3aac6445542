//! A run's volunteers go on writing from a prompt, beside their training; nothing is computed here.
//!
//! The host passes on what they write as it comes, in events ([`GenerateNews`]). On a terminal nothing of it acts but line
//! ends and tabs.

use std::io::{IsTerminal, Write};

use shared::wire::generate::{GenerateNews, GenerateRequest, NewsReader};

use super::shown;
use crate::failure::{Code, Failure};
use crate::host::http::HostFiles;
use crate::host::{HostError, HostLink};
use crate::report::printable;

/// Prints the prompt and what comes after it.
pub(super) async fn ask(link: &HostLink, request: &GenerateRequest) -> Result<(), Failure> {
    let mut out = Out {
        on_terminal: std::io::stdout().is_terminal(),
    };
    let files = HostFiles::new(link, None);
    let asked = files.ask("api/generate", request).await;
    let mut answer = asked.map_err(|error| refused(error, link))?;
    if !out.print(&request.prompt) {
        return Ok(());
    }
    let mut reader = NewsReader::default();
    loop {
        let piece = answer.next().await?;
        let Some(piece) = piece else {
            out.print("\n");
            let what = format!("{link} stopped in the middle of the text");
            return Err(Failure::new(Code::Network, what, "Ask again."));
        };
        let malformed = |reason: String| HostError::Format {
            url: link.to_string(),
            reason,
        };
        for news in reader.push(&piece).map_err(malformed)? {
            match news {
                GenerateNews::Text { text } if out.print(&text) => {}
                // Nobody reads on: the volunteers need not write on.
                GenerateNews::Text { .. } => return Ok(()),
                GenerateNews::Over { .. } => {
                    out.print("\n");
                    return Ok(());
                }
                GenerateNews::GivenUp { reason } => {
                    out.print("\n");
                    let remedy =
                        "Ask again when more volunteers are there: `shoal status LINK` tells.";
                    let reason = printable(&reason).into_owned();
                    return Err(Failure::new(Code::Network, reason, remedy));
                }
            }
        }
    }
}

/// What a host says instead of beginning.
fn refused(error: HostError, link: &HostLink) -> Failure {
    if let HostError::Status { status, text, .. } = &error {
        let words = printable(text.trim_start_matches([':', ' '])).into_owned();
        return match status {
            400 => Failure::new(Code::Usage, words, "See shoal generate --help."),
            429 => Failure::new(Code::Refused, words, "Wait for the other one."),
            404 => Failure::new(
                Code::Version,
                format!("{link} does not write texts"),
                "Use the build that the host's page names, or export the model and let that write.",
            ),
            _ => error.into(),
        };
    }
    error.into()
}

/// Standard output.
struct Out {
    on_terminal: bool,
}

impl Out {
    /// Whether anybody reads it.
    fn print(&mut self, text: &str) -> bool {
        let mut out = std::io::stdout().lock();
        let shown = shown(text, self.on_terminal);
        let written = out.write_all(shown.as_bytes());
        written.and_then(|()| out.flush()).is_ok()
    }
}
