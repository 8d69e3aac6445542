//! The page in each of its states, in light and dark, on a screen and on a phone: looked at by axe-core, and kept as
//! pictures for a person to look at (`pictures` in cargo's target folder).

use tests::browser::{Browser, Options, Page};
use tests::community::Small;
use tests::paths;
use tests::tab::{LOAD_MAX, Lend, Tab, gather, turn};

/// Widths and heights of a screen and a phone, in CSS pixels.
const SIZES: [(u32, u32); 2] = [(1280, 900), (390, 844)];
/// Rounds after which a curve has a shape.
const ROUNDS: u64 = 6;

/// Keeps pictures of the page as it stands, and holds each to axe-core's rules and to its width.
fn show(page: &Page, state: &str) {
    let folder = paths::pictures().expect("tests lie in the target folder");
    let mut wrong = Vec::new();
    for (width, height) in SIZES {
        for (dark, colours) in [(false, "light"), (true, "dark")] {
            page.resize(width, height).expect("an answer");
            page.prefer_dark(dark).expect("an answer");
            let name = format!("{state}-{colours}-{width}");
            page.screenshot(&folder, &name).expect("a picture");
            let found = page.violations().expect("axe-core looks");
            wrong.extend(found.into_iter().map(|line| format!("{name}: {line}")));
            let overflow = "document.documentElement.scrollWidth - innerWidth";
            let overflow = page.evaluate(overflow).expect("an answer");
            if overflow.as_f64() > Some(0.0) {
                wrong.push(format!("{name}: {overflow} pixels too wide"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_wrong_with_a_page_is_found() {
    let _turn = turn();
    let community = gather(&Small::default(), &[]).expect("a host starts");
    let browser = Browser::start(&Options::default()).expect("Chromium starts");
    let page = browser.open(community.host.url()).expect("it loads");
    let wrong = "document.querySelector('main').append(document.createElement('button')), true";
    page.evaluate(wrong).expect("an answer");
    let found = page.violations().expect("axe-core looks");
    assert!(
        found.iter().any(|line| line.starts_with("button-name")),
        "{found:?}"
    );
}

#[test]
fn every_state_of_a_volunteer_can_be_read_by_everybody() {
    let _turn = turn();
    let mut community =
        gather(&Small::default(), &["anchovy", "herring"]).expect("a community gathers");
    community.reach(ROUNDS).expect("they train");
    let mut tab = Tab::visit(&community, &Lend::default()).expect("a page");
    tab.page
        .wait_for_role("button", "Check this computer", LOAD_MAX)
        .expect("the program runs");
    show(&tab.page, "first-look");
    tab.page
        .click("button", "Check this computer")
        .expect("it is there");
    tab.page
        .wait_for_role("button", "Contribute", LOAD_MAX)
        .expect("it can help");
    show(&tab.page, "preflight");
    tab.page.click("button", "Contribute").expect("it is there");
    tab.stands("now.phase === 'spare'", LOAD_MAX)
        .expect("it stands by");
    show(&tab.page, "standing-by");
    // Somebody leaves, and the tab has a seat and something to show for it.
    community.interrupt(1).expect("herring leaves");
    tab.stands(
        "now.phase === 'training' && now.accepted.microbatches > 0",
        LOAD_MAX,
    )
    .expect("it trains");
    show(&tab.page, "training");
    tab.page.click("button", "Pause").expect("it is there");
    tab.stands("now.phase === 'paused'", LOAD_MAX)
        .expect("it rests");
    show(&tab.page, "paused");
    tab.page.click("button", "Stop").expect("it is there");
    tab.page
        .wait_for_role("button", "Contribute again", LOAD_MAX)
        .expect("it stopped");
    show(&tab.page, "stopped");
    tab.check().expect("it says nothing wrong");
}

#[test]
fn what_keeps_a_browser_from_helping_can_be_read_by_everybody() {
    let _turn = turn();
    let community = gather(&Small::default(), &["anchovy"]).expect("a community gathers");
    let options = Options {
        arguments: vec!["--host-resolver-rules=MAP run.example 127.0.0.1".to_owned()],
        ..Options::default()
    };
    let browser = Browser::start(&options).expect("Chromium starts");
    let url = community.host.url();
    let mut page = browser.open(url).expect("the page loads");
    page.click("button", "Check this computer")
        .expect("it is there");
    page.wait_for_role("button", "Contribute", LOAD_MAX)
        .expect("it offers the CPU");
    show(&page, "no-webgpu");
    let mut page = browser
        .open(&url.replace("127.0.0.1", "run.example"))
        .expect("the page loads");
    page.wait_for_text("This link needs https", LOAD_MAX)
        .expect("it says so");
    show(&page, "needs-https");
}

#[test]
fn a_broken_tab_and_a_run_that_is_over_can_be_read_by_everybody() {
    let _turn = turn();
    let small = Small {
        seats_min: 1,
        samples: 160,
        ..Small::default()
    };
    let community = gather(&small, &[]).expect("a host starts");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    let end = "__told.ended ?? document.querySelector('#report')?.value";
    let end = tab.page.wait_for("end", LOAD_MAX, end).expect("it ends");
    assert_eq!(end, serde_json::json!({ "type": "run_over" }));
    tab.page
        .wait_for_text("This run is over", LOAD_MAX)
        .expect("it says so");
    show(&tab.page, "run-over");
    let community = gather(&Small::default(), &[]).expect("a host starts");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    let nonsense = "self.dispatchEvent(new MessageEvent('message', { data: 'nonsense' }))";
    drop(tab.page.evaluate_in_worker(nonsense));
    tab.page
        .wait_for_role("button", "Copy the report", LOAD_MAX)
        .expect("it says that it broke");
    show(&tab.page, "broken");
}
