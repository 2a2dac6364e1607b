//! What tells one version of a file from the next, for files that are read again when they change.
//!
//! Looks at what the file system says of a file, and never at its bytes.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A file as it was looked at. A link is followed, so that a mounted Kubernetes secret counts, whose folder is exchanged as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    /// Of the file as it is now; nothing, where there is none. Blocks on the disk.
    pub fn of(file: &Path) -> Option<Self> {
        let is = std::fs::metadata(file).ok()?;
        Some(Self {
            device: is.dev(),
            inode: is.ino(),
            bytes: is.size(),
            modified: (is.mtime(), is.mtime_nsec()),
            changed: (is.ctime(), is.ctime_nsec()),
        })
    }
}
