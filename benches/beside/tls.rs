//! TLS for the servers and for the load: one self-signed ECDSA certificate for all, TLS 1.3 with AES-128-GCM (what Go's clients
//! ask for first), and a reader of answers that decrypts nothing.
//!
//! Decrypting costs a client as much as encrypting costs a server, and here both share the processors. A record says in its
//! first five bytes how long it is; the rest of it is discarded in the kernel. What the whole answer is was checked before, with a
//! client that does decrypt.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::RecvFlags;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::http::{self, Head};

/// The head of a record: type, version, length.
const RECORD_HEAD: usize = 5;
/// What a TLS 1.3 record holds beside its content: the tag and the inner type.
const RECORD_BESIDE: u64 = 17;

/// The certificate of all servers, and how clients speak to them.
#[derive(Clone, Debug)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client: Arc<ClientConfig>,
}

/// One connection that decrypts.
pub type Stream = StreamOwned<ClientConnection, TcpStream>;

impl Tls {
    /// Makes a certificate in this folder.
    pub fn make(dir: &Path) -> io::Result<Self> {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).map_err(io::Error::other)?;
        let files = (dir.join("cert.pem"), dir.join("key.pem"));
        std::fs::write(&files.0, cert.pem())?;
        std::fs::write(&files.1, signing_key.serialize_pem())?;
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).map_err(io::Error::other)?;
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
        let config = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&rustls::version::TLS13]);
        let client = config.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
        Ok(Self { cert: files.0, key: files.1, client: Arc::new(client) })
    }

    /// A client that remembers its sessions, or makes a full handshake each time.
    pub fn client(&self, resumes: bool) -> Arc<ClientConfig> {
        let mut client = ClientConfig::clone(&self.client);
        client.resumption = if resumes { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
        Arc::new(client)
    }
}

/// Connects; the handshake is made by the first read or write.
pub fn connect(config: &Arc<ClientConfig>, port: u16) -> io::Result<Stream> {
    let name = ServerName::try_from("127.0.0.1").map_err(io::Error::other)?;
    let session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(session, http::connect(port)?))
}

/// The client's half of a connection whose answers are all alike and are discarded.
pub struct Discarding {
    session: ClientConnection,
    /// Of one answer, head included.
    whole: u64,
    left: u64,
    head: [u8; RECORD_HEAD],
    head_filled: usize,
    /// Of the record that has begun.
    record_left: usize,
}

impl Discarding {
    /// Learns from a HEAD how long the answers' heads are. After it nothing is decrypted any more.
    pub fn prepare(mut stream: Stream, path: &str, size: u64) -> io::Result<(Self, TcpStream)> {
        stream.write_all(http::request(path, None).replacen("GET", "HEAD", 1).as_bytes())?;
        let head = Head::read(&mut stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if http::status_and_length(head.text()) != Some((200, size)) {
            return Err(io::Error::other(head.text().to_owned()));
        }
        let (session, socket) = stream.into_parts();
        let whole = head.text().len() as u64 + size;
        Ok((Self { session, whole, left: 0, head: [0; RECORD_HEAD], head_filled: 0, record_left: 0 }, socket))
    }

    pub fn ask(&mut self, stream: &mut TcpStream, request: &[u8]) -> io::Result<()> {
        self.left = self.whole;
        self.session.writer().write_all(request)?;
        while self.session.wants_write() {
            self.session.write_tls(stream)?;
        }
        Ok(())
    }

    /// Discards what has come; gives how much of the answer that was, and whether it is whole now.
    pub fn discard(&mut self, mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(u64, bool)> {
        let before = self.left;
        loop {
            if self.record_left > 0 {
                match rustix::net::recv(stream, &mut buffer[..self.record_left], RecvFlags::TRUNC) {
                    Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok((_, more)) => self.record_left -= more,
                    Err(rustix::io::Errno::AGAIN) => return Ok((before - self.left, false)),
                    Err(error) => return Err(error.into()),
                }
                continue;
            }
            if self.left == 0 {
                return Ok((before, true));
            }
            match stream.read(&mut self.head[self.head_filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => self.head_filled += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((before - self.left, false)),
                Err(error) => return Err(error),
            }
            if self.head_filled == RECORD_HEAD {
                self.begin_record()?;
            }
        }
    }

    fn begin_record(&mut self) -> io::Result<()> {
        let length = u16::from_be_bytes([self.head[3], self.head[4]]);
        let content = u64::from(length).checked_sub(RECORD_BESIDE).filter(|content| *content <= self.left);
        // An answer that is longer than all others is another answer.
        self.left -= content.ok_or_else(|| io::Error::other("a record that does not fit the answer"))?;
        (self.head_filled, self.record_left) = (0, usize::from(length));
        Ok(())
    }
}
