//! The little of HTTP that watching a host needs: GET of a small answer from this machine.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

/// A host of this machine that takes longer for an answer is not well.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The body of the answer to `GET url`, for a `url` such as `http://127.0.0.1:8080/healthz`.
///
/// # Errors
/// Nobody answers, or the answer's status is not 200.
pub fn get(url: &str) -> anyhow::Result<String> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("{url} is no http address"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host).with_context(|| format!("{url}: no connection"))?;
    stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
    // Version 1.0: the answer comes whole, and the connection's end is its end.
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .with_context(|| format!("{url}: no answer"))?;
    let answer =
        String::from_utf8(answer).with_context(|| format!("{url}: the answer is no text"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("{url}: no HTTP"))?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{url}: {status}: {body}");
    }
    Ok(body.to_owned())
}

/// The JSON that `GET url` answers.
///
/// # Errors
/// As [`get`], or the answer is no JSON.
pub fn get_json(url: &str) -> anyhow::Result<Value> {
    let body = get(url)?;
    serde_json::from_str(&body).with_context(|| format!("{url}: no JSON: {body}"))
}

#[cfg(test)]
mod tests {
    use super::{get, get_json};
    use crate::site::Site;

    #[test]
    fn a_body_is_fetched_and_an_error_says_its_status() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("run.json"), r#"{"round":3}"#).expect("a file");
        let site = Site::serve(folder.path().to_owned()).expect("a site");
        let run = get_json(&site.url("run.json")).expect("an answer");
        assert_eq!(run["round"], 3);
        let error = get(&site.url("absent.json")).expect_err("there is none");
        assert!(error.to_string().contains("404"), "{error}");
    }
}
