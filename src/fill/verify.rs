//! A blob that is on disk, but not in a state in which it was verified: after the loss of the index, a power cut, or a
//! change by another hand. It is hashed before its end is released, and set aside when it is wrong.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Fill, Source, Store};
use crate::cache::{Cache, Failure, Permit, Suspect};

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
        let (permit, cache, stop) = (self.permit.clone(), self.context.cache.clone(), self.context.stop.clone());
        let check = move || verify(&suspect, &permit, &cache, &stop);
        match tokio::task::spawn_blocking(check).await.unwrap_or(Checked::Bad) {
            Checked::Good => {
                // It lies where it should already.
                self.store = Store::Unopened;
                Ok(true)
            }
            // Readers have the bad file open, and clients its size: what comes from the upstream is for those who come next.
            Checked::Bad if self.permit.writer().has_released() => Err(Failure::Corrupt),
            Checked::Bad => {
                self.permit.writer().set_held(false);
                Ok(false)
            }
            Checked::Stopped => Err(Failure::Abandoned),
        }
    }
}

/// What became of looking at a suspect.
enum Checked {
    /// It is the blob.
    Good,
    /// It is not, or cannot be read; it was set aside.
    Bad,
    /// The server stops: nothing is known of it.
    Stopped,
}

fn verify(suspect: &Suspect, permit: &Permit, cache: &Cache, stop: &CancellationToken) -> Checked {
    let size = suspect.size();
    let (writer, file) = (permit.writer(), suspect.file());
    let early = size > WAIT_BYTES_MAX;
    let mut hasher = permit.digest().hasher();
    let mut buffer = vec![0; usize::try_from(STEP).unwrap_or(1 << 20)];
    let mut offset = 0;
    while offset < size {
        if stop.is_cancelled() {
            return Checked::Stopped;
        }
        match std::os::unix::fs::FileExt::read_at(&**file, &mut buffer, offset) {
            Ok(0) => break,
            Ok(read) => {
                if early && offset == 0 {
                    writer.set_held(true);
                    // Not before something of it could be read: another file can take its place only as long as no reader
                    // has this one.
                    writer.open(Some(size), Some(file.clone()));
                }
                hasher.update(&buffer[..read]);
                offset += read as u64;
                if early {
                    writer.arrived(offset);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(digest = %permit.digest(), %error, "a blob on disk cannot be read");
                break;
            }
        }
    }
    if offset != size || hasher.finish() != permit.digest() {
        cache.set_aside(suspect);
        return Checked::Bad;
    }
    cache.trust(suspect);
    if !early {
        writer.set_held(true);
        writer.open(Some(size), Some(file.clone()));
    }
    writer.finish(size);
    Checked::Good
}
