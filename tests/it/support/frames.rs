//! A connection without manners: any bytes, over TCP or TLS, read as slowly as it likes; and the frames of HTTP/2 by hand
//! (RFC 9113), to say with them what no library lets its user say.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, WriteHalf};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use super::patience::within;
use super::tls;

/// What a client says first on HTTP/2.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames. An acknowledgement and the end of a stream are the same bit.
pub mod flag {
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection. Dropped, it closes.
pub struct Wire {
    io: Box<dyn Io>,
    ahead: Vec<u8>,
}

/// One frame that the server sent.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Of [`kind`].
    pub kind: u8,
    /// Of [`flag`].
    pub flags: u8,
    /// The stream; 0 is the connection.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Wire {
    /// Over TCP, with room in the kernel for about so many bytes that were not read: a client that does not read is felt at once.
    pub async fn plain(address: SocketAddr, room: u32) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(room)?;
        Ok(Self { io: Box::new(socket.connect(address).await?), ahead: Vec::new() })
    }

    /// The same over TLS, offering this protocol.
    pub async fn secure(address: SocketAddr, room: u32, protocol: &str) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(room)?;
        let mut config = (*tls::client(None)).clone();
        config.alpn_protocols = vec![protocol.into()];
        let name = ServerName::from(address.ip());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, socket.connect(address).await?).await?;
        Ok(Self { io: Box::new(stream), ahead: Vec::new() })
    }

    /// Over TLS with HTTP/2 begun: each stream of the server may send so many bytes.
    pub async fn http2(address: SocketAddr, room: u32, window: u32) -> io::Result<Self> {
        let mut wire = Self::secure(address, room, "h2").await?;
        let setting = [&[0, 4][..], &window.to_be_bytes()].concat();
        wire.send([PREFACE, &frame(kind::SETTINGS, 0, 0, &setting)].concat()).await?;
        Ok(wire)
    }

    /// Sends these bytes, if the peer still takes them.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.io.write_all(bytes.as_ref()).await?;
        self.io.flush().await
    }

    /// Reads the head of an HTTP/1 answer, and gives its first line.
    pub async fn head(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.ahead.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.ahead.drain(..at + 4).collect();
                return Ok(String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned());
            }
            self.more().await?;
        }
    }

    /// Reads this many bytes, and throws them away.
    pub async fn take(&mut self, bytes: usize) -> io::Result<()> {
        while self.ahead.len() < bytes {
            self.more().await?;
        }
        self.ahead.drain(..bytes);
        Ok(())
    }

    /// Reads the next frame.
    pub async fn frame(&mut self) -> io::Result<Frame> {
        while self.ahead.len() < 9 {
            self.more().await?;
        }
        let len = usize::from(self.ahead[0]) << 16 | usize::from(self.ahead[1]) << 8 | usize::from(self.ahead[2]);
        while self.ahead.len() < 9 + len {
            self.more().await?;
        }
        let bytes: Vec<u8> = self.ahead.drain(..9 + len).collect();
        let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]) & (u32::MAX >> 1);
        Ok(Frame { kind: bytes[3], flags: bytes[4], stream, payload: bytes[9..].to_vec() })
    }

    /// Reads frames up to one of this kind, which must come.
    pub async fn frame_of(&mut self, kind: u8) -> io::Result<Frame> {
        loop {
            let frame = within("a frame", self.frame()).await?;
            if frame.kind == kind {
                return Ok(frame);
            }
        }
    }

    /// Sends all of these, reading meanwhile whatever comes, until the server closes or everything is sent.
    pub async fn pump(self, pieces: impl Iterator<Item = Vec<u8>> + Send) -> Pumped {
        let (mut read, mut write) = tokio::io::split(self.io);
        let mut sent = 0;
        let send = async {
            for piece in pieces {
                if write.write_all(&piece).await.is_err() {
                    return;
                }
                sent += 1;
            }
            let _ = write.flush().await;
        };
        let drain = async {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(1..) = read.read(&mut buffer).await {}
        };
        let closed = tokio::select! {
            () = send => false,
            () = drain => true,
        };
        let rest = Box::pin(async move { while let Ok(1..) = read.read(&mut [0; 4096]).await {} });
        Pumped { sent, closed, rest: if closed { None } else { Some(rest) }, _write: write }
    }

    /// Reads until the server closes.
    pub async fn closed(mut self) {
        while self.more().await.is_ok() {
            self.ahead.clear();
        }
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.io.read_buf(&mut self.ahead).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// What became of a flood.
pub struct Pumped {
    /// Pieces that were sent, as far as the kernel took them.
    pub sent: usize,
    /// The server closed before all was sent.
    pub closed: bool,
    rest: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _write: WriteHalf<Box<dyn Io>>,
}

impl Pumped {
    /// Waits until the server has closed, which it must.
    pub async fn ended(self) {
        if let Some(rest) = self.rest {
            within("the server to end a flood", rest).await;
        }
    }
}

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The fields of a GET, for HEADERS.
pub fn get_fields(path: &str) -> Vec<u8> {
    // By index: `:method: GET`, `:scheme: https`; literal, not indexed: `:path`, `:authority`.
    [&[0x82, 0x87][..], &text(0x04, path), &text(0x01, "localhost")].concat()
}

/// One more field, with a name of its own.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    [text(0x00, name), string(value)].concat()
}

/// HEADERS of a GET, complete.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &get_fields(path))
}

/// HEADERS of a HEAD, complete.
pub fn head(stream: u32, path: &str) -> Vec<u8> {
    // `:method`, literal and not indexed.
    let fields = [&text(0x02, "HEAD")[..], &[0x87], &text(0x04, path), &text(0x01, "localhost")].concat();
    frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &fields)
}

fn text(first: u8, value: &str) -> Vec<u8> {
    [&[first][..], &string(value)].concat()
}

/// A string of HPACK: its length with a prefix of seven bits, then its bytes as they are.
fn string(value: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + 4);
    if let Ok(len @ 0..127) = u8::try_from(value.len()) {
        bytes.push(len);
    } else {
        bytes.push(127);
        let mut rest = value.len() - 127;
        while rest >= 128 {
            bytes.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        bytes.push(u8::try_from(rest).unwrap());
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes
}
