//! Content-addressed files: `blobs/<algorithm>/<first two hex digits>/<hex>`.
//!
//! Promises: a file here hashes to its name. Only [`Blobs::commit`] puts one in place, from a temporary file that its
//! caller has verified; a file is never written to, truncated or replaced afterwards, only removed or set aside.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, RenameFlags, StatxFlags, statx};

use super::aside::drop_aside;
use super::folder::{Durability, Folder, Stamp, Temp, open_existing};
use crate::mapping::Mapping;
use crate::oci::{Algorithm, Digest};

/// The blobs of a data folder.
#[derive(Clone)]
pub(crate) struct Blobs {
    folder: Folder,
    /// Bad files that could not be moved away: as good as gone.
    shunned: Arc<Mutex<HashSet<Digest>>>,
}

/// A blob's file, open for reading.
#[derive(Debug)]
pub(crate) struct BlobFile {
    /// Whose content.
    pub(crate) digest: Digest,
    /// The file; it stays readable when the blob is evicted meanwhile.
    pub(crate) file: Arc<File>,
    /// Its state when it was opened.
    pub(crate) stamp: Stamp,
    /// The same bytes as memory, of one that clients have.
    mapping: Option<Box<Mapping>>,
}

impl Drop for BlobFile {
    fn drop(&mut self) {
        // One that was evicted ends with the last who has it open, and that is work for the disk.
        let mapping = self.mapping.take();
        if Arc::strong_count(&self.file) == 1 || mapping.is_some() {
            drop_aside((mapping, self.file.clone()));
        }
    }
}

impl BlobFile {
    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.stamp.size
    }

    /// A blob's open file, in this state.
    pub(crate) fn new(digest: Digest, file: Arc<File>, stamp: Stamp) -> Self {
        Self { digest, file, stamp, mapping: None }
    }

    /// The same as memory too, where that can be had. Whoever opens a file maps it: it touches the disk's structures.
    pub(crate) fn mapped(mut self) -> Self {
        self.mapping = Mapping::of(&self.file, self.stamp.size).map(Box::new);
        self
    }

    /// The open file.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether it is still as long as it was: what is missing of a mapped page looks like zeros. By what the kernel knows, without asking a
    /// disk or a server; where it cannot say, it is not.
    pub(crate) fn is_uncut(&self) -> bool {
        let state = statx(&self.file, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::SIZE);
        state.is_ok_and(|state| state.stx_size == self.stamp.size)
    }

    /// Its bytes as memory. To be sent and not to be touched: see `mapping`.
    pub(crate) fn mapping(&self) -> Option<&Mapping> {
        self.mapping.as_deref()
    }
}

impl Blobs {
    /// The blobs in this folder.
    pub(crate) fn new(folder: Folder) -> Self {
        Self { folder, shunned: Arc::default() }
    }

    /// Opens a blob, or finds that there is none.
    pub(crate) fn open(&self, digest: &Digest) -> io::Result<Option<BlobFile>> {
        let Some(file) = open_existing(&self.path(digest))? else { return Ok(None) };
        if self.shunned().contains(digest) {
            return Ok(None);
        }
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let stamp = Stamp::of(&file)?;
        Ok(Some(BlobFile::new(*digest, Arc::new(file), stamp)))
    }

    /// Moves a verified temporary file into place, durably, and says what state it has there.
    pub(crate) fn commit(&self, temp: Temp, digest: &Digest) -> io::Result<Stamp> {
        let file = temp.file().clone();
        temp.move_to(&self.path(digest), Durability::Synced)?;
        self.shunned().remove(digest);
        Stamp::of(&file)
    }

    /// Treats a blob as not held until it is committed again: its file is bad, and the disk lets nobody remove it.
    pub(crate) fn shun(&self, digest: &Digest) {
        self.shunned().insert(*digest);
    }

