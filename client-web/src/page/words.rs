//! What the page says about this machine, its work and its end: sentences, made from what the worker tells.
//!
//! It knows no browser. A sentence says what is so and, where something has to change, the one thing to change.
//! Begin with [`preflight`] and [`accepted`].

use shared::config::model::ModelConfig;
use shared::units::{PipelineId, StageRange};
use shared::wire::report::{RunReport, VolunteerReport};

use super::format::{bytes, count, plural, span};
use super::markup::sentence;
use crate::messages::{
    Accepted, Cost, Ended, NoWebGpu, Phase, Preflight, Rates, Reachability, Seat, Settings,
    Snapshot, Traffic, Verdict, WebGpu,
};

/// What a run that has reached its length calls its state.
pub const OVER: &str = "over";
/// The button that begins a preflight.
pub const CHECK: &str = "Check this computer";
/// Where scripts are switched off.
pub const NO_SCRIPT: &str = "To lend this computer, allow scripts for this page and load it again.";

/// What the page says where a person may lend: a heading, what it means, and how things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// The heading.
    pub title: &'static str,
    /// What it means.
    pub text: &'static str,
    /// One sentence of how things stand.
    pub status: &'static str,
}

/// Before anything was clicked.
pub const FIRST: Words = Words {
    title: "Lend this computer",
    text: "Your browser can train a few stages of this model while the tab is open. First, look at what this computer \
           can do and what it would cost you. You decide after that.",
    status: "Nothing is computed on this computer.",
};
/// In a host that was built without the page's program.
pub const NO_PROGRAM: Words = Words {
    title: "Lend a computer",
    text: "This host was built without the program that lets a browser help; whoever hosts it \
           can add it with cargo xtask web. The headless client can help as it is: see below.",
    status: "Nothing is computed on this computer.",
};
/// The run has reached its length.
pub const RUN_OVER: Words = Words {
    title: "This run is over",
    text: "It has read all the samples it was made for. Thank you to everybody who lent a computer. The model can be had \
           with the headless client: shoal export, followed by this page’s address.",
    status: "Nothing is computed on this computer.",
};
/// Plain http, on another machine than the host's.
pub const NEEDS_HTTPS: Words = Words {
    title: "This link needs https",
    text: "Browsers lend their GPU only to pages that came over https, and to pages of the same machine. Ask whoever gave \
           you this link for one that begins with https://. The headless client works with this one: see below.",
    status: "Nothing is computed on this computer: this link needs https.",
};
/// No WebRTC.
pub const NO_WEBRTC: Words = Words {
    title: "This browser cannot reach others",
    text: "Volunteers send each other tensors over WebRTC, which this browser lacks or has switched off. A current \
           Firefox, Chrome, Edge or Safari has it.",
    status: "Nothing is computed on this computer: the browser has no WebRTC.",
};
/// No workers.
pub const NO_WORKERS: Words = Words {
    title: "This browser cannot work in the background",
    text: "Training runs beside the page in a worker, which this browser lacks or has switched off. A current Firefox, \
           Chrome, Edge or Safari has them.",
    status: "Nothing is computed on this computer: the browser has no workers.",
};
/// Another tab of this browser holds the lock.
pub const OTHER_TAB: Words = Words {
    title: "Another tab contributes already",
    text: "One tab of a browser lends the computer; a second one would only halve the first. Pause or stop it there. When \
           that tab is closed, this one can take its place.",
    status: "Nothing is computed by this tab.",
};

/// One of our modules panicked.
pub const BROKEN: Words = Words {
    title: "Something broke here, the run is safe",
    text: "It is our mistake, not yours. This tab computes nothing any more, somebody else takes over its stages, and what \
           was accepted stays in the model.",
    status: "Nothing is computed on this computer: something broke.",
};
/// Above the report of what broke.
pub const REPORT: &str = "What happened, to copy into a report";
/// While the host does not answer.
pub const HOST_AWAY: &str = "The host does not answer at the moment. These figures are the last it sent; the page tries again by itself.";

/// While this computer is looked at.
pub const PREFLIGHT: Words = Words {
    title: "What this computer can do",
    text: "",
    status: "Looking at this computer. It takes some seconds.",
};
/// While it has no seat and nobody says why.
const SPARE: &str = "This tab keeps copies, and takes over when somebody leaves.";
/// After a click on Stop.
pub const STOPPING: &str = "Stopping: the microbatch under way is the last.";

/// How a thing looked at turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Not known yet.
    Open,
    /// As it should be.
    Good,
    /// It works; something could be better, or should be known.
    Note,
    /// Nothing goes on until this changes.
    Bad,
}

