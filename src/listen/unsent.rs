//! How much the kernel takes in for a client that has not asked for it yet. The one place with a call that has no safe wrapper.
//!
//! Left alone, the kernel queues up to 4 MiB for each socket, and for a client that does not read it does so at once. What all sockets of the
//! host may queue together is limited (`net.ipv4.tcp_mem`): a thousand clients that read nothing use it up, and then *every* TCP connection of
//! the host stands still. [`limit`] bounds what waits unsent. What is on its way is not bounded by it, so a fast and distant client
//! has all of its window.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes that may wait unsent in a socket. The socket asks for more when half of it is gone: that is milliseconds of the fastest network.
const UNSENT_MAX: libc::c_int = 256 << 10;

/// Bounds what waits unsent in a socket, and in all sockets that it accepts.
#[allow(unsafe_code)]
pub(super) fn limit(socket: impl AsFd) -> io::Result<()> {
    let value = UNSENT_MAX;
    let len = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel reads `len` bytes from `value`, which lives on
    // this stack and is as long as that, and keeps nothing of it.
    let said = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, std::ptr::from_ref(&value).cast(), len)
    };
    if said == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