    // A set operation; never held across a call to the disk.
    fn shunned(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.shunned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a blob. Those who have it open read on.
    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<()> {
        match fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Sets a file aside that does not hash to its name; says whether it was still there.
    pub(crate) fn quarantine(&self, bad: &BlobFile) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let digest = &bad.digest;
        let dir = self.folder.root().join("quarantine");
        let aside = dir.join(format!("{}-{}-{:08x}", digest.algorithm().as_str(), digest.hex(), fastrand::u32(..)));
        match fs::rename(self.path(digest), &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        }
        if fs::symlink_metadata(&aside)?.ino() != bad.stamp.inode {
            // Somebody else found it bad too and has fetched it again: that one goes back, unless there is yet another.
            match rustix::fs::renameat_with(CWD, &aside, CWD, self.path(digest), RenameFlags::NOREPLACE) {
                Err(rustix::io::Errno::EXIST) => fs::remove_file(&aside)?,
                other => other?,
            }
            return Ok(false);
        }
        Ok(true)
    }

    /// Whether a blob's file is certainly not there.
    pub(crate) fn is_gone(&self, digest: &Digest) -> bool {
        self.path(digest).try_exists().is_ok_and(|exists| !exists)
    }

    /// The files of the digests that begin with this byte, in the order of the bytes of their digests. Files with other names
    /// are passed over.
    pub(crate) fn list(&self, shard: u8) -> io::Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for algorithm in Algorithm::ALL {
            let dir = self.folder.root().join("blobs").join(algorithm.as_str()).join(format!("{shard:02x}"));
            let entries = match fs::read_dir(dir) {
                // Somebody removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            for entry in entries {
                listed.extend(Listed::of(entry?, algorithm, shard));
            }
        }
        listed.sort_unstable_by(|a, b| a.digest.as_bytes().cmp(b.digest.as_bytes()));
        Ok(listed)
    }

    /// Where a blob lies: made from the digest alone.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.folder.root().join("blobs");
        path.push(digest.algorithm().as_str());
        path.push(&hex[..2]);
        path.push(hex);
        path
    }
}

/// The name of a blob's file, found in its folder.
pub(crate) struct Listed {
    /// Whose it is.
    pub(crate) digest: Digest,
    entry: fs::DirEntry,
}

impl Listed {
    fn of(entry: fs::DirEntry, algorithm: Algorithm, shard: u8) -> Option<Self> {
        let digest = Digest::parse(&format!("{}:{}", algorithm.as_str(), entry.file_name().to_str()?)).ok()?;
        (digest.as_bytes()[0] == shard).then_some(Self { digest, entry })
    }
}

/// Bytes, and when it was last read or written in seconds since 1970, of each of these that is still there.
pub(crate) fn measure(mut files: Vec<Listed>) -> Vec<(Digest, u64, i64)> {
    use std::os::unix::fs::{DirEntryExt, MetadataExt};
    // In the order in which they lie on the disk, not in that of the folder, which is none.
    files.sort_unstable_by_key(|file| file.entry.ino());
    let measured = files.into_iter().filter_map(|file| {
        // One that vanishes while we look was evicted.
        let meta = file.entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((file.digest, meta.len(), meta.atime().max(meta.mtime())))
    });
    let mut measured = measured.collect::<Vec<_>>();
    measured.sort_unstable_by(|(a, ..), (b, ..)| a.as_bytes().cmp(b.as_bytes()));
    measured
}

/// Free bytes on the file system, for those who are not root.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// All bytes of the file system.
pub(crate) fn total_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_blob_is_committed_opened_walked_and_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(dir.path()).expect("opens");
        let blobs = Blobs::new(folder.clone());
        let digest = Digest::sha256_of(b"hello");
        assert!(blobs.open(&digest).expect("looks").is_none());
        let temp = folder.temp().expect("creates");
        temp.file().write_all_at(b"hello", 0).expect("writes");
        let stamp = blobs.commit(temp, &digest).expect("commits");
        let found = blobs.open(&digest).expect("looks").expect("is there");
        assert_eq!(found.stamp, stamp);
        let listed = blobs.list(digest.as_bytes()[0]).expect("lists");
        let seen = measure(listed).into_iter().map(|(digest, size, _)| (digest, size));
        assert_eq!(seen.collect::<Vec<_>>(), [(digest, 5)]);
        blobs.remove(&digest).expect("removes");
        blobs.remove(&digest).expect("removes what is gone");
        assert!(blobs.open(&digest).expect("looks").is_none());
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let dir = tempfile::tempdir().expect("a folder");
        let blobs = Blobs::new(Folder::open(dir.path()).expect("opens"));
        let digest = Digest::sha256_of(b"x");
        std::os::unix::fs::symlink("/etc/passwd", blobs.path(&digest)).expect("links");
        assert!(blobs.open(&digest).is_err());
    }

    #[test]
    fn what_took_the_place_of_a_bad_file_is_not_set_aside_for_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let blobs = Blobs::new(Folder::open(dir.path()).expect("opens"));
        let digest = Digest::sha256_of(b"good");
        fs::write(blobs.path(&digest), "bad").expect("writes");
        let bad = blobs.open(&digest).expect("looks").expect("is there");
        let good = dir.path().join("tmp").join("good");
        fs::write(&good, "good").expect("writes");
        fs::rename(good, blobs.path(&digest)).expect("takes its place");
        assert!(!blobs.quarantine(&bad).expect("looks"));
        assert_eq!(fs::read(blobs.path(&digest)).expect("is there"), b"good");
        assert_eq!(fs::read_dir(dir.path().join("quarantine")).expect("reads").count(), 0);
    }
}
