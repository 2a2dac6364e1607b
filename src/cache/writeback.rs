//! Telling the kernel to begin with writing to the disk what it has in memory. What was begun early need not be waited for when
//! the blob is synced and put into place.

use std::fs::File;

/// Has the kernel begin with so many bytes from there on; does not wait for the disk unless its queue is full: for the blocking
/// pool. That it cannot be done is no fault, the sync does it all.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "the call has no safe wrapper; without it syncing a gigabyte takes a hundred times as long")]
pub(crate) fn begin_writing_back(file: &File, from: u64, bytes: u64) {
    use std::os::fd::AsRawFd;
    let (Ok(from), Ok(bytes)) = (i64::try_from(from), i64::try_from(bytes)) else { return };
    #[cfg(test)]
    tests::note(file, from, bytes);
    // SAFETY: the call is given numbers only, and `file` keeps the descriptor open until it returns.
    unsafe { libc::sync_file_range(file.as_raw_fd(), from, bytes, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Elsewhere the kernel knows best.
#[cfg(not(target_os = "linux"))]
pub(crate) fn begin_writing_back(_: &File, _: u64, _: u64) {}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::sync::Mutex;

    use super::*;

    static BEGUN: Mutex<Vec<(u64, i64, i64)>> = Mutex::new(Vec::new());

    pub(super) fn note(file: &File, from: i64, bytes: i64) {
        let inode = file.metadata().expect("it is open").ino();
        BEGUN.lock().expect("not poisoned").push((inode, from, bytes));
    }

    /// From where on, and how many bytes, was begun with of the file with this inode.
    pub(crate) fn begun(inode: u64) -> Vec<(i64, i64)> {
        let begun = BEGUN.lock().expect("not poisoned");
        begun.iter().filter(|of| of.0 == inode).map(|&(_, from, bytes)| (from, bytes)).collect()
    }

    #[test]
    fn what_is_written_back_is_as_it_was() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&vec![7; 100_000], 0).expect("writes");
        begin_writing_back(&file, 0, 100_000);
        begin_writing_back(&file, 1 << 40, u64::MAX);
        let mut read = vec![0; 100_000];
        file.read_exact_at(&mut read, 0).expect("reads");
        assert!(read.iter().all(|byte| *byte == 7));
    }
}
