//! Every kind of call on the data folder hanging: whoever waits for it is served all the same, the next do not wait at all, and
//! when the disk answers again everything is as it was.

use futures_util::future::join_all;
use rustix::io::Errno;

use super::{REPO, file_of};
use crate::support::client::{get, pull};
use crate::support::inject::{Event, Injector, Verdict};
use crate::support::mirror::{Builder, Process};
use crate::support::patience::within;
use crate::support::registry::{Blob, Image, Pushed, Registry};
use crate::support::tally::Tally;
use crate::support::{KIB, MIB};

/// What hangs while something is pulled that is held and something that is not: a call's step in words, or all of them. In
/// groups that are tried beside each other.
const STEPS: [&[&str]; 4] = [
    &["create tmp", "allocate tmp", "write tmp", "mkdir _tags", EVERYTHING],
    &["fdatasync tmp", "rename tmp > blobs", "fsync blobs", "rename tmp > _manifests", "rename tmp > _tags"],
    &["open blobs", "read blobs", "read tmp", "read tmp and read blobs", "open _manifests"],
    &["fsync _tags", "mkdir _manifests", "write tmp and remove tmp", "fsync _manifests", EVERYTHING],
];

const EVERYTHING: &str = "everything";

/// What a mirror reads that has just started and remembers nothing.
const COLD: [&str; 7] = ["open _tags", "read _tags", "open _manifests", "read _manifests", "open blobs", "read blobs", EVERYTHING];

/// How long the disk may take here: longer than a busy machine makes a healthy one look like one that hangs.
const PATIENCE: &str = "\"3s\"";

fn hits(step: &str, event: &Event) -> bool {
    step == EVERYTHING || step.split(" and ").any(|step| event.step() == step)
}

fn hanging(step: &'static str) -> impl FnMut(&Event) -> Verdict {
    move |event| if hits(step, event) { Verdict::Hang } else { Verdict::Pass }
}

struct Stage {
    plain: Registry,
    injector: Injector,
    program: Process,
    seed: u64,
}

impl Stage {
    /// With so much memory for manifests and small blobs.
    async fn new(memory: &str) -> Self {
        let plain = Registry::plain().await;
        let settings = Builder::in_memory().upstream("docker.io", &plain).set("cache", "memory", memory).quiet();
        let settings = settings.set("cache", "disk_patience", PATIENCE);
        let injector = Injector::new(&settings.data());
        let program = settings.spawn_with(|command| injector.dress(command)).await;
        Self { plain, injector, program, seed: 0 }
    }

    fn push(&mut self) -> (String, Pushed) {
        self.seed += 1;
        let repository = format!("{REPO}-{}", self.seed);
        let image = self.plain.image(&repository, "latest", Image::layers([3 * MIB, 100_000, 10_000]).seed(self.seed));
        (repository, image)
    }

    async fn pull(&self, (repository, image): &(String, Pushed)) -> Result<(), String> {
        let pulled = within("a pull", Box::pin(pull(&self.program.url(), repository, "latest"))).await?;
        if pulled.digest == image.digest { Ok(()) } else { Err("another image".into()) }
    }

    async fn is_away(&self) -> bool {
        self.program.metric("millpond_disk_overdue", &[]).await > 0.0
    }

    /// Pulls until all of it is on the disk: what came while the disk was away is not kept.
    async fn keep(&self, image: &(String, Pushed)) {
        let data = self.program.settings().data();
        let is_kept = |digest| file_of(&data, digest).exists();
        let link = data.join("repos/docker.io").join(&image.0).join("_manifests/sha256").join(image.1.digest.hex());
        let kept = async {
            while !image.1.blobs().map(|blob| &blob.digest).chain([&image.1.digest]).all(is_kept) || !link.exists() {
                self.pull(image).await.unwrap();
                self.program.settled().await;
            }
        };
        within("an image on the disk", Box::pin(kept)).await;
    }

