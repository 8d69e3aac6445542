//! What happens to volunteers' processes, and what their peers want done.

use bytes::Bytes;

use super::compute::{FakeCompute, tokens};
use super::network::ProcessId;
use super::summary::Failure;
use super::volunteer::LinkEnd;
use super::world::{Event, World};
use crate::compute::Job;
use crate::coordinator::roster::ConnectionId;
use crate::peer::{self, Exit};
use crate::transport::{LinkEvent, LinkStep};
use crate::units::{Digest, PeerId, Span};
use crate::wire::frame::{Frame, Header};
use crate::wire::signal::{Down, Held};

impl World {
    pub(super) fn happen_to_process(&mut self, id: ProcessId, event: Event) {
        let now = self.now;
        if let Event::Connect { .. } = event {
            return self.connect(id);
        }
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let sequences = u64::from(self.config.microbatch_sequences());
        match event {
            Event::ToVolunteer {
                connection,
                message,
                ..
            } => {
                if process.connection == Some(connection) {
                    if let Down::Welcome(welcome) = &*message {
                        self.numbers.insert(welcome.peer, id);
                    }
                    process.peer.handle_host(now, *message);
                }
            }
            Event::Disconnected { connection, .. } => {
                if process.connection == Some(connection) {
                    process.connection = None;
                    process.peer.handle_host_closed(now);
                    let wait = self.dice.millis(250, 2_000);
                    self.after(wait, Event::Connect { process: id });
                }
            }
            Event::Timer { at, .. } => {
                if process.timer == Some(at) {
                    process.timer = None;
                    process.peer.handle_timeout(now);
                }
            }
            Event::Shelved { held, blob, .. } => {
                let shelf = self.shelves.entry(process.session).or_default();
                match blob {
                    Some(blob) => shelf.insert(held, blob),
                    None => shelf.remove(&held),
                };
            }
            Event::Prepared { .. } => {
                let shelf = self.shelves.entry(process.session).or_default();
                let states = shelf.iter().map(|(held, blob)| (*held, blob.clone()));
                process.peer.handle_kept(states.collect());
                let config = self.config.clone();
                process.compute = Some(match self.states_at_length {
                    true => FakeCompute::at_length(config),
                    false => FakeCompute::new(config),
                });
                let speed = process.speed(sequences);
                process.peer.handle_prepared(now, Digest::default(), speed);
            }
            // A device that hangs answers later; everything else goes on.
            Event::Done { .. } | Event::Measured { .. }
                if process.hung_until.is_some_and(|until| now < until) =>
            {
                let until = process.hung_until.unwrap_or(now);
                self.at(until, event);
            }
            Event::Done { .. } => {
                if let (Some(job), Some(compute)) = (process.job.take(), &mut process.compute) {
                    let done = compute.run(&job);
                    process.peer.handle_done(now, done);
                }
            }
            Event::Measured { .. } => {
                let speed = process.speed(sequences);
                process.peer.handle_measured(now, Some(speed.block_us));
            }
            Event::Tokens { mode, samples, .. } => {
                let tokens = tokens(&self.config, mode, samples);
                process.peer.handle_tokens(now, mode, samples, &tokens);
            }
            Event::Downloaded { held, blob, .. } => process.peer.handle_download(now, &held, blob),
            Event::Link { peer, event, .. } => self.happen_to_link(id, peer, event),
            Event::Frame {
                from,
                to,
                generation,
                frame,
                ..
            } if process.peer.id() == Some(to) => {
                let end = process.links.get(&from);
                if end.is_some_and(|end| end.open && end.connection == generation) {
                    process.peer.handle_frame(now, from, *frame);
                }
            }
            // It was for whoever this one was before.
            Event::Frame { .. } => {}
            Event::Connect { .. }
            | Event::HostStart
            | Event::HostTimer { .. }
            | Event::Synced { .. }
            | Event::Stored { .. }
            | Event::Manifest { .. }
            | Event::ToHost { .. }
            | Event::HostSees { .. }
            | Event::Fault
            | Event::Wanted => unreachable!("it happens to the host, or was dealt with"),
        }
    }

    fn connect(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        if process.connection.is_some() {
            return;
        }
        let Some(host) = &mut self.host else {
            let wait = self.dice.millis(250, 2_000);
            return self.after(wait, Event::Connect { process: id });
        };
        self.connected += 1;
        let connection = ConnectionId(self.connected);
        process.connection = Some(connection);
        process.peer.handle_host_open();
        host.handle_connected(connection);
        self.connections.insert(connection, id);
    }

