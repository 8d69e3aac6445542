//! What a person who lends a tab was promised: a stop that stops, a share that is kept, a page that answers, sentences.

use std::time::Duration;

use serde_json::Value;
use tests::browser::{Browser, Options, Task};
use tests::community::Small;
use tests::tab::{LOAD_MAX, Lend, Tab, VOLUNTEER, gather, turn};

/// Jobs of a microbatch: forward and backward.
const MICROBATCH_JOBS: u64 = 2;
/// Microbatches that a share is measured over.
const MEASURED: u64 = 100;
/// How far a measured share may be from the asked one, in points.
const SHARE_POINTS_MAX: f64 = 5.0;
/// How far above the asked share the device's busy time may be seen from outside, messages between threads included.
const SEEN_POINTS_MAX: f64 = 10.0;
/// Most that one task of the page takes of the processor.
const TASK_MAX: Duration = Duration::from_millis(50);
/// From loading a page again to its first microbatch, when everything is in the browser's cache.
const JOIN_MAX: Duration = Duration::from_secs(5);

fn alone() -> Small {
    Small {
        seats_min: 1,
        rewind_wait_seconds: 60,
        ..Small::default()
    }
}

#[test]
fn stop_ends_the_work_within_a_microbatch() {
    let _turn = turn();
    let mut community = gather(&Small::default(), &["anchovy"]).expect("a community gathers");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    community.reach(1).expect("they train");
    tab.count_jobs().expect("there is a worker");
    tab.page
        .wait_for("jobs", LOAD_MAX, "__jobs.handed.length > 20")
        .expect("it works");
    tab.stop().expect("it says that it stopped");
    let after = tab
        .page
        .wait_for(
            "a while after",
            LOAD_MAX,
            "new Promise((done) => setTimeout(() => done({
               after: __jobs.handed.filter((at) => at > __jobs.stopped).length,
               stopped: __jobs.stopped > 0,
             }), 500))",
        )
        .expect("an answer");
    assert_eq!(after["stopped"], true, "the click was seen");
    let jobs = after["after"].as_u64().expect("a number");
    assert!(jobs <= MICROBATCH_JOBS, "{jobs} jobs after the click");
    tab.page
        .wait_for_workers(0, LOAD_MAX)
        .expect("its workers end");
    tab.check().expect("it says nothing wrong");
}

#[test]
fn a_measured_share_is_the_asked_one() {
    let _turn = turn();
    let community = gather(&alone(), &[]).expect("a host starts");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    tab.stands("now.microbatches > 0", LOAD_MAX)
        .expect("it trains");
    tab.count_jobs().expect("there is a worker");
    for percent in [25_u32, 50, 100] {
        tab.page
            .set(
                "slider",
                "Share of the time that it works",
                &percent.to_string(),
            )
            .expect("it is there");
        let begun = tab
            .stands(&format!("now.asked_percent === {percent}"), LOAD_MAX)
            .expect("the driver is told");
        let begun = begun["microbatches"].as_u64().expect("a number");
        let busy = "(__jobs.since = performance.now(), __jobs.busy = 0, true)";
        tab.page.evaluate(busy).expect("an answer");
        let enough = format!("now.microbatches >= {}", begun + MEASURED);
        let now = tab.stands(&enough, LOAD_MAX).expect("it works on");
        let asked = f64::from(percent);
        let measured = now["measured_percent"].as_f64().expect("it was measured");
        // Seen from outside: of all time, so waits and the ends of rounds count as rest.
        let seen = "100 * __jobs.busy / (performance.now() - __jobs.since)";
        let seen = tab.page.evaluate(seen).expect("an answer");
        let seen = seen.as_f64().expect("a number");
        println!("asked {asked} %, the page says {measured:.1} %, seen from outside {seen:.1} %");
        assert!((measured - asked).abs() <= SHARE_POINTS_MAX, "{measured}");
        assert!(seen <= asked + SEEN_POINTS_MAX, "{seen}");
    }
}

