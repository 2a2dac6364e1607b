//! Killed before each single call that changes the disk: of the first start, of a start over what was left, of a pull that
//! evicts, of a bad file that is set aside, of an index that is rebuilt or set aside, and of the stop.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use super::REPO;
use super::rot::flip;
use crate::support::client::pull;
use crate::support::inject::{Event, Injector, Verdict};
use crate::support::mirror::Builder;
use crate::support::registry::{Image, Pushed, Registry};
use crate::support::tally::Tally;
use crate::support::{KIB, MIB};

/// What a life begins with. All of them then pull an image for which others must go, and stop.
const LIVES: [&str; 5] = ["first start", "start after a kill", "bad file", "no index", "index of noise"];

/// What must have been among the steps before which the program was killed.
const MUST: [&str; 19] = [
    "create tmp",
    "allocate tmp",
    "write tmp",
    "fdatasync tmp",
    "rename tmp > blobs",
    "fsync blobs",
    "rename tmp > _manifests",
    "fsync _manifests",
    "rename tmp > _tags",
    "fsync _tags",
    "rename tmp > VERSION",
    "rename tmp > CLEAN",
    "remove CLEAN",
    "remove blobs",
    "remove tmp",
    "rename blobs > quarantine",
    "rename index > index.bad",
    "write index",
    "mkdir repos",
];

/// A mirror of 3 MiB, and images of almost 2: each pull evicts.
struct World {
    plain: Registry,
    settings: Builder,
    round: u64,
}

/// How a life ended.
enum End {
    /// It was killed, and this long after its next start the image was pulled.
    Killed(Duration),
    /// Nobody was killed: these were its steps.
    Own(Vec<String>),
}

impl World {
    async fn new() -> Self {
        let plain = Registry::plain().await;
        let settings = Self::fresh(&plain);
        Self { plain, settings, round: 0 }
    }

    fn fresh(plain: &Registry) -> Builder {
        Builder::in_memory().upstream("docker.io", plain).max_size("3MiB")
    }

    fn push(&mut self, tag: &str) -> Pushed {
        self.round += 1;
        // Above what is kept in memory, below, and a manifest.
        self.plain.image(REPO, tag, Image::layers([2 * MIB - 300 * KIB, 10 * KIB]).seed(self.round))
    }

    /// Brings the folder to where the life begins: it is sound then, or as a kill, a bad disk or a person may leave it.
    async fn prepare(&mut self, life: &str) -> Option<Pushed> {
        self.settings = Self::fresh(&self.plain);
        if life == "first start" {
            return None;
        }
        let held = self.push("held");
        let program = self.settings.clone().spawn().await;
        pull(&program.url(), REPO, "held").await.unwrap();
        program.terminate().await;
        let data = self.settings.data();
        let layer = super::file_of(&data, &held.layers[0].digest);
        match life {
            "start after a kill" => fs::write(data.join("tmp/left.part"), "half").unwrap(),
            "bad file" => flip(&layer, 1000),
            "no index" => fs::remove_dir_all(data.join("index")).unwrap(),
            _ => ["conf", "db"].iter().for_each(|name| fs::write(data.join("index").join(name), [0xA5; 4096]).unwrap()),
        }
        Some(held)
    }

    /// One life: start, pulls, stop; killed before the `nth` time that it comes to `step`.
    async fn live(&mut self, life: &str, target: Option<(&str, usize)>) -> End {
        let held = self.prepare(life).await;
        let image = self.push("new");
        let injector = Injector::new(&self.settings.data());
        let (step, mut left) = target.map_or((String::new(), 0), |(step, nth)| (step.to_owned(), nth));
        injector.arm(move |event| {
            let hit = event.changes() && event.step() == step;
            left -= usize::from(hit);
            if hit && left == 0 { Verdict::Kill } else { Verdict::Pass }
        });
        let Ok(program) = self.settings.clone().try_spawn_with(|command| injector.dress(command)).await else {
            return End::Killed(self.recovers(&image, held.as_ref()).await);
        };
        if let Some(held) = &held {
            check(pull(&program.url(), REPO, "held").await, held);
        }
        check(pull(&program.url(), REPO, "new").await, &image);
        let (status, _) = program.terminate().await;
        let steps = injector.disarm().into_iter().filter(|(event, _)| event.changes()).map(|(event, _)| event.step()).collect();
        if status.signal() != Some(9) {
            assert_eq!(status.code(), Some(0));
            self.settings.verify().await.unwrap();
            return End::Own(steps);
        }
        End::Killed(self.recovers(&image, held.as_ref()).await)
    }

