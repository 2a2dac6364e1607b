//! Adding up what is held, at the start and behind the serving: the index alone where the last run noted what it amounts to,
//! else the index against the files, both ways.
//!
//! Shard by shard, so that memory is that of one shard, however many blobs there are; a file that the index knows is not even
//! looked at, which would cost more than all the rest. What enters or leaves meanwhile is counted once: shards that are done
//! are kept up to date by whoever changes them, those to come are added up later, and of the one in between what changed is
//! looked at again ([`Count`]).
//!
//! Promises: nobody waits for it but those who want to store something; a stop ends it at the next shard; and it ends with
//! every file in the index, or says that it did not.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Instant;

use super::blobs::Listed;
use super::index::{Entry, Opened};
use super::{Cache, Inner};
use crate::oci::Digest;

/// The shards of `blobs/`: each first byte of a digest, of every algorithm.
pub(super) const SHARDS: u16 = 256;

/// How far the count is.
#[derive(Default)]
pub(super) struct Count {
    /// Shards that are done. Held for reading by whoever changes what is held, so that none is done meanwhile.
    done: RwLock<u16>,
    /// What changed in the shard that is being counted.
    changed: Mutex<Vec<Digest>>,
    doubt: Mutex<Doubt>,
}

/// Files whose state no entry vouches for, as they were counted.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct Doubt {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// What the count came to.
#[derive(Default)]
struct Sum {
    entries: u64,
    bytes: u64,
    doubt: Doubt,
    added: u64,
    removed: u64,
    failed: Option<io::Error>,
}

impl Count {
    /// Files whose state no entry vouched for when they were counted.
    pub(super) fn doubt(&self) -> Doubt {
        *self.doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is held, and has that added to or taken from the account where the count does not do it: before another count can begin.
    fn change<T>(&self, digest: &Digest, change: impl FnOnce() -> T, account: impl FnOnce(T)) {
        let done = self.done.read().unwrap_or_else(PoisonError::into_inner);
        let changed = change();
        let shard = u16::from(digest.as_bytes()[0]);
        if shard == *done {
            self.changed.lock().unwrap_or_else(PoisonError::into_inner).push(*digest);
        }
        if shard < *done {
            account(changed);
        }
    }
}

impl Cache {
    /// Enters a blob that is in place; `account` counts its bytes, where that is to be done now.
    pub(super) fn enter(&self, digest: &Digest, entry: Entry, account: impl FnOnce()) {
        self.enter_by(digest, || self.0.index.put(digest, entry), account);
    }

    /// The same, unless it is there.
    pub(super) fn enter_new(&self, digest: &Digest, entry: Entry, account: impl FnOnce()) {
        self.enter_by(digest, || self.0.index.put_new(digest, entry), account);
    }

    fn enter_by(&self, digest: &Digest, is_new: impl FnOnce() -> bool, account: impl FnOnce()) {
        let account = |is_new| {
            if is_new {
                account();
            }
        };
        self.0.count.change(digest, is_new, account);
    }

    /// A blob is gone: what was known of it is dropped.
    pub(super) fn forget(&self, digest: &Digest) {
        let account = |entry: Option<Entry>| {
            if let Some(entry) = entry {
                self.0.space.gone(entry.size);
            }
        };
        self.0.count.change(digest, || self.0.index.remove(digest), account);
    }

    /// Starts the count, which may take long. `noted` is what the last run said is held.
    pub(super) fn count_in_background(&self, noted: Option<u64>) {
        let cache = self.clone();
        self.0.tasks.spawn_blocking(move || cache.count(noted));
    }

    /// Adds up what is held. An index that does not add up to what was noted when it was closed is held against the files.
    pub(super) fn count(&self, noted: Option<u64>) {
        let (inner, began) = (&*self.0, Instant::now());
        let mut noted = noted.filter(|_| inner.index.opened() == Opened::Kept);
        loop {
            // Nobody changes anything between the two.
            let mut done = inner.count.done.write().unwrap_or_else(PoisonError::into_inner);
            *done = 0;
            inner.space.forget();
            drop(done);
            let Some(sum) = self.count_shards(noted.is_none()) else { return };
            // It failed while it was read: what it said so far is not all.
            if inner.index.take_lost() || noted.is_some_and(|noted| noted != sum.bytes) {
                noted = None;
                continue;
            }
            return self.counted(&sum, noted.is_none().then_some(began));
        }
    }

