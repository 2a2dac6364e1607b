//! A listener that hands every byte on unchanged and writes down the requests that pass.
//!
//! It stands before the mirror (what did the client ask for, in which layout?) and before the upstream (what did the mirror ask for, how often?).
//! It knows no registry. It sees a request when its head is complete, before it hands it on, so a count taken after an answer is exact.

use std::io::{Read, Write, copy};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A head that is longer is not one that our clients send; the relay goes on, unread.
const HEAD_LIMIT: usize = 64 * 1024;

/// One request as it passed.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
}

/// A relay in front of one address. Dropping it closes its port.
pub(crate) struct Tap {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    seen: Mutex<Vec<Seen>>,
    closed: AtomicBool,
}

impl Tap {
    /// Listens on a free port of loopback and relays to `target`.
    pub(crate) fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { target: Mutex::new(target), seen: Mutex::default(), closed: AtomicBool::new(false) });
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Self { addr, shared }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Relays new connections to another address: a mirror that was started again has another port.
    pub(crate) fn point_at(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
    }

    /// Closes the port: whoever connects from now on is refused.
    pub(crate) fn close(&self) {
        if !self.shared.closed.swap(true, Ordering::SeqCst) {
            let _ = TcpStream::connect(self.addr); // wakes the accept loop, which ends and drops the listener
        }
    }

    /// Every request so far, in order of arrival.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// How many requests used `method` and had `part` in their target.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        self.shared.seen.lock().unwrap().iter().filter(|seen| seen.method == method && seen.target.contains(part)).count()
    }

    /// Forgets what was seen.
    pub(crate) fn forget(&self) {
        self.shared.seen.lock().unwrap().clear();
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming().flatten() {
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            let shared = Arc::clone(&self);
            thread::spawn(move || {
                let _ = shared.relay(&client); // a side that goes away ends the relay, as it would end the connection
            });
        }
    }

    fn relay(&self, client: &TcpStream) -> std::io::Result<()> {
        let target = *self.target.lock().unwrap();
        let server = TcpStream::connect(target)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || {
            let whole = copy(&mut from, &mut to).is_ok();
            // A broken answer must reach the client as a broken one, not as a tidy end; for a relay without SO_LINGER the nearest is
            // to end both directions, and every length the client was promised is then visibly not met.
            let _ = to.shutdown(if whole { Shutdown::Write } else { Shutdown::Both });
        });
        self.relay_requests(client, &server)
    }

    fn relay_requests(&self, mut client: &TcpStream, mut server: &TcpStream) -> std::io::Result<()> {
        let mut head = Head::default();
        let mut buffer = [0; 16 * 1024];
        loop {
            let length = client.read(&mut buffer)?;
            if length == 0 {
                return server.shutdown(Shutdown::Write);
            }
            self.seen.lock().unwrap().extend(head.feed(&buffer[..length]));
            server.write_all(&buffer[..length])?;
        }
    }
}

/// Cuts a stream of bodiless requests into heads.
#[derive(Default)]
struct Head {
    bytes: Vec<u8>,
    opaque: bool,
}

impl Head {
    fn feed(&mut self, bytes: &[u8]) -> Vec<Seen> {
        let mut found = Vec::new();
        // A TLS greeting (podman tries it first): relayed, not read.
        self.opaque |= self.bytes.is_empty() && bytes.first().is_some_and(|byte| !byte.is_ascii_uppercase());
        if self.opaque {
            return found;
        }
        self.bytes.extend_from_slice(bytes);
        while let Some(end) = self.bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            let head: Vec<u8> = self.bytes.drain(..end + 4).collect();
            let line = String::from_utf8_lossy(&head);
            let mut words = line.split(' ');
            if let (Some(method), Some(target)) = (words.next(), words.next()) {
                found.push(Seen { method: method.to_owned(), target: target.to_owned() });
            }
        }
        self.opaque = self.bytes.len() > HEAD_LIMIT;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::Head;

    #[test]
    fn requests_are_seen_however_they_are_cut() {
        let stream = b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\nHEAD /v2/x/manifests/1?ns=docker.io HTTP/1.1\r\n\r\nGET /late";
        for length in 1..stream.len() {
            let mut head = Head::default();
            let seen: Vec<_> = stream.chunks(length).flat_map(|part| head.feed(part)).map(|seen| (seen.method, seen.target)).collect();
            let wanted = [("GET", "/v2/"), ("HEAD", "/v2/x/manifests/1?ns=docker.io")]
                .map(|(method, target)| (method.to_owned(), target.to_owned()));
            assert_eq!(seen, wanted, "in parts of {length} bytes");
        }
    }

    #[test]
    fn what_is_not_http_is_not_read() {
        let mut head = Head::default();
        assert!(head.feed(b"\x16\x03\x01GET /v2/ HTTP/1.1\r\n\r\n").is_empty());
        assert!(head.feed(b"GET /v2/ HTTP/1.1\r\n\r\n").is_empty());
    }
}