    /// What is pulled while such calls hang, and then.
    async fn survives(&mut self, step: &'static str) -> Vec<String> {
        let (held, new, next) = (self.push(), self.push(), self.push());
        self.keep(&held).await;
        self.injector.arm(hanging(step));
        let mut failed: Vec<String> =
            join_all([&held, &new, &new, &held].map(|image| self.pull(image))).await.into_iter().filter_map(Result::err).collect();
        // A commit may take longer than a look before anybody calls it late.
        within("the disk to be away", async { while self.injector.hung() > 0 && !self.is_away().await {} }).await;
        let hung = self.injector.hung();
        let told = get(self.program.admin("/readyz")).send().await;
        if hung > 0 && (told.status != 200 || told.text() != "ready, but the disk does not answer\n") {
            failed.push(format!("/readyz: {} {:?}", told.status, told.text()));
        }
        let later = join_all([&held, &new, &next, &next].map(|image| self.pull(image))).await;
        failed.extend(later.into_iter().filter_map(Result::err).map(|why| format!("later: {why}")));
        // One is the probe, one the commit of a transfer that had begun before.
        if hung > 0 && self.injector.hung() > hung + 2 {
            failed.push(format!("{} more calls were waited for", self.injector.hung() - hung));
        }
        if hung == 0 {
            failed.push("nothing hung".into());
        }
        self.injector.release();
        within("the disk to be back", async { while self.is_away().await {} }).await;
        for image in [&held, &new, &next] {
            self.keep(image).await;
            let before = self.plain.gets_of(&image.1.layers[0].digest);
            failed.extend(self.pull(image).await.err().map(|why| format!("afterwards: {why}")));
            if self.plain.gets_of(&image.1.layers[0].digest) != before && !self.is_away().await {
                failed.push("it is not served from the disk afterwards".into());
            }
        }
        let tally = Tally {
            fault: format!("hang of {step}"),
            times: hung.try_into().unwrap(),
            needless: failed.len().try_into().unwrap(),
            ..Tally::default()
        };
        tally.note();
        failed
    }

    /// Stops it, and looks at what it left.
    async fn ends_sound(self) {
        let (status, settings) = self.program.terminate().await;
        assert_eq!(status.code(), Some(0));
        settings.audit().assert_sound().assert_temporary(0);
        settings.verify().await.unwrap();
    }
}

