//! A client that sees everything: the status, the headers, every chunk of the body, and whether the body ended as it should.
//!
//! It follows no redirect, retries nothing, and opens a connection for every request unless told otherwise.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use millpond::oci::{Algorithm, Digest, Hasher};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use url::Url;

use super::patience::within;
use super::tls::{self, Pem};

mod pull;
mod raw;

pub use pull::{Pulled, pull, pull_with};
pub use raw::{Close, Raw};

/// A request to be.
#[derive(Clone, Debug)]
pub struct Ask {
    method: Method,
    url: Url,
    headers: Vec<(String, String)>,
    body: Bytes,
    http2: bool,
    tls: Arc<ClientConfig>,
    source: IpAddr,
}

/// A connection that takes one request after the other.
pub struct Connection {
    sender: Sender,
    driver: JoinHandle<()>,
}

/// An answer whose body is still to be read.
pub struct Stream {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    body: Incoming,
    // Kept as long as the body is read; dropped with it, which the peer sees.
    connection: Option<Connection>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// What was received of the body.
    pub body: Bytes,
    /// How the body ended.
    pub ended: Ended,
}

/// A whole answer whose body was hashed, not kept.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// Bytes of the body that were received.
    pub len: u64,
    /// The sha256 of them.
    pub digest: Digest,
    /// How the body ended.
    pub ended: Ended,
}

/// How a body ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// With all that was announced.
    Clean,
    /// Before that, and why.
    Cut(String),
}

