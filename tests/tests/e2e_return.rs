//! A tab that is loaded again: the same volunteer, in the same seat, with the weights it had, without a click. So does one
//! come back that slept, or whose device ran out of memory.

mod room;

use serde_json::Value;
use tests::browser::Page;
use tests::community::{Community, Small};
use tests::judge::{SAME_LOSS_SHARE_MAX, recovered_within};
use tests::tab::{DEVICE, LOAD_MAX, Lend, Tab, gather, gather_around, turn, www_with};

/// For a worker, before its own script: gives its module a memory with an end (`PAGES_MAX` pages of 64 KiB), and a way
/// to use all of it up.
const MEMORY_WITH_AN_END: &str = "{
  const PAGES_MAX = 4096;
  const MEMORIES = 5;
  const read = (bytes, at) => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++];
      value |= (byte & 127) << shift;
      if (byte < 128) return [value, at];
    }
  };
  const written = (value) => value < 128 ? [value] : [(value & 127) | 128, ...written(value >>> 7)];
  WebAssembly.instantiateStreaming = async (response, imports) => {
    const bytes = new Uint8Array(await response.arrayBuffer());
    let at = 8;
    let [size, body] = read(bytes, at + 1);
    while (bytes[at] !== MEMORIES) {
      at = body + size;
      [size, body] = read(bytes, at + 1);
    }
    if (bytes[body] !== 1 || bytes[body + 1] !== 0) throw new Error('not one memory without an end');
    const [least] = read(bytes, body + 2);
    const memory = [1, 1, ...written(least), ...written(PAGES_MAX)];
    const parts = [
      bytes.subarray(0, at), Uint8Array.of(MEMORIES, memory.length, ...memory), bytes.subarray(body + size),
    ];
    const whole = new Uint8Array(await new Blob(parts).arrayBuffer());
    const made = await WebAssembly.instantiate(whole, imports);
    globalThis.__use_up = () => {
      for (const size of [65536, 1024, 64, 8]) {
        try {
          for (;;) made.instance.exports.__wbindgen_malloc(size, 8);
        } catch {
          // No more of that size.
        }
      }
      return made.instance.exports.memory.buffer.byteLength;
    };
    return made;
  };
}";

fn small(seats_min: u16) -> Small {
    Small {
        seats_min,
        // A module loads meanwhile, with other tests beside it on a slow machine.
        rewind_wait_seconds: 60,
        ..Small::default()
    }
}

/// Name and stages of the one tab in the run.
fn seat(run: &Value) -> (Value, Value) {
    let listed = run["volunteers"].as_array().expect("a list");
    let mut tabs = listed.iter().filter(|one| one["kind"] == "browser");
    let tab = tabs.next().expect("there is a tab");
    assert!(tabs.next().is_none(), "it is there once: {run:#}");
    (tab["name"].clone(), tab["stages"].clone())
}

/// Loads the page again, and holds the tab to having come back as who it was, with the run's newest round.
fn comes_back(community: &mut Community, tab: &mut Tab) {
    community.reach(2).expect("they train");
    let before = seat(&community.host.api().expect("an answer"));
    let round = community.round().expect("an answer");
    tab.page.reload().expect("it loads again");
    tab.stands("now.phase === 'training' && now.microbatches > 0", LOAD_MAX)
        .expect("it goes on by itself");
    // What a run says of itself is made anew now and then: it may tell of the moment before.
    community
        .host
        .wait_until("the same name and seat", LOAD_MAX, |run| {
            seat(run) == before
        })
        .expect("it has the seat it had");
    let joins = tab.sent("join").expect("an answer");
    // The look before it lent knocked, too, under a session of its own.
    let [_, first, second] = joins.as_slice() else {
        panic!("it joined twice: {joins:#?}");
    };
    for part in ["key", "session"] {
        assert_eq!(first[part], second[part], "the same volunteer");
    }
    let kept = second["kept"].as_array().expect("a list");
    let newest = kept.iter().filter_map(|held| held["round"].as_u64()).max();
    assert!(newest >= Some(round), "it brought {newest:?} of {round}");
}

/// Holds the run to never having gone back: a round that is given up leaves a gap in their numbers.
fn never_went_back(community: &mut Community) {
    recovered_within(community, SAME_LOSS_SHARE_MAX).expect("the run is as if nothing happened");
    let run = community.host.api().expect("an answer");
    let listed = run["rounds"].as_array().expect("a list");
    let rounds: Vec<Option<u64>> = listed.iter().map(|one| one["round"].as_u64()).collect();
    let all: Vec<Option<u64>> = (1..=listed.len() as u64).map(Some).collect();
    assert_eq!(rounds, all);
}

