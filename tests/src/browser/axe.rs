//! What axe-core says about a page: rules of accessibility that it breaks.
//!
//! axe-core lies beside the built programs, where `cargo xtask setup` puts it; it is never part of the page. DevTools
//! evaluates it, so the page's Content-Security-Policy stays as it is.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;

use super::page::Page;
use crate::paths;

/// The version that is installed and asked.
pub const AXE_VERSION: &str = "4.14.1";

/// The folder into which `cargo xtask setup` installs axe-core.
///
/// # Errors
/// The system does not tell where this program lies.
pub fn axe_folder() -> anyhow::Result<PathBuf> {
    Ok(paths::target()?.join("tools").join("axe"))
}

/// axe-core's one file: `SHOAL_AXE` if set, else where `cargo xtask setup` puts it. It need not be there.
///
/// # Errors
/// As [`axe_folder`].
pub fn axe_file() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("SHOAL_AXE") {
        return Ok(path.into());
    }
    Ok(axe_folder()?.join("node_modules/axe-core/axe.min.js"))
}

impl Page {
    /// Rules of axe-core that the page as it stands breaks, a line each, with the first elements that do.
    ///
    /// # Errors
    /// axe-core is not installed, or it cannot look at this page.
    pub fn violations(&self) -> anyhow::Result<Vec<String>> {
        let file = axe_file()?;
        let axe = std::fs::read_to_string(&file)
            .with_context(|| format!("{}: `cargo xtask setup` installs it", file.display()))?;
        self.evaluate(&format!("{axe}; true"))?;
        let found = self.evaluate(
            "axe.run(document, { resultTypes: ['violations'] }).then((found) => found.violations.map((one) =>
              `${one.id}: ${one.help}: ${one.nodes.slice(0, 3).map((node) => node.html).join(' ')}`))",
        )?;
        let lines = found.as_array().context("axe-core gives a list")?.iter();
        Ok(lines.filter_map(Value::as_str).map(str::to_owned).collect())
    }
}
