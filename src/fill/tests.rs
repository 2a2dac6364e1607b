//! Fills against a scripted source: what the upstream, the disk and the readers can do wrong, in one process and without
//! a network.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::sync::Mutex;

use futures_util::stream;
use http_body::Frame;
use http_body_util::StreamBody;

use tokio::time::Instant;

use super::*;
use crate::cache::{Config, Found, MaxSize, Reader};

/// What a body does next.
enum Act {
    Bytes(Bytes),
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
        let config = Config { dir: dir.path().to_owned(), max_size: MaxSize::Bytes(max_size), memory: 1 << 20 };
        let cache = Cache::open(&config, metrics.clone(), tasks.clone(), stop.clone()).expect("opens");
        let limits = Limits { tries: 3, ..Limits::default() };
        let world = Self { dir, context: Context { cache, metrics, tasks, stop, limits } };
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
        while self.context.cache.arriving() > 0 {
            tokio::task::yield_now().await;
        }
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

#[tokio::test(start_paused = true)]
async fn an_upstream_that_only_trickles_is_left_for_a_better_connection() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([
        Ok((size(&content), 0, then(pieces(&content.slice(..100_000), 50_000), Act::Trickle(content.slice(100_000..), 1_000)))),
        Ok((size(&content), 220_000, pieces(&content.slice(220_000..), 50_000))),
    ]);
    let began = Instant::now();
    let growing = world.start(&digest, &script).await;
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    // The first minute had a good start.
    assert_eq!((script.asked(), began.elapsed().as_secs()), (vec![0, 220_000], 120));
    assert_eq!(*script.blamed.lock().expect("not poisoned"), [Blame::Stuck]);
    world.check().await;
    assert!(world.held(&digest).await);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_trickles_for_ever_is_given_up_in_minutes() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    for rate in [1, 1_000] {
        let trickle = |from: usize| Ok((size(&content), from as u64, vec![Act::Trickle(content.slice(from..), rate)]));
        let minute = usize::try_from(60 * rate).expect("small");
        let script = Script::new((0..4).map(|n| trickle(n * minute)));
        let began = Instant::now();
        let growing = world.start(&digest, &script).await;
        assert!(matches!(read(growing.reader(0, None).expect("reads")).await, Err(Failure::Timeout)));
        assert_eq!((script.asked().len(), began.elapsed().as_secs()), (3, 180));
        world.check().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_line_is_never_cut() {
    let world = World::new(1 << 30).await;
    let content = content(20 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, vec![Act::Trickle(content.clone(), 10 << 10)]))]);
    let began = Instant::now();
    world.start(&digest, &script).await.whole().await.expect("whole");
    assert_eq!((script.asked(), began.elapsed().as_secs()), (vec![0], 2048));
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_not_taken_for_a_slow_upstream() {
    let world = World::new(1 << 20).await;
    let content = content(8 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, pieces(&content, 4 << 10)))]);
    let growing = world.start(&digest, &script).await;
    let mut reader = growing.reader(0, None).expect("reads");
    let began = Instant::now();
    // A little more than the least that a reader of a window must take, which is more than the least for an upstream: but
    // whatever it is, it is not the upstream that is measured.
    while let Some(bytes) = reader.next().await.expect("bytes") {
        tokio::time::sleep(Duration::from_secs_f64(bytes.len() as f64 / 5_000.0)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(1_000), "{:?}", began.elapsed());
    assert_eq!(script.asked(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_limit_in_the_middle_is_waited_for_and_what_is_here_stays() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    let limited = |seconds| Err(Failure::RateLimited(Duration::from_secs(seconds)));
    let start = || Ok((size(&content), 0, then(pieces(&content.slice(..200_000), 50_000), Act::Lost)));
    let rest = || Ok((size(&content), 200_000, pieces(&content.slice(200_000..), 50_000)));
    let script = Script::new([start(), limited(60), limited(60), rest()]);
    let began = Instant::now();
    let growing = world.start(&digest, &script).await;
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    assert_eq!(script.asked(), [0, 200_000, 200_000, 200_000]);
    assert!((120..136).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    world.check().await;

    // But not for ever.
    let digest = Digest::sha256_of(b"another");
    let script = Script::new([start(), limited(60), limited(60), limited(60), rest()]);
    let growing = world.start(&digest, &script).await;
    assert!(matches!(read(growing.reader(0, None).expect("reads")).await, Err(Failure::RateLimited(_))));
    assert_eq!(script.asked(), [0, 200_000, 200_000, 200_000]);
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn wrong_bytes_that_nobody_saw_are_asked_for_at_every_other_place() {
    let world = World::new(1 << 30).await;
    let (wrong, right) = (Bytes::from(vec![7; 10_000]), content(10_000));
    let digest = Digest::sha256_of(&right);
    let answer = |content: &Bytes| Ok((size(content), 0, pieces(content, 7_000)));
    for (elsewhere, asked) in [(false, 2), (true, 4)] {
        let mut script = Script::new([answer(&wrong), answer(&wrong), answer(&wrong), answer(&right)]);
        script.elsewhere = elsewhere;
        let growing = world.start(&digest, &script).await;
        let got = read(growing.reader(0, None).expect("reads")).await;
        assert_eq!((got.is_ok_and(|got| got == right), script.asked().len()), (elsewhere, asked));
        world.check().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_announced_length_that_is_too_long_is_found_out_by_the_hash() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    for last in [None, Some(Act::Lost), Some(Act::Silent)] {
        let mut acts = pieces(&content, 50_000);
        acts.extend(last);
        let script = Script::new([Ok((Some(500_001), 0, acts))]);
        let growing = world.start(&digest, &script).await;
        // Whoever was told so gets no clean end; whoever comes next gets the blob.
        assert!(matches!(read(growing.reader(0, Some(500_001)).expect("reads")).await, Err(Failure::Corrupt)));
        world.check().await;
        assert!(world.held(&digest).await, "it is the blob all the same");
        assert_eq!(script.asked(), [0]);
        fs::remove_file(world.path(&digest)).expect("removes");
        assert!(!world.held(&digest).await);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_has_no_more_is_asked_twice_more_and_not_in_haste() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    for last in [None, Some(Act::Lost)] {
        let start = then(pieces(&content.slice(..300_000), 50_000), Act::Lost);
        let nothing = |last: &Option<Act>| Ok((size(&content), 300_000, last.iter().map(|_| Act::Lost).collect()));
        let script = Script::new([Ok((size(&content), 0, start)), nothing(&last), nothing(&last), nothing(&last), nothing(&last)]);
        let began = Instant::now();
        let growing = world.start(&digest, &script).await;
        assert!(matches!(read(growing.reader(0, None).expect("reads")).await, Err(Failure::Unavailable)));
        assert_eq!(script.asked(), [0, 300_000, 300_000, 300_000]);
        assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
        world.check().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_breaks_off_after_every_byte_is_not_asked_for_ever() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    let byte = |at: usize| Ok((size(&content), at as u64, vec![Act::Bytes(content.slice(at..=at)), Act::Lost]));
    let script = Script::new((0..100).map(byte));
    let growing = world.start(&digest, &script).await;
    assert!(matches!(read(growing.reader(0, None).expect("reads")).await, Err(Failure::Unavailable)));
    assert_eq!(script.asked(), [0, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_body_without_a_length_is_where_the_hash_or_a_manifest_says() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    let part = |from: usize, to: usize| pieces(&content.slice(from..to), 50_000);
    // Cut twice, and nobody but a manifest knows; the second answer knows the whole size.
    let script = Script::new([
        Ok((None, 0, part(0, 200_000))),
        Ok((None, 200_000, part(200_000, 300_000))),
        Ok((size(&content), 300_000, part(300_000, 500_000))),
    ]);
    let growing = world.start(&digest, &script.clone().expecting(&content)).await;
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    assert_eq!(script.asked(), [0, 200_000, 300_000]);
    world.check().await;
    fs::remove_file(world.path(&digest)).expect("removes");

    // A manifest that is wrong spoils nothing, whichever way.
    for wrong in [499_999, 600_000] {
        let mut script = Script::new([Ok((None, 0, part(0, 500_000)))]);
        script.expected = Some(wrong);
        assert!(!world.held(&digest).await);
        let growing = world.start(&digest, &script).await;
        assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
        assert_eq!(script.asked(), [0]);
        world.check().await;
        fs::remove_file(world.path(&digest)).expect("removes");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_contradicts_the_manifest_is_asked_for_once_more_and_then_left_to_the_hash() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    let page = || Ok((Some(10), 0, vec![Act::Bytes(content.slice(5..15))]));
    let right = || Ok((size(&content), 0, pieces(&content, 50_000)));
    let script = Script::new([page(), right()]).expecting(&content);
    let growing = world.start(&digest, &script).await;
    assert_eq!(growing.opened().await.expect("opens"), size(&content));
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    assert_eq!(*script.blamed.lock().expect("not poisoned"), [Blame::Wrong]);
    world.check().await;
    fs::remove_file(world.path(&digest)).expect("removes");

    // It is the manifest that is wrong: nobody is told a size that may be taken back.
    let mut script = Script::new([right(), Ok((size(&content), 0, vec![Act::Trickle(content.clone(), 250_000)]))]);
    script.expected = Some(7);
    let growing = world.start(&digest, &script).await;
    assert_eq!(growing.opened().await.expect("opens"), None);
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    assert_eq!(script.asked(), [0, 0]);
    world.check().await;
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

#[tokio::test]
async fn a_blob_of_unknown_size_evicts_no_more_than_its_share_or_what_a_manifest_says() {
    let mib = 1 << 20;
    let large = content(12 * mib);
    let digest = Digest::sha256_of(&large);
    // A cache of 8 MiB that is full, and a blob larger than that whose size nobody says, or a manifest does; and one that
    // would fit. A little more is evicted than is needed, so that it is one blob more.
    for (len, expected, kept, stays) in [(12, false, false, 5), (12, true, false, 8), (3, true, true, 4), (1, false, true, 5)] {
        let world = World::new(8 * mib as u64).await;
        let small = (0..8_u8).map(|n| Bytes::from(vec![n; mib])).collect::<Vec<_>>();
        for content in &small {
            let script = Script::new([Ok((size(content), 0, pieces(content, 500_000)))]);
            world.start(&Digest::sha256_of(content), &script).await.whole().await.expect("whole");
            world.settle().await;
        }
        let content = large.slice(..len * mib);
        let digest = if content.len() == large.len() { digest } else { Digest::sha256_of(&content) };
        let mut script = Script::new([Ok((None, 0, pieces(&content, 100_000)))]);
        script.expected = size(&content).filter(|_| expected);
        let growing = world.start(&digest, &script).await;
        assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
        world.check().await;
        let mut held = 0;
        for content in &small {
            held += usize::from(world.held(&Digest::sha256_of(content)).await);
        }
        assert_eq!((held, world.held(&digest).await), (stays, kept), "{len} MiB, expected: {expected}");
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
async fn a_window_that_nobody_can_join_any_more_does_not_linger() {
    let world = World::new(1 << 20).await;
    let content = content(30 << 20);
    let digest = Digest::sha256_of(&content);
    let script = || Script::new([Ok((size(&content), 0, pieces(&content, 100_000)))]);
    let first = world.start(&digest, &script()).await;
    let mut reader = first.reader(0, None).expect("reads");
    let mut read = 0;
    while read < 10 << 20 {
        read += reader.next().await.expect("bytes").expect("some").len();
    }
    // A later range joins it; the start is another's business, and then nobody finds the first.
    assert!(matches!(world.context.cache.blob_from(&digest, 25 << 20).await, Found::Growing(found) if found.is(&first)));
    let permit = world.permit(&digest).await;
    drop(reader);
    let began = Instant::now();
    assert!(matches!(first.whole().await, Err(Failure::Abandoned)));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    drop(permit);
    world.check().await;
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
        fill.store = Store::File(world.context.cache.admit(opened.size.expect("sized")).await.expect("room").writing_to(file));
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
