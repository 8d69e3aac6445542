//! How fast borders are packed and unpacked on one core: `shared/examples/packing`, natively in the release profile, and in
//! Chromium's WebAssembly in the profile of what people load.
//!
//! Without burn, so that it is built in seconds.

use ::tests::browser::{Browser, Options};
use ::tests::paths;
use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::save;
use crate::build::{cargo, run};
use crate::web::{For, TARGET};

const EXAMPLE: [&str; 4] = ["--package", "shared", "--example", "packing"];

/// Measures; the file is written at the end.
pub(super) fn packing() -> anyhow::Result<()> {
    let natively = natively()?;
    let in_browser = in_browser()?;
    for row in natively.iter().chain(&in_browser) {
        println!("{row}");
    }
    save(
        "packing",
        &json!({ "native": natively, "chromium": in_browser }),
    )
}

fn natively() -> anyhow::Result<Vec<Value>> {
    let mut command = cargo(&["run", "--quiet", "--release"]);
    let output = command.args(EXAMPLE).output().context("cargo starts")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the example failed: {said}");
    let lines = String::from_utf8(output.stdout).context("text")?;
    rows(lines.lines())
}

fn in_browser() -> anyhow::Result<Vec<Value>> {
    let mut command = cargo(&["build", "--quiet", "--target", TARGET]);
    run(command
        .args(["--profile", For::People.profile()])
        .args(EXAMPLE))?;
    let module = For::People
        .folder(&paths::target()?)
        .join("examples/packing.wasm");
    let module = std::fs::read(&module).with_context(|| module.display().to_string())?;
    let script = format!(
        "(async () => {{
          const bytes = Uint8Array.from(atob('{}'), (it) => it.charCodeAt(0));
          const lines = [];
          let memory = null;
          const page = {{
            now_ms: () => performance.now(),
            say: (at, bytes) => lines.push(new TextDecoder().decode(new Uint8Array(memory.buffer, at, bytes))),
          }};
          const {{ instance }} = await WebAssembly.instantiate(bytes, {{ page }});
          memory = instance.exports.memory;
          instance.exports.main(0, 0);
          return lines;
        }})()",
        STANDARD.encode(module)
    );
    let browser = Browser::start(&Options::default())?;
    let lines = browser.blank()?.evaluate(&script)?;
    let lines = lines.as_array().context("lines")?;
    rows(lines.iter().filter_map(Value::as_str))
}

fn rows<'a>(lines: impl Iterator<Item = &'a str>) -> anyhow::Result<Vec<Value>> {
    let rows: Result<Vec<Value>, _> = lines.map(serde_json::from_str).collect();
    rows.context("a line of JSON each")
}
