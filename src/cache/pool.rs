//! Buffers for reading files, used again and again: a fresh allocation for each read costs as much as the copy.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::sync::Mutex;

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags};

/// Bytes a read asks for. Larger gains nothing on loopback and costs memory on each of a thousand slow connections.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// Bytes up to which a buffer is as large as what is read into it: a large one would stand for it as long as a slow client takes.
const SMALL_BYTES: usize = 8 << 10;

/// Buffers kept for later: 16 MiB, what 256 connections have in hand at once.
const KEPT_MAX: usize = 256;

static FREE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// A buffer that goes back to the pool when the last reference to its bytes is dropped.
struct Pooled {
    buffer: Box<[u8]>,
    len: usize,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        if let Ok(mut free) = FREE.lock()
            && free.len() < KEPT_MAX
            && buffer.len() == READ_BYTES
        {
            free.push(buffer);
        }
    }
}

fn take(len: usize) -> Pooled {
    if len <= SMALL_BYTES {
        return Pooled { buffer: vec![0; len].into_boxed_slice(), len: 0 };
    }
    let kept = FREE.lock().ok().and_then(|mut free| free.pop());
    Pooled { buffer: kept.unwrap_or_else(|| vec![0; READ_BYTES].into_boxed_slice()), len: 0 }
}

/// A pooled buffer that is being filled, with what comes in pieces of any size.
pub(crate) struct Filling {
    pooled: Pooled,
    room: usize,
}

impl Filling {
    /// An empty one, for what stands in a file from there on: it is full where a page of the file ends, for a page that is
    /// written in two parts costs twice.
    pub(crate) fn at(offset: u64) -> Self {
        let ahead = usize::try_from(offset % READ_BYTES as u64).unwrap_or(0);
        Self { pooled: take(READ_BYTES), room: READ_BYTES - ahead }
    }

    /// Takes from the front of `bytes` what there is room for; says whether there is more.
    pub(crate) fn take_from(&mut self, bytes: &mut &[u8]) -> bool {
        let Pooled { buffer, len } = &mut self.pooled;
        let (taken, rest) = bytes.split_at(self.room.min(bytes.len()));
        buffer[*len..][..taken.len()].copy_from_slice(taken);
        *bytes = rest;
        *len += taken.len();
        self.room -= taken.len();
        self.room > 0
    }

    /// What it was filled with.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self.pooled)
    }
}

/// Reads up to `max` bytes at `offset` without waiting for the disk: `None` says that it would have to wait.
/// Fewer bytes than asked for is normal; none is the end of the file.
pub(crate) fn read_now(file: &File, offset: u64, max: u64) -> io::Result<Option<Bytes>> {
    let len = clamp(max);
    let mut pooled = take(len);
    let read = rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut pooled.buffer[..len])], offset, ReadWriteFlags::NOWAIT);
    match read {
        Ok(read) => {
            pooled.len = read;
            Ok(Some(Bytes::from_owner(pooled)))
        }
        // Cold pages; or a file system that cannot say (tmpfs on old kernels, network file systems), or a sandbox without the call.
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads up to `max` bytes at `offset`, waiting for the disk: only for the blocking pool.
pub(crate) fn read_blocking(file: &File, offset: u64, max: u64) -> io::Result<Bytes> {
    let len = clamp(max);
    let mut pooled = take(len);
    pooled.len = loop {
        match rustix::io::pread(file, &mut pooled.buffer[..len], offset) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    Ok(Bytes::from_owner(pooled))
}

/// Fills `buffer` from `offset`, waiting for the disk, and leaves in the kernel's memory what was there and nothing else: who
/// reads everything must not drive out what clients read. For the blocking pool. Fewer bytes than asked for is the end.
pub(crate) fn read_aside(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    // It says no as it does to `read_now`; an error that is real comes again.
    let mut read = rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT).unwrap_or_default();
    while read < buffer.len() {
        let from = offset + read as u64;
        let more = match rustix::io::pread(file, &mut buffer[read..], from) {
            Ok(0) => break,
            Ok(more) => more,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        // Advice that is not taken costs nothing.
        let _ = rustix::fs::fadvise(file, from, NonZeroU64::new(more as u64), rustix::fs::Advice::DontNeed);
        read += more;
    }
    Ok(read)
}

fn clamp(max: u64) -> usize {
    usize::try_from(max).unwrap_or(READ_BYTES).min(READ_BYTES)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn both_reads_give_the_same_bytes_and_an_empty_end() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"0123456789").expect("writes");
        assert_eq!(read_blocking(&file, 2, 3).expect("reads"), "234");
        if let Some(bytes) = read_now(&file, 2, 3).expect("reads") {
            assert_eq!(bytes, "234");
        }
        assert!(read_blocking(&file, 10, 3).expect("reads").is_empty());
    }

    #[test]
    fn reading_aside_gives_the_same_bytes_and_says_where_the_file_ends() {
        let mut file = tempfile::tempfile().expect("a file");
        let bytes = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>();
        file.write_all(&bytes).expect("writes");
        let mut buffer = vec![0; 150_000];
        assert_eq!(read_aside(&file, 7, &mut buffer).expect("reads"), 150_000);
        assert_eq!(buffer, bytes[7..150_007]);
        assert_eq!(read_aside(&file, 150_000, &mut buffer).expect("reads"), 50_000);
        assert_eq!(buffer[..50_000], bytes[150_000..]);
        assert_eq!(read_aside(&file, 200_000, &mut buffer).expect("reads"), 0);
    }

    #[test]
    fn a_buffer_comes_back() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(READ_BYTES as u64).expect("grows");
        drop(read_blocking(&file, 0, u64::MAX).expect("reads"));
        assert!(!FREE.lock().expect("not poisoned").is_empty());
    }
}
