//! The cursor over the loss curve: by pointer, by touch, by keys.
//!
//! For a screen reader it is a slider over the rounds, which says each round's losses.

use leptos::prelude::*;
use wasm_bindgen::JsCast;
use web_sys::{HtmlElement, KeyboardEvent, PointerEvent};

use super::state::State;
use crate::page::chart::{BOTTOM, Curve, HEIGHT, Point, TOP, WIDTH};
use crate::page::format::{count, nats};

pub(super) fn cursor(state: State) -> impl IntoView {
    let curve = Memo::new(move |_| {
        let report = state.report.get()?;
        Curve::new(&report.rounds, report.model.context)
    });
    // By round, not by place: the curve grows while someone looks at it.
    let chosen = RwSignal::new(None::<usize>);
    let point = move || {
        let index = chosen.get()?;
        curve.with(|curve| {
            let points = &curve.as_ref()?.points;
            points.get(index.min(points.len() - 1)).copied()
        })
    };
    let point = Memo::new(move |_| point());
    let last = move || curve.with(|curve| curve.as_ref().map_or(0, |curve| curve.points.len() - 1));
    let follow = move |event: PointerEvent| {
        let target = event
            .current_target()
            .and_then(|target| target.dyn_into::<HtmlElement>().ok());
        let Some(width) = target
            .map(|target| target.client_width())
            .filter(|width| *width > 0)
        else {
            return;
        };
        let x = f64::from(event.offset_x()) / f64::from(width) * WIDTH;
        chosen.set(curve.with(|curve| curve.as_ref().map(|curve| curve.nearest(x))));
    };
    let press = move |event: KeyboardEvent| {
        let at = chosen.get_untracked().unwrap_or_else(last);
        let to = match event.key().as_str() {
            "ArrowLeft" | "ArrowDown" => at.saturating_sub(1),
            "ArrowRight" | "ArrowUp" => at + 1,
            "PageDown" => at.saturating_sub(10),
            "PageUp" => at + 10,
            "Home" => 0,
            "End" => usize::MAX,
            "Escape" => return chosen.set(None),
            _ => return,
        };
        event.prevent_default();
        chosen.set(Some(to.min(last())));
    };
    let first_round = move || {
        curve.with(|curve| {
            curve
                .as_ref()
                .map(|curve| curve.points[0].round.to_string())
        })
    };
    let last_round = move || {
        let last = last();
        curve.with(|curve| {
            curve
                .as_ref()
                .map(|curve| curve.points[last].round.to_string())
        })
    };
    let told = move || {
        let last = last();
        let shown = point
            .get()
            .or_else(|| curve.with(|curve| curve.as_ref().map(|curve| curve.points[last])));
        shown.map(|point| spoken(&point))
    };
    view! {
        <Show when=move || curve.with(Option::is_some)>
            <div
                class="cursor"
                role="slider"
                tabindex="0"
                aria-label="Rounds on the loss curve"
                aria-valuemin=first_round
                aria-valuemax=last_round
                aria-valuenow=move || point.get().map_or_else(last_round, |point| Some(point.round.to_string()))
                aria-valuetext=told
                on:pointermove=follow
                on:pointerdown=follow
                on:pointerleave=move |_| chosen.set(None)
                on:focus=move |_| if chosen.get_untracked().is_none() { chosen.set(Some(last())) }
                on:blur=move |_| chosen.set(None)
                on:keydown=press
            >
                {move || point.get().map(|point| mark(&point, curve))}
            </div>
        </Show>
    }
}

fn mark(point: &Point, curve: Memo<Option<Curve>>) -> impl IntoView + use<> {
    let Point { x, y, .. } = *point;
    let held_out = point.validation.and_then(|loss| {
        curve.with(|curve| curve.as_ref().map(|curve| (curve.height(loss), loss)))
    });
    // The tip stays beside the rule and inside the picture.
    let right = x > WIDTH * 0.6;
    let percent = if right {
        100.0 * (1.0 - x / WIDTH)
    } else {
        100.0 * x / WIDTH
    };
    let place = format!("calc({percent:.2}% + 12px)");
    let (left, right) = if right {
        (None, Some(place))
    } else {
        (Some(place), None)
    };
    view! {
        <svg viewBox=format!("0 0 {WIDTH} {HEIGHT}") aria-hidden="true">
            <path class="rule" d=format!("M{x:.1} {TOP}V{BOTTOM}") />
            <circle cx=format!("{x:.1}") cy=format!("{y:.1}") r="5" />
            {held_out.map(|(y, _)| view! { <circle class="held-out" cx=format!("{x:.1}") cy=format!("{y:.1}") r="5" /> })}
        </svg>
        <div class="tip" aria-hidden="true" style:left=left style:right=right>
            <b>{format!("Round {}", point.round)}</b>
            {format!("loss {}", nats(Some(point.loss)))}
            {held_out.map(|(_, loss)| view! { <br/> {format!("held out {}", nats(Some(loss)))} })}
            <br/>
            {format!("{} tokens", count(point.tokens))}
        </div>
    }
}

fn spoken(point: &Point) -> String {
    let held_out = point
        .validation
        .map(|loss| format!(", {} on held-out text", nats(Some(loss))))
        .unwrap_or_default();
    format!(
        "Round {}: loss {}{held_out}, after {} tokens",
        point.round,
        nats(Some(point.loss)),
        count(point.tokens)
    )
}
