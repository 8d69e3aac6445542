//! How fast borders are packed and unpacked on one core, natively: `shared/examples/packing`, in the release profile.
//!
//! Without burn, so that it is built in seconds. What a browser does is not measured here.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::save;
use crate::build::cargo;

/// Measures; the file is written at the end.
pub(super) fn packing() -> anyhow::Result<()> {
    let mut command = cargo(&["run", "--quiet", "--release"]);
    command.args(["--package", "shared", "--example", "packing"]);
    let output = command.output().context("cargo starts")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the example failed: {said}");
    let lines = String::from_utf8(output.stdout).context("text")?;
    let rows: Result<Vec<Value>, _> = lines.lines().map(serde_json::from_str).collect();
    let rows = rows.context("a line of JSON each")?;
    for row in &rows {
        println!("{row}");
    }
    save("packing", &json!({ "rows": rows }))
}
