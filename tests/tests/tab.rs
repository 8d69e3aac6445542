//! Tabs of real headless Chromium as volunteers, by the page that the host serves, on the processor's path.
//!
//! A person opens the page, looks at what it would cost, and lends; then the run is held against one of headless
//! volunteers. Needs the built web client (`cargo xtask web`).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tests::browser::{Browser, Options, Page};
use tests::community::{Community, Small};
use tests::{judge, paths};

/// For a module to load and compile, with other tests beside it on a slow machine.
const LOAD_MAX: Duration = Duration::from_secs(90);
/// A tab's losses are those of headless volunteers, within this share.
const LOSS_SHARE_MAX: f64 = 1e-3;

/// One test at a time: each has several browsers, and two cores are few for one.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A browser with one tab that contributes. Its fields end in this order.
struct Tab {
    page: Page,
    browser: Browser,
}

impl Tab {
    /// Opens the run's page, looks and lends, as a person does.
    fn lend(community: &Community) -> Self {
        let browser = Browser::start(&Options::default()).expect("Chromium starts");
        let url = format!("{}?device=cpu", community.host.url());
        let mut page = browser.open(&url).expect("the page loads");
        for button in ["Check this computer", "Contribute"] {
            page.wait_for_role("button", button, LOAD_MAX)
                .expect("the page offers it");
            page.click("button", button).expect("it can be clicked");
        }
        page.wait_for_role("button", "Stop", LOAD_MAX)
            .expect("the tab contributes");
        Self { page, browser }
    }

    fn check(&mut self) {
        let errors = self.page.errors().expect("an answer");
        assert!(errors.is_empty(), "{errors:?}");
    }
}

/// A run of that many seats at least, with a page for tabs.
fn gather(seats_min: u16, names: &[&str]) -> Community {
    let small = Small {
        seats_min,
        ..Small::default()
    };
    let www = paths::www().expect("the web client is built");
    let arguments = vec!["--www".to_owned(), www.display().to_string()];
    Community::gather_with(&small, arguments, names).expect("a community gathers")
}

fn recovered(community: &mut Community) {
    judge::recovered_within(community, LOSS_SHARE_MAX).expect("the run is as if all were headless");
}

#[test]
fn a_tab_between_headless_volunteers_trains_as_they_do() {
    let _turn = turn();
    let mut community = gather(3, &["anchovy", "herring"]);
    let mut tab = Tab::lend(&community);
    recovered(&mut community);
    tab.page
        .wait_for_text("accepted", LOAD_MAX)
        .expect("the page shows what was accepted");
    tab.check();
}

#[test]
fn two_tabs_train_alone() {
    let _turn = turn();
    let mut community = gather(2, &[]);
    let mut tabs = [Tab::lend(&community), Tab::lend(&community)];
    recovered(&mut community);
    tabs.iter_mut().for_each(Tab::check);
}

#[test]
fn a_tab_that_is_gone_in_mid_round_is_replaced() {
    let _turn = turn();
    let mut community = gather(2, &["anchovy"]);
    let tab = Tab::lend(&community);
    community.reach(2).expect("they train");
    community.join("herring").expect("a spare starts");
    tab.browser.kill();
    drop(tab.page);
    recovered(&mut community);
}
