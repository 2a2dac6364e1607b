//! The life of a connection and of each request on it: recorded, given its fault, answered, and recorded again.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hyper::Method;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::super::gate::Gate;
use super::answer::Answer;
use super::auth::Tokens;
use super::cdn::SignedUrls;
use super::fault::{Fault, Faults, Instead};
use super::listener::Port;
use super::log::{End, Kind, Log, Request};
use super::quirks::Quirks;
use super::store::Store;
use super::wire::{Framing, Received, Sent, Wire};
use super::{api, auth, cdn};

/// What all connections of a registry share. Locks are short and never held across a wait.
pub(super) struct Shared {
    pub(super) store: Mutex<Store>,
    pub(super) quirks: Mutex<Quirks>,
    pub(super) faults: Faults,
    pub(super) log: Log,
    pub(super) tokens: Mutex<Tokens>,
    pub(super) urls: Mutex<SignedUrls>,
    pub(super) users: Mutex<BTreeMap<String, String>>,
    /// Pulls that counted against the limit.
    // By user; nobody in particular has no name.
    pub(super) pulls: Mutex<HashMap<String, u64>>,
    // The repositories that not every user sees, and who does.
    pub(super) readers: Mutex<HashMap<String, Vec<String>>>,
    pub(super) violations: Mutex<Vec<String>>,
    /// New connections to these ports wait there before a byte is read.
    pub(super) doors: Mutex<Vec<(Port, Gate)>>,
    pub(super) connections: AtomicU64,
    pub(super) hosts: Vec<Host>,
    pub(super) send_buffer: Option<usize>,
}

/// One listener, as its clients see it.
pub(super) struct Host {
    pub(super) port: Port,
    pub(super) address: SocketAddr,
    pub(super) tls: Option<Arc<ServerConfig>>,
}

impl Shared {
    pub(super) fn quirks(&self) -> Quirks {
        self.quirks.lock().unwrap().clone()
    }

    pub(super) fn host(&self, port: Port) -> &Host {
        self.hosts.iter().find(|host| host.port == port).expect("every port has a host")
    }

    /// `http://127.0.0.1:1234`, without a slash at the end.
    pub(super) fn url(&self, port: Port) -> String {
        let host = self.host(port);
        format!("{}://{}", if host.tls.is_some() { "https" } else { "http" }, host.address)
    }

    pub(super) fn violation(&self, what: String) {
        self.violations.lock().unwrap().push(what);
    }

    pub(super) fn login(&self, user: &str, password: &str) -> Result<String, ()> {
        let users = self.users.lock().unwrap();
        if users.get(user).is_some_and(|known| known == password) { Ok(user.to_owned()) } else { Err(()) }
    }

    pub(super) fn refreshed(&self, token: &str) -> Result<String, ()> {
        let user = token.strip_prefix("refresh-").ok_or(())?;
        if self.users.lock().unwrap().contains_key(user) { Ok(user.to_owned()) } else { Err(()) }
    }

    /// What the tokens of this registry end in.
    pub(super) fn mark(&self) -> String {
        format!("kit{}", self.host(Port::Registry).address.port())
    }

    pub(super) fn is_of_another_registry(&self, token: &str) -> bool {
        token.rsplit('.').next().is_some_and(|mark| mark.starts_with("kit") && mark != self.mark())
    }

    fn classify(&self, port: Port, connection: u64, received: Received) -> Request {
        let (path, query) = received.target.split_once('?').unwrap_or((&received.target, ""));
        let prefix = self.quirks().prefix;
        let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
        let (kind, repository, reference) = about(decoded.strip_prefix(&prefix).unwrap_or("/outside"));
        let resolve = |repository: &str, reference: &str| self.store.lock().unwrap().resolve(repository, reference);
        let digest = match (kind, &repository, &reference) {
            (Kind::Cdn, ..) => cdn::digest_of(&decoded),
            (_, Some(repository), Some(reference)) => resolve(repository, reference),
            _ => None,
        };
        let (path, query) = (path.to_owned(), query.to_owned());
        let Received { method, headers, body, .. } = received;
        Request { port, connection, kind, method, path, query, headers, body, repository, reference, digest }
    }

