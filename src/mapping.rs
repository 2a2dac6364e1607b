//! Files as memory, to be sent and never to be looked at: calls that have no safe wrapper stay here.
//!
//! The kernel copies the bytes of a [`Mapping`] from its page cache straight into a socket. Our code must not touch them: a page that cannot be
//! read kills a process that looks at it, while a `write(2)` of it only fails. So a mapping goes where its slices are handed to `writev(2)` and to
//! nothing else: to plain HTTP/1 connections.
//!
//! A page that is not in the page cache would keep the thread waiting for the disk, in the middle of the write. [`is_resident`] tells beforehand;
//! [`bring_in`] is for a thread that may wait.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes mapped at a time, of all files. Page tables are a 512th of what was sent of them: 128 MiB at the worst. What does not fit is read.
const MAPPED_MAX: u64 = 64 << 30;

/// Bytes of a page, on every machine where nobody looked: what is more is a multiple.
pub const PAGE: usize = 4096;

/// Pages that are asked about at a time.
const ASKED: usize = 1024;

static MAPPED: AtomicU64 = AtomicU64::new(0);

/// All bytes of a file. Goes when it is dropped: one that was sent takes milliseconds to go.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is only ever read, from whatever thread, and stays where it is until the mapping is dropped.
#[allow(unsafe_code)]
unsafe impl Send for Mapping {}
#[allow(unsafe_code)]
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file, if there is room and the kernel can do what it needs.
    pub fn of(file: &File, len: u64) -> Option<Self> {
        if usize::BITS < 64 || !can_bring_in() {
            return None;
        }
        let bytes = usize::try_from(len).ok().filter(|&bytes| bytes > 0)?;
        MAPPED
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |mapped| mapped.checked_add(len).filter(|&all| all <= MAPPED_MAX))
            .ok()?;
        let mapped = map(file, bytes);
        if mapped.is_none() {
            MAPPED.fetch_sub(len, Ordering::Relaxed);
        }
        mapped
    }
}

#[allow(unsafe_code)]
fn map(file: &File, len: usize) -> Option<Mapping> {
    // SAFETY: the kernel chooses the address, so nothing that exists is replaced; the descriptor is open for the length of the call.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()).map(|start| Mapping { start, len }) }
}

impl AsRef<[u8]> for Mapping {
    #[allow(unsafe_code)]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `len` bytes from `start` are mapped as long as `self` lives. A blob's file is never written to after it was mapped
        // (`cache/blobs.rs`); should somebody else do it, nobody is misled, for nobody here reads the slice: the kernel does.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: it is ours, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        MAPPED.fetch_sub(self.len as u64, Ordering::Relaxed);
    }
}

/// The whole pages that these bytes lie in.
fn pages(bytes: &[u8]) -> (usize, usize) {
    let address = bytes.as_ptr().addr();
    let start = address & !(PAGE - 1);
    (start, (address + bytes.len()).next_multiple_of(PAGE) - start)
}

/// Whether all of these bytes can be had without waiting for a disk. A microsecond for each mebibyte.
#[allow(unsafe_code)]
pub fn is_resident(bytes: &[u8]) -> bool {
    let (mut start, mut left) = pages(bytes);
    let mut answer = [0_u8; ASKED];
    while left > 0 {
        let len = left.min(ASKED * PAGE);
        // SAFETY: the kernel writes a byte for each page into `answer`, which has one for each; it reads none of the memory itself.
        let said = unsafe { libc::mincore(ptr::without_provenance_mut(start), len, answer.as_mut_ptr()) };
        if said != 0 || answer[..len.div_ceil(PAGE)].iter().any(|page| page & 1 == 0) {
            return false;
        }
        (start, left) = (start + len, left - len);
    }
    true
}

/// Pages to be brought into memory: an address and a length. It holds nothing: what was unmapped meanwhile is an error, no harm.
#[derive(Debug, Clone, Copy)]
pub struct Absent(usize, usize);