/// No answer came.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// There is nobody, or not who was expected.
    #[error("no connection: {0}")]
    Connect(#[from] std::io::Error),
    /// The connection ended, or what came was not HTTP.
    #[error("no answer: {0}")]
    Answer(#[from] hyper::Error),
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// A GET of this URL.
pub fn get(url: impl AsRef<str>) -> Ask {
    Ask::new(Method::GET, url.as_ref())
}

/// A HEAD of this URL.
pub fn head(url: impl AsRef<str>) -> Ask {
    Ask::new(Method::HEAD, url.as_ref())
}

impl Ask {
    /// Any method.
    pub fn new(method: Method, url: &str) -> Self {
        let url = Url::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        Self {
            method,
            url,
            headers: Vec::new(),
            body: Bytes::new(),
            http2: false,
            tls: tls::client(None),
            source: Ipv4Addr::UNSPECIFIED.into(),
        }
    }

    /// With one more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With a token.
    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    /// With a name and a password.
    pub fn basic(self, user: &str, password: &str) -> Self {
        use base64::Engine as _;
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        self.header("Authorization", &format!("Basic {encoded}"))
    }

    /// With a Range of `first` to `last`, both included; to the end without `last`.
    pub fn range(self, first: u64, last: impl Into<Option<u64>>) -> Self {
        let last = last.into().map(|last| last.to_string()).unwrap_or_default();
        self.header("Range", &format!("bytes={first}-{last}"))
    }

    /// With a body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Over HTTP/2, by prior knowledge.
    pub fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    /// Over TLS with a certificate of its own.
    pub fn identity(mut self, own: &Pem) -> Self {
        self.tls = tls::client(Some(own));
        self
    }

    /// From this address of the loopback: a client of another household.
    pub fn from(mut self, source: [u8; 4]) -> Self {
        self.source = source.into();
        self
    }

    /// Sends it on a connection of its own; done when the head of the answer is here.
    pub async fn try_stream(self) -> Result<Stream, Unanswered> {
        // On the heap: a handshake is large, and tests hold many of these.
        let mut connection = Box::pin(Connection::open(&self)).await?;
        let mut stream = Box::pin(connection.ask(self)).await?;
        stream.connection = Some(connection);
        Ok(stream)
    }

    /// As [`Ask::try_stream`], where there must be an answer.
    pub async fn stream(self) -> Stream {
        let what = format!("{} {}", self.method, self.url);
        self.try_stream().await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// The whole answer, if there is one.
    pub async fn try_send(self) -> Result<Reply, Unanswered> {
        let what = format!("the answer to {} {}", self.method, self.url);
        within(&what, async { Ok(self.try_stream().await?.rest().await) }).await
    }

    /// The whole answer; there must be one.
    pub async fn send(self) -> Reply {
        let what = format!("{} {}", self.method, self.url);
        self.try_send().await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// The whole answer, its body hashed and not kept: for what is large.
    pub async fn fetch(self) -> Fetched {
        let what = format!("the answer to {} {}", self.method, self.url);
        within(&what, async { self.stream().await.hash().await }).await
    }
}

impl Connection {
    /// Connects to where the request goes, without sending it.
    pub async fn open(ask: &Ask) -> Result<Self, Unanswered> {
        let socket = TcpSocket::new_v4()?;
        if !ask.source.is_unspecified() {
            socket.bind((ask.source, 0).into())?;
        }
        let tcp = socket.connect(ask.url.socket_addrs(|| None)?[0]).await?;
        tcp.set_nodelay(true)?;
        if ask.url.scheme() == "http" {
            return Self::handshake(tcp, ask.http2).await;
        }
        let host = ask.url.host_str().unwrap_or_default();
        let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        Self::handshake(TlsConnector::from(ask.tls.clone()).connect(name, tcp).await?, ask.http2).await
    }

    /// Sends a request; done when the head of the answer is here. The body is to be read before the next.
    pub async fn ask(&mut self, ask: Ask) -> Result<Stream, Unanswered> {
        let authority = &ask.url[url::Position::BeforeHost..url::Position::AfterPort];
        let target = &ask.url[url::Position::BeforePath..url::Position::AfterQuery];
        let mut request = Request::builder().method(ask.method);
        request = match &self.sender {
            Sender::One(_) if ask.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) => request.uri(target),
            Sender::One(_) => request.uri(target).header("Host", authority),
            Sender::Two(_) => request.uri(&ask.url[..url::Position::AfterQuery]),
        };
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(ask.body)).expect("headers of a test are valid");
        // After a body that was read to its end the connection is ready a moment later.
        let response: Response<Incoming> = match &mut self.sender {
            Sender::One(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (head, body) = response.into_parts();
        Ok(Stream { status: head.status.as_u16(), headers: head.headers, body, connection: None })
    }

    async fn handshake(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, http2: bool) -> Result<Self, Unanswered> {
        // How the connection ends is seen by whoever reads the answer: the drivers need not say it too.
        if http2 {
            let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
            let driver = tokio::spawn(async { drop(driver.await) });
            return Ok(Self { sender: Sender::Two(sender), driver });
        }
        let (sender, driver) = http1::handshake(TokioIo::new(io)).await?;
        let driver = tokio::spawn(async { drop(driver.await) });
        Ok(Self { sender: Sender::One(sender), driver })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Stream {
    /// The text of a header, if it was sent.
    pub fn header(&self, name: &str) -> Option<&str> {
        text_of(&self.headers, name)
    }

    /// The next piece of the body; nothing at its clean end, an error when it is cut.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some(Ok(data)),
                    Err(_trailers) => {}
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The next pieces, until there are at least `bytes` of them; fewer only if the body ends.
    pub async fn at_least(&mut self, bytes: usize) -> Bytes {
        let mut read = BytesMut::new();
        while read.len() < bytes {
            match within("the next bytes of a body", self.chunk()).await {
                Some(Ok(chunk)) => read.extend_from_slice(&chunk),
                Some(Err(_)) | None => break,
            }
        }
        read.freeze()
    }

    /// What is left of the body.
    pub async fn rest(mut self) -> Reply {
        let mut body = BytesMut::new();
        let ended = self.each(|chunk| body.extend_from_slice(chunk)).await;
        Reply { status: self.status, headers: std::mem::take(&mut self.headers), body: body.freeze(), ended }
    }

    /// What is left of the body, hashed.
    pub async fn hash(mut self) -> Fetched {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut len = 0;
        let ended = self
            .each(|chunk| {
                hasher.update(chunk);
                len += chunk.len() as u64;
            })
            .await;
        Fetched { status: self.status, headers: std::mem::take(&mut self.headers), len, digest: hasher.finish(), ended }
    }

    async fn each(&mut self, mut take: impl FnMut(&[u8])) -> Ended {
        loop {
            match self.chunk().await {
                Some(Ok(chunk)) => take(&chunk),
                Some(Err(error)) => return Ended::Cut(error.to_string()),
                None => return Ended::Clean,
            }
        }
    }
}

impl Reply {
    /// The text of a header, if it was sent.
    pub fn header(&self, name: &str) -> Option<&str> {
        text_of(&self.headers, name)
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body of text")
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// Whether the body ended as it should.
    pub fn is_whole(&self) -> bool {
        self.ended == Ended::Clean
    }
}

impl Fetched {
    /// The text of a header, if it was sent.
    pub fn header(&self, name: &str) -> Option<&str> {
        text_of(&self.headers, name)
    }

    /// Whether the body ended as it should.
    pub fn is_whole(&self) -> bool {
        self.ended == Ended::Clean
    }
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().expect("headers of a test are text"))
}

/// Where a URL of the kit points to.
pub fn address_of(url: &str) -> SocketAddr {
    let url = Url::parse(url).expect("a URL of the kit");
    url.socket_addrs(|| None).expect("an address of the kit")[0]
}
