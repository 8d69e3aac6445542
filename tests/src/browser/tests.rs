//! The harness itself: what it says about a page is so.

use std::time::Duration;

use super::{Browser, Options, WebGpu};
use crate::site::Site;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);
const PAGE: &str = r#"<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><title>t</title><body>
<style>body { background: white } @media (prefers-color-scheme: dark) { body { background: black } }</style>
<button onclick="shown.value = 'clicked ' + (++count)">Count</button>
<button disabled>Never</button>
<label>Share <input type="range" min="10" max="100" oninput="shown.value = 'share ' + this.value"></label>
<output id="shown">nothing</output>
<script>
let count = 0;
const shown = document.getElementById('shown');
const seen = Number(localStorage.seen ?? 0) + 1;
localStorage.seen = seen;
function spin(turns) { let sum = 0; for (let at = 0; at < turns; at++) sum += Math.sqrt(at); return sum; }
console.info('loaded', seen);
</script></body></html>"#;
const WORKER: &str =
    "console.warn('a worker speaks'); self.answer = 42; fetch('/absent-for-worker');";

struct Bench {
    site: Site,
    _folder: tempfile::TempDir,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("index.html"), PAGE).expect("a file");
    std::fs::write(folder.path().join("worker.js"), WORKER).expect("a file");
    let site = Site::serve(folder.path().to_owned()).expect("a site");
    Bench {
        site,
        _folder: folder,
    }
}

#[test]
fn a_page_is_used_by_role_and_name_and_what_it_says_is_kept() {
    let bench = bench();
    let browser = Browser::start(&Options::default()).expect("Chromium starts");
    let mut page = browser.open(&bench.site.url("")).expect("it loads");
    page.click("button", "Count").expect("there is one");
    page.wait_for_text("clicked 1", LONG)
        .expect("it was clicked");
    page.set("slider", "Share", "30").expect("there is one");
    page.wait_for_text("share 30", LONG).expect("it was set");
    assert!(
        !page.has("button", "Never").expect("an answer"),
        "it is disabled"
    );
    page.press("Tab").expect("a key");
    let error = page
        .wait_for("miracle", SHORT, "false")
        .expect_err("it never comes");
    let error = error.to_string();
    assert!(
        error.contains("no miracle") && error.contains("share 30"),
        "{error}"
    );
    assert!(error.contains("info: loaded 1"), "{error}");

    let error = page.evaluate("null.x").expect_err("it throws");
    assert!(error.to_string().contains("TypeError"), "{error}");
    assert_eq!(page.errors().expect("an answer"), Vec::<String>::new());
    let broken = "setTimeout(() => { throw new Error('broken') }); fetch('/absent')";
    page.evaluate(broken).expect("an answer");
    page.wait_for(
        "a while",
        LONG,
        "new Promise((done) => setTimeout(done, 50, true))",
    )
    .expect("it passes");
    let errors = page.errors().expect("an answer").join("\n");
    assert!(
        errors.contains("Error: broken") && errors.contains("404"),
        "{errors}"
    );
    assert!(
        page.requests()
            .expect("an answer")
            .contains(&bench.site.url("absent"))
    );
}

#[test]
fn a_worker_counts_as_its_page() {
    let bench = bench();
    let browser = Browser::start(&Options::default()).expect("Chromium starts");
    let mut page = browser.open(&bench.site.url("")).expect("it loads");
    page.evaluate("globalThis.worker = new Worker('worker.js'); 1")
        .expect("an answer");
    let heard = |page: &mut super::Page| {
        let said = page.said().expect("an answer");
        said.iter().any(|one| one.text == "a worker speaks")
    };
    while !heard(&mut page) {
        page.wait_for(
            "a moment",
            LONG,
            "new Promise((done) => setTimeout(done, 10, true))",
        )
        .expect("it passes");
    }
    assert_eq!(
        page.evaluate_in_worker("", "answer").expect("an answer"),
        42
    );
    while !page
        .requests()
        .expect("an answer")
        .contains(&bench.site.url("absent-for-worker"))
    {
        page.wait_for(
            "a moment",
            LONG,
            "new Promise((done) => setTimeout(done, 10, true))",
        )
        .expect("it passes");
    }
}

