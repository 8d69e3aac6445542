//! What a link promises, measured over sockets of real programs' kind: round trips, rates, and who reaches whom.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU64;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use serde_json::Value;

use super::{Access, INTERFACE, Link, Path};
use crate::browser::{Browser, Options, Page};

/// For anything to arrive.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// Bytes of the text that is sent again and again; a prime, so that no packet is like the one before.
const TEXT_BYTES: usize = 65_521;

fn path(mbit: u64) -> Path {
    let bits = NonZeroU64::new(mbit * 1_000_000).expect("a line");
    Path {
        up_bits: bits,
        down_bits: bits,
        ..Path::STANDARD
    }
}

/// What a thread at an end gave.
fn done<T>(thread: JoinHandle<anyhow::Result<T>>) -> T {
    thread.join().expect("it does not panic").expect("it works")
}

/// Answers datagrams at an end until an empty one comes.
fn echo(link: &Link, end: usize) -> (SocketAddr, JoinHandle<anyhow::Result<()>>) {
    let address = link.address(end);
    let (told, bound) = mpsc::channel();
    let thread = link.door(end).spawn(move || {
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_read_timeout(Some(WAIT_MAX))?;
        told.send(socket.local_addr()?)?;
        let mut datagram = [0; 1500];
        loop {
            let (bytes, from) = socket.recv_from(&mut datagram)?;
            if bytes == 0 {
                return Ok(());
            }
            socket.send_to(&datagram[..bytes], from)?;
        }
    });
    (bound.recv().expect("it is bound"), thread)
}

/// Round trips of small datagrams from one end to another, the quickest first.
fn round_trips(link: &Link, from: usize, to: usize, count: usize) -> Vec<Duration> {
    let (address, echo) = echo(link, to);
    let trips = link.door(from).spawn(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(WAIT_MAX))?;
        let mut trips = vec![];
        for trip in 0..count {
            let begun = Instant::now();
            let sent = trip.to_le_bytes();
            socket.send_to(&sent, address)?;
            let mut got = [0; 8];
            let bytes = socket.recv(&mut got)?;
            anyhow::ensure!(got[..bytes] == sent, "another answer");
            trips.push(begun.elapsed());
        }
        socket.send_to(&[], address)?;
        Ok(trips)
    });
    let mut trips = done(trips);
    done(echo);
    trips.sort_unstable();
    trips
}

/// Compares round trips from one end to another with what the link takes; gives one that is not held up.
fn check_trips(link: &Link, from: usize, to: usize, least: Duration) -> Duration {
    let trips = round_trips(link, from, to, 21);
    // A busy machine holds up the threads that measure; what the link adds, it adds to the quickest quarter, too.
    let quarter = trips[5];
    assert!(trips[0] >= least, "{from} to {to}: {trips:?}");
    let most = least + Duration::from_millis(5);
    assert!(quarter <= most, "{from} to {to}: {trips:?}");
    quarter
}

fn text() -> Vec<u8> {
    let mut draws = fastrand::Rng::with_seed(1);
    (0..TEXT_BYTES).map(|_| draws.u8(..)).collect()
}

/// Bits a second of a TCP stream's content, each byte of which is compared: from its first, second and third fifth to its
/// end, and of those the one in the middle, so that no one moment at which the reader was held up matters.
fn tcp_bits(link: &Link, from: usize, to: usize, bytes: usize) -> f64 {
    let address = link.address(to);
    let (told, bound) = mpsc::channel();
    let receiver = link.door(to).spawn(move || {
        let listener = TcpListener::bind((address, 0))?;
        told.send(listener.local_addr()?)?;
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(WAIT_MAX))?;
        let text = text();
        let (mut got, mut marks) = (0, vec![]);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let expected = &text[got % TEXT_BYTES..];
                let (piece, more) = rest.split_at(rest.len().min(expected.len()));
                anyhow::ensure!(piece == &expected[..piece.len()], "other bytes after {got}");
                got += piece.len();
                rest = more;
            }
            if marks.len() < 3 && got > bytes / 5 * (marks.len() + 1) {
                marks.push((Instant::now(), got));
            }
        }
        anyhow::ensure!(got == bytes, "{got} of {bytes} bytes");
        let rate = |(begun, before): &(Instant, usize)| {
            let content = u32::try_from(got - before).expect("a few megabytes");
            f64::from(content) * 8.0 / begun.elapsed().as_secs_f64()
        };
        let mut rates: Vec<f64> = marks.iter().map(rate).collect();
        rates.sort_unstable_by(f64::total_cmp);
        Ok(rates[1])
    });
    let address = bound.recv().expect("it is bound");
    let sender = link.door(from).spawn(move || {
        let mut stream = TcpStream::connect_timeout(&address, WAIT_MAX)?;
        stream.set_write_timeout(Some(WAIT_MAX))?;
        let text = text();
        let mut left = bytes;
        while left > 0 {
            let piece = &text[..left.min(TEXT_BYTES)];
            stream.write_all(piece)?;
            left -= piece.len();
        }
        Ok(())
    });
    done(sender);
    done(receiver)
}

