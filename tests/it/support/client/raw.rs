//! A client without HTTP: sends any bytes, reads as slowly as it likes or not at all, and leaves as it likes.

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::super::patience::within;

/// A socket. Dropped, it closes in good order.
pub struct Raw {
    socket: TcpStream,
    ahead: Vec<u8>,
}

/// How the peer ended a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Close {
    /// In good order.
    Fin,
    /// By a reset.
    Reset,
}

impl Raw {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Self {
        Self { socket: TcpStream::connect(address).await.unwrap(), ahead: Vec::new() }
    }

    /// Connects with room in the kernel for about so many bytes that were not read, instead of megabytes: a client that
    /// does not read is felt at once.
    pub async fn narrow(address: SocketAddr, receive_buffer: u32) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(receive_buffer).unwrap();
        Self { socket: socket.connect(address).await.unwrap(), ahead: Vec::new() }
    }

    /// Sends these bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.unwrap();
    }

    /// Sends these bytes, if the peer still takes them.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.socket.write_all(bytes.as_ref()).await
    }

    /// Sends a plain GET of this path.
    pub async fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: kit\r\n\r\n")).await;
    }

    /// Says that nothing more will be sent, and goes on reading.
    pub async fn end_sending(&mut self) {
        self.socket.shutdown().await.unwrap();
    }

    /// The head of the next answer, up to its empty line.
    pub async fn head(&mut self) -> String {
        loop {
            if let Some(at) = self.ahead.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.ahead.drain(..at + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.more().await.is_none(), "the connection ended before the head: {:?}", String::from_utf8_lossy(&self.ahead));
        }
    }

    /// Exactly `n` bytes, and none beyond.
    pub async fn read(&mut self, n: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.ahead.drain(..n.min(self.ahead.len())).collect();
        let start = bytes.len();
        bytes.resize(n, 0);
        within("bytes of a socket", self.socket.read_exact(&mut bytes[start..])).await.unwrap();
        bytes
    }

    /// All bytes until the peer ends the connection, and how it does.
    pub async fn drain(&mut self) -> (Vec<u8>, Close) {
        loop {
            if let Some(close) = self.more().await {
                return (std::mem::take(&mut self.ahead), close);
            }
        }
    }

    /// Leaves by a reset.
    pub fn reset(self) {
        self.socket.set_zero_linger().unwrap();
    }

    /// Reads what is there, once something is; or how the connection ended.
    async fn more(&mut self) -> Option<Close> {
        match within("bytes of a socket", self.socket.read_buf(&mut self.ahead)).await {
            Ok(0) => Some(Close::Fin),
            Ok(_) => None,
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Some(Close::Reset),
            Err(error) => panic!("{error}"),
        }
    }
}
