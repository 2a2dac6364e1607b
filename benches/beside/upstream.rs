//! The upstream: a registry in this process, a thread a connection, bodies by sendfile. It counts what it is asked, and can
//! be slow in two ways: so many bytes a second for each connection, and so long before each answer.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::content::{Content, MANIFEST_TYPE};
use crate::http::{Head, Request};
use crate::pause;

/// How often a paced connection sends: often enough to look like a steady stream.
const PACE: Duration = Duration::from_millis(5);

pub struct Upstream {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    content: Arc<Content>,
    requests: AtomicU64,
    blob_requests: AtomicU64,
    body_bytes: AtomicU64,
    /// Bytes a second for each connection; 0 is as fast as it goes.
    pace: AtomicU64,
    latency_us: AtomicU64,
    /// When the first byte of a blob left since [`Upstream::reset`].
    first_byte: Mutex<Option<Instant>>,
}

impl Upstream {
    /// Listens until this process ends.
    pub fn start(content: Arc<Content>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            content,
            requests: AtomicU64::new(0),
            blob_requests: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            pace: AtomicU64::new(0),
            latency_us: AtomicU64::new(0),
            first_byte: Mutex::new(None),
        });
        let upstream = Self { port, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || converse(&shared, stream));
            }
        });
        Ok(upstream)
    }

    /// Forgets what was counted, and behaves like this from now on.
    pub fn reset(&self, bytes_a_second: u64, latency: Duration) {
        let Shared { requests, blob_requests, body_bytes, pace, latency_us, first_byte, .. } = &*self.shared;
        for count in [requests, blob_requests, body_bytes] {
            count.store(0, Ordering::Relaxed);
        }
        pace.store(bytes_a_second, Ordering::Relaxed);
        latency_us.store(latency.as_micros() as u64, Ordering::Relaxed);
        *first_byte.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// GETs of blobs since the reset.
    pub fn blob_requests(&self) -> u64 {
        self.shared.blob_requests.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Bytes of bodies that the kernel took since the reset.
    pub fn body_bytes(&self) -> u64 {
        self.shared.body_bytes.load(Ordering::Relaxed)
    }

    pub fn first_byte(&self) -> Option<Instant> {
        *self.shared.first_byte.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests and answers until the other side leaves.
fn converse(shared: &Shared, mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    while let Ok(Some(head)) = Head::read(&mut stream) {
        let Some(request) = Request::parse(head.text()) else { return };
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let latency = shared.latency_us.load(Ordering::Relaxed);
        if latency > 0 {
            pause(Duration::from_micros(latency));
        }
        if answer(shared, &mut stream, &request).is_err() {
            return;
        }
    }
}

fn answer(shared: &Shared, stream: &mut TcpStream, request: &Request) -> io::Result<()> {
    let rest = request.path.split('?').next().unwrap_or_default();
    // As Docker Hub: who knocks is told of a token service. docker-registry knocks at every request until it was told.
    if rest == "/v2/" {
        let told =
            format!("WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{}/token\",service=\"bench\"\r\n", stream.local_addr()?.port());
        return small(stream, request, "401 Unauthorized", "application/json", &told, b"{}");
    }
    if rest == "/token" {
        return small(stream, request, "200 OK", "application/json", "", br#"{"token":"anybody","expires_in":86400}"#);
    }
    if let Some((_, reference)) = rest.rsplit_once("/manifests/") {
        let content = &shared.content;
        if reference == "latest" || reference.strip_prefix("sha256:") == Some(&content.manifest_hex) {
            let digest = format!("Docker-Content-Digest: sha256:{}\r\n", content.manifest_hex);
            return small(stream, request, "200 OK", MANIFEST_TYPE, &digest, &content.manifest);
        }
    }
    if let Some((_, hex)) = rest.rsplit_once("/blobs/sha256:")
        && let Some(found) = shared.content.blobs.iter().find(|blob| blob.hex == hex)
    {
        return blob(shared, stream, request, hex, found.size);
    }
    let error = br#"{"errors":[{"code":"NOT_FOUND","message":"not here"}]}"#;
    small(stream, request, "404 Not Found", "application/json", "", error)
}

fn small(stream: &mut TcpStream, request: &Request, status: &str, kind: &str, more: &str, body: &[u8]) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{more}\r\n", body.len()).into_bytes();
    if !request.is_head {
        text.extend_from_slice(body);
    }
    stream.write_all(&text)
}

fn blob(shared: &Shared, stream: &mut TcpStream, request: &Request, hex: &str, size: u64) -> io::Result<()> {
    let (from, until) = request.range(size).unwrap_or((0, size));
    let status = if request.range(size).is_some() {
        format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{size}", until - 1)
    } else {
        "200 OK".to_owned()
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\nAccept-Ranges: bytes\r\nDocker-Content-Digest: sha256:{hex}\r\nETag: \"{hex}\"\r\n\r\n",
        until - from
    );
    if request.is_head {
        return stream.write_all(head.as_bytes());
    }
    shared.blob_requests.fetch_add(1, Ordering::Relaxed);
    let file = File::open(shared.content.dir.join(hex))?;
    stream.write_all(head.as_bytes())?;
    send(shared, stream, &file, from, until)
}

fn send(shared: &Shared, stream: &TcpStream, file: &File, from: u64, until: u64) -> io::Result<()> {
    shared.first_byte.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    let (began, mut at) = (Instant::now(), from);
    while at < until {
        let pace = shared.pace.load(Ordering::Relaxed);
        let most = if pace == 0 { 1 << 30 } else { (pace as f64 * PACE.as_secs_f64()) as u64 };
        let now = (until - at).min(most.max(1));
        let sent = rustix::fs::sendfile(stream, file, Some(&mut at), now as usize)?;
        if sent == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        shared.body_bytes.fetch_add(sent as u64, Ordering::Relaxed);
        if pace > 0 {
            let due = Duration::from_secs_f64((at - from) as f64 / pace as f64);
            pause(due.saturating_sub(began.elapsed()));
        }
    }
    Ok(())
}
