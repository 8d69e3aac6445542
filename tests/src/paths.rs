//! Where the repository and the built programs lie.
//!
//! Programs are looked for beside the running one: tests and `cargo xtask` are themselves built
//! into cargo's target folder, wherever that is. Nothing is built here; `cargo xtask` does that.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The repository's root.
///
/// # Panics
/// Never: the package lies one level below the root.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in a folder of the repository")
}

/// The folder into which cargo puts the programs of the profile that this one was built with.
///
/// # Errors
/// The system does not tell where this program lies.
pub fn programs() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    let folder = own.parent().context("this program lies in no folder")?;
    // Tests lie one level deeper, in `deps`; examples in `examples`.
    let inner = ["deps", "examples"];
    if folder
        .file_name()
        .is_some_and(|name| inner.iter().any(|one| name == *one))
    {
        return Ok(folder.parent().unwrap_or(folder).to_owned());
    }
    Ok(folder.to_owned())
}

/// The built program of that name, such as `shoal-host` or `examples/sim`.
///
/// # Errors
/// It has not been built; the message says how to.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = programs()?.join(name);
    if !path.is_file() {
        bail!(
            "{} is not built; `cargo xtask test` builds everything",
            path.display()
        );
    }
    Ok(path)
}
