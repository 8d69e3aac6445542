//! The panel in which a person lends: a heading, one sentence of how things stand, and what can be done about it.
//!
//! Heading and sentence stay the same elements through all of it, so that a screen reader hears the sentence change
//! and the focus has a place to return to.

use leptos::prelude::*;
use web_sys::HtmlTextAreaElement;

use super::preflight::preflight;
use super::state::{Panel, State};
use super::work::work;
use crate::messages::{Broken, Ended, Phase};
use crate::page::words::{self, Words};

pub(super) fn panel(state: State) -> impl IntoView {
    let words = Memo::new(move |_| said(state));
    let heading = NodeRef::<leptos::html::H2>::new();
    // What was clicked is gone with the panel that it changed: the focus goes to the new heading.
    Effect::new(move |before: Option<Panel>| {
        let panel = state.panel.get();
        let changed = before.is_some_and(|before| kind(&before) != kind(&panel));
        if let Some(heading) = heading.get().filter(|_| changed) {
            drop(heading.focus());
        }
        panel
    });
    // Read aloud when its sense changes, not at each step.
    let spoken = Memo::new(move |before: Option<&String>| {
        let now = words.get().status;
        match before {
            Some(before) if words::sense(before) == words::sense(&now) => before.clone(),
            _ => now,
        }
    });
    let body = Memo::new(move |_| (kind(&state.panel.get()), state.over()));
    view! {
        <h2 id="lend-title" tabindex="-1" node_ref=heading>
            {move || words.get().title}
        </h2>
        <Show when=move || !words.get().text.is_empty()>
            <p>{move || words.get().text}</p>
        </Show>
        <p class=move || format!("reason {}", words.get().look)>
            <span class="dot" aria-hidden="true"></span>
            <span aria-hidden="true">{move || words.get().status}</span>
            <span class="aside" role="status">{spoken}</span>
        </p>
        {move || {
            // Drawn anew when the kind of panel changes, not with each snapshot.
            body.get();
            match state.panel.get_untracked() {
                Panel::First if state.over() => ().into_any(),
                Panel::First => first(state).into_any(),
                Panel::Barred(words) => barred(state, words).into_any(),
                Panel::Preflight => preflight(state).into_any(),
                Panel::Work => work(state).into_any(),
                Panel::Ended(end) => ended(state, &end).into_any(),
                Panel::Broken(broken) => report(state, broken).into_any(),
            }
        }}
    }
}

/// Panels of one kind keep their elements.
fn kind(panel: &Panel) -> u8 {
    match panel {
        Panel::First => 0,
        Panel::Barred(_) => 1,
        Panel::Preflight => 2,
        Panel::Work => 3,
        Panel::Ended(_) => 4,
        Panel::Broken(_) => 5,
    }
}

/// Heading, meaning and sentence of a moment.
#[derive(Clone, PartialEq)]
struct Said {
    title: String,
    text: String,
    status: String,
    look: &'static str,
}

impl From<Words> for Said {
    fn from(words: Words) -> Self {
        Self {
            title: words.title.to_owned(),
            text: words.text.to_owned(),
            status: words.status.to_owned(),
            look: "",
        }
    }
}

fn said(state: State) -> Said {
    match state.panel.get() {
        Panel::First if state.over() => words::RUN_OVER.into(),
        Panel::First => words::FIRST.into(),
        Panel::Barred(words) => words.into(),
        Panel::Preflight => state.found.with(|found| Said {
            title: words::PREFLIGHT.title.to_owned(),
            text: words::PREFLIGHT.text.to_owned(),
            status: found
                .verdict
                .as_ref()
                .map_or_else(|| words::PREFLIGHT.status.to_owned(), words::verdict),
            look: if found.verdict.is_some() {
                ""
            } else {
                "working"
            },
        }),
        Panel::Work => state.snapshot.with(|snapshot| Said {
            title: words::phase(snapshot.phase).to_owned(),
            text: String::new(),
            status: if state.stopping.get() {
                words::STOPPING.to_owned()
            } else {
                words::reason(snapshot)
            },
            look: match snapshot.phase {
                Phase::Training | Phase::HostAway | Phase::Finishing => "training",
                Phase::Paused | Phase::Spare => "paused",
                Phase::Preparing | Phase::Joining | Phase::Gathering | Phase::Recovering => {
                    "working"
                }
            },
        }),
        Panel::Ended(end) => {
            let (title, text) = words::ended(&end);
            Said {
                title: title.to_owned(),
                text,
                ..words::FIRST.into()
            }
        }
        Panel::Broken(_) => words::BROKEN.into(),
    }
}

fn first(state: State) -> impl IntoView {
    view! {
        <button class="primary wide" type="button" on:click=move |_| state.check()>
            {words::CHECK}
        </button>
    }
}

fn barred(state: State, words: Words) -> impl IntoView {
    (words == words::OTHER_TAB).then(|| {
        view! {
            <button class="wide" type="button" on:click=move |_| state.contribute()>
                "Try again"
            </button>
        }
    })
}

fn ended(state: State, end: &Ended) -> impl IntoView + use<> {
    // What was accepted is told once more, where there was a seat.
    let done = state.snapshot.with_untracked(|snapshot| {
        (snapshot.accepted.microbatches > 0).then(|| words::accepted(&snapshot.accepted))
    });
    let again = !matches!(end, Ended::RunOver);
    view! {
        {done.map(|done| view! { <p class="proof">{done}</p> })}
        {again.then(|| view! {
            <div class="buttons">
                <button class="primary" type="button" on:click=move |_| state.contribute()>
                    "Contribute again"
                </button>
                <button type="button" on:click=move |_| state.leave()>
                    "Back"
                </button>
            </div>
        })}
    }
}

fn report(state: State, broken: Broken) -> impl IntoView {
    let area = NodeRef::<leptos::html::Textarea>::new();
    let copied = RwSignal::new(false);
    let copy = move |_| {
        let Some(area) = area.get() else { return };
        let area: &HtmlTextAreaElement = &area;
        area.select();
        // Where the clipboard is not allowed, the text is selected: the keyboard copies it.
        let clipboard = window().navigator().clipboard();
        let written = clipboard.write_text(&area.value());
        leptos::task::spawn_local(async move {
            copied.set(wasm_bindgen_futures::JsFuture::from(written).await.is_ok());
        });
    };
    view! {
        <label for="report">{words::REPORT}</label>
        <textarea id="report" rows="8" readonly node_ref=area>{broken.report}</textarea>
        <div class="buttons">
            <button type="button" on:click=copy>
                {move || if copied.get() { "Copied" } else { "Copy the report" }}
            </button>
            <button class="primary" type="button" on:click=move |_| state.contribute()>
                "Contribute again"
            </button>
        </div>
    }
}
