//! Through a proxy to a host: CONNECT and SOCKS5, and what a connection tells hyper of the way that it took.
//!
//! Owns [`Stream`]. Every step ends: a proxy has [`super::Limits::proxy`] to open the way, and what it says is read up to a
//! limit. What a proxy does wrong is a [`ProxyFault`], which names no login.

use std::io::IoSlice;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::error::ProxyFault;
use super::proxy::{Kind, Proxy};

/// The longest answer to CONNECT that is read, in bytes. Honest ones have 200, those with a page for people some thousand.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// A connection to a host, direct or through a proxy.
pub(super) struct Stream {
    tcp: TokioIo<TcpStream>,
    way: Way,
}

/// How a connection leads to its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    /// Through a proxy that passes every byte on.
    Tunnel,
    /// To a proxy that reads the requests: it needs the whole URL.
    Forward,
}

impl Stream {
    pub(super) fn new(tcp: TcpStream, way: Way) -> Self {
        Self { tcp: TokioIo::new(tcp), way }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self.way {
            Way::Direct => self.tcp.connected(),
            // The peer's address is the proxy's and says nothing of the host's.
            Way::Tunnel => Connected::new(),
            Way::Forward => Connected::new().proxy(true),
        }
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }
}

/// Has the proxy at the other end connect to a host: a name, or an address in the spelling of URLs.
pub(super) async fn open(tcp: TcpStream, proxy: &Proxy, host: &str, port: u16) -> Result<Stream, ProxyFault> {
    let tcp = match proxy.kind {
        Kind::Http => connect(tcp, proxy, host, port).await?,
        Kind::Socks | Kind::SocksByName => socks(tcp, proxy, host, port).await?,
    };
    Ok(Stream::new(tcp, Way::Tunnel))
}

/// RFC 9110 section 9.3.6. hyper-util's own tells neither the proxy's status nor that it spoke out of turn.
async fn connect(mut tcp: TcpStream, proxy: &Proxy, host: &str, port: u16) -> Result<TcpStream, ProxyFault> {
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
    if let Some(authorization) = proxy.authorization() {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    tcp.write_all(&request).await.map_err(|_| ProxyFault::Cut)?;
    let mut head = Vec::with_capacity(1 << 10);
    let end = loop {
        if let Some(at) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if head.len() >= HEAD_BYTES_MAX {
            return Err(ProxyFault::Nonsense);
        }
        let room = HEAD_BYTES_MAX - head.len();
        match (&mut tcp).take(room as u64).read_buf(&mut head).await {
            Ok(0) | Err(_) => return Err(ProxyFault::Cut),
            Ok(_) => {}
        }
    };
    match status(&head) {
        // A host that speaks before it is spoken to knows no TLS: these bytes are the proxy's.
        Some(200..=299) if head.len() > end => Err(ProxyFault::Nonsense),
        Some(200..=299) => Ok(tcp),
        Some(407) => Err(ProxyFault::Login),
        Some(status) => Err(ProxyFault::Status(status)),
        None => Err(ProxyFault::Nonsense),
    }
}

/// The status in the first line of a head.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.strip_prefix(b"HTTP/1.").filter(|rest| matches!(rest.first(), Some(b'0' | b'1')))?;
    let digits = line.get(1..)?.strip_prefix(b" ")?.get(..3)?;
    let status = std::str::from_utf8(digits).ok()?.parse().ok()?;
    matches!(line.get(5), Some(b' ' | b'\r')).then_some(status)
}

/// RFC 1928, and RFC 1929 for the login. hyper-util's own has errors that cannot be told apart, and no room for a long password.
async fn socks(mut tcp: TcpStream, proxy: &Proxy, host: &str, port: u16) -> Result<TcpStream, ProxyFault> {
    const NO_LOGIN: u8 = 0;
    const LOGIN: u8 = 2;
    let method = if proxy.login.is_some() { LOGIN } else { NO_LOGIN };
    write(&mut tcp, &[5, 1, method]).await?;
    match read(&mut tcp).await? {
        [5, chosen] if chosen == method => {}
        [5, _] => return Err(ProxyFault::Login),
        _ => return Err(ProxyFault::Nonsense),
    }
    if let Some((user, password)) = &proxy.login {
        let mut login = vec![1];
        push_short(&mut login, user.as_bytes())?;
        push_short(&mut login, password.as_bytes())?;
        write(&mut tcp, &login).await?;
        if read(&mut tcp).await? != [1, 0] {
            return Err(ProxyFault::Login);
        }
    }
    let mut request = vec![5, 1, 0];
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(IpAddr::V4(ip)) => request.extend([1].into_iter().chain(ip.octets())),
        Ok(IpAddr::V6(ip)) => request.extend([4].into_iter().chain(ip.octets())),
        Err(_) => {
            request.push(3);
            push_short(&mut request, host.as_bytes())?;
        }
    }
    request.extend(port.to_be_bytes());
    write(&mut tcp, &request).await?;
    let [version, reply, _, kind] = read(&mut tcp).await?;
    match (version, reply) {
        (5, 0) => {}
        (5, refused) => return Err(ProxyFault::Socks(refused)),
        _ => return Err(ProxyFault::Nonsense),
    }
    // The address that it connects from, which is of no use.
    match kind {
        1 => drop(read::<6>(&mut tcp).await?),
        4 => drop(read::<18>(&mut tcp).await?),
        3 => {
            let [length] = read(&mut tcp).await?;
            let mut rest = [0; 255 + 2];
            tcp.read_exact(&mut rest[..usize::from(length) + 2]).await.map_err(|_| ProxyFault::Cut)?;
        }
        _ => return Err(ProxyFault::Nonsense),
    }
    Ok(tcp)
}

/// A length in one byte, and so many bytes.
fn push_short(message: &mut Vec<u8>, bytes: &[u8]) -> Result<(), ProxyFault> {
    message.push(u8::try_from(bytes.len()).map_err(|_| ProxyFault::Nonsense)?);
    message.extend_from_slice(bytes);
    Ok(())
}

async fn write(tcp: &mut TcpStream, bytes: &[u8]) -> Result<(), ProxyFault> {
    tcp.write_all(bytes).await.map_err(|_| ProxyFault::Cut)
}

async fn read<const N: usize>(tcp: &mut TcpStream) -> Result<[u8; N], ProxyFault> {
    let mut bytes = [0; N];
    tcp.read_exact(&mut bytes).await.map_err(|_| ProxyFault::Cut)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_head() {
        for (head, expected) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", Some(200)),
            ("HTTP/1.0 407\r\n\r\n", Some(407)),
            ("HTTP/1.1 2000 x\r\n\r\n", None),
            ("HTTP/2 200\r\n\r\n", None),
            ("HTTP/1.1200 OK\r\n\r\n", None),
            ("SSH-2.0-x\r\n\r\n", None),
            ("HTTP/1.1 ", None),
        ] {
            assert_eq!(status(head.as_bytes()), expected, "{head:?}");
        }
    }
}
