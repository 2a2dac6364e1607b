//! A blob that is on disk, but not in a state in which it was verified: after the loss of the index, a power cut, or a
//! change by another hand. It is hashed before its end is released, and set aside when it is wrong.

use std::io;
use std::sync::Arc;

use super::{Fill, Source, Store};
use crate::cache::{Failure, NoAnswer, Suspect};
use crate::oci::Hasher;

/// Up to this size, in bytes, nothing is released before all of it is verified, so that a bad file is replaced from the
/// upstream without any client noticing: a sixth of a second of hashing. Of a larger one readers get the start meanwhile.
const WAIT_BYTES_MAX: u64 = 256 << 20;

/// Bytes hashed between two releases.
const STEP: u64 = 1 << 20;

impl<S: Source> Fill<S> {
    /// Whether the file on disk is the blob. False when there is none, or when it was wrong and nobody has had any of it.
    pub(super) async fn verify_suspect(&mut self) -> Result<bool, Failure> {
        let Some(permit) = Arc::get_mut(&mut self.permit) else { return Ok(false) };
        let Some(suspect) = permit.take_suspect() else { return Ok(false) };
        match self.check(suspect).await {
            Checked::Good => {
                // It lies where it should already.
                self.store = Store::Unopened;
                Ok(true)
            }
            // Readers have the bad file open, and clients its size: what comes from the upstream is for those who come next.
            Checked::Bad if self.permit.writer().has_released() => Err(Failure::Corrupt),
            Checked::Unread if self.permit.writer().has_released() => Err(Failure::Disk(io::ErrorKind::TimedOut)),
            // One of which nothing is known stays where it is.
            Checked::Bad | Checked::Unread => {
                self.permit.writer().set_held(false);
                Ok(false)
            }
        }
    }

    /// Reads and hashes it, a step at a time: each of them may hang.
    async fn check(&mut self, suspect: Suspect) -> Checked {
        let (cache, suspect) = (self.context.cache.clone(), Arc::new(suspect));
        let (size, writer) = (suspect.size(), self.permit.writer().clone());
        let early = size > WAIT_BYTES_MAX;
        let (mut hasher, mut offset) = (self.digest.hasher(), 0);
        let mut buffer = vec![0; usize::try_from(STEP.min(size)).unwrap_or(1 << 20)];
        let is_right = loop {
            if offset >= size {
                break offset == size && hasher.finish() == self.digest;
            }
            let of = suspect.clone();
            let read = match cache.look_in_time(move || step(&of, offset, hasher, buffer)).await {
                Ok(Ok((0, ..))) => break false,
                Ok(Ok(read)) => read,
                Ok(Err(error)) => {
                    tracing::error!(digest = %self.digest, %error, "a blob on disk cannot be read");
                    break false;
                }
                Err(NoAnswer) => return Checked::Unread,
            };
            if early && offset == 0 {
                writer.set_held(true);
                // Not before something of it could be read: another file can take its place only as long as no reader
                // has this one.
                writer.open(Some(size), Some(suspect.file().clone()));
            }
            offset += read.0;
            (hasher, buffer) = (read.1, read.2);
            if early {
                writer.arrived(offset);
            }
        };
        let (of, judge) = (suspect.clone(), cache.clone());
        let judged = move || {
            if is_right {
                judge.trust(&of);
            } else {
                judge.set_aside(&of);
            }
        };
        let judged = cache.write_in_time(judged).await;
        if !is_right {
            return if judged.is_ok() { Checked::Bad } else { Checked::Unread };
        }
        if !early {
            writer.set_held(true);
            writer.open(Some(size), Some(suspect.file().clone()));
        }
        writer.finish(size);
        Checked::Good
    }
}

/// What became of looking at a suspect.
enum Checked {
    /// It is the blob.
    Good,
    /// It is not, or cannot be read; it was set aside.
    Bad,
    /// The disk does not answer: nothing is known of it.
    Unread,
}

/// Reads and hashes what is next; says how much that was. Blocks.
fn step(suspect: &Suspect, offset: u64, mut hasher: Hasher, mut buffer: Vec<u8>) -> io::Result<(u64, Hasher, Vec<u8>)> {
    loop {
        match std::os::unix::fs::FileExt::read_at(&**suspect.file(), &mut buffer, offset) {
            Ok(read) => {
                hasher.update(&buffer[..read]);
                return Ok((read as u64, hasher, buffer));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
