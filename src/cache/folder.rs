//! The data folder: who may use it, where things lie in it, and the one way onto the disk.
//!
//! Promises: one process at a time (`LOCK`); everything in it is on one file system, so that a rename is atomic; a file
//! that [`Folder::publish`] put in place is complete, also after a power cut. `tmp/` is empty after [`Folder::open`].
//! With `blobs.rs` and `repos.rs` beside it this is the only code that writes files.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;

use crate::oci::Algorithm;

/// What the layout of the folder is called in `VERSION`.
const VERSION: &str = "millpond 1\n";

/// A data folder that this process has to itself.
#[derive(Clone)]
pub(crate) struct Folder(Arc<Inner>);

struct Inner {
    root: PathBuf,
    serial: AtomicU64,
    boot: u64,
    /// Temporary files that nobody needs and the disk would not remove.
    orphans: Mutex<Vec<PathBuf>>,
    // Held open for as long as the process uses the folder: the kernel frees the lock with it, also after kill -9.
    lock: File,
}

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process holds it.
    #[error("the data folder {0} is in use by another millpond; stop that one, or set cache.dir to another folder")]
    Locked(PathBuf),
    /// Made by a version that this one does not understand.
    #[error("the data folder {0} holds the layout {1:?}, which this millpond does not know; set cache.dir to another folder")]
    Version(PathBuf, String),
    /// Not a folder, not writable, or the disk fails.
    #[error("cannot use the data folder: {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A process that is being started just now has a copy of the open file until it becomes another program: closing
        // ours alone would leave the folder locked for that long.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the data folder's lock cannot be given back; it ends with the process");
        }
    }
}

impl Folder {
    /// Creates the folder where it is missing, locks it, and clears away what a killed process left half done.
    pub(crate) fn open(root: &Path) -> Result<Self, FolderError> {
        let fail = |action, path: &Path| {
            let path = path.to_owned();
            move |source| FolderError::Io { action, path, source }
        };
        create_dir(root).map_err(fail("create", root))?;
        let root = root.canonicalize().map_err(fail("find", root))?;
        // What private registries served lies in here: nobody else on this machine may read it.
        restrict(&root).map_err(fail("restrict", &root))?;
        let lock_path = root.join("LOCK");
        let lock = match options().create(true).truncate(false).open(&lock_path) {
            // What is held is served all the same, and a lock needs no writing.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(&lock_path),
            other => other,
        };
        let lock = lock.map_err(fail("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(FolderError::Locked(root)),
            Err(fs::TryLockError::Error(source)) => return Err(fail("lock", &lock_path)(source)),
        }
        let folder = Self(Arc::new(Inner { root, serial: AtomicU64::new(0), boot: fastrand::u64(..), orphans: Mutex::default(), lock }));
        let root = folder.root();
        for algorithm in Algorithm::ALL {
            let blobs = root.join("blobs").join(algorithm.as_str());
            // Every shard exists from the start: a commit then has one folder to make durable, not two.
            for shard in 0..=255_u8 {
                let shard = blobs.join(format!("{shard:02x}"));
                create_dir(&shard).map_err(fail("create", &shard))?;
            }
            if_writable(sync_dir(&blobs)).map_err(fail("sync", &blobs))?;
        }
        for name in ["repos", "tmp", "quarantine"] {
            let path = root.join(name);
            create_dir(&path).map_err(fail("create", &path))?;
        }
        // Whatever is in its place is set aside when the index is opened: no index is a reason not to serve.
        let _ = create_dir(&root.join("index"));
        folder.check_version()?;
        let tmp = root.join("tmp");
        // What stays costs its space and no more: no new file has its name.
        empty_dir(&tmp).unwrap_or_else(|error| tracing::error!(%error, path = %tmp.display(), "what a killed run left cannot be removed"));
        if_writable(sync_dir(root)).map_err(fail("sync", root))?;
        Ok(folder)
    }

    fn check_version(&self) -> Result<(), FolderError> {
        let path = self.root().join("VERSION");
        match fs::read_to_string(&path) {
            Ok(found) if found == VERSION => Ok(()),
            Ok(found) => Err(FolderError::Version(self.root().to_owned(), found.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self
                .publish(&path, VERSION.as_bytes(), Durability::Synced)
                .map_err(|source| FolderError::Io { action: "write", path, source }),
            Err(source) => Err(FolderError::Io { action: "read", path, source }),
        }
    }

    /// Where the folder is, absolute.
    pub(crate) fn root(&self) -> &Path {
        &self.0.root
    }

    /// A new file in `tmp/`, which is removed unless it is moved into place.
    pub(crate) fn temp(&self) -> io::Result<Temp> {
        self.remove_orphans();
        let serial = self.0.serial.fetch_add(1, Ordering::Relaxed);
        // The boot number keeps names apart from those of a run whose leftovers could not be removed.
        let path = self.0.root.join("tmp").join(format!("{:016x}-{serial}.part", self.0.boot));
        let create = || options().create_new(true).open(&path);
        let file = with_parent(&path, create)?;
        Ok(Temp { file: Arc::new(file), path: Some(path), folder: self.clone() })
    }

    /// Whoever makes a new file shows that the disk may be well again.
    fn remove_orphans(&self) {
        // Not held across a call to the disk.
        let orphans = std::mem::take(&mut *self.orphans());
        let stay = orphans.into_iter().filter(|path| fs::remove_file(path).is_err_and(|error| error.kind() != io::ErrorKind::NotFound));
        let stay = stay.collect::<Vec<_>>();
        self.orphans().extend(stay);
    }

    fn orphans(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.0.orphans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a small file in place at once: readers see the old content or the new one, nothing between.
    pub(crate) fn publish(&self, path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let temp = self.temp()?;
        temp.file.write_all_at(bytes, 0)?;
        temp.move_to(path, durability)
    }
}

/// How much a write must survive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Durability {
    /// A power cut right after it returns.
    Synced,
    /// The death of this process; a power cut may bring the old content back.
    Renamed,
}

/// A file under `tmp/`. Dropping it removes it; [`Temp::move_to`] is the only way to keep it.
pub(crate) struct Temp {
    file: Arc<File>,
    path: Option<PathBuf>,
    folder: Folder,
}

impl Temp {
    /// The open file, for writing and for those who read it while it grows.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The same place, but what is written goes to another file: one that fails as the test wants it.
    #[cfg(test)]
    pub(crate) fn writing_to(mut self, file: Arc<File>) -> Self {
        self.file = file;
        self
    }

    /// fdatasync → rename → fsync of the folder. An error of a sync is final: the kernel may have dropped the pages and
    /// called them clean, so that a second try would succeed without the data being there. One of the folder's is no failure:
    /// the file is in place and whole, and a power cut may take its name away again, which is a miss.
    pub(crate) fn move_to(mut self, path: &Path, durability: Durability) -> io::Result<()> {
        let temp = self.path.as_deref().expect("present until moved");
        if durability == Durability::Synced {
            self.file.sync_data()?;
        }
        with_parent(path, || fs::rename(temp, path))?;
        self.path = None;
        if durability == Durability::Synced {
            sync_dir(path.parent().expect("a file lies in a folder")).unwrap_or_else(
                |error| tracing::error!(%error, path = %path.display(), "a name cannot be made durable; a power cut may lose it"),
            );
        }
        Ok(())
    }
}

impl std::fmt::Debug for Temp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Temp").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // Later then, or at the next start.
            self.folder.orphans().push(path);
        }
    }
}

