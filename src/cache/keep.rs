//! Keeping and forgetting: manifests, tags and links, and the count of what is held.

use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::blobs::{BlobFile, Blobs, total_bytes};
use super::disk::{Call, Disk, probe_of};
use super::flight::Flights;
use super::folder::{Durability, Folder, sync_dir};
use super::hot::{Hot, Links};
use super::index::{Entry, Index};
use super::owed::Owed;
use super::pins::Pins;
use super::quarantine::Quarantine;
use super::repos::Repos;
use super::space::Space;
use super::withheld::Withheld;
use super::{Cache, Config, FolderError, HeldManifest, Inner, MaxSize, named_by, tag_known_now};
use super::{boot, clock};
use crate::observe::Metrics;
use crate::oci::{Digest, Manifest, MediaType, Repository, Tag};

/// How often the uses of blobs are written to the index: what a crash may forget of the order of eviction.
const FLUSH_USES_EVERY: Duration = Duration::from_secs(30);

/// The file that says that the last run wrote its index before it ended, and how many bytes are held by it: an index that
/// does not add up to them was damaged since, or is another.
const CLEAN: &str = "CLEAN";

impl Cache {
    /// Opens the data folder; the count of what is held goes on in the background. Blocks: call it before serving.
    pub fn open(config: &Config, metrics: Metrics, tasks: TaskTracker, stop: CancellationToken) -> Result<Self, FolderError> {
        let _opened = complain_unless_opened(config);
        let last_written = clock::last_written(&config.dir);
        let folder = Folder::open(&config.dir)?;
        clock::tell_of_a_jump(last_written, config.tag_life);
        let total = total_bytes(folder.root()).unwrap_or(u64::MAX);
        let max = match config.max_size {
            MaxSize::Bytes(bytes) => bytes,
            MaxSize::Percent(percent) => total / 100 * u64::from(percent),
        };
        let clean = take_clean(folder.root());
        let index = folder.root().join("index");
        boot::forget_what_a_dead_host_knew(&folder, &index, clean.is_some(), boot::this());
        let index = Index::open(&index);
        let space = Space::new(max, folder.root().to_owned(), total, metrics.clone());
        let disk = Disk::new(config.disk_patience, metrics.clone(), stop.clone(), probe_of(folder.clone()));
        let repos = Repos::new(folder.clone(), space.beside().clone());
        let cache = Self(Arc::new(Inner {
            blobs: Blobs::new(folder.clone()),
            withheld: Withheld::new(repos.clone()),
            repos,
            quarantine: Quarantine::new(folder.root().join("quarantine"), max, space.beside().clone()),
            folder,
            index,
            hot: Hot::new(config.memory),
            flights: Flights::on(disk.clone()),
            disk,
            owed: Owed::default(),
            pins: Pins::default(),
            space,
            tag_life: config.tag_life,
            count: super::Count::default(),
            evicting: tokio::sync::Mutex::new(()),
            oldest: std::sync::Mutex::default(),
            complete: AtomicBool::new(false),
            metrics,
            tasks,
            stop,
        }));
        cache.count_in_background(clean);
        cache.flush_in_background();
        cache.patrol_in_background(config.patrol);
        Ok(cache)
    }

    /// Writes what is only in memory. When all work is `done`, the count of the files included, the next start believes the
    /// index.
    pub fn close(&self, done: bool) {
        let inner = &*self.0;
        inner.index.flush();
        let held = format!("{}\n", inner.space.held());
        if done
            && inner.complete.load(Ordering::Acquire)
            && inner.index.is_durable()
            && let Err(error) = inner.folder.publish(&inner.folder.root().join(CLEAN), held.as_bytes(), Durability::Synced)
        {
            tracing::warn!(%error, "the clean stop cannot be noted; the next start counts its files again");
        }
    }

