//! The patrol over a real folder. Time stands still unless everybody waits for it, so that it is what was waited and no more.

use std::os::unix::fs::FileExt;
use std::path::Path;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::cache::tests::keep;
use crate::cache::{Config, Found, MaxSize};
use crate::observe::Metrics;

/// A cache, and what ends it.
struct Place {
    cache: Cache,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Place {
    /// With a patrol that reads nothing.
    async fn open(dir: &Path) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let config = Config {
            dir: dir.to_owned(),
            max_size: MaxSize::Bytes(1 << 30),
            memory: 1 << 20,
            patrol: 0,
            disk_patience: Duration::from_secs(10),
            tag_life: Duration::ZERO,
        };
        let cache = Cache::open(&config, Metrics::new(), tasks.clone(), stop.clone()).expect("opens");
        assert!(cache.0.space.counted().await);
        Self { cache, tasks, stop }
    }

    /// With a patrol at this rate from now on.
    fn patrolled(self, rate: u64) -> Self {
        self.cache.patrol_in_background(rate);
        self
    }

    async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.cache.close(true);
    }

    fn told<T: std::str::FromStr>(&self, name: &str) -> T {
        let text = self.cache.0.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("millpond_{name} "))).expect("it is told");
        line.parse().unwrap_or_else(|_| panic!("{line} is a number"))
    }

    fn count(&self, name: &str) -> u64 {
        self.told(name)
    }

    /// How much of the round is done.
    fn ratio(&self) -> f64 {
        self.told("patrol_round_ratio")
    }

    /// Files hashed, findings, rounds.
    fn seen(&self) -> [u64; 3] {
        ["patrol_files_total", "patrol_findings_total", "patrol_rounds_total"].map(|name| self.count(name))
    }

    /// Lets time pass until something is so.
    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        self.look_again(what, |_| Duration::from_secs(1), so).await;
    }

    async fn look_again(&self, what: &str, after: impl Fn(Duration) -> Duration, so: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        while !so(self) {
            assert!(since.elapsed() < 3 * ROUND_MIN, "three days went by without {what}: {:?}", self.seen());
            tokio::time::sleep(after(since.elapsed())).await;
        }
    }

    async fn round(&self, n: u64) {
        // The longer it takes the less often one looks.
        let after = |waited: Duration| (waited / 64).max(Duration::from_secs(1));
        self.look_again("a round", after, |place| place.count("patrol_rounds_total") >= n).await;
    }

    fn quarantined(&self) -> usize {
        fs::read_dir(self.cache.0.folder.root().join("quarantine")).expect("reads").count()
    }

    /// The file of a blob rots, and nobody has written to it: its state is the one in which it was verified.
    fn rot(&self, digest: &Digest) {
        let path = self.cache.0.blobs.path(digest);
        let file = fs::File::options().read(true).write(true).open(&path).expect("opens");
        let mut byte = [0];
        file.read_exact_at(&mut byte, 50).expect("reads");
        file.write_all_at(&[byte[0] ^ 1], 50).expect("writes");
        self.cache.trust(&self.cache.0.blobs.open(digest).expect("opens").expect("is there"));
    }
}

const MIB: u64 = 1 << 20;

#[expect(clippy::cast_possible_truncation, reason = "0 to 100")]
fn percent(place: &Place) -> i64 {
    (place.ratio() * 100.0) as i64
}

