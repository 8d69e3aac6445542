//! What a volunteer does when: each job, each wait and each frame on its way, as a mark with its beginning and end.
//!
//! The driver sees all of them with a time; a [`Tracer`] puts beginnings and ends together and hands whole marks to whoever
//! asked for them. Without one it costs nothing. What marks are written as, and how many are kept, is not known here.
//!
//! Invariant: marks of [`Track::Compute`] follow each other, and so do those of [`Track::Wait`]; a wait begins when nothing
//! is computed and ends, at the latest, when something is. Begin with [`Mark`].

use std::collections::VecDeque;
use std::fmt;

use super::sent::Purpose;
use crate::compute::Job;
use crate::limits::TRACED_FRAMES_MAX;
use crate::peer::waiting::Wait;
use crate::units::{Microbatch, PeerId, Round, Step, Time};
use crate::wire::frame::{Frame, Header, Mode, Slot};

/// Where a mark belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Track {
    /// The device works: from when a job is handed to it until its result is back.
    Compute,
    /// The device waits.
    Wait,
    /// A frame is on its way: from when it is handed on until the other end says that it has it, or for frames that are
    /// not answered the moment.
    Sent,
    /// A whole frame is there: a moment.
    Received,
}

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Where it belongs.
    pub track: Track,
    /// What it was: a word.
    pub name: &'static str,
    /// When it began.
    pub began: Time,
    /// When it ended.
    pub ended: Time,
    /// What it was about.
    pub about: About,
}

/// What a mark is about, as far as that can be said of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Round that is worked on.
    pub round: Option<Round>,
    /// Step within it.
    pub step: Option<Step>,
    /// Microbatch within that.
    pub microbatch: Option<Microbatch>,
    /// The other end.
    pub peer: Option<PeerId>,
    /// Bytes of the payload.
    pub bytes: Option<usize>,
}

impl From<Slot> for About {
    fn from(slot: Slot) -> Self {
        Self {
            round: Some(slot.place.round),
            step: Some(slot.step),
            microbatch: Some(slot.microbatch),
            ..Self::default()
        }
    }
}

/// Takes marks. It must not wait.
type Sink = Box<dyn FnMut(Mark) + Send>;

/// Makes marks of what the driver sees, if anyone asked for them.
#[derive(Default)]
pub struct Tracer {
    sink: Option<Sink>,
    job: Option<(&'static str, About, Time)>,
    wait: Option<(Wait, Time)>,
    /// Microbatches that the other end has not acknowledged, oldest first.
    sent: VecDeque<Sending>,
}

#[derive(Debug)]
struct Sending {
    to: PeerId,
    slot: Slot,
    mode: Mode,
    name: &'static str,
    bytes: usize,
    began: Time,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer")
            .field("is_on", &self.sink.is_some())
            .finish_non_exhaustive()
    }
}

impl Tracer {
    /// One that hands whole marks to `sink`, which must not wait.
    pub fn new(sink: impl FnMut(Mark) + Send + 'static) -> Self {
        Self {
            sink: Some(Box::new(sink)),
            ..Self::default()
        }
    }

    fn mark(&mut self, track: Track, name: &'static str, times: (Time, Time), about: About) {
        let (began, ended) = times;
        if let Some(sink) = &mut self.sink {
            sink(Mark {
                track,
                name,
                began,
                ended,
                about,
            });
        }
    }

    /// A job is handed to the device.
    pub(super) fn begins(&mut self, now: Time, job: &Job) {
        if self.sink.is_some() {
            self.waits(now, None);
            let (name, about) = of_job(job);
            self.job = Some((name, about, now));
        }
    }

    /// Its result is back.
    pub(super) fn ends(&mut self, now: Time) {
        if let Some((name, about, began)) = self.job.take() {
            self.mark(Track::Compute, name, (began, now), about);
        }
    }

    /// What the device waits for from now on; `None` while there is no need to.
    pub(super) fn waits(&mut self, now: Time, wait: Option<Wait>) {
        if self.sink.is_none() || self.wait.map(|(wait, _)| wait) == wait {
            return;
        }
        if let Some((before, began)) = self.wait.take()
            && began < now
        {
            let about = About::default();
            self.mark(Track::Wait, before.word(), (began, now), about);
        }
        self.wait = wait.map(|wait| (wait, now));
    }

