//! What other volunteers send, and what becomes of links and transfers.

use super::fetch::FetchOutput;
use super::link::{Link, LinkOutput};
use super::replicas::Slice;
use super::work::{Side, Work, WorkOutput};
use super::{Event, Output, Peer};
use crate::compute::Input;
use crate::config::run::RunConfig;
use crate::limits::EARLY_FRAMES_MAX;
use crate::transport::LinkEvent;
use crate::units::{PeerId, Time};
#[cfg(any(test, feature = "sim"))]
use crate::wire::frame::StepEnd;
use crate::wire::frame::{Frame, Header, Mode, Place};
use crate::wire::payload;
use crate::wire::signal::{Suspicion, Up};

/// What is wrong with a forward frame whose sizes or tokens are another model's.
const FORWARD_MISFIT: &str = "a forward frame that does not fit the model";

/// What is wrong with the sizes of a frame about a microbatch, before it is kept or read.
fn misfit(config: &RunConfig, frame: &Frame) -> Option<&'static str> {
    let bytes = frame.payload.len();
    let of_step = config.training.microbatches;
    match &frame.header {
        Header::Forward {
            slot,
            mode,
            sequences,
            microbatches,
            ..
        } => {
            let expected = match mode {
                Mode::Train => of_step,
                Mode::Evaluate => of_step.max(*microbatches),
            };
            let boundary = config.forward_boundary_bytes(mode.opens(*slot));
            let fits = *sequences == config.microbatch_sequences()
                && *microbatches == expected
                && bytes == config.token_ids_bytes() + boundary;
            (!fits).then_some(FORWARD_MISFIT)
        }
        Header::Backward {
            slot,
            mode: Mode::Train,
            ..
        } => {
            let expected = config.backward_payload_bytes(slot.place.round, slot.microbatch);
            let fits = slot.microbatch.0 < of_step && bytes == expected;
            (!fits).then_some("a gradient that does not fit the model")
        }
        Header::Backward { .. }
        | Header::Apply { .. }
        | Header::Hello { .. }
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
        | Header::Drawn { .. }
        | Header::Forget { .. } => None,
    }
}

