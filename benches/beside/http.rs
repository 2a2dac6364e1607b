//! As much of HTTP/1.1 as both sides of a benchmark need: a head, a request line, a range, one whole answer.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use crate::content::MANIFEST_TYPE;

/// No honest head here is longer.
const HEAD_MAX: usize = 16 << 10;
/// What takes longer without a byte is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The bytes of a head, and what of the body came with it.
pub struct Head {
    bytes: Vec<u8>,
    end: usize,
}

impl Head {
    /// Reads one; nothing if the other side left before its first byte.
    pub fn read(stream: &mut impl Read) -> io::Result<Option<Self>> {
        let mut bytes = vec![0; HEAD_MAX];
        let mut filled = 0;
        loop {
            let more = stream.read(&mut bytes[filled..])?;
            if more == 0 {
                return if filled == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            filled += more;
            if let Some(end) = head_end(&bytes[..filled]) {
                bytes.truncate(filled);
                return Ok(Some(Self { bytes, end }));
            }
        }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.end]).unwrap_or_default()
    }

    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.end..]
    }
}

/// Where a head ends, if it does.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Status and `Content-Length` of an answer's head.
pub fn status_and_length(head: &str) -> Option<(u16, u64)> {
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = field(head, "content-length")?.parse().ok()?;
    Some((status, length))
}

/// The value of a header field.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().filter_map(|line| line.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// What somebody asks for.
pub struct Request {
    pub is_head: bool,
    pub path: String,
    range: Option<String>,
}

impl Request {
    pub fn parse(head: &str) -> Option<Self> {
        let mut words = head.lines().next()?.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        Some(Self { is_head: method == "HEAD", path: path.to_owned(), range: field(head, "range").map(str::to_owned) })
    }

    /// From, and until before which byte: of `bytes=A-B` and `bytes=A-`.
    pub fn range(&self, size: u64) -> Option<(u64, u64)> {
        let (from, last) = self.range.as_ref()?.strip_prefix("bytes=")?.split_once('-')?;
        let last: u64 = if last.is_empty() { size - 1 } else { last.parse().ok()? };
        Some((from.parse().ok()?, last.min(size - 1) + 1))
    }
}

/// The head of a request, with a range if there is one.
pub fn request(path: &str, range: Option<(u64, u64)>) -> String {
    let range = range.map(|(from, until)| format!("Range: bytes={from}-{}\r\n", until - 1)).unwrap_or_default();
    format!("GET {path} HTTP/1.1\r\nHost: bench\r\nUser-Agent: beside\r\nAccept: {MANIFEST_TYPE}\r\n{range}\r\n")
}

pub fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Asks, and hands the body over piece by piece; gives the moment of its first byte. An answer that is not whole, or neither
/// 200 nor 206, is an error.
pub fn get(stream: &mut (impl Read + Write), path: &str, range: Option<(u64, u64)>, mut take: impl FnMut(&[u8])) -> io::Result<Instant> {
    stream.write_all(request(path, range).as_bytes())?;
    let head = Head::read(stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let (status, length) = status_and_length(head.text()).ok_or_else(|| io::Error::other(head.text().to_owned()))?;
    if status != 200 && status != 206 {
        return Err(io::Error::other(head.text().to_owned()));
    }
    let mut left = length - (head.rest().len() as u64).min(length);
    let mut first = (!head.rest().is_empty()).then(Instant::now);
    take(head.rest());
    let mut buffer = vec![0; 256 << 10];
    while left > 0 {
        let most = left.min(buffer.len() as u64) as usize;
        let more = stream.read(&mut buffer[..most])?;
        if more == 0 {
            return Err(io::Error::other(format!("the body ended {left} bytes before its end")));
        }
        first.get_or_insert_with(Instant::now);
        take(&buffer[..more]);
        left -= more as u64;
    }
    Ok(first.unwrap_or_else(Instant::now))
}

/// Asks, and discards the body in the kernel; gives the moment of its first byte. An answer that is not the whole is an error.
pub fn discard(stream: &mut TcpStream, path: &str, size: u64) -> io::Result<Instant> {
    stream.write_all(request(path, None).as_bytes())?;
    let head = Head::read(stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if status_and_length(head.text()) != Some((200, size)) {
        return Err(io::Error::other(head.text().to_owned()));
    }
    let mut left = size - head.rest().len() as u64;
    let mut first = (!head.rest().is_empty()).then(Instant::now);
    let mut buffer = vec![0; 4 << 20];
    while left > 0 {
        let most = left.min(buffer.len() as u64) as usize;
        let (_, more) = rustix::net::recv(&*stream, &mut buffer[..most], rustix::net::RecvFlags::TRUNC)?;
        if more == 0 {
            return Err(io::Error::other(format!("the body ended {left} bytes before its end")));
        }
        first.get_or_insert_with(Instant::now);
        left -= more as u64;
    }
    Ok(first.unwrap_or_else(Instant::now))
}