/// Creates a folder and its parents, 0700.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Does something in a folder, which is made where somebody has removed it: people empty caches by hand.
fn with_parent<T>(path: &Path, mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match (act(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound && !parent.exists() => {
            create_dir(parent)?;
            act()
        }
        (done, _) => done,
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Opens for reading and never through a symbolic link; nothing there is not an error.
pub(crate) fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).custom_flags(no_follow()).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(no_follow());
    options
}

fn no_follow() -> i32 {
    OFlags::NOFOLLOW.bits().cast_signed()
}

/// On a disk that cannot be written there is nothing to be made durable.
fn if_writable(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == io::ErrorKind::ReadOnlyFilesystem { Ok(()) } else { Err(error) })
}

/// Makes a folder its owner's alone. One that is so already may lie on a disk that cannot be written.
fn restrict(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o777 == 0o700 { Ok(()) } else { fs::set_permissions(path, fs::Permissions::from_mode(0o700)) }
}

fn empty_dir(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// What identifies the state of a file: where any of it differs from what was verified, the file is verified again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Stamp {
    /// Inode number.
    pub(crate) inode: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Modification time, nanoseconds since 1970.
    pub(crate) mtime: i64,
    /// Change time, nanoseconds since 1970: no user can set it back.
    pub(crate) ctime: i64,
}

impl Stamp {
    /// The stamp of an open file.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let nanos = |seconds: i64, nanos: i64| seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos);
        Ok(Self {
            inode: meta.ino(),
            size: meta.len(),
            mtime: nanos(meta.mtime(), meta.mtime_nsec()),
            ctime: nanos(meta.ctime(), meta.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_open_lock_in_a_child_holds_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(dir.path()).expect("opens");
        let _inherited = folder.0.lock.try_clone().expect("copies");
        drop(folder);
        assert!(Folder::open(dir.path()).is_ok());
    }

    #[test]
    fn a_second_process_is_refused_and_leftovers_are_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(dir.path()).expect("opens");
        assert!(matches!(Folder::open(dir.path()), Err(FolderError::Locked(_))));
        fs::write(dir.path().join("tmp/x.part"), "half").expect("writes");
        drop(folder);
        let _folder = Folder::open(dir.path()).expect("opens again");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("reads").count(), 0);
        assert_eq!(fs::metadata(dir.path()).expect("stats").mode() & 0o777, 0o700);
    }

    #[test]
    fn a_folder_of_another_layout_is_left_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("VERSION"), "millpond 99\n").expect("writes");
        assert!(matches!(Folder::open(dir.path()), Err(FolderError::Version(..))));
    }

    #[test]
    fn a_temporary_file_is_kept_only_by_moving_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(dir.path()).expect("opens");
        drop(folder.temp().expect("creates"));
        assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("reads").count(), 0);
        let target = dir.path().join("repos/x");
        folder.publish(&target, b"one", Durability::Synced).expect("publishes");
        folder.publish(&target, b"two", Durability::Renamed).expect("replaces");
        assert_eq!(fs::read(&target).expect("reads"), b"two");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("reads").count(), 0);
    }
}
