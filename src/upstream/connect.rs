//! Connections to upstreams: names, proxies, TCP, TLS, and the pools that keep them.
//!
//! Owns [`Clients`]: one pool for hosts that the operator configured and one for hosts that a registry redirects to.
//! The second reaches public addresses only, and looks at the address that it is about to connect to, so neither the
//! spelling of an address nor a name server that changes its mind gets around it. Where a proxy resolves names, it is
//! trusted with them: an address in an URL, or a name of this machine, is refused all the same. A client certificate has a
//! pool of its own, for the hosts of its upstream's endpoints only. HTTP/1.1 only: one connection a blob
//! has the whole of the kernel's window to itself (performance.md section 2.2).

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http_body_util::Empty;
use hyper::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tower_service::Service;
use url::{Origin, Url};

use super::budget::Limits;
use super::error::{Error, Flaw, Phase, ProxyFault, Refusal, Why};
use super::proxy::{Kind, Proxy, Router, is_local_name};
use super::resolve::Names;
use super::tunnel::{self, Stream, Way};

/// The read buffer of a connection, at most, in bytes: a blob comes in few reads, and each stays in the processor's cache until it is copied. It also bounds the head of an answer.
const READ_BUFFER_BYTES_MAX: usize = 256 << 10;

/// Addresses of one name that are tried, at most.
const ADDRESSES_MAX: usize = 8;

/// When the kernel asks a silent peer whether it is still there, and how long sent bytes may stay unacknowledged.
const KEEPALIVE: Duration = Duration::from_secs(30);
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

pub(super) type HttpClient = Client<Bounded, Empty<Bytes>>;

/// Which addresses a request may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Any: the host is configured, or a host of the private network named it.
    Anywhere,
    /// Those of the public internet: a registry named the host.
    Public,
}

/// The pools of connections.
#[derive(Clone)]
pub(super) struct Clients {
    anywhere: HttpClient,
    public: HttpClient,
    /// With the client certificate, and where alone it is shown.
    certified: Option<(Arc<[Origin]>, HttpClient)>,
    router: Router,
}