    fn flush_in_background(&self) {
        let cache = self.clone();
        self.0.tasks.spawn(async move {
            let mut every = tokio::time::interval(FLUSH_USES_EVERY);
            let soon = async |every: &mut tokio::time::Interval| {
                tokio::select! {
                    _ = every.tick() => {}
                    () = cache.0.index.many_uses() => {}
                }
            };
            while cache.0.stop.run_until_cancelled(soon(&mut every)).await.is_some() {
                let cache = cache.clone();
                // A panic in there is the index's own, and caught there.
                let _ = tokio::task::spawn_blocking(move || cache.0.index.flush_uses()).await;
            }
        });
    }

    /// A held blob was verified in the state in which it was opened. Blocks.
    pub(crate) fn trust(&self, file: &BlobFile) {
        let entry = Entry { size: file.stamp.size, used: now(), stamp: file.stamp };
        self.enter(&file.digest, entry, || self.0.space.found(entry.size));
    }

    /// A held blob does not hash to its name: it is moved to `quarantine/` and counted. Says whether it was still there.
    /// Blocks.
    pub(crate) fn set_aside(&self, bad: &BlobFile) -> bool {
        let (inner, digest) = (&*self.0, &bad.digest);
        inner.hot.forget(digest);
        match inner.blobs.quarantine(bad) {
            Ok(true) => {}
            // Somebody else was faster, and counted it.
            Ok(false) => return false,
            Err(error) => {
                tracing::error!(%digest, %error, "the bad blob cannot be moved to quarantine/; it is removed");
                if let Err(error) = inner.blobs.remove(digest) {
                    tracing::error!(%digest, %error, "the bad blob cannot be removed either; it is not served");
                    inner.blobs.shun(digest);
                }
            }
        }
        inner.metrics.verify_failed();
        tracing::error!(%digest, "a blob on disk does not hash to its name; it is moved to quarantine/ and fetched again. Check the disk");
        self.forget(digest);
        if let Err(error) = inner.quarantine.trim() {
            tracing::error!(%error, "quarantine/ cannot be bounded");
        }
        true
    }

    /// A held blob cannot be read: what is known of its state counts no more. Blocks.
    pub(super) fn distrust(&self, digest: &Digest) {
        self.0.hot.forget(digest);
        self.0.index.distrust(digest);
    }

    /// Forgets a blob whose file somebody removed. For the holder of its permit: nobody commits it meanwhile.
    pub(super) fn forget_vanished(&self, digest: &Digest) {
        if matches!(self.0.blobs.open(digest), Ok(None)) {
            self.forget(digest);
        }
    }

    pub(super) fn touch(&self, digest: &Digest) {
        self.0.index.touch(digest, now());
    }

    /// Holds a verified manifest for a repository in memory, and shows what it names: it can be served from now on.
    pub(crate) async fn hold_manifest(&self, repository: &Repository, digest: &Digest, manifest: &Manifest, bytes: &[u8]) -> HeldManifest {
        let bytes = self.0.hot.hold_content(digest, bytes);
        self.0.hot.hold_manifest(repository, digest, &manifest.media_type);
        let (cache, owner, named) = (self.clone(), repository.clone(), named_by(digest, manifest));
        let show = move || {
            let links = cache.links(&owner);
            links.lock().unwrap_or_else(PoisonError::into_inner).extend(named);
            cache.0.hot.links_grew(&owner, &links);
        };
        let _ = self.0.disk.ask(Call::Look, show).await;
        HeldManifest { bytes, media_type: manifest.media_type.clone() }
    }

    /// The upstream says that a tag points here now.
    pub(crate) async fn keep_tag(&self, repository: &Repository, tag: &Tag, digest: &Digest) {
        let known = tag_known_now(*digest);
        let before = self.0.hot.tag(repository, tag);
        self.0.hot.hold_tag(repository, tag, Some(known));
        let moved = before.is_none_or(|before| before.record.digest != *digest);
        let durability = if moved { Durability::Synced } else { Durability::Renamed };
        let (cache, repository, tag) = (self.clone(), repository.clone(), tag.clone());
        let write = move || {
            if let Err(error) = cache.0.repos.set_tag(&repository, &tag, &known.record, durability) {
                tracing::error!(%repository, %tag, %error, "a tag cannot be stored; it is kept in memory");
            }
        };
        let _ = self.0.disk.ask(Call::Write, write).await;
    }

