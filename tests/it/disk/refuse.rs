//! Every kind of call on the data folder refused, with every error that disks give, once or from some moment on: each client
//! gets what the upstream can serve, nothing wrong is left, and the next who comes finds a mirror that keeps again.

use std::collections::BTreeSet;
use std::time::Instant;

use futures_util::future::join_all;
use rustix::io::Errno;

use super::{REPO, file_of};
use crate::support::MIB;
use crate::support::client::pull;
use crate::support::inject::{Call, Event, Injector, Verdict};
use crate::support::mirror::{Builder, Process};
use crate::support::patience::within;
use crate::support::registry::{Image, Pushed, Registry};
use crate::support::tally::Tally;

/// What a disk says: broken, full, over quota, read-only, and a process without a descriptor left.
const ERRORS: [Errno; 5] = [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::MFILE];

/// Which calls are refused: their step in words, or everything that changes the disk.
const STEPS: [&str; 20] = [
    "create tmp",
    "allocate tmp",
    "write tmp",
    "fdatasync tmp",
    "rename tmp > blobs",
    "open blobs",
    "fsync blobs",
    "rename tmp > _manifests",
    "fsync _manifests",
    "rename tmp > _tags",
    "fsync _tags",
    "mkdir _manifests",
    "mkdir _tags",
    "write tmp and remove tmp",
    "remove blobs",
    "read tmp",
    "read blobs",
    "read tmp and read blobs",
    "fdatasync tmp and remove tmp and remove blobs",
    EVERYTHING,
];

const EVERYTHING: &str = "everything";

/// Faults that one data folder goes through. Each leaves the tags and links of three images, which count as 4 KiB each: after
/// some hundreds so small a folder would have room for nothing else.
const FAULTS_A_FOLDER: usize = 100;

/// A fault: from the `first` such call on, for `calls` of them.
#[derive(Clone, Copy, Debug)]
struct Fault {
    step: &'static str,
    error: Errno,
    first: usize,
    calls: usize,
}

impl Fault {
    fn hits(&self, event: &Event) -> bool {
        if self.step == EVERYTHING { event.changes() } else { self.step.split(" and ").any(|step| event.step() == step) }
    }

    fn judge(self) -> impl FnMut(&Event) -> Verdict {
        let mut come = 0;
        move |event| {
            come += usize::from(self.hits(event));
            let is_on = self.hits(event) && come >= self.first && come - self.first < self.calls;
            if is_on { Verdict::Fail(self.error) } else { Verdict::Pass }
        }
    }
}

/// Those of a short run, or with `MILLPOND_REFUSALS=all` all of them.
fn faults() -> Vec<Fault> {
    let all = std::env::var("MILLPOND_REFUSALS").is_ok_and(|text| text == "all");
    let mut faults = Vec::new();
    for (n, step) in STEPS.into_iter().enumerate() {
        for (m, error) in ERRORS.into_iter().enumerate() {
            // Each step with two errors, so that all of them come to their turn.
            if !all && m != n % ERRORS.len() && error != Errno::IO {
                continue;
            }
            faults.push(Fault { step, error, first: 1, calls: usize::MAX });
            if all {
                faults.extend((1..=4).map(|first| Fault { step, error, first, calls: 1 }));
                faults.extend((2..=4).map(|first| Fault { step, error, first, calls: usize::MAX }));
            } else if error == Errno::IO {
                faults.extend([Fault { step, error, first: 1, calls: 1 }, Fault { step, error, first: 2, calls: 1 }]);
            }
        }
    }
    faults
}

struct Stage {
    plain: Registry,
    injector: Injector,
    program: Process,
    seed: u64,
}

impl Stage {
    async fn new() -> Self {
        let plain = Registry::plain().await;
        // So little memory that manifests and small blobs come from the disk, and so little space that each pull evicts.
        let settings = Builder::in_memory().upstream("docker.io", &plain).set("cache", "memory", "\"1KiB\"").max_size("9MiB");
        let injector = Injector::new(&settings.data());
        let program = settings.spawn_with(|command| injector.dress(command)).await;
        Self { plain, injector, program, seed: 0 }
    }

    /// In a repository of its own, so that folders are made for it.
    fn push(&mut self) -> (String, Pushed) {
        self.seed += 1;
        let repository = format!("{REPO}-{}", self.seed);
        let image = self.plain.image(&repository, "latest", Image::layers([3 * MIB, 100_000, 10_000]).seed(self.seed));
        (repository, image)
    }

    async fn pull(&self, repository: &str, image: &Pushed) -> Result<(), String> {
        let pulled = pull(&self.program.url(), repository, "latest").await?;
        if pulled.digest == image.digest { Ok(()) } else { Err("another image".into()) }
    }

