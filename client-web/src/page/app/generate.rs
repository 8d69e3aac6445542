//! The box in which a person asks the run's volunteers to go on with a text.
//!
//! The answer is read as it comes; Stop, and leaving the page, abort the request, which is how the host learns that nobody
//! wants more. What the model wrote is text, never markup. What is said of it is decided in [`crate::page::generate`].

use leptos::prelude::*;
use shared::wire::generate::GenerateRequest;
use wasm_bindgen::JsCast;
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{AbortController, AbortSignal, Headers, KeyboardEvent, RequestInit, Response};

use super::state::State;
use crate::js::{Body, Listener};
use crate::page::generate::{
    BROKEN_OFF, STOPPED, Text, UNREACHABLE, barrier, limit, refused, request,
};

/// A text and the way to end it.
#[derive(Clone, Copy)]
struct Asking {
    text: RwSignal<Text>,
    /// What was wrong with a prompt that was not sent.
    fault: RwSignal<String>,
    under_way: StoredValue<Option<AbortController>, LocalStorage>,
}

pub(super) fn form(state: State) -> impl IntoView {
    let asking = Asking {
        text: RwSignal::new(Text::default()),
        fault: RwSignal::new(String::new()),
        under_way: StoredValue::new_local(None),
    };
    let left = Listener::new(&window(), "pagehide", move |_| asking.stop());
    // It lives as long as the page does.
    std::mem::forget(left);
    let prompt = RwSignal::new(String::new());
    let barrier = Memo::new(move |_| {
        let report = state.report.get()?;
        barrier(&report)
    });
    let limit = Memo::new(move |_| state.report.get().map(|report| limit(&report.data)));
    let shown = Memo::new(move |_| {
        state
            .report
            .with(|report| report.as_ref().is_some_and(|report| report.takes_prompts))
    });
    let is_busy = Memo::new(move |_| asking.text.with(Text::is_busy));
    let is_barred = move || barrier.get().is_some() && !is_busy.get();
    let submit = move || {
        if is_busy.get_untracked() {
            asking.stop();
        } else if let Some(report) = state.report.get_untracked()
            && barrier.get_untracked().is_none()
        {
            let asked = prompt.with_untracked(|prompt| request(prompt, &report.data));
            asking.ask(asked);
        }
    };
    let press = move |event: KeyboardEvent| {
        if event.key() == "Enter" && (event.ctrl_key() || event.meta_key()) {
            event.prevent_default();
            if !is_busy.get_untracked() {
                submit();
            }
        }
    };
    let status = move || {
        let fault = asking.fault.get();
        if fault.is_empty() {
            asking.text.with(|text| text.status().to_owned())
        } else {
            fault
        }
    };
    let has_text = Memo::new(move |_| asking.text.with(|text| !text.prompt().is_empty()));
    view! {
        {move || barrier.get().map(|why| view! { <p class="soft">{why}</p> })}
        <Show when=move || shown.get()>
            <form
                class="ask"
                on:submit=move |event| {
                    event.prevent_default();
                    submit();
                }
            >
                <label for="prompt">"Have it go on from"</label>
                <textarea
                    id="prompt"
                    rows="3"
                    aria-describedby="prompt-limit"
                    prop:value=move || prompt.get()
                    on:input=move |event| prompt.set(event_target_value(&event))
                    on:keydown=press
                ></textarea>
                <small id="prompt-limit">{limit} " Ctrl+Enter sends it; whoever hosts and trains this run can read it."</small>
                // One element in both roles: the focus stays where it was.
                <button type="submit" class:primary=move || !is_busy.get() disabled=is_barred>
                    {move || if is_busy.get() { "Stop writing" } else { "Write" }}
                </button>
            </form>
            <p class="soft" role="status">{status}</p>
            // Read aloud as a whole, once it is: a token at a time nobody could follow.
            <div
                class="written"
                role="log"
                aria-label="What the volunteers wrote"
                aria-live="polite"
                aria-busy=move || is_busy.get().to_string()
                hidden=move || !has_text.get()
            >
                <span class="soft">{move || asking.text.with(|text| text.prompt().to_owned())}</span>
                <span>{move || asking.text.with(|text| text.written().to_owned())}</span>
            </div>
        </Show>
    }
}

impl Asking {
    /// Asks, or says why not.
    fn ask(self, asked: Result<GenerateRequest, String>) {
        let request = match asked {
            Ok(request) => request,
            Err(fault) => return self.fault.set(fault),
        };
        self.fault.set(String::new());
        let Ok(controller) = AbortController::new() else {
            return;
        };
        let signal = controller.signal();
        self.under_way.set_value(Some(controller));
        self.text.set(Text::asked(request.prompt.clone()));
        spawn_local(async move {
            let end = self.read(&request, &signal).await;
            // Whoever aborted it has said so, and may have asked anew since.
            if !signal.aborted() {
                self.under_way.set_value(None);
                if let Err(why) = end {
                    self.text.update(|text| text.end(why));
                }
            }
        });
    }

    /// Ends what is under way.
    fn stop(self) {
        let under_way = self.under_way.try_update_value(Option::take).flatten();
        if let Some(controller) = under_way {
            controller.abort();
            self.text.update(|text| text.end(STOPPED.to_owned()));
        }
    }

    /// Reads the answer to its end; else why it has none.
    async fn read(self, request: &GenerateRequest, signal: &AbortSignal) -> Result<(), String> {
        let response = sent(request, signal).await;
        let response = response.ok_or_else(|| UNREACHABLE.to_owned())?;
        if !response.ok() {
            let text = match response.text() {
                Ok(text) => JsFuture::from(text).await.ok(),
                Err(_) => None,
            };
            let text = text.and_then(|text| text.as_string()).unwrap_or_default();
            return Err(refused(response.status(), &text));
        }
        let broken_off = |_| BROKEN_OFF.to_owned();
        let mut body = Body::of(&response).map_err(broken_off)?;
        while let Some(piece) = body.next().await.map_err(broken_off)? {
            if signal.aborted() {
                return Ok(());
            }
            let goes_on = self.text.try_update(|text| text.push(&piece.to_vec()));
            if goes_on != Some(true) {
                body.cancel();
                return Ok(());
            }
        }
        Err(BROKEN_OFF.to_owned())
    }
}

/// The host's answer; `None` where it does not answer.
async fn sent(request: &GenerateRequest, signal: &AbortSignal) -> Option<Response> {
    let headers = Headers::new().ok()?;
    headers.set("content-type", "application/json").ok()?;
    let text = serde_json::to_string(request).expect("a request is plain JSON");
    let options = RequestInit::new();
    options.set_method("POST");
    options.set_headers(&headers);
    options.set_body(&text.into());
    options.set_signal(Some(signal));
    let answer = window().fetch_with_str_and_init("/api/generate", &options);
    let response = JsFuture::from(answer).await.ok()?;
    Some(response.unchecked_into())
}
