//! Sockets, TLS, hyper connections, limits, drain.
//!
//! Owns every connection a client makes, from `accept` to the last byte. Promises that no client, however slow, silent or
//! hostile, holds more than its share: each wait has a limit in [`Limits`], each connection a seat, each seat an end. An answer
//! whose body fails ends as a broken connection, never as a clean end (invariant 2), because hyper is given the body's error and
//! closes without finishing. A panic ends one connection.
//!
//! Refuses to know what is asked for: it takes a closure. The order of events is bind → serve → stop → drain → [`Drained`].
//!
//! HTTP/1.1 in cleartext; HTTP/1.1 or HTTP/2 over TLS, as ALPN says, and HTTP/1.1 for a client that can do both: large blobs cost less on it.

mod admission;
mod check;
mod connection;
mod deadline;
mod guard;
mod hand;
mod mapped;
mod record;
mod socket;
mod streams;
#[cfg(test)]
mod tests;
mod tls;
mod unsent;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use self::admission::{Admission, Throttle};
pub use self::check::{Refusal, check};
use self::connection::Connections;
pub use self::hand::{PIECE_MAX, piece};
pub use self::mapped::{Giver, gives_mapped, mapped_piece};
pub use self::socket::{BindError, raise_open_files};
pub use self::tls::{Certificates, TlsError};

/// The `[server]` section.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the registry API listens; port 0 takes a free port.
    pub listen: SocketAddr,
    /// Where `/healthz`, `/readyz` and `/metrics` listen.
    pub admin: SocketAddr,
    /// How long bodies in flight may take to finish after SIGTERM.
    pub drain: Duration,
    /// TLS on the registry listener.
    pub tls: Option<Tls>,
}

/// `server.tls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM certificate chain.
    pub cert: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
    /// PEM certificates; a client with a certificate signed by one of them counts as authenticated.
    pub client_ca: Option<PathBuf>,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Where it connects from; an IPv4 address that arrived on an IPv6 socket is folded back to IPv4.
    pub addr: SocketAddr,
    /// It showed a certificate that `client_ca` signed.
    pub certificate: bool,
}

/// What a client may take of this server. The defaults are the values in use; tests make them small.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections. Beyond, clients wait in the kernel's backlog. Also never more than half the open files the process may have.
    pub connections: usize,
    /// Open connections from one IPv4 address or IPv6 /64. Beyond, a connection is closed at once.
    pub per_address: usize,
    /// Requests that are served at once over HTTP/2, beyond one a connection. Beyond, they wait for their turn.
    pub streams: usize,
    /// For a whole TLS handshake.
    pub handshake: Duration,
    /// For a whole request head, and how long a connection may idle between requests.
    pub header: Duration,
    /// How long a client may leave the server blocked on sending without taking [`MIN_RATE`].
    pub stall: Duration,
    /// After the stop: for the answers in flight to finish.
    pub drain: Duration,
}

/// 1000 nodes that pull 8 layers at once. One that takes nothing costs some 24 KiB and a piece of 8 KiB; over TLS, 33 KiB and two pieces.
pub const MAX_CONNECTIONS: usize = 8192;

/// One address may be a whole cluster behind NAT or a reverse proxy, but may not take every seat: eight such still fit.
pub const MAX_PER_ADDRESS: usize = 1024;

/// A request whose answer is not taken costs some 30 KiB, so they are 30 MiB; without this, 32 for each connection would be gigabytes. HTTP/2 is spoken only
/// by those who cannot do HTTP/1.1, and each keeps its one request at a time whatever others do.
pub const MAX_EXTRA_STREAMS: usize = 1024;

/// An honest handshake takes two round trips; ten seconds are a satellite link with losses.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Half a minute for a few hundred bytes. hyper counts the idle time between requests into it, so it is the keep-alive time as well.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Longer than a disk hiccup or a laptop's change of network; a client that is cut resumes with `Range`.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes a second. Below it a 100 MB layer takes seven hours: whoever reads like this wants the connection, not the image.
pub const MIN_RATE: u64 = 4096;

/// A container platform sends SIGKILL 30 s after SIGTERM.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: MAX_CONNECTIONS,
            per_address: MAX_PER_ADDRESS,
            streams: MAX_EXTRA_STREAMS,
            handshake: HANDSHAKE_TIMEOUT,
            header: HEADER_TIMEOUT,
            stall: STALL_TIMEOUT,
            drain: DRAIN_TIMEOUT,
        }
    }
}

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were open at the stop and came to their own end.
    pub finished: usize,
    /// Connections that the drain limit cut.
    pub cut: usize,
}

/// A bound socket that does not accept yet: connections wait in its backlog.
pub struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
    tls: Option<Certificates>,
}

impl Listener {
    /// Takes the address; port 0 takes a free port, which [`Listener::addr`] tells.
    ///
    /// Must be called inside a tokio runtime.
    pub fn bind(addr: SocketAddr, tls: Option<Certificates>) -> Result<Self, BindError> {
        let (socket, addr) = socket::listen(addr)?;
        Ok(Self { socket, addr, tls })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop`, then stops accepting at once, lets the answers in flight finish within `limits.drain`, and cuts the rest.
    ///
    /// `service` is called once a request, concurrently. When the client leaves, its future is dropped: what must go on belongs elsewhere.
    /// It should begin with [`check`]. An answer to a request whose body was not read to its end needs `Connection: close`.
    /// Dropping this future cuts every connection.
    pub async fn serve<S, F, B>(self, service: S, limits: Limits, stop: CancellationToken) -> Drained
    where
        S: Fn(Client, Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Unpin + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let admission = Admission::new(limits.connections.min(socket::seats()), limits.per_address);
        let connections = Arc::new(Connections::new(limits, self.tls.clone(), stop.clone()));
        let mut tasks = JoinSet::new();
        let mut log = Throttle::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = tasks.join_next() => {
                    report(ended);
                    continue;
                }
                accepted = admission.accept(&self.socket) => accepted,
            };
            match accepted {
                Ok((socket, peer, seat)) => {
                    let connections = Arc::clone(&connections);
                    let service = service.clone();
                    tasks.spawn(async move {
                        connections.run(socket, peer, service).await;
                        drop(seat);
                    });
                }
                Err(fault) => {
                    log.say(|missed| tracing::warn!(%fault, missed, "cannot accept a connection"));
                    let _ = tokio::time::timeout(fault.pause(), stop.cancelled()).await;
                }
            }
        }
        drop(self.socket);
        drain(tasks, limits.drain).await
    }
}

/// Waits for the connections, which have seen the stop themselves, and cuts those that take too long.
async fn drain(mut tasks: JoinSet<()>, limit: Duration) -> Drained {
    let open = tasks.len();
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            report(ended);
        }
    };
    // Which of the two it was is told by what is left.
    let _ = tokio::time::timeout(limit, all).await;
    let cut = tasks.len();
    tasks.shutdown().await;
    Drained { finished: open - cut, cut }
}

/// A panic is the only end of a connection's task that nobody has told of yet.
fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}
