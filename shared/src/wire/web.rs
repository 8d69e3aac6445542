//! What the web client's build hands to the host: a folder of compressed files and what is in it.
//!
//! Each file lies there twice, as `PATH.br` and `PATH.gz`, and not as it is. Its path holds a hash of what it and those
//! beside it contain, so that whoever has it may keep it for good.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The manifest's name in its folder.
pub const MANIFEST_FILE: &str = "manifest.json";

/// What the folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The page's module.
    pub page: Module,
    /// The worker's module, loaded once somebody contributes.
    pub worker: Module,
    /// Files of the page that are no module: what people call them in the source, such as `style.css`, to their path.
    pub assets: BTreeMap<String, String>,
    /// Everything, the files of both modules included.
    pub files: Vec<Packed>,
}

/// Paths of the parts of a WASM module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// The script that loads and runs it: the one to name in a page.
    pub start: String,
    /// The script that the module came with.
    pub script: String,
    /// The module itself.
    pub wasm: String,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Its path in the folder, and in the address at which it is served; without the ending of a compression.
    pub path: String,
    /// Bytes of it.
    pub len_bytes: u64,
    /// Bytes of it as brotli.
    pub brotli_bytes: u64,
    /// Bytes of it as gzip.
    pub gzip_bytes: u64,
}
