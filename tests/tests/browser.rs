//! The browser derives the same numbers from a seed as every native program.

use std::time::Duration;

use shared::config::model::ModelConfig;
use shared::derive;
use tests::{browser, paths, site::Site};

#[test]
fn chromium_derives_the_same_numbers_from_a_seed_as_native_code() {
    let folder = paths::repository().join("www");
    assert!(
        folder.join("pkg/client_web_bg.wasm").is_file(),
        "the web client is not built: `cargo xtask web` builds it"
    );
    let site = Site::serve(folder).expect("the page is served");
    let page = browser::document(
        &site.url("index.html"),
        Duration::from_secs(30),
        Duration::from_secs(90),
    )
    .expect("the page is loaded");
    for preset in ["tiny", "small"] {
        let config = ModelConfig::preset(preset).expect("it is a preset");
        let native = blake3::Hash::from_bytes(derive::seed_hash(&config, 1)).to_hex();
        let shown = format!("<output data-preset=\"{preset}\">{native}</output>");
        assert!(
            page.contains(&shown),
            "{preset}: natively {native}, the page is\n{page}"
        );
    }
}