#[test]
fn a_hidden_tab_works_on_and_tells_how_fast() {
    let _turn = turn();
    let community = gather(&alone(), &[]).expect("a host starts");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    tab.stands("now.rates.visible > 0", LOAD_MAX)
        .expect("it trains in sight");
    let other = tab.browser.blank().expect("another tab");
    other.bring_to_front().expect("an answer");
    let begun = tab.stands("now.hidden", LOAD_MAX).expect("it knows");
    let begun = begun["microbatches"].as_u64().expect("a number");
    let enough = format!(
        "now.rates.hidden > 0 && now.microbatches >= {}",
        begun + MEASURED
    );
    tab.stands(&enough, LOAD_MAX).expect("it trains unseen");
    tab.page
        .wait_for_text("While hidden this tab makes", LOAD_MAX)
        .expect("the page shows it");
    let told = tab.sent("update").expect("messages");
    let is_told = told.iter().any(|one| one["capabilities"]["hidden"] == true);
    assert!(is_told, "the host knows: {told:?}");
}

/// What a browser on battery tells; the test puts it on mains.
const BATTERY: &str = "(() => {
  const battery = new EventTarget();
  battery.charging = false;
  globalThis.__plug = (charging) => {
    battery.charging = charging;
    battery.dispatchEvent(new Event('chargingchange'));
    return true;
  };
  navigator.getBattery = () => Promise.resolve(battery);
})()";

#[test]
fn on_battery_it_rests_where_that_is_wished() {
    let _turn = turn();
    let community = gather(&alone(), &[]).expect("a host starts");
    let how = Lend {
        before_scripts: vec![BATTERY.to_owned()],
        ..Lend::default()
    };
    let mut tab = Tab::visit(&community, &how).expect("a page");
    tab.page
        .click("button", "Check this computer")
        .expect("it is there");
    tab.page
        .click("checkbox", "Only on mains power")
        .expect("it is offered");
    tab.page.click("button", "Contribute").expect("it can help");
    let paused = "now.phase === 'paused' && now.reason === 'paused: on battery'";
    tab.stands(paused, LOAD_MAX).expect("it rests");
    tab.page
        .wait_for_text("Paused: on battery.", LOAD_MAX)
        .expect("it says why");
    tab.page.evaluate("__plug(true)").expect("an answer");
    let now = tab
        .stands("now.phase === 'training' && now.microbatches > 0", LOAD_MAX)
        .expect("it works on mains");
    assert!(now["microbatches"].as_u64() > Some(0));
    tab.page.evaluate("__plug(false)").expect("an answer");
    tab.stands(paused, LOAD_MAX).expect("it rests again");
    tab.check().expect("it says nothing wrong");
}

/// A cap to choose, in bytes a day, and what is left of it.
const CAP_BYTES: u64 = 200_000_000;
const LEFT_BYTES: u64 = 50_000;

/// What the browser keeps of the day's data, after `change` was done with the text that is there.
fn day(tab: &Tab, change: &str) -> Value {
    let script = format!(
        "new Promise((done, fail) => {{
           const open = indexedDB.open('shoal');
           open.onerror = fail;
           open.onsuccess = () => {{
             const change = open.result.transaction('person', 'readwrite');
             const person = change.objectStore('person');
             {change}
             const read = person.get('day');
             change.oncomplete = () => {{ open.result.close(); done(JSON.parse(read.result)); }};
             change.onerror = fail;
           }};
         }})"
    );
    tab.page.evaluate(&script).expect("the database answers")
}

