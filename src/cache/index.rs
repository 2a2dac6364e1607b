//! What is known of each blob without opening it: its size, its last use, and the state in which it was verified.
//!
//! Only hints, which a walk over the files gives again: the index may be lost, damaged or left half written by a killed
//! process, and the mirror starts and serves all the same. The only file that says `sled`.
//!
//! sled 0.34 is treated as something that may fail at any time: its half-written snapshots are swept away before it is
//! opened (it would take one for its newest and refuse to open for ever), it is opened under a deadline and under
//! `catch_unwind`, and at the first error the index goes on in memory until the next start.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::time::Duration;

use super::folder::Stamp;
use crate::oci::Digest;

/// How long sled may take to open before it is set aside. It reads its whole log when it was not closed properly.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);

/// Bytes of sled's page cache. Its default is 1 GiB, and it is known to take a multiple of what it is given.
const PAGE_CACHE_BYTES: u64 = 16 << 20;

/// How often sled writes its buffer to disk.
const FLUSH_EVERY_MS: u64 = 1_000;

/// A log larger than this for each entry, beyond 64 MiB, is garbage that sled did not collect: it is built anew.
const LOG_BYTES_PER_ENTRY_MAX: u64 = 1_024;

/// What the index knows of a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Entry {
    /// Bytes.
    pub(crate) size: u64,
    /// Last use, in milliseconds since 1970: only the order matters.
    pub(crate) used: u64,
    /// The state of the file when it was last verified; zero for one that was only seen.
    pub(crate) stamp: Stamp,
}

impl Entry {
    /// Whether the file was ever verified. No file has the inode number zero.
    pub(crate) fn is_vouched_for(&self) -> bool {
        self.stamp.inode != 0
    }
}

/// The index of the blobs.
pub(crate) struct Index {
    store: RwLock<Store>,
    /// Uses since the last [`Index::flush_uses`]: a hit never writes to the disk.
    uses: Mutex<HashMap<Digest, u64>>,
    lost: AtomicBool,
}

enum Store {
    Sled(sled::Db),
    Memory(Mutex<HashMap<Digest, Entry>>),
}

/// How the index was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opened {
    /// As it was left.
    Kept,
    /// There was none, or it was unusable and set aside: it must be rebuilt from the files.
    Empty,
}

impl Index {
    /// Opens the index in a folder, or starts a new one there.
    pub(crate) fn open(dir: &Path) -> (Self, Opened) {
        let store = match open_sled(dir) {
            Ok(db) => Store::Sled(db),
            Err(reason) => {
                tracing::warn!(%reason, "the index cannot be used; it is set aside and rebuilt from the files, serving goes on");
                set_aside(dir);
                match open_sled(dir) {
                    Ok(db) => Store::Sled(db),
                    Err(reason) => {
                        tracing::error!(%reason, "no index can be written; it is kept in memory until the next start. Is the disk full or read-only?");
                        Store::Memory(Mutex::default())
                    }
                }
            }
        };
        let index = Self { store: RwLock::new(store), uses: Mutex::default(), lost: AtomicBool::new(false) };
        let opened = if index.is_empty() { Opened::Empty } else { Opened::Kept };
        (index, opened)
    }

    /// Opens the index without setting anything aside; nothing when it cannot be opened.
    pub(crate) fn open_as_it_is(dir: &Path) -> Option<Self> {
        let db = open_sled(dir).ok()?;
        Some(Self { store: RwLock::new(Store::Sled(db)), uses: Mutex::default(), lost: AtomicBool::new(false) })
    }

