//! Frames and forward payloads: any bytes are one that reads back what it writes, or are refused.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use shared::wire::frame::{Frame, Header, VERSION};
use shared::wire::payload;

fuzz_target!(|data: &[u8]| {
    // Most inputs should get past the version byte.
    let ours: Bytes = [&[VERSION], data].concat().into();
    for bytes in [Bytes::copy_from_slice(data), ours] {
        let Ok(frame) = Frame::decode(&bytes) else {
            continue;
        };
        assert_eq!(Frame::decode(&frame.encode()).as_ref(), Ok(&frame));
        if let Header::Forward { sequences, .. } = frame.header {
            let sequences = usize::from(sequences);
            for (vocabulary, width) in [(256, 2), (70_000, 4)] {
                let tokens_bytes = sequences * 5 * width;
                let boundary_bytes = frame.payload.len().saturating_sub(tokens_bytes);
                let read = payload::decode_forward(
                    &frame.payload,
                    sequences,
                    4,
                    vocabulary,
                    boundary_bytes,
                );
                if let Ok((tokens, boundary)) = read {
                    let written = payload::encode_forward(&tokens, vocabulary, &boundary);
                    assert_eq!(written, frame.payload);
                }
            }
        }
    }
});
