//! Written configurations: any text is a valid run that reads back what it writes, or is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::config::written::{read, write};

fuzz_target!(|text: &str| {
    if let Ok(config) = read(text, &["data"]) {
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(read(&write(&config), &[]), Ok(config));
    }
});
