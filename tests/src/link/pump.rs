//! What carries packets between the ends' interfaces and the [`Exchange`]: a thread that sleeps until one comes or is due.
//!
//! Owns the TUN interfaces and the only clock. A TUN interface hands over each packet as it would go onto a wire: cut to
//! the MTU by the kernel, with its checksum, which a veth pair read by a packet socket does not (there both are left to
//! hardware that is not there). The thread takes all that has come and gives all that is due each time it wakes, and ends
//! when its [`Pump`] is dropped. What a packet meets on its way is not decided here. Begin with [`Pump::start`].

use std::io::{ErrorKind, PipeReader, PipeWriter, pipe};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::exchange::Exchange;
use crate::namespace::Namespace;
use crate::process::{Urgency, go_first};

/// The interface of an end. Not `tun0`: browsers take that for a VPN.
pub(super) const INTERFACE: &str = "eth0";
/// The longest IP packet: the interface's MTU is less, but nothing is ever cut off.
const PACKET_BYTES_MAX: usize = 65_535;
/// Packets taken from one interface in a row: what is due does not wait behind a sender that never stops.
const TAKEN_MAX: usize = 64;

/// The running thread; it ends with this.
#[derive(Debug)]
pub(super) struct Pump {
    exchange: Arc<Mutex<Exchange>>,
    /// The thread ends when this is closed.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<anyhow::Result<Duration>>>,
}

/// What the thread works with.
struct Works {
    interfaces: Vec<SyncDevice>,
    exchange: Arc<Mutex<Exchange>>,
    stop: PipeReader,
    begun: Instant,
    buffer: Box<[u8]>,
}

/// Why the thread woke.
enum Woken {
    /// These ends have sent something, or something is due.
    By(Vec<usize>),
    /// It is to end.
    ToEnd,
}

/// Makes the interface of a namespace; it has no address yet, and is down.
pub(super) fn interface(namespace: &Namespace) -> anyhow::Result<SyncDevice> {
    let opened = namespace.door().spawn(|| {
        let builder = DeviceBuilder::new().name(INTERFACE).enable(false);
        let interface = builder
            .build_sync()
            .context("/dev/net/tun gives no interface")?;
        interface.set_nonblocking(true)?;
        Ok(interface)
    });
    opened.join().expect("opening an interface does not panic")
}

impl Pump {
    /// Carries packets between interfaces, in the order of the exchange's ends.
    ///
    /// # Errors
    /// The system has no pipe or thread left.
    pub(super) fn start(interfaces: Vec<SyncDevice>, exchange: Exchange) -> anyhow::Result<Self> {
        let (reader, writer) = pipe()?;
        let exchange = Arc::new(Mutex::new(exchange));
        let works = Works {
            interfaces,
            exchange: exchange.clone(),
            stop: reader,
            begun: Instant::now(),
            buffer: vec![0; PACKET_BYTES_MAX].into(),
        };
        let thread = std::thread::Builder::new().name("link".into());
        Ok(Self {
            exchange,
            stop: Some(writer),
            thread: Some(thread.spawn(|| works.carry())?),
        })
    }

    /// Looks at the exchange.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Exchange) -> T) -> T {
        look(&self.exchange.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for an end that nobody asked for, and gives its reason.
    pub(super) fn wait(mut self) -> anyhow::Result<Duration> {
        self.join()
    }

    /// Ends it, and gives the processor time that it took.
    ///
    /// # Errors
    /// It ended before, and why.
    pub(super) fn end(mut self) -> anyhow::Result<Duration> {
        self.stop = None;
        self.join()
    }

    fn join(&mut self) -> anyhow::Result<Duration> {
        let thread = self.thread.take().context("it is joined once")?;
        thread
            .join()
            .unwrap_or_else(|_| anyhow::bail!("the link panicked"))
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop = None;
        // It has said why by now, to whoever asked.
        drop(self.join());
    }
}

impl Works {
    /// Until it is stopped; gives the processor time that it took.
    fn carry(mut self) -> anyhow::Result<Duration> {
        // A packet leaves when it is due on a busy machine, too.
        go_first(Urgency::Link);
        while let Woken::By(ends) = self.sleep(self.next())? {
            for end in ends {
                self.take(end)?;
            }
            self.give();
        }
        let spent = clock_gettime(ClockId::ThreadCPUTime);
        Ok(Duration::try_from(spent)?)
    }

    /// Takes what an end has sent.
    fn take(&mut self, end: usize) -> anyhow::Result<()> {
        let mut exchange = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TAKEN_MAX {
            match self.interfaces[end].recv(&mut self.buffer) {
                Ok(bytes) => {
                    let now = self.begun.elapsed();
                    exchange.handle_packet(now, end, &self.buffer[..bytes]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("an end's interface is gone"),
            }
        }
        Ok(())
    }

    /// Gives the ends what is due.
    fn give(&self) {
        let mut exchange = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((end, packet)) = exchange.poll_output(self.begun.elapsed()) {
            // An interface that is down takes nothing: as on a cable that is pulled, it is lost.
            drop(self.interfaces[end].send(&packet));
        }
    }

    /// How long until something is due.
    fn next(&self) -> Option<Duration> {
        let exchange = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        let next = exchange.poll_timeout()?;
        Some(next.saturating_sub(self.begun.elapsed()))
    }

    /// Sleeps until an end sends something, or so long.
    fn sleep(&self, wait: Option<Duration>) -> anyhow::Result<Woken> {
        let interfaces = self.interfaces.iter().map(|interface| interface.as_fd());
        let mut awaited: Vec<PollFd<'_>> = std::iter::once(self.stop.as_fd())
            .chain(interfaces)
            .map(|one| PollFd::from_borrowed_fd(one, PollFlags::IN))
            .collect();
        let wait = wait.map(Timespec::try_from).transpose()?;
        match poll(&mut awaited, wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("the link cannot wait"),
        }
        let mut woken = awaited.iter().map(|one| !one.revents().is_empty());
        if woken.next() == Some(true) {
            return Ok(Woken::ToEnd);
        }
        let ends = woken.enumerate().filter(|(_, is_ready)| *is_ready);
        Ok(Woken::By(ends.map(|(end, _)| end).collect()))
    }
}
