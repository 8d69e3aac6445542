//! Chunks: any messages keep within the limits, and sound ones among them still give each frame once.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use shared::limits::{CHUNK_BYTES_MAX, REASSEMBLY_BYTES_MAX};
use shared::wire::chunk::{Chunker, Joiner};

fuzz_target!(|data: &[u8]| {
    // Half of the input: messages as they are, each of a length that its first byte tells.
    let (mut raw, script) = data.split_at(data.len() / 2);
    let mut joiner = Joiner::default();
    while let Some((&length, rest)) = raw.split_first() {
        let (message, after) = rest.split_at(rest.len().min(usize::from(length)));
        let padding = if length % 2 == 1 { CHUNK_BYTES_MAX } else { 0 };
        let padded = [message, &vec![length; padding]].concat();
        let _either = joiner.push(padded.into());
        assert!(joiner.half_bytes() <= REASSEMBLY_BYTES_MAX);
        raw = after;
    }

    // The other half: frames of which each byte tells the length, sent in an order that it also tells.
    let mut chunker = Chunker::default();
    let mut joiner = Joiner::default();
    let frames: Vec<Bytes> = script
        .iter()
        .take(16)
        .map(|&byte| vec![byte; 1 + usize::from(byte) * 700].into())
        .collect();
    let mut messages: Vec<Bytes> = frames
        .iter()
        .flat_map(|frame| chunker.cut(frame.clone()))
        .collect();
    for (at, &byte) in script.iter().enumerate() {
        if !messages.is_empty() {
            let (a, b) = (at % messages.len(), usize::from(byte) % messages.len());
            messages.swap(a, b);
            messages.push(messages[a].clone());
        }
    }
    let joined = messages
        .into_iter()
        .filter_map(|message| joiner.push(message).expect("a sound message"));
    assert_eq!(joined.count(), frames.len());
    assert_eq!(joiner.half_bytes(), 0);
});
