//! HTTP/1.1 by hand: a well-behaved server library would not let a test misbehave.
//!
//! Reads requests, and writes answers as they are ordered, byte by byte where need be. Bodies are made as the peer takes
//! them. Knows nothing of registries.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, sleep, sleep_until};
use tokio_rustls::server::TlsStream;

use super::super::gate::Gate;
use super::content::Content;

/// The largest piece of a body that is made at once.
const PIECE: u64 = 256 << 10;
/// A head of a request above this is a mistake of the test.
const HEAD_MAX: usize = 1 << 20;
/// A limited rate is kept by so many pieces a second.
const PIECES_A_SECOND: u64 = 50;

/// A connection, plain or not.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {
    fn tcp(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// How a connection is broken off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cut {
    Fin,
    Rst,
}

/// How the end of a body is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Framing {
    #[default]
    Length,
    /// A length that need not be true.
    Announced(u64),
    Chunked,
    UntilClose,
}

/// How a body is sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Delivery {
    pub(super) framing: Framing,
    /// Where it waits at gates.
    pub(super) stalls: Vec<(u64, Gate)>,
    /// Where it is broken off.
    pub(super) cut: Option<(u64, Cut)>,
    /// Offsets of bytes with a wrong bit.
    pub(super) flips: Vec<u64>,
    /// Bytes a second.
    pub(super) rate: Option<u64>,
}

/// The head and the body of a request, as they were on the wire.
pub(super) struct Received {
    pub(super) method: Method,
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// How the sending of an answer ended.
pub(super) enum Sent {
    /// All of it; the connection may be used again.
    Whole,
    /// All of it; the connection must end.
    Last,
    /// It was broken off as ordered; the connection is to be dropped.
    Cut,
}

/// One connection.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    // Read, but not yet understood.
    ahead: BytesMut,
}

impl Wire {
    pub(super) fn new(socket: Box<dyn Socket>) -> Self {
        Self { socket, ahead: BytesMut::new() }
    }

    /// The next request; nothing when the peer is done.
    pub(super) async fn receive(&mut self) -> io::Result<Option<Received>> {
        let head_len = loop {
            if let Some(at) = self.ahead.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.ahead.len() < HEAD_MAX, "a request with a head of more than {HEAD_MAX} bytes");
            if self.socket.read_buf(&mut self.ahead).await? == 0 {
                return Ok(None);
            }
        };
        let head = self.ahead.split_to(head_len);
        let head = std::str::from_utf8(&head).map_err(io::Error::other)?;
        let mut lines = head.trim_end().split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target)) = (first.next(), first.next()) else { return Err(io::Error::other("no request line")) };
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other("no header"))?;
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(io::Error::other)?;
            headers.append(name, HeaderValue::from_str(value.trim()).map_err(io::Error::other)?);
        }
        let method = Method::from_bytes(method.as_bytes()).map_err(io::Error::other)?;
        let target = target.to_owned();
        let length = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
        while self.ahead.len() < length {
            if self.socket.read_buf(&mut self.ahead).await? == 0 {
                return Ok(None);
            }
        }
        Ok(Some(Received { method, target, headers, body: self.ahead.split_to(length).freeze() }))
    }

    /// Waits at a gate; an error when the peer leaves meanwhile.
    pub(super) async fn wait(&mut self, gate: &Gate) -> io::Result<()> {
        self.socket.flush().await?;
        self.unless_left(gate.wait()).await
    }

    /// Waits by tokio's clock; an error when the peer leaves meanwhile.
    pub(super) async fn pause(&mut self, time: Duration) -> io::Result<()> {
        self.unless_left(sleep(time)).await
    }

    /// Writes these bytes as they are.
    pub(super) async fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes).await?;
        self.socket.flush().await
    }

    /// Writes the head of an answer.
    pub(super) async fn head(&mut self, status: u16, headers: &[(String, String)]) -> io::Result<()> {
        let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Unknown");
        let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head.push_str("\r\n");
        self.raw(head.as_bytes()).await
    }

    /// Writes a body as ordered; tells `progress` of every piece.
    pub(super) async fn body(&mut self, body: &Content, order: &Delivery, mut progress: impl FnMut(u64)) -> io::Result<Sent> {
        let started = Instant::now();
        let piece_max = order.rate.map_or(PIECE, |rate| (rate / PIECES_A_SECOND).clamp(1, PIECE));
        let mut piece = Vec::new();
        let mut at = 0;
        loop {
            for (_, gate) in order.stalls.iter().filter(|(place, _)| *place == at) {
                self.wait(gate).await?;
            }
            if let Some((place, cut)) = order.cut
                && place <= at
            {
                self.socket.flush().await?;
                self.cut(cut)?;
                return Ok(Sent::Cut);
            }
            if at == body.len() {
                break;
            }
            let places = order.stalls.iter().map(|(place, _)| *place).chain(order.cut.map(|(place, _)| place));
            let next_place = places.filter(|place| *place > at).min().unwrap_or(u64::MAX);
            let len = piece_max.min(body.len() - at).min(next_place - at);
            piece.resize(usize::try_from(len).expect("a piece"), 0);
            body.read_at(at, &mut piece);
            for flip in order.flips.iter().filter(|flip| (at..at + len).contains(flip)) {
                piece[usize::try_from(flip - at).expect("within the piece")] ^= 1;
            }
            if let Some(rate) = order.rate {
                // Before the piece, so that the last byte comes when the rate says and not a piece earlier.
                let due = started + Duration::from_secs_f64((at + len) as f64 / rate as f64);
                self.unless_left(sleep_until(due)).await?;
            }
            self.piece(&piece, order.framing).await?;
            at += len;
            progress(len);
        }
        if order.framing == Framing::Chunked {
            self.socket.write_all(b"0\r\n\r\n").await?;
        }
        self.socket.flush().await?;
        Ok(match order.framing {
            Framing::UntilClose | Framing::Announced(_) => Sent::Last,
            Framing::Length | Framing::Chunked => Sent::Whole,
        })
    }

    /// Ends the connection in good order, TLS included.
    pub(super) async fn finish(mut self) -> io::Result<()> {
        self.socket.shutdown().await
    }

    /// Makes the drop of the connection look like this to the peer.
    pub(super) fn cut(&self, cut: Cut) -> io::Result<()> {
        match cut {
            Cut::Fin => Ok(()),
            Cut::Rst => self.socket.tcp().set_zero_linger(),
        }
    }

    async fn piece(&mut self, piece: &[u8], framing: Framing) -> io::Result<()> {
        if framing == Framing::Chunked {
            self.socket.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
            self.socket.write_all(piece).await?;
            return self.socket.write_all(b"\r\n").await;
        }
        self.socket.write_all(piece).await
    }

    /// Waits for `work`, and notices when the peer leaves before.
    async fn unless_left<T>(&mut self, work: impl Future<Output = T>) -> io::Result<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                value = &mut work => return Ok(value),
                read = self.socket.read_buf(&mut self.ahead) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                    assert!(self.ahead.remaining() < HEAD_MAX, "the peer sends without waiting for an answer");
                }
            }
        }
    }
}
