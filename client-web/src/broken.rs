//! What becomes of a panic: a report that a person can copy, instead of a module that silently stops.
//!
//! A module that panicked runs no more, so everything is done in the hook: it makes the report and gives it to whoever
//! installed it, who can still post messages and send on sockets. Both modules install it first.

use std::cell::RefCell;
use std::panic::PanicHookInfo;

use js_sys::Reflect;
use wasm_bindgen::JsValue;

use crate::console;
use crate::messages::Broken;

/// Longest report: a message and a few dozen lines of stack.
const REPORT_CHARS_MAX: usize = 8_000;

type Tell = Box<dyn Fn(Broken)>;

thread_local! {
    static TELL: RefCell<Option<Tell>> = const { RefCell::new(None) };
}

/// From now on a panic in this module is told to `tell`, once; what libraries log goes to the console.
pub fn install(module: &'static str, tell: impl Fn(Broken) + 'static) {
    console::install();
    TELL.set(Some(Box::new(tell)));
    std::panic::set_hook(Box::new(move |info| {
        let broken = Broken {
            module: module.to_owned(),
            report: report(module, info),
        };
        // For whoever looks at the console: there is more room.
        console::error(&broken.report);
        // Taken out: a panic while telling must not tell again.
        if let Some(tell) = TELL.take() {
            tell(broken);
        }
    }));
}

fn report(module: &str, info: &PanicHookInfo<'_>) -> String {
    let global = js_sys::global();
    let text = |path: &[&str]| {
        let mut value = JsValue::from(global.clone());
        for name in path {
            value = Reflect::get(&value, &JsValue::from_str(name)).ok()?;
        }
        value.as_string()
    };
    let browser = text(&["navigator", "userAgent"]).unwrap_or_default();
    let stack = Reflect::get(&js_sys::Error::new(""), &JsValue::from_str("stack"));
    let stack = stack.ok().and_then(|stack| stack.as_string());
    let version = env!("CARGO_PKG_VERSION");
    let mut report = format!(
        "shoal {version}, {module}\n{info}\n{browser}\n{}",
        stack.unwrap_or_default()
    );
    // Where the run is hosted is nobody else's business.
    if let Some(origin) = text(&["location", "origin"]) {
        report = report.replace(&origin, "");
    }
    report.chars().take(REPORT_CHARS_MAX).collect()
}
