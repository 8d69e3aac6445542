//! Packs the web client for the host: `pack [--best] OUT ASSETS PAGE WORKER`.
//!
//! PAGE and WORKER are folders of `bindgen`; ASSETS holds what else the page loads. Every file gets a path
//! that follows from what it contains, and lies in OUT as brotli and as gzip. The files of a module stay
//! together in one folder, because they name each other. OUT is exchanged as a whole, at the end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use flate2::write::GzEncoder;
use shared::wire::web::{MANIFEST_FILE, Manifest, Module, Packed};

/// Digits of a hash in a path: 64 bits, which nothing hits by accident.
const DIGITS: usize = 16;
/// What an asset may be; other files of the folder are not for the page.
const ASSETS: [&str; 8] = [
    "css",
    "svg",
    "png",
    "ico",
    "woff2",
    "js",
    "txt",
    "webmanifest",
];
/// Brotli's window, as a power of two: what every browser takes, and most of a module.
const BROTLI_WINDOW: i32 = 24;

/// A file before it is packed.
struct Plain {
    path: String,
    bytes: Vec<u8>,
}

/// How hard to compress: seconds for tests, minutes for people.
#[derive(Clone, Copy)]
struct Effort {
    brotli: i32,
    gzip: u32,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let is_best = arguments.iter().any(|argument| argument == "--best");
    let [out, assets, page, worker] = &arguments[usize::from(is_best)..] else {
        bail!("usage: pack [--best] OUT ASSETS PAGE WORKER");
    };
    let effort = if is_best {
        Effort {
            brotli: 11,
            gzip: 9,
        }
    } else {
        Effort { brotli: 2, gzip: 1 }
    };
    let mut files = Vec::new();
    let page = module("page", Path::new(page), &mut files)?;
    let worker = module("worker", Path::new(worker), &mut files)?;
    let assets = take_assets(Path::new(assets), &mut files)?;
    let manifest = write(Path::new(out), page, worker, assets, &files, effort)?;
    for name in ["page", "worker"] {
        let of_module = manifest
            .files
            .iter()
            .filter(|file| file.path.starts_with(name));
        let (len, brotli, gzip) = of_module.fold((0, 0, 0), |sum, file| {
            (
                sum.0 + file.len_bytes,
                sum.1 + file.brotli_bytes,
                sum.2 + file.gzip_bytes,
            )
        });
        eprintln!("{name:<7} {len:>10} bytes, {brotli:>9} as brotli, {gzip:>9} as gzip");
    }
    Ok(())
}

