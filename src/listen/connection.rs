//! One connection: handshake, HTTP/1 or HTTP/2, the stop.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::deadline::{Alarm, HeadTimer};
use super::guard::Guard;
use super::hand::{Hands, Paced};
use super::mapped::Mapped;
use super::record::Unhurried;
use super::streams::{Advice, Executor, Streams};
use super::{Certificates, Client, Limits};

/// Bytes of a request head (more is 431), and of what hyper queues for sending before it sends it. A head with a bearer token and a signed query
/// is under 16 KiB; a thousand heads that never end are 32 MiB.
const HEAD_BUFFER: usize = 32 * 1024;

/// Bytes of TLS records waiting for the socket: the largest single write of hyper's, a full queue and a piece more. rustls's 64 KiB would cut it in two.
const TLS_BUFFER: usize = 128 * 1024;

/// Requests at once on one HTTP/2 connection: the most parallel puller asks for a dozen. Each costs some 5 KiB before it is even served.
const H2_STREAMS: u32 = 32;

/// Bytes of a request body a stream, and a connection, may send ahead. A pull has none.
const H2_STREAM_WINDOW: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW: u32 = 256 * 1024;

/// Bytes queued a stream, when all is well; in a crowd it is a piece (see `hand`).
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
    hands: Hands,
    /// Requests at once beyond the first of a connection.
    extra: Arc<Semaphore>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Connections {
    pub(super) fn new(limits: Limits, tls: Option<Certificates>, stop: CancellationToken) -> Self {
        let mut http1 = http1::Builder::new();
        // More than 100 header lines are 431, by hyper's default: to name another number, or that one, costs every request a table that is filled
        // before it is used.
        http1.header_read_timeout(limits.header).max_buf_size(HEAD_BUFFER);
        let extra = Arc::new(Semaphore::new(limits.streams.min(Semaphore::MAX_PERMITS)));
        Self { limits, tls, stop, http1, hands: Hands::default(), extra }
    }

    /// Serves one connection to its end. How it ended is told in the log only: a client that leaves is no event.
    pub(super) async fn run<S, F, B>(&self, socket: TcpStream, addr: SocketAddr, service: S)
    where
        S: Fn(Client, Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Unpin + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let mapped = Mapped::default();
        let socket = Guard::new(socket, self.limits.stall, mapped.clone());
        // Each on the heap: together they would make every connection as large as the largest of them.
        let ended = match &self.tls {
            None => Box::pin(self.http1(socket, Some(mapped), Client { addr, certificate: false }, service)).await,
            Some(certificates) => Box::pin(self.tls(certificates, socket, addr, service)).await,
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
        S: Fn(Client, Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Unpin + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let handshake = Box::pin(TlsAcceptor::from(certificates.current()).accept(socket));
        let handshake = tokio::time::timeout(self.limits.handshake, handshake);
        let Some(done) = self.stop.run_until_cancelled(handshake).await else { return Ok(()) };
        let mut stream = done??;
        let session = stream.get_mut().1;
        session.set_buffer_limit(Some(TLS_BUFFER));
        let certificate = session.peer_certificates().is_some_and(|chain| !chain.is_empty());
        let client = Client { addr, certificate };
        if session.alpn_protocol() == Some(b"h2") {
            Box::pin(self.http2(Unhurried(stream), client, service)).await
        } else {
            Box::pin(self.http1(Unhurried(stream), None, client, service)).await
        }
    }

    pub(super) async fn http1<I, S, F, B>(&self, io: I, mapped: Option<Mapped>, client: Client, service: S) -> Result<(), BoxError>
    where
        I: AsyncRead + AsyncWrite + Unpin,
        S: Fn(Client, Request<Incoming>) -> F,
        F: Future<Output = Response<B>>,
        B: Body + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let hand = self.hands.hand();
        let service = service_fn(move |request| {
            // On the heap while it lasts: within the connection its room, which is large, would be held for as long as that.
            let answer = Box::pin(service(client, request));
            let (hand, mapped) = (hand.clone(), mapped.clone());
            async move { Ok::<_, Infallible>(answer.await.map(|body| Paced::new(body, hand, mapped, None))) }
        });
        // Without a timer there is no header timeout.
        let (timer, mut alarm) = (HeadTimer::default(), Alarm::default());
        let mut connection = pin!(self.http1.clone().timer(timer.clone()).serve_connection(TokioIo::new(io), service));
        // A token of its own: it is locked whenever the connection is polled, and a shared one would pass from core to core.
        let stop = self.stop.child_token();
        let mut stopping = pin!(stop.cancelled());
        let mut closing = false;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                    return Poll::Ready(Ok(ended?));
                }
                if !closing && stopping.as_mut().poll(cx).is_ready() {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                    continue;
                }
                // The head that is overdue is the connection's to give up.
                ready!(timer.poll_overdue(&mut alarm, cx));
            }
        })
        .await
    }

    async fn http2<I, S, F, B>(&self, io: I, client: Client, service: S) -> Result<(), BoxError>
    where
        I: AsyncRead + AsyncWrite + Unpin,
        S: Fn(Client, Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Unpin + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let streams = Streams::new();
        let mut watch = streams.watch();
        let (hands, first, extra) = (self.hands.clone(), Arc::new(Semaphore::new(1)), Arc::clone(&self.extra));
        let service = service_fn(move |request| {
            let stream = streams.open();
            let (service, hands, turn) = (service.clone(), hands.clone(), turn(Arc::clone(&first), Arc::clone(&extra)));
            async move {
                let turn = turn.await;
                // On the heap, and only now: those who wait are to cost little.
                let answer = Box::pin(service(client, request));
                Ok::<_, Infallible>(answer.await.map(|body| Paced::new(body, hands.hand(), None, Some(stream.in_turn(turn)))))
            }
        });
        let tasks = CancellationToken::new();
        let _end_of_tasks = tasks.clone().drop_guard();
        let mut connection = pin!(h2_builder(Executor(tasks)).serve_connection(TokioIo::new(io), service));
        let mut look = tokio::time::interval(H2_LOOK.min(self.limits.header / 4).max(Duration::from_millis(1)));
        let mut closing = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => return Ok(ended?),
                () = self.stop.cancelled(), if !closing => closing = true,
                _ = look.tick() => match watch.advice(&self.limits) {
                    Advice::Keep => continue,
                    Advice::Close if closing => continue,
                    Advice::Close => closing = true,
                    Advice::Cut => return Err("the client takes nothing from its streams, or does not go".into()),
                },
            }
            connection.as_mut().graceful_shutdown();
        }
    }
}

/// Waits until a request may be served: the first of its connection, or one of those that are allowed beside. It cannot wait for ever: the
/// first comes to an end, or its client is cut.
async fn turn(first: Arc<Semaphore>, extra: Arc<Semaphore>) -> OwnedSemaphorePermit {
    let turn = tokio::select! {
        biased;
        turn = first.acquire_owned() => turn,
        turn = extra.acquire_owned() => turn,
    };
    turn.expect("neither is ever closed")
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
