//! The kernel's side: a filter that asks about calls, its listener on the way to the test, questions and answers.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use libc::{seccomp_notif, seccomp_notif_resp, sock_filter, sock_fprog};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::call::WATCHED;

/// The filter: every watched call is asked about, all others are made.
pub(super) fn program() -> Vec<sock_filter> {
    let op = |code: u32, k: u32, jt: u8| sock_filter { code: u16::try_from(code).unwrap(), jt, jf: 0, k };
    // The number of the call is the first word of what a filter sees.
    let mut program = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    let count = WATCHED.len();
    for (n, (number, _)) in WATCHED.iter().enumerate() {
        // Over the rest of the list and the line that allows.
        let over = u8::try_from(count - n).unwrap();
        program.push(op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, u32::try_from(*number).unwrap(), over));
    }
    program.push(op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0));
    program.push(op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF, 0));
    program
}

/// Puts this process, and what it becomes, under the filter.
pub(super) fn install(program: &[sock_filter]) -> io::Result<OwnedFd> {
    let filter = sock_fprog { len: u16::try_from(program.len()).unwrap_or(u16::MAX), filter: program.as_ptr().cast_mut() };
    // SAFETY: the filter outlives the calls, which copy it; what the second gives is a descriptor that nobody else has.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        let listener =
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER, &raw const filter);
        match i32::try_from(listener) {
            Ok(listener) if listener >= 0 => Ok(OwnedFd::from_raw_fd(listener)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Hands the listener to the other side.
pub(super) fn send(to: &UnixStream, listener: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let listeners = [listener.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&listeners));
    sendmsg(to, &[IoSlice::new(b"!")], &mut control, SendFlags::empty())?;
    Ok(())
}

/// Takes it.
pub(super) fn receive(from: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let listener = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut listeners) => listeners.next(),
        _ => None,
    });
    listener.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The next call that somebody is about to make; nothing when nobody is left.
pub(super) fn next(listener: &OwnedFd) -> Option<seccomp_notif> {
    loop {
        let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, which is open.
        if unsafe { libc::poll(&raw mut poll, 1, -1) } < 0 {
            continue;
        }
        if poll.revents & libc::POLLIN == 0 {
            return None;
        }
        let mut asked = MaybeUninit::<seccomp_notif>::zeroed();
        // SAFETY: the kernel fills in what it is given, which is as large as it says and zeroed as it wants it; all zeroes are a valid value.
        unsafe {
            if libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, asked.as_mut_ptr()) == 0 {
                return Some(asked.assume_init());
            }
        }
        // Who asked was killed meanwhile, or was interrupted and asks again.
    }
}

/// Lets a call be made, or fail.
pub(super) fn answer(listener: &OwnedFd, asked: &seccomp_notif, error: Option<Errno>) {
    let flags = if error.is_none() { u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or(1) } else { 0 };
    let error = error.map_or(0, |error| -error.raw_os_error());
    let answer = seccomp_notif_resp { id: asked.id, val: 0, error, flags };
    // SAFETY: the kernel reads what it is given. Who asked may be dead by now: then there is nothing to answer.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) };
}
