use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::REPO;
use crate::support::client::{get, pull};
use crate::support::inject::{Call, Event, Injector, Verdict};
use crate::support::mirror::Builder;
use crate::support::patience::within;
use crate::support::registry::{Image, Pushed, Registry};
use crate::support::{KIB, MIB};

/// Within this a mirror serves what it holds, whatever became of its index.
const BUDGET: Duration = Duration::from_secs(5);

/// What may become of an index, and how.
type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 9] = [
    ("nothing", |_| {}),
    ("removed", |index| fs::remove_dir_all(index).unwrap()),
    ("emptied", |index| each(index, |file| fs::remove_file(file).unwrap())),
    ("noise", |index| each(index, |file| fs::write(file, noise(fs::metadata(file).unwrap().len().max(64))).unwrap())),
    ("truncated", |index| each(index, |file| truncate(file, 2))),
    ("cut to nothing", |index| each(index, |file| fs::write(file, "").unwrap())),
    ("the log flipped in the middle", |index| flip(&index.join("db"))),
    ("a half-written snapshot", |index| fs::write(index.join("snap.FFFFFFFFFFFFFFFF.generating"), "").unwrap()),
    ("a file in its place", |index| {
        fs::remove_dir_all(index).unwrap();
        fs::write(index, "not a folder").unwrap();
    }),
];

fn each(dir: &Path, change: impl Fn(&Path)) {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    files.for_each(|file| change(&file));
}

fn noise(len: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(len);
    (0..len.min(MIB)).map(|_| rng.u8(..)).collect()
}

fn truncate(file: &Path, part: u64) {
    let file = fs::OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(file.metadata().unwrap().len() / part).unwrap();
}

fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    bytes.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x5A);
    fs::write(file, bytes).unwrap();
}

/// A folder that holds an image of large and small blobs, and the image; its upstream is gone.
async fn held(clean: bool) -> (Builder, Pushed) {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([MIB, 200 * KIB, 100]));
    let program = Builder::new().upstream("docker.io", &plain).spawn().await;
    pull(&program.url(), REPO, "latest").await.unwrap();
    program.settled().await;
    // The tag follows its manifest to the disk; no client waits for either, so a kill might come before.
    let tag = program.settings().data().join("repos/docker.io").join(REPO).join("_tags/latest");
    within("the tag on the disk", async {
        while !tag.exists() {
            get(program.admin("/healthz")).send().await;
        }
    })
    .await;
    let settings = if clean { program.terminate().await.1 } else { program.kill().await };
    settings.audit().assert_sound().assert_holds(image.blobs().map(|blob| &blob.digest).chain([&image.digest]));
    (settings, image)
}

#[tokio::test]
async fn whatever_became_of_the_index_the_mirror_serves_at_once() {
    let (mut settings, image) = held(true).await;
    for (what, damage) in DAMAGES {
        damage(&settings.data().join("index"));
        let began = Instant::now();
        let program = settings.spawn().await;
        let pulled = pull(&program.url(), REPO, "latest").await;
        let took = began.elapsed();
        assert_eq!(pulled.map(|pulled| pulled.digest), Ok(image.digest), "{what}");
        assert!(took < BUDGET, "{what}: {took:?}");
        // And counts what it holds: the limit would be passed otherwise.
        let held = program.settings().audit().assert_sound().bytes;
        let wrong = async || program.metric("millpond_cache_bytes", &[]).await.to_string() != held.to_string();
        within("every blob to be counted", async { while wrong().await {} }).await;
        let (status, back) = program.terminate().await;
        assert_eq!(status.code(), Some(0), "{what}");
        settings = back;
        settings.audit().assert_sound().assert_temporary(0);
    }
}

#[tokio::test]
async fn a_killed_process_leaves_an_index_that_is_used_or_rebuilt() {
    let (settings, image) = held(false).await;
    fs::write(settings.data().join("index/snap.FFFFFFFFFFFFFFFF.generating"), [0; 100]).unwrap();
    let began = Instant::now();
    let program = settings.spawn().await;
    assert_eq!(pull(&program.url(), REPO, "latest").await.map(|pulled| pulled.digest), Ok(image.digest));
    assert!(began.elapsed() < BUDGET, "{:?}", began.elapsed());
}

