//! `cargo xtask web`: the web client, from Rust to the folder that a host serves.
//!
//! Two modules of one package, each with the features that it needs and no more; `bindgen` writes their
//! JavaScript, `pack` compresses everything into `www/pkg` under names that follow from the content. For tests
//! that takes a minute or two once dependencies are compiled; for people (`--release`) it takes
//! many, and the sizes are held to their limits.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tests::paths;

use crate::build::{cargo, run};

/// The target that browsers run.
const TARGET: &str = "wasm32-unknown-unknown";
/// Most bytes of the page's files as brotli: what a person waits for.
const PAGE_BYTES_MAX: u64 = 500_000;
/// Most bytes of both modules' files as brotli: what a person waits for after a click.
const BOTH_BYTES_MAX: u64 = 3_000_000;

/// For whom to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// Quick to build.
    Tests,
    /// Quick to load.
    People,
}

impl For {
    /// Cargo's profile.
    const fn profile(self) -> &'static str {
        match self {
            Self::Tests => "web",
            Self::People => "web-release",
        }
    }
}

/// Builds the web client into `www/pkg`. The programs `bindgen` and `pack` must be built already.
///
/// # Errors
/// A step failed, its own output says why; or for people it is larger than its limit.
pub(crate) fn web(whom: For) -> anyhow::Result<()> {
    let page = module("page", whom)?;
    let worker = module("worker", whom)?;
    let www = paths::repository().join("www");
    let mut pack = Command::new(paths::program("pack")?);
    if whom == For::People {
        pack.arg("--best");
    }
    run(pack.arg(www.join("pkg")).args([&www, &page, &worker]))?;
    match whom {
        For::Tests => seed_page(),
        For::People => check_sizes(&www.join("pkg").join("manifest.json")),
    }
}

/// Builds the programs that the web build runs, for `cargo xtask web` alone.
///
/// # Errors
/// They do not compile.
pub(crate) fn programs() -> anyhow::Result<()> {
    let features = ["build", "-p", "tests", "--features", "web"];
    run(cargo(&features).args(["--bin", "bindgen", "--bin", "pack"]))
}

/// Builds one module and its JavaScript. Gives the folder of both.
fn module(name: &str, whom: For) -> anyhow::Result<PathBuf> {
    run(
        cargo(&["build", "-p", "client-web", "--target", TARGET]).args([
            "--profile",
            whom.profile(),
            "--bin",
            name,
            "--features",
            name,
        ]),
    )?;
    let small: &[&str] = match whom {
        For::Tests => &[],
        For::People => &["--small"],
    };
    bindings(
        name,
        &built(whom)?.join(format!("{name}.wasm")),
        whom,
        small,
    )
}

/// Writes the JavaScript of a module into a folder of its own.
fn bindings(name: &str, module: &Path, whom: For, switches: &[&str]) -> anyhow::Result<PathBuf> {
    let folder = built(whom)?.join("bindings").join(name);
    if folder.exists() {
        // What an earlier build wrote and this one doesn't must not be packed.
        std::fs::remove_dir_all(&folder)?;
    }
    let mut bindgen = Command::new(paths::program("bindgen")?);
    run(bindgen.args(switches).args([module, &folder]))?;
    Ok(folder)
}

/// The page on which a test compares what a browser derives from a seed.
fn seed_page() -> anyhow::Result<()> {
    let profile = For::Tests.profile();
    run(
        cargo(&["build", "-p", "client-web", "--lib", "--target", TARGET])
            .args(["--profile", profile]),
    )?;
    let folder = paths::seed_page()?;
    let module = built(For::Tests)?.join("client_web.wasm");
    let written = bindings("seed", &module, For::Tests, &[])?;
    std::fs::create_dir_all(&folder)?;
    let source = paths::repository().join("tests").join("pages").join("seed");
    for from in [source, written] {
        for entry in std::fs::read_dir(&from).with_context(|| from.display().to_string())? {
            let entry = entry?;
            std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Where cargo puts the modules.
fn built(whom: For) -> anyhow::Result<PathBuf> {
    Ok(paths::target()?.join(TARGET).join(whom.profile()))
}

/// Holds the build to its limits.
fn check_sizes(manifest: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(manifest)?;
    let manifest: Value = serde_json::from_str(&text)?;
    let of = |name: &str| -> u64 {
        let files = manifest["files"].as_array().into_iter().flatten();
        let own = files.filter(|file| {
            file["path"]
                .as_str()
                .is_some_and(|path| path.starts_with(name))
        });
        own.filter_map(|file| file["brotli_bytes"].as_u64()).sum()
    };
    let (page, worker) = (of("page-"), of("worker-"));
    ensure!(page > 0 && worker > 0, "the manifest names no module");
    if page > PAGE_BYTES_MAX {
        bail!("the page takes {page} bytes; {PAGE_BYTES_MAX} is the limit");
    }
    if page + worker > BOTH_BYTES_MAX {
        let both = page + worker;
        bail!("page and worker take {both} bytes; {BOTH_BYTES_MAX} is the limit");
    }
    eprintln!("both are within their limits, {PAGE_BYTES_MAX} and {BOTH_BYTES_MAX} bytes");
    Ok(())
}
