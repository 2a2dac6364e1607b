//! The patrol: reads and hashes everything that is held, slowly and for ever, so that rot is found by us and not by a client;
//! and on its way sweeps out the tags and links that lead to nothing (`sweep`), which it does when it reads nothing, too.
//!
//! What nobody has verified since the host went down comes first, and at a quicker rate (`survey`).
//!
//! Promises: it reads no more than `cache.patrol` bytes a second otherwise; a file that does not hash to its name is set aside as one
//! that is found on serving, and fetched again when it is asked for; a file that is evicted, replaced or arriving meanwhile
//! is no finding. It takes no part in the order of eviction, holds nobody's file for longer than a step, leaves the
//! kernel's memory of files to the clients, ends no server, and ends with it at once.
//!
//! A round visits the shards of `blobs/` in order. How far it is stands in the file `PATROL`, written once a shard, so that
//! a host that is switched off every night gets to the end too: from a random start the last few files would be a matter of
//! luck. It is only a hint: without it a round begins anew, and what it costs to lose it is some reading.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::Advice;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::blobs::BlobFile;
use super::count::SHARDS;
use super::flight::Role;
use super::folder::{Durability, Stamp};
use super::index::Entry;
use super::keep::now;
use super::repos::Record;
use super::{Cache, pool};
use crate::observe;
use crate::oci::{Algorithm, Digest, Hasher};

mod survey;

/// At most one round in this time: rot is a matter of weeks, and a small cache need not be read all day.
pub(super) const ROUND_MIN: Duration = Duration::from_secs(24 * 60 * 60);

/// Bytes read in one go, at most: a quarter of a second of the rate, so that a file that was evicted is let go soon.
const STEP_MAX: u64 = 1 << 20;
const STEP_MIN: u64 = 64 << 10;

/// What opening a file or listing a folder counts for, in bytes: a disk with a head could read that in the time it takes to
/// get there. So a million tiny files are no storm of opens.
const OPEN_COSTS_BYTES: u64 = 256 << 10;

/// What looking at a link counts for: a block of a folder.
const LINK_COSTS_BYTES: u64 = 4 << 10;

/// The pace of the sweep when blobs are not read, in bytes a second: sixteen tags a second.
const SWEEP_RATE: u64 = 4 << 20;

/// When so many in a row cannot be read it is the disk that fails, and not they: the patrol lets it be for a while.
const FAILURES_MAX: u32 = 8;
const FAILED_REST: Duration = Duration::from_secs(10 * 60);

/// Where a round stands, from run to run.
const POSITION: &str = "PATROL";

/// Where a round stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Position {
    /// When it began, in seconds since 1970.
    began: u64,
    /// Shards that are done; all of them when it has ended.
    done: u16,
    /// When the last one ended, in seconds since 1970; 0 is never.
    ended: u64,
}

struct Patrol {
    cache: Cache,
    told: observe::Patrol,
    pace: Pace,
    position: Position,
    /// That could not be read, in a row.
    failures: u32,
}

/// How fast. What it is late it does not catch up with.
struct Pace {
    rate: u64,
    due: Instant,
}

/// What became of looking at a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    /// It hashes to its name.
    Sound,
    /// It does not, and was set aside.
    Rotten,
    /// It was evicted, replaced or touched meanwhile, or somebody else looks at it: not our business this time.
    Gone,
    /// The disk does not give it.
    Unreadable,
}

impl Cache {
    /// Starts the patrol, which reads so many bytes of blobs a second; at 0 it reads none.
    pub(super) fn patrol_in_background(&self, rate: u64) {
        let (cache, stop) = (self.clone(), self.0.stop.clone());
        self.0.tasks.spawn(async move {
            let patrol = Patrol::new(cache, if rate == 0 { SWEEP_RATE } else { rate });
            match rate {
                0 => stop.run_until_cancelled(patrol.sweep_only()).await,
                _ => stop.run_until_cancelled(patrol.walk()).await,
            }
        });
    }

