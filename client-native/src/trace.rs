//! `shoal join --trace FILE`: what the volunteer does when, in Chrome's trace event format.
//!
//! Perfetto (ui.perfetto.dev) and chrome://tracing show such a file: a process a volunteer, in it tracks for what is
//! computed, waited for, sent and received. Times are the machine's clock, so that several volunteers' files lie beside each other as
//! far as their clocks agree (`cargo xtask trace` puts them into one file).
//!
//! A thread writes; marks go to it by a bounded queue, and where the disk is too slow for them some are lost and counted, never
//! waited for. The file is an array with an event a line, written in whole lines: that of a process that was killed lacks
//! its last `]`, which both programs do without. Begin with [`TraceFile::create`].

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use shared::driver::trace::{About, Mark, Track};
use shared::limits::{TRACE_BYTES_MAX, TRACE_MARKS_WAITING_MAX};
use shared::units::StageRange;

/// Lines are written when so many bytes wait...
const WRITE_BYTES: usize = 64 << 10;
/// ... or after this time: what a kill costs of the trace.
const WRITE_EVERY: Duration = Duration::from_millis(500);

/// What the writer is told.
enum Told {
    Mark(Mark),
    Seat { stages: StageRange, peer: u64 },
    End,
}

/// A trace that is being written.
#[derive(Debug)]
pub(crate) struct TraceFile {
    handle: TraceHandle,
    writer: JoinHandle<io::Result<u64>>,
}

/// A way to the writer.
#[derive(Clone, Debug)]
pub(crate) struct TraceHandle {
    told: SyncSender<Told>,
    lost: Arc<AtomicU64>,
}

/// Where a volunteer's events lie among those of others.
struct Process {
    /// Drawn from its key, so that no two volunteers of a run share one.
    id: u32,
    /// Microseconds since 1970 when its own time began.
    origin_us: u64,
}

impl TraceFile {
    /// Begins a file for the volunteer of that name and key, whose own time began at `origin`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(crate) fn create(
        path: &Path,
        name: &str,
        key: &[u8; 32],
        origin: SystemTime,
    ) -> io::Result<Self> {
        let file = File::create(path)?;
        let id = u32::from_be_bytes([key[0], key[1], key[2], key[3]]) >> 1;
        let origin = origin.duration_since(UNIX_EPOCH).unwrap_or_default();
        let process = Process {
            id,
            origin_us: u64::try_from(origin.as_micros()).unwrap_or(0),
        };
        let first = process.names(name);
        let (told, heard) = sync_channel(TRACE_MARKS_WAITING_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        let writer = std::thread::Builder::new()
            .name("trace".to_owned())
            .spawn(move || {
                let mut lines = Lines::begin(file, TRACE_BYTES_MAX);
                first.iter().try_for_each(|event| lines.push(event))?;
                write(&heard, &process, &mut lines)?;
                lines.end(&process, counted.load(Ordering::Relaxed))
            })?;
        Ok(Self {
            handle: TraceHandle { told, lost },
            writer,
        })
    }

    /// The way to the writer.
    pub(crate) fn handle(&self) -> TraceHandle {
        self.handle.clone()
    }

    /// Writes what waits, and ends the file. Gives how many events were left out.
    ///
    /// # Errors
    /// The file could not be written to its end.
    pub(crate) fn finish(self) -> io::Result<u64> {
        // A writer that failed is gone, and says why below.
        let _ = self.handle.told.send(Told::End);
        let written = self.writer.join();
        written.unwrap_or_else(|_| Err(io::Error::other("the writer panicked")))
    }
}

impl TraceHandle {
    /// Has a mark written. Never waits.
    pub(crate) fn mark(&self, mark: Mark) {
        self.tell(Told::Mark(mark));
    }

    /// The volunteer took a seat.
    pub(crate) fn seated(&self, stages: StageRange, peer: u64) {
        self.tell(Told::Seat { stages, peer });
    }