fn quiet(page: &mut Page) {
    // Chromium says so of every document that is left while it trains.
    let errors = page.errors().expect("an answer");
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn a_tab_that_is_loaded_again_comes_back_to_its_seat_by_itself() {
    let _turn = turn();
    let small = small(2);
    let mut community = gather(&small, &["anchovy"]).expect("a community gathers");
    // Room for the first stage alone.
    let how = Lend {
        memory_bytes: Some(room::memory_of(&small, 0, 1)),
        ..Lend::default()
    };
    let mut tab = Tab::lend(&community, &how).expect("a tab lends");
    comes_back(&mut community, &mut tab);
    never_went_back(&mut community);
    quiet(&mut tab.page);
}

#[test]
fn a_tab_that_holds_the_whole_model_keeps_it_over_a_reload() {
    let _turn = turn();
    let mut community = gather(&small(1), &[]).expect("a host starts");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    comes_back(&mut community, &mut tab);
    never_went_back(&mut community);
    quiet(&mut tab.page);
}

#[test]
fn a_tab_that_rests_or_was_stopped_does_not_begin_again_by_itself() {
    let _turn = turn();
    let community = gather(&small(1), &[]).expect("a host starts");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    tab.stands("now.microbatches > 0", LOAD_MAX)
        .expect("it trains");
    tab.page.click("button", "Pause").expect("it is there");
    tab.stands("now.phase === 'paused'", LOAD_MAX)
        .expect("it rests");
    tab.page.reload().expect("it loads again");
    tab.page
        .wait_for_role("button", "Check this computer", LOAD_MAX)
        .expect("it asks again");
    assert_eq!(tab.page.worker_count().expect("an answer"), 0);
}

/// Counts how often the page asks the browser not to clear away what it keeps; the answer is yes.
const COUNT_ASKED: &str = "StorageManager.prototype.persist = () => {
  localStorage.__asked = 1 + Number(localStorage.__asked ?? 0);
  return Promise.resolve(true);
}";

#[test]
fn the_browser_is_asked_once_and_not_before_a_click_to_keep_what_is_kept() {
    let _turn = turn();
    let community = gather(&small(1), &[]).expect("a host starts");
    let how = Lend {
        before_scripts: vec![COUNT_ASKED.to_owned()],
        ..Lend::default()
    };
    let mut tab = Tab::visit(&community, &how).expect("a page");
    let asked = |tab: &Tab| tab.page.evaluate("localStorage.__asked ?? 'never'");
    tab.page
        .wait_for_role("button", "Check this computer", LOAD_MAX)
        .expect("the program runs");
    assert_eq!(asked(&tab).expect("an answer"), "never");
    tab.contribute().expect("the tab lends");
    assert_eq!(asked(&tab).expect("an answer"), "1");
    tab.stands("now.microbatches > 0", LOAD_MAX)
        .expect("it trains");
    tab.page.reload().expect("it loads again");
    tab.stands("now.microbatches > 0", LOAD_MAX)
        .expect("it goes on by itself");
    assert_eq!(asked(&tab).expect("an answer"), "1");
}

#[test]
fn a_browser_without_room_says_so_and_trains_on() {
    let _turn = turn();
    let mut community = gather(&small(1), &[]).expect("a host starts");
    let mut tab = Tab::visit(&community, &Lend::default()).expect("a page");
    tab.page.limit_storage(1).expect("an answer");
    tab.contribute().expect("the tab lends");
    tab.page
        .wait_for_text("No copy of your stages is kept on this computer", LOAD_MAX)
        .expect("it says so");
    community.go_on(2).expect("the run goes on");
}

#[test]
fn a_tab_that_slept_is_replaced_and_comes_back_by_itself() {
    let _turn = turn();
    let mut community = gather(&small(2), &["anchovy"]).expect("a community gathers");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    community.reach(2).expect("they train");
    community.join("herring").expect("a spare starts");
    tab.browser.sleep(true).expect("it is there");
    let tabs = |run: &Value| {
        let listed = run["volunteers"].as_array().into_iter().flatten();
        listed.filter(|one| one["kind"] == "browser").count()
    };
    let host = &mut community.host;
    host.wait_until("run without it", LOAD_MAX, |run| tabs(run) == 0)
        .expect("it is missed");
    community.go_on(2).expect("the others go on");
    tab.browser.sleep(false).expect("it is there");
    let host = &mut community.host;
    host.wait_until("run with it", LOAD_MAX, |run| tabs(run) == 1)
        .expect("it takes part again, without a click");
    recovered_within(&mut community, SAME_LOSS_SHARE_MAX).expect("the run is as if it had not");
    tab.check().expect("it says nothing wrong");
}

#[test]
fn a_device_that_runs_out_of_memory_is_opened_again_and_the_run_goes_on() {
    let _turn = turn();
    let www = www_with(MEMORY_WITH_AN_END).expect("the web client is packed");
    let mut community =
        gather_around(www.path(), &small(2), vec![], &["anchovy"]).expect("a community gathers");
    let mut tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    community.reach(2).expect("they train");
    let used = tab.page.evaluate_in_worker(DEVICE, "__use_up()");
    assert_eq!(used.expect("an answer"), 4096 * 65_536, "all of it is used");
    let now = tab.stands("now.phase === 'recovering'", LOAD_MAX);
    let reason = now.expect("it notices")["reason"].to_string();
    assert!(reason.contains("no more memory"), "{reason}");
    tab.stands("now.phase === 'training'", LOAD_MAX)
        .expect("it computes again");
    // Two seats are needed: the other volunteer cannot do it alone.
    community.go_on(2).expect("the run goes on");
}
