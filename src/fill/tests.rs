//! Fills against a scripted source: what the upstream, the disk and the readers can do wrong, in one process and without
//! a network.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::sync::Mutex;

use futures_util::stream;
use http_body::Frame;
use http_body_util::StreamBody;

use super::*;
use crate::cache::{Config, Found, MaxSize, Reader};

/// What a body does next.
enum Act {
    Bytes(Bytes),
    /// The connection is lost.
    Lost,
    /// Nothing comes any more.
    Silent,
}

/// What a source answers.
type Answer = Result<(Option<u64>, u64, Vec<Act>), Failure>;

/// A source that answers as it is told, and notes what it is asked.
#[derive(Clone)]
struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<u64>>>,
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self { answers: Arc::new(Mutex::new(answers.into_iter().collect())), asked: Arc::default() }
    }

    fn asked(&self) -> Vec<u64> {
        self.asked.lock().expect("not poisoned").clone()
    }
}

impl Source for Script {
    async fn open(&mut self, offset: u64) -> Result<Opened, Failure> {
        self.asked.lock().expect("not poisoned").push(offset);
        let answer = self.answers.lock().expect("not poisoned").pop_front();
        let (size, start, acts) = answer.unwrap_or(Err(Failure::Unavailable))?;
        let body = stream::unfold(acts.into_iter(), |mut acts| async move {
            let frame = match acts.next()? {
                Act::Bytes(bytes) => Ok(Frame::data(bytes)),
                Act::Lost => Err("lost".into()),
                Act::Silent => std::future::pending().await,
            };
            Some((frame, acts))
        });
        Ok(Opened { size, start, body: Box::pin(StreamBody::new(body)) })
    }
}

/// A cache in a folder of its own, and what a fill needs.
struct World {
    dir: tempfile::TempDir,
    context: Context,
}

impl World {
    async fn new(max_size: u64) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (metrics, tasks, stop) = (Metrics::new(), TaskTracker::new(), CancellationToken::new());
        let config = Config {
            dir: dir.path().to_owned(),
            max_size: MaxSize::Bytes(max_size),
            memory: 1 << 20,
            patrol: 0,
            tag_life: std::time::Duration::ZERO,
        };
        let cache = Cache::open(&config, metrics.clone(), tasks.clone(), stop.clone()).expect("opens");
        let limits = Limits { tries: 3, ..Limits::default() };
        let world = Self { dir, context: Context { cache, metrics, tasks, stop, limits } };
        // Else the first blob waits for the count, and a paused clock runs on meanwhile.
        drop(world.context.cache.admit(Some(0)).await);
        world
    }

    async fn permit(&self, digest: &Digest) -> Permit {
        match self.context.cache.blob(digest).await {
            Found::Missing(permit) => permit,
            other => panic!("{other:?}"),
        }
    }

    async fn start(&self, digest: &Digest, script: &Script) -> Growing {
        start(self.permit(digest).await, script.clone(), self.context.clone())
    }

    /// Until every fill is over and committed.
    async fn settle(&self) {
        while self.context.cache.arriving() > 0 {
            tokio::task::yield_now().await;
        }
    }

    async fn held(&self, digest: &Digest) -> bool {
        !matches!(self.context.cache.blob(digest).await, Found::Missing(_))
    }

    /// What must hold whenever nothing arrives: no temporary files, and the account is that of the files.
    async fn check(&self) {
        self.settle().await;
        assert_eq!(fs::read_dir(self.dir.path().join("tmp")).expect("reads").count(), 0, "temporary files are left");
        let mut on_disk = 0;
        for shard in fs::read_dir(self.dir.path().join("blobs/sha256")).expect("reads") {
            for file in fs::read_dir(shard.expect("a shard").path()).expect("reads") {
                let path = file.expect("a file").path();
                let name = path.file_name().expect("named").to_string_lossy().into_owned();
                let bytes = fs::read(&path).expect("reads");
                assert!(Digest::parse(&format!("sha256:{name}")).expect("a digest").is_of(&bytes), "a file does not hash to its name");
                on_disk += bytes.len() as u64;
            }
        }
        assert_eq!(self.context.cache.fullness().0, on_disk, "the account is wrong");
    }
}

/// Bytes that repeat, but on no boundary of anything.
fn content(size: usize) -> Bytes {
    let some = (0..65_521_usize).map(|n| u8::try_from((n ^ n >> 8) & 0xFF).expect("a byte")).collect::<Vec<_>>();
    some.repeat(size / some.len() + 1)[..size].to_vec().into()
}

fn pieces(content: &Bytes, piece: usize) -> Vec<Act> {
    (0..content.len()).step_by(piece).map(|at| Act::Bytes(content.slice(at..content.len().min(at + piece)))).collect()
}