    fn tell(&self, told: Told) {
        if self.told.try_send(told).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes what is told, until the end.
fn write(heard: &Receiver<Told>, process: &Process, lines: &mut Lines<File>) -> io::Result<()> {
    let mut written = Instant::now();
    loop {
        if written.elapsed() >= WRITE_EVERY {
            lines.flush()?;
            written = Instant::now();
        }
        match heard.recv_timeout(WRITE_EVERY) {
            Ok(Told::Mark(mark)) => {
                let mut events = process.events(&mark).into_iter();
                events.try_for_each(|event| lines.push(&event))?;
            }
            Ok(Told::Seat { stages, peer }) => {
                let mut events = process.seat(stages, peer).into_iter();
                events.try_for_each(|event| lines.push(&event))?;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Told::End) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

impl Process {
    /// What the process and its tracks are called.
    fn names(&self, name: &str) -> Vec<Value> {
        let named = |kind: &str, thread: u32, name: &str| json!({ "ph": "M", "name": kind, "pid": self.id, "tid": thread, "args": { "name": name } });
        let tracks = [Track::Compute, Track::Wait, Track::Sent, Track::Received];
        let mut events = vec![named("process_name", 0, name)];
        events.extend(tracks.map(|track| {
            let (thread, word) = of_track(track);
            named("thread_name", thread, word)
        }));
        events
    }

    /// Which stages it computes from now on: that is where it stands among the others.
    fn seat(&self, stages: StageRange, peer: u64) -> [Value; 2] {
        let about = |name: &str, args: Value| json!({ "ph": "M", "name": name, "pid": self.id, "tid": 0, "args": args });
        let labels = format!(
            "volunteer {peer}, stages {} to {}",
            stages.first,
            stages.end.saturating_sub(1)
        );
        [
            about("process_sort_index", json!({ "sort_index": stages.first })),
            about("process_labels", json!({ "labels": labels })),
        ]
    }

    /// A mark as events: one where the track has one thing at a time, else a beginning and an end that find each other.
    fn events(&self, mark: &Mark) -> Vec<Value> {
        let (thread, track) = of_track(mark.track);
        let event = |kind: &str, at: shared::units::Time| {
            json!({
                "name": mark.name, "cat": track, "ph": kind, "pid": self.id, "tid": thread,
                "ts": self.origin_us + at.as_micros(),
            })
        };
        let took_us = mark.ended.since(mark.began).as_micros();
        match mark.track {
            Track::Compute | Track::Wait => {
                let mut whole = event("X", mark.began);
                whole["dur"] = json!(took_us);
                whole["args"] = args(&mark.about);
                vec![whole]
            }
            Track::Sent if took_us > 0 => {
                let (mut begin, mut end) = (event("b", mark.began), event("e", mark.ended));
                begin["args"] = args(&mark.about);
                let id = self.frame_id(mark);
                begin["id"] = json!(id);
                end["id"] = json!(id);
                vec![begin, end]
            }
            Track::Sent | Track::Received => {
                let mut moment = event("i", mark.began);
                // Drawn on its own track.
                moment["s"] = json!("t");
                moment["args"] = args(&mark.about);
                vec![moment]
            }
        }
    }

    /// What no other frame that is under way bears, in the files of all volunteers.
    fn frame_id(&self, mark: &Mark) -> String {
        let About {
            round,
            step,
            microbatch,
            peer,
            bytes: _,
        } = mark.about;
        let number = |number: Option<u64>| number.unwrap_or(0);
        format!(
            "{} {} {} {} {} {}",
            self.id,
            mark.name,
            number(peer.map(|peer| peer.0)),
            number(round.map(|round| round.0.into())),
            number(step.map(|step| step.0.into())),
            number(microbatch.map(|microbatch| microbatch.0.into())),
        )
    }
}

/// Number and name of a track.
const fn of_track(track: Track) -> (u32, &'static str) {
    match track {
        Track::Compute => (1, "compute"),
        Track::Wait => (2, "wait"),
        Track::Sent => (3, "sent"),
        Track::Received => (4, "received"),
    }
}

fn args(about: &About) -> Value {
    let fields = [
        ("round", about.round.map(|it| json!(it.0))),
        ("step", about.step.map(|it| json!(it.0))),
        ("microbatch", about.microbatch.map(|it| json!(it.0))),
        ("peer", about.peer.map(|it| json!(it.0))),
        ("bytes", about.bytes.map(|it| json!(it))),
    ];
    let known = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(known.collect())
}

/// An array that grows by lines, up to a limit.
struct Lines<W> {
    file: W,
    waiting: Vec<u8>,
    bytes: u64,
    bytes_max: u64,
    left_out: u64,
}

impl<W: Write> Lines<W> {
    fn begin(file: W, bytes_max: u64) -> Self {
        Self {
            file,
            waiting: Vec::from(*b"["),
            bytes: 1,
            bytes_max,
            left_out: 0,
        }
    }

    fn push(&mut self, event: &Value) -> io::Result<()> {
        let before: &[u8] = if self.bytes == 1 { b"\n" } else { b",\n" };
        let line = event.to_string();
        let bytes = (before.len() + line.len()) as u64;
        if self.bytes + bytes > self.bytes_max {
            self.left_out += 1;
            return Ok(());
        }
        self.bytes += bytes;
        self.waiting.extend_from_slice(before);
        self.waiting.extend_from_slice(line.as_bytes());
        if self.waiting.len() < WRITE_BYTES {
            return Ok(());
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.waiting)?;
        self.waiting.clear();
        Ok(())
    }

    /// Closes the array. Gives how many events were left out, with those that were `lost` before; the file says it, too.
    fn end(mut self, process: &Process, lost: u64) -> io::Result<u64> {
        let left_out = self.left_out + lost;
        if left_out > 0 {
            let text = format!("{left_out} events were left out: the limit or a slow disk");
            let said = json!({ "ph": "M", "name": "process_labels", "pid": process.id, "tid": 0, "args": { "labels": text } });
            self.waiting.extend_from_slice(b",\n");
            self.waiting.extend_from_slice(said.to_string().as_bytes());
        }
        self.waiting.extend_from_slice(b"\n]\n");
        self.flush()?;
        Ok(left_out)
    }
}

#[cfg(test)]
mod tests {
    use shared::units::{Microbatch, PeerId, Round, Span, Step, Time};

    use super::*;

    fn mark(number: u16) -> Mark {
        let began = Time::ZERO + Span::from_millis(u64::from(number));
        Mark {
            track: [Track::Compute, Track::Wait, Track::Sent, Track::Received]
                [usize::from(number % 4)],
            name: "forward",
            began,
            ended: began + Span::from_micros(900),
            about: About {
                round: Some(Round(2)),
                step: Some(Step(1)),
                microbatch: Some(Microbatch(number)),
                peer: Some(PeerId(5)),
                bytes: Some(17),
            },
        }
    }

    fn written(lines: impl FnOnce(&mut Lines<&mut Vec<u8>>), bytes_max: u64) -> (Vec<u8>, u64) {
        let mut file = Vec::new();
        let process = Process {
            id: 7,
            origin_us: 1_000_000,
        };
        let mut array = Lines::begin(&mut file, bytes_max);
        lines(&mut array);
        let left_out = array.end(&process, 0).expect("memory takes it");
        (file, left_out)
    }

    #[test]
    fn a_whole_file_is_an_array_of_events_with_times_since_1970() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.json");
        let origin = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let trace = TraceFile::create(&path, "anchovy", &[9; 32], origin).expect("it is made");
        let handle = trace.handle();
        handle.seated(StageRange { first: 2, end: 4 }, 5);
        (0..4).for_each(|number| handle.mark(mark(number)));
        assert_eq!(trace.finish().expect("it is written"), 0);
        let text = std::fs::read_to_string(&path).expect("it is there");
        let events: Vec<Value> = serde_json::from_str(&text).expect("JSON");
        let kinds: Vec<_> = events.iter().filter_map(|it| it["ph"].as_str()).collect();
        let expected = ["M", "M", "M", "M", "M", "M", "M", "X", "X", "b", "e", "i"];
        assert_eq!(kinds, expected);
        assert_eq!(events[0]["args"]["name"], "anchovy");
        let first = &events[7];
        assert_eq!(first["ts"], 1_700_000_000_000_000_u64);
        assert_eq!(first["dur"], 900);
        let about = json!({ "round": 2, "step": 1, "microbatch": 0, "peer": 5, "bytes": 17 });
        assert_eq!(first["args"], about);
        assert_eq!(events[9]["id"], events[10]["id"]);
        assert!(events.iter().all(|it| it["pid"] == events[0]["pid"]));
    }

    #[test]
    fn a_trace_ends_at_its_limit_and_says_what_is_left_out() {
        let event = json!({ "n": 1 });
        let fill = |lines: &mut Lines<&mut Vec<u8>>| {
            (0..100).for_each(|_| lines.push(&event).expect("memory takes it"));
        };
        let (whole, left_out) = written(fill, 1 << 20);
        assert_eq!(left_out, 0);
        let events: Vec<Value> = serde_json::from_slice(&whole).expect("JSON");
        assert_eq!(events.len(), 100);
        let (short, left_out) = written(fill, 100);
        let events: Vec<Value> = serde_json::from_slice(&short).expect("JSON");
        // One more says it.
        assert_eq!(events.len() as u64 - 1 + left_out, 100);
        assert!(left_out > 50, "{left_out}");
    }

    #[test]
    fn what_is_flushed_lacks_nothing_but_its_end() {
        let mut file = Vec::new();
        let mut lines = Lines::begin(&mut file, 1 << 20);
        (0..9).for_each(|n| lines.push(&json!({ "n": n })).expect("memory takes it"));
        lines.flush().expect("memory takes it");
        file.push(b']');
        let events: Vec<Value> = serde_json::from_slice(&file).expect("JSON");
        assert_eq!(events.len(), 9);
    }
}