    /// Notes what no registry should ever be asked by a mirror.
    fn judge(&self, request: &Request) {
        let host = self.host(request.port).address.to_string();
        if request.header("host") != Some(&host) {
            self.violation(format!("the Host of {host} is not {:?}: {}", request.header("host"), request.path));
        }
        if !request.params("ns").is_empty() {
            self.violation(format!("ns is for mirrors: {}?{}", request.path, request.query));
        }
        let token = request.kind == Kind::Token && request.method == Method::POST;
        if !token && request.method != Method::GET && request.method != Method::HEAD {
            self.violation(format!("a write: {} {}", request.method, request.path));
        }
    }
}

/// What a path is about. The last parts decide, since a repository may be called anything.
fn about(path: &str) -> (Kind, Option<String>, Option<String>) {
    if path == "/token" {
        return (Kind::Token, None, None);
    }
    if path.starts_with("/registry-v2/") || path.starts_with("/artifacts-downloads/") {
        return (Kind::Cdn, None, None);
    }
    if path.starts_with("/v1/") || path.starts_with("/v2/search/") {
        return (Kind::Search, None, None);
    }
    let Some(rest) = path.strip_prefix("/v2") else { return (Kind::Other, None, None) };
    let rest = rest.trim_start_matches('/');
    if rest.is_empty() {
        return (Kind::Ping, None, None);
    }
    let mut parts = rest.rsplitn(3, '/');
    let (Some(last), Some(what), Some(name)) = (parts.next(), parts.next(), parts.next()) else { return (Kind::Other, None, None) };
    let kind = match (what, last) {
        ("manifests", _) => Kind::Manifest,
        ("blobs", _) => Kind::Blob,
        ("referrers", _) => Kind::Referrers,
        ("tags", "list") => Kind::Tags,
        _ => return (Kind::Other, None, None),
    };
    (kind, Some(name.to_owned()), (kind != Kind::Tags).then(|| last.to_owned()))
}

/// Serves a connection until it ends.
pub(super) async fn connection(shared: Arc<Shared>, port: Port, socket: TcpStream) {
    // Each of these ends the connection, as a broken one does: the log has what matters.
    let _ = serve(&shared, port, socket).await;
}

async fn serve(shared: &Arc<Shared>, port: Port, socket: TcpStream) -> io::Result<()> {
    let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
    socket.set_nodelay(true)?;
    if let Some(bytes) = shared.send_buffer {
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, bytes)?;
    }
    let door = shared.doors.lock().unwrap().iter().find(|(at, _)| *at == port).map(|(_, gate)| gate.clone());
    if let Some(gate) = door {
        gate.wait().await;
    }
    let mut wire = match &shared.host(port).tls {
        Some(config) => Wire::new(Box::new(TlsAcceptor::from(config.clone()).accept(socket).await?)),
        None => Wire::new(Box::new(socket)),
    };
    while let Some(received) = wire.receive().await? {
        let request = Arc::new(shared.classify(port, number, received));
        shared.judge(&request);
        // The fault is taken before the request is in the log, so that a test that saw it there may plan the next.
        let fault = shared.faults.take(&request).unwrap_or_default();
        let mut exchange = Exchange { shared, id: shared.log.arrived(request.clone()), request: &request, ended: None };
        match exchange.run(&mut wire, &fault).await {
            Ok(Sent::Whole) => exchange.ended = Some(End::Whole),
            Ok(Sent::Last) => {
                exchange.ended = Some(End::Whole);
                return wire.finish().await;
            }
            Ok(Sent::Cut) => {
                // Before the log says so.
                drop(wire);
                exchange.ended = Some(End::Cut);
                return Ok(());
            }
            Err(error) => {
                exchange.ended = Some(End::Left);
                return Err(error);
            }
        }
    }
    Ok(())
}