    fn happen_to_link(&mut self, id: ProcessId, peer: PeerId, event: LinkEvent) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let Some(end) = process.links.get_mut(&peer) else {
            return;
        };
        match &event {
            LinkEvent::Open { generation, .. } if *generation == end.generation => end.open = true,
            LinkEvent::Down { generation } if *generation == end.connection => {
                process.links.remove(&peer);
            }
            LinkEvent::Description { .. }
            | LinkEvent::Candidate { .. }
            | LinkEvent::Open { .. }
            | LinkEvent::Disturbed { .. }
            | LinkEvent::Resumed { .. }
            | LinkEvent::Down { .. } => {}
        }
        process.peer.handle_link_event(now, peer, event);
    }

    /// Carries out what a process wants.
    ///
    /// # Errors
    /// It ended for a reason that nobody gave it.
    pub(super) fn settle_process(&mut self, id: ProcessId) -> Result<(), Failure> {
        while let Some(output) = self
            .processes
            .get_mut(&id)
            .and_then(|process| process.peer.poll_output())
        {
            self.carry_out_for_process(id, output)?;
        }
        let Some(process) = self.processes.get_mut(&id) else {
            return Ok(());
        };
        let wanted = process.peer.poll_timeout().map(|at| at.max(self.now));
        if wanted != process.timer {
            process.timer = wanted;
            if let Some(at) = wanted {
                self.at(at, Event::Timer { process: id, at });
            }
        }
        Ok(())
    }

    fn carry_out_for_process(
        &mut self,
        id: ProcessId,
        output: peer::Output,
    ) -> Result<(), Failure> {
        let Some(process) = self.processes.get_mut(&id) else {
            return Ok(());
        };
        let sequences = u64::from(self.config.microbatch_sequences());
        match output {
            peer::Output::Host(message) => {
                #[cfg(test)]
                if let crate::wire::signal::Up::Links { links, .. } = &message {
                    let told = self.links_told.entry(id).or_default();
                    *told = (told.0 + 1, links.clone());
                }
                if let Some(connection) = process.connection {
                    let wait = self.one_way();
                    let message = Box::new(message);
                    self.after(
                        wait,
                        Event::ToHost {
                            connection,
                            message,
                        },
                    );
                }
            }
            peer::Output::Frame(to, frame) => {
                let is_state = matches!(frame.header, Header::StateChunk { .. });
                self.send(id, to, frame);
                // Its channels take whatever it has.
                if let Some(process) = self.processes.get_mut(&id).filter(|_| is_state) {
                    process.peer.handle_state_sent(self.now, to);
                }
            }
            peer::Output::Link(peer, step) => self.link_step(id, peer, step),
            peer::Output::Prepare(_) => {
                self.after(Span::from_millis(300), Event::Prepared { process: id });
            }
            peer::Output::Compute(job) => {
                if let Job::Seat { stages, .. } = &job {
                    process.seat_stages = stages.count() as u64;
                }
                // A block takes twice as long backward as forward.
                let third_us = process.microbatch_us(sequences) * process.seat_stages / 3;
                let wait = match &job {
                    Job::Backward { .. } => Span::from_micros(2 * third_us),
                    Job::Forward { .. } => Span::from_micros(third_us),
                    Job::Apply { .. } | Job::Generate(_) | Job::Forget { .. } => process.job(1),
                    Job::Seat { .. } | Job::Snapshot { .. } => process.job(4),
                    Job::Contribute { .. }
                    | Job::Average { .. }
                    | Job::OuterStep { .. }
                    | Job::Norm { .. }
                    | Job::GradientStep { .. } => process.job(1),
                };
                process.job = Some(job);
                self.after(wait, Event::Done { process: id });
            }
            peer::Output::Measure => {
                let wait = Span::from_micros(process.microbatch_us(sequences));
                self.after(wait, Event::Measured { process: id });
            }
            peer::Output::Tokens { mode, samples } => {
                let wait = self.dice.millis(5, 80);
                self.after(
                    wait,
                    Event::Tokens {
                        process: id,
                        mode,
                        samples,
                    },
                );
            }
            peer::Output::Download { held, path } => {
                let name: Option<Digest> =
                    path.rsplit('/').next().and_then(|name| name.parse().ok());
                let blob = name.and_then(|name| self.blobs.get(&name)).cloned();
                let wait = self.dice.millis(20, 500);
                self.after(
                    wait,
                    Event::Downloaded {
                        process: id,
                        held,
                        blob,
                    },
                );
            }
            peer::Output::Upload { ticket, blob, .. } => {
                let incarnation = self.incarnation;
                let wait = self.dice.millis(20, 800);
                self.after(
                    wait,
                    Event::Stored {
                        incarnation,
                        ticket,
                        blob,
                    },
                );
            }
            peer::Output::Shelve(held, blob) => self.shelve(id, held, Some(blob)),
            peer::Output::Unshelve(held) => self.shelve(id, held, None),
            // Nobody here sends what no correct build does, so nobody may be taken for such a one.
            peer::Output::Event(peer::Event::LinkLost { peer, reason })
                if reason.contains("no correct build") =>
            {
                return Err(self.failure(format!("process {id} refuses {peer}: {reason}")));
            }
            peer::Output::IceServers(_) | peer::Output::Event(_) => {}
            peer::Output::Exit(exit) => return self.exit(id, &exit),
        }
        Ok(())
    }

    /// A process ends by itself. No volunteer here does what a host refuses.
    fn exit(&mut self, id: ProcessId, exit: &Exit) -> Result<(), Failure> {
        self.bury(id);
        match exit {
            Exit::Refused { code, text, .. } => {
                Err(self.failure(format!("process {id} was refused, {code:?}: {text}")))
            }
            Exit::Device { reason } => Err(self.failure(format!("device of {id}: {reason}"))),
            Exit::Finished | Exit::Stopped | Exit::HostAway | Exit::RunOver => Ok(()),
        }
    }

    /// A disk does one thing after the other, each in its time.
    fn shelve(&mut self, id: ProcessId, held: Held, blob: Option<Bytes>) {
        let takes = self.dice.millis(1, 60);
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        process.disk_free = process.disk_free.max(self.now) + takes;
        let at = process.disk_free;
        self.at(
            at,
            Event::Shelved {
                process: id,
                held,
                blob,
            },
        );
    }

    /// A process is gone: its sockets close, now or when the other ends notice.
    pub(super) fn bury(&mut self, id: ProcessId) {
        let Some(process) = self.processes.remove(&id) else {
            return;
        };
        if let Some(connection) = process.connection {
            self.connections.remove(&connection);
            let wait = self.one_way() + Span::from_micros(1);
            self.after(wait, Event::HostSees { connection });
        }
        let Some(me) = process.peer.id() else { return };
        for (peer, end) in process.links {
            self.link_ends(peer, me, end.connection, Span::from_secs(3));
        }
    }

    fn link_ends(&mut self, at: PeerId, other: PeerId, generation: u32, after: Span) {
        if let Some(&process) = self.numbers.get(&at) {
            let event = LinkEvent::Down { generation };
            self.after(
                after,
                Event::Link {
                    process,
                    peer: other,
                    event,
                },
            );
        }
    }

    fn send(&mut self, from: ProcessId, to: PeerId, frame: Frame) {
        let Some(process) = self.processes.get(&from) else {
            return;
        };
        let (Some(me), Some(end)) = (process.peer.id(), process.links.get(&to)) else {
            return;
        };
        let (generation, open) = (end.connection, end.open);
        let Some(&receiver) = self.numbers.get(&to) else {
            return;
        };
        if !open {
            return;
        }
        // A link that breaks keeps what was sent, and sends it again once it is mended.
        let Some(leaves) = self.network.passes_at(self.now, from, receiver) else {
            return;
        };
        let at = self
            .network
            .arrival(leaves, &mut self.dice, (from, receiver), &frame);
        // What was sent is what arrives, byte for byte: through the real codec.
        let frame = Box::new(Frame::decode(&frame.encode()).expect("a peer sends valid frames"));
        self.at(
            at,
            Event::Frame {
                from: me,
                to,
                process: receiver,
                generation,
                frame,
            },
        );
    }

    fn link_step(&mut self, id: ProcessId, peer: PeerId, step: LinkStep) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let Some(me) = process.peer.id() else { return };
        match step {
            LinkStep::Offer { generation, .. } | LinkStep::Answer { generation, .. } => {
                let end = LinkEnd {
                    connection: generation,
                    generation,
                    open: false,
                };
                process.links.insert(peer, end);
                self.describe(id, peer, generation);
            }
            LinkStep::Restart { generation } | LinkStep::AnswerRestart { generation, .. } => {
                if let Some(end) = process.links.get_mut(&peer) {
                    end.generation = generation;
                    self.describe(id, peer, generation);
                }
            }
            LinkStep::Accept { generation, .. } => {
                let restarts = process.links.get(&peer).is_some_and(|end| end.open);
                self.open_link(id, me, peer, generation, restarts);
            }
            LinkStep::Candidate { .. } => {}
            LinkStep::Close => {
                if let Some(end) = process.links.remove(&peer) {
                    self.link_ends(peer, me, end.connection, Span::from_millis(200));
                }
            }
        }
    }

    fn describe(&mut self, id: ProcessId, peer: PeerId, generation: u32) {
        let event = LinkEvent::Description {
            generation,
            sdp: format!("v=0\r\na=fingerprint:sha-256 AA:{id}\r\n"),
        };
        let process = id;
        self.after(
            Span::from_millis(5),
            Event::Link {
                process,
                peer,
                event,
            },
        );
    }

    /// Both ends know each other's description: the link opens, or is mended, if anything gets through.
    fn open_link(
        &mut self,
        id: ProcessId,
        me: PeerId,
        peer: PeerId,
        generation: u32,
        restarts: bool,
    ) {
        let Some(&other) = self.numbers.get(&peer) else {
            return;
        };
        if !self.network.connects(self.now, id, other) {
            return;
        }
        let wait = self.dice.millis(200, 900);
        for (process, peer, local, remote) in [(id, peer, id, other), (other, me, other, id)] {
            let relayed = false;
            let event = match restarts {
                true => LinkEvent::Resumed {
                    generation,
                    relayed,
                },
                false => LinkEvent::Open {
                    generation,
                    local_fingerprint: format!("AA:{local}"),
                    remote_fingerprint: format!("AA:{remote}"),
                    relayed,
                },
            };
            self.after(
                wait,
                Event::Link {
                    process,
                    peer,
                    event,
                },
            );
        }
    }
}