    /// What is known of a blob.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Entry> {
        self.call(|store| match store {
            Store::Sled(db) => Ok(db.get(key(digest))?.and_then(|value| decode(&value))),
            Store::Memory(map) => Ok(lock(map).get(digest).copied()),
        })
        .flatten()
    }

    /// Enters a blob; says whether it is new, so that its bytes are counted once however many enter it.
    pub(crate) fn put(&self, digest: &Digest, entry: Entry) -> bool {
        let previous = self.call(|store| match store {
            Store::Sled(db) => Ok(db.insert(key(digest), encode(&entry).as_slice())?.is_some()),
            Store::Memory(map) => Ok(lock(map).insert(*digest, entry).is_some()),
        });
        previous == Some(false)
    }

    /// Enters a blob unless it is there.
    pub(crate) fn put_new(&self, digest: &Digest, entry: Entry) -> bool {
        let added = self.call(|store| match store {
            Store::Sled(db) => Ok(db.compare_and_swap(key(digest), None::<&[u8]>, Some(encode(&entry).as_slice()))?.is_ok()),
            Store::Memory(map) => {
                let mut map = lock(map);
                let new = !map.contains_key(digest);
                map.entry(*digest).or_insert(entry);
                Ok(new)
            }
        });
        added == Some(true)
    }

    /// Forgets a blob, and says what was known.
    pub(crate) fn remove(&self, digest: &Digest) -> Option<Entry> {
        self.uses().remove(digest);
        self.call(|store| match store {
            Store::Sled(db) => Ok(db.remove(key(digest))?.and_then(|value| decode(&value))),
            Store::Memory(map) => Ok(lock(map).remove(digest)),
        })
        .flatten()
    }

    /// Notes a use, in memory.
    pub(crate) fn touch(&self, digest: &Digest, now: u64) {
        self.uses().insert(*digest, now);
    }

    /// Writes the uses noted since the last time.
    pub(crate) fn flush_uses(&self) {
        let uses = std::mem::take(&mut *self.uses());
        for (digest, used) in uses {
            self.change(&digest, |entry| Entry { used, ..entry });
        }
    }

    /// The blob must be verified before it is served again.
    pub(crate) fn distrust(&self, digest: &Digest) {
        self.change(digest, |entry| Entry { stamp: Stamp::default(), ..entry });
    }

    /// The file of a blob was verified in another state than the one that was known: that is no use of it. One that is known
    /// in a third state by now stays as it is.
    pub(crate) fn verified(&self, digest: &Digest, known: Stamp, stamp: Stamp) {
        self.change(digest, |entry| if entry.stamp == known { Entry { stamp, ..entry } } else { entry });
    }

    /// Changes an entry in one step: one that is removed meanwhile stays removed, and nothing newer is overwritten.
    fn change(&self, digest: &Digest, change: impl Fn(Entry) -> Entry) {
        let changed = |old: Option<&[u8]>| {
            let old = old?;
            Some(decode(old).map_or_else(|| old.to_vec(), |entry| encode(&change(entry)).to_vec()))
        };
        self.call(|store| match store {
            Store::Sled(db) => db.fetch_and_update(key(digest), changed).map(drop),
            Store::Memory(map) => {
                if let Some(entry) = lock(map).get_mut(digest) {
                    *entry = change(*entry);
                }
                Ok(())
            }
        });
    }

    /// Visits every entry, with its latest use.
    pub(crate) fn each(&self, mut visit: impl FnMut(Digest, Entry)) {
        let uses = self.uses().clone();
        let mut visit = |digest: Digest, mut entry: Entry| {
            entry.used = uses.get(&digest).copied().unwrap_or_default().max(entry.used);
            visit(digest, entry);
        };
        self.call(|store| {
            match store {
                Store::Sled(db) => {
                    for item in db.iter() {
                        let (key, value) = item?;
                        if let (Some(digest), Some(entry)) = (unkey(&key), decode(&value)) {
                            visit(digest, entry);
                        }
                    }
                }
                Store::Memory(map) => lock(map).iter().for_each(|(digest, entry)| visit(*digest, *entry)),
            }
            Ok(())
        });
    }

    /// Writes everything to the disk.
    pub(crate) fn flush(&self) {
        self.flush_uses();
        self.call(|store| match store {
            Store::Sled(db) => db.flush().map(drop),
            Store::Memory(_) => Ok(()),
        });
    }

    /// Whether the index was lost since the last time this was asked: it then knows of nothing.
    pub(crate) fn take_lost(&self) -> bool {
        self.lost.swap(false, Ordering::AcqRel)
    }

    /// Whether the index outlives this process.
    pub(crate) fn is_durable(&self) -> bool {
        matches!(*self.store.read().unwrap_or_else(PoisonError::into_inner), Store::Sled(_))
    }

    fn is_empty(&self) -> bool {
        self.call(|store| match store {
            Store::Sled(db) => Ok(db.is_empty()),
            Store::Memory(map) => Ok(lock(map).is_empty()),
        })
        .unwrap_or(true)
    }

    fn call<T>(&self, call: impl FnOnce(&Store) -> sled::Result<T>) -> Option<T> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        let result = catch_unwind(AssertUnwindSafe(|| call(&store)));
        drop(store);
        self.settle(result)
    }

    /// At the first error or panic sled is left for memory: it refuses every later write anyway.
    fn settle<T>(&self, result: std::thread::Result<sled::Result<T>>) -> Option<T> {
        let reason = match result {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*store, Store::Sled(_)) {
            tracing::error!(%reason, "the index failed; it is kept in memory until the next start, serving goes on");
            *store = Store::Memory(Mutex::default());
            self.lost.store(true, Ordering::Release);
        }
        None
    }

    fn uses(&self) -> MutexGuard<'_, HashMap<Digest, u64>> {
        lock(&self.uses)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens sled on another thread, so that one which hangs or panics costs a deadline and no more.
