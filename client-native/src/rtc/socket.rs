//! UDP sockets as WebRTC needs them: large buffers, and relayed packets answered at once.
//!
//! The system's default of 208 KB overflows when a burst of segments arrives; recovery then waits
//! for time-outs (35 instead of 120 MB/s on loopback). So each socket asks for 4 MB.
//!
//! The connection's loop flushes what it has to send, then takes in packets that came through a
//! TURN server, then sleeps: the answer to a relayed packet waits for the next timer, up to 200 ms.
//! A socket that has just run dry therefore reports one empty read more, which takes the loop round
//! once again. Only connections that may be relayed pay for it.

use std::fmt::Debug;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use webrtc::runtime::{
    AsyncInterval, AsyncTcpListener, AsyncTcpStream, AsyncUdpSocket, JoinHandle, RecvMeta, Runtime,
    TokioRuntime, Transmit,
};

/// Bytes asked for in each direction of a socket; the system may give less.
const SOCKET_BYTES: usize = 4 << 20;

/// tokio, with sockets set up for bulk data.
#[derive(Debug)]
pub(super) struct TunedRuntime {
    /// Whether a connection of this runtime may go through a TURN server.
    pub(super) relays: bool,
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
        let inner = TokioRuntime.wrap_udp_socket(socket)?;
        if !self.relays {
            return Ok(inner);
        }
        Ok(Arc::new(RelaySocket {
            inner,
            owes_round: AtomicBool::new(false),
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
        TokioRuntime.resolve_host(host)
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

/// A socket that takes the connection's loop round once more after each burst.
#[derive(Debug)]
struct RelaySocket {
    inner: Arc<dyn AsyncUdpSocket>,
    owes_round: AtomicBool,
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
        if polled.is_ready() {
            self.owes_round.store(true, Ordering::Relaxed);
            return polled;
        }
        // The loop drains a burst with a waker that does nothing; the empty read must come after
        // that, when the loop would go to sleep.
        let sleeping = !cx.waker().will_wake(Waker::noop());
        if sleeping && self.owes_round.swap(false, Ordering::Relaxed) {
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