    /// A file was hashed and is what it should be. That is no use of the blob. Blocks.
    fn found_sound(&self, file: &BlobFile) {
        let inner = &*self.0;
        match inner.index.get(&file.digest) {
            Some(entry) if entry.stamp == file.stamp => return,
            Some(entry) if entry.size == file.size() => return inner.index.verified(&file.digest, entry.stamp, file.stamp),
            // The index is wrong about it: it is counted anew.
            Some(_) => self.forget(&file.digest),
            None => {}
        }
        let entry = Entry { size: file.size(), used: now(), stamp: file.stamp };
        self.enter_new(&file.digest, entry, || inner.space.found(entry.size));
        // Whoever evicts removes the file first and the entry then: if that was before ours, ours goes too.
        if !inner.blobs.path(&file.digest).exists() {
            self.forget(&file.digest);
        }
    }

    /// A file was hashed and is not what it should be: it is set aside, unless it was replaced meanwhile. Blocks.
    fn found_rotten(&self, file: &BlobFile) -> Seen {
        // Whoever fetches or verifies it knows better, and waits as long as the permit is ours.
        let Role::Writer(_permit) = self.0.flights.join(&file.digest, 0) else { return Seen::Gone };
        // A good one in its place would have to be verified again if it were moved there and back.
        let is_there = matches!(self.0.blobs.open(&file.digest), Ok(Some(current)) if current.stamp == file.stamp);
        if is_there && self.set_aside(file) { Seen::Rotten } else { Seen::Gone }
    }
}

impl Patrol {
    fn new(cache: Cache, rate: u64) -> Self {
        let told = cache.0.metrics.patrol().clone();
        let pace = Pace { rate, due: Instant::now() };
        Self { cache, told, pace, position: Position::default(), failures: 0 }
    }

    /// Round after round; whoever calls it drops it at the stop.
    async fn walk(mut self) -> Infallible {
        // The start has its own reading to do, and until it is done the index does not know every file.
        while !self.cache.0.space.counted().await {}
        self.survey().await;
        self.recall().await;
        loop {
            self.sweep().await;
            while self.position.done < SHARDS {
                let files = self.shard(self.position.done).await;
                self.position.done += 1;
                if self.position.done == SHARDS {
                    self.position.ended = seconds_now();
                    self.told.round();
                }
                self.tell();
                if files > 0 || self.position.done == SHARDS {
                    self.note().await;
                }
            }
            tokio::time::sleep(self.position.rest(seconds_now())).await;
            self.position = Position { began: seconds_now(), done: 0, ended: self.position.ended };
            self.tell();
        }
    }

    async fn sweep_only(mut self) -> Infallible {
        while !self.cache.0.space.counted().await {}
        loop {
            self.sweep().await;
            tokio::time::sleep(ROUND_MIN).await;
        }
    }

    /// Counts what lies beside the blobs, and removes what of it leads to nothing.
    async fn sweep(&mut self) {
        let cache = self.cache.clone();
        let census = move || {
            cache.0.quarantine.trim()?;
            cache.0.repos.census(&cache.0.stop)
        };
        let (repositories, mut removed) = (self.ask(census).await.unwrap_or_else(|error| unlisted(&error)), 0);
        for repository in repositories {
            let (cache, of) = (self.cache.clone(), repository.clone());
            let records = self.ask(move || cache.0.repos.records(&of)).await.unwrap_or_else(|error| unlisted(&error));
            self.pace.pay(OPEN_COSTS_BYTES).await;
            for record in records {
                let cost = if matches!(record, Record::Tag(_)) { OPEN_COSTS_BYTES } else { LINK_COSTS_BYTES };
                let (cache, of) = (self.cache.clone(), repository.clone());
                if self.change(move || cache.sweep(&of, &record)).await == Some(true) {
                    self.told.swept();
                    removed += 1;
                }
                self.pace.pay(cost).await;
            }
            let cache = self.cache.clone();
            self.change(move || cache.0.repos.remove_empty_dirs(&repository)).await;
        }
        removed += self.sweep_marks().await;
        if removed > 0 {
            tracing::info!(removed, "tags, links and marks that led to nothing held were removed");
        }
    }

