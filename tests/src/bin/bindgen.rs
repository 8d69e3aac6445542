//! Writes the JavaScript side of the web client: `bindgen MODULE.wasm FOLDER`.
//!
//! The same library as wasm-bindgen's own program, in the version that `Cargo.lock` names: the two
//! must be equal to the last digit, and nothing needs to be installed this way. It knows nothing
//! of Shoal; `cargo xtask web` calls it.

use anyhow::{Context, bail};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [module, folder] = arguments.as_slice() else {
        bail!("usage: bindgen MODULE.wasm FOLDER");
    };
    Bindgen::new()
        .input_path(module)
        .web(true)?
        .omit_default_module_path(false)
        .typescript(false)
        .generate(folder)
        .with_context(|| format!("the bindings of {} were not written", module.display()))
}
