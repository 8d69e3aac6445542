//! Bytes on the UDP sockets, counted where the operating system takes them.
//!
//! All connections of one volunteer count into one [`Traffic`]: training, and what comes on top of it
//! (SCTP, DTLS, acknowledgements, repeats, ICE and STUN). Headers of UDP and IP are not in it: they are
//! a fixed length a datagram. TURN over TCP has no datagrams and is not counted.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use serde::Serialize;
use webrtc::runtime::{AsyncUdpSocket, RecvMeta, Transmit};

/// Running counts; all sockets of a volunteer share them.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: Direction,
    received: Direction,
}

#[derive(Debug, Default)]
struct Direction {
    datagrams: AtomicU64,
    bytes: AtomicU64,
}

/// What the sockets carried so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Datagrams {
    /// Datagrams sent.
    pub sent: u64,
    /// Bytes in them, without the headers of UDP and IP.
    pub sent_bytes: u64,
    /// Datagrams received.
    pub received: u64,
    /// Bytes in them.
    pub received_bytes: u64,
}

impl Traffic {
    /// What was carried so far.
    pub fn datagrams(&self) -> Datagrams {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Datagrams {
            sent: read(&self.sent.datagrams),
            sent_bytes: read(&self.sent.bytes),
            received: read(&self.received.datagrams),
            received_bytes: read(&self.received.bytes),
        }
    }
}

impl Direction {
    /// Counts a buffer of datagrams of `segment_bytes`, of which the last may be shorter.
    fn add(&self, bytes: usize, segment_bytes: usize) {
        let datagrams = bytes.div_ceil(segment_bytes.max(1)).max(1);
        self.datagrams
            .fetch_add(datagrams as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A socket whose datagrams are counted.
#[derive(Debug)]
pub(super) struct CountedSocket {
    pub(super) inner: Arc<dyn AsyncUdpSocket>,
    pub(super) traffic: Arc<Traffic>,
}

impl AsyncUdpSocket for CountedSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn poll_send(&self, cx: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        let polled = self.inner.poll_send(cx, transmit);
        if let Poll::Ready(Ok(bytes)) = polled {
            let segment_bytes = transmit.segment_size.unwrap_or(bytes);
            self.traffic.sent.add(bytes, segment_bytes);
        }
        polled
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let polled = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(messages)) = polled {
            for message in &meta[..messages] {
                self.traffic.received.add(message.len, message.stride);
            }
        }
        polled
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
    use std::task::Waker;

    use super::*;

    /// Takes everything, and has one message of three datagrams and one that is empty waiting.
    #[derive(Debug)]
    struct Open;

    impl AsyncUdpSocket for Open {
        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(([127, 0, 0, 1], 1).into())
        }

        fn poll_send(&self, _: &mut Context<'_>, sent: &Transmit<'_>) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(sent.contents.len()))
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            meta: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            (meta[0].len, meta[0].stride) = (2_500, 1_200);
            (meta[1].len, meta[1].stride) = (0, 1);
            Poll::Ready(Ok(2))
        }
    }

    #[test]
    fn each_datagram_of_a_batch_is_counted_both_ways() {
        let traffic = Arc::new(Traffic::default());
        let socket = CountedSocket {
            inner: Arc::new(Open),
            traffic: Arc::clone(&traffic),
        };
        let mut context = Context::from_waker(Waker::noop());
        for (len, segment_size) in [(100, None), (3_601, Some(1_200))] {
            let transmit = Transmit {
                destination: ([127, 0, 0, 1], 2).into(),
                ecn: None,
                contents: &vec![0; len],
                segment_size,
                src_ip: None,
            };
            assert!(socket.poll_send(&mut context, &transmit).is_ready());
        }
        let mut meta = [RecvMeta::default(); 4];
        assert!(
            socket
                .poll_recv(&mut context, &mut [], &mut meta)
                .is_ready()
        );
        let expected = Datagrams {
            sent: 1 + 4,
            sent_bytes: 3_701,
            received: 3 + 1,
            received_bytes: 2_500,
        };
        assert_eq!(traffic.datagrams(), expected);
    }
}
