//! What the host serves and takes over HTTP: token windows, blobs, uploads.
//!
//! Downloads are held against the hash that names them, and no more bytes are kept than were asked for.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use futures_util::lock::Mutex;
use js_sys::Uint8Array;
use shared::config::run::RunConfig;
use shared::driver::Files;
use shared::driver::tokens::{Chunks, Part, Wanted};
use shared::limits::STATE_BYTES_MAX;
use shared::units::{Digest, SampleRange, Span};
use shared::wire::frame::Mode;
use shared::wire::signal::{DataInfo, Held};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{Headers, Request, RequestInit, Response};

use super::clock::pause;
use super::port::scope;
use crate::js::{Body, words};

/// Tries for one file, each going on where the one before broke off.
const TRIES_MAX: u32 = 5;
/// Status of a host that takes no more uploads at the moment.
const BUSY: u16 = 503;
/// Pause before a new try, times the number of failures.
const RETRY: Span = Span::from_millis(300);
/// Pause after a request for tokens failed for good; the next one tries several times again.
const TOKENS_RETRY: Span = Span::from_secs(2);

/// The host's files.
#[derive(Clone)]
pub(super) struct WebFiles {
    /// The host's address, with a slash at its end.
    link: Rc<str>,
    /// Locked while a chunk is fetched: whoever waits mostly wants the same.
    chunks: Rc<Mutex<Chunks>>,
}

/// Why a request failed.
enum Failure {
    /// Worth another try.
    Broken(String),
    /// The host said no, or sent what was not asked for.
    Final(String),
}

impl WebFiles {
    pub(super) fn new(link: &str) -> Self {
        Self {
            link: link.into(),
            chunks: Rc::default(),
        }
    }

    /// Bytes `[start, start + len)` of a file.
    async fn range(&self, wanted: Wanted) -> Result<Bytes, String> {
        let bytes = self.download(wanted.path, wanted.start, wanted.len).await?;
        if bytes.len() as u64 == wanted.len {
            Ok(bytes)
        } else {
            Err(format!("{} ends early", wanted.path))
        }
    }

    /// At most `len` bytes of a file from `start` on, in as many tries as allowed.
    async fn download(&self, path: &str, start: u64, len: u64) -> Result<Bytes, String> {
        let mut got = BytesMut::new();
        let mut failures = 0;
        loop {
            match self.resume(path, start, len, &mut got).await {
                Ok(()) => return Ok(got.freeze()),
                Err(Failure::Broken(_)) if failures + 1 < TRIES_MAX => failures += 1,
                Err(Failure::Broken(reason) | Failure::Final(reason)) => return Err(reason),
            }
            pause(RETRY.times(u64::from(failures))).await;
        }
    }

    /// One request for what is still missing.
    async fn resume(
        &self,
        path: &str,
        start: u64,
        len: u64,
        got: &mut BytesMut,
    ) -> Result<(), Failure> {
        let from = start + got.len() as u64;
        let whole = from == 0 && len == STATE_BYTES_MAX;
        let headers = Headers::new().map_err(broken)?;
        if !whole {
            let range = format!("bytes={from}-{}", start + len - 1);
            headers.set("Range", &range).map_err(broken)?;
        }
        let options = RequestInit::new();
        options.set_headers(&headers);
        let response = self.request(path, &options).await?;
        match response.status() {
            206 => {}
            // Everything, though only the rest was asked for.
            200 if from == 0 => {}
            200 => got.clear(),
            status => {
                return Err(Failure::Final(format!("the host answered {status}")));
            }
        }
        let mut body = Body::of(&response).map_err(broken)?;
        while let Some(piece) = body.next().await.map_err(broken)? {
            if got.len() as u64 + u64::from(piece.length()) > len {
                body.cancel();
                return Err(Failure::Final(format!("{path} is longer than it may be")));
            }
            got.extend_from_slice(&piece.to_vec());
        }
        Ok(())
    }

    async fn request(&self, path: &str, options: &RequestInit) -> Result<Response, Failure> {
        let path = path.trim_start_matches('/');
        if path.contains("..") || path.contains("//") {
            return Err(Failure::Final(format!(
                "\"{path}\" is not a path of this host"
            )));
        }
        let url = format!("{}{path}", self.link);
        let request = Request::new_with_str_and_init(&url, options).map_err(broken)?;
        let response = JsFuture::from(scope().fetch_with_request(&request)).await;
        Ok(response.map_err(broken)?.unchecked_into())
    }

    async fn try_upload(&self, path: &str, blob: &Bytes) -> Result<(), Failure> {
        let options = RequestInit::new();
        options.set_method("PUT");
        options.set_body(&Uint8Array::from(&blob[..]).into());
        let response = self.request(path, &options).await?;
        if response.ok() {
            Ok(())
        } else {
            let status = response.status();
            let reason = format!("the host answered {status}");
            Err(match status {
                BUSY => Failure::Broken(reason),
                _ => Failure::Final(reason),
            })
        }
    }

    /// Tries until it has the chunk: without tokens there is nothing to do.
    async fn chunk(&self, wanted: Wanted) -> Bytes {
        loop {
            if let Ok(bytes) = self.range(wanted).await {
                return bytes;
            }
            pause(TOKENS_RETRY).await;
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn broken(error: JsValue) -> Failure {
    Failure::Broken(words(&error))
}

impl Files for WebFiles {
    async fn tokens(
        &self,
        config: &RunConfig,
        data: &DataInfo,
        mode: Mode,
        samples: SampleRange,
    ) -> Vec<u32> {
        let Some(part) = Part::new(config, data, mode) else {
            // Nothing can be made of such data; the host refuses it, too.
            return std::future::pending().await;
        };
        let mut tokens = Vec::with_capacity(samples.count as usize * (config.model.context + 1));
        for number in samples.first..samples.end() {
            let mut chunks = self.chunks.lock().await;
            let sample = loop {
                match chunks.sample(&part, number) {
                    Ok(sample) => break sample,
                    Err(wanted) => {
                        let bytes = self.chunk(wanted).await;
                        assert!(chunks.insert(wanted, bytes), "the length was checked");
                    }
                }
            };
            tokens.extend(sample);
        }
        tokens
    }

    async fn download(&self, held: Held, path: &str) -> Option<Bytes> {
        let blob = self.download(path, 0, STATE_BYTES_MAX).await.ok()?;
        (Digest::of(&blob) == held.blob).then_some(blob)
    }

    async fn upload(&self, ticket: &str, blob: Bytes) -> bool {
        let path = format!("store/upload/{ticket}");
        for failures in 1..=TRIES_MAX {
            match self.try_upload(&path, &blob).await {
                Ok(()) => return true,
                Err(Failure::Final(_)) => return false,
                Err(Failure::Broken(_)) => pause(RETRY.times(u64::from(failures))).await,
            }
        }
        false
    }
}
