//! Finds what the tests need, installs what is absent, or says what to type.
//!
//! One line an item. Quick when everything is there: files are looked for, nothing is asked over
//! the network. Packages come through apt, as root on Debian or Ubuntu; elsewhere the person is
//! told the command. `cargo xtask demo` needs nothing of this.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use tests::{browser, turn};

/// The target that browsers run.
const WASM: &str = "wasm32-unknown-unknown";

/// Folders in which Vulkan drivers announce themselves.
const VULKAN_DRIVERS: [&str; 3] = [
    "/usr/share/vulkan/icd.d",
    "/etc/vulkan/icd.d",
    "/usr/local/share/vulkan/icd.d",
];

/// Folders in which the Vulkan loader lies.
const LIBRARIES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
];

/// Something a test needs.
struct Item {
    name: &'static str,
    /// Debian's packages that bring it.
    packages: &'static [&'static str],
    /// Where it was found.
    found: fn() -> Option<String>,
}

const ITEMS: [Item; 7] = [
    Item {
        name: "chromium",
        packages: &["chromium"],
        found: find_chromium,
    },
    Item {
        name: "firefox",
        packages: &["firefox-esr"],
        found: find_firefox,
    },
    Item {
        name: "vulkan",
        packages: &["mesa-vulkan-drivers", "libvulkan1"],
        found: find_software_vulkan,
    },
    Item {
        name: "coturn",
        packages: &["coturn"],
        found: find_coturn,
    },
    Item {
        name: "postgres",
        packages: &["postgresql"],
        found: find_postgres,
    },
    Item {
        name: "nats",
        packages: &["nats-server"],
        found: find_nats,
    },
    Item {
        name: "npm",
        packages: &["npm"],
        found: find_npm,
    },
];

