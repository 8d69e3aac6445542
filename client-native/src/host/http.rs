//! Files that the host serves and takes: token windows, blobs, uploads, JSON.
//!
//! Downloads go on where they broke off, a few times, and are held against the hash that names
//! them. Uploads pass the same pacer as everything else that this machine sends.
//!
//! Invariant: no more bytes are kept than the caller asked for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use reqwest::header::{DATE, RANGE};
use reqwest::{Body, Client, ClientBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::limits::{STATE_BYTES_MAX, UPLOAD_MAX};
use shared::units::Digest;
use std::sync::Arc;

use super::{HostError, HostLink, cause, prepare_tls};
use crate::pace::Pacer;

/// How long opening a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Silence before or in the middle of an answer after which it counts as broken.
const READ_MAX: Duration = Duration::from_secs(30);
/// How long one upload may take: afterwards its ticket is good for nothing.
const SEND_MAX: Duration = Duration::from_micros(UPLOAD_MAX.as_micros());
/// Tries for one file, each going on where the one before broke off.
const TRIES_MAX: u32 = 5;
/// Pause before a new try, times the number of failures.
const RETRY: Duration = Duration::from_millis(300);
/// Largest JSON answer: the host's account of a run with its newest rounds.
const JSON_BYTES_MAX: u64 = 8 << 20;
/// Pieces in which an upload leaves.
const UPLOAD_PIECE_BYTES: usize = 64 << 10;
/// How much of an error's text is shown.
const ERROR_CHARS_MAX: usize = 300;

/// The host's files.
#[derive(Clone)]
pub struct HostFiles {
    link: HostLink,
    client: Client,
    /// ... for uploads: reqwest counts the time in which a body leaves as silence before the answer.
    uploads: Client,
    pacer: Option<Arc<Pacer>>,
}

impl HostFiles {
    /// Nothing is connected before the first request.
    pub fn new(link: &HostLink, pacer: Option<Arc<Pacer>>) -> Self {
        prepare_tls();
        let client = || {
            Client::builder()
                .connect_timeout(CONNECT_MAX)
                .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
        };
        let built = |client: ClientBuilder| {
            let built = client.build();
            built.expect("TLS was prepared, and no other setting can fail")
        };
        Self {
            link: link.clone(),
            client: built(client().read_timeout(READ_MAX)),
            uploads: built(client().timeout(SEND_MAX)),
            pacer,
        }
    }

    /// A JSON document, such as `api/run`.
    ///
    /// # Errors
    /// Not there, too large, or of another form.
    pub async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, HostError> {
        let bytes = self.file(path, JSON_BYTES_MAX).await?;
        serde_json::from_slice(&bytes).map_err(|error| HostError::Format {
            url: self.link.to_string(),
            reason: error.to_string(),
        })
    }

    /// A JSON document, asked for once, and how far this machine's clock is ahead of the host's, in seconds; `None`
    /// where the host does not say the time. Right to about a second: an answer's date has no parts of it.
    ///
    /// # Errors
    /// As [`Self::json`], also when the first try fails.
    pub async fn look<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<(T, Option<f64>), HostError> {
        let url = self.link.at(path)?;
        let asked = SystemTime::now();
        let request = self.client.get(url.clone()).send();
        let response = request.await.map_err(|error| unreachable(&url, error))?;
        let answered = SystemTime::now();
        let response = accept(response, false).await?;
        let date = response.headers().get(DATE);
        let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let ahead = date.map(|date| ahead_seconds(asked, answered, date));
        let mut got = BytesMut::new();
        receive(response, &url, JSON_BYTES_MAX, &mut got).await?;
        let read = serde_json::from_slice(&got);
        let document = read.map_err(|error| HostError::Format {
            url: self.link.to_string(),
            reason: error.to_string(),
        })?;
        Ok((document, ahead))
    }

    /// Asks for something that comes bit by bit.
    ///
    /// # Errors
    /// The host cannot be reached, or says why not.
    pub async fn ask<T: Serialize>(&self, path: &str, request: &T) -> Result<Answer, HostError> {
        let url = self.link.at(path)?;
        let request = self.client.post(url.clone()).json(request).send();
        let response = request.await.map_err(|error| unreachable(&url, error))?;
        let response = accept(response, false).await?;
        Ok(Answer { response, url })
    }

    /// A whole file of at most `bytes_max`.
    ///
    /// # Errors
    /// Not there, too large, or unreachable after several tries.
    pub async fn file(&self, path: &str, bytes_max: u64) -> Result<Bytes, HostError> {
        self.download(self.link.at(path)?, 0, bytes_max, false)
            .await
    }

    /// Bytes `[start, start + len)` of a file.
    ///
    /// # Errors
    /// As [`Self::file`]; also when the file ends before the range does.
    pub async fn range(&self, path: &str, start: u64, len: u64) -> Result<Bytes, HostError> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        self.download(self.link.at(path)?, start, len, true).await
    }

    /// A file that is named by its hash.
    ///
    /// # Errors
    /// As [`Self::file`]; also when the content is not what the hash says.
    pub async fn blob(&self, path: &str, digest: Digest) -> Result<Bytes, HostError> {
        let url = self.link.at(path)?;
        let bytes = self
            .download(url.clone(), 0, STATE_BYTES_MAX, false)
            .await?;
        if Digest::of(&bytes) == digest {
            Ok(bytes)
        } else {
            Err(HostError::Hash {
                url: url.to_string(),
            })
        }
    }

    /// Puts a file where the host's ticket says.
    ///
    /// # Errors
    /// The host did not take it, in several tries.
    pub async fn upload(&self, path: &str, bytes: Bytes) -> Result<(), HostError> {
        let url = self.link.at(path)?;
        let mut failures = 0;
        loop {
            let request = self
                .uploads
                .put(url.clone())
                .body(self.body(bytes.clone()))
                .header(reqwest::header::CONTENT_LENGTH, bytes.len());
            let outcome = match request.send().await {
                Ok(response) => accept(response, false).await.map(|_| ()),
                Err(error) => Err(unreachable(&url, error)),
            };
            match outcome {
                Err(HostError::Unreachable { .. }) if failures + 1 < TRIES_MAX => {}
                settled => return settled,
            }
            failures += 1;
            tokio::time::sleep(RETRY * failures).await;
        }
    }

    /// A body that leaves in pieces, each when the pacer lets it.
    fn body(&self, bytes: Bytes) -> Body {
        let Some(pacer) = self.pacer.clone() else {
            return Body::from(bytes);
        };
        let pieces = futures_util::stream::unfold((bytes, pacer), |(mut left, pacer)| async {
            if left.is_empty() {
                return None;
            }
            let piece = left.split_to(left.len().min(UPLOAD_PIECE_BYTES));
            pacer.admit(piece.len()).await;
            Some((Ok::<_, std::io::Error>(piece), (left, pacer)))
        });
        Body::wrap_stream(pieces)
    }

    /// Bytes from `start` on: exactly `wanted` of them, or what there is up to `wanted`.
    async fn download(
        &self,
        url: Url,
        start: u64,
        wanted: u64,
        exact: bool,
    ) -> Result<Bytes, HostError> {
        let mut got = BytesMut::new();
        let mut failures = 0;
        loop {
            match self.resume(&url, start, wanted, exact, &mut got).await {
                Err(HostError::Unreachable { .. }) if failures + 1 < TRIES_MAX => {}
                Err(error) => return Err(error),
                Ok(()) if exact && got.len() as u64 != wanted => {
                    return Err(HostError::Length {
                        url: url.to_string(),
                        got: got.len() as u64,
                        wanted,
                    });
                }
                Ok(()) => return Ok(got.freeze()),
            }
            failures += 1;
            tokio::time::sleep(RETRY * failures).await;
        }
    }

    /// One request for what is still missing.
    async fn resume(
        &self,
        url: &Url,
        start: u64,
        wanted: u64,
        exact: bool,
        got: &mut BytesMut,
    ) -> Result<(), HostError> {
        let from = start + got.len() as u64;
        let mut request = self.client.get(url.clone());
        let partial = exact || from > 0;
        if exact {
            request = request.header(RANGE, format!("bytes={from}-{}", start + wanted - 1));
        } else if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let response = request
            .send()
            .await
            .map_err(|error| unreachable(url, error))?;
        let response = accept(response, partial).await?;
        if partial && response.status() != StatusCode::PARTIAL_CONTENT {
            // The host sends all of it again.
            got.clear();
            if start > 0 {
                return Err(HostError::Format {
                    url: url.to_string(),
                    reason: "it does not serve parts of a file".to_owned(),
                });
            }
        }
        receive(response, url, wanted, got).await
    }
}

