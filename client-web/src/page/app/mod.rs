//! The page's program: it follows the run, shows the loss curve under a cursor, and lets a person lend the computer.
//!
//! The host's HTML stands already. [`follow`] keeps its parts as new as the run; three places of it are leptos's:
//! the [`cursor`] over the curve, the [`panel`] in which a person lends, and the box of [`generate`], where the model is asked to write. What a person wants and what
//! the worker tells meet in [`state`]; [`kept`] is what the browser keeps between visits, and the lock between tabs.
//!
//! Invariant: the worker is loaded after a click and not before, and at most one tab of a browser has one at work.

mod cursor;
mod follow;
mod generate;
mod kept;
mod options;
mod panel;
mod preflight;
mod state;
mod work;

use leptos::mount::mount_to;
use leptos::prelude::*;
use wasm_bindgen::JsCast;
use web_sys::{Document, HtmlElement};

use crate::messages::{Broken, ToWorker};
use crate::page::markup::escape;
use crate::page::words;
use crate::{broken, js};
use state::State;

/// Takes the page over.
pub fn start() {
    broken::install("page", |broken| broke(&broken));
    // Signals and effects belong to a mounted view: the first one holds them all.
    mount("notice", || {
        let state = State::new();
        follow::follow(state);
        mount("cursor", move || cursor::cursor(state));
        mount("lend", move || panel::panel(state));
        mount("generate", move || generate::form(state));
        follow::notice(state)
    });
}

fn document() -> Document {
    leptos::prelude::document()
}

/// Puts a view in the place of what the host wrote into the element called `id`.
fn mount<V: IntoView + 'static>(id: &str, view: impl FnOnce() -> V + 'static) {
    // A host of another version may serve another page: then the rest of it still works.
    let Some(element) = document().get_element_by_id(id) else {
        return;
    };
    element.set_inner_html("");
    mount_to(element.unchecked_into::<HtmlElement>(), view).forget();
}

/// This module broke. Nothing of it runs any more but this: the words are put there by hand.
fn broke(broken: &Broken) {
    if let Some(element) = document().get_element_by_id("lend") {
        element.set_inner_html(&format!(
            "<h2 id=\"lend-title\">{}</h2><p role=\"alert\">{}</p><label for=\"report\">{}</label>\
             <textarea id=\"report\" rows=\"8\" readonly>{}</textarea><p><a href=\"{}\">Load the page again</a></p>",
            words::BROKEN.title,
            words::BROKEN.text,
            words::REPORT,
            escape(&broken.report),
            escape(&js::get(&leptos::prelude::window().location(), "href").as_string().unwrap_or_default()),
        ));
    }
    // The seat is given up; without this page the worker could not hear its neighbours anyway.
    state::tell(ToWorker::Stop);
}