#[tokio::test(start_paused = true)]
async fn what_rots_unnoticed_is_found_without_a_request_and_set_aside() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::open(dir.path()).await;
    let [sound, large, small] =
        [keep(&place.cache, 1, 100_000).await, keep(&place.cache, 2, 200_000).await, keep(&place.cache, 3, 100).await];
    place.rot(&large);
    place.rot(&small);
    assert!(matches!(place.cache.blob(&large).await, Found::Whole(_)), "nothing tells it from a good one");
    let place = place.patrolled(MIB);
    place.round(1).await;
    assert_eq!(place.seen(), [3, 2, 1]);
    assert_eq!((place.count("verify_failures_total"), place.quarantined()), (2, 2));
    assert_eq!(place.cache.fullness().0, 100_000);
    for digest in [large, small] {
        let Found::Missing(permit) = place.cache.blob(&digest).await else { panic!("it is served") };
        assert!(!permit.has_suspect());
    }
    assert!(matches!(place.cache.blob(&sound).await, Found::Whole(_)));
    place.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_held_and_rounds_are_a_day_apart() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::open(dir.path()).await;
    for n in 0..4 {
        keep(&place.cache, n, 3 << 20).await;
    }
    keep(&place.cache, 9, 10).await;
    let begun = Instant::now();
    let place = place.patrolled(MIB);
    place.round(1).await;
    // Each list and each file costs its opening; a large file costs its bytes.
    let costs = (2 * u64::from(SHARDS) + 1) * OPEN_COSTS_BYTES + 4 * (3 << 20);
    let took = begun.elapsed().as_secs_f64();
    let expected = costs as f64 / MIB as f64;
    assert!((expected..expected * 1.1).contains(&took), "{took} s, {expected} were to be");
    assert_eq!(place.count("patrol_bytes_total"), 12 * MIB + 10);
    assert!(place.count("patrol_round_end_timestamp_seconds") > 1_000_000_000);
    place.round(2).await;
    assert!(begun.elapsed() >= ROUND_MIN, "{:?}", begun.elapsed());
    assert_eq!(place.seen(), [10, 0, 2]);
    place.close().await;
}

