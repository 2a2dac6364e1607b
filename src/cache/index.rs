//! What is known of each blob without opening it: its size, its last use, and the state in which it was verified.
//!
//! Only hints, which a walk over the files gives again: the index may be lost, damaged or left half written by a killed
//! process, and the mirror starts and serves all the same. The only file that says `sled`.
//!
//! sled 0.34 is treated as something that may fail at any time: its half-written snapshots are swept away before it is
//! opened (it would take one for its newest and refuse to open for ever), it is opened under a deadline and under
//! `catch_unwind`, and at the first error the index goes on in memory until the next start.
//!
//! However much it holds, it is no reason to wait: one that takes its time to open is empty and in memory until it is there.
//! A million blobs are some 140 MB on the disk and 120 MB in memory, most of it what sled keeps of where they are; a visit of
//! all takes a second or two of a processor, so nothing that happens for each blob may do that.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::folder::{Durability, Folder, Stamp};
use crate::oci::Digest;

mod entry;
mod leftover;

pub(crate) use entry::Entry;
use entry::{decode, encode, key, unkey};
use leftover::{STALE, set_aside, sweep, wait_until_free};

/// How long sled may take to open before it is set aside. It reads its whole log when it was not closed properly.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);

/// How long the start waits for it: what a million blobs take on a disk that is quick. Until it is open each large blob is
/// verified before it is served.
const OPEN_QUICK: Duration = Duration::from_millis(400);

/// Bytes of sled's page cache. Its default is 1 GiB, and it takes a multiple of what it is given.
const PAGE_CACHE_BYTES: u64 = 16 << 20;

/// How often sled writes its buffer to disk.
const FLUSH_EVERY_MS: u64 = 1_000;

/// A log larger than this for each entry, beyond [`LOG_BYTES_MIN`], is garbage that sled did not collect: the next start builds it anew.
const LOG_BYTES_PER_ENTRY_MAX: u64 = 1_024;
const LOG_BYTES_MIN: u64 = 64 << 20;

/// Entries that are visited until what sled replaced meanwhile is freed: it has loaded a page or two.
const FREE_EVERY: usize = 64;

/// Uses that are remembered until they are written, at the most: some MiB. They are written when it is half of that, and one
/// that finds no place costs its blob a place in the order of eviction.
const USES_MAX: usize = 1 << 16;

/// The index of the blobs.
pub(crate) struct Index {
    store: RwLock<Store>,
    /// Uses since the last [`Index::flush_uses`]: a hit never writes to the disk.
    uses: Mutex<HashMap<Digest, u64>>,
    many_uses: Notify,
    lost: AtomicBool,
    opening: Mutex<Opening>,
    /// Entries that were visited.
    #[cfg(test)]
    pub(crate) visited: std::sync::atomic::AtomicUsize,
}

enum Store {
    Sled(sled::Db),
    /// By the same keys.
    Memory(Mutex<BTreeMap<Box<[u8]>, Entry>>),
}

enum Opening {
    /// In this folder, since then; for the second time if it could not be used.
    UnderWay {
        dir: PathBuf,
        db: mpsc::Receiver<Result<sled::Db, String>>,
        since: Instant,
        again: bool,
    },
    Done(Opened),
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
    pub(crate) fn open(dir: &Path) -> Self {
        let index = Self::in_memory();
        *lock(&index.opening) = Opening::begin(dir, false);
        index.opened_within(OPEN_QUICK);
        index
    }

    /// Opens the index without setting anything aside; nothing when it cannot be opened.
    pub(crate) fn open_as_it_is(dir: &Path) -> Option<Self> {
        let db = begin(dir).recv_timeout(OPEN_DEADLINE).ok()?.ok()?;
        let index = Self::in_memory();
        index.adopt(db);
        Some(index)
    }

    fn in_memory() -> Self {
        Self {
            store: RwLock::new(Store::Memory(Mutex::default())),
            uses: Mutex::default(),
            many_uses: Notify::new(),
            lost: AtomicBool::new(false),
            opening: Mutex::new(Opening::Done(Opened::Empty)),
            #[cfg(test)]
            visited: std::sync::atomic::AtomicUsize::default(),
        }
    }

