//! A tab beside a headless volunteer on one machine: seconds a step, the way to the first microbatch, what is loaded.
//!
//! Everything is built as people get it: `shoal`, a host that holds the page, the page itself, and this program, which
//! starts itself once more in cargo's release profile. Each volunteer trains alone, so no link is in the figures; they
//! take turns, so that whatever else the machine does meets all of them. Where a GPU is computed by the CPU, tab and
//! headless volunteer share one driver: the SwiftShader that comes with Chromium.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tests::process::Program;
use tests::run::{Host, HostOptions};
use tests::tab::{Device, LOAD_MAX, Lend, Tab};

use super::cost::median;
use super::{CONTEXT, Figures, NAMES, ROUND_WAIT_MAX, load, save};
use crate::build::{cargo, run};
use crate::web::{self, For};

/// Sequences of a step, and the microbatches that they go in.
const BATCH: u64 = 8;
const MICROBATCHES: u64 = 2;
/// Steps a round and tokens a sequence: SwiftShader takes half a minute for what the CPU itself does in a fifth of a second.
const CPU: Length = Length {
    round_steps: 5,
    context: CONTEXT,
};
const GPU: Length = Length {
    round_steps: 1,
    context: CONTEXT / 4,
};
/// How often a page is loaded again.
const JOINS: usize = 7;

/// How long a run's rounds and sequences are.
#[derive(Clone, Copy, Debug)]
struct Length {
    round_steps: u64,
    context: u64,
}

impl Length {
    const fn of(device: Device) -> Self {
        match device {
            Device::Cpu => CPU,
            Device::WebGpu => GPU,
        }
    }
}

/// Builds the page, then the programs: the host takes the page in.
pub(super) fn programs() -> anyhow::Result<()> {
    let release = ["build", "--quiet", "--release", "-p"];
    let web_programs = [
        "tests",
        "--features",
        "web",
        "--bin",
        "bindgen",
        "--bin",
        "pack",
    ];
    run(cargo(&release).args(web_programs))?;
    web::web(For::People)?;
    run(cargo(&release).args(["signaling", "-p", "client-native"]))
}

/// Measures in turns; the file is written at the end.
pub(super) fn browser(asked: &Figures, data: &Path) -> anyhow::Result<()> {
    ensure!(
        asked.rounds >= 2,
        "the first round is left out: ask for two or more"
    );
    let without_simd = tempfile::Builder::new().prefix("shoal-www-").tempdir()?;
    web::without_simd(without_simd.path())?;
    let mut turns = Vec::new();
    for repeat in 0..asked.repeats() {
        for device in [Device::Cpu, Device::WebGpu] {
            let native = steps(device, Place::Native, asked.rounds, data)?;
            let mut note = |place: &str, seconds: f64| {
                let ratio = seconds / native;
                println!("{device:?}, {place}: {seconds:.4} s a step, {ratio:.2} of headless");
                turns.push(json!({
                    "repeat": repeat, "device": format!("{device:?}"), "place": place,
                    "seconds_a_step": seconds, "of_headless": ratio, "load": load(),
                }));
            };
            note("headless", native);
            note("tab", steps(device, Place::Tab(None), asked.rounds, data)?);
            if device == Device::Cpu {
                let place = Place::Tab(Some(without_simd.path()));
                note(
                    "tab without SIMD",
                    steps(device, place, asked.rounds, data)?,
                );
            }
        }
    }
    let figures = json!({
        "preset": "tiny",
        "sequences_a_step": BATCH,
        "microbatches_a_step": MICROBATCHES,
        "context": { "Cpu": CPU.context, "WebGpu": GPU.context },
        "rounds": asked.rounds,
        "repeats": asked.repeats(),
        "medians": summary(&turns)?,
        "warm_join_milliseconds": joins(data)?,
        "sizes": web::sizes()?,
        "runs": turns,
    });
    save("browser", &figures)
}

/// Where a volunteer runs.
#[derive(Clone, Copy, Debug)]
enum Place<'a> {
    /// A process of its own.
    Native,
    /// A tab of Chromium; with the page from a folder, if not the host's own.
    Tab(Option<&'a Path>),
}