impl Mark {
    /// The mark as a word, for those who do not see its colour and shape; also the name of its style.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Open => "checking",
            Self::Good => "good",
            Self::Note => "note",
            Self::Bad => "problem",
        }
    }
}

/// One thing that the preflight looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What was looked at.
    pub what: &'static str,
    /// How it turned out.
    pub mark: Mark,
    /// What was found.
    pub text: String,
}

fn row(what: &'static str, mark: Mark, text: impl Into<String>) -> Row {
    let text = text.into();
    Row { what, mark, text }
}

/// What is known so far about helping from here, a row a thing, always the same rows in the same order.
#[must_use]
pub fn preflight(found: &Preflight, settings: &Settings, model: &ModelConfig) -> Vec<Row> {
    let open = |what| row(what, Mark::Open, "…");
    let or_open = |what, row: Option<Row>| row.unwrap_or_else(|| open(what));
    vec![
        or_open(
            "Processor",
            found.webgpu.as_ref().map(|gpu| processor(gpu, found)),
        ),
        or_open(
            "Memory",
            found.memory_bytes.map(|lent| {
                let text = format!("Lends {} while it works.", bytes(lent as f64));
                row("Memory", Mark::Good, text)
            }),
        ),
        or_open("Speed", found.block_us.map(|time_us| speed(time_us, model))),
        or_open(
            "Connection",
            found
                .reach
                .as_ref()
                .map(|reach| connection(reach, settings.relay_only)),
        ),
        or_open("Data", found.cost.map(data)),
        share_lent(settings),
        address(settings.relay_only),
    ]
}

fn processor(gpu: &WebGpu, found: &Preflight) -> Row {
    let device = found.device.as_deref().unwrap_or("CPU");
    let (mark, text) = match gpu {
        WebGpu::Adapter {
            name,
            software: false,
            ..
        } => (Mark::Good, format!("{device}: {name}.")),
        WebGpu::Adapter { software: true, .. } => (
            Mark::Note,
            format!(
                "This browser’s WebGPU is computed by the CPU, which is slower than the CPU by itself. Works on: {device}."
            ),
        ),
        WebGpu::Absent {
            reason: NoWebGpu::NeedsHttps,
        } => (
            Mark::Bad,
            "WebGPU needs https: ask for a link that begins with https://.".to_owned(),
        ),
        WebGpu::Absent {
            reason: NoWebGpu::NotOffered,
        } => (
            Mark::Note,
            format!(
                "This browser offers no WebGPU. It can help on the {device}, more slowly; a current Chrome, Edge or Safari \
                 may use the GPU."
            ),
        ),
        WebGpu::Absent {
            reason: NoWebGpu::NoAdapter,
        } => (
            Mark::Note,
            format!(
                "The browser gives no GPU, for want of one or of a driver it trusts. It can help on the {device}, more slowly."
            ),
        ),
        WebGpu::Absent {
            reason: NoWebGpu::NoTimestamps,
        } => (
            Mark::Note,
            format!(
                "The browser’s WebGPU has no timestamp queries, which Shoal cannot do without yet. It can help on the \
                 {device}, more slowly; another browser, or a newer one, may use the GPU."
            ),
        ),
    };
    row("Processor", mark, text)
}

fn speed(block_us: u64, model: &ModelConfig) -> Row {
    // A step of the whole model on this machine alone, embedding and loss left out.
    let sequence_seconds = block_us as f64 * model.blocks as f64 / 1e6;
    let tokens = model.context as f64 / sequence_seconds.max(1e-6);
    let text = format!(
        "About {}\u{a0}tokens/s if it trained the whole model alone.",
        count(tokens)
    );
    row("Speed", Mark::Good, text)
}

fn connection(reach: &Reachability, relay_only: bool) -> Row {
    let (mark, text) = if !reach.webrtc {
        (
            Mark::Bad,
            "This browser makes no peer connections (WebRTC): allow them, or use another one.",
        )
    } else if relay_only && !reach.relay {
        (
            Mark::Bad,
            if reach.has_relays {
                "No relay works from here, and you want to be reached through relays only."
            } else {
                "No relay is named by this run’s host, and you want to be reached through relays only."
            },
        )
    } else if relay_only {
        (Mark::Good, "Through a relay, as you wish.")
    } else if reach.reflexive {
        (Mark::Good, "Directly, over the internet.")
    } else if reach.relay {
        (
            Mark::Note,
            "Through a relay: your network lets no direct connection through.",
        )
    } else if reach.host && reach.has_servers {
        (
            Mark::Note,
            "Only from your own network: nothing tells how the world sees this browser.",
        )
    } else if reach.host {
        (
            Mark::Note,
            "Only from your own network: this run’s host names no server that would connect you to others.",
        )
    } else {
        (
            Mark::Bad,
            "Nobody can reach this browser. A VPN, a firewall or an extension may keep WebRTC from working.",
        )
    };
    let mut text = text.to_owned();
    if !reach.silent.is_empty() {
        text.push_str(&format!(" No answer from {}.", reach.silent.join(", ")));
    }
    if !reach.refusing.is_empty() {
        let refusing = reach.refusing.join(", ");
        text.push_str(&format!(
            " Turned away by {refusing}: whoever hosts this run should look at its secret."
        ));
    }
    row("Connection", mark, text)
}

