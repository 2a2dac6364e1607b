//! The cache against its disk: what is removed, changed or unreadable behind its back.

use std::fs;
use std::sync::atomic::Ordering;

use super::*;

fn open(dir: &std::path::Path, max_size: u64, stop: &CancellationToken) -> (Cache, TaskTracker) {
    let tasks = TaskTracker::new();
    let config = Config {
        dir: dir.to_owned(),
        max_size: MaxSize::Bytes(max_size),
        memory: 0,
        patrol: 0,
        disk_patience: Duration::from_secs(10),
        tag_life: Duration::ZERO,
    };
    (Cache::open(&config, Metrics::new(), tasks.clone(), stop.clone()).expect("opens"), tasks)
}

/// Keeps a blob of so many bytes.
pub(super) async fn keep(cache: &Cache, fill: u8, size: usize) -> Digest {
    use std::os::unix::fs::FileExt;
    let bytes = vec![fill; size];
    let digest = Digest::sha256_of(&bytes);
    let kept = cache.admit(size as u64).await.expect("room");
    kept.file().write_all_at(&bytes, 0).expect("writes");
    cache.commit(kept, &digest, size as u64).expect("commits");
    digest
}

#[tokio::test]
async fn a_blob_that_cannot_be_read_is_verified_before_the_next_client_has_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let (cache, _) = open(dir.path(), 1 << 30, &CancellationToken::new());
    let digest = keep(&cache, 1, 100_000).await;
    let Found::Whole(mut blob) = cache.blob(&digest).await else { panic!("it is held") };
    // A folder is the one thing that opens and cannot be read.
    let file = Arc::new(fs::File::open(dir.path()).expect("opens"));
    blob.file = Arc::new(BlobFile::new(digest, file, blob.file.stamp));
    assert_eq!(blob.read_now(0, 10), None, "an error is for the one that may wait");
    assert!(blob.read_blocking(0, 10).is_err());
    let Found::Missing(permit) = cache.blob(&digest).await else { panic!("it is trusted still") };
    assert!(permit.has_suspect());
}

#[tokio::test]
async fn a_blob_that_could_not_be_sent_is_verified_before_the_next_client_has_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let (cache, tasks) = open(dir.path(), 1 << 30, &CancellationToken::new());
    let digest = keep(&cache, 1, 2 << 20).await;
    let Found::Whole(blob) = cache.blob(&digest).await else { panic!("it is held") };
    blob.cannot_be_sent(std::io::ErrorKind::TimedOut);
    assert!(matches!(cache.blob(&digest).await, Found::Whole(_)), "a disk that does not answer says nothing bad of it");
    blob.cannot_be_sent(std::io::ErrorKind::Other);
    let distrusted = async {
        while cache.0.index.get(&digest).expect("known").is_vouched_for() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), distrusted).await.expect("it is trusted still");
    let Found::Missing(permit) = cache.blob(&digest).await else { panic!("it is trusted still") };
    assert!(permit.has_suspect());
    drop(tasks);
}

#[tokio::test]
async fn a_blob_that_is_sent_from_its_mapping_is_not_evicted() {
    let dir = tempfile::tempdir().expect("a folder");
    let (cache, _) = open(dir.path(), 3 << 20, &CancellationToken::new());
    let sent = keep(&cache, 1, 2 << 20).await;
    let Found::Whole(blob) = cache.blob(&sent).await else { panic!("it is held") };
    let piece = blob.mapped_now(4096, 1 << 20).expect("it is in memory");
    assert!(blob.mapped_now(1 << 20, 2 << 20).expect("up to its end").len() == 1 << 20);
    drop(blob);
    // Sockets look no further than its address; a test may.
    assert!(piece.len() == 1 << 20 && piece.iter().all(|&byte| byte == 1));
    assert!(cache.admit(2 << 20).await.is_err(), "there is no room but its own");
    drop(piece);
    keep(&cache, 2, 2 << 20).await;
    assert!(!cache.0.blobs.path(&sent).exists());
}