fn open_sled(dir: &Path) -> Result<sled::Db, String> {
    sweep(dir).map_err(|error| error.to_string())?;
    let path = dir.to_owned();
    let (sender, receiver) = mpsc::sync_channel(1);
    let open = move || {
        let open = || {
            let config = sled::Config::new().path(path).mode(sled::Mode::LowSpace);
            config.cache_capacity(PAGE_CACHE_BYTES).flush_every_ms(Some(FLUSH_EVERY_MS)).open()
        };
        // Nobody listens any more when the deadline has passed.
        let _ = sender.send(catch_unwind(AssertUnwindSafe(open)));
    };
    std::thread::Builder::new().name("index-open".into()).spawn(open).map_err(|error| error.to_string())?;
    let db = match receiver.recv_timeout(OPEN_DEADLINE) {
        Ok(Ok(Ok(db))) => db,
        Ok(Ok(Err(error))) => return Err(error.to_string()),
        Ok(Err(_)) => return Err("opening it panicked".to_owned()),
        Err(_) => return Err(format!("opening it took more than {OPEN_DEADLINE:?}")),
    };
    let limit = (64 << 20) + LOG_BYTES_PER_ENTRY_MAX * db.len() as u64;
    match db.size_on_disk() {
        Ok(size) if size > limit => Err(format!("its log of {size} bytes is mostly garbage")),
        _ => Ok(db),
    }
}

/// Removes the snapshots that a killed process left half written: sled 0.34 takes the last by name, whatever it holds.
fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Keeps one unusable index for a person to look at, and makes place for a new one.
fn set_aside(dir: &Path) {
    let aside: PathBuf = dir.with_extension("bad");
    let moved = fs::remove_dir_all(&aside).or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) });
    let moved = moved.and_then(|()| fs::rename(dir, &aside)).and_then(|()| super::folder::create_dir(dir));
    if let Err(error) = moved {
        tracing::error!(%error, path = %dir.display(), "the unusable index cannot be moved away");
    }
}

const ENTRY_BYTES: usize = 40;

fn encode(entry: &Entry) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    bytes[0..8].copy_from_slice(&entry.size.to_le_bytes());
    bytes[8..16].copy_from_slice(&entry.used.to_le_bytes());
    bytes[16..24].copy_from_slice(&entry.stamp.inode.to_le_bytes());
    bytes[24..32].copy_from_slice(&entry.stamp.mtime.to_le_bytes());
    bytes[32..40].copy_from_slice(&entry.stamp.ctime.to_le_bytes());
    bytes
}

/// `None` for a value of another length: whatever it is, it is not ours.
fn decode(bytes: &[u8]) -> Option<Entry> {
    let bytes: &[u8; ENTRY_BYTES] = bytes.try_into().ok()?;
    let word = |n: usize| <[u8; 8]>::try_from(&bytes[n * 8..n * 8 + 8]).ok();
    let size = u64::from_le_bytes(word(0)?);
    let stamp =
        Stamp { inode: u64::from_le_bytes(word(2)?), size, mtime: i64::from_le_bytes(word(3)?), ctime: i64::from_le_bytes(word(4)?) };
    Some(Entry { size, used: u64::from_le_bytes(word(1)?), stamp })
}