    /// How it was found; waits until that is known, at most twice the deadline. Blocks.
    pub(crate) fn opened(&self) -> Opened {
        loop {
            if let Some(opened) = self.opened_within(OPEN_DEADLINE) {
                return opened;
            }
        }
    }

    fn opened_within(&self, patience: Duration) -> Option<Opened> {
        let mut opening = lock(&self.opening);
        let until = Instant::now() + patience;
        loop {
            let (dir, db, since, again) = match &*opening {
                Opening::Done(opened) => return Some(*opened),
                Opening::UnderWay { dir, db, since, again } => (dir, db, *since, *again),
            };
            let db = match db.recv_timeout(until.min(since + OPEN_DEADLINE).saturating_duration_since(Instant::now())) {
                Ok(db) => db,
                Err(mpsc::RecvTimeoutError::Timeout) if since.elapsed() < OPEN_DEADLINE => return None,
                Err(_) => Err(format!("opening it took more than {OPEN_DEADLINE:?}, or panicked")),
            };
            let next = match db {
                Ok(db) => Opening::Done(self.adopt(db)),
                Err(reason) if !again => {
                    tracing::warn!(%reason, "the index cannot be used; it is set aside and rebuilt from the files, serving goes on");
                    set_aside(dir);
                    Opening::begin(dir, true)
                }
                Err(reason) => {
                    tracing::error!(%reason, "no index can be written; it is kept in memory until the next start. Is the disk full or read-only?");
                    Opening::Done(Opened::Empty)
                }
            };
            *opening = next;
        }
    }

    /// It is open: what was entered meanwhile goes there, before anybody else does: what comes later is newer.
    fn adopt(&self, db: sled::Db) -> Opened {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        let adopt = || -> sled::Result<bool> {
            let was_empty = db.is_empty();
            if let Store::Memory(map) = &*store {
                for (key, entry) in &*lock(map) {
                    db.insert(key, encode(entry).as_slice())?;
                }
            }
            Ok(was_empty)
        };
        let adopted = catch_unwind(AssertUnwindSafe(adopt)).unwrap_or_else(|_| Err(sled::Error::Unsupported("it panicked".into())));
        match adopted {
            Ok(was_empty) => {
                *store = Store::Sled(db);
                if was_empty { Opened::Empty } else { Opened::Kept }
            }
            Err(reason) => {
                tracing::error!(%reason, "the index failed; it is kept in memory until the next start, serving goes on");
                Opened::Empty
            }
        }
    }

