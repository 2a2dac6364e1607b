//! A batch of bytes on its way: written and released to readers, and hashed, on the blocking pool. A large one is hashed while it is
//! written: readers wait for neither more than they must, and the next batch comes sooner.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use crate::cache::Permit;
use crate::oci::Hasher;

/// Slices that one `pwritev` takes: Linux' own limit.
const SLICES_MAX: usize = 1_024;

/// Pieces that may gather: each costs tens of bytes besides its own, and an upstream may send them one byte long.
const GATHER_PIECES_MAX: usize = 16 << 10;

/// Bytes from which on a batch is worth a second thread: a tenth of a millisecond of hashing, many times what a wake-up costs.
const APART_MIN: usize = 256 << 10;

/// Bytes in the pieces in which they arrived.
#[derive(Clone, Default)]
pub(super) struct Batch {
    chunks: Vec<Bytes>,
    len: usize,
}

/// What became of a batch.
pub(super) struct Work {
    pub(super) hasher: Hasher,
    pub(super) written: Written,
}

/// Where the bytes of a batch are now.
pub(super) enum Written {
    /// So many are in the file or in the window.
    Done(u64),
    /// The disk refused them; they are hashed, but not readable yet.
    Refused { batch: Batch, error: io::Error },
}

impl Batch {
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        self.chunks.push(bytes);
    }

    /// Whether more may gather, where so many bytes are enough.
    pub(super) fn is_hungry(&self, bytes_max: usize) -> bool {
        self.len < bytes_max && self.chunks.len() < GATHER_PIECES_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes to the file at `offset`, or to the window where there is none; releases; hashes. Done when all of that is.
    pub(super) fn start(self, file: Option<Arc<File>>, offset: u64, hasher: Hasher, permit: Arc<Permit>) -> JoinHandle<Work> {
        if file.is_none() || self.len < APART_MIN {
            return spawn_blocking(move || {
                let written = self.write(file.as_deref(), offset, &permit);
                let hasher = self.hash(hasher);
                self.done(hasher, written)
            });
        }
        // Neither waits for the other on a thread of the pool: however few there are, both get on.
        tokio::spawn(async move {
            let copy = self.clone();
            let hashing = spawn_blocking(move || copy.hash(hasher));
            let writing = spawn_blocking(move || {
                let written = self.write(file.as_deref(), offset, &permit);
                (self, written)
            });
            let (batch, written) = joined(writing).await;
            batch.done(joined(hashing).await, written)
        })
    }

    /// Writes and releases. Blocks.
    fn write(&self, file: Option<&File>, offset: u64, permit: &Permit) -> io::Result<()> {
        match file {
            Some(file) => write_vectored_at(file, &self.chunks, offset)?,
            None => self.push_all(permit),
        }
        permit.writer().arrived(offset + self.len as u64);
        Ok(())
    }

    /// Blocks.
    fn hash(&self, mut hasher: Hasher) -> Hasher {
        for chunk in &self.chunks {
            hasher.update(chunk);
        }
        hasher
    }

    fn done(self, hasher: Hasher, written: io::Result<()>) -> Work {
        let written = match written {
            Ok(()) => Written::Done(self.len as u64),
            Err(error) => Written::Refused { batch: self, error },
        };
        Work { hasher, written }
    }

    /// Puts a refused batch into the window; says how many bytes that are.
    pub(super) fn push_to(&self, permit: &Permit) -> u64 {
        self.push_all(permit);
        self.len as u64
    }

    fn push_all(&self, permit: &Permit) {
        for chunk in &self.chunks {
            permit.writer().push(chunk.clone());
        }
    }
}

/// The outcome of a piece of work; never, where the runtime ends before it.
pub(super) async fn joined<T>(work: impl Future<Output = Result<T, JoinError>>) -> T {
    match work.await {
        Ok(done) => done,
        // A panic in there is a fault of ours: the fill ends with it, and its permit tells the readers.
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => std::future::pending().await,
    }
}

/// Writes all chunks one after the other from `offset` on.
pub(super) fn write_vectored_at(file: &File, chunks: &[Bytes], mut offset: u64) -> io::Result<()> {
    let mut rest = chunks.to_vec();
    let mut first = 0;
    while first < rest.len() {
        let slices = rest[first..].iter().take(SLICES_MAX).map(|chunk| IoSlice::new(chunk)).collect::<Vec<_>>();
        let mut written = match rustix::io::pwritev(file, &slices, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        offset += written as u64;
        while first < rest.len() && written >= rest[first].len() {
            written -= rest[first].len();
            first += 1;
        }
        if written > 0 {
            rest[first].advance(written);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn more_slices_than_one_call_takes_are_all_written() {
        let file = tempfile::tempfile().expect("a file");
        let chunks = (0..3_000_u32).map(|n| Bytes::copy_from_slice(&n.to_le_bytes())).collect::<Vec<_>>();
        write_vectored_at(&file, &chunks, 5).expect("writes");
        let mut read = vec![0; 12_000];
        file.read_exact_at(&mut read, 5).expect("reads");
        assert_eq!(read, chunks.concat());
    }
}