    /// What was left is sound, and the next start needs no hand. Says how long it takes to the first image that was pulled.
    async fn recovers(&mut self, image: &Pushed, held: Option<&Pushed>) -> Duration {
        let mut audit = self.settings.audit();
        // But for the file that a person made bad, and nobody has looked at yet.
        audit.wrong.retain(|wrong| held.is_none_or(|held| !wrong.contains(&held.layers[0].digest.hex())));
        audit.assert_sound();
        let began = Instant::now();
        let program = self.settings.clone().spawn().await;
        if let Some(held) = held {
            assert_eq!(pull(&program.url(), REPO, "held").await.map(|pulled| pulled.digest), Ok(held.digest));
        }
        assert_eq!(pull(&program.url(), REPO, "new").await.map(|pulled| pulled.digest), Ok(image.digest));
        let recovery = began.elapsed();
        // What is new waits until the index was held against the files.
        let next = self.push("next");
        assert_eq!(pull(&program.url(), REPO, "next").await.map(|pulled| pulled.digest), Ok(next.digest));
        assert_eq!(program.terminate().await.0.code(), Some(0));
        let audit = self.settings.audit();
        audit.assert_sound().assert_temporary(0);
        assert!(audit.bytes <= 3 * MIB, "{audit:?}");
        self.settings.verify().await.unwrap();
        recovery
    }
}

/// A pull may be cut off by the kill. It never has wrong bytes.
fn check(pulled: Result<crate::support::client::Pulled, String>, image: &Pushed) {
    match pulled {
        Ok(pulled) => assert_eq!(pulled.digest, image.digest),
        Err(why) => assert!(!why.contains("wrong bytes"), "{why}"),
    }
}

/// Once before each kind of step; with `MILLPOND_STEPS=all` before each single one.
#[tokio::test]
async fn a_kill_before_any_step_leaves_a_sound_folder_and_a_mirror_that_starts() {
    let all = std::env::var("MILLPOND_STEPS").is_ok_and(|text| text == "all");
    let (mut world, mut done, mut tally) = (World::new().await, BTreeSet::new(), Tally::of("kill before a step"));
    for life in LIVES {
        let End::Own(steps) = world.live(life, None).await else { panic!("nobody was to be killed") };
        let mut counts = BTreeMap::new();
        for step in steps {
            *counts.entry(step).or_insert(0_usize) += 1;
        }
        for (step, count) in counts {
            // Of the 512 folders of a first start the first and the last few are enough; and a step of an earlier life
            // that is the same in this one is not taken again.
            let times: Vec<usize> = match (all, count) {
                (true, 20..) if step.starts_with("mkdir") => vec![1, 2, 3, count - 1, count],
                (true, _) => (1..=count).collect(),
                (false, _) if done.contains(&step) => Vec::new(),
                (false, _) => vec![1],
            };
            for nth in times {
                // Steps that the clock sets off, as the index's own, need not come each time.
                if let End::Killed(recovery) = world.live(life, Some((&step, nth))).await {
                    tally.again(recovery);
                    done.insert(step.clone());
                }
            }
        }
    }
    tally.note();
    println!("{} kills before {} kinds of steps: {done:#?}", tally.times, done.len());
    let missing: Vec<_> = MUST.iter().filter(|step| !done.contains(**step)).collect();
    assert!(missing.is_empty(), "no kill before {missing:?}; before {done:#?}");
}
