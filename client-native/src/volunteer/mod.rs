//! `shoal join`: the driver with everything that a headless machine gives it.
//!
//! Binds sockets, files, device and clock to [`shared::driver`], passes Ctrl-C on, and tells what
//! happens. Decides nothing but when to give up: everything about the run is [`shared::peer`]'s.

pub mod compute;
mod host;
#[cfg(feature = "faults")]
mod pretend;
mod signals;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use shared::driver::sent::Sent;
use shared::driver::trace::Tracer;
use shared::driver::{self, World};
use shared::model::device::Opened;
use shared::peer::{Event, Exit, Identity as PeerIdentity, Peer};
use shared::transport::TransportStopped;
use shared::units::Time;
use shared::wire::signal::{Capabilities, Speed, VolunteerKind};
use tokio::sync::mpsc;

use crate::failure::{Code, Failure};
use crate::host::http::HostFiles;
use crate::host::socket::HostSocket;
use crate::identity::Identity;
use crate::memory;
use crate::pace::Pacer;
use crate::report::{Carried, Note, Reporter};
use crate::rtc::traffic::Traffic;
use crate::rtc::{RtcConfig, RtcTransport};
use crate::settings::Settings;
use crate::shelf::FolderShelf;
use crate::trace::{TraceFile, TraceHandle};
use compute::NativeWorkshop;
use host::NativeHost;

/// Notes that wait for a slow terminal before some are lost.
const NOTES_MAX: usize = 1_024;
/// Troubles with relays and the shelf that wait to be told.
const TROUBLES_MAX: usize = 16;
/// Between looks at the status line.
const TICK: Duration = Duration::from_millis(250);
/// How long connections may take to say goodbye at the end.
const GOODBYE_MAX: Duration = Duration::from_millis(600);

/// Where notes go. Never waits; a terminal that does not keep up loses some.
#[derive(Clone)]
pub(crate) struct Notes(mpsc::Sender<Note>);

impl Notes {
    pub(crate) fn tell(&self, note: Note) {
        if self.0.try_send(note).is_err() {
            tracing::debug!("a note was lost: nobody reads them");
        }
    }
}

/// The process's clock.
#[derive(Clone, Copy, Debug)]
struct ProcessClock(Instant);

impl driver::Clock for ProcessClock {
    fn now(&self) -> Time {
        Time::from_micros(u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    async fn sleep_until(&self, at: Time) {
        let at = self.0 + Duration::from_micros(at.as_micros());
        tokio::time::sleep_until(at.into()).await;
    }
}

/// What is counted while a volunteer takes part.
#[derive(Default)]
struct Counters {
    sent: Sent,
    traffic: Arc<Traffic>,
}

impl Counters {
    fn read(&self) -> Carried {
        Carried {
            frames: self.sent.volumes(),
            sockets: self.traffic.datagrams(),
        }
    }
}

/// Takes part in a run until it is over, and tells why it ended. `opened` is the device to work with.
pub async fn join(settings: Settings, opened: Opened, reporter: Reporter) -> ExitCode {
    let (notes, heard) = mpsc::channel(NOTES_MAX);
    let notes = Notes(notes);
    let telling = tokio::spawn(tell_all(heard, reporter));
    let counters = Counters::default();
    let outcome = take_part(settings, opened, &notes, &counters).await;
    let end = |code, text| Note::End {
        code,
        text,
        carried: counters.read(),
    };
    let (note, code) = match outcome {
        Ok(text) => (end(0, text.to_owned()), ExitCode::SUCCESS),
        Err(failure) if matches!(failure.code, Code::Over | Code::Stopped) => {
            let (code, text) = (failure.code as u8, failure.what.clone());
            (end(code, text), failure.exit_code())
        }
        Err(failure) => (Note::of(&failure), failure.exit_code()),
    };
    notes.tell(note);
    if telling.await.is_err() {
        tracing::error!("telling notes panicked");
    }
    code
}

/// Tells notes until the last word. Whoever still holds a sender then has nothing more to say.
async fn tell_all(mut heard: mpsc::Receiver<Note>, mut reporter: Reporter) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            note = heard.recv() => match note {
                Some(note) => {
                    reporter.say(&note);
                    if matches!(note, Note::End { .. } | Note::Error { .. }) {
                        break;
                    }
                }
                None => break,
            },
            _ = tick.tick() => reporter.tick(),
        }
    }
    reporter.finish();
}