#[tokio::test(start_paused = true)]
async fn switched_off_it_reads_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::open(dir.path()).await;
    let digest = keep(&place.cache, 1, 100_000).await;
    place.rot(&digest);
    let place = place.patrolled(0);
    tokio::time::sleep(2 * ROUND_MIN).await;
    assert_eq!((place.seen(), place.count("patrol_bytes_total"), percent(&place)), ([0; 3], 0, 0));
    assert!(place.cache.0.blobs.path(&digest).exists() && !dir.path().join(POSITION).exists());
    place.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_evicted_while_it_is_read_is_no_finding_and_is_let_go() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::open(dir.path()).await;
    let digest = keep(&place.cache, 1, 4 << 20).await;
    let path = place.cache.0.blobs.path(&digest);
    // A step a second, and one is done.
    let place = place.patrolled(STEP_MIN);
    place.until("the first bytes", |place| place.count("patrol_bytes_total") > 0).await;
    assert!(place.count("patrol_bytes_total") < MIB);
    place.cache.0.hot.forget(&digest);
    place.cache.0.blobs.remove(&digest).expect("removes");
    place.cache.forget(&digest);
    let gone = format!("{} (deleted)", path.display());
    let is_open = || {
        let files = fs::read_dir("/proc/self/fd").expect("reads");
        files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|target| target.display().to_string() == gone))
    };
    assert!(is_open());
    let since = Instant::now();
    place.until("its end", |_| !is_open()).await;
    assert!(since.elapsed() <= Duration::from_secs(10), "its space was held for {:?}", since.elapsed());
    place.round(1).await;
    assert_eq!((place.seen(), place.quarantined()), ([0, 0, 1], 0));
    assert_eq!((place.cache.0.index.get(&digest), place.cache.fullness().0), (None, 0));
    place.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_arrives_is_no_finding_and_what_has_arrived_is_sound() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::open(dir.path()).await;
    let bytes = vec![7; 300_000];
    let digest = Digest::sha256_of(&bytes);
    let kept = place.cache.admit(300_000).await.expect("room");
    kept.file().write_all_at(&bytes[..1000], 0).expect("writes");
    let place = place.patrolled(MIB);
    place.round(1).await;
    assert_eq!(place.seen(), [0, 0, 1]);
    kept.file().write_all_at(&bytes, 0).expect("writes");
    place.cache.commit(kept, &digest, 300_000).expect("commits");
    place.round(2).await;
    assert_eq!(place.seen(), [1, 0, 2]);
    place.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_file_that_somebody_else_replaces_or_looks_at_is_left_to_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::open(dir.path()).await;
    let digest = keep(&place.cache, 1, 100_000).await;
    place.rot(&digest);
    let bad = place.cache.0.blobs.open(&digest).expect("opens").expect("is there");
    let Role::Writer(permit) = place.cache.0.flights.join(&digest, 0) else { panic!("nobody has it") };
    assert_eq!(place.cache.found_rotten(&bad), Seen::Gone);
    place.cache.set_aside(&bad);
    keep(&place.cache, 1, 100_000).await;
    drop(permit);
    assert_eq!(place.cache.found_rotten(&bad), Seen::Gone);
    assert_eq!(place.quarantined(), 1, "the good one stays");
    assert!(matches!(place.cache.blob(&digest).await, Found::Whole(_)));
    place.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_sound_file_in_an_unknown_state_is_trusted_again_and_is_not_newly_used() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::open(dir.path()).await;
    let [changed, unknown, resized] =
        [keep(&place.cache, 1, 100_000).await, keep(&place.cache, 2, 100_000).await, keep(&place.cache, 3, 100_000).await];
    let index = &place.cache.0.index;
    let before = index.get(&changed).expect("known");
    index.distrust(&changed);
    place.cache.forget(&unknown);
    index.put(&resized, Entry { size: 7, ..Entry::default() });
    let place = place.patrolled(MIB);
    place.round(1).await;
    let index = &place.cache.0.index;
    assert_eq!(index.get(&changed), Some(before));
    for digest in [unknown, resized] {
        let file = place.cache.0.blobs.open(&digest).expect("opens").expect("is there");
        assert_eq!(index.get(&digest).map(|entry| (entry.size, entry.stamp)), Some((100_000, file.stamp)));
    }
    // What the index vouched for when it was counted is for the round.
    assert_eq!(place.seen(), [3, 0, 1]);
    place.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_gives_nothing_is_let_be_and_the_round_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::open(dir.path()).await;
    for n in 0..FAILURES_MAX {
        // It is refused when it is opened.
        std::os::unix::fs::symlink("/dev/null", place.cache.0.blobs.path(&Digest::sha256_of(&n.to_le_bytes()))).expect("links");
    }
    fs::remove_dir_all(dir.path().join("blobs/sha512")).expect("removes");
    fs::remove_dir_all(dir.path().join("blobs/sha256/00")).expect("removes");
    let begun = Instant::now();
    let place = place.patrolled(1 << 40);
    place.round(1).await;
    assert!(begun.elapsed() >= FAILED_REST);
    assert_eq!((place.seen(), place.quarantined()), ([0, FAILURES_MAX.into(), 1], 0));
    place.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_where_the_last_run_was() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::open(dir.path()).await;
    let mut digests = Vec::new();
    for n in 0..20 {
        digests.push(keep(&place.cache, n, 100_000).await);
    }
    let place = place.patrolled(MIB);
    place.until("some files", |place| place.count("patrol_files_total") >= 7).await;
    let (done, before) = (place.ratio(), place.count("patrol_files_total"));
    place.close().await;

    let place = Place::open(dir.path()).await.patrolled(MIB);
    place.until("its memory", |place| place.ratio() > 0.0).await;
    place.round(1).await;
    let in_one_shard = |digest: &&Digest| f64::from(digest.as_bytes()[0]) / 256.0 >= done;
    let (left, files) = (digests.iter().filter(in_one_shard).count() as u64, place.count("patrol_files_total"));
    assert!(left <= 20 - before + 2, "most that was read is not read again");
    assert_eq!(files, left);
    place.close().await;

    // The round has ended: the next is not due before the day is over.
    let place = Place::open(dir.path()).await.patrolled(MIB);
    tokio::time::sleep(ROUND_MIN / 24 * 23).await;
    assert_eq!((place.seen(), percent(&place)), ([0; 3], 100));
    assert!(place.count("patrol_round_end_timestamp_seconds") > 1_000_000_000);
    place.round(1).await;
    place.close().await;

    for noise in ["", "noise", r#"{"began":1,"done":60000,"ended":0}"#] {
        fs::write(dir.path().join(POSITION), noise).expect("writes");
        let place = Place::open(dir.path()).await.patrolled(MIB);
        place.round(1).await;
        assert_eq!(place.seen(), [20, 0, 1], "{noise}");
        place.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_waited_for_by_nobody() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::open(dir.path()).await;
    keep(&place.cache, 1, 100_000).await;
    let place = place.patrolled(1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let since = Instant::now();
    place.close().await;
    assert_eq!(since.elapsed(), Duration::ZERO);
}