/// One request under way; when it is dropped the log has its end.
struct Exchange<'a> {
    shared: &'a Shared,
    id: usize,
    request: &'a Request,
    ended: Option<End>,
}

impl Exchange<'_> {
    async fn run(&mut self, wire: &mut Wire, fault: &Fault) -> io::Result<Sent> {
        if let Some(gate) = &fault.head_gate {
            wire.wait(gate).await?;
        }
        let latency = self.shared.quirks().latency;
        if !latency.is_zero() {
            wire.pause(latency).await?;
        }
        if fault.early_hints {
            wire.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n").await?;
        }
        let answer = match &fault.instead {
            Instead::HangUp(cut) => {
                wire.cut(*cut)?;
                return Ok(Sent::Cut);
            }
            Instead::Raw(bytes) => {
                wire.raw(bytes).await?;
                self.shared.log.note(self.id, |record| record.sent = bytes.len() as u64);
                return Ok(Sent::Last);
            }
            Instead::Answer(answer) => answer.clone(),
            Instead::Challenge => auth::challenge(self.shared, &self.shared.quirks(), self.request, Some("invalid_token")),
            Instead::Redirect(status) => Answer::new(*status).header("Location", self.own_url()),
            Instead::Nothing => self.answer(fault),
        };
        self.send(wire, fault, fault.apply(answer)).await
    }

    fn answer(&self, fault: &Fault) -> Answer {
        let mut quirks = self.shared.quirks();
        quirks.ranges = fault.ranges.unwrap_or(quirks.ranges);
        quirks.multi = fault.multi.unwrap_or(quirks.multi);
        let answer = match self.request.kind {
            Kind::Token => auth::token(self.shared, &quirks, self.request),
            Kind::Cdn => cdn::answer(self.shared, &quirks, self.request),
            _ => api::answer(self.shared, &quirks, self.request),
        };
        let accepted = self.request.header("accept-encoding").is_some_and(|accepted| accepted.contains("gzip"));
        let content = matches!(self.request.kind, Kind::Manifest | Kind::Blob | Kind::Cdn) && answer.status == 200;
        if quirks.gzips && accepted && content { answer.gzipped() } else { answer }
    }

    async fn send(&mut self, wire: &mut Wire, fault: &Fault, answer: Answer) -> io::Result<Sent> {
        let mut order = fault.delivery.clone();
        order.rate = order.rate.or(self.shared.quirks().rate);
        let head_only = self.request.method == Method::HEAD && !answer.body_on_head;
        let mut headers = answer.headers.clone();
        let mut tell = |name: &str, value: String| headers.push((name.to_owned(), value));
        match order.framing {
            _ if answer.untold_length || answer.has("Content-Length") || answer.status == 204 || answer.status == 304 => {}
            Framing::Length => tell("Content-Length", answer.body.len().to_string()),
            Framing::Announced(bytes) => tell("Content-Length", bytes.to_string()),
            Framing::Chunked => tell("Transfer-Encoding", "chunked".into()),
            Framing::UntilClose => tell("Connection", "close".into()),
        }
        wire.head(answer.status, &headers).await?;
        self.shared.log.note(self.id, |record| record.status = Some(answer.status));
        let sent = if head_only {
            Sent::Whole
        } else {
            let (log, id) = (&self.shared.log, self.id);
            wire.body(&answer.body, &order, |bytes| log.note(id, |record| record.sent += bytes)).await?
        };
        let asked_to_close = self.request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let says_close = headers.iter().any(|(name, value)| name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close"));
        let closes = asked_to_close || says_close;
        Ok(if closes && matches!(sent, Sent::Whole) { Sent::Last } else { sent })
    }

    fn own_url(&self) -> String {
        let query = if self.request.query.is_empty() { String::new() } else { format!("?{}", self.request.query) };
        format!("{}{}{query}", self.shared.url(self.request.port), self.request.path)
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        // Without a word it was dropped: the registry went down.
        let end = self.ended.unwrap_or(End::Cut);
        self.shared.log.ended(self.id, end);
    }
}