fn then(mut acts: Vec<Act>, last: Act) -> Vec<Act> {
    acts.push(last);
    acts
}

fn size(content: &Bytes) -> Option<u64> {
    content.len().try_into().ok()
}

async fn read(mut reader: Reader) -> Result<Vec<u8>, Failure> {
    let mut all = Vec::new();
    while let Some(bytes) = reader.next().await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_in_every_way_is_resumed_and_paid_once() {
    let world = World::new(1 << 30).await;
    let content = content(1 << 20);
    let digest = Digest::sha256_of(&content);
    let part = |from: usize, to: usize| pieces(&content.slice(from..to), 30_000);
    let script = Script::new([
        Ok((size(&content), 0, then(part(0, 100_000), Act::Lost))),
        Ok((size(&content), 100_000, then(part(100_000, 300_000), Act::Silent))),
        Err(Failure::Timeout),
        // Short, and ends as if it were whole.
        Ok((None, 300_000, part(300_000, 400_000))),
        // The whole again.
        Ok((size(&content), 0, part(0, 1 << 20))),
    ]);
    let growing = world.start(&digest, &script).await;
    let reader = growing.reader(0, None).expect("reads");
    assert!(read(reader).await.expect("whole") == content);
    assert_eq!(script.asked(), [0, 100_000, 300_000, 300_000, 400_000]);
    world.check().await;
    assert!(world.held(&digest).await);
}

#[tokio::test(start_paused = true)]
async fn no_progress_is_given_up_and_frees_the_digest() {
    let world = World::new(1 << 30).await;
    let content = content(200_000);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, then(pieces(&content.slice(..150_000), 50_000), Act::Lost)))]);
    let growing = world.start(&digest, &script).await;
    assert!(matches!(read(growing.reader(0, None).expect("reads")).await, Err(Failure::Unavailable)));
    assert_eq!(script.asked(), [0, 150_000, 150_000, 150_000]);
    world.check().await;
    assert!(!world.held(&digest).await);
}

#[tokio::test]
async fn wrong_bytes_never_end_cleanly_and_are_not_kept() {
    let world = World::new(1 << 30).await;
    for sized in [true, false] {
        let digest = Digest::sha256_of(b"something else");
        let content = content(500_000);
        let script = Script::new([Ok((size(&content).filter(|_| sized), 0, pieces(&content, 70_000)))]);
        let growing = world.start(&digest, &script).await;
        assert!(matches!(read(growing.reader(0, None).expect("reads")).await, Err(Failure::Corrupt)));
        world.check().await;
        assert!(!world.held(&digest).await);
    }
}

#[tokio::test]
async fn small_wrong_bytes_are_asked_for_anew_and_leave_nothing_in_the_file() {
    let world = World::new(1 << 30).await;
    let (wrong, right) = (content(60_000), content(10_000));
    let digest = Digest::sha256_of(&right);
    // Nobody says a size: the wrong one is longer.
    let script = Script::new([Ok((None, 0, pieces(&wrong, 7_000))), Ok((None, 0, pieces(&right, 7_000)))]);
    let growing = world.start(&digest, &script).await;
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == right);
    world.check().await;
    assert!(world.held(&digest).await);
}

#[tokio::test]
async fn what_does_not_fit_is_passed_through() {
    let world = World::new(1 << 20).await;
    let content = content(20 << 20);
    let digest = Digest::sha256_of(&content);
    for size in [size(&content), None] {
        let script = Script::new([Ok((size, 0, pieces(&content, 100_000)))]);
        let growing = world.start(&digest, &script).await;
        assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
        world.check().await;
        assert!(!world.held(&digest).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_delays_the_others_once() {
    let world = World::new(1 << 20).await;
    let content = content(30 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, pieces(&content, 100_000)))]);
    let growing = world.start(&digest, &script).await;
    let mut stuck = growing.reader(0, None).expect("reads");
    let began = Instant::now();
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    assert!(began.elapsed() < world.context.limits.stall * 2, "{:?}", began.elapsed());
    assert!(matches!(stuck.next().await, Err(Failure::Behind)));
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn a_late_reader_of_a_later_range_keeps_a_window_going() {
    let world = World::new(1 << 20).await;
    let content = content(30 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, pieces(&content, 100_000)))]);
    let growing = world.start(&digest, &script).await;
    let mut first = growing.reader(0, None).expect("reads");
    first.next().await.expect("bytes");
    drop(first);
    tokio::time::sleep(world.context.limits.stall / 2).await;
    let range = growing.reader(20 << 20, Some(21 << 20)).expect("reads");
    assert!(read(range).await.expect("the range") == content.slice(20 << 20..21 << 20));
}