    /// The upstream says that a tag is gone.
    pub(crate) async fn drop_tag(&self, repository: &Repository, tag: &Tag) {
        self.0.hot.hold_tag(repository, tag, None);
        let (cache, repository, tag) = (self.clone(), repository.clone(), tag.clone());
        let remove = move || {
            if let Err(error) = cache.0.repos.remove_tag(&repository, &tag) {
                tracing::error!(%repository, %tag, %error, "a tag that is gone upstream cannot be removed");
            }
        };
        let _ = self.0.disk.ask(Call::Write, remove).await;
    }

    /// The upstream showed a blob in a repository. With `durable` that is written down even where a held manifest names it.
    pub(crate) async fn link_blob(&self, repository: &Repository, digest: &Digest, durable: bool) {
        let (cache, repository, digest) = (self.clone(), repository.clone(), *digest);
        let link = move || {
            let links = cache.links(&repository);
            let new = match links.lock().unwrap_or_else(PoisonError::into_inner).entry(digest) {
                Vacant(entry) => {
                    entry.insert(0);
                    true
                }
                Occupied(_) => false,
            };
            if new {
                cache.0.hot.links_grew(&repository, &links);
            } else if !durable {
                return;
            }
            if let Err(error) = cache.0.repos.set_blob(&repository, &digest) {
                tracing::error!(%repository, %digest, %error, "a blob's link cannot be stored; the upstream is asked again after a restart");
            }
        };
        let _ = self.0.disk.ask(Call::Write, link).await;
    }

    /// What a repository shows, from its manifests. Blocks.
    pub(super) fn links(&self, repository: &Repository) -> Links {
        self.0.hot.links_or(repository, || self.read_links(repository))
    }

    fn read_links(&self, repository: &Repository) -> HashMap<Digest, u64> {
        let inner = &*self.0;
        let failed = |error: io::Error| {
            tracing::error!(%repository, %error, "the links of a repository cannot be read; the upstream is asked instead");
            Vec::new()
        };
        let mut shown = HashMap::new();
        for digest in inner.repos.manifests(repository).unwrap_or_else(failed) {
            let Some(bytes) = self.load_small(&digest) else { continue };
            let media_type = inner.repos.manifest(repository, &digest).ok().flatten();
            if let Ok(manifest) = Manifest::parse(&bytes, media_type.as_ref().map(MediaType::as_str)) {
                shown.extend(named_by(&digest, &manifest));
            }
        }
        for digest in inner.repos.blobs(repository).unwrap_or_else(failed) {
            shown.entry(digest).or_insert(0);
        }
        shown
    }
}

/// Says so when the start takes longer than a disk may, which would else be silence. What is given back ends it.
fn complain_unless_opened(config: &Config) -> mpsc::Sender<()> {
    let (opened, waiting) = mpsc::channel();
    let (dir, patience) = (config.dir.clone(), config.disk_patience);
    let wait = move || {
        if waiting.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::error!(dir = %dir.display(), ?patience, "the data folder is not open yet, and the start waits for it. Check that its disk answers");
        }
    };
    // Without a thread there is no complaint, and that is all.
    let _ = std::thread::Builder::new().name("open-watch".into()).spawn(wait);
    opened
}

/// How many bytes the last run noted as held when it ended properly. The note is for one start.
fn take_clean(root: &std::path::Path) -> Option<u64> {
    let path = root.join(CLEAN);
    let noted = std::fs::read_to_string(&path).ok();
    std::fs::remove_file(&path).ok()?;
    // After a power cut the word of an earlier run would be taken for this one's.
    sync_dir(root).ok()?;
    noted?.trim().parse().ok()
}

/// The size that a repository's manifests say a digest has, 0 where they do not; nothing when its links do not have it.
pub(super) fn shown_size(links: &Links, digest: &Digest) -> Option<u64> {
    links.lock().unwrap_or_else(PoisonError::into_inner).get(digest).copied()
}

/// Milliseconds since 1970. A clock that is wrong disturbs the order of eviction and nothing else.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}
