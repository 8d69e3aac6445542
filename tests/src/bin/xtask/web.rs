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
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";
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
    pub(crate) const fn profile(self) -> &'static str {
        match self {
            Self::Tests => "web",
            Self::People => "web-release",
        }
    }

    /// Where cargo puts the modules.
    pub(crate) fn folder(self, target: &Path) -> PathBuf {
        target.join(TARGET).join(self.profile())
    }
}

/// Builds the web client into `www/pkg`. The programs `bindgen` and `pack` must be built already.
///
/// # Errors
/// A step failed, its own output says why; or for people it is larger than its limit.
pub(crate) fn web(whom: For) -> anyhow::Result<()> {
    let target = paths::target()?;
    let page = module("page", whom, &target, None)?;
    let worker = module("worker", whom, &target, None)?;
    let www = paths::repository().join("www");
    let mut pack = Command::new(paths::program("pack")?);
    if whom == For::People {
        pack.arg("--best");
    }
    run(pack.arg(www.join("pkg")).args([&www, &page, &worker]))?;
    match whom {
        For::Tests => seed_page(),
        For::People => check(&sizes()?),
    }
}

/// Packs the page that was built for people with a worker that is built without SIMD, into a folder to give a host
/// with `--www`: to measure what SIMD brings.
///
/// # Errors
/// A step failed, its own output says why.
pub(crate) fn without_simd(folder: &Path) -> anyhow::Result<()> {
    // Instead of the repository's own flags, which switch it on.
    let flags = Some("-C target-feature=-simd128");
    let apart = paths::target()?.join("without-simd");
    let worker = module("worker", For::People, &apart, flags)?;
    let page = bindings_folder("page", &For::People.folder(&paths::target()?));
    let assets = paths::repository().join("www");
    let mut pack = Command::new(paths::program("pack")?);
    run(pack.arg(folder.join("pkg")).args([assets, page, worker]))
}

/// Builds the programs that the web build runs, for `cargo xtask web` alone.
///
/// # Errors
/// They do not compile.
pub(crate) fn programs() -> anyhow::Result<()> {
    let features = ["build", "-p", "tests", "--features", "web"];
    run(cargo(&features).args(["--bin", "bindgen", "--bin", "pack"]))
}

/// Builds one module and its JavaScript, with other compiler flags if so wished. Gives the folder of both.
fn module(name: &str, whom: For, target: &Path, flags: Option<&str>) -> anyhow::Result<PathBuf> {
    let mut build = cargo(&["build", "-p", "client-web", "--target", TARGET]);
    build.args(["--profile", whom.profile(), "--bin", name]);
    build.args(["--features", name, "--target-dir"]).arg(target);
    build.envs(flags.map(|flags| ("RUSTFLAGS", flags)));
    run(&mut build)?;
    let folder = whom.folder(target);
    let bindings_folder = bindings_folder(name, &folder);
    bindings(
        &folder.join(format!("{name}.wasm")),
        &bindings_folder,
        whom == For::People,
    )?;
    Ok(bindings_folder)
}

/// Where the JavaScript of a module goes that was built into a folder.
fn bindings_folder(name: &str, built: &Path) -> PathBuf {
    built.join("bindings").join(name)
}

/// Writes the JavaScript of a module into a folder of its own.
fn bindings(module: &Path, folder: &Path, is_small: bool) -> anyhow::Result<()> {
    if folder.exists() {
        // What an earlier build wrote and this one doesn't must not be packed.
        std::fs::remove_dir_all(folder)?;
    }
    let mut bindgen = Command::new(paths::program("bindgen")?);
    bindgen.args(is_small.then_some("--small"));
    run(bindgen.args([module, folder]))
}

/// The page on which a test compares what a browser derives from a seed.
fn seed_page() -> anyhow::Result<()> {
    let profile = For::Tests.profile();
    run(
        cargo(&["build", "-p", "client-web", "--lib", "--target", TARGET])
            .args(["--profile", profile]),
    )?;
    let folder = paths::seed_page()?;
    let built = For::Tests.folder(&paths::target()?);
    let written = bindings_folder("seed", &built);
    bindings(&built.join("client_web.wasm"), &written, false)?;
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

/// Bytes that a browser loads.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Sizes {
    /// The page's module and script, as brotli.
    pub page_brotli_bytes: u64,
    /// The worker's, loaded after the click.
    pub worker_brotli_bytes: u64,
    /// The worker's, unpacked.
    pub worker_bytes: u64,
}

/// What `www/pkg` holds.
///
/// # Errors
/// It does not hold a built web client.
pub(crate) fn sizes() -> anyhow::Result<Sizes> {
    let manifest = paths::www()?.join("pkg").join("manifest.json");
    let manifest: Value = serde_json::from_str(&std::fs::read_to_string(manifest)?)?;
    let of = |name: &str, what: &str| -> u64 {
        let files = manifest["files"].as_array().into_iter().flatten();
        let is_own = |file: &&Value| {
            let path = file["path"].as_str();
            path.is_some_and(|path| path.starts_with(name))
        };
        files
            .filter(is_own)
            .filter_map(|file| file[what].as_u64())
            .sum()
    };
    let sizes = Sizes {
        page_brotli_bytes: of("page-", "brotli_bytes"),
        worker_brotli_bytes: of("worker-", "brotli_bytes"),
        worker_bytes: of("worker-", "len_bytes"),
    };
    ensure!(
        sizes.page_brotli_bytes > 0 && sizes.worker_brotli_bytes > 0,
        "the manifest names no module"
    );
    Ok(sizes)
}

/// Holds the build to its limits.
fn check(sizes: &Sizes) -> anyhow::Result<()> {
    let page = sizes.page_brotli_bytes;
    let both = page + sizes.worker_brotli_bytes;
    if page > PAGE_BYTES_MAX {
        bail!("the page takes {page} bytes; {PAGE_BYTES_MAX} is the limit");
    }
    if both > BOTH_BYTES_MAX {
        bail!("page and worker take {both} bytes; {BOTH_BYTES_MAX} is the limit");
    }
    eprintln!("both are within their limits, {PAGE_BYTES_MAX} and {BOTH_BYTES_MAX} bytes");
    Ok(())
}
