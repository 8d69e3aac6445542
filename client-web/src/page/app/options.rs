//! What a person decides about lending: share of the device, data a day, power, relay, processor, name.

use leptos::prelude::*;

use super::state::State;
use crate::js::get;
use crate::messages::{DeviceWish, Settings};
use crate::page::format::bytes;
use crate::page::words;

/// Caps to choose from, in bytes a day.
const CAPS: [u64; 6] = [
    200_000_000,
    500_000_000,
    1_000_000_000,
    5_000_000_000,
    20_000_000_000,
    100_000_000_000,
];
/// Amounts of memory to choose from, in bytes.
const MEMORY: [u64; 7] = [
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    4_000_000_000,
    8_000_000_000,
    16_000_000_000,
];
/// Longest name, in characters: the host takes no longer one.
const NAME_CHARS_MAX: usize = shared::limits::NAME_CHARS_MAX;

/// All options; `at_work` leaves out those that act at the next start only.
pub(super) fn options(state: State, at_work: bool) -> impl IntoView {
    let settings = state.settings;
    let change = move |change: &dyn Fn(&mut Settings)| settings.update(|settings| change(settings));
    let share = move || settings.with(|settings| settings.throttle_percent);
    let tells_power = !get(&window().navigator(), "getBattery").is_undefined();
    view! {
        <div class="options">
            <div class="field">
                <label for="share">"Share of the time that it works"</label>
                <div class="slider">
                    <input
                        id="share"
                        type="range"
                        min="10"
                        max="100"
                        step="5"
                        aria-describedby="share-measured"
                        prop:value=move || share().to_string()
                        on:input=move |event| {
                            let percent = event_target_value(&event).parse().unwrap_or(100);
                            change(&|settings| settings.throttle_percent = percent);
                        }
                    />
                    <output for="share">{move || format!("{}\u{a0}%", share())}</output>
                </div>
                <small id="share-measured">
                    {move || if at_work {
                        state.snapshot.with(words::share)
                    } else {
                        "It rests between microbatches for the other part.".to_owned()
                    }}
                </small>
            </div>
            <div class="field">
                <label for="cap">"Data a day, at most"</label>
                <select
                    id="cap"
                    on:change=move |event| {
                        let cap = event_target_value(&event).parse().ok();
                        change(&|settings| settings.day_bytes_max = cap);
                    }
                >
                    {choices("no limit", &CAPS, settings.with_untracked(|settings| settings.day_bytes_max))}
                </select>
            </div>
            {tells_power.then(|| view! {
                <label class="check">
                    <input
                        type="checkbox"
                        prop:checked=move || settings.with(|settings| settings.only_on_mains)
                        on:change=move |event| {
                            let on = event_target_checked(&event);
                            change(&|settings| settings.only_on_mains = on);
                        }
                    />
                    "Only on mains power"
                </label>
            })}
            {(!at_work).then(|| view! {
                <label class="check">
                    <input
                        type="checkbox"
                        prop:checked=move || settings.with(|settings| settings.relay_only)
                        on:change=move |event| {
                            let on = event_target_checked(&event);
                            change(&|settings| settings.relay_only = on);
                            state.look();
                        }
                    />
                    <span>"Through relays only "<small>"hides your IP address from others; slower"</small></span>
                </label>
                <div class="field">
                    <label for="device">"Processor"</label>
                    <select
                        id="device"
                        on:change=move |event| {
                            let device = device_of(&event_target_value(&event));
                            change(&|settings| settings.device = device);
                            state.look();
                        }
                    >
                        {DEVICES.map(|(device, value, text)| {
                            let chosen = settings.with_untracked(|settings| settings.device);
                            // Only the address chooses a GPU that the CPU computes: it is for tests.
                            let offered = device != DeviceWish::WebGpu || chosen == device;
                            offered.then(|| view! { <option value=value selected=chosen == device>{text}</option> })
                        })}
                    </select>
                </div>
                <div class="field">
                    <label for="memory">"Memory to lend, at most"</label>
                    <select
                        id="memory"
                        on:change=move |event| {
                            let memory = event_target_value(&event).parse().ok();
                            change(&|settings| settings.memory_bytes = memory);
                            state.look();
                        }
                    >
                        {choices("a careful amount", &MEMORY, settings.with_untracked(|settings| settings.memory_bytes))}
                    </select>
                </div>
                <div class="field">
                    <label for="name">"Name on the run’s page"</label>
                    <input
                        id="name"
                        type="text"
                        maxlength=NAME_CHARS_MAX.to_string()
                        autocomplete="nickname"
                        placeholder="one is made up for you"
                        prop:value=move || settings.with(|settings| settings.name.clone())
                        on:change=move |event| {
                            let name = event_target_value(&event).trim().to_owned();
                            change(&|settings| settings.name.clone_from(&name));
                        }
                    />
                </div>
            })}
        </div>
    }
}

/// No choice, or one of some numbers of bytes.
fn choices(none: &'static str, offered: &[u64], chosen: Option<u64>) -> impl IntoView + use<> {
    let offered = offered.iter().map(|number| {
        view! {
            <option value=number.to_string() selected=chosen == Some(*number)>
                {bytes(*number as f64)}
            </option>
        }
    });
    view! {
        <option value="">{none}</option>
        {offered.collect_view()}
    }
}

const DEVICES: [(DeviceWish, &str, &str); 3] = [
    (DeviceWish::Auto, "auto", "the GPU, else the CPU"),
    (DeviceWish::Cpu, "cpu", "the CPU"),
    (DeviceWish::WebGpu, "webgpu", "WebGPU, whatever computes it"),
];

fn device_of(value: &str) -> DeviceWish {
    DEVICES
        .into_iter()
        .find(|(_, name, _)| *name == value)
        .map_or(DeviceWish::Auto, |(device, _, _)| device)
}
