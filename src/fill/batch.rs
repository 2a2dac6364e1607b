//! A batch of bytes on its way: written and released to readers, and hashed, on the blocking pool.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::cache::{Filling, Writer};
use crate::oci::Hasher;

/// Bytes that one call writes. With more the kernel takes its memory in larger pieces, which it keeps less of at hand: on a host
/// that gives its memory away when it does not use it, a gigabyte then takes three times as long.
const WRITE_BYTES: u64 = 32 << 10;

/// Pieces that may gather: each costs tens of bytes besides its own, and an upstream may send them one byte long.
const GATHER_PIECES_MAX: usize = 16 << 10;

/// Bytes that arrived.
#[derive(Default)]
pub(super) struct Batch {
    chunks: Vec<Bytes>,
    /// The last of them, while there is room in it.
    filling: Option<Filling>,
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
    /// Takes a piece as it came.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        self.chunks.extend(self.filling.take().map(Filling::freeze));
        self.chunks.push(bytes);
    }

    /// Takes a copy of a piece that stands at `offset`, into buffers that are used again and again: then the connection can read into the memory from
    /// which it came again. Memory that is touched for the first time costs more than the copy, and on some hosts ten times.
    pub(super) fn copy(&mut self, mut bytes: &[u8], mut offset: u64) {
        self.len += bytes.len();
        offset += bytes.len() as u64;
        while !bytes.is_empty() {
            let mut filling = self.filling.take().unwrap_or_else(|| Filling::at(offset - bytes.len() as u64));
            if filling.take_from(&mut bytes) {
                self.filling = Some(filling);
            } else {
                self.chunks.push(filling.freeze());
            }
        }
    }

    /// What gathered, for the disk or the window.
    pub(super) fn take(&mut self) -> Self {
        let mut batch = std::mem::take(self);
        batch.chunks.extend(batch.filling.take().map(Filling::freeze));
        batch
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
        write_all_at(file, &self.chunks, offset)?;
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
fn write_all_at(file: &File, chunks: &[Bytes], mut offset: u64) -> io::Result<()> {
    for mut rest in chunks.iter().map(|chunk| &**chunk) {
        while !rest.is_empty() {
            let room = WRITE_BYTES - offset % WRITE_BYTES;
            let (piece, more) = rest.split_at(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            file.write_all_at(piece, offset)?;
            offset += piece.len() as u64;
            rest = more;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_in_pieces_of_any_size_is_written_in_order() {
        let file = tempfile::tempfile().expect("a file");
        let bytes = (0..100_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>();
        let (mut copied, mut kept, mut turned) = (Batch::default(), Batch::default(), Batch::default());
        for piece in [0..1, 1..1, 1..70_000, 70_000..70_003, 70_003..400_000] {
            copied.copy(&bytes[piece.clone()], 5 + piece.start as u64);
            kept.push(Bytes::copy_from_slice(&bytes[piece.clone()]));
            // The disk refuses what is on its way while more gathers.
            if piece.start < 70_000 {
                turned.copy(&bytes[piece.clone()], 5 + piece.start as u64);
            } else {
                turned.push(Bytes::copy_from_slice(&bytes[piece]));
            }
        }
        for batch in [&mut copied, &mut kept, &mut turned] {
            assert_eq!(batch.len(), 400_000);
            let batch = std::mem::take(batch).take();
            write_all_at(&file, &batch.chunks, 5).expect("writes");
            let mut read = vec![0; bytes.len()];
            file.read_exact_at(&mut read, 5).expect("reads");
            assert!(read == bytes);
        }
        assert!(copied.is_empty() && copied.take().chunks.is_empty());
    }
}
