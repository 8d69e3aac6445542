//! The browser's console: for what breaks, and for what libraries log.
//!
//! What computes on a GPU tells of a shader that does not compile by logging it, and by nothing else: without a logger
//! it would be lost.

use log::{Level, LevelFilter, Log, Metadata, Record};
use wasm_bindgen::JsCast;

#[wasm_bindgen::prelude::wasm_bindgen]
extern "C" {
    type Console;
    type Out;

    #[wasm_bindgen(method, getter)]
    fn console(this: &Console) -> Out;

    #[wasm_bindgen(method)]
    fn error(this: &Out, text: &str);

    #[wasm_bindgen(method)]
    fn warn(this: &Out, text: &str);
}

fn out() -> Out {
    js_sys::global().unchecked_into::<Console>().console()
}

/// Puts an error on the console.
pub fn error(text: &str) {
    out().error(text);
}

/// Errors and warnings of libraries, on the console.
struct ToConsole;

impl Log for ToConsole {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        let text = format!("{}: {}", record.target(), record.args());
        match record.level() {
            Level::Error => out().error(&text),
            Level::Warn => out().warn(&text),
            Level::Info | Level::Debug | Level::Trace => {}
        }
    }

    fn flush(&self) {}
}

/// From now on what libraries log as error or warning is on the console, unless somebody else hears it already.
pub fn install() {
    if log::set_logger(&ToConsole).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