/// Starts a host whose run waits for so many volunteers.
fn host(seats: u64, length: Length, www: Option<&Path>, data: &Path) -> anyhow::Result<Host> {
    let Length {
        round_steps,
        context,
    } = length;
    let config = format!(
        "[run]\nname = \"figures\"\npreset = \"tiny\"\n\n\
         [model]\ncontext = {context}\n\n\
         [training]\nbatch = {BATCH}\nmicrobatches = {MICROBATCHES}\nsamples = 1000000\n\n\
         [schedule]\nround_steps = {round_steps}\nseats_min = {seats}\neval_rounds = 0\n"
    );
    let arguments = www.map(|www| ["--www".to_owned(), www.display().to_string()]);
    Host::start(HostOptions {
        config,
        data: data.to_owned(),
        port: 0,
        arguments: arguments.into_iter().flatten().collect(),
    })
}

/// Seconds of a step of a volunteer that has the model to itself.
fn steps(device: Device, place: Place<'_>, rounds: u64, data: &Path) -> anyhow::Result<f64> {
    let length = Length::of(device);
    let www = match place {
        Place::Native => None,
        Place::Tab(www) => www,
    };
    let mut host = host(1, length, www, data)?;
    let _volunteer = match place {
        Place::Native => Volunteer::Native(native(&host, device)?),
        Place::Tab(_) => Volunteer::Tab(Tab::open(host.url(), &lend(device))?.lending()?),
    };
    let reached = |run: &Value| run["round"].as_u64() >= Some(rounds);
    let wait_max = ROUND_WAIT_MAX * u32::try_from(rounds)?;
    let last = host.wait_until("the last round", wait_max, reached)?;
    let listed = last["rounds"].as_array().into_iter().flatten();
    // The first one warms up.
    let measured = listed.filter(|row| (2..=rounds).contains(&row["round"].as_u64().unwrap_or(0)));
    let seconds: f64 = measured.filter_map(|row| row["seconds"].as_f64()).sum();
    Ok(seconds / ((rounds - 1) * length.round_steps) as f64)
}

/// Who is held while it is measured.
#[expect(dead_code, reason = "held, and ended at the end")]
enum Volunteer {
    Native(Program),
    Tab(Tab),
}

/// A headless volunteer; its GPU is the one that Chromium has.
fn native(host: &Host, device: Device) -> anyhow::Result<Program> {
    match device {
        Device::Cpu => host.volunteer(NAMES[0], &[]),
        Device::WebGpu => {
            let driver = tests::browser::swiftshader()?;
            let only = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];
            let environment = only.map(|name| (name, OsStr::new(&driver)));
            host.volunteer_among(NAMES[0], &["--gpu", "SwiftShader"], environment)
        }
    }
}

fn lend(device: Device) -> Lend {
    Lend {
        device,
        ..Lend::default()
    }
}

/// Milliseconds of each part of coming back to a run beside a headless volunteer, when everything is in the browser's
/// cache; medians.
fn joins(data: &Path) -> anyhow::Result<Value> {
    let mut host = host(2, CPU, None, data)?;
    let _native = native(&host, Device::Cpu)?;
    let mut tab = Tab::open(host.url(), &lend(Device::Cpu))?.lending()?;
    let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..JOINS {
        let round = host.api()?["round"].as_u64().unwrap_or(0);
        let next = |run: &Value| run["round"].as_u64() > Some(round);
        host.wait_until("a round", ROUND_WAIT_MAX, next)?;
        tab.page.reload()?;
        tab.stands("now.microbatches > 0", LOAD_MAX)?;
        let joined = tab.joined()?;
        let all = joined.iter().map(|(_, milliseconds)| milliseconds).sum();
        for (part, milliseconds) in joined.into_iter().chain([("all", all)]) {
            parts.entry(part).or_default().push(milliseconds);
        }
    }
    let medians = parts
        .into_iter()
        .map(|(part, times)| (part.to_owned(), json!(median(times))));
    Ok(Value::Object(medians.collect()))
}

/// Medians over the repeats, by device and place.
fn summary(turns: &[Value]) -> anyhow::Result<Vec<Value>> {
    let mut rows: BTreeMap<(&str, &str), Vec<&Value>> = BTreeMap::new();
    for turn in turns {
        let (device, place) = (turn["device"].as_str(), turn["place"].as_str());
        let key = device.zip(place).context("a turn has names")?;
        rows.entry(key).or_default().push(turn);
    }
    let of = |rows: &[&Value], name: &str| {
        median(rows.iter().filter_map(|row| row[name].as_f64()).collect())
    };
    let row = |((device, place), turns): ((&str, &str), Vec<&Value>)| {
        json!({
            "device": device,
            "place": place,
            "seconds_a_step": of(&turns, "seconds_a_step"),
            "of_headless": of(&turns, "of_headless"),
        })
    };
    Ok(rows.into_iter().map(row).collect())
}