/// An answer that comes bit by bit.
#[derive(Debug)]
pub struct Answer {
    response: Response,
    url: Url,
}

impl Answer {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or was silent for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HostError> {
        let piece = self.response.chunk().await;
        piece.map_err(|error| unreachable(&self.url, error))
    }
}

/// Adds an answer's body to what is there; together at most `wanted` bytes.
async fn receive(
    mut response: Response,
    url: &Url,
    wanted: u64,
    got: &mut BytesMut,
) -> Result<(), HostError> {
    while let Some(piece) = response
        .chunk()
        .await
        .map_err(|error| unreachable(url, error))?
    {
        let len = (got.len() + piece.len()) as u64;
        if len > wanted {
            return Err(HostError::Length {
                url: url.to_string(),
                got: len,
                wanted,
            });
        }
        got.extend_from_slice(&piece);
    }
    Ok(())
}

/// How far our clock is ahead of one that showed `date`, cut to whole seconds, at some time between our two.
fn ahead_seconds(asked: SystemTime, answered: SystemTime, date: SystemTime) -> f64 {
    let unix = |time: SystemTime| match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    };
    f64::midpoint(unix(asked), unix(answered)) - (unix(date) + 0.5)
}

/// The answer if it is a good one, else what the host said instead.
async fn accept(response: Response, partial: bool) -> Result<Response, HostError> {
    let status = response.status();
    let good = status.is_success() && (partial || status != StatusCode::PARTIAL_CONTENT);
    if good {
        return Ok(response);
    }
    let url = response.url().to_string();
    let mut text = String::new();
    let mut response = response;
    // An error page that breaks off is still an error page.
    while let Ok(Some(piece)) = response.chunk().await {
        text.push_str(&String::from_utf8_lossy(&piece));
        if text.len() > 4 * ERROR_CHARS_MAX {
            break;
        }
    }
    let text: String = text.trim().chars().take(ERROR_CHARS_MAX).collect();
    let text = if text.is_empty() {
        text
    } else {
        format!(": {text}")
    };
    // A store without room has none a moment later.
    if status.is_server_error() && status != StatusCode::INSUFFICIENT_STORAGE {
        return Err(HostError::Unreachable {
            url,
            reason: format!("it answered {status}{text}"),
        });
    }
    Err(HostError::Status {
        url,
        status: status.as_u16(),
        text,
    })
}

fn unreachable(url: &Url, error: reqwest::Error) -> HostError {
    HostError::Unreachable {
        url: url.to_string(),
        reason: cause(&error.without_url()),
    }
}

#[cfg(test)]
mod tests;
