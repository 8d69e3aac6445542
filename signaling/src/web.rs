//! The built web client: its files, ready to be sent as they are.
//!
//! Read once at the start, from a folder (`--www`) or from what the build put into this program, and checked: every
//! file that the manifest names is there. How files are sent is `http/web`'s. A host without a page to contribute with
//! is whole in all else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use shared::wire::web::{MANIFEST_FILE, Manifest};

/// What the build put into this program: names below `www/pkg`, and contents.
static EMBEDDED: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
/// Where files are served.
pub(crate) const PREFIX: &str = "/pkg/";

/// Why the folder of the web client can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WebError {
    /// A file is not there, or can't be read.
    #[error("cannot read {}: {reason}. `cargo xtask web` builds the page into www/pkg; give that www with --www, or leave it out", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The manifest was written by another version, or by hand.
    #[error("{} is not understood: {reason}. Build the page again with `cargo xtask web`", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The files, and where a page finds them. Empty where the page was not built.
#[derive(Debug, Default)]
pub struct Web {
    files: BTreeMap<String, File>,
    addresses: Option<Addresses>,
}

/// Addresses of the web client, for the page to name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The script that the page loads, of type `module`.
    pub start: String,
    /// The script that `start` loads: to be preloaded.
    pub script: String,
    /// The module that `script` fetches: to be preloaded.
    pub wasm: String,
    /// The script of the worker, which the page's module starts once somebody contributes.
    pub worker: String,
    /// Other files, by their name in the source, such as `style.css`.
    pub assets: BTreeMap<String, String>,
}

/// One file, ready to be sent.
#[derive(Debug)]
pub(crate) struct File {
    /// As HTTP calls it.
    pub(crate) content_type: &'static str,
    /// Hash of the file, which its compressions share.
    pub(crate) hash: String,
    /// The file as brotli.
    pub(crate) brotli: Bytes,
    /// The file as gzip.
    pub(crate) gzip: Bytes,
}

impl Web {
    /// What the build put into this program.
    ///
    /// # Errors
    /// It holds another version's manifest.
    pub fn embedded() -> Result<Self, WebError> {
        if EMBEDDED.is_empty() {
            return Ok(Self::default());
        }
        Self::gather(Path::new("(built in)"), |name| {
            let found = EMBEDDED.iter().find(|(known, _)| *known == name);
            found
                .map(|(_, bytes)| Bytes::from_static(bytes))
                .ok_or_else(|| "absent".to_owned())
        })
    }

    /// What lies in `www/pkg`; `www` is what a person gave with `--www`.
    ///
    /// # Errors
    /// The folder is incomplete or not understood.
    pub fn read(www: &Path) -> Result<Self, WebError> {
        let folder = www.join("pkg");
        Self::gather(&folder, |name| {
            let read = std::fs::read(folder.join(name));
            read.map(Bytes::from).map_err(|error| error.to_string())
        })
    }

    fn gather(
        folder: &Path,
        read: impl Fn(&str) -> Result<Bytes, String>,
    ) -> Result<Self, WebError> {
        let read = |name: &str| {
            read(name).map_err(|reason| WebError::Unreadable {
                path: folder.join(name),
                reason,
            })
        };
        let text = read(MANIFEST_FILE)?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| WebError::Manifest {
                path: folder.join(MANIFEST_FILE),
                reason: error.to_string(),
            })?;
        let mut files = BTreeMap::new();
        for packed in &manifest.files {
            let gzip = read(&format!("{}.gz", packed.path))?;
            let file = File {
                content_type: content_type(&packed.path),
                hash: blake3::hash(&gzip).to_hex()[..32].to_owned(),
                brotli: read(&format!("{}.br", packed.path))?,
                gzip,
            };
            files.insert(packed.path.clone(), file);
        }
        let link = |path: &str| format!("{PREFIX}{path}");
        let addresses = Addresses {
            start: link(&manifest.page.start),
            script: link(&manifest.page.script),
            wasm: link(&manifest.page.wasm),
            worker: link(&manifest.worker.start),
            assets: manifest
                .assets
                .iter()
                .map(|(name, path)| (name.clone(), link(path)))
                .collect(),
        };
        Ok(Self {
            files,
            addresses: Some(addresses),
        })
    }

    /// Where a page finds the web client; none where it was not built.
    #[must_use]
    pub fn addresses(&self) -> Option<&Addresses> {
        self.addresses.as_ref()
    }

    /// The file at a path below [`PREFIX`].
    pub(crate) fn file(&self, path: &str) -> Option<&File> {
        self.files.get(path)
    }
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "js" => "text/javascript; charset=utf-8",
        "wasm" => "application/wasm",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "webmanifest" => "application/manifest+json",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_lacks_a_file_is_refused_with_what_to_do() {
        let folder = tempfile::TempDir::new().unwrap();
        let said = |www: &Path| Web::read(www).unwrap_err().to_string();
        assert!(
            said(folder.path()).contains("cargo xtask web"),
            "{}",
            said(folder.path())
        );
        std::fs::create_dir(folder.path().join("pkg")).unwrap();
        let manifest = folder.path().join("pkg").join(MANIFEST_FILE);
        std::fs::write(&manifest, "{}").unwrap();
        assert!(said(folder.path()).contains("is not understood: missing field"));
        let module = r#"{"start":"a/s.js","script":"a/a.js","wasm":"a/a.wasm"}"#;
        let files = r#"[{"path":"a/s.js","len_bytes":1,"brotli_bytes":1,"gzip_bytes":1}]"#;
        let text =
            format!(r#"{{"page":{module},"worker":{module},"assets":{{}},"files":{files}}}"#);
        std::fs::write(&manifest, text).unwrap();
        assert!(
            said(folder.path()).contains("s.js.gz"),
            "{}",
            said(folder.path())
        );
    }
}