/// Passes on what relays and the shelf have to say, as long as somebody could say more.
async fn tell_troubles(mut troubled: mpsc::Receiver<String>, notes: Notes) {
    while let Some(text) = troubled.recv().await {
        notes.tell(Note::Trouble { text });
    }
}

/// Joins, works and leaves. Gives the last word where all went as it should.
async fn take_part(
    settings: Settings,
    opened: Opened,
    notes: &Notes,
    counters: &Counters,
) -> Result<&'static str, Failure> {
    let identity = Identity::open(&settings.identity_path)?;
    let lent = memory::settle(&opened, settings.memory).await?;
    let capabilities = capabilities(&settings, &opened, lent.bytes);
    let (troubles, troubled) = mpsc::channel::<String>(TROUBLES_MAX);
    let shelf = if identity.exclusive {
        let (path, bytes_max) = (&settings.identity_path, capabilities.memory_bytes);
        FolderShelf::beside(path, bytes_max, troubles.clone())
    } else {
        FolderShelf::none()
    };
    let name = settings.name.map_or_else(
        || format!("volunteer {}", &identity.public().to_string()[..6]),
        |name| name.0,
    );
    notes.tell(Note::Start {
        version: env!("CARGO_PKG_VERSION"),
        link: settings.link.to_string(),
        name: name.clone(),
        key: identity.public().to_string(),
        device: opened.name.clone(),
        memory_bytes: capabilities.memory_bytes,
        throttle_percent: settings.throttle.0,
    });
    if let Some(text) = lent.trouble {
        notes.tell(Note::Trouble { text });
    }
    let (clock, trace) = begin_trace(settings.trace.as_deref(), &name, &identity)?;
    let peer = Peer::new(PeerIdentity {
        key: identity.signing_key(),
        session: identity.session,
        name,
        capabilities,
    });
    let pacer = settings.max_upload.map(|rate| Arc::new(Pacer::new(rate.0)));
    tokio::spawn(tell_troubles(troubled, notes.clone()));
    let (transport, transport_end) = RtcTransport::with_end(RtcConfig {
        ice_servers: Vec::new(),
        relay_only: settings.relay_only,
        loopback: settings.link.is_loopback(),
        pacer: pacer.clone(),
        traffic: Arc::clone(&counters.traffic),
        troubles: Some(troubles),
    });
    let (gave_up, mut given_up) = mpsc::channel(1);
    let files = HostFiles::new(&settings.link, pacer);
    let world = World {
        transport,
        host: NativeHost::new(
            HostSocket::open(&settings.link),
            files,
            notes.clone(),
            gave_up,
        ),
        workshop: NativeWorkshop {
            device: opened.device,
            notes: notes.clone(),
        },
        clock,
        sent: counters.sent.clone(),
        shelf,
        tracer: trace.as_ref().map_or_else(Tracer::default, |trace| {
            let handle = trace.handle();
            Tracer::new(move |mark| handle.mark(mark))
        }),
    };
    let (commands, mut stopped) = signals::listen(notes.clone())?;
    let mut watcher = Watcher {
        notes: notes.clone(),
        last_step: None,
        trace: trace.as_ref().map(TraceFile::handle),
    };
    let watch = |peer: &Peer, now: Time, event: Event| watcher.watch(peer, now, event);
    let exit = tokio::select! {
        exit = driver::run(peer, world, watch, commands) => outcome(exit),
        Some(failure) = given_up.recv() => Err(failure),
        () = stopped.wait() => Err(stopped_at_once()),
    };
    // The other ends notice sooner when connections close than when they fall silent.
    let _ = tokio::time::timeout(GOODBYE_MAX, transport_end.wait()).await;
    if let Some(trace) = trace {
        end_trace(trace, notes);
    }
    exit
}

/// Begins a trace where one was asked for, and the clock that its times are of.
fn begin_trace(
    path: Option<&Path>,
    name: &str,
    identity: &Identity,
) -> Result<(ProcessClock, Option<TraceFile>), Failure> {
    let (clock, origin) = (ProcessClock(Instant::now()), SystemTime::now());
    let Some(path) = path else {
        return Ok((clock, None));
    };
    let begun = TraceFile::create(path, name, &identity.public().0, origin);
    let trace = begun.map_err(|error| {
        let what = format!("no trace in {}: {error}", path.display());
        Failure::new(Code::Failed, what, "Name another file with --trace.")
    })?;
    Ok((clock, Some(trace)))
}

fn end_trace(trace: TraceFile, notes: &Notes) {
    let text = match trace.finish() {
        Ok(0) => return,
        Ok(left_out) => {
            format!("{left_out} events are not in the trace: its limit or a slow disk")
        }
        Err(error) => format!("the trace ends early: {error}"),
    };
    notes.tell(Note::Trouble { text });
}