fn data(cost: Cost) -> Row {
    let text = format!(
        "About {} up and {} down an hour, copies of the model’s state included; {} at first.",
        bytes(cost.up_bytes_hour),
        bytes(cost.down_bytes_hour),
        bytes(cost.first_bytes)
    );
    row("Data", Mark::Note, text)
}

fn share_lent(settings: &Settings) -> Row {
    let percent = settings.throttle_percent;
    let when = if settings.only_on_mains {
        ", on mains power only"
    } else {
        ""
    };
    let text = if percent >= 100 {
        format!(
            "Works all of the time{when}. Games and video calls may stutter: choose a smaller share then."
        )
    } else {
        format!("Works {percent}\u{a0}% of the time and rests in between{when}.")
    };
    row("Share", Mark::Note, text)
}

fn address(relay_only: bool) -> Row {
    if relay_only {
        let text = "Only the host and its relay see your IP address.";
        row("Privacy", Mark::Good, text)
    } else {
        let text = "Others in the run see your IP address, as in a video call.";
        row("Privacy", Mark::Note, text)
    }
}

/// What would come of it, in one sentence or two; the second is the one thing to change.
#[must_use]
pub fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::CanHelp { stages, of } if stages >= of => {
            "You can help with any part of this model, and even hold all of it.".to_owned()
        }
        Verdict::CanHelp { stages, of } => {
            format!("You can help with {stages} of this model’s {of} stages at a time.")
        }
        Verdict::Cannot { what, remedy } => format!("{} {}", sentence(what), sentence(remedy)),
    }
}

/// What a phase is called.
#[must_use]
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Preparing => "Getting ready",
        Phase::Joining => "Asking to join",
        Phase::Spare => "Standing by",
        Phase::Gathering => "Taking a seat",
        Phase::Training => "Training",
        Phase::HostAway => "Training on, the host is away",
        Phase::Paused => "Paused",
        Phase::Finishing => "Finishing",
        Phase::Recovering => "Getting the device back",
    }
}

/// Where in the model a seat is.
#[must_use]
pub fn seat(seat: &Seat) -> String {
    if seat.stages.count() == usize::from(seat.of) {
        return "all stages of the model".to_owned();
    }
    format!("{} of {}", seat.stages, seat.of)
}

/// What the neighbours in the pipe are called, before and after a seat: those of its pipeline whose stages adjoin it.
#[must_use]
pub fn neighbours(listed: &[VolunteerReport], seat: &Seat) -> [Option<String>; 2] {
    let is_of_it = |pipeline: PipelineId| u32::from(pipeline.0) == seat.pipeline;
    let name = |adjoins: &dyn Fn(StageRange) -> bool| {
        let adjoins = |one: &&VolunteerReport| {
            one.stages.is_some_and(adjoins) && one.pipeline.is_none_or(is_of_it)
        };
        let found = listed.iter().find(adjoins)?;
        Some(found.name.clone())
    };
    [
        name(&|stages| stages.end == seat.stages.first),
        name(&|stages| stages.first == seat.stages.end),
    ]
}

/// How packets reach a neighbour: a name for the style, and words.
#[must_use]
pub fn link(relayed: Option<bool>) -> (&'static str, &'static str) {
    match relayed {
        None => ("opening", "the link is being opened"),
        Some(false) => ("direct", "directly linked"),
        Some(true) => ("relayed", "linked through a relay"),
    }
}

/// One sentence of why it waits or what it does.
#[must_use]
pub fn reason(snapshot: &Snapshot) -> String {
    match (snapshot.reason.trim(), snapshot.phase) {
        ("", Phase::Spare) => SPARE.to_owned(),
        ("", other) => format!("{}.", phase(other)),
        (reason, _) => sentence(reason),
    }
}

/// A reason without its numbers: what is read aloud changes when the sense does, not with each step.
#[must_use]
pub fn sense(reason: &str) -> String {
    reason
        .chars()
        .filter(|letter| !letter.is_ascii_digit())
        .collect()
}

