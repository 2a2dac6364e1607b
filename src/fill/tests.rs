//! Fills against a scripted source: what the upstream, the disk and the readers can do wrong, in one process and without
//! a network.

mod upstream; // bodies that break off, trickle, lie or are limited
mod window; // what cannot be stored, or only while there is room

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
    /// When the test says so.
    Told(Arc<tokio::sync::Notify>, Bytes),
    /// So many bytes every second.
    Trickle(Bytes, u64),
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
    /// What somebody else says of the size.
    expected: Option<u64>,
    /// Whether there are other places to ask.
    elsewhere: bool,
    blamed: Arc<Mutex<Vec<Blame>>>,
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
        Self { answers, asked: Arc::default(), expected: None, elsewhere: false, blamed: Arc::default() }
    }

    fn expecting(self, content: &Bytes) -> Self {
        Self { expected: size(content), ..self }
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
        let body = stream::unfold(VecDeque::from(acts), |mut acts| async move {
            let frame = match acts.pop_front()? {
                Act::Bytes(bytes) => Ok(Frame::data(bytes)),
                Act::Told(told, bytes) => {
                    told.notified().await;
                    Ok(Frame::data(bytes))
                }
                Act::Trickle(mut bytes, rate) => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let rest = bytes.split_off(bytes.len().min(usize::try_from(rate).expect("small")));
                    if !rest.is_empty() {
                        acts.push_front(Act::Trickle(rest, rate));
                    }
                    Ok(Frame::data(bytes))
                }
                Act::Lost => Err("lost".into()),
                Act::Silent => std::future::pending().await,
            };
            Some((frame, acts))
        });
        Ok(Opened { size, start, body: Box::pin(StreamBody::new(body)) })
    }

    fn expected(&self) -> Option<u64> {
        self.expected
    }

    fn blame(&mut self, blame: Blame) -> bool {
        self.blamed.lock().expect("not poisoned").push(blame);
        self.elsewhere
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
            disk_patience: std::time::Duration::from_secs(10),
            tag_life: std::time::Duration::ZERO,
        };
        let cache = Cache::open(&config, metrics.clone(), tasks.clone(), stop.clone()).expect("opens");
        let limits = Limits { tries: 3, ..Limits::default() };
        let windows = Windows::new(&limits);
        let world = Self { dir, context: Context { cache, metrics, tasks, stop, limits, windows } };
        // Else the first blob waits for the count, and a paused clock runs on meanwhile.
        drop(world.context.cache.admit(0).await);
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
        // What is not kept is removed behind a transfer that failed.
        while self.context.cache.arriving() > 0 || !self.context.metrics.render().contains("millpond_fills_inflight 0\n") {
            tokio::task::yield_now().await;
        }
    }

    /// Bytes that came from sources.
    fn fetched(&self) -> u64 {
        let text = self.context.metrics.render();
        let line = text.lines().find(|line| line.starts_with("millpond_bytes_total") && line.contains("fetched"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("the metric")
    }

    fn path(&self, digest: &Digest) -> std::path::PathBuf {
        let hex = digest.hex();
        self.dir.path().join("blobs/sha256").join(&hex[..2]).join(hex)
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
        fill.store = Store::File(Filed::new(
            world.context.cache.admit(opened.size.expect("sized")).await.expect("room").writing_to(file),
            &world.context,
        ));
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

#[tokio::test(start_paused = true)]
async fn the_first_byte_goes_at_once_a_little_more_in_a_millisecond_and_much_more_at_once() {
    const LITTLE: usize = 1_000;
    let world = World::new(1 << 30).await;
    let (content, told) = (content(4 << 20), Arc::new(tokio::sync::Notify::new()));
    let (little, more) = (content.slice(LITTLE..2 * LITTLE), content.slice(2 * LITTLE..2 << 20));
    let acts = [Act::Bytes(content.slice(..LITTLE)), Act::Told(told.clone(), little), Act::Told(told.clone(), more), Act::Silent];
    let growing = world.start(&Digest::sha256_of(&content), &Script::new([Ok((size(&content), 0, acts.into()))])).await;
    let mut reader = growing.reader(0, None).expect("it grows");
    let began = Instant::now();
    let mut taken = async |upto: usize| {
        let mut at = 0;
        while at < upto {
            at += reader.next().await.expect("bytes").expect("more").len();
        }
        (at, began.elapsed())
    };
    assert_eq!(taken(LITTLE).await, (LITTLE, Duration::ZERO));
    told.notify_one();
    let (bytes, at) = taken(LITTLE).await;
    assert!(bytes == LITTLE && at >= Duration::from_millis(1) && at <= Duration::from_millis(3), "{bytes} bytes after {at:?}");
    told.notify_one();
    // As soon as the batch before is written.
    assert_eq!(taken((2 << 20) - 2 * LITTLE).await.1, at);
}

#[tokio::test]
async fn the_disk_begins_early_with_each_byte_once() {
    use std::os::unix::fs::MetadataExt;
    const STEP: usize = 8 << 20;
    let world = World::new(1 << 30).await;
    let (content, told) = (content(6 * STEP), Arc::new(tokio::sync::Notify::new()));
    let digest = Digest::sha256_of(&content);
    let steps = (0..6).map(|n| Act::Told(told.clone(), content.slice(n * STEP..(n + 1) * STEP))).collect();
    let growing = world.start(&digest, &Script::new([Ok((size(&content), 0, steps))])).await;
    let mut reader = growing.reader(0, None).expect("it grows");
    let mut at = 0;
    for n in 1..=6 {
        told.notify_one();
        // The last bytes of each are held back.
        while at < n * STEP - (64 << 10) {
            at += reader.next().await.expect("bytes").expect("more").len();
        }
    }
    growing.whole().await.expect("arrives");
    world.settle().await;
    let inode = fs::metadata(world.path(&digest)).expect("it is kept").ino();
    let begun = crate::cache::begun(inode);
    assert!(!begun.is_empty());
    let mut next = 0;
    for (from, bytes) in begun {
        assert!(from == next && usize::try_from(bytes).is_ok_and(|bytes| bytes >= STEP), "{bytes} bytes from {from}, and not from {next}");
        next += bytes;
    }
    assert!(usize::try_from(next).is_ok_and(|end| end <= content.len()));
}

#[tokio::test]
async fn the_rest_of_a_large_blobs_place_is_taken_while_it_arrives() {
    use std::os::unix::fs::MetadataExt;
    const MIB: usize = 1 << 20;
    let world = World::new(1 << 30).await;
    let content = content(40 * MIB);
    let acts = [Act::Bytes(content.slice(..9 * MIB)), Act::Silent];
    let _growing = world.start(&Digest::sha256_of(&content), &Script::new([Ok((size(&content), 0, acts.into()))])).await;
    let is_taken = || {
        let arriving = fs::read_dir(world.dir.path().join("tmp")).expect("a folder").flatten();
        arriving.filter_map(|entry| entry.metadata().ok()).any(|file| file.blocks() * 512 >= 40 * MIB as u64)
    };
    let taken = async {
        while !is_taken() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), taken).await.expect("its place");
}