/// The bytes of the digest; their number tells the algorithm.
fn key(digest: &Digest) -> &[u8] {
    digest.as_bytes()
}

fn unkey(key: &[u8]) -> Option<Digest> {
    match key.len() {
        32 => key.try_into().ok().map(Digest::Sha256),
        64 => key.try_into().ok().map(Digest::Sha512),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(size: u64, used: u64) -> Entry {
        Entry { size, used, stamp: Stamp { inode: 3, size, mtime: -4, ctime: 5 } }
    }

    #[test]
    fn entries_survive_a_restart_and_uses_are_written_late() {
        let dir = tempfile::tempdir().expect("a folder");
        let digest = Digest::sha256_of(b"x");
        {
            let (index, opened) = Index::open(dir.path());
            assert_eq!(opened, Opened::Empty);
            assert!(index.put(&digest, entry(7, 1)));
            assert!(!index.put(&digest, entry(7, 1)), "counted once");
            assert!(!index.put_new(&digest, Entry::default()));
            index.touch(&digest, 9);
            assert_eq!(index.get(&digest).expect("known").used, 1);
            index.flush();
        }
        let (index, opened) = Index::open(dir.path());
        assert_eq!(opened, Opened::Kept);
        assert_eq!(index.get(&digest), Some(entry(7, 9)));
        assert_eq!(index.remove(&digest), Some(entry(7, 9)));
        assert_eq!(index.remove(&digest), None);
    }

    #[test]
    fn what_is_gone_is_not_brought_back_by_a_change() {
        let dir = tempfile::tempdir().expect("a folder");
        let (sled, _) = Index::open(dir.path());
        let memory = Index { store: RwLock::new(Store::Memory(Mutex::default())), uses: Mutex::default(), lost: AtomicBool::new(false) };
        for index in [sled, memory] {
            let digest = Digest::sha256_of(b"x");
            // It was evicted after its use was noted.
            index.touch(&digest, 9);
            index.flush_uses();
            index.distrust(&digest);
            assert_eq!(index.get(&digest), None);
            index.put(&digest, entry(7, 1));
            index.touch(&digest, 9);
            index.flush_uses();
            assert_eq!(index.get(&digest), Some(entry(7, 9)));
            index.distrust(&digest);
            let now = index.get(&digest).expect("known");
            assert_eq!((now.size, now.used, now.stamp.inode), (7, 9, 0));
        }
    }

    #[test]
    fn a_half_written_snapshot_is_swept_away() {
        let dir = tempfile::tempdir().expect("a folder");
        let digest = Digest::sha256_of(b"x");
        {
            let (index, _) = Index::open(dir.path());
            index.put(&digest, entry(7, 1));
            index.flush();
        }
        fs::write(dir.path().join("snap.FFFFFFFFFFFFFFFF.generating"), "").expect("writes");
        let (index, opened) = Index::open(dir.path());
        assert_eq!(opened, Opened::Kept);
        assert!(index.get(&digest).is_some());
    }

    #[test]
    fn noise_in_place_of_the_index_is_set_aside() {
        let parent = tempfile::tempdir().expect("a folder");
        let dir = parent.path().join("index");
        fs::create_dir(&dir).expect("creates");
        for name in ["conf", "db"] {
            fs::write(dir.join(name), [0xA5; 4096]).expect("writes");
        }
        let (index, opened) = Index::open(&dir);
        assert_eq!(opened, Opened::Empty);
        assert!(index.is_durable());
        assert!(parent.path().join("index.bad").exists());
    }

    #[test]
    fn without_a_writable_disk_the_index_lives_in_memory() {
        let parent = tempfile::tempdir().expect("a folder");
        let dir = parent.path().join("index");
        fs::write(&dir, "a file where the folder should be").expect("writes");
        fs::create_dir(parent.path().join("index.bad")).expect("creates");
        fs::write(parent.path().join("index.bad/x"), "").expect("writes");
        let (index, _) = Index::open(&dir);
        let digest = Digest::sha256_of(b"x");
        assert!(index.put(&digest, entry(7, 1)));
        assert_eq!(index.get(&digest), Some(entry(7, 1)));
        let mut seen = 0;
        index.each(|_, entry| seen += entry.size);
        assert_eq!(seen, 7);
    }
}