/// Adds the files of a module, in a folder of their own, with the script that starts it.
fn module(name: &str, folder: &Path, files: &mut Vec<Plain>) -> anyhow::Result<Module> {
    let mut own = Vec::new();
    collect(folder, "", &mut own)?;
    let named = |ending: &str| format!("{name}{ending}");
    for needed in [named(".js"), named("_bg.wasm")] {
        if !own.iter().any(|file| file.path == needed) {
            bail!(
                "{} has no {needed}: bindgen did not write it",
                folder.display()
            );
        }
    }
    // Whoever imports the page's script hears by the promise; a worker's page hears only of what is thrown.
    let run = match name {
        "worker" => "init().catch((error) => setTimeout(() => { throw error; }));",
        _ => "await init();",
    };
    let start = format!("import init from \"./{name}.js\";\n{run}\n");
    own.push(Plain {
        path: "start.js".to_owned(),
        bytes: start.into_bytes(),
    });
    own.sort_by(|one, other| one.path.cmp(&other.path));
    let mut hasher = blake3::Hasher::new();
    for file in &own {
        for part in [file.path.as_bytes(), &file.bytes] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    let folder = format!("{name}-{}", short(&hasher.finalize()));
    let inside = |path: &str| format!("{folder}/{path}");
    files.extend(own.into_iter().map(|file| Plain {
        path: inside(&file.path),
        bytes: file.bytes,
    }));
    Ok(Module {
        start: inside("start.js"),
        script: inside(&named(".js")),
        wasm: inside(&named("_bg.wasm")),
    })
}

/// Adds what the page loads besides: `style.css` becomes `style-HASH.css`.
fn take_assets(folder: &Path, files: &mut Vec<Plain>) -> anyhow::Result<BTreeMap<String, String>> {
    let mut own = Vec::new();
    collect(folder, "", &mut own)?;
    let mut assets = BTreeMap::new();
    for file in own {
        let Some((stem, kind)) = file.path.rsplit_once('.') else {
            continue;
        };
        if !ASSETS.contains(&kind) {
            continue;
        }
        let path = format!("{stem}-{}.{kind}", short(&blake3::hash(&file.bytes)));
        assets.insert(file.path.clone(), path.clone());
        files.push(Plain {
            path,
            bytes: file.bytes,
        });
    }
    Ok(assets)
}

/// Reads all files below `folder`. What was packed before (`pkg`, `pkg.next`) is none of them.
fn collect(folder: &Path, prefix: &str, files: &mut Vec<Plain>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        if entry.file_type()?.is_dir() {
            if !path.starts_with("pkg") {
                collect(&entry.path(), &format!("{path}/"), files)?;
            }
        } else {
            let bytes =
                std::fs::read(entry.path()).with_context(|| entry.path().display().to_string())?;
            files.push(Plain { path, bytes });
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(())
}

/// Compresses everything beside `out`, then exchanges it.
fn write(
    out: &Path,
    page: Module,
    worker: Module,
    assets: BTreeMap<String, String>,
    files: &[Plain],
    effort: Effort,
) -> anyhow::Result<Manifest> {
    let next = beside(out, "next");
    if next.exists() {
        std::fs::remove_dir_all(&next)?;
    }
    let mut packed = Vec::new();
    for file in files {
        let target = next.join(&file.path);
        std::fs::create_dir_all(target.parent().unwrap_or(&next))?;
        let brotli = brotli(&file.bytes, effort)?;
        let gzip = gzip(&file.bytes, effort)?;
        std::fs::write(next.join(format!("{}.br", file.path)), &brotli)?;
        std::fs::write(next.join(format!("{}.gz", file.path)), &gzip)?;
        packed.push(Packed {
            path: file.path.clone(),
            len_bytes: file.bytes.len() as u64,
            brotli_bytes: brotli.len() as u64,
            gzip_bytes: gzip.len() as u64,
        });
    }
    let manifest = Manifest {
        page,
        worker,
        assets,
        files: packed,
    };
    let text = serde_json::to_string_pretty(&manifest)?;
    std::fs::write(next.join(MANIFEST_FILE), text)?;
    let last = beside(out, "last");
    if out.exists() {
        if last.exists() {
            std::fs::remove_dir_all(&last)?;
        }
        std::fs::rename(out, &last)?;
    }
    std::fs::rename(&next, out).with_context(|| out.display().to_string())?;
    if last.exists() {
        std::fs::remove_dir_all(&last)?;
    }
    Ok(manifest)
}

/// `pkg` becomes `pkg.next`.
fn beside(folder: &Path, ending: &str) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    folder.with_file_name(name)
}

fn brotli(bytes: &[u8], effort: Effort) -> anyhow::Result<Vec<u8>> {
    let params = brotli::enc::BrotliEncoderParams {
        quality: effort.brotli,
        lgwin: BROTLI_WINDOW,
        ..Default::default()
    };
    let mut packed = Vec::new();
    brotli::BrotliCompress(&mut &bytes[..], &mut packed, &params)?;
    Ok(packed)
}

fn gzip(bytes: &[u8], effort: Effort) -> anyhow::Result<Vec<u8>> {
    let mut writer = GzEncoder::new(Vec::new(), flate2::Compression::new(effort.gzip));
    writer.write_all(bytes)?;
    Ok(writer.finish()?)
}

fn short(hash: &blake3::Hash) -> String {
    hash.to_hex()[..DIGITS].to_owned()
}