    /// What is held is pulled, and what is not, by three at once, while the fault lasts; then all is as it was.
    async fn survives(&mut self, fault: Fault) -> (u64, Vec<String>, std::time::Duration) {
        let (held, new) = (self.push(), self.push());
        self.pull(&held.0, &held.1).await.unwrap();
        self.kept(&held.1).await;
        self.injector.arm(fault.judge());
        let pulls = [&held, &new, &new, &new, &held].map(|(repository, image)| self.pull(repository, image));
        let mut failed: Vec<String> = join_all(pulls).await.into_iter().filter_map(Result::err).collect();
        self.program.settled().await;
        let seen = self.injector.disarm();
        let mended = Instant::now();
        for (repository, image) in [&new, &held] {
            failed.extend(self.pull(repository, image).await.err().map(|why| format!("afterwards: {why}")));
        }
        let recovery = mended.elapsed();
        // Without a hand it keeps again.
        let (repository, next) = self.push();
        failed.extend(self.pull(&repository, &next).await.err().map(|why| format!("the next: {why}")));
        self.kept(&next).await;
        // Tags are written behind the blobs.
        let is_empty = || self.program.settings().audit().temporary.is_empty();
        let emptied = async {
            while !is_empty() {
                self.program.settled().await;
            }
        };
        within("an empty tmp/", Box::pin(emptied)).await;
        self.program.settings().audit().assert_sound();
        assert_no_sync_is_repeated(&seen);
        let injected = seen.iter().filter(|(_, verdict)| *verdict != Verdict::Pass).count();
        (injected.try_into().unwrap(), failed, recovery)
    }

    /// Waits until all of an image is on the disk; manifests are written behind the answer.
    async fn kept(&self, image: &Pushed) {
        let data = self.program.settings().data();
        let is_kept = || image.blobs().map(|blob| &blob.digest).chain([&image.digest]).all(|digest| file_of(&data, digest).exists());
        let kept = async {
            while !is_kept() {
                self.program.settled().await;
            }
        };
        within("an image on the disk", Box::pin(kept)).await;
    }
}

/// After a sync that failed the kernel may call the pages clean: a second one of the same file says nothing.
fn assert_no_sync_is_repeated(seen: &[(Event, Verdict)]) {
    let mut failed = BTreeSet::new();
    for (event, verdict) in seen.iter().filter(|(event, _)| event.call == Call::SyncData) {
        assert!(!failed.contains(&event.path), "{event:?} again after it failed");
        if *verdict != Verdict::Pass {
            failed.insert(event.path.clone());
        }
    }
}

#[tokio::test]
async fn a_disk_that_refuses_any_call_breaks_no_client() {
    let mut stage = Stage::new().await;
    let mut wrong = Vec::new();
    for (n, fault) in faults().into_iter().enumerate() {
        if n % FAULTS_A_FOLDER == FAULTS_A_FOLDER - 1 {
            let (_, settings) = std::mem::replace(&mut stage, Stage::new().await).program.terminate().await;
            settings.audit().assert_sound().assert_temporary(0);
        }
        // On the heap: five pulls at once are large.
        let (injected, failed, recovery) = Box::pin(stage.survives(fault)).await;
        let bodies = failed.iter().filter(|why| why.contains("wrong bytes")).count();
        let needless = failed.len();
        Tally {
            fault: format!("{:?} of {}", fault.error, fault.step),
            times: injected,
            needless: needless.try_into().unwrap(),
            wrong: bodies.try_into().unwrap(),
            recovery,
        }
        .note();
        if !failed.is_empty() || (injected == 0 && fault.first == 1) {
            wrong.push(format!("{fault:?}, injected {injected}: {failed:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let (repository, image) = stage.push();
    let (status, settings) = stage.program.terminate().await;
    assert_eq!(status.code(), Some(0));
    settings.audit().assert_sound().assert_temporary(0);
    // The index may have been refused too, and is then what it was: the next start holds it against the files.
    let program = settings.spawn().await;
    // What is new waits for that.
    assert_eq!(pull(&program.url(), &repository, "latest").await.map(|pulled| pulled.digest), Ok(image.digest));
    let (status, settings) = program.terminate().await;
    assert_eq!(status.code(), Some(0));
    settings.verify().await.unwrap();
}

/// What a mirror reads when it has just started and remembers nothing.
const COLD: [&str; 6] = ["open _tags", "read _tags", "open _manifests", "read _manifests", "open blobs", "read blobs"];

#[tokio::test]
async fn a_disk_that_gives_nothing_back_after_a_start_breaks_no_client() {
    let plain = Registry::plain().await;
    let held = plain.image(REPO, "held", Image::layers([MIB, 10_000]));
    let mut settings = Builder::in_memory().upstream("docker.io", &plain);
    let injector = Injector::new(&settings.data());
    for step in COLD {
        for calls in [1, usize::MAX] {
            // Held in any case: what the last fault lost is fetched again.
            let program = settings.spawn().await;
            assert_eq!(pull(&program.url(), REPO, "held").await.map(|pulled| pulled.digest), Ok(held.digest));
            settings = program.terminate().await.1;

            let program = settings.spawn_with(|command| injector.dress(command)).await;
            injector.arm(Fault { step, error: Errno::IO, first: 1, calls }.judge());
            let pulled = pull(&program.url(), REPO, "held").await;
            let seen = injector.disarm();
            assert_eq!(pulled.map(|pulled| pulled.digest), Ok(held.digest), "{step}, {calls}");
            assert!(seen.iter().any(|(_, verdict)| *verdict != Verdict::Pass), "{step} never came");
            settings = program.terminate().await.1;
            settings.audit().assert_sound().assert_temporary(0);
        }
    }
}