#[tokio::test]
async fn nothing_is_sent_from_the_page_in_which_a_file_was_cut() {
    let dir = tempfile::tempdir().expect("a folder");
    let (cache, _) = open(dir.path(), 3 << 20, &CancellationToken::new());
    let digest = keep(&cache, 1, 2 << 20).await;
    let Found::Whole(blob) = cache.blob(&digest).await else { panic!("it is held") };
    let has = |offset: u64, len: u64| blob.mapped_now(offset, len).map(|bytes| bytes.len() as u64) == Some(len);
    assert!(has(0, 1 << 20) && has(1 << 20, 1 << 20) && has(5, 5));
    let file = std::fs::OpenOptions::new().write(true).open(cache.0.blobs.path(&digest)).expect("opens");
    // Of that page the mapping shows the rest as zeros.
    file.set_len((2 << 20) - 1).expect("cuts");
    assert!(has(0, 1 << 20) && !has(1 << 20, 1 << 20));
    file.set_len((1 << 20) - 1).expect("cuts");
    assert!(!has(0, 1 << 20) && !has((1 << 20) - 10, 5) && has(0, 512 << 10));
}

#[tokio::test]
async fn a_bad_blob_that_cannot_be_removed_is_not_held() {
    let dir = tempfile::tempdir().expect("a folder");
    let (cache, _) = open(dir.path(), 1 << 30, &CancellationToken::new());
    let digest = keep(&cache, 1, 100_000).await;
    cache.0.blobs.shun(&digest);
    cache.0.hot.forget(&digest);
    let Found::Missing(permit) = cache.blob(&digest).await else { panic!("it is served") };
    assert!(!permit.has_suspect());
    drop(permit);
    keep(&cache, 1, 100_000).await;
    assert!(matches!(cache.blob(&digest).await, Found::Whole(_)));
}

#[tokio::test]
async fn a_file_that_cannot_be_evicted_is_not_asked_for_again_and_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let (cache, _) = open(dir.path(), 300_000, &CancellationToken::new());
    let (stuck, other) = (keep(&cache, 1, 100_000).await, keep(&cache, 2, 100_000).await);
    // Not even root removes a folder as if it were a file.
    let path = cache.0.blobs.path(&stuck);
    fs::remove_file(&path).expect("removes");
    fs::create_dir(&path).expect("creates");
    cache.0.index.touch(&other, u64::MAX);
    keep(&cache, 3, 150_000).await;
    assert!(!cache.0.blobs.path(&other).exists());
    assert!(cache.fullness().0 <= 300_000);
}

#[tokio::test]
async fn evicting_one_after_the_other_is_no_look_at_everything_each_time() {
    const HELD: u8 = 32;
    let dir = tempfile::tempdir().expect("a folder");
    let (cache, _) = open(dir.path(), u64::from(HELD) * 1_000, &CancellationToken::new());
    let mut kept = Vec::new();
    for n in 0..HELD {
        kept.push(keep(&cache, n, 1_000).await);
    }
    let before = cache.0.index.visited.load(Ordering::Relaxed);
    for n in HELD..4 * HELD {
        // The first is the oldest by its commit, and not by its use.
        cache.touch(&kept[0]);
        kept.push(keep(&cache, n, 1_000).await);
        assert!(cache.fullness().0 <= u64::from(HELD) * 1_000);
        assert!(cache.0.blobs.path(&kept[0]).exists(), "it was used last");
        assert!(cache.0.blobs.path(&kept[usize::from(n)]).exists());
    }
    let visited = cache.0.index.visited.load(Ordering::Relaxed) - before;
    // Each look serves as many evictions as there are blobs, and some find their blob used since.
    assert!(visited <= 6 * usize::from(HELD), "{visited} entries were visited to evict {} blobs", 3 * HELD);
    let there = kept.iter().filter(|digest| cache.0.blobs.path(digest).exists()).count() as u64;
    assert_eq!(cache.fullness().0, there * 1_000);
}

#[tokio::test]
async fn what_changes_while_it_is_counted_is_counted_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let (cache, _) = open(dir.path(), 1 << 30, &CancellationToken::new());
    assert!(cache.0.space.counted().await);
    let contents = (0..400_u32).map(u32::to_le_bytes).collect::<Vec<_>>();
    let digests = contents.iter().map(|content| Digest::sha256_of(content)).collect::<Vec<_>>();
    let place = |n: usize| fs::write(cache.0.blobs.path(&digests[n]), contents[n]).expect("writes");
    (0..digests.len()).for_each(place);
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                cache.count(None);
            }
            ended.store(true, Ordering::Release);
        });
        // Some are evicted, some verified, some arrive.
        for n in (0..digests.len()).cycle() {
            if ended.load(Ordering::Acquire) {
                break;
            }
            match n % 3 {
                0 => {
                    cache.0.blobs.remove(&digests[n]).expect("removes");
                    cache.forget(&digests[n]);
                }
                1 => cache.trust(&cache.0.blobs.open(&digests[n]).expect("opens").expect("is there")),
                _ => place(n),
            }
            if n % 3 == 0 && n % 2 == 0 {
                place(n);
                cache.trust(&cache.0.blobs.open(&digests[n]).expect("opens").expect("is there"));
            }
        }
    });
    let (mut indexed, mut entries) = (0, 0);
    cache.0.index.each(|_, entry| (indexed, entries) = (indexed + entry.size, entries + 1));
    assert_eq!(cache.fullness().0, indexed);
    let there = digests.iter().filter(|digest| cache.0.blobs.path(digest).exists()).count();
    assert_eq!(entries, there);
}

