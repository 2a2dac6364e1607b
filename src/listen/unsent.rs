//! How much the kernel takes in for a client that has not asked for it yet: a call that has no safe wrapper.
//!
//! Left alone, the kernel queues up to 4 MiB for each socket, and for a client that does not read it does so at once. What all sockets of the
//! host may queue together is limited (`net.ipv4.tcp_mem`): a thousand clients that read nothing use it up, and then *every* TCP connection of
//! the host stands still. [`limit`] bounds what waits unsent. What is on its way is not bounded by it, so a fast and distant client
//! has all of its window.
//!
//! A client that takes a mebibyte without a pause may have more waiting ([`Wide`]): each write is longer then, and there are fewer of them, which
//! is a tenth of the work. Only so many at a time, so that the bound holds in a crowd.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes that may wait unsent in a socket. The socket asks for more when half of it is gone: that is milliseconds of the fastest network.
const UNSENT_MAX: libc::c_int = 256 << 10;

/// The same for a quick client. More gains nothing.
const WIDE_MAX: libc::c_int = 1 << 20;

/// Sockets that may have so much at a time: 64 MiB of the kernel's memory.
const WIDE_SOCKETS: usize = 64;

static WIDE: Semaphore = Semaphore::const_new(WIDE_SOCKETS);

/// One of the sockets in which more may wait.
pub(super) struct Wide(#[allow(dead_code, reason = "it is given back by being dropped")] SemaphorePermit<'static>);

/// Bounds what waits unsent in a socket, and in all sockets that it accepts.
pub(super) fn limit(socket: impl AsFd) -> io::Result<()> {
    set(socket, UNSENT_MAX)
}

/// Lets more wait in a socket, if there are not too many such. [`limit`] takes it back.
pub(super) fn widen(socket: impl AsFd) -> Option<Wide> {
    let place = WIDE.try_acquire().ok()?;
    set(socket, WIDE_MAX).ok().map(|()| Wide(place))
}

#[allow(unsafe_code)]
fn set(socket: impl AsFd, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel reads `len` bytes from `value`, which lives on
    // this stack and is as long as that, and keeps nothing of it.
    let said = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, std::ptr::from_ref(&value).cast(), len)
    };
    if said == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What may wait in a socket.
    #[allow(unsafe_code)]
    pub(crate) fn bound(socket: impl AsFd) -> libc::c_int {
        let (mut value, mut len) = (0, libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("small"));
        // SAFETY: the descriptor is open for as long as it is borrowed; the kernel writes no more than `len` bytes into `value`, which has them.
        let said = unsafe {
            let value = std::ptr::from_mut(&mut value).cast();
            libc::getsockopt(socket.as_fd().as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, value, &raw mut len)
        };
        assert_eq!(said, 0, "{}", io::Error::last_os_error());
        value
    }

    #[test]
    fn so_many_sockets_have_more_and_one_that_is_given_back_makes_room_for_another() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut wide = std::iter::from_fn(|| widen(&socket)).take(WIDE_SOCKETS + 1).collect::<Vec<_>>();
        // Other tests may have some.
        assert!(!wide.is_empty() && wide.len() <= WIDE_SOCKETS, "{}", wide.len());
        assert_eq!(bound(&socket), WIDE_MAX);
        limit(&socket).expect("a socket");
        assert_eq!(bound(&socket), UNSENT_MAX);
        wide.truncate(wide.len() / 2);
        assert!(widen(&socket).is_some());
    }
}
