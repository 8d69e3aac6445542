//! Host messages: their JSON, and what becomes of text that is none.
//!
//! `up.jsonl` and `down.jsonl` hold every message, one a line, as it crosses the network.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::SIGNAL_BYTES_MAX;
use crate::wire::signal::{Down, SignalError, Up, decode, encode};

const UP: &str = include_str!("up.jsonl");
const DOWN: &str = include_str!("down.jsonl");

/// Reads each line and writes the same text again.
fn check<T: Serialize + DeserializeOwned>(golden: &str) {
    for line in golden.lines() {
        let message: T = decode(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(encode(&message), line);
    }
}

/// The types that stand in a golden file.
fn types_in(golden: &str) -> BTreeSet<String> {
    let type_of = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).expect("JSON");
        message["type"]
            .as_str()
            .expect("a message has a type")
            .to_owned()
    };
    golden.lines().map(type_of).collect()
}

/// The types that a reader knows, by its own word: it names them where it meets another.
fn types_of<T: DeserializeOwned>() -> BTreeSet<String> {
    let Err(SignalError::Malformed { reason }) = decode::<T>(r#"{"type":"?"}"#) else {
        panic!("there is a message of type ?")
    };
    let (_, names) = reason
        .split_once("expected one of")
        .expect("a list of names");
    names
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn messages_to_the_host_are_this_json() {
    check::<Up>(UP);
    assert_eq!(types_in(UP), types_of::<Up>());
}

#[test]
fn messages_from_the_host_are_this_json() {
    check::<Down>(DOWN);
    assert_eq!(types_in(DOWN), types_of::<Down>());
}

#[test]
fn a_message_longer_than_the_limit_is_not_read() {
    let len_bytes = SIGNAL_BYTES_MAX + 1;
    let text = " ".repeat(len_bytes);
    assert_eq!(
        decode::<Up>(&text),
        Err(SignalError::TooLarge { len_bytes })
    );
}

#[test]
fn a_deeply_nested_message_is_refused() {
    let text = format!(
        r#"{{"type":"reason","text":{}"#,
        "[".repeat(SIGNAL_BYTES_MAX / 2)
    );
    assert!(matches!(
        decode::<Down>(&text),
        Err(SignalError::Malformed { .. })
    ));
}

proptest! {
    #[test]
    fn any_text_is_a_message_or_refused(text in ".*", kind in "[a-z_]{0,9}") {
        for text in [text.clone(), format!(r#"{{"type":"{kind}",{text}}}"#)] {
            let _either = decode::<Up>(&text);
            let _either = decode::<Down>(&text);
        }
    }

    #[test]
    fn a_corrupted_message_is_another_or_refused(
        line in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        with in any::<char>(),
    ) {
        for golden in [UP, DOWN] {
            let lines: Vec<&str> = golden.lines().collect();
            let mut text: Vec<char> = lines[line.index(lines.len())].chars().collect();
            let at = at.index(text.len());
            text[at] = with;
            let text: String = text.into_iter().collect();
            if let Ok(message) = decode::<Up>(&text) {
                prop_assert_eq!(decode::<Up>(&encode(&message)), Ok(message));
            }
            if let Ok(message) = decode::<Down>(&text) {
                prop_assert_eq!(decode::<Down>(&encode(&message)), Ok(message));
            }
        }
    }
}