    /// What is known of a blob.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Entry> {
        self.call(|store| match store {
            Store::Sled(db) => Ok(db.get(key(digest))?.and_then(|value| decode(&value))),
            Store::Memory(map) => Ok(lock(map).get(key(digest)).copied()),
        })
        .flatten()
    }

    /// Enters a blob; says whether it is new, so that its bytes are counted once however many enter it.
    pub(crate) fn put(&self, digest: &Digest, entry: Entry) -> bool {
        let previous = self.call(|store| match store {
            Store::Sled(db) => Ok(db.insert(key(digest), encode(&entry).as_slice())?.is_some()),
            Store::Memory(map) => Ok(lock(map).insert(key(digest).into(), entry).is_some()),
        });
        previous == Some(false)
    }

    /// Enters a blob unless it is there.
    pub(crate) fn put_new(&self, digest: &Digest, entry: Entry) -> bool {
        let added = self.call(|store| match store {
            Store::Sled(db) => Ok(db.compare_and_swap(key(digest), None::<&[u8]>, Some(encode(&entry).as_slice()))?.is_ok()),
            Store::Memory(map) => {
                let mut map = lock(map);
                let new = !map.contains_key(key(digest));
                map.entry(key(digest).into()).or_insert(entry);
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
            Store::Memory(map) => Ok(lock(map).remove(key(digest))),
        })
        .flatten()
    }

    /// Notes a use, in memory.
    pub(crate) fn touch(&self, digest: &Digest, now: u64) {
        let mut uses = self.uses();
        if let Some(used) = uses.get_mut(digest) {
            *used = now;
        } else if uses.len() < USES_MAX {
            uses.insert(*digest, now);
            if uses.len() == USES_MAX / 2 {
                self.many_uses.notify_one();
            }
        }
    }

    /// Returns when there are many uses to be written.
    pub(crate) async fn many_uses(&self) {
        self.many_uses.notified().await;
    }

    /// The first blob whose digest begins so, with its latest use.
    pub(crate) fn first(&self, begin: [u8; 8]) -> Option<(Digest, Entry)> {
        let found = self.call(|store| match store {
            Store::Sled(db) => {
                let first = db.scan_prefix(begin).next().transpose()?;
                Ok(first.and_then(|(key, value)| Some((unkey(&key)?, decode(&value)?))))
            }
            Store::Memory(map) => {
                let map = lock(map);
                let from = map.range::<[u8], _>((Bound::Included(&begin[..]), Bound::Unbounded)).next();
                Ok(from.filter(|(key, _)| key.starts_with(&begin)).and_then(|(key, entry)| Some((unkey(key)?, *entry))))
            }
        });
        let (digest, entry) = found.flatten()?;
        let noted = self.uses().get(&digest).copied().unwrap_or_default();
        Some((digest, Entry { used: entry.used.max(noted), ..entry }))
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
                if let Some(entry) = lock(map).get_mut(key(digest)) {
                    *entry = change(*entry);
                }
                Ok(())
            }
        });
    }

    /// Visits every entry, with its latest use: a second or two for a million.
    pub(crate) fn each(&self, mut visit: impl FnMut(Digest, Entry)) {
        let uses = self.uses().clone();
        for shard in 0..=u8::MAX {
            self.each_of(shard, |digest, mut entry| {
                entry.used = uses.get(&digest).copied().unwrap_or_default().max(entry.used);
                visit(digest, entry);
            });
        }
    }

    /// Visits the entries of the digests that begin with this byte, in the order of their bytes.
    pub(crate) fn each_of(&self, shard: u8, mut visit: impl FnMut(Digest, Entry)) {
        #[cfg(test)]
        let mut visit = |digest, entry| {
            self.visited.fetch_add(1, Ordering::Relaxed);
            visit(digest, entry);
        };
        self.call(|store| {
            match store {
                Store::Sled(db) => {
                    for (n, item) in db.scan_prefix([shard]).enumerate() {
                        if n % FREE_EVERY == 0 {
                            free_replaced();
                        }
                        let (key, value) = item?;
                        if let (Some(digest), Some(entry)) = (unkey(&key), decode(&value)) {
                            visit(digest, entry);
                        }
                    }
                }
                Store::Memory(map) => {
                    let map = lock(map);
                    let from = map.range::<[u8], _>((Bound::Included(&[shard][..]), Bound::Unbounded));
                    let of_shard = from.take_while(|(key, _)| key.first() == Some(&shard)).map(|(key, entry)| (key.clone(), *entry));
                    let of_shard = of_shard.collect::<Vec<_>>();
                    // Whoever visits may ask for others.
                    drop(map);
                    for (key, entry) in of_shard {
                        if let Some(digest) = unkey(&key) {
                            visit(digest, entry);
                        }
                    }
                }
            }
            Ok(())
        });
    }

    /// Of so many entries: an index whose log is mostly garbage is built anew at the next start.
    pub(crate) fn judge_size(&self, entries: u64, folder: &Folder) {
        let size = self.call(|store| match store {
            Store::Sled(db) => db.size_on_disk(),
            Store::Memory(_) => Ok(0),
        });
        if size.is_some_and(|size| size > LOG_BYTES_MIN + LOG_BYTES_PER_ENTRY_MAX * entries) {
            tracing::warn!(entries, size, "the log of the index is mostly garbage; the next start builds it anew");
            if let Err(error) = folder.publish(&folder.root().join("index").join(STALE), b"", Durability::Renamed) {
                tracing::error!(%error, "that cannot be noted; remove index/ by hand before the next start");
            }
        }
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

    fn call<T>(&self, call: impl FnOnce(&Store) -> sled::Result<T>) -> Option<T> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        let result = catch_unwind(AssertUnwindSafe(|| call(&store).inspect(|_| free_replaced())));
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

/// Frees here and now what sled has replaced. It leaves that to whoever comes by in a structure without locks, and moka shares it: a
/// hit would free pages of the index that somebody else has written, for milliseconds.
fn free_replaced() {
    crossbeam_epoch::pin().flush();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Opening {
    fn begin(dir: &Path, again: bool) -> Self {
        Self::UnderWay { dir: dir.to_owned(), db: begin(dir), since: Instant::now(), again }
    }
}

/// Opens sled on another thread, so that one which hangs or panics costs a deadline and no more.
fn begin(dir: &Path) -> mpsc::Receiver<Result<sled::Db, String>> {
    let path = dir.to_owned();
    let (sender, receiver) = mpsc::sync_channel(1);
    let open = move || {
        let open = || {
            sweep(&path)?;
            wait_until_free(&path);
            let config = sled::Config::new().path(&path).mode(sled::Mode::LowSpace);
            config.cache_capacity(PAGE_CACHE_BYTES).flush_every_ms(Some(FLUSH_EVERY_MS)).open().map_err(io::Error::from)
        };
        let opened = catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| Err(io::Error::other("opening it panicked")));
        // Nobody listens any more when the deadline has passed.
        let _ = sender.send(opened.map_err(|error| error.to_string()));
    };
    // Without a thread the other end is closed at once.
    let _ = std::thread::Builder::new().name("index-open".into()).spawn(open);
    receiver
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn entry(size: u64, used: u64) -> Entry {
        Entry { size, used, stamp: Stamp { inode: 3, size, mtime: -4, ctime: 5 } }
    }

    /// Waits for it: what is entered before goes to memory.
    fn opened(dir: &Path) -> Index {
        let index = Index::open(dir);
        index.opened();
        index
    }

    #[test]
    fn entries_survive_a_restart_and_uses_are_written_late() {
        let dir = tempfile::tempdir().expect("a folder");
        let digest = Digest::sha256_of(b"x");
        {
            let index = Index::open(dir.path());
            assert_eq!(index.opened(), Opened::Empty);
            assert!(index.put(&digest, entry(7, 1)));
            assert!(!index.put(&digest, entry(7, 1)), "counted once");
            assert!(!index.put_new(&digest, Entry::default()));
            index.touch(&digest, 9);
            assert_eq!(index.get(&digest).expect("known").used, 1);
            index.flush();
        }
        let index = Index::open(dir.path());
        assert_eq!(index.opened(), Opened::Kept);
        assert_eq!(index.get(&digest), Some(entry(7, 9)));
        assert_eq!(index.remove(&digest), Some(entry(7, 9)));
        assert_eq!(index.remove(&digest), None);
    }

    #[test]
    fn what_is_gone_is_not_brought_back_by_a_change() {
        let dir = tempfile::tempdir().expect("a folder");
        for index in [opened(dir.path()), Index::in_memory()] {
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
    fn the_first_that_begins_so_is_found_with_its_latest_use() {
        let dir = tempfile::tempdir().expect("a folder");
        let digest = |last| {
            let mut bytes = [7; 32];
            bytes[31] = last;
            Digest::Sha256(bytes)
        };
        for index in [opened(dir.path()), Index::in_memory()] {
            index.put(&digest(1), entry(7, 1));
            index.put(&digest(2), entry(8, 2));
            index.touch(&digest(1), 9);
            assert_eq!(index.first([7; 8]), Some((digest(1), entry(7, 9))));
            index.remove(&digest(1));
            assert_eq!(index.first([7; 8]), Some((digest(2), entry(8, 2))));
            assert_eq!(index.first([7, 7, 7, 7, 7, 7, 7, 6]), None, "the next one does not begin so");
        }
    }

    #[test]
    fn an_index_that_takes_its_time_to_open_is_empty_until_then_and_loses_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let (known, meanwhile) = (Digest::sha256_of(b"known"), Digest::sha256_of(b"meanwhile"));
        opened(dir.path()).put(&known, entry(7, 1));
        let (open, db) = mpsc::sync_channel(1);
        let index = Index::in_memory();
        *lock(&index.opening) = Opening::UnderWay { dir: dir.path().to_owned(), db, since: Instant::now(), again: false };
        assert_eq!(index.opened_within(Duration::ZERO), None);
        assert_eq!((index.get(&known), index.put(&meanwhile, entry(8, 2))), (None, true));
        open.send(begin(dir.path()).recv().expect("opens")).expect("it waits");
        assert_eq!(index.opened(), Opened::Kept);
        assert_eq!((index.get(&known), index.get(&meanwhile)), (Some(entry(7, 1)), Some(entry(8, 2))));
        assert!(index.is_durable());
    }

    #[test]
    fn an_index_that_is_not_free_yet_is_waited_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let digest = Digest::sha256_of(b"x");
        opened(dir.path()).put(&digest, entry(7, 1));
        // As sled does, and somebody is not done yet with the one before.
        wait_until_free(dir.path());
        let held = fs::File::open(dir.path().join("db")).expect("is there");
        rustix::fs::flock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
        let index = Index::in_memory();
        *lock(&index.opening) = Opening::begin(dir.path(), false);
        assert_eq!(index.opened_within(Duration::from_millis(50)), None);
        drop(held);
        assert_eq!((index.opened(), index.get(&digest)), (Opened::Kept, Some(entry(7, 1))));
    }

    #[test]
    fn what_is_changed_when_it_has_opened_is_not_overwritten_by_what_was_known_before() {
        let dir = tempfile::tempdir().expect("a folder");
        let index = Index::in_memory();
        let digests = (0..2_000_u32).map(|n| Digest::sha256_of(&n.to_le_bytes())).collect::<Vec<_>>();
        for digest in &digests {
            assert!(index.put(digest, entry(7, 1)));
        }
        // The last of those that are moved: time enough for it to be changed too early.
        let last = digests.iter().max_by_key(|digest| key(digest)).expect("some");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !index.is_durable() {
                    std::thread::yield_now();
                }
                index.distrust(last);
            });
            index.adopt(begin(dir.path()).recv().expect("answers").expect("opens"));
        });
        assert!(!index.get(last).expect("known").is_vouched_for(), "a file that cannot be read is trusted again");
        assert!(digests.iter().all(|digest| index.get(digest).is_some()));
    }

    #[test]
    fn one_whose_log_is_garbage_is_built_anew_at_the_next_start() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(root.path()).expect("opens");
        let (dir, digest) = (root.path().join("index"), Digest::sha256_of(b"x"));
        {
            let index = Index::open(&dir);
            index.put(&digest, entry(7, 1));
            index.judge_size(1, &folder);
            assert!(!dir.join(STALE).exists(), "it is small");
            folder.publish(&dir.join(STALE), b"", Durability::Renamed).expect("writes");
        }
        let index = Index::open(&dir);
        assert_eq!((index.opened(), index.get(&digest), index.is_durable()), (Opened::Empty, None, true));
        assert!(!dir.join(STALE).exists());
    }

    #[test]
    fn uses_are_remembered_within_bounds() {
        let index = Index::in_memory();
        let digest = |n: usize| Digest::sha256_of(&n.to_le_bytes());
        (0..USES_MAX + 10).for_each(|n| index.touch(&digest(n), 1));
        index.touch(&digest(0), 2);
        let uses = index.uses();
        assert_eq!((uses.len(), uses.get(&digest(0)).copied()), (USES_MAX, Some(2)));
    }

    #[test]
    fn a_half_written_snapshot_is_swept_away() {
        let dir = tempfile::tempdir().expect("a folder");
        let digest = Digest::sha256_of(b"x");
        {
            let index = opened(dir.path());
            index.put(&digest, entry(7, 1));
            index.flush();
        }
        fs::write(dir.path().join("snap.FFFFFFFFFFFFFFFF.generating"), "").expect("writes");
        let index = Index::open(dir.path());
        assert_eq!(index.opened(), Opened::Kept);
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
        let index = Index::open(&dir);
        assert_eq!(index.opened(), Opened::Empty);
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
        let index = Index::open(&dir);
        index.opened();
        let digest = Digest::sha256_of(b"x");
        assert!(index.put(&digest, entry(7, 1)));
        assert_eq!(index.get(&digest), Some(entry(7, 1)));
        let mut seen = 0;
        index.each(|_, entry| seen += entry.size);
        assert_eq!(seen, 7);
    }
}