#[tokio::test(start_paused = true)]
async fn a_window_that_nobody_reads_is_given_up() {
    let world = World::new(1 << 20).await;
    let content = content(30 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, pieces(&content, 100_000)))]);
    let growing = world.start(&digest, &script).await;
    assert!(matches!(growing.whole().await, Err(Failure::Abandoned)));
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_of_a_window_is_not_taken_for_a_silent_upstream() {
    let mut world = World::new(1 << 20).await;
    world.context.limits.silence = Duration::from_secs(2);
    let content = content(8 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, pieces(&content, 200_000)))]);
    let growing = world.start(&digest, &script).await;
    let mut reader = growing.reader(0, None).expect("reads");
    while let Some(_bytes) = reader.next().await.expect("bytes") {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(script.asked(), [0], "the upstream was asked again for what it was sending");
}

/// A file that takes so many bytes and refuses the next.
fn file_of(bytes: u64) -> Arc<File> {
    let file = rustix::fs::memfd_create("small", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("creates");
    rustix::fs::ftruncate(&file, bytes).expect("grows");
    rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::GROW).expect("seals");
    Arc::new(File::from(file))
}

#[tokio::test]
async fn a_disk_that_refuses_at_any_byte_breaks_no_reader() {
    let world = World::new(1 << 30).await;
    for takes in [0, 1, 400_000, 5 << 20] {
        let content = content(10 << 20);
        let digest = Digest::sha256_of(&content);
        let script = Script::new([Ok((size(&content), 0, pieces(&content, 100_000)))]);
        let permit = world.permit(&digest).await;
        let growing = permit.growing();
        let mut fill = Fill::new(permit, script.clone(), world.context.clone());
        let file = file_of(takes);
        let reader = tokio::spawn(read(growing.reader(0, None).expect("reads")));
        let opened = fill.source.open(0).await.expect("opens");
        fill.size = opened.size;
        fill.permit.writer().open(opened.size, Some(file.clone()));
        fill.store = Store::File(world.context.cache.admit(opened.size).await.expect("room").writing_to(file));
        fill.take_all(opened.body).await.expect("goes on");
        fill.commit().await;
        assert!(reader.await.expect("runs").expect("whole") == content);
        world.check().await;
        assert!(!world.held(&digest).await);
    }
}

#[tokio::test]
async fn a_stop_fails_the_readers_and_leaves_nothing() {
    let world = World::new(1 << 30).await;
    let content = content(1 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, then(pieces(&content.slice(..500_000), 50_000), Act::Silent)))]);
    let growing = world.start(&digest, &script).await;
    let mut reader = growing.reader(0, None).expect("reads");
    reader.next().await.expect("bytes");
    world.context.stop.cancel();
    assert!(matches!(read(reader).await, Err(Failure::Abandoned)));
    world.check().await;
    world.context.tasks.close();
    world.context.tasks.wait().await;
}

#[tokio::test]
async fn a_blob_that_rotted_is_fetched_again_and_nobody_notices() {
    let world = World::new(1 << 30).await;
    let content = content(300_000);
    let digest = Digest::sha256_of(&content);
    let answer = || Ok((size(&content), 0, pieces(&content, 50_000)));
    let script = Script::new([answer(), answer()]);
    world.start(&digest, &script).await.whole().await.expect("whole");
    world.settle().await;
    let hex = digest.hex();
    fs::write(world.dir.path().join("blobs/sha256").join(&hex[..2]).join(&hex), vec![0; 300_000]).expect("writes");
    let growing = world.start(&digest, &script).await;
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    assert_eq!(script.asked(), [0, 0]);
    world.check().await;
    assert!(world.held(&digest).await);
}

#[tokio::test]
async fn a_cache_emptied_by_hand_goes_on_keeping() {
    let world = World::new(1 << 30).await;
    let content = content(300_000);
    let digest = Digest::sha256_of(&content);
    let answer = || Ok((size(&content), 0, pieces(&content, 50_000)));
    let script = Script::new([answer(), answer()]);
    for _ in 0..2 {
        world.start(&digest, &script).await.whole().await.expect("whole");
        world.check().await;
        assert!(world.held(&digest).await);
        for folder in ["blobs/sha256", "tmp"] {
            for entry in fs::read_dir(world.dir.path().join(folder)).expect("reads") {
                fs::remove_dir_all(entry.expect("an entry").path()).expect("removes");
            }
        }
        fs::remove_dir(world.dir.path().join("tmp")).expect("removes");
    }
    assert_eq!(script.asked(), [0, 0]);
}
