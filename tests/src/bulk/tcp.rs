//! The yardstick: one plain TCP stream over the same link.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use socket2::SockRef;

use crate::link::Link;

/// For anything to arrive.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// What controls how much a stream has under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// What the system uses: [`Congestion::of_system`].
    System,
    /// Reno, which takes a lost packet for congestion as SCTP does (RFC 9260, section 7.2).
    Reno,
}

impl Congestion {
    /// What the system calls its own, such as `cubic`.
    ///
    /// # Errors
    /// It does not tell.
    pub fn of_system() -> anyhow::Result<String> {
        let told = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")?;
        Ok(told.trim().to_owned())
    }
}

/// Bytes a second that a TCP stream from end 0 to end 1 carries in `length` after `warm` has passed.
///
/// # Errors
/// The system refuses, or too little arrives to measure.
///
/// # Panics
/// A thread of it does.
pub fn tcp(
    link: &Link,
    congestion: Congestion,
    warm: Duration,
    length: Duration,
) -> anyhow::Result<f64> {
    let address = link.address(1);
    let (told, bound) = mpsc::channel();
    let receiver = link.door(1).spawn(move || {
        let listener = TcpListener::bind((address, 0))?;
        told.send(listener.local_addr()?)?;
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(WAIT_MAX))?;
        let begun = Instant::now();
        let mut buffer = vec![0; 256 << 10];
        let mut counted: Option<(Duration, usize)> = None;
        loop {
            let bytes = stream.read(&mut buffer)?;
            let passed = begun.elapsed();
            anyhow::ensure!(bytes > 0, "the stream ended early");
            match &mut counted {
                None if passed >= warm => counted = Some((passed, 0)),
                None => {}
                Some((since, got)) => {
                    *got += bytes;
                    if passed >= warm + length {
                        return Ok(*got as f64 / (passed - *since).as_secs_f64());
                    }
                }
            }
        }
    });
    let to = bound.recv().context("it is bound")?;
    let sender = link.door(0).spawn(move || {
        let mut stream = TcpStream::connect_timeout(&to, WAIT_MAX)?;
        stream.set_write_timeout(Some(WAIT_MAX))?;
        if congestion == Congestion::Reno {
            SockRef::from(&stream).set_tcp_congestion(b"reno")?;
        }
        let piece = vec![0x5a; 64 << 10];
        // Until the receiver has seen enough and closes.
        while stream.write_all(&piece).is_ok() {}
        Ok(())
    });
    let rate = receiver.join().expect("the receiver does not panic");
    sender.join().expect("the sender does not panic")?;
    rate
}