impl Peer {
    /// News of a link, from the transport.
    pub fn handle_link_event(&mut self, now: Time, peer: PeerId, event: LinkEvent) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.handle_event(now, event, &self.identity.key);
        }
        self.pump(now);
    }

    /// Bytes that are no frame arrived from `peer`: why they are none.
    pub fn handle_malformed(&mut self, now: Time, peer: PeerId, reason: &str) {
        self.refuse_link(peer, reason);
        self.pump(now);
    }

    /// Part of a frame arrived from `peer`: it is alive.
    pub fn handle_heard(&mut self, now: Time, peer: PeerId) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.heard(now);
        }
    }

    /// A frame arrived from `peer`.
    pub fn handle_frame(&mut self, now: Time, peer: PeerId, frame: Frame) {
        self.handle_heard(now, peer);
        self.handle_frame_aside(now, peer, frame);
    }

    /// A frame that may have come by any of the link's connections. That the first one's path works is not concluded from it:
    /// [`Peer::handle_heard`] says so.
    pub fn handle_frame_aside(&mut self, now: Time, peer: PeerId, frame: Frame) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        self.tally.frame(peer, &frame, false, self.config.as_ref());
        if let Header::Hello { signature, .. } = &frame.header {
            link.handle_hello(now, signature);
        } else if link.is_up() {
            if let Header::Forward { slot, mode, .. } | Header::Backward { slot, mode, .. } =
                frame.header
            {
                self.send(now, peer, Frame::from(Header::Received { slot, mode }));
            }
            self.frame(now, peer, frame);
        } else if let Some(slice) = Slice::of(&frame).filter(|_| link.is_busy()) {
            // It overtook the `hello`, which goes over the other channel.
            self.merge_slice(peer, slice);
        }
        self.pump(now);
    }

    fn frame(&mut self, now: Time, peer: PeerId, frame: Frame) {
        match &frame.header {
            // The driver, which cuts frames into messages and opens further connections, has read what it says.
            Header::Hello { .. } | Header::Arrived { .. } | Header::Flow(_) => {}
            Header::Keepalive { stamp_us, echo } => {
                if let Some(link) = self.links.get_mut(&peer) {
                    link.handle_keepalive(now, *stamp_us, *echo);
                }
            }
            Header::Received { slot, mode } => {
                if let Some(link) = self.links.get_mut(&peer) {
                    link.meter_mut().received(now, *slot, *mode);
                }
            }
            Header::Forward { slot, .. } | Header::Backward { slot, .. } => {
                self.place_frame(peer, slot.place, frame);
            }
            Header::Apply { place, .. } => self.place_frame(peer, *place, frame),
            Header::Credit {
                pipeline,
                epoch,
                granted,
                behind,
            } => {
                self.credits
                    .insert(peer, (*pipeline, *epoch, *granted, *behind));
                let (pipeline, epoch, granted) = (*pipeline, *epoch, *granted);
                self.seen_at(epoch, None);
                if let Some(work) = &mut self.work
                    && (work.place().pipeline, work.place().epoch) == (pipeline, epoch)
                    && work.order().next.is_some_and(|next| next.peer == peer)
                {
                    work.handle_credit(granted, *behind);
                }
            }
            Header::StateRequest {
                round,
                stage,
                offset,
            } => {
                self.state_asked(now, peer, (*round, *stage, *offset));
            }
            Header::StateChunk {
                round,
                stage,
                offset,
                total,
            } => {
                if let Some(transfer) = self.transfers.get_mut(&(*round, *stage)) {
                    transfer.handle_piece(now, peer, *offset, *total, &frame.payload);
                }
            }
            Header::Bye { reason } => {
                if let Some(link) = self.links.get_mut(&peer) {
                    link.handle_bye(reason);
                }
            }
            Header::Merge { .. } => {
                if let Some(slice) = Slice::of(&frame) {
                    self.merge_slice(peer, slice);
                }
            }
            Header::MergeTaken { attempt, taken } => self.merge_taken(peer, *attempt, *taken),
            Header::MergeNorm {
                attempt,
                norm_squared,
            } => self.merge_norm(peer, *attempt, *norm_squared),
            Header::MergeScale { attempt, scale } => self.merge_scale(peer, *attempt, *scale),
            Header::Text { .. } | Header::Drawn { .. } | Header::Forget { .. } => {
                self.text_frame(now, peer, frame);
            }
        }
    }

    /// A frame about a microbatch: of our line-up and round, of an older one, or of one to come.
    fn place_frame(&mut self, peer: PeerId, place: Place, frame: Frame) {
        if let Some(what) = self.config.as_ref().and_then(|it| misfit(it, &frame)) {
            return self.refuse_link(peer, what);
        }
        let current = self.work.as_ref().map(Work::place);
        #[cfg(any(test, feature = "sim"))]
        let place = match current {
            Some(current) if self.broken.ignore_epoch => current,
            Some(_) | None => place,
        };
        if current == Some(place) {
            self.current_frame(peer, frame);
        } else if current
            .is_none_or(|current| (place.epoch, place.round) > (current.epoch, current.round))
        {
            self.seen_at(place.epoch, Some(place.round));
            // Nobody else was granted any credit, and so has none to send.
            let waiting = self.early.iter().filter(|(from, _)| *from == peer).count();
            if waiting < EARLY_FRAMES_MAX && self.is_neighbour(peer) {
                self.early.push_back((peer, frame));
            }
        }
    }

    fn current_frame(&mut self, peer: PeerId, frame: Frame) {
        let (Some(work), Some(config)) = (&mut self.work, &self.config) else {
            return;
        };
        let is = |side: Option<crate::wire::signal::Neighbour>| {
            side.is_some_and(|neighbour| neighbour.peer == peer)
        };
        let (from_previous, from_next) = (is(work.order().previous), is(work.order().next));
        match frame.header {
            Header::Forward {
                slot,
                mode,
                sequences,
                first_sample,
                previous,
                ..
            } if from_previous => {
                let (context, vocabulary) = (config.model.context, config.model.vocabulary);
                let payload = payload::decode_forward(
                    &frame.payload,
                    usize::from(sequences),
                    context,
                    vocabulary,
                    config.forward_boundary_bytes(mode.opens(slot)),
                );
                let Ok((tokens, boundary)) = payload else {
                    return self.refuse_link(peer, FORWARD_MISFIT);
                };
                #[cfg(any(test, feature = "sim"))]
                let previous =
                    previous.map(|end| stale_as_asked(self.broken, &mut self.stale, end));
                let input = Input {
                    tokens,
                    boundary: Some(boundary),
                    first_sample,
                };
                work.handle_forward(slot, mode, previous, input);
            }
            Header::Backward {
                slot,
                mode,
                loss_sum,
                norm_squared,
            } if from_next => {
                work.handle_backward(slot, mode, loss_sum, norm_squared, frame.payload);
            }
            Header::Apply {
                step, end, last, ..
            } if from_previous => {
                #[cfg(any(test, feature = "sim"))]
                let end = stale_as_asked(self.broken, &mut self.stale, end);
                work.handle_apply(step, end, last);
            }
            // From the wrong side of the pipe.
            Header::Forward { .. } | Header::Backward { .. } | Header::Apply { .. } => {
                self.refuse_link(peer, "a microbatch from the wrong side of the pipe");
            }
            // Not about a microbatch: dealt with before.
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
            | Header::Drawn { .. }
            | Header::Forget { .. } => {}
        }
    }

    pub(super) fn send(&mut self, now: Time, to: PeerId, frame: Frame) {
        if let Header::Forward { slot, mode, .. } | Header::Backward { slot, mode, .. } =
            frame.header
            && let Some(link) = self.links.get_mut(&to)
        {
            link.meter_mut().sent(now, slot, mode, frame.payload.len());
        }
        self.tally.frame(to, &frame, true, self.config.as_ref());
        self.out(Output::Frame(to, frame));
    }

    /// Closes the link to a peer that sent what no correct build sends.
    pub(super) fn refuse_link(&mut self, peer: PeerId, reason: &str) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.refuse(reason);
        }
    }

    /// Carries out what links want. Returns whether there was anything.
    pub(super) fn pump_links(&mut self, now: Time) -> bool {
        let outputs: Vec<(PeerId, LinkOutput)> = self
            .links
            .iter_mut()
            .flat_map(|(peer, link)| {
                std::iter::from_fn(|| link.poll_output()).map(|output| (*peer, output))
            })
            .collect();
        let any = !outputs.is_empty();
        for (peer, output) in outputs {
            self.link_output(now, peer, output);
        }
        any
    }

    fn link_output(&mut self, now: Time, peer: PeerId, output: LinkOutput) {
        match output {
            LinkOutput::Step(step) => self.out(Output::Link(peer, step)),
            LinkOutput::Signal(signal) => self.up(Up::Signal { to: peer, signal }),
            LinkOutput::Hello(signature) => {
                let Some(me) = self.me else { return };
                let header = Header::Hello {
                    peer: me,
                    signature,
                };
                self.send(now, peer, Frame::from(header));
            }
            LinkOutput::Keepalive => {
                if let Some(header) = self.links.get_mut(&peer).map(|link| link.keepalive(now)) {
                    self.send(now, peer, Frame::from(header));
                }
            }
            LinkOutput::Bye(reason) => self.send(now, peer, Frame::from(Header::bye(&reason))),
            LinkOutput::Up { relayed } => {
                self.tally.link_up(peer, relayed);
                self.out(Output::Event(Event::LinkUp { peer, relayed }));
                for transfer in self.transfers.values_mut() {
                    transfer.handle_link(now, peer);
                }
                self.merge_linked(peer);
            }
            LinkOutput::Disturbed => self.out(Output::Event(Event::LinkDisturbed { peer })),
            LinkOutput::Lost(suspicion, reason) => self.link_lost(now, peer, suspicion, reason),
        }
    }

    fn link_lost(&mut self, now: Time, peer: PeerId, suspicion: Suspicion, reason: String) {
        self.tally.link_lost(peer);
        self.out(Output::Event(Event::LinkLost { peer, reason }));
        let is_of_use = self.is_neighbour(peer) || self.merge.needs(peer);
        self.forget_frames(now, peer);
        // Whoever sends broken frames is told of even by those that only take a state from it.
        if is_of_use || suspicion == Suspicion::Malformed {
            self.up(Up::Suspect {
                place: self.order().map(|order| order.place),
                peer,
                suspicion,
            });
        }
    }

    /// Carries out what transfers want. Returns whether there was anything.
    pub(super) fn pump_transfers(&mut self, now: Time) -> bool {
        let keys: Vec<_> = self.transfers.keys().copied().collect();
        let mut any = false;
        for key in keys {
            while let Some(output) = self
                .transfers
                .get_mut(&key)
                .and_then(super::fetch::Transfer::poll_output)
            {
                any = true;
                self.transfer_output(now, key, output);
            }
        }
        any
    }

    fn transfer_output(
        &mut self,
        now: Time,
        key: (crate::units::Round, crate::units::StageId),
        output: FetchOutput,
    ) {
        let (round, stage) = key;
        let Some(held) = self.transfers.get(&key).map(|transfer| *transfer.held()) else {
            return;
        };
        match output {
            FetchOutput::Link(peer) => {
                let public_key = self.keys.get(&peer).copied();
                let is_up = self.link_mut(now, peer, public_key).map(|link| {
                    link.want(now);
                    link.is_up()
                });
                if let Some(transfer) = self.transfers.get_mut(&key) {
                    match is_up {
                        Some(true) => transfer.handle_link(now, peer),
                        Some(false) => {}
                        None => transfer.handle_lost(now, peer),
                    }
                }
            }
            FetchOutput::Request { peer, offset } => {
                let header = Header::StateRequest {
                    round,
                    stage,
                    offset,
                };
                self.send(now, peer, Frame::from(header));
            }
            FetchOutput::Download(path) => self.out(Output::Download { held, path }),
            FetchOutput::Complete(blob) => {
                self.transfers.remove(&key);
                self.kept.insert(held, blob);
                if self.copies.remove(&key) {
                    self.up(Up::Copied { held });
                }
            }
            FetchOutput::Exhausted => {
                self.transfers.remove(&key);
                self.copies.remove(&key);
                self.up(Up::Missing { round, stage });
            }
        }
    }

    /// Carries out what the seat wants. Returns whether there was anything.
    pub(super) fn pump_work(&mut self, now: Time) -> bool {
        let Some(work) = &mut self.work else {
            return false;
        };
        let Some(output) = work.poll_output() else {
            return false;
        };
        let order = work.order();
        let neighbour = |side| match side {
            Side::Previous => order.previous,
            Side::Next => order.next,
        };
        match output {
            WorkOutput::Frame(side, frame) => {
                if let Some(to) = neighbour(side) {
                    self.send(now, to.peer, frame);
                }
            }
            WorkOutput::Refuse(side, reason) => {
                if let Some(to) = neighbour(side) {
                    self.refuse_link(to.peer, &reason);
                }
            }
            WorkOutput::Up(message) => {
                if let Up::Report(report) = &message {
                    let (place, steps, loss) = (report.place, report.steps, report.loss);
                    self.out(Output::Event(Event::Step { place, steps, loss }));
                }
                self.up(message);
            }
            WorkOutput::Tokens { mode, samples } => self.out(Output::Tokens { mode, samples }),
            WorkOutput::Keep(states) => {
                for (held, blob) in states {
                    self.kept.insert(held, blob);
                }
            }
            WorkOutput::Drop(states) => states.iter().for_each(|held| self.kept.remove(held)),
            WorkOutput::Wrong(states) => self.states_refused(&states),
        }
        true
    }

    /// Whether the link to `peer` is up: for figures and checks.
    pub fn is_linked(&self, peer: PeerId) -> bool {
        self.links.get(&peer).is_some_and(Link::is_up)
    }
}

/// With the clip scale of the step before, where a test breaks that rule.
#[cfg(any(test, feature = "sim"))]
fn stale_as_asked(broken: super::BrokenRules, stale: &mut f32, end: StepEnd) -> StepEnd {
    match broken.stale_scale {
        true => StepEnd {
            scale: std::mem::replace(stale, end.scale),
            ..end
        },
        false => end,
    }
}