impl Clients {
    /// `extra` certificates are trusted beside the system's.
    pub(super) fn new(extra: &[CertificateDer<'static>], router: &Router, names: &Names, limits: &Arc<Limits>) -> Self {
        let tls = Arc::new(tls_config(extra, None));
        let client = |reach| client(reach, &tls, router, names, limits);
        Self { anywhere: client(Reach::Anywhere), public: client(Reach::Public), certified: None, router: router.clone() }
    }

    /// The same, with a certificate for these hosts.
    pub(super) fn with_certificate(
        self,
        extra: &[CertificateDer<'static>],
        own: Arc<dyn ResolvesClientCert>,
        hosts: Arc<[Origin]>,
        names: &Names,
        limits: &Arc<Limits>,
    ) -> Self {
        let tls = Arc::new(tls_config(extra, Some(own)));
        let certified = client(Reach::Anywhere, &tls, &self.router, names, limits);
        Self { certified: Some((hosts, certified)), ..self }
    }

    pub(super) fn get(&self, reach: Reach, url: &Url) -> &HttpClient {
        if let Some((hosts, client)) = &self.certified
            && hosts.contains(&url.origin())
        {
            return client;
        }
        match reach {
            Reach::Anywhere => &self.anywhere,
            Reach::Public => &self.public,
        }
    }

    /// The proxy that is sent the request for an URL itself.
    pub(super) fn forwarder(&self, url: &Url) -> Option<&Proxy> {
        self.router.forwarder(url)
    }
}

fn client(reach: Reach, tls: &Arc<ClientConfig>, router: &Router, names: &Names, limits: &Arc<Limits>) -> HttpClient {
    let tcp = Tcp { reach, router: router.clone(), names: names.clone(), limits: Arc::clone(limits) };
    let connector = Bounded { https: HttpsConnector::from((tcp, Arc::clone(tls))), limit: limits.connect };
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(limits.idle)
        .pool_max_idle_per_host(limits.idle_connections)
        .http1_max_buf_size(READ_BUFFER_BYTES_MAX)
        .build(connector)
}

fn tls_config(extra: &[CertificateDer<'static>], own: Option<Arc<dyn ResolvesClientCert>>) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    // A bundle with a broken certificate in it is still a bundle: what can be read is used.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots.add_parsable_certificates(extra.iter().cloned());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_root_certificates(roots);
    let mut config = match own {
        Some(own) => {
            let mut config = config.with_client_cert_resolver(own);
            // A session that is resumed is that of the certificate which began it, also after a reload.
            config.resumption = Resumption::disabled();
            config
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Dns(String),
    #[error("{0}")]
    Tcp(String),
    #[error("{0}")]
    Tls(String),
    #[error("{0}")]
    Certificate(String),
    #[error("not in time")]
    Slow,
    #[error("not a public address")]
    NotPublic,
    #[error("{fault}")]
    Proxy { proxy: String, fault: ProxyFault },
}

/// What the client's error means. `from` is the host that sent millpond to `host`, which may be `host` itself.
pub(super) fn explain(error: &ClientError, host: &str, from: &str) -> Error {
    let host = || host.to_owned();
    let unavailable = |why| Error::Unavailable { host: host(), why };
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(failure) = error.downcast_ref::<Failure>() {
            return match failure.clone() {
                Failure::Dns(text) => unavailable(Why::Dns(text)),
                Failure::Tcp(text) => unavailable(Why::Connect(text)),
                Failure::Tls(text) => unavailable(Why::Tls(text)),
                Failure::Certificate(text) => unavailable(Why::Certificate(text)),
                Failure::Slow => Error::Timeout { host: host(), phase: Phase::Connect },
                Failure::Proxy { proxy, fault } => unavailable(Why::Proxy { proxy, fault }),
                Failure::NotPublic => Error::RefusedTarget { host: from.to_owned(), target: host(), why: Refusal::Address },
            };
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return Error::BadAnswer { host: host(), flaw: Flaw::Http };
        }
        cause = error.source();
    }
    unavailable(Why::Cut)
}

type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send>>;

/// Everything up to the first byte of HTTP, within one limit.
#[derive(Clone)]
pub(super) struct Bounded {
    https: HttpsConnector<Tcp>,
    limit: Duration,
}

impl Service<Uri> for Bounded {
    type Response = MaybeHttpsStream<Stream>;
    type Error = Failure;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.https.call(uri);
        let limit = self.limit;
        Box::pin(async move {
            let connected = timeout(limit, connecting).await.map_err(|_| Failure::Slow)?;
            connected.map_err(|error| error.downcast::<Failure>().map_or_else(|other| tls_failure(&*other), |failure| *failure))
        })
    }
}

/// What is not of our own TCP connector is of TLS. The certificate is told apart, since the operator can mend that.
fn tls_failure(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Failure {
    let mut io = error.downcast_ref::<std::io::Error>();
    while let Some(error) = io {
        let Some(inner) = error.get_ref() else { break };
        if let Some(rustls::Error::InvalidCertificate(why)) = inner.downcast_ref() {
            return Failure::Certificate(why.to_string());
        }
        io = inner.downcast_ref();
    }
    Failure::Tls(error.to_string())
}

/// Connects to a host, through a proxy if there is one for it, where `reach` allows it.
#[derive(Clone)]
struct Tcp {
    reach: Reach,
    router: Router,
    names: Names,
    limits: Arc<Limits>,
}

impl Service<Uri> for Tcp {
    type Response = Stream;
    type Error = Failure;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let is_https = uri.scheme_str() == Some("https");
            let host = uri.host().unwrap_or_default();
            let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
            match this.router.proxy(is_https, host, port) {
                Some(proxy) => this.through(proxy, is_https, host, port).await,
                None => Ok(Stream::new(this.connect(host, port, this.reach).await?, Way::Direct)),
            }
        })
    }
}

impl Tcp {
    async fn connect(&self, host: &str, port: u16, reach: Reach) -> Result<TcpStream, Failure> {
        let allowed = self.addresses(host, reach).await?;
        let stream = race(allowed.into_iter().map(|ip| SocketAddr::new(ip, port)), &self.limits).await?;
        set_options(&stream);
        Ok(stream)
    }

    async fn addresses(&self, host: &str, reach: Reach) -> Result<Vec<IpAddr>, Failure> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.names.resolve(host, self.limits.dns).await?,
        };
        allowed(addresses, reach, self.limits.is_public)
    }

    async fn through(&self, proxy: &Proxy, is_https: bool, host: &str, port: u16) -> Result<Stream, Failure> {
        if self.reach == Reach::Public {
            // What can be seen without asking a name server; the rest is for the proxy to judge.
            let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
            if ip.map_or_else(|_| is_local_name(host), |ip| !(self.limits.is_public)(ip)) {
                return Err(Failure::NotPublic);
            }
        }
        match proxy.kind {
            Kind::Http if !is_https => Ok(Stream::new(self.to_proxy(proxy).await?, Way::Forward)),
            Kind::Http | Kind::SocksByName => self.tunnel(proxy, host, port).await,
            Kind::Socks => {
                let mut failure = Failure::NotPublic;
                for ip in self.addresses(host, self.reach).await? {
                    match self.tunnel(proxy, &ip.to_string(), port).await {
                        Ok(stream) => return Ok(stream),
                        Err(why) => failure = why,
                    }
                }
                Err(failure)
            }
        }
    }

    async fn tunnel(&self, proxy: &Proxy, host: &str, port: u16) -> Result<Stream, Failure> {
        let tcp = self.to_proxy(proxy).await?;
        let opened = timeout(self.limits.proxy, tunnel::open(tcp, proxy, host, port)).await;
        opened.unwrap_or(Err(ProxyFault::Silent)).map_err(|fault| Failure::Proxy { proxy: proxy.label(), fault })
    }

    /// A proxy is named by the operator: it may be anywhere.
    async fn to_proxy(&self, proxy: &Proxy) -> Result<TcpStream, Failure> {
        let connected = self.connect(&proxy.host, proxy.port, Reach::Anywhere).await;
        connected.map_err(|failure| Failure::Proxy { proxy: proxy.label(), fault: ProxyFault::Unreachable(failure.to_string()) })
    }
}

