//! GPUs that a browser offers and that do not do: the page says so, the console says why, and the processor is offered.
//!
//! The worker's own script is packed with a few lines before it that change what the browser's GPU does.

use tempfile::TempDir;
use tests::browser::{Browser, Options, Page, Said, WebGpu};
use tests::community::{Community, Small};
use tests::tab::{LOAD_MAX, turn, www_with};

/// A GPU that cannot tell how long it worked.
const NO_TIMESTAMPS: &str = "(() => {
  const real = Object.getOwnPropertyDescriptor(GPUAdapter.prototype, 'features').get;
  Object.defineProperty(GPUAdapter.prototype, 'features', {
    get() { return new Set([...real.call(this)].filter((name) => name !== 'timestamp-query')); },
  });
})();";

/// A GPU for which no program compiles.
const NO_SHADERS: &str = "(() => {
  const real = GPUDevice.prototype.createShaderModule;
  GPUDevice.prototype.createShaderModule = function (asked) {
    return real.call(this, { ...asked, code: 'this is no WGSL' });
  };
})();";

/// What a test holds on to.
struct World {
    page: Page,
    _browser: Browser,
    _community: Community,
    _www: TempDir,
}

/// A page on a run whose worker begins with `script`, while it looks at this computer; WebGPU is asked for by name.
fn look(script: &str) -> World {
    let www = www_with(script).expect("the web client is packed");
    let arguments = vec!["--www".to_owned(), www.path().display().to_string()];
    let small = Small {
        seats_min: 1,
        ..Small::default()
    };
    let community = Community::gather_with(&small, arguments, &[]).expect("a host starts");
    let options = Options {
        webgpu: WebGpu::SwiftShader,
        ..Options::default()
    };
    let browser = Browser::start(&options).expect("Chromium starts");
    let url = format!("{}?device=webgpu", community.host.url());
    let mut page = browser.open(&url).expect("the page loads");
    page.click("button", "Check this computer")
        .expect("it is there");
    World {
        page,
        _browser: browser,
        _community: community,
        _www: www,
    }
}

#[test]
fn a_gpu_without_timestamps_is_not_opened_and_the_processor_is_offered() {
    let _turn = turn();
    let mut world = look(NO_TIMESTAMPS);
    let page = &mut world.page;
    page.wait_for_text("it has no timestamp queries", LOAD_MAX)
        .expect("it says why");
    page.set("combobox", "Processor", "auto")
        .expect("there is a choice");
    page.wait_for_role("button", "Contribute", LOAD_MAX)
        .expect("it offers the CPU");
    let text = page.text().expect("an answer");
    assert!(text.contains("has no timestamp queries, which"), "{text}");
    assert!(text.contains("It can help on the CPU"), "{text}");
    let errors = page.errors().expect("an answer");
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn what_a_gpu_does_not_compile_is_on_the_console() {
    let _turn = turn();
    let mut world = look(NO_SHADERS);
    let page = &mut world.page;
    page.wait_for_text("This device cannot run the model", LOAD_MAX)
        .expect("it says that it cannot");
    let said = page.said().expect("an answer");
    // The panic that follows says less.
    let why = "WGSL compilation failed";
    let logged = |one: &Said| one.level == "error" && one.text.contains(why);
    assert!(said.iter().any(logged), "{said:#?}");
}
