//! The listening socket and its options, and how many files the process may open.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};

use super::unsent;

/// Connections the kernel completes while the process is busy or all seats are taken: a cluster that starts at once. The kernel caps it by `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// An idle peer is probed after 30 s, every 10 s, three times: one that lost its power frees its seat within a minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Milliseconds that sent bytes may stay unacknowledged: as long as a client may stall, for the peer that is gone rather than slow.
const USER_TIMEOUT_MS: u32 = 60_000;

/// Open files the process asks for, when the system allows: 8192 connections, a blob each, upstreams, and room.
const OPEN_FILES: u64 = 65_536;

/// Never fewer seats than this, however low the limit: then `accept` reports the lack.
const MIN_SEATS: usize = 16;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}: {reason}")]
pub struct BindError {
    /// The address that was asked for.
    pub addr: SocketAddr,
    /// What the system said.
    pub reason: io::Error,
}

/// Binds and listens. Linux hands the options of a listening socket on to every socket it accepts, so they cost nothing a connection.
pub(super) fn listen(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let open = || -> io::Result<(TcpListener, SocketAddr)> {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart must not wait for the last process's connections to leave TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.set_nodelay(true)?;
        socket.set_keepalive(true)?;
        sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)?;
        sockopt::set_tcp_user_timeout(&socket, USER_TIMEOUT_MS)?;
        if let Err(error) = unsent::limit(&socket) {
            tracing::warn!(%error, "the kernel cannot bound what waits unsent in a socket: many clients that do not read take much of its memory");
        }
        socket.bind(addr)?;
        let listener = socket.listen(BACKLOG)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    open().map_err(|reason| BindError { addr, reason })
}

/// Raises the soft limit of open files as far as the hard one allows, up to what this server can use, and says what it is then.
///
/// The usual soft limit of 1024 exists for programs that call `select(2)`; this one does not. For `main`, before it binds.
pub fn raise_open_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = OPEN_FILES.min(maximum.unwrap_or(OPEN_FILES));
    // None is no limit at all.
    let Some(soft) = current else { return u64::MAX };
    if soft >= wanted {
        return soft;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        Ok(()) => wanted,
        Err(_) => soft,
    }
}

/// The connections that the limit of open files allows: half of them, the rest is for blobs, upstreams and the index.
pub(super) fn seats() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files / 2).unwrap_or(usize::MAX).max(MIN_SEATS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_sockets_inherit_the_options() {
        let (listener, addr) = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let _client = tokio::net::TcpStream::connect(addr).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        assert!(socket.nodelay().unwrap());
        assert_eq!(sockopt::tcp_keepidle(&socket).unwrap(), KEEPALIVE_IDLE);
        assert_eq!(sockopt::tcp_keepintvl(&socket).unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(sockopt::tcp_keepcnt(&socket).unwrap(), KEEPALIVE_PROBES);
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), USER_TIMEOUT_MS);
        assert!(sockopt::socket_keepalive(&socket).unwrap());
    }

    #[tokio::test]
    async fn the_kernel_takes_little_for_a_client_that_does_not_read() {
        let (listener, addr) = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let _client = tokio::net::TcpStream::connect(addr).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        socket.writable().await.unwrap();
        let (mut taken, piece) = (0, vec![7; 64 << 10]);
        while let Ok(bytes) = socket.try_write(&piece) {
            taken += bytes;
        }
        assert!(taken <= 1 << 20, "{taken} bytes");
    }

    #[tokio::test]
    async fn a_taken_address_is_named() {
        let (_taken, addr) = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let error = listen(addr).unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot listen on {addr}: ")), "{error}");
        assert_eq!(error.reason.kind(), io::ErrorKind::AddrInUse);
    }
}
