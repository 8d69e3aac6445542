//! A browser's GPU that does not do, that goes away, and that stops when it is told to.
//!
//! One that does not do: the page says so, the console says why, and the processor is offered. For that the worker's
//! own script is packed with a few lines before it that change what the browser's GPU does.

use tempfile::TempDir;
use tests::browser::{Browser, Options, Page, Said, WebGpu};
use tests::community::{Community, Small};
use tests::tab::{Device, LOAD_MAX, Lend, Tab, gather, gather_around, small_on, turn, www_with};

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
    let small = small_on(Device::Cpu, 1);
    let community = gather_around(www.path(), &small, vec![], &[]).expect("a host starts");
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

fn on_webgpu() -> Lend {
    Lend {
        device: Device::WebGpu,
        ..Lend::default()
    }
}

#[test]
fn a_gpu_that_is_lost_is_opened_again_and_the_run_goes_on() {
    let _turn = turn();
    let small = Small {
        // Its kernels are compiled once more meanwhile.
        rewind_wait_seconds: 60,
        ..small_on(Device::WebGpu, 2)
    };
    let mut community = gather(&small, &["anchovy"]).expect("a community gathers");
    let mut tab = Tab::lend(&community, &on_webgpu()).expect("a tab lends");
    community.reach(1).expect("they train");
    tab.browser.kill_gpu().expect("it has one");
    tab.stands("now.phase === 'recovering'", LOAD_MAX)
        .expect("it notices");
    tab.page
        .wait_for_text("Getting the device back", LOAD_MAX)
        .expect("the page says so");
    // Listened to meanwhile: its new worker begins once the harness has seen it.
    let trains = "now.phase === 'training' && now.device.startsWith('WebGPU')";
    tab.stands(trains, LOAD_MAX)
        .expect("it computes on a GPU again");
    // Two seats are needed: the other volunteer cannot do it alone.
    community.go_on(2).expect("the run goes on");
}

#[test]
fn stop_ends_submissions_to_the_gpu_within_a_microbatch() {
    let _turn = turn();
    let mut community = gather(&small_on(Device::WebGpu, 1), &[]).expect("a host starts");
    let mut tab = Tab::lend(&community, &on_webgpu()).expect("a tab lends");
    community.reach(1).expect("it trains");
    tab.count_submissions().expect("there are workers");
    tab.page
        .wait_for("rounds", LOAD_MAX, "__jobs.handed.length > 8")
        .expect("it works");
    tab.stop().expect("it says that it stopped");
    // A job's work is submitted in parts: most of two jobs in a row are what a microbatch takes.
    let counted = tab
        .page
        .wait_for(
            "a while after",
            LOAD_MAX,
            "new Promise((done) => setTimeout(() => {
               const { handed, submitted, stopped } = __jobs;
               const between = (from, to) => submitted.filter((at) => at > from && at <= to).length;
               const microbatches = handed.slice(2).map((at, index) => between(handed[index], at));
               done({
                 stopped: stopped > 0,
                 before: submitted.length - between(stopped, Infinity),
                 after: between(stopped, Infinity),
                 microbatch: Math.max(...microbatches),
               });
             }, 500))",
        )
        .expect("an answer");
    assert_eq!(counted["stopped"], true, "the click was seen");
    let count = |name: &str| counted[name].as_u64().expect("a number");
    println!("{counted}");
    assert!(count("before") > 0, "the GPU was used: {counted}");
    assert!(count("after") <= count("microbatch"), "{counted}");
    tab.page
        .wait_for_workers(0, LOAD_MAX)
        .expect("its workers end");
    tab.check().expect("it says nothing wrong");
}
