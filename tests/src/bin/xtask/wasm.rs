//! A toolchain for browsers: rustup's target, or where that cannot be downloaded, Debian's compiler
//! with a standard library built from its source.
//!
//! Owns which cargo builds for `wasm32-unknown-unknown`. The second way is linked into rustup under
//! a name of its own, lies beside the built programs, and leaves the person's default alone.

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use tests::paths;

use crate::build::{cargo, run};
use crate::setup;

/// The target that browsers run.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";
/// The second way's name in rustup.
const LINKED: &str = "shoal-wasm";
/// Debian's packages for the second way.
const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld"];

/// Finds the toolchain, or makes one. Gives what to tell the person.
///
/// # Errors
/// Neither way works here; the message is what to type.
pub(crate) fn ensure() -> anyhow::Result<String> {
    let target = sysroot()?.join("lib/rustlib").join(TARGET);
    if target.exists() {
        return Ok(target.display().to_string());
    }
    if linked() {
        return Ok(format!("toolchain {LINKED}"));
    }
    let added = Command::new("rustup")
        .args(["target", "add", TARGET])
        .stdin(Stdio::null())
        .status();
    if added.is_ok_and(|status| status.success()) && target.exists() {
        return Ok(format!("installed, {}", target.display()));
    }
    println!("the target {TARGET} cannot be downloaded: building it with Debian's compiler");
    link_debians().with_context(|| {
        format!("the wasm target is absent and could not be made; type: rustup target add {TARGET}")
    })?;
    Ok(format!("built, toolchain {LINKED}"))
}

/// Cargo that can build for browsers.
pub(crate) fn wasm_cargo(arguments: &[&str]) -> Command {
    let own = sysroot().is_ok_and(|root| root.join("lib/rustlib").join(TARGET).exists());
    if own {
        return cargo(arguments);
    }
    let mut command = Command::new("cargo");
    command
        .current_dir(paths::repository())
        .arg(format!("+{LINKED}"))
        .args(arguments);
    command
}

/// Whether [`wasm_cargo`] has clippy: Debian's compiler comes without.
pub(crate) fn has_clippy() -> bool {
    wasm_cargo(&["clippy", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// The folder of the toolchain in use.
pub(crate) fn sysroot() -> anyhow::Result<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .context("no rustc")?;
    Ok(PathBuf::from(
        String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    ))
}

fn linked() -> bool {
    Command::new("rustc")
        .args([&format!("+{LINKED}"), "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Builds the standard library with Debian's compiler and links both into rustup.
fn link_debians() -> anyhow::Result<()> {
    setup::install(&PACKAGES)?;
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let lld = sysroot()?
        .join("lib/rustlib")
        .join(&host)
        .join("bin/rust-lld");
    let built = build_standard_library(&lld)?;

    let folder = paths::programs()?.join("tools").join(LINKED);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    let rustlib = folder.join("lib/rustlib");
    let (library, native) = (rustlib.join(TARGET).join("lib"), rustlib.join(&host));
    for folder in [&library, &native.join("bin"), &folder.join("bin")] {
        std::fs::create_dir_all(folder)?;
    }
    for entry in std::fs::read_dir(
        built
            .path()
            .join("target")
            .join(TARGET)
            .join("release/deps"),
    )? {
        let file = entry?.path();
        if file.extension() == Some(OsStr::new("rlib"))
            && let Some(name) = file.file_name()
        {
            std::fs::copy(&file, library.join(name))?;
        }
    }
    symlink(
        Path::new("/usr/lib/rustlib").join(&host).join("lib"),
        native.join("lib"),
    )?;
    symlink(&lld, native.join("bin/rust-lld"))?;
    symlink("/usr/bin/cargo", folder.join("bin/cargo"))?;
    let wrapper = folder.join("bin/rustc");
    let text = format!(
        "#!/bin/sh\nexec /usr/bin/rustc --sysroot '{}' \"$@\"\n",
        folder.display()
    );
    std::fs::write(&wrapper, text)?;
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))?;
    run(Command::new("rustup")
        .args(["toolchain", "link", LINKED])
        .arg(&folder))
}

/// Builds std for [`TARGET`] with Debian's compiler, through a crate that holds nothing.
fn build_standard_library(lld: &Path) -> anyhow::Result<tempfile::TempDir> {
    if !lld.exists() {
        bail!("the toolchain has no {}", lld.display());
    }
    let folder = tempfile::Builder::new().prefix("shoal-std-").tempdir()?;
    std::fs::create_dir(folder.path().join("src"))?;
    std::fs::write(folder.path().join("src/main.rs"), "fn main() {}\n")?;
    let manifest =
        "[package]\nname = \"empty\"\nedition = \"2021\"\n[profile.release]\npanic = \"abort\"\n";
    std::fs::write(folder.path().join("Cargo.toml"), manifest)?;
    let mut command = Command::new("/usr/bin/cargo");
    // What the outer cargo and rustup have set would lead back to their own compiler.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO") || text.starts_with("RUST") {
            command.env_remove(&name);
        }
    }
    command
        .current_dir(folder.path())
        .args([
            "build",
            "--release",
            "-Zbuild-std=std,panic_abort",
            "--target",
            TARGET,
        ])
        .args(["--target-dir", "target"])
        .env("PATH", "/usr/bin:/bin")
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", lld);
    run(&mut command)?;
    Ok(folder)
}
