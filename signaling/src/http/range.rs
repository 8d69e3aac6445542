//! Files and blobs over HTTP, whole or by one range (RFC 9110, section 14).
//!
//! Several ranges at once are answered with the whole, as the RFC allows; nobody here asks for them.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use object_store::GetRange;

use crate::store::{Read, StoreError};

/// What the request's `Range` header asks for; `None` for the whole.
pub(super) fn requested(headers: &HeaderMap) -> Option<GetRange> {
    parse(headers.get(header::RANGE)?.to_str().ok()?)
}

fn parse(value: &str) -> Option<GetRange> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| {
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse::<u64>().ok())
            .flatten()
    };
    match (first.is_empty(), last.is_empty()) {
        (true, _) => Some(GetRange::Suffix(number(last)?)),
        (false, true) => Some(GetRange::Offset(number(first)?)),
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then(|| GetRange::Bounded(first..last.saturating_add(1)))
        }
    }
}

/// How long others may keep what is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Named by its hash: it never changes.
    Forever,
    /// Ask again whether it changed.
    Check,
}

/// Answers with what the store gave.
pub(super) fn respond(
    result: Result<Read, StoreError>,
    asked: bool,
    content_type: &'static str,
    keep: Keep,
) -> Response {
    let read = match result {
        Ok(read) => read,
        Err(error) => return refuse(&error),
    };
    let len = read.range.end - read.range.start;
    let mut response = Response::new(Body::from_stream(read.body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, len.into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let keep = match keep {
        Keep::Forever => "public, max-age=31536000, immutable",
        Keep::Check => "no-cache",
    };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(keep));
    if asked {
        let range = format!(
            "bytes {}-{}/{}",
            read.range.start,
            read.range.end.saturating_sub(1),
            read.len_bytes
        );
        let range = HeaderValue::try_from(range).expect("digits and ASCII signs");
        headers.insert(header::CONTENT_RANGE, range);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

fn refuse(error: &StoreError) -> Response {
    match error {
        StoreError::Range { len_bytes } => (
            StatusCode::RANGE_NOT_SATISFIABLE,
            [(header::CONTENT_RANGE, format!("bytes */{len_bytes}"))],
            error.to_string(),
        )
            .into_response(),
        StoreError::Missing { .. } => (StatusCode::NOT_FOUND, error.to_string()).into_response(),
        StoreError::InUse { .. }
        | StoreError::Io { .. }
        | StoreError::Hash { .. }
        | StoreError::TooLarge { .. }
        | StoreError::Interrupted { .. } => {
            tracing::error!(%error, "the store could not serve");
            (StatusCode::INTERNAL_SERVER_ERROR, "the store failed").into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_writes_them() {
        assert_eq!(parse("bytes=0-99"), Some(GetRange::Bounded(0..100)));
        assert_eq!(parse("bytes=5-"), Some(GetRange::Offset(5)));
        assert_eq!(parse("bytes=-7"), Some(GetRange::Suffix(7)));
        for other in [
            "bytes=",
            "bytes=-",
            "bytes=9-5",
            "bytes=a-b",
            "bytes=+1-2",
            "items=0-1",
            "bytes=0-1,3-4",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
