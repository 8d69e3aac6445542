//! Follows the run: hears of each step, asks for the whole report when a round is done, and renews what the host wrote.
//!
//! Nothing is asked for while the page is hidden. Where the host is away, the page says so and the browser tries
//! again by itself.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use leptos::prelude::*;
use shared::wire::report::{RunNews, RunReport};
use wasm_bindgen::JsCast;
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{EventSource, MessageEvent, Response};

use super::state::State;
use crate::js::Listener;
use crate::page::{markup, words};

/// At least so long between two requests for the whole report, in milliseconds.
const REQUEST_EVERY_MS: f64 = 1_000.0;
/// What no event tells (who waits for what, what was accepted) is at most so old, in milliseconds.
const REPORT_AGE_MAX_MS: f64 = 10_000.0;

/// Begins to follow, for as long as the page lives.
pub(super) fn follow(state: State) {
    renew_parts(state);
    let follower = Rc::new(Follower {
        state,
        asked_at_ms: Cell::new(f64::NEG_INFINITY),
        busy: Cell::new(false),
    });
    follower.ask();
    // Fails only for an address that is none.
    let Ok(events) = EventSource::new("/api/run/events") else {
        return;
    };
    let hears = Rc::clone(&follower);
    let news = Listener::new(&events, "message", move |event| {
        let event: MessageEvent = event.unchecked_into();
        if let Some(text) = event.data().as_string() {
            hears.hear(&text);
        }
    });
    let lost = Listener::new(&events, "error", move |_| state.host_away.set(true));
    let shown = Listener::new(&document(), "visibilitychange", move |_| follower.ask());
    // They live as long as the page does.
    std::mem::forget((events, news, lost, shown));
}

struct Follower {
    state: State,
    asked_at_ms: Cell<f64>,
    busy: Cell<bool>,
}

impl Follower {
    fn hear(self: &Rc<Self>, text: &str) {
        self.state.host_away.set(false);
        let Ok(news) = serde_json::from_str::<RunNews>(text) else {
            return;
        };
        let mut whole = false;
        self.state.report.update(|report| {
            if let Some(report) = report {
                whole = Arc::make_mut(report).take(news);
            }
        });
        if !whole || now_ms() - self.asked_at_ms.get() > REPORT_AGE_MAX_MS {
            self.ask();
        }
    }

    /// Asks for the whole report, unless that is under way already.
    fn ask(self: &Rc<Self>) {
        // A page that was opened in the background has its first report when it is looked at.
        let needless = document().hidden() && self.state.report.with_untracked(Option::is_some);
        if needless || self.busy.replace(true) {
            return;
        }
        let own = Rc::clone(self);
        spawn_local(async move {
            let early_ms = REQUEST_EVERY_MS - (now_ms() - own.asked_at_ms.get());
            if early_ms > 0.0 {
                super::state::pause(early_ms).await;
            }
            own.asked_at_ms.set(now_ms());
            match report().await {
                Some(report) => {
                    own.state.host_away.set(false);
                    own.state.report.set(Some(Arc::new(report)));
                }
                None => own.state.host_away.set(true),
            }
            own.busy.set(false);
        });
    }
}

fn now_ms() -> f64 {
    js_sys::Date::now()
}

async fn report() -> Option<RunReport> {
    let response = JsFuture::from(window().fetch_with_str("/api/run")).await;
    let response: Response = response.ok()?.unchecked_into();
    if !response.ok() {
        return None;
    }
    let text = JsFuture::from(response.text().ok()?).await.ok()?;
    serde_json::from_str(&text.as_string()?).ok()
}

/// Renews the parts of the page that the host wrote, each when it has changed.
fn renew_parts(state: State) {
    let shown: Rc<RefCell<Vec<String>>> = Rc::default();
    Effect::new(move |_| {
        let Some(report) = state.report.get() else {
            return;
        };
        let mut shown = shown.borrow_mut();
        for (index, (name, html)) in markup::parts(&report).into_iter().enumerate() {
            if shown.get(index) == Some(&html) {
                continue;
            }
            let found = document().query_selector(&format!("[data-part={name}]"));
            if let Ok(Some(element)) = found {
                element.set_inner_html(&html);
            }
            if index < shown.len() {
                shown[index] = html;
            } else {
                shown.push(html);
            }
        }
    });
}

/// What is said while the host does not answer.
pub(super) fn notice(state: State) -> impl IntoView {
    view! {
        <p class="notice" role="status">
            {move || state.host_away.get().then_some(words::HOST_AWAY)}
        </p>
    }
}