#[test]
fn a_days_cap_is_kept_over_a_reload() {
    let _turn = turn();
    let community = gather(&Small::default(), &["anchovy"]).expect("a community gathers");
    let mut tab = Tab::visit(&community, &Lend::default()).expect("a page");
    tab.page
        .click("button", "Check this computer")
        .expect("it is there");
    tab.page
        .set("combobox", "Data a day, at most", &CAP_BYTES.to_string())
        .expect("it is offered");
    tab.page
        .wait_for_role("button", "Contribute", LOAD_MAX)
        .expect("it can help");
    let before = CAP_BYTES - LEFT_BYTES;
    let moved = format!(
        "person.put(JSON.stringify({{ number: Math.floor(Date.now() / 86400000), bytes: {before} }}), 'day');"
    );
    assert_eq!(day(&tab, &moved)["bytes"], before);
    tab.page.click("button", "Contribute").expect("it is there");
    let paused = "now.phase === 'paused' && now.reason.includes('data is used up')";
    let now = tab.stands(paused, LOAD_MAX).expect("it rests at its cap");
    assert!(now["microbatches"].as_u64() > Some(0), "it had some left");
    // Now, not when the tab ends: it may be killed.
    let kept = day(&tab, "");
    assert!(kept["bytes"].as_u64() >= Some(CAP_BYTES), "{kept}");
    tab.page.reload().expect("it loads again");
    let now = tab.stands(paused, LOAD_MAX).expect("it rests still");
    assert_eq!(now["microbatches"], 0, "it did not begin anew");
    tab.page
        .wait_for_text("the day's data is used up", LOAD_MAX)
        .expect("it says why");
}

#[test]
fn finish_hands_the_stages_on_and_says_thank_you() {
    let _turn = turn();
    let mut community = gather(&Small::default(), &["anchovy"]).expect("a community gathers");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    community.join("herring").expect("a spare starts");
    tab.stands("now.accepted.microbatches > 0", LOAD_MAX)
        .expect("its work counts");
    tab.page.click("button", "Finish").expect("it is there");
    tab.page
        .wait_for_text("Thank you", LOAD_MAX)
        .expect("it says so");
    let text = tab.page.text().expect("an answer");
    assert!(text.contains("Nothing is lost."), "{text}");
    assert!(text.contains("Your work on stage"), "{text}");
    tab.page
        .wait_for_workers(0, LOAD_MAX)
        .expect("its workers end");
    community.go_on(2).expect("the others go on");
    tab.check().expect("it says nothing wrong");
}

#[test]
fn a_second_tab_of_a_browser_is_told_and_has_its_turn_later() {
    let _turn = turn();
    let community = gather(&alone(), &[]).expect("a host starts");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    tab.stands("now.microbatches > 0", LOAD_MAX)
        .expect("it trains");
    let url = format!("{}?device=cpu", community.host.url());
    let mut second = tab.browser.open(&url).expect("a second tab");
    for button in ["Check this computer", "Contribute"] {
        second
            .wait_for_role("button", button, LOAD_MAX)
            .expect("the page offers it");
        second.click("button", button).expect("it can be clicked");
    }
    second
        .wait_for_text("Another tab contributes already", LOAD_MAX)
        .expect("it is told");
    tab.page.bring_to_front().expect("an answer");
    tab.page.click("button", "Stop").expect("it is there");
    second.bring_to_front().expect("an answer");
    second
        .wait_for_role("button", "Check this computer", LOAD_MAX)
        .expect("it is asked again once the first one stopped");
}

#[test]
fn without_webgpu_the_processor_is_offered() {
    let _turn = turn();
    let community = gather(&alone(), &[]).expect("a host starts");
    let browser = Browser::start(&Options::default()).expect("Chromium starts");
    let mut page = browser.open(community.host.url()).expect("the page loads");
    page.click("button", "Check this computer")
        .expect("it is there");
    page.wait_for_text("more slowly", LOAD_MAX)
        .expect("it says why the CPU");
    page.wait_for_role("button", "Contribute", LOAD_MAX)
        .expect("it offers the CPU");
    let text = page.text().expect("an answer");
    assert!(text.contains("It can help on the CPU"), "{text}");
}

#[test]
fn a_page_over_plain_http_says_that_it_needs_https() {
    let _turn = turn();
    let community = gather(&alone(), &[]).expect("a host starts");
    let options = Options {
        arguments: vec!["--host-resolver-rules=MAP run.example 127.0.0.1".to_owned()],
        ..Options::default()
    };
    let browser = Browser::start(&options).expect("Chromium starts");
    let url = community.host.url().replace("127.0.0.1", "run.example");
    let mut page = browser.open(&url).expect("the page loads");
    page.wait_for_text("This link needs https", LOAD_MAX)
        .expect("it says so");
    assert!(
        !page
            .has("button", "Check this computer")
            .expect("an answer")
    );
}