/// What this machine offers.
fn capabilities(settings: &Settings, opened: &Opened, memory_bytes: u64) -> Capabilities {
    Capabilities {
        kind: VolunteerKind::Native,
        device: opened.name.clone(),
        memory_bytes,
        // Measured when the run's model is known.
        speed: Speed::default(),
        throttle_percent: settings.throttle.0,
        relay_only: settings.relay_only,
        hidden: false,
    }
}

fn stopped_at_once() -> Failure {
    Failure::new(Code::Stopped, "stopped at once", "")
}

/// What the driver's end means for the process.
fn outcome(exit: Result<Exit, TransportStopped>) -> Result<&'static str, Failure> {
    match exit {
        Ok(Exit::Finished) => Ok("left after the round's commit; nothing is lost. Thank you"),
        Ok(Exit::Stopped) => Err(stopped_at_once()),
        Ok(Exit::HostAway) => Err(Failure::new(
            Code::Network,
            "left without the end of the round: the host does not answer",
            "What could be kept is on its disk, and is there again when it joins again.",
        )),
        Ok(Exit::RunOver) => Err(Failure::new(
            Code::Over,
            "the run is over; its model can be had with `shoal export`",
            "",
        )),
        Ok(Exit::Refused { code, text, remedy }) => Err(Failure::refused(code, text, remedy)),
        Ok(Exit::Device { reason }) => Err(Failure::new(
            Code::NoDevice,
            format!("the device failed: {reason}"),
            "Lend less with --memory, choose another device with --gpu, or see what `shoal doctor` says.",
        )),
        Err(stopped) => Err(Failure::new(
            Code::Network,
            stopped,
            "Start again; if it stays so, tell us what the log says (RUST_LOG=debug).",
        )),
    }
}

/// Turns what the driver tells into notes.
struct Watcher {
    notes: Notes,
    /// When the last step of this volunteer as head was done, and of which line-up.
    last_step: Option<(shared::wire::frame::Place, Time)>,
    /// Where a seat is written down.
    trace: Option<TraceHandle>,
}

impl Watcher {
    fn watch(&mut self, peer: &Peer, now: Time, event: Event) {
        let note = match event {
            Event::Welcome { peer, round, .. } => Note::Welcome {
                peer: peer.0,
                round: round.0,
            },
            Event::Seated(order) => {
                if let (Some(trace), Some(me)) = (&self.trace, peer.id()) {
                    trace.seated(order.stages, me.0);
                }
                Note::Seat {
                    pipeline: order.place.pipeline.0,
                    epoch: order.place.epoch.to_string(),
                    round: order.place.round.0,
                    first_stage: order.stages.first,
                    end_stage: order.stages.end,
                    previous: order.previous.map(|neighbour| neighbour.peer.0),
                    next: order.next.map(|neighbour| neighbour.peer.0),
                }
            }
            Event::Spare => Note::Spare,
            Event::FirstMicrobatch => Note::FirstMicrobatch,
            Event::Step { place, steps, loss } => {
                let before = self.last_step.replace((place, now));
                let seconds = before
                    .filter(|(of, _)| of.epoch == place.epoch && of.round == place.round)
                    .map(|(_, at)| now.since(at).as_secs_f64());
                let tokens = peer.config().map(|config| config.step_tokens() as f64);
                Note::Step {
                    round: place.round.0,
                    steps,
                    loss,
                    tokens_per_second: seconds
                        .filter(|seconds| *seconds > 0.0)
                        .and_then(|seconds| Some(tokens? / seconds)),
                }
            }
            Event::Commit { round, ours } => Note::Commit {
                round: round.0,
                ours,
            },
            Event::LinkUp { peer, relayed } => Note::Link {
                peer: peer.0,
                relayed,
            },
            Event::LinkDisturbed { peer } => Note::LinkDisturbed { peer: peer.0 },
            Event::LinkLost { peer, reason } => Note::LinkLost {
                peer: peer.0,
                reason,
            },
            Event::Reason(text) => Note::Reason { text },
            Event::NothingKept(reason) => Note::Trouble {
                text: format!(
                    "weights are not kept over a restart now: {reason}; training goes on"
                ),
            },
            // The first is told with its reason by the socket, the second is for pages.
            Event::HostLost | Event::Stats(_) => return,
        };
        self.notes.tell(note);
    }
}

#[cfg(test)]
mod tests;