/// What of this volunteer's work is in the model, from commits. It may have been for another seat than today's.
#[must_use]
pub fn accepted(work: &Accepted) -> String {
    let (Some(stages), Some(first), Some(last)) =
        (worked_on(&work.stages), work.first_round, work.last_round)
    else {
        return "Nothing of yours is in the model yet. Work counts when its round is committed."
            .to_owned();
    };
    let rounds = if first == last {
        format!("in round {first}")
    } else {
        format!("in rounds {first} to {last}")
    };
    format!(
        "Your work on {stages}: {} accepted, {rounds}.",
        plural(work.microbatches, "microbatch", "microbatches")
    )
}

/// Stages in words: `stage 2`, `stages 2-3`, `stages 0-1 and 3`.
fn worked_on(ranges: &[StageRange]) -> Option<String> {
    let (last, others) = ranges.split_last()?;
    if others.is_empty() {
        return Some(last.to_string());
    }
    let numbers = |range: &StageRange| match range.count() {
        1 => range.first.to_string(),
        _ => format!("{}-{}", range.first, range.end - 1),
    };
    let others: Vec<String> = others.iter().map(numbers).collect();
    Some(format!(
        "stages {} and {}",
        others.join(", "),
        numbers(last)
    ))
}

/// What compression saved, from bytes that were counted.
#[must_use]
pub fn saved(traffic: &Traffic) -> Option<String> {
    if traffic.boundary_bytes == 0 {
        return None;
    }
    let (sent, dense) = (traffic.boundary_bytes as f64, traffic.dense_bytes as f64);
    Some(format!(
        "Activations and gradients took {}. At full width in f16 they would have taken {}: {:.1} times as much.",
        bytes(sent),
        bytes(dense),
        dense / sent
    ))
}

/// What a browser that keeps nothing means.
#[must_use]
pub fn not_kept(reason: &str) -> String {
    format!(
        "{} The work goes on; but after a reload this tab has to fetch its stages anew.",
        sentence(&format!(
            "no copy of your stages is kept on this computer: {reason}"
        ))
    )
}

/// How asked and measured share compare.
#[must_use]
pub fn share(snapshot: &Snapshot) -> String {
    match snapshot.measured_percent {
        None => "measured share: none yet".to_owned(),
        Some(percent) => format!("measured share: {percent:.0}\u{a0}%"),
    }
}

/// What hiding the tab does to its speed, once both were measured.
#[must_use]
pub fn hidden(rates: &Rates) -> Option<String> {
    let hidden = rates.hidden?;
    let Some(visible) = rates.visible.filter(|visible| *visible > 0.0) else {
        return Some(format!("While hidden: {}\u{a0}tokens/s.", count(hidden)));
    };
    Some(format!(
        "While hidden this tab makes {}\u{a0}tokens/s, {:.0}\u{a0}% of what it makes in sight. The run counts on the slower one.",
        count(hidden),
        100.0 * hidden / visible
    ))
}

/// How long until the run has its length, at the speed of its last rounds.
#[must_use]
pub fn to_go(report: &RunReport) -> Option<String> {
    let lately = report.rounds.len().checked_sub(8).unwrap_or(1).max(1);
    let (before, last) = (report.rounds.get(lately - 1)?, report.rounds.last()?);
    let samples = last
        .samples
        .checked_sub(before.samples)
        .filter(|samples| *samples > 0)?;
    let seconds: f64 = report.rounds[lately..]
        .iter()
        .map(|round| round.seconds)
        .sum();
    let left = report
        .samples_total
        .checked_sub(report.samples)
        .filter(|left| *left > 0)?;
    Some(format!(
        "about {} to go",
        span(seconds / samples as f64 * left as f64)
    ))
}

/// Heading and text for an end.
#[must_use]
pub fn ended(end: &Ended) -> (&'static str, String) {
    match end {
        Ended::Finished => (
            "Thank you",
            "The round was committed and your stages were handed on. Nothing is lost.".to_owned(),
        ),
        Ended::Stopped => (
            "Stopped",
            "Nothing is computed here any more. Somebody else takes over your stages.".to_owned(),
        ),
        Ended::HostAway => (
            "Left",
            "The host does not answer, so the end of the round was not seen. What this tab keeps is there again when \
             you contribute again."
                .to_owned(),
        ),
        Ended::RunOver => (RUN_OVER.title, RUN_OVER.text.to_owned()),
        Ended::Refused { text, remedy, .. } => (
            "The host did not let you in",
            format!("{} {}", sentence(text), sentence(remedy)),
        ),
        Ended::Device { reason } => (
            "The device gave up",
            format!(
                "{} The run goes on without it. Close what else uses the GPU, or choose the CPU below, and try again.",
                sentence(reason)
            ),
        ),
        Ended::Unreachable { reason } => (
            "The host cannot be reached",
            format!(
                "{} Look at your connection and try again; the run itself waits for nobody.",
                sentence(reason)
            ),
        ),
    }
}

#[cfg(test)]
mod tests;