#[test]
fn a_panic_is_a_sentence_a_report_and_a_seat_given_up() {
    let _turn = turn();
    let mut community = gather(&Small::default(), &["anchovy"]).expect("a community gathers");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    community.reach(1).expect("they train");
    let now = tab.stands("now.name", LOAD_MAX).expect("it has a name");
    let name = now["name"].as_str().expect("text").to_owned();
    community.join("herring").expect("a spare starts");
    // No message of ours reads so: the worker cannot but panic.
    let nonsense = "self.dispatchEvent(new MessageEvent('message', { data: 'nonsense' }))";
    drop(tab.page.evaluate_in_worker(VOLUNTEER, nonsense));
    tab.page
        .wait_for_text("Something broke here, the run is safe", LOAD_MAX)
        .expect("it says so");
    tab.page
        .wait_for_role("button", "Copy the report", LOAD_MAX)
        .expect("there is a report to copy");
    let report = tab.page.evaluate("document.querySelector('#report').value");
    let report = report.expect("an answer");
    let report = report.as_str().expect("text");
    assert!(
        report.contains("page and worker are of one build"),
        "{report}"
    );
    assert!(
        !report.contains("127.0.0.1"),
        "it names no address: {report}"
    );
    community
        .hear_of(&name, "left", LOAD_MAX)
        .expect("the host was told, not left to notice");
    community.go_on(2).expect("the run goes on");
}

#[test]
fn the_page_answers_while_the_tab_trains() {
    let _turn = turn();
    let mut community = gather(&Small::default(), &["anchovy"]).expect("a community gathers");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    community.reach(1).expect("they train");
    let tasks = tab.page.trace(|_| community.go_on(4).map(drop));
    let tasks = tasks.expect("a trace");
    let cpu = |task: &Task| task.cpu;
    let longest = tasks.iter().map(cpu).max().expect("the page did something");
    let sum: Duration = tasks.iter().map(cpu).sum();
    println!(
        "{} tasks, {sum:?} of the processor, the longest {longest:?}",
        tasks.len()
    );
    assert!(longest <= TASK_MAX, "{longest:?}");
}

#[test]
fn a_warm_join_takes_seconds() {
    let _turn = turn();
    let small = Small {
        seats_min: 2,
        ..alone()
    };
    let mut community = gather(&small, &["anchovy"]).expect("a community gathers");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    community.reach(1).expect("they train");
    let mut shortest = f64::INFINITY;
    // The shortest of some: the machine does other things, too.
    for _ in 0..3 {
        tab.page.reload().expect("it loads again");
        tab.stands("now.microbatches > 0", LOAD_MAX)
            .expect("it goes on by itself");
        let parts = tab.joined().expect("it told of each part");
        let together: f64 = parts.iter().map(|(_, milliseconds)| milliseconds).sum();
        println!("{parts:.0?}: together {together:.0} ms");
        shortest = shortest.min(together);
        community.go_on(1).expect("the run goes on");
    }
    let limit = JOIN_MAX.as_secs_f64() * 1e3;
    assert!(shortest <= limit, "{shortest} ms");
}

#[test]
fn nothing_is_computed_before_a_click() {
    let _turn = turn();
    let community = gather(&alone(), &[]).expect("a host starts");
    let mut tab = Tab::visit(&community, &Lend::default()).expect("a page");
    tab.page
        .wait_for_role("button", "Check this computer", LOAD_MAX)
        .expect("the program runs");
    assert_eq!(tab.page.worker_count().expect("an answer"), 0);
    let host = community.host.url();
    let asked = tab.page.requests().expect("an answer");
    assert!(
        asked
            .iter()
            .all(|url| url.starts_with(host) || url.starts_with("data:")),
        "{asked:?}"
    );
    assert!(!asked.iter().any(|url| url.contains("worker")), "{asked:?}");
    let run: Value = community.host.api().expect("an answer");
    assert_eq!(run["volunteers"], serde_json::json!([]));
}
