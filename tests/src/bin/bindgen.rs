//! Writes the JavaScript side of a WASM module: `bindgen [--small] MODULE.wasm FOLDER`.
//!
//! The same library as wasm-bindgen's own program, in the version that `Cargo.lock` names: the two
//! must be equal to the last digit, and nothing needs to be installed this way. It knows nothing
//! of Shoal; `cargo xtask web` calls it.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let is_small = arguments.iter().any(|argument| argument == "--small");
    let [module, folder] = &arguments[usize::from(is_small)..] else {
        bail!("usage: bindgen [--small] MODULE.wasm FOLDER");
    };
    check_exports(Path::new(module))?;
    Bindgen::new()
        .input_path(module)
        .web(true)?
        .omit_default_module_path(false)
        .typescript(false)
        // Names of functions, for whoever reads a stack: half as much again as the code.
        .keep_debug(false)
        .remove_name_section(is_small)
        .remove_producers_section(is_small)
        .generate(folder)
        .with_context(|| format!("the bindings of {} were not written", module.display()))
}

/// Refuses a module whose every function runs all constructors first, because `main` does not run them.
fn check_exports(module: &Path) -> anyhow::Result<()> {
    // What the linker calls the functions that it puts before the module's own.
    const WRAPPER: &[u8] = b".command_export";
    let bytes = std::fs::read(module).with_context(|| module.display().to_string())?;
    let is_wrapped = bytes.windows(WRAPPER.len()).any(|name| name == WRAPPER);
    ensure!(
        !is_wrapped,
        "{}: whatever is called in it runs its constructors first; `main` must run them, once",
        module.display()
    );
    Ok(())
}
