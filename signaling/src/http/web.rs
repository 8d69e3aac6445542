//! Sends the built web client: compressed, checked by tag, kept for good.
//!
//! Files are sent as the build compressed them; somebody who takes neither brotli nor gzip gets them unpacked. A path
//! holds a hash of the content, so whoever has a file never asks again.

use std::borrow::Cow;
use std::io::Read as _;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::read::GzDecoder;

use crate::app::App;

/// Longest file that is unpacked for somebody who takes no compression.
const PLAIN_BYTES_MAX: u64 = 256 << 20;

/// How an answer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Brotli,
    Gzip,
    Identity,
}

/// A file of the web client.
pub(super) async fn file(
    State(app): State<Arc<App>>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Response {
    let Some(file) = app.web.file(&path) else {
        let text = "no such file; the page that named it is of another build: load it again";
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let encoding = accepted(&headers);
    let tag = format!("\"{}-{}\"", file.hash, encoding.name());
    if has_tag(&headers, &tag) {
        return (StatusCode::NOT_MODIFIED, kept(&tag)).into_response();
    }
    let body = match encoding {
        Encoding::Brotli => file.brotli.clone(),
        Encoding::Gzip => file.gzip.clone(),
        Encoding::Identity => {
            let mut plain = Vec::new();
            let mut unpacked = GzDecoder::new(&file.gzip[..]).take(PLAIN_BYTES_MAX);
            if let Err(error) = unpacked.read_to_end(&mut plain) {
                tracing::error!(%error, path, "a file of the page is damaged");
                return (StatusCode::INTERNAL_SERVER_ERROR, "the file is damaged").into_response();
            }
            plain.into()
        }
    };
    let mut response = (kept(&tag), Body::from(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(file.content_type),
    );
    if encoding != Encoding::Identity {
        headers.insert(
            header::CONTENT_ENCODING,
            HeaderValue::from_static(encoding.name()),
        );
    }
    response
}

/// An answer that may be kept until it changes; asking again costs a few bytes where it did not.
pub(super) fn checked(
    headers: &HeaderMap,
    content_type: &'static str,
    body: Cow<'static, str>,
) -> Response {
    let tag = format!("\"{}\"", &blake3::hash(body.as_bytes()).to_hex()[..32]);
    let tag_value = HeaderValue::try_from(&tag).expect("hexadecimal digits in quotes");
    let keep = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::ETAG, tag_value),
    ];
    if has_tag(headers, &tag) {
        return (StatusCode::NOT_MODIFIED, keep).into_response();
    }
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static(content_type))];
    (keep, content_type, body.into_owned()).into_response()
}

/// Headers of what never changes.
fn kept(tag: &str) -> [(HeaderName, HeaderValue); 3] {
    [
        (
            header::CACHE_CONTROL,
            HeaderValue::from_static("public, max-age=31536000, immutable"),
        ),
        (header::VARY, HeaderValue::from_static("accept-encoding")),
        (
            header::ETAG,
            HeaderValue::try_from(tag).expect("hexadecimal digits in quotes"),
        ),
    ]
}

/// Whether whoever asks has this already (RFC 9110, section 13.1.2).
fn has_tag(headers: &HeaderMap, tag: &str) -> bool {
    let tags = headers.get_all(header::IF_NONE_MATCH).iter();
    tags.filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|one| one.trim().trim_start_matches("W/"))
        .any(|one| one == tag || one == "*")
}

/// The best of what whoever asks takes (RFC 9110, section 12.5.3).
fn accepted(headers: &HeaderMap) -> Encoding {
    let takes = |name: &str| {
        let values = headers.get_all(header::ACCEPT_ENCODING).iter();
        let codings = values.filter_map(|value| value.to_str().ok());
        let mut codings = codings.flat_map(|value| value.split(','));
        codings.any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let is_named = parts
                .next()
                .is_some_and(|one| one.eq_ignore_ascii_case(name));
            let weight = parts.find_map(|part| part.strip_prefix("q="));
            // A weight of zero means: not this one.
            is_named && weight.is_none_or(|weight| weight.parse::<f32>().is_ok_and(|q| q > 0.0))
        })
    };
    if takes("br") {
        Encoding::Brotli
    } else if takes("gzip") {
        Encoding::Gzip
    } else {
        Encoding::Identity
    }
}

impl Encoding {
    /// As HTTP calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Gzip => "gzip",
            Self::Identity => "identity",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn the_best_accepted_compression_is_chosen() {
        let accepted = |value| accepted(&headers(header::ACCEPT_ENCODING, value));
        assert_eq!(accepted("gzip, deflate, br, zstd"), Encoding::Brotli);
        assert_eq!(accepted("gzip, deflate"), Encoding::Gzip);
        assert_eq!(accepted("br;q=0, GZIP;q=0.5"), Encoding::Gzip);
        assert_eq!(accepted("brotli, deflate"), Encoding::Identity);
        assert_eq!(super::accepted(&HeaderMap::new()), Encoding::Identity);
    }

    #[test]
    fn a_tag_that_is_known_is_found_in_a_list() {
        let has = |value, tag| has_tag(&headers(header::IF_NONE_MATCH, value), tag);
        assert!(has("\"a\", W/\"b\"", "\"b\""));
        assert!(has("*", "\"b\""));
        assert!(!has("\"a\"", "\"b\""));
    }
}
