//! A server that answers by script and remembers what it was asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::HeaderMap;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;
use url::Url;

use super::super::{Config, Credentials, Limits, Settings, Upstream, Upstreams};
use crate::observe::Metrics;
use crate::oci::{Digest, Name, Reference, Registry};

pub(super) type Answer = Response<BoxBody<Bytes, std::io::Error>>;

/// What the script says to a request.
pub(super) enum Reply {
    Now(Answer),
    /// As soon as the gate has a permit, of which it takes one.
    After(Arc<Semaphore>, Answer),
    /// Never.
    Hang,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }
}

/// A server on a port of its own. It ends with the runtime of the test.
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    arrived: Arc<Notify>,
    connections: Arc<AtomicUsize>,
    tls: bool,
}

impl Server {
    /// The script is told the request and how many came before it.
    pub(super) async fn start(script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, |_| script).await
    }

    /// The same, for a script that has to know its own address.
    pub(super) async fn start_with<S>(tls: Option<TlsAcceptor>, script: impl FnOnce(SocketAddr) -> S) -> Self
    where
        S: Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    {
        Self::start_at("127.0.0.1", tls, script).await
    }

    /// The same, at an address.
    pub(super) async fn start_at<S>(ip: &str, tls: Option<TlsAcceptor>, script: impl FnOnce(SocketAddr) -> S) -> Self
    where
        S: Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let server = Self { addr, seen: Arc::default(), arrived: Arc::default(), connections: Arc::default(), tls: tls.is_some() };
        let (script, seen, connections) = (Arc::new(script(addr)), Arc::clone(&server.seen), Arc::clone(&server.connections));
        let arrived = Arc::clone(&server.arrived);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                connections.fetch_add(1, Ordering::SeqCst);
                let (script, seen, tls, arrived) = (Arc::clone(&script), Arc::clone(&seen), tls.clone(), Arc::clone(&arrived));
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let answer = respond(Arc::clone(&script), Arc::clone(&seen), request);
                        arrived.notify_one();
                        answer
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                            Err(_) => return,
                        },
                        None => http.serve_connection(TokioIo::new(stream), service).await,
                    };
                });
            }
        });
        server
    }

    /// All requests, as `GET /path` without the query.
    pub(super) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("not poisoned").clone()
    }

    pub(super) fn count(&self) -> usize {
        self.seen.lock().expect("not poisoned").len()
    }

    /// Waits for the next request.
    pub(super) async fn next(&self) {
        self.arrived.notified().await;
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) fn url(&self) -> Url {
        let url = if self.tls { format!("https://localhost:{}", self.addr.port()) } else { format!("http://{}", self.addr) };
        Url::parse(&url).expect("an URL")
    }

    pub(super) fn host(&self) -> String {
        self.addr.to_string()
    }
}

async fn respond<S, B>(script: Arc<S>, seen: Arc<Mutex<Vec<Seen>>>, request: Request<B>) -> Result<Answer, Infallible>
where
    S: Fn(&Seen, usize) -> Reply,
{
    let this = Seen {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        headers: request.headers().clone(),
    };
    let before = {
        let mut seen = seen.lock().expect("not poisoned");
        seen.push(this.clone());
        seen.len() - 1
    };
    match script(&this, before) {
        Reply::Now(answer) => Ok(answer),
        Reply::After(gate, answer) => {
            gate.acquire().await.expect("open").forget();
            Ok(answer)
        }
        Reply::Hang => std::future::pending().await,
    }
}

/// An answer of a status, headers and a body.
pub(super) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Full::new(body.into()).map_err(|never| match never {}).boxed()).expect("an answer")
}

/// The same, at once.
pub(super) fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
    Reply::Now(answer(status, headers, body))
}

/// An answer that announces more bytes than it sends.
pub(super) fn cut(announced: usize, sent: &'static [u8]) -> Reply {
    let frames = [Ok(Frame::data(Bytes::from_static(sent))), Err(std::io::Error::other("cut"))];
    let body = StreamBody::new(stream::iter(frames)).boxed();
    Reply::Now(Response::builder().header("content-length", announced).body(body).expect("an answer"))
}

/// A 401 that asks for a token of a realm.
pub(super) fn challenge(realm: &str) -> Reply {
    let header = format!(r#"Bearer realm="{realm}",service="registry.test",scope="repository:wrong:pull,push""#);
    reply(401, &[("www-authenticate", &header)], "{}")
}

/// An upstream to be asked, and what it is made of.
pub(super) struct Setup {
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
    pub(super) settings: Settings,
    dir: tempfile::TempDir,
}

impl Setup {
    pub(super) fn new(endpoints: &[&Server]) -> Self {
        let settings = Settings { parallel: 1, ..Settings::of(endpoints.iter().map(|server| server.url()).collect()) };
        let limits = Limits { pause: Duration::from_millis(1), ..Limits::default() };
        Self { limits, metrics: Metrics::new(), settings, dir: tempfile::tempdir().expect("a folder") }
    }

    pub(super) fn with_login(mut self) -> Self {
        let password_file = self.file("password", "secret");
        self.settings.credentials = Some(Credentials::Password { username: "user".to_owned(), password_file });
        self
    }

    pub(super) fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.limits);
        self
    }

    pub(super) fn file(&self, name: &str, content: &str) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    }

    pub(super) fn upstreams(&self) -> Upstreams {
        let mut config = Config::default();
        config.upstreams.insert(registry(), self.settings.clone());
        Upstreams::build_with(&config, self.metrics.clone(), self.limits.clone()).expect("built")
    }

    pub(super) fn upstream(&self) -> Upstream {
        self.upstreams().get(&registry()).expect("configured").clone()
    }

    /// A line of the metrics.
    pub(super) fn counted(&self, line: &str) -> bool {
        self.metrics.render().lines().any(|l| l == line)
    }
}

/// `Basic` of the login of [`Setup::with_login`].
pub(super) const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

pub(super) fn registry() -> Registry {
    Registry::parse("up.test").expect("a registry")
}

pub(super) fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

pub(super) fn tag(text: &str) -> Reference {
    Reference::parse(text).expect("a tag")
}

pub(super) fn digest(content: &str) -> Digest {
    Digest::sha256_of(content.as_bytes())
}

pub(super) async fn read(blob: super::super::BlobBody) -> Bytes {
    blob.body.collect().await.expect("a body").to_bytes()
}

/// Makes so much time pass at once.
pub(super) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