    /// A frame is handed on to be sent.
    pub(super) fn sends(&mut self, now: Time, to: PeerId, frame: &Frame) {
        if self.sink.is_none() {
            return;
        }
        let Some((name, about)) = of_frame(to, frame) else {
            return;
        };
        let (Header::Forward { slot, mode, .. } | Header::Backward { slot, mode, .. }) =
            frame.header
        else {
            return self.mark(Track::Sent, name, (now, now), about);
        };
        if self.sent.len() == TRACED_FRAMES_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back(Sending {
            to,
            slot,
            mode,
            name,
            bytes: frame.payload.len(),
            began: now,
        });
    }

    /// A whole frame is there.
    pub(super) fn receives(&mut self, now: Time, from: PeerId, frame: &Frame) {
        if self.sink.is_none() {
            return;
        }
        if let Header::Received { slot, mode } = frame.header {
            let is_it = |it: &Sending| (it.to, it.slot, it.mode) == (from, slot, mode);
            let index = self.sent.iter().position(is_it);
            if let Some(it) = index.and_then(|index| self.sent.remove(index)) {
                let about = About {
                    peer: Some(it.to),
                    bytes: Some(it.bytes),
                    ..it.slot.into()
                };
                self.mark(Track::Sent, it.name, (it.began, now), about);
            }
        } else if let Some((name, about)) = of_frame(from, frame) {
            self.mark(Track::Received, name, (now, now), about);
        }
    }
}

/// What a job is called, and what it is about.
fn of_job(job: &Job) -> (&'static str, About) {
    let none = About::default();
    match job {
        Job::Seat { .. } => ("load", none),
        Job::Forward {
            slot,
            mode: Mode::Train,
            ..
        } => ("forward", (*slot).into()),
        Job::Forward {
            slot,
            mode: Mode::Evaluate,
            ..
        } => ("evaluate", (*slot).into()),
        Job::Backward { slot, .. } => ("backward", (*slot).into()),
        Job::Apply { step, .. } => (
            "update",
            About {
                step: Some(*step),
                ..none
            },
        ),
        Job::Snapshot { round } => (
            "copy out",
            About {
                round: Some(*round),
                ..none
            },
        ),
        Job::Generate(_) => ("write", none),
        Job::Forget { .. } => ("forget", none),
        Job::Contribute { .. }
        | Job::Average { .. }
        | Job::OuterStep { .. }
        | Job::Norm { .. }
        | Job::GradientStep { .. } => ("merge", none),
    }
}

/// What a frame is called, and what it is about; `None` for what only keeps links and credit going.
fn of_frame(peer: PeerId, frame: &Frame) -> Option<(&'static str, About)> {
    let (slot, control) = match frame.header {
        Header::Forward { slot, .. } | Header::Backward { slot, .. } => (Some(slot), None),
        Header::Apply { last: true, .. } => (None, Some("end of round")),
        Header::Apply { last: false, .. } => (None, Some("end of step")),
        Header::Hello { .. }
        | Header::StateRequest { .. }
        | Header::StateChunk { .. }
        | Header::Credit { .. }
        | Header::Keepalive { .. }
        | Header::Bye { .. }
        | Header::Received { .. }
        | Header::Merge { .. }
        | Header::MergeNorm { .. }
        | Header::MergeScale { .. }
        | Header::Arrived { .. }
        | Header::Flow(_)
        | Header::MergeTaken { .. }
        | Header::Text { .. }
        | Header::Forget { .. } => (None, None),
        Header::Drawn { .. } => (None, Some("drawn")),
    };
    let name = match Purpose::of(&frame.header) {
        Purpose::Forward => "forward",
        Purpose::Backward => "backward",
        Purpose::Evaluation => "evaluation",
        Purpose::Merge => "merge",
        Purpose::State => "state",
        Purpose::Text => "text",
        Purpose::Control => control?,
    };
    let about = About {
        peer: Some(peer),
        bytes: Some(frame.payload.len()),
        ..slot.map_or_else(About::default, About::from)
    };
    Some((name, about))
}

#[cfg(test)]
mod tests;