#[test]
fn a_kept_profile_outlives_its_browser_and_a_fresh_one_does_not() {
    let bench = bench();
    let profile = tempfile::tempdir().expect("a folder");
    let kept = Options {
        profile: Some(profile.path().to_owned()),
        ..Options::default()
    };
    let visits = |options: &Options| {
        let browser = Browser::start(options).expect("Chromium starts");
        let mut page = browser.open(&bench.site.url("")).expect("it loads");
        page.reload().expect("it loads again");
        let visits = page.evaluate("seen").expect("an answer");
        page.close().expect("the tab closes");
        browser.close().expect("it closes");
        visits
    };
    assert_eq!(visits(&kept), 2);
    assert_eq!(visits(&kept), 4);
    assert_eq!(visits(&Options::default()), 2);
}

#[test]
fn long_tasks_are_seen_in_cpu_time_and_by_the_clock() {
    let bench = bench();
    let browser = Browser::start(&Options::default()).expect("Chromium starts");
    let mut page = browser.open(&bench.site.url("")).expect("it loads");
    let quiet = page.trace(|_| Ok(())).expect("a trace");
    let spin = |page: &mut super::Page| {
        page.wait_for(
            "a spin",
            LONG,
            "new Promise((done) => setTimeout(() => { done(spin(3e8) > 0) }))",
        )
        .map(drop)
    };
    let busy = page.trace(spin).expect("a trace");
    let longest =
        |tasks: &[super::Task]| tasks.iter().map(|task| task.cpu).max().unwrap_or_default();
    assert!(longest(&quiet) < Duration::from_millis(50), "{quiet:?}");
    let found = longest(&busy);
    assert!(
        found > Duration::from_millis(50) && found < LONG,
        "{found:?}"
    );
    let by_clock = page.long_tasks_ms().expect("an answer");
    assert!(by_clock.iter().any(|ms| *ms > 50.0), "{by_clock:?}");
}

#[test]
fn colours_widths_and_pictures_are_a_persons() {
    let bench = bench();
    let browser = Browser::start(&Options::default()).expect("Chromium starts");
    let mut page = browser.blank().expect("a tab");
    page.resize(390, 844).expect("an answer");
    page.prefer_dark(true).expect("an answer");
    page.goto(&bench.site.url("")).expect("it loads");
    let seen = "[innerWidth, getComputedStyle(document.body).backgroundColor].join(' ')";
    assert_eq!(page.evaluate(seen).expect("an answer"), "390 rgb(0, 0, 0)");
    page.prefer_dark(false).expect("an answer");
    assert_eq!(
        page.evaluate(seen).expect("an answer"),
        "390 rgb(255, 255, 255)"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = page.screenshot(folder.path(), "light").expect("a picture");
    let bytes = std::fs::read(file).expect("it was written");
    assert_eq!(bytes[1..4], *b"PNG");
    page.press("Tab").expect("a key");
    let focused = page.focused().expect("an answer");
    assert_eq!(focused, Some(("button".to_owned(), "Count".to_owned())));
}

#[test]
fn webgpu_is_there_when_asked_for_and_only_then() {
    let bench = bench();
    let adapter = "(async () => !!(await navigator.gpu?.requestAdapter()))()";
    for (webgpu, has_adapter) in [(WebGpu::Absent, false), (WebGpu::SwiftShader, true)] {
        let options = Options {
            webgpu,
            ..Options::default()
        };
        let browser = Browser::start(&options).expect("Chromium starts");
        let page = browser.open(&bench.site.url("")).expect("it loads");
        assert_eq!(
            page.evaluate(adapter).expect("an answer"),
            has_adapter,
            "{webgpu:?}"
        );
    }
}