/// Those that bytes lie in.
pub fn absent(bytes: &[u8]) -> Absent {
    let (start, len) = pages(bytes);
    Absent(start, len)
}

/// Waits until those pages are in memory; fails where the disk or the file has them no more. Only for a thread that may wait.
#[allow(unsafe_code)]
pub fn bring_in(pages: Absent) -> io::Result<()> {
    // SAFETY: this advice changes nothing that a program can see, whatever lies there: what is mapped is read, what is not is an error.
    let said = unsafe { libc::madvise(ptr::without_provenance_mut(pages.0), pages.1, libc::MADV_POPULATE_READ) };
    if said == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel knows [`bring_in`]'s call (Linux 5.14). Without it what was reclaimed could not be waited for.
fn can_bring_in() -> bool {
    static CAN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *CAN.get_or_init(|| bring_in(absent(b"a page of the program itself")).is_ok())
}

#[cfg(test)]
pub(crate) use self::tests::{mapped, page_out};

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file of so many bytes, all different by page, and its mapping.
    pub(crate) fn mapped(len: usize) -> (File, Vec<u8>, Mapping) {
        let mut file = tempfile::tempfile().expect("a file");
        let bytes = (0..len).map(|n| (n / PAGE + n % 251).to_le_bytes()[0]).collect::<Vec<_>>();
        file.write_all(&bytes).expect("writes");
        // What is dirty stays in memory.
        file.sync_all().expect("syncs");
        let mapping = Mapping::of(&file, len as u64).expect("maps");
        (file, bytes, mapping)
    }

    /// Has the kernel take back the pages of a file, as it does when it needs them for something else; whether it did. It may
    /// decline: they are not dirty, but somebody may be looking at them.
    #[allow(unsafe_code)]
    pub(crate) fn page_out(file: &File, mapping: &Mapping) -> bool {
        let (start, len) = pages(mapping.as_ref());
        // SAFETY: of a shared mapping this forgets where its pages are in memory, and no byte of them.
        unsafe { libc::madvise(ptr::without_provenance_mut(start), len, libc::MADV_DONTNEED) };
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).expect("takes advice");
        let gone = !is_resident(mapping.as_ref());
        if !gone {
            let _ = writeln!(io::stderr(), "skipped: what the kernel took back is not tested: it takes nothing back");
        }
        gone
    }

    #[test]
    fn what_the_kernel_took_back_is_absent_until_it_is_brought_in() {
        let (file, bytes, mapping) = mapped(9 << 20);
        assert!(mapping.as_ref() == bytes && is_resident(mapping.as_ref()));
        if !page_out(&file, &mapping) {
            return;
        }
        let all = mapping.as_ref();
        let part = &all[5 * PAGE + 1..6 * PAGE];
        bring_in(absent(part)).expect("brings");
        assert!(is_resident(part));
        bring_in(absent(all)).expect("brings");
        assert!(is_resident(all));
    }

    #[test]
    fn what_was_cut_off_is_an_error_and_no_signal() {
        let (file, _, mapping) = mapped(1 << 20);
        file.set_len(512 << 10).expect("cuts");
        let (first, second) = mapping.as_ref().split_at(512 << 10);
        assert!(is_resident(first) && !is_resident(second));
        bring_in(absent(second)).expect_err("it is gone");
        let mut sink = tempfile::tempfile().expect("a file");
        let error = sink.write(second).expect_err("it is gone");
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn there_is_an_end_to_what_is_mapped() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(MAPPED_MAX + 1).expect("grows");
        assert!(Mapping::of(&file, MAPPED_MAX + 1).is_none());
        assert!(Mapping::of(&file, 0).is_none());
        let some = Mapping::of(&file, 1 << 20).expect("maps");
        assert!(Mapping::of(&file, MAPPED_MAX).is_none());
        drop(some);
        for _ in 0..4 {
            // Each is given back: three of them would not fit beside each other.
            Mapping::of(&file, MAPPED_MAX / 2).expect("there is room");
        }
    }
}
