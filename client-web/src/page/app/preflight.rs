//! What this computer can do and what it would cost, before anything is promised.

use leptos::prelude::*;

use super::options::options;
use super::state::State;
use crate::messages::Verdict;
use crate::page::words;

pub(super) fn preflight(state: State) -> impl IntoView {
    let rows = Memo::new(move |_| {
        let report = state.report.get()?;
        let (found, settings) = (state.found.get(), state.settings.get());
        Some(words::preflight(&found, &settings, &report.model))
    });
    let ready = Memo::new(move |_| {
        state
            .found
            .with(|found| matches!(found.verdict, Some(Verdict::CanHelp { .. })))
    });
    let failed = Memo::new(move |_| {
        state
            .found
            .with(|found| matches!(found.verdict, Some(Verdict::Cannot { .. })))
    });
    view! {
        <ul class="rows">
            {move || {
                rows.get().into_iter().flatten().map(|row| view! {
                    <li class=row.mark.word()>
                        <span class="mark" role="img" aria-label=row.mark.word()></span>
                        <b>{row.what}</b>
                        <span>{row.text}</span>
                    </li>
                }).collect_view()
            }}
        </ul>
        <div class="buttons">
            <button
                class="primary"
                type="button"
                disabled=move || !ready.get()
                on:click=move |_| state.contribute()
            >
                "Contribute"
            </button>
            <Show when=move || failed.get()>
                <button type="button" on:click=move |_| state.look()>
                    "Look again"
                </button>
            </Show>
            <button type="button" on:click=move |_| state.leave()>
                "Not now"
            </button>
        </div>
        <p class="soft">
            "You can pause, finish or stop at any moment; stopping brings the work here to zero within one microbatch."
        </p>
        <h3>"What you lend"</h3>
        {options(state, false)}
    }
}
