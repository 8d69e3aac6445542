//! A volunteer at work: what it did, its place in the pipe, its figures, and the ways to rest or leave.

use leptos::prelude::*;

use super::options::options;
use super::state::State;
use crate::messages::{Neighbour, Phase, Seat, Snapshot};
use crate::page::format::{UNKNOWN, bytes, count, nats};
use crate::page::words;

pub(super) fn work(state: State) -> impl IntoView {
    let snapshot = state.snapshot;
    let read = move |part: fn(&Snapshot) -> String| move || snapshot.with(part);
    let seat = Memo::new(move |_| snapshot.with(|snapshot| snapshot.seat.clone()));
    let names = Memo::new(move |_| {
        let seat = seat.get()?;
        let report = state.report.get()?;
        Some(words::neighbours(&report.volunteers, &seat))
    });
    let finishing = move || snapshot.with(|snapshot| snapshot.phase == Phase::Finishing);
    view! {
        // Before whatever grows: a button must not move away from under a finger.
        <div class="buttons">
            <button
                type="button"
                disabled=move || finishing() || state.stopping.get()
                on:click=move |_| state.pause(!state.pausing.get_untracked())
            >
                {move || if state.pausing.get() { "Resume" } else { "Pause" }}
            </button>
            <button
                type="button"
                disabled=move || finishing() || state.stopping.get()
                on:click=move |_| state.finish()
            >
                "Finish"
            </button>
            <button
                class="alarm"
                type="button"
                disabled=move || state.stopping.get()
                on:click=move |_| state.stop()
            >
                "Stop"
            </button>
        </div>
        <p class="soft">"Finish leaves after this round, without loss. Stop leaves now."</p>
        <p class="proof">{read(|snapshot| words::accepted(&snapshot.accepted))}</p>
        {move || seat.get().map(|seat| pipe(&seat, names.get()))}
        <dl class="list">
            <div><dt>"Computes on"</dt><dd>{read(|snapshot| or_unknown(&snapshot.device))}</dd></div>
            <div><dt>"Speed"</dt><dd>{read(|snapshot| {
                let rate = snapshot.rates.tokens_per_second;
                rate.map_or_else(|| UNKNOWN.to_owned(), |rate| format!("{}\u{a0}tokens/s", count(rate)))
            })}</dd></div>
            <div><dt>"Microbatches computed"</dt><dd>{read(|snapshot| count(snapshot.microbatches as f64))}</dd></div>
            <div><dt>"Loss"</dt><dd>{move || {
                // The seats in the middle are not told the loss of each step: the host is.
                let own = snapshot.with(|snapshot| snapshot.loss);
                nats(own.or_else(|| state.report.with(|report| report.as_ref()?.loss)))
            }}</dd></div>
            <div><dt>"Sent, received"</dt><dd>{read(|snapshot| {
                let traffic = snapshot.traffic;
                format!("{}, {}", bytes(traffic.up_bytes as f64), bytes(traffic.down_bytes as f64))
            })}</dd></div>
            <div><dt>"Today, both ways"</dt><dd>{read(|snapshot| bytes(snapshot.traffic.today_bytes as f64))}</dd></div>
        </dl>
        {move || snapshot.with(|snapshot| words::saved(&snapshot.traffic)).map(|saved| view! { <p class="soft">{saved}</p> })}
        {move || snapshot.with(|snapshot| words::hidden(&snapshot.rates)).map(|hidden| view! { <p class="soft">{hidden}</p> })}
        {move || snapshot.with(|snapshot| snapshot.not_kept.as_deref().map(words::not_kept)).map(|told| view! { <p class="soft">{told}</p> })}
        <h3>"What you lend"</h3>
        {options(state, true)}
    }
}

fn or_unknown(text: &str) -> String {
    if text.is_empty() {
        UNKNOWN.to_owned()
    } else {
        text.to_owned()
    }
}

/// My seat and my neighbours, from the text to the loss.
fn pipe(seat: &Seat, names: Option<[Option<String>; 2]>) -> impl IntoView + use<> {
    let own = words::seat(seat);
    let [before, after] = names.unwrap_or_default();
    let before = before.unwrap_or_else(|| "The volunteer before you".to_owned());
    let after = after.unwrap_or_else(|| "The volunteer after you".to_owned());
    let before = end(
        seat.previous.as_ref().map(|neighbour| (neighbour, before)),
        "The run’s text",
        "the pipe begins with you",
    );
    let after = end(
        seat.next.as_ref().map(|neighbour| (neighbour, after)),
        "The loss",
        "the pipe ends with you",
    );
    view! {
        <h3>"Your place in the pipe"</h3>
        <ol class="pipe">
            {before}
            <li class="own"><b>"You"</b><span>{own}</span></li>
            {after}
        </ol>
    }
}

/// A neighbour, or what lies beyond the pipe's end.
fn end(neighbour: Option<(&Neighbour, String)>, beyond: &str, why: &str) -> impl IntoView + use<> {
    let (class, name, link) = match neighbour {
        None => ("end", beyond.to_owned(), why.to_owned()),
        Some((neighbour, name)) => {
            let (class, link) = words::link(neighbour.relayed);
            (class, name, link.to_owned())
        }
    };
    view! { <li class=class><b>{name}</b><span>{link}</span></li> }
}
