//! One connection: handshake, HTTP/1 or HTTP/2, the stop.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::guard::Guard;
use super::streams::{Advice, Executor, Streams, Watched};
use super::{Certificates, Client, Limits};

/// Bytes of a request head (more is 431), and of what hyper queues for sending. A head with a bearer token and a signed query is under 16 KiB.
const HEAD_BUFFER: usize = 64 * 1024;

/// Header lines; more is 431. hyper parses up to this many without an allocation.
const MAX_HEADERS: usize = 100;

/// Bytes of TLS records waiting for the socket. rustls's 64 KiB would cut every large write into sixteen.
const TLS_BUFFER: usize = 512 * 1024;

/// Requests at once on one HTTP/2 connection: the most parallel puller asks for a few dozen.
const H2_STREAMS: u32 = 100;

/// Bytes of a request body a stream, and a connection, may send ahead. A pull has none.
const H2_STREAM_WINDOW: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW: u32 = 256 * 1024;

/// Bytes queued a stream: 100 streams make 12 MiB a connection.
const H2_SEND_BUFFER: usize = 128 * 1024;

/// Resets a client may provoke before the connection ends (rapid reset, CVE-2023-44487), by its own doing and by ours.
const H2_ACCEPT_RESETS: usize = 20;
const H2_ERROR_RESETS: usize = 128;

/// A dead peer is found by a ping every 20 s that is answered within 20 s.
const H2_PING: Duration = Duration::from_secs(20);

/// How often an HTTP/2 connection is looked at: its limits are told to within this.
const H2_LOOK: Duration = Duration::from_secs(5);

/// What the connections of a listener share.
pub(super) struct Connections {
    limits: Limits,
    tls: Option<Certificates>,
    stop: CancellationToken,
    http1: http1::Builder,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Connections {
    pub(super) fn new(limits: Limits, tls: Option<Certificates>, stop: CancellationToken) -> Self {
        let mut http1 = http1::Builder::new();
        // Without the timer there is no header timeout.
        http1.timer(TokioTimer::new()).header_read_timeout(limits.header).max_buf_size(HEAD_BUFFER).max_headers(MAX_HEADERS);
        Self { limits, tls, stop, http1 }
    }

    /// Serves one connection to its end. How it ended is told in the log only: a client that leaves is no event.
    pub(super) async fn run<S, F, B>(&self, socket: TcpStream, addr: SocketAddr, service: S)
    where
        S: Fn(Client, Request<Incoming>) -> F,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let socket = Guard::new(socket, self.limits.stall);
        let ended = match &self.tls {
            None => self.http1(socket, Client { addr, certificate: false }, service).await,
            Some(certificates) => self.tls(certificates, socket, addr, service).await,
        };
        if let Err(error) = ended {
            let cause = error.source().map(tracing::field::display);
            tracing::debug!(client = %addr, %error, cause, "a connection ended early");
        }
    }

    /// The handshake runs here, in the connection's own task, so that a slow one delays nobody. It needs no seat of its own: were there few,
    /// as many sockets that never finish their hello would lock everybody out.
    async fn tls<S, F, B>(&self, certificates: &Certificates, socket: Guard, addr: SocketAddr, service: S) -> Result<(), BoxError>
    where
        S: Fn(Client, Request<Incoming>) -> F,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let handshake = tokio::time::timeout(self.limits.handshake, TlsAcceptor::from(certificates.current()).accept(socket));
        let Some(done) = self.stop.run_until_cancelled(handshake).await else { return Ok(()) };
        let mut stream = done??;
        let session = stream.get_mut().1;
        session.set_buffer_limit(Some(TLS_BUFFER));
        let certificate = session.peer_certificates().is_some_and(|chain| !chain.is_empty());
        let client = Client { addr, certificate };
        if session.alpn_protocol() == Some(b"h2") {
            self.http2(stream, client, service).await
        } else {
            self.http1(stream, client, service).await
        }
    }

    async fn http1<I, S, F, B>(&self, io: I, client: Client, service: S) -> Result<(), BoxError>
    where
        I: AsyncRead + AsyncWrite + Unpin,
        S: Fn(Client, Request<Incoming>) -> F,
        F: Future<Output = Response<B>>,
        B: Body + 'static,
        B::Error: Into<BoxError>,
    {
        let service = service_fn(move |request| {
            let answer = service(client, request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let mut connection = pin!(self.http1.serve_connection(TokioIo::new(io), service));
        // A token of its own: it is locked whenever the connection is polled, and a shared one would pass from core to core.
        let stop = self.stop.child_token();
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }

    async fn http2<I, S, F, B>(&self, io: I, client: Client, service: S) -> Result<(), BoxError>
    where
        I: AsyncRead + AsyncWrite + Unpin,
        S: Fn(Client, Request<Incoming>) -> F,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let streams = Streams::new();
        let watched = streams.clone();
        let service = service_fn(move |request| {
            let stream = watched.open();
            let answer = service(client, request);
            async move { Ok::<_, Infallible>(answer.await.map(|body| Watched::new(body, stream))) }
        });
        let tasks = CancellationToken::new();
        let _end_of_tasks = tasks.clone().drop_guard();
        let mut connection = pin!(h2_builder(Executor(tasks)).serve_connection(TokioIo::new(io), service));
        let mut look = tokio::time::interval(H2_LOOK);
        let mut closing = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => return Ok(ended?),
                () = self.stop.cancelled(), if !closing => closing = true,
                _ = look.tick() => match streams.advice(&self.limits) {
                    Advice::Keep => continue,
                    Advice::Close if closing => continue,
                    Advice::Close => closing = true,
                    Advice::Cut => return Err("the client took nothing from any of its streams".into()),
                },
            }
            connection.as_mut().graceful_shutdown();
        }
    }
}

fn h2_builder(executor: Executor) -> http2::Builder<Executor> {
    let mut http2 = http2::Builder::new(executor);
    // Without a timer the keep-alive panics.
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_send_buf_size(H2_SEND_BUFFER)
        .max_pending_accept_reset_streams(H2_ACCEPT_RESETS)
        .max_local_error_reset_streams(H2_ERROR_RESETS)
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PING);
    http2
}
