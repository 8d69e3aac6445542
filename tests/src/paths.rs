//! Where the repository and the built programs lie.
//!
//! Programs are looked for beside the running one: tests and `cargo xtask` are themselves built
//! into cargo's target folder, wherever that is. Nothing is built here; `cargo xtask` does that.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, bail};

/// The repository's root: the one that cargo runs, and without cargo the one that this was built from. They differ
/// where a checkout was moved, or shares its target folder with another.
///
/// # Panics
/// Never: each package lies one level below the root.
#[must_use]
pub fn repository() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let built = env!("CARGO_MANIFEST_DIR");
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| built.into());
        Path::new(&package)
            .parent()
            .expect("the package lies in a folder of the repository")
            .to_owned()
    })
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

/// Cargo's target folder.
///
/// # Errors
/// As [`programs`].
pub fn target() -> anyhow::Result<PathBuf> {
    let programs = programs()?;
    let target = programs.parent();
    Ok(target
        .context("programs lie in the target folder")?
        .to_owned())
}

/// The folder with the page that shows what a browser derives from a seed; `cargo xtask web` fills it.
///
/// # Errors
/// As [`programs`].
pub fn seed_page() -> anyhow::Result<PathBuf> {
    Ok(target()?.join("seed-page"))
}

/// The folder to give a host with `--www`.
///
/// # Errors
/// The page has not been built; the message says how to.
pub fn www() -> anyhow::Result<PathBuf> {
    let folder = repository().join("www");
    if !folder.join("pkg").join("manifest.json").is_file() {
        bail!("the web client is not built; `cargo xtask web` builds it");
    }
    Ok(folder)
}

/// The folder for what tests leave for a person to look at, such as pictures of pages.
///
/// # Errors
/// As [`programs`].
pub fn pictures() -> anyhow::Result<PathBuf> {
    Ok(target()?.join("pictures"))
}

/// A file: path from the repository's root, with `/`, and text.
pub type File = (String, String);

/// All files of text that people write here: nothing built, nothing hidden but the checks' own.
///
/// # Panics
/// A folder of the repository cannot be read.
#[must_use]
pub fn sources() -> Vec<File> {
    let mut found = Vec::new();
    collect(repository(), "", &mut found);
    found
}

fn collect(folder: &Path, prefix: &str, found: &mut Vec<File>) {
    let kinds = [
        "rs", "toml", "md", "html", "css", "js", "json", "sh", "py", "yml", "run",
    ];
    let built = ["target", "pkg", "node_modules"];
    for entry in std::fs::read_dir(folder)
        .expect("a folder is readable")
        .filter_map(Result::ok)
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().expect("an entry has a kind");
        let path = format!("{prefix}{name}");
        let hidden = name.starts_with('.') && ![".ci", ".cargo"].contains(&name.as_str());
        if kind.is_dir() && !hidden && !built.contains(&name.as_str()) {
            collect(&entry.path(), &format!("{path}/"), found);
        } else if kind.is_file() && kinds.contains(&name.rsplit('.').next().unwrap_or(&name)) {
            // A file that is no text is not source.
            found.extend(
                std::fs::read_to_string(entry.path())
                    .ok()
                    .map(|text| (path, text)),
            );
        }
    }
}
