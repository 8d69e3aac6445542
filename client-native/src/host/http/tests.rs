//! Downloads against a host that breaks off, and uploads that come through whole.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::*;

#[test]
fn clocks_are_compared_by_the_middle_of_what_is_known() {
    let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
    let ahead = |asked, answered, date| ahead_seconds(at(asked), at(answered), at(date));
    assert!((ahead(10_200, 10_800, 10_000)).abs() < 1e-9);
    assert!((ahead(110_400, 110_600, 10_000) - 100.0).abs() < 1e-9);
    assert!((ahead(10_400, 10_600, 70_000) + 60.0).abs() < 1e-9);
}

/// A host that serves `content` under any path, breaks each answer off after `cut` bytes, and
/// returns the ranges it was asked for and the bodies it was sent.
struct Host {
    link: HostLink,
    seen: tokio::sync::mpsc::UnboundedReceiver<(String, Vec<u8>)>,
}

async fn host(content: Vec<u8>, cut: usize, ranges: bool) -> Host {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = listener.local_addr().unwrap().to_string().parse().unwrap();
    let (tell, seen) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            answer(stream, &content, cut, ranges, &tell).await;
        }
    });
    Host { link, seen }
}

async fn answer(
    stream: tokio::net::TcpStream,
    content: &[u8],
    cut: usize,
    ranges: bool,
    tell: &tokio::sync::mpsc::UnboundedSender<(String, Vec<u8>)>,
) {
    let mut stream = BufReader::new(stream);
    let (mut range, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("range: bytes=") {
            value.clone_into(&mut range);
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    tell.send((range.clone(), body)).unwrap();
    let (from, to) = match range.split_once('-') {
        Some((from, to)) if ranges => (
            from.parse().unwrap(),
            to.parse().map_or(content.len(), |last: usize| last + 1),
        ),
        _ => (0, content.len()),
    };
    let part = &content[from..to.min(content.len())];
    let status = if ranges && !range.is_empty() {
        "206 Partial Content"
    } else {
        "200 OK"
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
        part.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
        .write_all(&part[..part.len().min(cut)])
        .await
        .unwrap();
    stream.flush().await.unwrap();
}

fn content() -> Vec<u8> {
    (0..100_000_u32).map(|n| (n % 251) as u8).collect()
}

#[tokio::test]
async fn a_blob_that_breaks_off_is_continued_where_it_ended() {
    let mut host = host(content(), 40_000, true).await;
    let files = HostFiles::new(&host.link, None);
    let digest = Digest::of(&content());
    assert_eq!(files.blob("b", digest).await.unwrap(), content());
    let ranges: Vec<String> = std::iter::from_fn(|| host.seen.try_recv().ok())
        .map(|(range, _)| range)
        .collect();
    assert_eq!(ranges, ["", "40000-", "80000-"]);
}

#[tokio::test]
async fn a_range_is_exactly_what_was_asked_for() {
    let host = host(content(), usize::MAX, true).await;
    let files = HostFiles::new(&host.link, None);
    let part = files.range("t", 500, 20).await.unwrap();
    assert_eq!(part, content()[500..520]);
    assert!(matches!(
        files.range("t", 99_990, 20).await,
        Err(HostError::Length {
            got: 10,
            wanted: 20,
            ..
        })
    ));
}

#[tokio::test]
async fn what_is_too_large_or_not_what_its_name_says_is_refused() {
    let host = host(content(), usize::MAX, false).await;
    let files = HostFiles::new(&host.link, None);
    assert!(matches!(
        files.file("f", 99_999).await,
        Err(HostError::Length { wanted: 99_999, .. })
    ));
    assert!(matches!(
        files.blob("f", Digest::of(b"other")).await,
        Err(HostError::Hash { .. })
    ));
    assert!(matches!(
        files.range("f", 10, 10).await,
        Err(HostError::Format { .. })
    ));
}

#[tokio::test]
async fn an_upload_passes_the_pacer_whole() {
    let mut host = host(Vec::new(), usize::MAX, false).await;
    let pacer = Arc::new(Pacer::new(1_000_000));
    let files = HostFiles::new(&host.link, Some(pacer));
    let began = std::time::Instant::now();
    let upload = tokio::time::timeout(
        Duration::from_secs(20),
        files.upload("store/upload/x", Bytes::from(vec![7; 300_000])),
    );
    upload.await.expect("in time").unwrap();
    let (_, body) = host.seen.recv().await.unwrap();
    assert_eq!(body, vec![7; 300_000]);
    assert!(began.elapsed() > Duration::from_millis(150), "not paced");
}