/// The addresses to try, in the resolver's order but with the two families taking turns (RFC 8305 section 4).
fn allowed(addresses: Vec<IpAddr>, reach: Reach, is_public: fn(IpAddr) -> bool) -> Result<Vec<IpAddr>, Failure> {
    if addresses.is_empty() {
        return Err(Failure::Dns("no address".to_owned()));
    }
    let allowed: Vec<_> = addresses.into_iter().filter(|&ip| reach == Reach::Anywhere || is_public(ip)).collect();
    let Some(first) = allowed.first() else { return Err(Failure::NotPublic) };
    let (mut ours, mut others): (Vec<_>, Vec<_>) = allowed.iter().partition(|ip| ip.is_ipv6() == first.is_ipv6());
    ours.reverse();
    others.reverse();
    let mut turns = Vec::with_capacity(allowed.len());
    while let Some(ip) = ours.pop() {
        turns.push(ip);
        turns.extend(others.pop());
    }
    turns.extend(others.into_iter().rev());
    turns.truncate(ADDRESSES_MAX);
    Ok(turns)
}

/// The first address that accepts. The next is tried when one fails, or beside it when it takes its time.
async fn race(mut addresses: impl ExactSizeIterator<Item = SocketAddr>, limits: &Limits) -> Result<TcpStream, Failure> {
    let one = |address| connect(address, limits.connect_address);
    let mut racing = FuturesUnordered::new();
    let mut first_failure = None;
    loop {
        if racing.is_empty() {
            match addresses.next() {
                Some(address) => racing.push(one(address)),
                None => return Err(first_failure.unwrap_or(Failure::NotPublic)),
            }
        }
        tokio::select! {
            Some(done) = racing.next() => match done {
                Ok(stream) => return Ok(stream),
                Err(failure) => {
                    first_failure.get_or_insert(failure);
                    racing.extend(addresses.next().map(&one));
                }
            },
            () = sleep(limits.connect_stagger), if addresses.len() > 0 => racing.extend(addresses.next().map(&one)),
        }
    }
}

async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, Failure> {
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(Failure::Tcp(error.kind().to_string())),
        Err(_) => Err(Failure::Slow),
    }
}

/// None of these is worth a connection: one that the kernel does not know is left as it is.
fn set_options(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEPALIVE);
    let _ = sockopt::set_tcp_keepintvl(stream, KEEPALIVE / 3);
    let _ = sockopt::set_tcp_keepcnt(stream, 3);
    let millis = u32::try_from(UNACKNOWLEDGED_MAX.as_millis()).unwrap_or(u32::MAX);
    let _ = sockopt::set_tcp_user_timeout(stream, millis);
}

#[cfg(test)]
mod tests {
    use super::super::address::is_public;
    use super::super::proxy::Via;
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().expect("an address")).collect()
    }

    #[test]
    fn families_take_turns_and_private_addresses_fall_out() {
        let all = ips(&["2606::1", "2606::2", "2606::3", "1.1.1.1", "10.0.0.1"]);
        let turns = allowed(all.clone(), Reach::Anywhere, is_public).expect("some");
        assert_eq!(turns, ips(&["2606::1", "1.1.1.1", "2606::2", "10.0.0.1", "2606::3"]));
        let turns = allowed(all, Reach::Public, is_public).expect("some");
        assert_eq!(turns, ips(&["2606::1", "1.1.1.1", "2606::2", "2606::3"]));
        assert!(matches!(allowed(ips(&["127.0.0.1", "::1"]), Reach::Public, is_public), Err(Failure::NotPublic)));
        assert!(matches!(allowed(Vec::new(), Reach::Public, is_public), Err(Failure::Dns(_))));
    }

    #[tokio::test]
    async fn an_address_that_refuses_costs_nothing_when_another_accepts() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let good = listener.local_addr().expect("an address");
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let bad = closed.local_addr().expect("an address");
        drop(closed);
        let stream = race([bad, good].into_iter(), &Limits::default()).await.expect("the second address");
        assert_eq!(stream.peer_addr().expect("a peer"), good);
        let failure = race([bad].into_iter(), &Limits::default()).await.expect_err("nobody listens");
        assert_eq!(failure.to_string(), "connection refused");
    }

    #[tokio::test]
    async fn the_filtered_pool_never_connects_to_a_private_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let limits = Arc::new(Limits::default());
        let clients = Clients::new(&[], &Router::new(&Via::Direct, &Arc::default()), &Names::default(), &limits);
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
            let url = format!("http://{host}:{port}/");
            let uri: Uri = url.parse().expect("an URI");
            let error = clients.get(Reach::Public, &Url::parse(&url).expect("an URL")).get(uri).await.expect_err("refused");
            let error = explain(&error, host, "registry.example");
            assert!(matches!(error, Error::RefusedTarget { why: Refusal::Address, .. }), "{host}: {error:?}");
        }
        let accepted = futures_util::FutureExt::now_or_never(listener.accept());
        assert!(accepted.is_none(), "a connection was made");
    }
}
