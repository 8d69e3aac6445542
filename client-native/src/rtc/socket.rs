//! UDP sockets as WebRTC needs them: large buffers, and relayed packets answered at once.
//!
//! The system's default of 208 KB overflows when a burst of segments arrives; recovery then waits
//! for time-outs (35 instead of 120 MB/s on loopback). So each socket asks for 4 MB.
//!
//! The connection's loop first sends what a TURN client has queued, then hands it what the connection
//! has to send, then takes in what came through it, and sleeps: an answer to a relayed packet needs two
//! rounds more, and would wait for the next timer, up to 200 ms each. So a socket that has just run
//! dry reports that many empty reads, each of which takes the loop round once ([`Rounds`]).
//! Connections that turn out to be direct stop paying for it; a restart binds new sockets and begins again.

use std::fmt::Debug;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use webrtc::runtime::{
    AsyncInterval, AsyncTcpListener, AsyncTcpStream, AsyncUdpSocket, JoinHandle, RecvMeta, Runtime,
    TokioRuntime, Transmit,
};

use super::ice::LOOKUP_MAX;
use super::traffic::{CountedSocket, Traffic};

/// Bytes asked for in each direction of a socket; the system may give less.
const SOCKET_BYTES: usize = 4 << 20;
/// Rounds of the loop until what was received or queued through a relay has been answered and sent.
const ROUNDS: u8 = 2;

/// Extra rounds for one connection's loop, while it may be relayed.
#[derive(Debug)]
pub(super) struct Rounds {
    enabled: AtomicBool,
    owed: AtomicU8,
    /// Of whichever socket waited last.
    waker: Mutex<Option<Waker>>,
}

impl Rounds {
    pub(super) fn new(enabled: bool) -> Arc<Self> {
        Arc::new(Self {
            enabled: AtomicBool::new(enabled),
            owed: AtomicU8::new(0),
            waker: Mutex::default(),
        })
    }

    /// Whether the connection may still be relayed.
    pub(super) fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Whether the connection's loop needs help: a direct one does not.
    pub(super) fn enable(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    /// Something was queued: takes the loop round.
    pub(super) fn kick(&self) {
        if !self.enabled() {
            return;
        }
        self.owed.store(ROUNDS, Ordering::Relaxed);
        let waker = self
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes one of the rounds owed, else remembers whom to wake for the next.
    fn take(&self, waiting: &Waker) -> bool {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiting.clone());
        let less = |owed: u8| owed.checked_sub(1);
        self.owed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

/// tokio, with sockets set up for bulk data.
#[derive(Debug)]
pub(super) struct TunedRuntime {
    /// Help for the loop of the one connection that uses this runtime.
    pub(super) rounds: Arc<Rounds>,
    /// Counts what the connection's sockets carry.
    pub(super) traffic: Arc<Traffic>,
}

impl Runtime for TunedRuntime {
    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) -> Box<dyn JoinHandle> {
        TokioRuntime.spawn(future)
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let tunable = socket2::SockRef::from(&socket);
        for outcome in [
            tunable.set_recv_buffer_size(SOCKET_BYTES),
            tunable.set_send_buffer_size(SOCKET_BYTES),
        ] {
            if let Err(error) = outcome {
                tracing::debug!(%error, "the system keeps its own UDP buffer size");
            }
        }
        let inner: Arc<dyn AsyncUdpSocket> = Arc::new(CountedSocket {
            inner: TokioRuntime.wrap_udp_socket(socket)?,
            traffic: Arc::clone(&self.traffic),
        });
        if !self.rounds.enabled() {
            return Ok(inner);
        }
        Ok(Arc::new(RelaySocket {
            inner,
            rounds: Arc::clone(&self.rounds),
        }))
    }

    fn wrap_tcp_listener(
        &self,
        listener: std::net::TcpListener,
    ) -> io::Result<Arc<dyn AsyncTcpListener>> {
        TokioRuntime.wrap_tcp_listener(listener)
    }

    fn connect_tcp<'a>(
        &'a self,
        remote_addr: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = io::Result<Arc<dyn AsyncTcpStream>>> + Send + 'a>> {
        TokioRuntime.connect_tcp(remote_addr)
    }

    fn resolve_host<'a>(
        &'a self,
        host: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>> {
        // The connection's loop waits for this: a name that nobody answers for must not hold it up.
        Box::pin(async move {
            match tokio::time::timeout(LOOKUP_MAX, TokioRuntime.resolve_host(host)).await {
                Ok(found) => found,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        })
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        TokioRuntime.sleep(duration)
    }

    fn interval(&self, period: Duration) -> Box<dyn AsyncInterval> {
        TokioRuntime.interval(period)
    }

    fn block_on(&self, future: Pin<Box<dyn Future<Output = ()> + '_>>) {
        TokioRuntime.block_on(future);
    }

    fn yield_now(&self) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        TokioRuntime.yield_now()
    }

    fn name(&self) -> &'static str {
        "tokio"
    }
}