    fn counted(&self, sum: &Sum, rebuilt: Option<Instant>) {
        let inner = &*self.0;
        *inner.count.doubt.lock().unwrap_or_else(PoisonError::into_inner) = sum.doubt;
        if let Some(error) = &sum.failed {
            tracing::error!(%error, "the blobs cannot all be counted; the size limit may be passed until the next start");
        }
        inner.complete.store(sum.failed.is_none(), std::sync::atomic::Ordering::Release);
        if let Some(began) = rebuilt {
            inner.metrics.index_rebuilt();
            let (added, removed, seconds) = (sum.added, sum.removed, began.elapsed().as_secs_f64());
            tracing::info!(added, removed, seconds, "the index was held against the files");
        }
        inner.index.judge_size(sum.entries, &inner.folder);
        inner.space.set_counted();
        self.evict_excess();
    }

    /// Nothing when a stop came.
    fn count_shards(&self, against_files: bool) -> Option<Sum> {
        let (inner, mut sum) = (&*self.0, Sum::default());
        for shard in 0..=u8::MAX {
            if inner.stop.is_cancelled() {
                return None;
            }
            // From here on what changes in this shard is noted.
            let files = against_files.then(|| inner.blobs.list(shard)).transpose().unwrap_or_else(|error| {
                sum.failed = Some(error);
                None
            });
            let mut counted = self.count_shard(shard, files, &mut sum);
            let mut done = inner.count.done.write().unwrap_or_else(PoisonError::into_inner);
            for digest in std::mem::take(&mut *inner.count.changed.lock().unwrap_or_else(PoisonError::into_inner)) {
                recount(inner, &digest, &mut counted);
            }
            let bytes = counted.values().sum::<u64>();
            (sum.entries, sum.bytes) = (sum.entries + counted.len() as u64, sum.bytes + bytes);
            inner.space.found(bytes);
            *done += 1;
        }
        Some(sum)
    }

    /// The sizes of what is held in a shard, after the index was held against its files.
    fn count_shard(&self, shard: u8, files: Option<Vec<Listed>>, sum: &mut Sum) -> HashMap<Digest, u64> {
        let (inner, mut counted, mut missing) = (&*self.0, HashMap::new(), Vec::new());
        let (against_files, mut files) = (files.is_some(), files.unwrap_or_default().into_iter().peekable());
        let mut unknown = Vec::new();
        inner.index.each_of(shard, |digest, entry| {
            // Both are in the order of their bytes.
            while let Some(file) = files.next_if(|file| file.digest.as_bytes() < digest.as_bytes()) {
                unknown.push(file);
            }
            if files.next_if(|file| file.digest == digest).is_none() && against_files {
                missing.push(digest);
            }
            if !entry.is_vouched_for() {
                sum.doubt.add(entry.size);
            }
            counted.insert(digest, entry.size);
        });
        unknown.extend(files);
        for digest in missing {
            // What was committed since the folder was listed is there.
            if inner.blobs.is_gone(&digest) {
                inner.index.remove(&digest);
                counted.remove(&digest);
                sum.removed += 1;
            }
        }
        for (digest, size, used) in super::blobs::measure(unknown) {
            let used = u64::try_from(used).unwrap_or(0).saturating_mul(1_000);
            if inner.index.put_new(&digest, Entry { size, used, ..Entry::default() }) {
                counted.insert(digest, size);
                sum.added += 1;
                sum.doubt.add(size);
            }
        }
        counted
    }
}

/// What became of a blob while its shard was counted.
fn recount(inner: &Inner, digest: &Digest, counted: &mut HashMap<Digest, u64>) {
    counted.remove(digest);
    let Some(entry) = inner.index.get(digest) else { return };
    if inner.blobs.is_gone(digest) {
        inner.index.remove(digest);
    } else {
        counted.insert(*digest, entry.size);
    }
}

impl Doubt {
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_counted_by_whoever_changes_it_or_by_the_count_and_never_by_both() {
        let (count, digest) = (Count::default(), Digest::sha256_of(b"x"));
        let shard = u16::from(digest.as_bytes()[0]);
        // How far the count is, who counts what changes, and whether it is looked at again.
        for (done, at_once, again) in [(shard - 1, false, false), (shard, false, true), (shard + 1, true, false)] {
            *count.done.write().expect("not poisoned") = done;
            let mut counted = false;
            count.change(&digest, || 7, |_| counted = count.done.try_write().is_err());
            assert_eq!(counted, at_once, "{done}: while no other count can begin");
            let changed = std::mem::take(&mut *count.changed.lock().expect("not poisoned"));
            assert_eq!(changed, if again { vec![digest] } else { vec![] }, "{done}");
        }
    }
}