    async fn sweep_marks(&mut self) -> u32 {
        if !self.cache.withholds_anything() {
            return 0;
        }
        let (cache, mut removed) = (self.cache.clone(), 0);
        for digest in self.ask(move || cache.0.repos.marks()).await.unwrap_or_else(|error| unlisted(&error)) {
            let cache = self.cache.clone();
            if self.change(move || cache.sweep_mark(&digest)).await == Some(true) {
                self.told.swept();
                removed += 1;
            }
            self.pace.pay(LINK_COSTS_BYTES).await;
        }
        removed
    }

    fn tell(&self) {
        self.told.at(f64::from(self.position.done) / f64::from(SHARDS));
        if self.position.ended > 0 {
            self.told.last_ended(UNIX_EPOCH + Duration::from_secs(self.position.ended));
        }
    }

    /// Looks at every file whose digest begins with this byte; says how many there were.
    async fn shard(&mut self, shard: u16) -> usize {
        let mut files = 0;
        for algorithm in Algorithm::ALL {
            let cache = self.cache.clone();
            let list = move || list(&cache, algorithm, shard);
            let listed = self.ask(list).await;
            self.pace.pay(OPEN_COSTS_BYTES).await;
            let digests = match listed {
                Ok(digests) => digests,
                // Somebody removed the folder, and all that was in it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    tracing::error!(%error, shard = format!("{}/{shard:02x}", algorithm.as_str()), "the patrol cannot list a folder of blobs/. Check the disk");
                    self.failed().await;
                    continue;
                }
            };
            files += digests.len();
            for digest in digests {
                self.file(digest).await;
            }
        }
        files
    }

    async fn file(&mut self, digest: Digest) {
        let seen = match self.look(digest).await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::error!(%digest, %error, "the patrol cannot read a blob; it is verified before it is served again. Check the disk");
                Seen::Unreadable
            }
        };
        match seen {
            Seen::Gone => {}
            Seen::Sound => {
                self.told.hashed();
                self.failures = 0;
            }
            Seen::Rotten => {
                self.told.hashed();
                self.told.found();
                self.failures = 0;
            }
            Seen::Unreadable => {
                self.told.found();
                let cache = self.cache.clone();
                let distrust = move || {
                    // A copy in memory was verified, and may be all that is left.
                    cache.0.hot.close(&digest);
                    cache.0.index.distrust(&digest);
                };
                self.change(distrust).await;
                self.failed().await;
            }
        }
    }

    /// Reads and hashes one file, step by step.
    async fn look(&mut self, digest: Digest) -> io::Result<Seen> {
        let cache = self.cache.clone();
        let opened = self.ask(move || cache.0.blobs.open(&digest)).await;
        self.pace.pay(OPEN_COSTS_BYTES).await;
        let Some(file) = opened? else { return Ok(Seen::Gone) };
        // Else the kernel would read ahead what is then not taken for ours.
        let _ = rustix::fs::fadvise(&*file.file, 0, None, Advice::Random);
        let (size, mut paid, mut offset) = (file.size(), OPEN_COSTS_BYTES, 0);
        let (file, mut hasher) = (std::sync::Arc::new(file), digest.hasher());
        while offset < size {
            let (step, of) = (self.pace.step().min(size - offset), file.clone());
            // Nobody waits for this at the stop.
            let done = tokio::task::spawn_blocking(move || hash_step(&of, offset, step, hasher)).await.map_err(io::Error::other)?;
            let Some((read, back)) = done? else { return Ok(Seen::Gone) };
            hasher = back;
            self.told.read(read);
            offset += read;
            if read < step {
                break;
            }
            // The first bytes are paid for by the opening.
            self.pace.pay(offset.saturating_sub(paid)).await;
            paid = paid.max(offset);
        }
        let sound = offset == size && hasher.finish() == digest;
        let cache = self.cache.clone();
        let judge = move || match () {
            // Even the last step took a while.
            () if !is_as_opened(&file) => Seen::Gone,
            () if sound => {
                cache.found_sound(&file);
                Seen::Sound
            }
            () => cache.found_rotten(&file),
        };
        Ok(self.change(judge).await.unwrap_or(Seen::Gone))
    }

    /// Runs on a thread that may wait for the disk, with the cache in hand: the stop waits for it.
    async fn change<T: Send + 'static>(&self, change: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        // It ends without a result only when the runtime does.
        self.cache.0.tasks.spawn_blocking(change).await.ok()
    }

    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        self.change(ask).await.unwrap_or_else(|| Err(io::ErrorKind::Interrupted.into()))
    }

    async fn failed(&mut self) {
        self.failures += 1;
        if self.failures >= FAILURES_MAX {
            self.failures = 0;
            tracing::error!(rest = ?FAILED_REST, "the patrol can read nothing any more and rests. Check the disk");
            tokio::time::sleep(FAILED_REST).await;
        }
    }

    /// Goes on where the last run stopped.
    async fn recall(&mut self) {
        let path = self.cache.0.folder.root().join(POSITION);
        let read = self.ask(move || fs::read(path)).await;
        let position = read.ok().and_then(|text| serde_json::from_slice::<Position>(&text).ok());
        let begin = Position { began: seconds_now(), ..Position::default() };
        self.position = position.filter(|position| position.done <= SHARDS).unwrap_or(begin);
        self.tell();
    }

    async fn note(&self) {
        let (cache, position) = (self.cache.clone(), self.position);
        let write = move || {
            let path = cache.0.folder.root().join(POSITION);
            let text = serde_json::to_vec(&position)?;
            cache.0.folder.publish(&path, &text, Durability::Renamed)
        };
        if let Some(Err(error)) = self.change(write).await {
            tracing::debug!(%error, "the patrol's position cannot be noted");
        }
    }
}

