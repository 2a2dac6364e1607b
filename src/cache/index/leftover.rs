//! What an index leaves in its folder that the next start must not take for an index: snapshots half written, a note that it is
//! garbage, and all of it when it cannot be opened.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::super::folder::create_dir;

/// The file in the folder of an index that is to be built anew.
pub(super) const STALE: &str = "STALE";

/// Removes the snapshots that a killed process left half written: sled 0.34 takes the last by name, whatever it holds.
pub(super) fn sweep(dir: &Path) -> io::Result<()> {
    if dir.join(STALE).exists() {
        return Err(io::Error::other("its log is mostly garbage"));
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Waits until nobody holds the index of a folder: sled's own threads may hold on to its file for a moment after it was closed, and an index
/// that is only not free yet would be set aside as unusable. For a thread that nobody waits for longer than opening may take.
pub(super) fn wait_until_free(dir: &Path) {
    // sled locks this file. Whatever is wrong with it is for sled to say.
    if let Ok(file) = fs::File::open(dir.join("db")) {
        let _ = flock(&file, FlockOperation::LockExclusive);
    }
}

/// Keeps one unusable index for a person to look at, and makes place for a new one.
pub(super) fn set_aside(dir: &Path) {
    let aside: PathBuf = dir.with_extension("bad");
    let moved = fs::remove_dir_all(&aside).or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) });
    let moved = moved.and_then(|()| fs::rename(dir, &aside)).and_then(|()| create_dir(dir));
    if let Err(error) = moved {
        tracing::error!(%error, path = %dir.display(), "the unusable index cannot be moved away");
    }
}
