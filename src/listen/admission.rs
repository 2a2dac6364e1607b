//! Who gets a seat: the number of connections, in all and from one address, and what `accept` may say instead.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Milliseconds of pause after an `accept` that failed for want of files or memory, plus as much again by chance: 20 tries a second at most,
/// and two listeners do not try in step.
const BACKOFF_MS: u64 = 50;

/// The seats of a listener.
pub(super) struct Admission {
    seats: Arc<Semaphore>,
    addresses: Arc<Addresses>,
}

/// A place for one connection, free again when dropped.
pub(super) struct Seat {
    _permit: OwnedSemaphorePermit,
    addresses: Arc<Addresses>,
    network: IpAddr,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The peer left before it was accepted: nothing to wait for.
    #[error("the client left: {0}")]
    Gone(io::Error),
    /// The address has its share.
    #[error("{0} has as many connections as one address may")]
    Share(IpAddr),
    /// The system is short of files or memory, or `accept` fails in a way nobody has seen.
    #[error("{0}")]
    Short(io::Error),
}

impl Fault {
    /// How long to leave `accept` alone.
    pub(super) fn pause(&self) -> Duration {
        match self {
            Self::Gone(_) | Self::Share(_) => Duration::ZERO,
            Self::Short(_) => Duration::from_millis(BACKOFF_MS + fastrand::u64(0..=BACKOFF_MS)),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
        match error.kind() {
            ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted => Self::Gone(error),
            _ => Self::Short(error),
        }
    }
}

impl Admission {
    pub(super) fn new(seats: usize, per_address: usize) -> Self {
        let addresses = Addresses { limit: per_address, open: Mutex::default() };
        Self { seats: Arc::new(Semaphore::new(seats.min(Semaphore::MAX_PERMITS))), addresses: Arc::new(addresses) }
    }

    /// Waits for a free seat, then for a connection to put there. Cancel safe: what was not returned was not accepted.
    pub(super) async fn accept(&self, listener: &TcpListener) -> Result<(TcpStream, SocketAddr, Seat), Fault> {
        let permit = Arc::clone(&self.seats).acquire_owned().await.expect("the semaphore is never closed");
        let (socket, peer) = listener.accept().await?;
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let seat = self.addresses.seat(peer.ip(), permit)?;
        Ok((socket, peer, seat))
    }
}

struct Addresses {
    limit: usize,
    /// Held for one look-up. Only networks with an open connection are in it, so it is bounded by the seats.
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Addresses {
    fn seat(self: &Arc<Self>, ip: IpAddr, permit: OwnedSemaphorePermit) -> Result<Seat, Fault> {
        let network = network(ip);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(network).or_default();
        // The count is at least 1 when the limit is reached, so no empty entry stays behind.
        if *count >= self.limit.max(1) {
            return Err(Fault::Share(ip));
        }
        *count += 1;
        Ok(Seat { _permit: permit, addresses: Arc::clone(self), network })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.addresses.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut entry) = open.entry(self.network) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// What counts as one address: an IPv6 host has a /64 of its own to choose from.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Says a thing at most once a second, and how often it was left unsaid.
#[derive(Default)]
pub(super) struct Throttle {
    last: Option<Instant>,
    missed: u64,
}

impl Throttle {
    pub(super) fn say(&mut self, say: impl FnOnce(u64)) {
        if self.last.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            self.missed += 1;
            return;
        }
        say(std::mem::take(&mut self.missed));
        self.last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    fn permit() -> OwnedSemaphorePermit {
        Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap()
    }

    #[test]
    fn an_address_has_a_share_and_gets_it_back() {
        let addresses = Arc::new(Addresses { limit: 2, open: Mutex::default() });
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let first = addresses.seat(one, permit()).unwrap();
        let _second = addresses.seat(one, permit()).unwrap();
        assert!(matches!(addresses.seat(one, permit()), Err(Fault::Share(_))));
        let other = addresses.seat("192.0.2.2".parse().unwrap(), permit()).unwrap();
        drop(first);
        let third = addresses.seat(one, permit()).unwrap();
        drop((other, third));
        assert_eq!(addresses.open.lock().unwrap().len(), 1, "an address without connections is forgotten");
    }

    #[test]
    fn an_ipv6_host_is_its_slash_64() {
        let addresses = Arc::new(Addresses { limit: 1, open: Mutex::default() });
        let _one = addresses.seat("2001:db8::1".parse().unwrap(), permit()).unwrap();
        assert!(addresses.seat("2001:db8::2".parse().unwrap(), permit()).is_err());
        assert!(addresses.seat("2001:db8:0:1::1".parse().unwrap(), permit()).is_ok());
    }

    #[test]
    fn want_of_files_is_waited_out_and_a_client_that_left_is_not() {
        let fault = |code| Fault::from(io::Error::from_raw_os_error(code));
        let codes = |errno: Errno| errno.raw_os_error();
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::PERM, Errno::INVAL] {
            let pause = fault(codes(errno)).pause();
            assert!(pause >= Duration::from_millis(50) && pause <= Duration::from_millis(100), "{errno}: {pause:?}");
        }
        for errno in [Errno::CONNABORTED, Errno::CONNRESET, Errno::INTR] {
            assert_eq!(fault(codes(errno)).pause(), Duration::ZERO, "{errno}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_line_a_second() {
        let mut throttle = Throttle::default();
        let mut said = Vec::new();
        for _ in 0..25 {
            throttle.say(|missed| said.push(missed));
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert_eq!(said, [0, 9, 9]);
    }
}