/// A socket that takes the connection's loop round again after each burst.
#[derive(Debug)]
struct RelaySocket {
    inner: Arc<dyn AsyncUdpSocket>,
    rounds: Arc<Rounds>,
}

impl AsyncUdpSocket for RelaySocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn poll_send(&self, cx: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        self.inner.poll_send(cx, transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let polled = self.inner.poll_recv(cx, bufs, meta);
        if !self.rounds.enabled() {
            return polled;
        }
        if polled.is_ready() {
            self.rounds.owed.store(ROUNDS, Ordering::Relaxed);
            return polled;
        }
        // The loop drains a burst with a waker that does nothing and has no data; an empty read must
        // come after that, when the loop would go to sleep.
        let waker = cx.waker();
        if !waker.data().is_null() && self.rounds.take(waker) {
            meta[0] = RecvMeta::default();
            meta[0].len = 0;
            meta[0].stride = 1;
            return Poll::Ready(Ok(1));
        }
        Poll::Pending
    }

    fn max_gso_segments(&self) -> usize {
        self.inner.max_gso_segments()
    }

    fn max_gro_segments(&self) -> usize {
        self.inner.max_gro_segments()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    /// A socket with so many datagrams of 100 bytes waiting.
    #[derive(Debug)]
    struct Waiting(AtomicUsize);

    impl AsyncUdpSocket for Waiting {
        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(([127, 0, 0, 1], 1).into())
        }

        fn poll_send(&self, _: &mut Context<'_>, _: &Transmit<'_>) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            meta: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            let less = |waiting: usize| waiting.checked_sub(1);
            let order = Ordering::Relaxed;
            if self.0.fetch_update(order, order, less).is_err() {
                return Poll::Pending;
            }
            meta[0].len = 100;
            Poll::Ready(Ok(1))
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn socket(waiting: usize) -> RelaySocket {
        RelaySocket {
            inner: Arc::new(Waiting(AtomicUsize::new(waiting))),
            rounds: Rounds::new(true),
        }
    }

    /// Lengths of what the socket gives until it waits; with a waker, or as one probes in a burst.
    fn reads(socket: &RelaySocket, waker: &Waker) -> Vec<usize> {
        let mut context = Context::from_waker(waker);
        let mut lengths = Vec::new();
        let mut meta = [RecvMeta::default()];
        while socket
            .poll_recv(&mut context, &mut [], &mut meta)
            .is_ready()
        {
            lengths.push(meta[0].len);
        }
        lengths
    }

    #[test]
    fn a_socket_that_ran_dry_takes_its_loop_round_twice_more() {
        let waker = Waker::from(Arc::new(Woken::default()));
        let socket = socket(2);
        assert_eq!(reads(&socket, Waker::noop()), [100, 100], "a burst ends");
        assert_eq!(reads(&socket, &waker), [0, 0]);
        assert_eq!(reads(&socket, &waker), [0; 0], "and then it sleeps");
    }

    #[test]
    fn what_is_queued_wakes_the_loop_until_the_connection_turns_out_direct() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let socket = socket(0);
        assert_eq!(reads(&socket, &waker), [0; 0]);
        socket.rounds.kick();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(reads(&socket, &waker), [0, 0]);
        socket.rounds.enable(false);
        socket.rounds.kick();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(reads(&socket, &waker), [0; 0]);
    }
}