#[tokio::test]
async fn a_disk_that_hangs_in_any_call_breaks_no_client() {
    let groups = STEPS.map(|steps| async move {
        let mut stage = Stage::new("\"1KiB\"").await;
        let mut wrong = Vec::new();
        for step in steps {
            // On the heap: pulls at once are large.
            let failed = Box::pin(stage.survives(step)).await;
            if !failed.is_empty() {
                wrong.push(format!("{step}: {failed:?}"));
            }
        }
        let log = stage.program.log();
        let count = |line: &str| log.lines().filter(|told| told.contains(line)).count();
        if count("the disk does not answer: ") != count("the disk answers again: ") {
            wrong.push("it is not told once when it begins and once when it ends".into());
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        stage.ends_sound().await;
    });
    join_all(groups).await;
}

#[tokio::test]
async fn a_disk_that_hangs_after_a_start_breaks_no_client() {
    let plain = Registry::plain().await;
    let held = plain.image(REPO, "held", Image::layers([MIB, 10_000]));
    let mut settings = Builder::in_memory().upstream("docker.io", &plain).set("cache", "disk_patience", PATIENCE);
    let injector = Injector::new(&settings.data());
    for step in COLD {
        let program = settings.spawn().await;
        assert_eq!(pull(&program.url(), REPO, "held").await.map(|pulled| pulled.digest), Ok(held.digest));
        settings = program.terminate().await.1;

        let program = settings.spawn_with(|command| injector.dress(command)).await;
        injector.arm(hanging(step));
        let pulled = within("a pull", Box::pin(pull(&program.url(), REPO, "held"))).await;
        assert_eq!(pulled.map(|pulled| pulled.digest), Ok(held.digest), "{step}");
        assert!(injector.hung() > 0, "{step} never came");
        injector.release();
        settings = program.terminate().await.1;
        settings.audit().assert_sound().assert_temporary(0);
    }
}

/// What a manifest's way to the disk ends with, and where.
const UNWRITTEN: [(&str, Verdict); 5] = [
    ("create tmp", Verdict::Fail(Errno::IO)),
    ("fdatasync tmp", Verdict::Fail(Errno::NOSPC)),
    ("rename tmp > _manifests", Verdict::Fail(Errno::IO)),
    ("create tmp", Verdict::Hang),
    ("rename tmp > _manifests", Verdict::Hang),
];

#[tokio::test]
async fn a_manifest_that_could_not_be_written_is_when_it_is_served_again() {
    let tried = UNWRITTEN.map(|(step, verdict)| async move {
        let mut stage = Stage::new("\"64MiB\"").await;
        let image = stage.push();
        stage.injector.arm(move |event| if hits(step, event) { verdict } else { Verdict::Pass });
        stage.pull(&image).await.unwrap();
        stage.program.settled().await;
        let seen = stage.injector.release();
        assert!(seen.iter().any(|(_, decided)| *decided == verdict), "{step} never came");
        within("the disk to be back", async { while stage.is_away().await {} }).await;
        stage.keep(&image).await;
        assert_eq!(stage.plain.gets_of(&image.1.digest), 1, "{step}: it was in memory");
        stage.ends_sound().await;
    });
    join_all(tried).await;
}

/// What a stop comes upon, when the disk has begun to hang.
#[derive(Clone, Copy, PartialEq)]
enum Stopped {
    /// Nobody has asked the disk since.
    Idle,
    /// Somebody is waiting for it.
    Waiting,
    /// It is known to be away.
    Away,
}

#[tokio::test]
async fn a_stop_ends_although_the_disk_hangs() {
    let stopped = [Stopped::Idle, Stopped::Waiting, Stopped::Away].map(|when| async move {
        let mut stage = Stage::new("\"1KiB\"").await;
        let (held, other) = (stage.push(), stage.push());
        stage.keep(&held).await;
        stage.injector.arm(hanging(EVERYTHING));
        if when == Stopped::Away {
            stage.pull(&other).await.unwrap();
            assert!(stage.is_away().await);
        }
        let url = stage.program.url();
        let waits = tokio::spawn(async move {
            // It may be cut off, or not.
            if when == Stopped::Waiting {
                let _ = pull(&url, &other.0, "latest").await;
            }
        });
        if when == Stopped::Waiting {
            within("a call that hangs", async {
                while stage.injector.hung() == 0 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
        let (status, settings) = stage.program.terminate().await;
        assert_eq!(status.code(), Some(0));
        within("the client's end", waits).await.unwrap();
        settings.audit().assert_sound();

        stage.program = settings.spawn().await;
        let asked = stage.plain.gets_of(&held.1.layers[0].digest);
        stage.pull(&held).await.unwrap();
        assert_eq!(stage.plain.gets_of(&held.1.layers[0].digest), asked, "it was held");
        stage.ends_sound().await;
    });
    join_all(stopped).await;
}

#[tokio::test]
async fn what_is_in_memory_is_served_without_the_disk_and_the_upstream() {
    let mut stage = Stage::new("\"64MiB\"").await;
    let small = (REPO.to_owned(), stage.plain.image(REPO, "latest", Image::layers([10_000, 20_000])));
    stage.keep(&small).await;
    stage.pull(&small).await.unwrap();
    stage.injector.arm(hanging(EVERYTHING));
    // Somebody finds out.
    let other = stage.push();
    stage.pull(&other).await.unwrap();
    assert!(stage.injector.hung() > 0 && stage.is_away().await);
    let asked = stage.plain.requests().len();
    stage.pull(&small).await.unwrap();
    assert_eq!(stage.plain.requests().len(), asked, "an upstream was asked for what is in memory");
    stage.injector.release();
    within("the disk to be back", async { while stage.is_away().await {} }).await;
    stage.ends_sound().await;
}

#[tokio::test]
async fn clients_by_the_hundred_on_a_disk_that_hangs_hold_no_more_threads_than_they_may() {
    const BLOBS: u64 = 300;
    let stage = Stage::new("\"1KiB\"").await;
    let blobs: Vec<Blob> = (0..BLOBS).map(|seed| Blob::seeded(seed, 100 * KIB)).collect();
    for blob in &blobs {
        stage.plain.blob(REPO, blob);
    }
    stage.injector.arm(hanging("open blobs"));
    let served = blobs.iter().map(|blob| async {
        let fetched = get(stage.program.blob(REPO, blob.digest)).fetch().await;
        assert!(fetched.status == 200 && fetched.is_whole() && fetched.digest == blob.digest, "{fetched:?}");
    });
    within("hundreds of blobs", join_all(served)).await;
    let (hung, threads) = (stage.injector.hung(), stage.program.vitals().threads);
    // Those that may look, and the probe.
    assert!((1..=129).contains(&hung), "{hung} calls hang");
    assert!(threads < 400, "{threads} threads");
    stage.injector.release();
    within("the disk to be back", async { while stage.is_away().await {} }).await;
    stage.ends_sound().await;
}