#[tokio::test]
async fn what_was_removed_by_hand_is_counted_no_more() {
    let dir = tempfile::tempdir().expect("a folder");
    let (cache, _) = open(dir.path(), 1 << 30, &CancellationToken::new());
    let digest = keep(&cache, 1, 100_000).await;
    fs::remove_file(cache.0.blobs.path(&digest)).expect("removes");
    assert!(matches!(cache.blob(&digest).await, Found::Missing(_)));
    assert_eq!(cache.fullness().0, 0);
}

#[tokio::test]
async fn the_next_start_believes_only_an_index_that_was_held_against_the_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let clean = dir.path().join("CLEAN");
    let stop = CancellationToken::new();
    stop.cancel();
    {
        let (cache, tasks) = open(dir.path(), 1 << 30, &stop);
        tasks.close();
        tasks.wait().await;
        cache.close(true);
        assert!(!clean.exists(), "the count was broken off");
    }
    let (cache, _) = open(dir.path(), 1 << 30, &CancellationToken::new());
    assert!(cache.0.space.counted().await);
    cache.close(false);
    assert!(!clean.exists(), "somebody still writes");
    cache.close(true);
    assert!(clean.exists());
}

#[tokio::test]
async fn what_cannot_be_marked_is_withheld_in_memory_and_not_stored() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().expect("a folder");
    let (cache, _) = open(dir.path(), 1 << 30, &CancellationToken::new());
    let (bytes, registry) = (vec![7; 100_000], crate::oci::Registry::docker_hub());
    let digest = Digest::sha256_of(&bytes);
    assert!(!cache.withholds_anything());
    // Not even root writes into a folder that is a file.
    let marks = dir.path().join("repos/_withheld");
    fs::write(&marks, "").expect("writes");
    assert!(cache.withhold(&digest, None).await && cache.withhold(&digest, Some(&registry)).await);
    assert_eq!(cache.withheld(&digest).await.map(Vec::from_iter), Some(vec![registry.clone()]));
    let kept = cache.admit(bytes.len() as u64).await.expect("room");
    kept.file().write_all_at(&bytes, 0).expect("writes");
    assert!(cache.commit(kept, &digest, bytes.len() as u64).is_err(), "stored without its mark");
    assert!(!cache.0.blobs.path(&digest).exists());
    // The disk has recovered.
    fs::remove_file(&marks).expect("removes");
    keep(&cache, 7, 100_000).await;
    assert_eq!(cache.0.repos.withheld(&digest).expect("reads").map(Vec::from_iter), Some(vec![registry]));
    cache.release(&digest).await;
    assert_eq!(cache.withheld(&digest).await, None);
}

#[tokio::test]
async fn the_place_of_a_large_blob_is_taken_in_two_parts() {
    use std::os::unix::fs::MetadataExt;
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().expect("a folder");
    let (cache, _) = open(dir.path(), 100 * MIB, &CancellationToken::new());
    let taken = |kept: &Kept| kept.file().metadata().expect("is there").blocks() * 512;
    for (size, first) in [(1, 0..MIB), (40 * MIB, 16 * MIB..17 * MIB)] {
        let mut kept = cache.admit(size).await.expect("there is room");
        assert!(first.contains(&taken(&kept)), "{}", taken(&kept));
        let rest = kept.unplaced();
        assert_eq!((rest.clone(), kept.unplaced()), ((size > MIB).then_some(16 * MIB..size), None));
        if let Some(rest) = rest {
            place(kept.file(), rest).expect("there is room");
            assert!(taken(&kept) >= size);
            assert_eq!(kept.file().metadata().expect("is there").len(), 0, "nobody reads what did not arrive");
        }
    }
}
