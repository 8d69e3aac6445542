//! A person asks the model to write, on the page of a tab that is part of the pipeline: tokens come while all train on.
//!
//! Needs the built web client (`cargo xtask web`).

use std::time::Duration;

use serde_json::Value;
use tests::community::{Community, ROUND_WAIT_MAX, Small};
use tests::tab::{LOAD_MAX, Lend, Tab, gather, turn};

/// For a text of some hundred tokens to be written, each on its way through two busy seats.
const TEXT_MAX: Duration = Duration::from_secs(180);
const PROMPT: &str = "The ";
/// What is asked for, each token being a byte.
const TOKENS: usize = 200;
/// What came after the prompt, and how the page says that it stands.
const WRITTEN: &str = "document.querySelector('#generate .written span:last-child').textContent";
const STATUS: &str = "document.querySelector('#generate [role=status]').textContent";

/// A tab and a headless volunteer, each of which has a seat.
fn lending() -> (Community, Tab) {
    let mut community = gather(&Small::default(), &["anchovy"]).expect("a community gathers");
    let tab = Tab::lend(&community, &Lend::default()).expect("a tab lends");
    let run = community.reach(1).expect("they train");
    let listed = run["volunteers"].as_array().expect("a list");
    let is_seated = |one: &&Value| one["kind"] == "browser" && one["stages"].is_object();
    assert_eq!(listed.iter().filter(is_seated).count(), 1, "{run:#}");
    (community, tab)
}

/// Types a prompt and sends it, as a person does.
fn ask(tab: &mut Tab) {
    tab.page.click("button", "Write").expect("it can be asked");
    tab.page
        .wait_for_role("button", "Stop writing", LOAD_MAX)
        .expect("it was asked");
}

fn type_prompt(tab: &mut Tab) {
    tab.page
        .click("textbox", "Have it go on from")
        .expect("it is there");
    for letter in PROMPT.chars() {
        tab.page.press(&letter.to_string()).expect("it is typed");
    }
}

fn wait_for_words(tab: &mut Tab, bytes: usize) {
    let script = format!("{WRITTEN}.length >= {bytes}");
    tab.page
        .wait_for("words", TEXT_MAX, &script)
        .expect("the volunteers write");
}

fn shown(tab: &Tab, script: &str) -> String {
    let shown = tab.page.evaluate(script).expect("an answer");
    shown.as_str().expect("text").to_owned()
}

/// Steps that the run has done, rounds before others.
fn progress(community: &Community) -> (u64, u64) {
    let run = community.host.api().expect("an answer");
    let number = |name: &str| run[name].as_u64().expect("a number");
    (number("round"), number("steps"))
}

#[test]
fn a_tab_in_the_pipeline_shows_what_volunteers_write_while_all_train_on() {
    let _turn = turn();
    let (community, mut tab) = lending();
    type_prompt(&mut tab);
    ask(&mut tab);
    wait_for_words(&mut tab, 1);
    let before = progress(&community);
    let microbatches = "__told.snapshot.microbatches";
    let computed = tab.page.evaluate(microbatches).expect("an answer");
    let over = format!("{STATUS}.startsWith('Written: {TOKENS}')");
    tab.page
        .wait_for("whole text", TEXT_MAX, &over)
        .expect("all of it is written");
    let after = progress(&community);
    assert!(after > before, "no step since {before:?}: {after:?}");
    let more = format!("{microbatches} > {computed}");
    tab.page
        .wait_for("more microbatches", LOAD_MAX, &more)
        .expect("the tab trained, too");
    let text = shown(&tab, WRITTEN);
    let letters = text.bytes().filter(u8::is_ascii_lowercase).count();
    assert!(letters > 60, "the model was taught letters: {text}");
    assert!(tab.page.has("button", "Write").expect("an answer"));
    tab.check().expect("it says nothing wrong");
}

#[test]
fn stop_ends_a_text_keeps_its_words_and_lets_another_be_asked_for() {
    let _turn = turn();
    let (mut community, mut tab) = lending();
    type_prompt(&mut tab);
    // The host gives an address two texts at a time: one that was not ended would keep the third from beginning.
    for _ in 0..3 {
        ask(&mut tab);
        wait_for_words(&mut tab, 10);
        tab.page
            .click("button", "Stop writing")
            .expect("it can be stopped");
        let stopped = format!("{STATUS}.startsWith('Stopped.')");
        tab.page
            .wait_for("stop", LOAD_MAX, &stopped)
            .expect("it says that it stopped");
        let text = shown(&tab, WRITTEN);
        assert!((10..TOKENS).contains(&text.len()), "{text}");
    }
    let text = shown(&tab, WRITTEN);
    community.go_on(1).expect("they train on");
    assert_eq!(shown(&tab, WRITTEN), text, "nothing comes after Stop");
    tab.check().expect("it says nothing wrong");
}

#[test]
fn a_page_says_why_nobody_writes_and_how_a_text_ended_early() {
    let _turn = turn();
    let mut community = gather(&Small::default(), &[]).expect("a host starts");
    let mut tab = Tab::visit(&community, &Lend::default()).expect("a page");
    tab.page
        .wait_for_text("No volunteers hold the whole model", LOAD_MAX)
        .expect("it says so");
    assert!(!tab.page.has("button", "Write").expect("an answer"));
    for name in ["anchovy", "herring"] {
        community.join(name).expect("a volunteer starts");
    }
    community.reach(1).expect("they train");
    tab.page
        .wait_for_role("button", "Write", ROUND_WAIT_MAX)
        .expect("now it can be asked");
    type_prompt(&mut tab);
    ask(&mut tab);
    wait_for_words(&mut tab, 1);
    community.host.program().kill().expect("it is killed");
    let broken_off = format!("{STATUS}.startsWith('The host stopped in the middle')");
    tab.page
        .wait_for("end", LOAD_MAX, &broken_off)
        .expect("it says so");
    assert!(!shown(&tab, WRITTEN).is_empty(), "what came stays");
}