impl Position {
    /// How long to wait before the next round begins. A clock that was set meanwhile costs one round's wait and no more.
    fn rest(&self, now: u64) -> Duration {
        ROUND_MIN.saturating_sub(Duration::from_secs(now.saturating_sub(self.began)))
    }
}

impl Pace {
    /// Bytes to read in one go.
    fn step(&self) -> u64 {
        (self.rate / 4).clamp(STEP_MIN, STEP_MAX)
    }

    /// Waits as long as so many bytes take.
    async fn pay(&mut self, bytes: u64) {
        // A step at a byte a second is two weeks: no sum of times overflows.
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        self.due = self.due.max(Instant::now()) + takes;
        tokio::time::sleep_until(self.due).await;
    }
}

fn unlisted<T>(error: &io::Error) -> Vec<T> {
    tracing::error!(%error, "a folder of repos/ or quarantine/ cannot be listed; it is left for the next round. Check the disk");
    Vec::new()
}

/// The blobs of one shard. Files with other names are passed over: `millpond verify` tells of them.
fn list(cache: &Cache, algorithm: Algorithm, shard: u16) -> io::Result<Vec<Digest>> {
    let dir = cache.0.folder.root().join("blobs").join(algorithm.as_str()).join(format!("{shard:02x}"));
    let mut digests = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let digest = name.to_str().and_then(|hex| Digest::parse(&format!("{}:{hex}", algorithm.as_str())).ok());
        digests.extend(digest);
    }
    Ok(digests)
}

/// Hashes the next bytes of a file; nothing when it is not the file any more that was opened.
fn hash_step(file: &BlobFile, offset: u64, bytes: u64, mut hasher: Hasher) -> io::Result<Option<(u64, Hasher)>> {
    // One that was evicted holds its space as long as it is open.
    if !is_as_opened(file) {
        return Ok(None);
    }
    let mut buffer = vec![0; usize::try_from(bytes.min(STEP_MAX)).unwrap_or_default()];
    let read = pool::read_aside(&file.file, offset, &mut buffer)?;
    hasher.update(&buffer[..read]);
    Ok(Some((read as u64, hasher)))
}

/// Whether nobody has evicted, replaced or changed the file since it was opened.
fn is_as_opened(file: &BlobFile) -> bool {
    Stamp::of(&file.file).is_ok_and(|stamp| stamp == file.stamp)
}

fn seconds_now() -> u64 {
    now() / 1_000
}

#[cfg(test)]
mod tests;