/// A step of the start, and its calls.
type Step = (&'static str, fn(&Event) -> bool);

/// What the start does with all that is held: the more that is, the longer it takes.
const LONG: [Step; 2] = [
    ("the opening of the index", |event| event.path.starts_with("index/")),
    ("the count of the files", |event| event.call == Call::Open && event.path == "blobs/sha256/00"),
];

#[tokio::test]
async fn a_start_waits_for_nothing_that_grows_with_what_is_held() {
    for (what, takes_for_ever) in LONG {
        let (settings, image) = held(false).await;
        let injector = Injector::new(&settings.data());
        injector.arm(move |event| if takes_for_ever(event) { Verdict::Hang } else { Verdict::Pass });
        let began = Instant::now();
        let program = settings.spawn_with(|command| injector.dress(command)).await;
        assert_eq!(pull(&program.url(), REPO, "latest").await.map(|pulled| pulled.digest), Ok(image.digest), "{what}");
        assert!(began.elapsed() < BUDGET, "{what}: {:?}", began.elapsed());
        assert_eq!(get(program.admin("/readyz")).send().await.status, 200, "{what}");
        within(what, async {
            while injector.hung() == 0 {
                get(program.admin("/healthz")).send().await;
            }
        })
        .await;
        injector.release();
        let held = program.settings().audit().assert_sound().bytes;
        let wrong = async || program.metric("millpond_cache_bytes", &[]).await.to_string() != held.to_string();
        within("every blob to be counted", async { while wrong().await {} }).await;
        assert_eq!(program.terminate().await.0.code(), Some(0), "{what}");
    }
}

/// An index that opens well, but knows only a part: of a backup, or cut short by its own repair.
#[tokio::test]
async fn an_index_that_forgot_some_blobs_does_not_let_them_lie_for_ever() {
    let plain = Registry::plain().await;
    plain.image(REPO, "latest", Image::layers([MIB]));
    plain.image(REPO, "later", Image::layers([MIB, 2 * MIB]).seed(2));
    let mirror = Builder::new().upstream("docker.io", &plain).start();
    pull(&mirror.url(), REPO, "latest").await.unwrap();
    mirror.settled().await;
    let settings = mirror.stop().await;
    let (index, copy) = (settings.data().join("index"), settings.data().join("quarantine/index"));
    fs::create_dir(&copy).unwrap();
    each(&index, |file| {
        fs::copy(file, copy.join(file.file_name().unwrap())).unwrap();
    });

    let mirror = settings.start();
    pull(&mirror.url(), REPO, "later").await.unwrap();
    mirror.settled().await;
    let settings = mirror.stop().await;
    fs::remove_dir_all(&index).unwrap();
    fs::rename(&copy, &index).unwrap();

    let mirror = settings.start();
    let held = mirror.settings().audit().assert_sound().bytes;
    within("every blob to be counted", async { while mirror.metric("millpond_cache_bytes", &[]).await.to_string() != held.to_string() {} })
        .await;
}

#[tokio::test]
async fn an_index_that_is_removed_under_a_running_mirror_costs_nothing() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([MIB, 100]));
    let mirror = Builder::new().upstream("docker.io", &plain).start();
    pull(&mirror.url(), REPO, "latest").await.unwrap();
    mirror.settled().await;
    fs::remove_dir_all(mirror.settings().data().join("index")).unwrap();
    let other = plain.image(REPO, "other", Image::layers([MIB]).seed(3));
    assert_eq!(pull(&mirror.url(), REPO, "other").await.map(|pulled| pulled.digest), Ok(other.digest));
    assert_eq!(pull(&mirror.url(), REPO, "latest").await.map(|pulled| pulled.digest), Ok(image.digest));
    mirror.settled().await;
    let settings = mirror.stop().await;
    plain.down().await;
    let again = settings.start();
    for (tag, image) in [("latest", &image), ("other", &other)] {
        assert_eq!(pull(&again.url(), REPO, tag).await.map(|pulled| pulled.digest), Ok(image.digest));
    }
    assert_eq!(get(format!("{}/v2/", again.url())).send().await.status, 200);
}
