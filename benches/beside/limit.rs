//! The limit of this machine: a server that makes the system calls which the work cannot do without, and nothing else. It has no
//! log, no checks, no timeouts; a thread a connection. The benchmark starts it as a process of its own, so that its processor
//! time is counted like everybody's.
//!
//! Held: one `recv`, one `writev` of a ready head and a slice of a mapping that is kept. Cold: `recv` from the upstream, sha256,
//! `pwrite`, `write` to the client, in turn.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millpond::mapping::Mapping;
use sha2::{Digest as _, Sha256};

use crate::content::{Content, MANIFEST_TYPE};
use crate::http::{self, Head, Request};

/// What a cold body is moved by.
const PIECE: usize = 256 << 10;

/// Serves until it is killed: what is in `source`, or, if an upstream's port is given, what that has, by way of files in `scratch`.
pub fn serve(source: &Path, upstream: Option<u16>, scratch: &Path) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let held = Arc::new(if upstream.is_none() { hold(source)? } else { HashMap::new() });
    let scratch: Arc<PathBuf> = Arc::new(scratch.to_owned());
    crate::say(&format!("listening on 127.0.0.1:{}", listener.local_addr()?.port()));
    for stream in listener.incoming() {
        let (stream, held, scratch) = (stream?, Arc::clone(&held), Arc::clone(&scratch));
        std::thread::spawn(move || {
            // Whoever leaves leaves.
            let _ = match upstream {
                None => converse(stream, &held),
                Some(port) => converse_cold(stream, port, &scratch),
            };
        });
    }
    Ok(())
}

struct Held {
    /// Of an answer with the whole, ready to be sent.
    head: String,
    body: &'static [u8],
}

fn hold(source: &Path) -> io::Result<HashMap<String, Held>> {
    let mut held = HashMap::new();
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (file, len) = (File::open(&path)?, fs::metadata(&path)?.len());
        // For as long as the benchmark runs.
        let mapping: &'static Mapping =
            Box::leak(Box::new(Mapping::of(&file, len).ok_or_else(|| io::Error::other("it cannot be mapped"))?));
        let body = mapping.as_ref();
        let (path, kind) = if name == "manifest" {
            (Content::tag_path(), MANIFEST_TYPE)
        } else {
            (format!("/v2/{}/blobs/sha256:{name}", crate::content::REPO), "application/octet-stream")
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        held.insert(path, Held { head, body });
    }
    Ok(held)
}

fn converse(mut stream: TcpStream, held: &HashMap<String, Held>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 4 << 10];
    loop {
        let more = stream.read(&mut buffer)?;
        if more == 0 {
            return Ok(());
        }
        let text = std::str::from_utf8(&buffer[..more]).unwrap_or_default();
        let request = Request::parse(text).ok_or(io::ErrorKind::InvalidData)?;
        let Held { head, body } = held.get(&request.path).ok_or(io::ErrorKind::NotFound)?;
        match request.range(body.len() as u64) {
            None => send(&mut stream, head.as_bytes(), body)?,
            Some((from, until)) => {
                let part = &body[from as usize..until as usize];
                let head = format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\n\r\n",
                    until - 1,
                    body.len(),
                    part.len()
                );
                send(&mut stream, head.as_bytes(), part)?;
            }
        }
    }
}

/// One `writev`, and what the kernel did not take of the body.
fn send(stream: &mut TcpStream, head: &[u8], body: &[u8]) -> io::Result<()> {
    let sent = rustix::io::writev(&*stream, &[IoSlice::new(head), IoSlice::new(body)])?;
    match sent.checked_sub(head.len()) {
        Some(of_body) => stream.write_all(&body[of_body..]),
        None => Err(io::ErrorKind::WriteZero.into()),
    }
}

fn converse_cold(mut stream: TcpStream, upstream: u16, scratch: &Path) -> io::Result<()> {
    static FILES: AtomicU64 = AtomicU64::new(0);
    stream.set_nodelay(true)?;
    while let Some(head) = Head::read(&mut stream)? {
        let request = Request::parse(head.text()).ok_or(io::ErrorKind::InvalidData)?;
        let mut source = http::connect(upstream)?;
        source.write_all(http::request(&request.path, None).as_bytes())?;
        let head = Head::read(&mut source)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (_, length) = http::status_and_length(head.text()).ok_or(io::ErrorKind::InvalidData)?;
        stream.write_all(head.text().as_bytes())?;
        let file = File::create(scratch.join(FILES.fetch_add(1, Ordering::Relaxed).to_string()))?;
        let (mut digest, mut at) = (Sha256::new(), 0);
        let mut take = |piece: &[u8]| -> io::Result<()> {
            stream.write_all(piece)?;
            digest.update(piece);
            file.write_all_at(piece, at)?;
            at += piece.len() as u64;
            Ok(())
        };
        take(head.rest())?;
        let (mut left, mut buffer) = (length - head.rest().len() as u64, vec![0; PIECE]);
        while left > 0 {
            let more = source.read(&mut buffer)?;
            if more == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            take(&buffer[..more])?;
            left -= more as u64;
        }
        let path = request.path.rsplit(':').next().unwrap_or_default();
        if crate::content::hex(&digest.finalize()) != path {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(())
}
