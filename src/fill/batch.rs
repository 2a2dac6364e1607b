//! A batch of bytes on its way: written and released to readers, and hashed, on the blocking pool.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes};

use crate::cache::Writer;
use crate::oci::Hasher;

/// Slices that one `pwritev` takes: Linux' own limit.
const SLICES_MAX: usize = 1_024;

/// Pieces that may gather: each costs tens of bytes besides its own, and an upstream may send them one byte long.
const GATHER_PIECES_MAX: usize = 16 << 10;

/// Bytes in the pieces in which they arrived.
#[derive(Default)]
pub(super) struct Batch {
    chunks: Vec<Bytes>,
    len: usize,
}

/// Whether a batch that is being written is waited for still: either its writing counts, or the waiting was given up.
#[derive(Clone, Default)]
pub(super) struct Waited(Arc<AtomicBool>);

impl Waited {
    /// Decides it; true for the first who does.
    pub(super) fn settle(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
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
    Refused { batch: Arc<Batch>, error: io::Error },
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

    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        self.len as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes to the file at `offset`, and releases: unless it is too late, and the bytes go another way by now. Blocks.
    pub(super) fn write(&self, file: &File, offset: u64, writer: &Writer, waited: &Waited) -> io::Result<()> {
        write_vectored_at(file, &self.chunks, offset)?;
        if waited.settle() {
            writer.arrived(offset + self.len as u64);
        }
        Ok(())
    }

    /// Puts it into the window, of which the file has those before `offset`, and releases.
    pub(super) fn pass(&self, offset: u64, writer: &Writer) {
        for chunk in &self.chunks {
            writer.push(chunk.clone());
        }
        writer.arrived(offset + self.len as u64);
    }

    /// Blocks.
    pub(super) fn hash(&self, mut hasher: Hasher) -> Hasher {
        for chunk in &self.chunks {
            hasher.update(chunk);
        }
        hasher
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
