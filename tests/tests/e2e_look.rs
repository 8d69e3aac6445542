//! The page in each of its states, in light and dark, on a screen and on a phone: looked at by axe-core, and kept as
//! pictures for a person to look at (`pictures` in cargo's target folder).

use std::time::Duration;

use tests::browser::{Browser, Options, Page};
use tests::community::Small;
use tests::paths;
use tests::tab::{LOAD_MAX, Lend, Tab, VOLUNTEER, gather, turn};

/// Widths and heights of a screen and a phone, in CSS pixels.
const SIZES: [(u32, u32); 2] = [(1280, 900), (390, 844)];
/// Rounds after which a curve has a shape.
const ROUNDS: u64 = 6;

/// A line of 10 Mbit/s: bytes a second, and how long a request takes there and back at least.
const LINE_BYTES_PER_SECOND: u64 = 1_250_000;
const LINE_LATENCY: Duration = Duration::from_millis(40);
/// Until something of the run can be read over such a line.
const TEXT_MAX: Duration = Duration::from_secs(1);
/// Visits of which the quickest counts: the machine does other things, too.
const VISITS: usize = 3;

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
fn the_run_can_be_read_within_a_second_over_a_slow_line() {
    let _turn = turn();
    let mut community = gather(&Small::default(), &["anchovy", "herring"]).expect("they gather");
    community.reach(2).expect("they train");
    let mut quickest = f64::INFINITY;
    for _ in 0..VISITS {
        // A new browser has nothing of it yet.
        let browser = Browser::start(&Options::default()).expect("Chromium starts");
        let mut page = browser.blank().expect("a tab");
        page.slow_down(LINE_LATENCY, LINE_BYTES_PER_SECOND)
            .expect("an answer");
        page.goto(community.host.url()).expect("it loads");
        let paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime";
        let paint = page.wait_for("a first paint", LOAD_MAX, paint);
        let paint = paint.expect("it is told").as_f64().expect("a number");
        let text = page.text().expect("an answer");
        assert!(text.contains("A language model of"), "{text}");
        println!("first text after {paint:.0} ms");
        quickest = quickest.min(paint);
    }
    assert!(quickest < TEXT_MAX.as_secs_f64() * 1e3, "{quickest} ms");
}

#[test]
fn a_mouse_over_the_curve_shows_a_rounds_figures() {
    let _turn = turn();
    let mut community = gather(&Small::default(), &["anchovy", "herring"]).expect("they gather");
    community.reach(ROUNDS).expect("they train");
    // Nobody trains on: the curve stands still.
    community.kill_volunteers().expect("they end");
    let browser = Browser::start(&Options::default()).expect("Chromium starts");
    let mut page = browser.open(community.host.url()).expect("it loads");
    page.hover("slider", "Rounds on the loss curve")
        .expect("it is there");
    let tip = "document.querySelector('.tip')?.innerText";
    let shown = page.wait_for("a tip", LOAD_MAX, tip).expect("it shows one");
    let shown = shown.as_str().expect("text").to_owned();
    let run = community.host.api().expect("an answer");
    let rounds = run["rounds"].as_array().expect("a list");
    let named = rounds.iter().find(|round| {
        let first = shown.lines().next().unwrap_or_default();
        first == format!("Round {}", round["round"])
    });
    let named = named.unwrap_or_else(|| panic!("a round of the run: {shown}"));
    let loss = named["loss"].as_f64().expect("a number");
    assert!(shown.contains(&format!("loss {loss:.3}")), "{shown}");
    assert!(shown.contains("tokens"), "{shown}");
    page.move_mouse(2.0, 2.0).expect("an answer");
    page.wait_for("nothing", LOAD_MAX, "!document.querySelector('.tip')")
        .expect("it goes with the mouse");
    let legend = page.evaluate("document.querySelector('figcaption').innerText");
    let legend = legend.expect("an answer").to_string();
    assert!(legend.contains("training loss"), "{legend}");
    assert!(!legend.contains("held-out"), "no such line: {legend}");
}

#[test]
fn every_state_of_a_volunteer_can_be_read_by_everybody() {
    let _turn = turn();
    let mut community =
        gather(&Small::default(), &["anchovy", "herring"]).expect("a community gathers");
    community.reach(ROUNDS).expect("they train");
    // Slower than both, so that it stands by first.
    let how = Lend {
        throttle_percent: Some(10),
        ..Lend::default()
    };
    let mut tab = Tab::visit(&community, &how).expect("a page");
    tab.page
        .wait_for_role("button", "Check this computer", LOAD_MAX)
        .expect("the program runs");
    show(&tab.page, "first-look");
    // Nothing has to be lent to be told something.
    tab.page
        .set("textbox", "Have it go on from", "The sea ")
        .expect("it is there");
    tab.page.click("button", "Write").expect("it is there");
    tab.page
        .wait_for_text("Written: 200", LOAD_MAX)
        .expect("it is written");
    show(&tab.page, "written");
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
    drop(tab.page.evaluate_in_worker(VOLUNTEER, nonsense));
    tab.page
        .wait_for_role("button", "Copy the report", LOAD_MAX)
        .expect("it says that it broke");
    show(&tab.page, "broken");
}
