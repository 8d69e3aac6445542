//! Host messages of both directions: any text is one that reads back what it writes, or is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::wire::signal::{Down, Up, decode, encode};

fuzz_target!(|text: &str| {
    if let Ok(message) = decode::<Up>(text) {
        assert_eq!(decode::<Up>(&encode(&message)), Ok(message));
    }
    if let Ok(message) = decode::<Down>(text) {
        if let Down::Welcome(welcome) = &message {
            let _either = welcome.config.validate();
        }
        assert_eq!(decode::<Down>(&encode(&message)), Ok(message));
    }
});
