//! What goes wrong: one fault at a time, drawn from the seed; then peace.

use super::network::ProcessId;
use super::summary::Failure;
use super::world::{Event, World};
use crate::peer::Peer;
use crate::units::{Span, Time};
use crate::wire::signal::{Down, Pause};

/// Volunteers that a world may have at most.
const VOLUNTEERS_MAX: usize = 10;

/// Tells messages of one kind from others.
pub(super) type OfKind = fn(&Down) -> bool;

impl World {
    /// One fault, and the next one later.
    pub(super) fn fault(&mut self) -> Result<(), Failure> {
        if self.now >= self.faults_until {
            return Ok(());
        }
        self.summary.faults += 1;
        let alive = self.alive();
        match self.dice.below(21) {
            0 | 1 => self.kill(),
            2 => self.kill_silently(),
            3 | 4 => self.freeze(),
            5 if self.host.is_some() => self.crash_host(),
            6 | 7 => self.cut(),
            8 => self.say(|peer, now| peer.finish(now)),
            9 => self.say(|peer, _| peer.stop()),
            11 => self.say(|peer, _| match peer.stats().paused {
                None => peer.pause(Pause::Battery),
                Some(_) => peer.resume(),
            }),
            12 => {
                let percent = u8::try_from(self.dice.between(10, 101)).expect("at most 100");
                self.say(|peer, now| peer.throttle(now, percent));
            }
            13 | 14 => self.reload()?,
            10 if self.dice.once_in(3) => {
                for id in alive {
                    self.bury(id);
                }
            }
            15 => self.power_cut(),
            16 => self.hang(),
            17 => self.lose_message(),
            18 => self.split(),
            19 | 20 => self.slip(),
            _ => {}
        }
        while self.processes.len() < 2
            || (self.processes.len() < VOLUNTEERS_MAX && self.dice.once_in(2))
        {
            self.spawn();
        }
        let wait = self.dice.millis(1_000, 25_000);
        self.after(wait, Event::Fault);
        Ok(())
    }

    /// Processes that run now.
    pub(super) fn alive(&self) -> Vec<ProcessId> {
        self.processes.keys().copied().collect()
    }

    /// Whether this message to a process is the one that gets lost.
    pub(super) fn is_lost(&mut self, process: ProcessId, message: &Down) -> bool {
        self.lost
            .take_if(|(whose, is_it)| *whose == process && is_it(message))
            .is_some()
    }

    fn anyone(&mut self) -> Option<ProcessId> {
        let alive = self.alive();
        self.dice.pick(&alive)
    }

    /// `kill -9`: the kernel closes its sockets.
    fn kill(&mut self) {
        if let Some(id) = self.anyone() {
            self.bury(id);
        }
    }

    /// The cable is pulled: nobody is told.
    fn kill_silently(&mut self) {
        let Some(id) = self.anyone() else { return };
        if let Some(process) = self.processes.remove(&id)
            && let Some(connection) = process.connection
        {
            self.connections.remove(&connection);
        }
    }

    fn freeze(&mut self) {
        let span = self.dice.millis(500, 30_000);
        let until = self.now + span;
        if let Some(id) = self.anyone()
            && let Some(process) = self.processes.get_mut(&id)
        {
            process.frozen_until = Some(until);
        }
    }

    /// A device does not answer, while its process and its links live.
    fn hang(&mut self) {
        let until = self.now + self.dice.millis(5_000, 90_000);
        if let Some(id) = self.anyone()
            && let Some(process) = self.processes.get_mut(&id)
        {
            process.hung_until = Some(until);
        }
    }

    /// Something that a seat must hear of does not reach it.
    fn lose_message(&mut self) {
        let is_of_a_seat: OfKind = |message| {
            matches!(
                message,
                Down::Seat(_) | Down::Begin { .. } | Down::Commit { .. }
            )
        };
        self.lost = self.anyone().map(|id| (id, is_of_a_seat));
    }

    /// Nobody of one half gets through to anybody of the other, while all reach the host.
    fn split(&mut self) {
        let until = self.now + self.dice.millis(500, 40_000);
        let (mut one, mut other) = (Vec::new(), Vec::new());
        for id in self.alive() {
            let half = if self.dice.once_in(2) {
                &mut one
            } else {
                &mut other
            };
            half.push(id);
        }
        for a in one {
            for b in &other {
                self.network.cut(a, *b, until);
            }
        }
    }

    /// A device computes its next merge wrongly.
    fn slip(&mut self) {
        if let Some(id) = self.anyone()
            && let Some(compute) = self
                .processes
                .get_mut(&id)
                .and_then(|it| it.compute.as_mut())
        {
            compute.slip();
        }
    }

    fn cut(&mut self) {
        let (a, b) = (self.anyone(), self.anyone());
        let until = self.now + self.dice.millis(500, 40_000);
        let forever = self.dice.once_in(4);
        if let (Some(a), Some(b)) = (a, b)
            && a != b
        {
            self.network.cut(a, b, until);
            if forever {
                self.network.separate(a, b);
            }
        }
    }

    /// A person at a terminal.
    fn say(&mut self, command: impl FnOnce(&mut Peer, Time)) {
        if let Some(id) = self.anyone()
            && let Some(process) = self.processes.get_mut(&id)
            && !process.is_frozen(self.now)
        {
            command(&mut process.peer, self.now);
            // Its outputs leave with its next event.
            self.after(
                Span::ZERO,
                Event::Timer {
                    process: id,
                    at: self.now,
                },
            );
        }
    }

    /// A page is loaded again: its process says so and ends, another one of the same session comes.
    fn reload(&mut self) -> Result<(), Failure> {
        let Some(id) = self.anyone() else {
            return Ok(());
        };
        let now = self.now;
        let Some(process) = self
            .processes
            .get_mut(&id)
            .filter(|process| !process.is_frozen(now))
        else {
            return Ok(());
        };
        let (session, pace_ms) = (process.session, process.pace_ms);
        process.peer.reload();
        self.settle_process(id)?;
        self.start(session, pace_ms);
        Ok(())
    }

    /// Everybody is killed and comes back with what is on its disk, under the session of before or another.
    pub(super) fn power_cut(&mut self) {
        for id in self.alive() {
            let Some(process) = self.processes.get(&id) else {
                continue;
            };
            let (before, pace_ms) = (process.session, process.pace_ms);
            self.bury(id);
            let session = if self.dice.once_in(2) {
                before
            } else {
                self.new_session()
            };
            if let Some(shelf) = self.shelves.remove(&before) {
                self.shelves.insert(session, shelf);
            }
            self.start(session, pace_ms);
        }
    }

    /// Faults are over: links connect, enough volunteers are there.
    pub(super) fn make_peace(&mut self) {
        self.network.heal();
        self.lost = None;
        let now = self.now;
        for process in self.processes.values_mut() {
            process.peer.resume();
            process.hung_until = None;
            process.peer.throttle(now, 100);
        }
        while self.processes.len() < 5 {
            self.spawn();
        }
    }
}