/// Makes sure that all that the tests need is there.
///
/// # Errors
/// Something is absent and cannot be installed from here; the message is what to type.
pub(crate) fn setup() -> anyhow::Result<()> {
    let mut problems = Vec::new();
    if let Err(error) = target().and_then(|()| components()) {
        problems.push(format!("{error:#}"));
    }
    let mut packages = Vec::new();
    for item in &ITEMS {
        match (item.found)() {
            Some(place) => report(item.name, &place),
            None => packages.extend_from_slice(item.packages),
        }
    }
    if !packages.is_empty() {
        match install(&packages) {
            Ok(()) => {
                for item in ITEMS
                    .iter()
                    .filter(|item| packages.contains(&item.packages[0]))
                {
                    match (item.found)() {
                        Some(place) => report(item.name, &format!("installed, {place}")),
                        None => {
                            problems.push(format!("{} is absent after its installation", item.name))
                        }
                    }
                }
            }
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    if let Err(error) = axe() {
        problems.push(format!("{error:#}"));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        bail!(problems.join("\n"))
    }
}

fn report(name: &str, place: &str) {
    // Not on the output: that of the demo may be JSON alone.
    eprintln!("{name:<10} {place}");
}

/// What the web client is compiled for, in the toolchain in use.
///
/// # Errors
/// It is absent and cannot be installed from here; the message is what to type.
pub(crate) fn target() -> anyhow::Result<()> {
    let wasm = sysroot()?.join("lib/rustlib").join(WASM);
    ensure("wasm", &wasm, &["target", "add", WASM])
}

/// axe-core, which looks at the page in the tests: beside the built programs, never a part of them.
///
/// # Errors
/// It is absent and cannot be installed from here; the message is what to type.
fn axe() -> anyhow::Result<()> {
    let file = browser::axe_file()?;
    if file.is_file() {
        report("axe-core", &file.display().to_string());
        return Ok(());
    }
    let folder = browser::axe_folder()?;
    std::fs::create_dir_all(&folder)?;
    let package = format!("axe-core@{}", browser::AXE_VERSION);
    let quiet = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund"];
    let done = Command::new("npm")
        .args(["install", "--prefix"])
        .arg(&folder)
        .args(quiet)
        .arg(&package)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    if !done.is_ok_and(|status| status.success()) || !file.is_file() {
        let folder = folder.display();
        bail!("axe-core could not be installed; type: npm install --prefix {folder} {package}");
    }
    report("axe-core", &format!("installed, {}", file.display()));
    Ok(())
}

/// rustfmt and clippy of the toolchain in use.
fn components() -> anyhow::Result<()> {
    let root = sysroot()?;
    ensure(
        "rustfmt",
        &root.join("bin/rustfmt"),
        &["component", "add", "rustfmt"],
    )?;
    ensure(
        "clippy",
        &root.join("bin/cargo-clippy"),
        &["component", "add", "clippy"],
    )
}

/// The folder of the toolchain in use.
fn sysroot() -> anyhow::Result<PathBuf> {
    let root = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .context("rustc does not run")?;
    Ok(PathBuf::from(
        String::from_utf8_lossy(&root.stdout).trim().to_owned(),
    ))
}

/// A file of the toolchain, which `rustup` with these arguments brings.
fn ensure(name: &str, file: &Path, rustup: &[&str]) -> anyhow::Result<()> {
    if file.exists() {
        report(name, &file.display().to_string());
        return Ok(());
    }
    let typed = format!("rustup {}", rustup.join(" "));
    let done = Command::new("rustup")
        .args(rustup)
        .stdin(Stdio::null())
        .status();
    if !done.is_ok_and(|status| status.success()) || !file.exists() {
        bail!("{name} is absent and could not be installed; type: {typed}");
    }
    report(name, &format!("installed, {}", file.display()));
    Ok(())
}

fn find_chromium() -> Option<String> {
    browser::chromium().map(|path| path.display().to_string())
}

fn find_firefox() -> Option<String> {
    browser::firefox().map(|path| path.display().to_string())
}

fn find_coturn() -> Option<String> {
    turn::coturn().map(|path| path.display().to_string())
}

/// Debian keeps each version's programs in a folder of its own, outside of the search path.
fn find_postgres() -> Option<String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let found = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin/initdb")));
    let mut found = found.filter(|file| file.is_file());
    found.next().map(|file| file.display().to_string())
}

fn find_nats() -> Option<String> {
    find_program("nats-server")
}

fn find_npm() -> Option<String> {
    find_program("npm")
}

fn find_program(name: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(name));
    let mut found = found.filter(|file| file.is_file());
    found.next().map(|file| file.display().to_string())
}

/// Mesa's driver that computes on the CPU, and the loader through which programs reach it.
fn find_software_vulkan() -> Option<String> {
    let loader = LIBRARIES
        .iter()
        .any(|folder| Path::new(folder).join("libvulkan.so.1").exists());
    let named = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("lvp_icd"))
    };
    let files = VULKAN_DRIVERS
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten();
    let driver = files
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(named)?;
    loader.then(|| driver.display().to_string())
}

/// Installs packages through apt, where that is possible without asking anybody.
fn install(packages: &[&str]) -> anyhow::Result<()> {
    let typed = format!(
        "apt-get update && apt-get install -y {}",
        packages.join(" ")
    );
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "install with this system's package manager what Debian calls {}, then run this again",
            packages.join(", ")
        );
    }
    if !rustix::process::geteuid().is_root() {
        bail!("installing needs root; type: sudo sh -c '{typed}'");
    }
    eprintln!("installing {} through apt", packages.join(", "));
    let apt = |arguments: &[&str]| {
        let done = Command::new("apt-get")
            .args([
                "-q",
                "-o",
                "DPkg::Lock::Timeout=300",
                "-o",
                "Acquire::Retries=3",
            ])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        done.is_ok_and(|status| status.success())
    };
    // Old lists may still do: whether the packages came is what counts.
    apt(&["update"]);
    let wanted: Vec<&str> = ["install", "-y", "--no-install-recommends"]
        .into_iter()
        .chain(packages.iter().copied())
        .collect();
    if !apt(&wanted) {
        bail!("apt-get could not install; type: {typed}");
    }
    Ok(())
}