#[test]
fn a_round_trip_takes_both_ways_delay_and_a_stream_gets_its_line_and_no_more() {
    if !geteuid().is_root() {
        // Nobody else may make one.
        assert!(Link::gather(&[Access::OPEN], 1).is_err());
        return;
    }
    for mbit in [80, 20] {
        let access = path(mbit).access();
        let link = Link::gather(&[access, access], 1).expect("this machine makes namespaces");
        let trip = check_trips(&link, 0, 1, Duration::from_millis(50));
        // Five seconds of the line.
        let bytes = usize::try_from(mbit).expect("it is small") * 5 * 125_000;
        let begun = Instant::now();
        let share = tcp_bits(&link, 0, 1, bytes) / (mbit as f64 * 1e6);
        let (passed, counts) = (begun.elapsed(), (link.counts(0), link.counts(1)));
        let spent = link.end().expect("it carries to its end");
        let said = format!(
            "{mbit} Mbit/s: {share:.4} of the line, a round trip {trip:?}, {spent:?} of processor in {passed:?}, {counts:?}"
        );
        println!("{said}");
        assert!((0.85..=1.0).contains(&share), "{said}");
    }
}

#[test]
fn an_open_end_is_reached_by_all_and_each_has_an_access_link_of_its_own() {
    if !geteuid().is_root() {
        return;
    }
    let slow = Path {
        delay: Duration::from_millis(60),
        ..Path::STANDARD
    };
    let ends = [Access::OPEN, Path::STANDARD.access(), slow.access()];
    let link = Link::gather(&ends, 1).expect("this machine makes namespaces");
    // Half of each path's delay is each end's own, both ways.
    for (from, to, least_ms) in [(1, 0, 25), (2, 0, 60), (2, 1, 85)] {
        check_trips(&link, from, to, Duration::from_millis(least_ms));
    }
}

#[test]
fn a_link_whose_interface_is_taken_away_says_so() {
    if !geteuid().is_root() {
        return;
    }
    let link = Link::gather(&[Access::OPEN], 1).expect("this machine makes namespaces");
    let remove = ["ip", "link", "delete", INTERFACE];
    link.ends[0].run(&remove).expect("it is there");
    let (told, failed) = mpsc::channel();
    std::thread::spawn(move || told.send(link.carry_on()));
    let error = failed.recv_timeout(WAIT_MAX).expect("it ends");
    let error = error.expect_err("it failed").to_string();
    assert!(error.contains("interface is gone"), "{error}");
}

#[test]
fn both_ends_access_links_make_the_path() {
    let path = Path {
        jitter: Duration::from_millis(4),
        loss: 0.19,
        ..Path::STANDARD
    };
    let Access { up, down } = path.access();
    assert_eq!(up.delay + down.delay, path.delay);
    assert_eq!(up.jitter + down.jitter, path.jitter);
    assert!(((1.0 - up.loss) * (1.0 - down.loss) - 0.81).abs() < 1e-12);
}

/// Tells its offer, or its answer to one, once all ways to it are known; `echo` is what the other end opened.
const CALL: &str = "(async (offer) => {
    const call = globalThis.call = new RTCPeerConnection();
    const gathered = new Promise((done) => {
        call.onicegatheringstatechange = () => call.iceGatheringState === 'complete' && done();
    });
    if (offer) {
        call.ondatachannel = ({ channel }) => { channel.onmessage = ({ data }) => channel.send(data); };
        await call.setRemoteDescription({ type: 'offer', sdp: offer });
    } else {
        globalThis.channel = call.createDataChannel('trips');
    }
    await call.setLocalDescription();
    await gathered;
    return call.localDescription.sdp;
})";

/// Takes the answer, and tells the least of some round trips in milliseconds.
const TRIPS: &str = "(async (answer) => {
    const opened = new Promise((done) => { channel.onopen = done; });
    await call.setRemoteDescription({ type: 'answer', sdp: answer });
    await opened;
    let least = Infinity;
    for (let trip = 0; trip < 10; trip++) {
        const begun = performance.now();
        const answered = new Promise((done) => { channel.onmessage = done; });
        channel.send('trip');
        await answered;
        least = Math.min(least, performance.now() - begun);
    }
    return least;
})";

#[test]
fn two_browsers_at_ends_find_each_other_and_their_channel_takes_the_delay() {
    if !geteuid().is_root() {
        return;
    }
    let access = Path::STANDARD.access();
    let link = Link::gather(&[access, access], 1).expect("this machine makes namespaces");
    let tab = |end| {
        let started = link.door(end).spawn(|| {
            let browser = Browser::start(&Options::default())?;
            let tab = browser.blank()?;
            Ok((browser, tab))
        });
        done(started)
    };
    let ((_first, caller), (_second, called)) = (tab(0), tab(1));
    let ask = |tab: &Page, script: &str, sdp: &Value| {
        let asked = format!("{script}({sdp})");
        tab.evaluate(&asked).expect("an answer")
    };
    let offer = ask(&caller, CALL, &Value::Null);
    let answer = ask(&called, CALL, &offer);
    let least_ms = ask(&caller, TRIPS, &answer).as_f64().expect("a time");
    // A browser's clock is exact to 0.1 ms.
    assert!((49.8..60.0).contains(&least_ms), "{least_ms}");
    let ((up, _), (_, down)) = (link.counts(0), link.counts(1));
    assert!(up.packets > 10 && down.packets > 10, "{up:?}, {down:?}");
}
