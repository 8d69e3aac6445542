//! A folder, served over HTTP on this machine for as long as a test needs it.
//!
//! Enough of HTTP/1.1 for a browser to load a page: GET of files, one answer a connection. It
//! listens on a free port of the loopback address and stops when dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

/// A browser that stalls in the middle of a request is cut off after this long.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(5);
/// Longest request that is read: a browser's GET with all its headers is far below.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;

/// A running server over one folder. Dropping it stops it.
#[derive(Debug)]
pub struct Site {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Site {
    /// Serves `folder` on a free port.
    ///
    /// # Errors
    /// No port could be opened.
    pub fn serve(folder: PathBuf) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("no port could be opened")?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let server = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let folder = folder.clone();
                // A browser that goes away in mid-answer is no failure of the server.
                std::thread::spawn(move || answer(&stream, &folder).ok());
            }
        });
        Ok(Self {
            address,
            stopping,
            server: Some(server),
        })
    }

    /// The address of a file in the folder.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the server, which waits for a connection.
        drop(TcpStream::connect(self.address));
        if let Some(server) = self.server.take() {
            // A panic of the server has been printed already.
            drop(server.join());
        }
    }
}

/// Reads one request and answers it.
fn answer(mut stream: &TcpStream, folder: &Path) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(REQUEST_WAIT_MAX))?;
    let mut lines = BufReader::new(stream.take(REQUEST_BYTES_MAX)).lines();
    let request = lines.next().context("an empty request")??;
    for header in lines {
        if header?.is_empty() {
            break;
        }
    }
    let file = file_of(&request).map(|path| folder.join(path));
    let (status, kind, body) =
        match file.and_then(|path| Some((kind_of(&path), std::fs::read(path).ok()?))) {
            Some((kind, body)) => ("200 OK", kind, body),
            None => ("404 Not Found", "text/plain", b"not found".to_vec()),
        };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)?;
    Ok(())
}

/// The file that a request line asks for; none where it is no GET or leaves the folder.
fn file_of(request: &str) -> Option<PathBuf> {
    let target = request.strip_prefix("GET /")?.split(' ').next()?;
    let path = target.split(['?', '#']).next()?;
    let path = Path::new(if path.is_empty() { "index.html" } else { path });
    path.components()
        .all(|part| matches!(part, Component::Normal(_)))
        .then(|| path.to_owned())
}

/// What a browser is told that a file is.
fn kind_of(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript",
        Some("css") => "text/css",
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::file_of;
    use std::path::Path;

    #[test]
    fn only_files_inside_the_folder_are_served() {
        assert_eq!(
            file_of("GET / HTTP/1.1").as_deref(),
            Some(Path::new("index.html"))
        );
        assert_eq!(
            file_of("GET /pkg/a.js?1 HTTP/1.1").as_deref(),
            Some(Path::new("pkg/a.js"))
        );
        assert_eq!(file_of("GET /../secret HTTP/1.1"), None);
        assert_eq!(file_of("GET //etc/passwd HTTP/1.1"), None);
        assert_eq!(file_of("POST / HTTP/1.1"), None);
    }
}
