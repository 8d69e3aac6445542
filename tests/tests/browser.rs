//! The browser derives the same numbers from a seed as every native program.

use std::time::Duration;

use shared::config::model::ModelConfig;
use shared::derive;
use tests::browser::{Browser, Options};
use tests::{paths, site::Site};

#[test]
fn chromium_derives_the_same_numbers_from_a_seed_as_native_code() {
    let folder = paths::seed_page().expect("tests lie in the target folder");
    assert!(
        folder.join("client_web_bg.wasm").is_file(),
        "the web client is not built: `cargo xtask web` builds it"
    );
    let site = Site::serve(folder).expect("the page is served");
    let browser = Browser::start(&Options::default()).expect("Chromium starts");
    let mut page = browser
        .open(&site.url("index.html"))
        .expect("the page is loaded");
    page.wait_for_text("Done", Duration::from_secs(90))
        .expect("the page computes its hashes");
    for preset in ["tiny", "small"] {
        let config = ModelConfig::preset(preset).expect("it is a preset");
        let native = blake3::Hash::from_bytes(derive::seed_hash(&config, 1)).to_hex();
        let shown = format!("document.querySelector('output[data-preset={preset}]').value");
        let shown = page.evaluate(&shown).expect("the page answers");
        assert_eq!(shown, native.as_str(), "{preset}");
    }
}
