//! Puts the built web client into release builds of `shoal-host`.
//!
//! Writes the list of the files in `www/pkg`, which `cargo xtask web --release` makes, for `http/web` to include. An
//! absent folder is no failure: the host then says on its page how to get one. Other builds embed nothing, so that
//! they needn't be built anew after each change to the page; they are told the folder with `--www`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../www");
    let mut files = Vec::new();
    println!("cargo::rerun-if-changed=build.rs");
    if variable("PROFILE") == "release" {
        println!("cargo::rerun-if-changed={}", folder.display());
        let built = folder.join("pkg");
        if built.is_dir() {
            collect(&built, "", &mut files)?;
        }
    }
    files.sort();
    let mut source = String::from("[\n");
    for (name, path) in &files {
        // Debug writes texts as Rust does.
        let _ = writeln!(source, "    ({name:?}, include_bytes!({path:?})),");
    }
    source.push_str("]\n");
    std::fs::write(
        PathBuf::from(variable("OUT_DIR")).join("embedded.rs"),
        source,
    )
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo gives a build script {name}"))
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.push((name, entry.path().canonicalize()?));
        }
    }
    Ok(())
}
