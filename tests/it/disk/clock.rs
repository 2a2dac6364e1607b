//! The clock of the machine jumps under the running program, by a day or ten years, forth and back.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::REPO;
use crate::support::KIB;
use crate::support::client::{get, pull};
use crate::support::lack::lacking;
use crate::support::mirror::{Builder, Process};
use crate::support::registry::{Image, Kind, Pushed, Registry};
use crate::support::tally::Tally;

const DAY: i64 = 24 * 3600;
const YEARS: i64 = 3650 * DAY;

/// libfaketime, wherever this system has it.
fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
}

/// The program under a clock that the test sets.
struct World {
    hub: Registry,
    settings: Builder,
    library: PathBuf,
}

impl World {
    async fn start(&self) -> Process {
        let start = |command: &mut tokio::process::Command| {
            command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", self.settings.beside("clock"));
            // A real jump moves the time of day; the clock that only counts goes on.
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        };
        self.settings.clone().spawn_with(start).await
    }

    fn set_clock(&self, offset: i64) {
        let file = self.settings.beside("clock");
        fs::write(file.with_extension("new"), format!("{offset:+}\n")).unwrap();
        fs::rename(file.with_extension("new"), file).unwrap();
    }

    fn push(&self, tag: &str, seed: u64) -> Pushed {
        self.hub.image(REPO, tag, Image::layers([100 * KIB, 10 * KIB]).seed(seed))
    }

    /// The files of the folder are of now, whatever the clock was that they were written by.
    fn age_to_now(&self) {
        let data = self.settings.data();
        for dir in [data.clone(), data.join("index")] {
            for entry in fs::read_dir(dir).unwrap() {
                fs::File::open(entry.unwrap().path()).unwrap().set_modified(SystemTime::now()).unwrap();
            }
        }
    }

    /// When the program wrote that a tag was checked, before or after now, in seconds.
    fn checked(&self, tag: &str) -> i64 {
        let file = self.settings.data().join("repos/docker.io").join(REPO).join("_tags").join(tag);
        let record: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        record["checked"].as_i64().unwrap() - i64::try_from(now).unwrap()
    }
}

async fn assert_pulls(program: &Process, reference: impl ToString, image: &Pushed) {
    assert_eq!(pull(&program.url(), REPO, &reference.to_string()).await.map(|pulled| pulled.digest), Ok(image.digest));
}

#[tokio::test]
async fn a_start_years_ahead_without_the_upstream_serves_digests_and_says_why_not_tags() {
    let Some(library) = library() else { return lacking("a clock that jumps", "libfaketime is not installed") };
    let hub = Registry::hub().await;
    let settings = Builder::in_memory().upstream("docker.io", &hub).quiet();
    let world = World { hub, settings, library };
    world.set_clock(0);
    let program = world.start().await;
    let held = world.push("held", 1);
    assert_pulls(&program, "held", &held).await;
    assert_eq!(program.terminate().await.0.code(), Some(0));

    world.hub.down().await;
    for (clock, status, word) in
        [(YEARS, 503, Some("ahead of the last write")), (-YEARS, 200, Some("behind the last write")), (0, 200, None)]
    {
        world.set_clock(clock);
        let program = world.start().await;
        assert_pulls(&program, held.digest, &held).await;
        assert_eq!(get(program.manifest(REPO, "held")).send().await.status, status, "{clock}");
        let log = program.log();
        let told = log.lines().filter(|line| line.contains("the last write to the data folder")).collect::<Vec<_>>();
        assert_eq!(told.len(), usize::from(word.is_some()), "{log}");
        assert!(word.is_none_or(|word| told[0].contains(word)), "{told:?}");
        if clock == YEARS {
            // One answer of the upstream, and the tag is young.
            world.hub.up().await;
            assert_pulls(&program, "held", &held).await;
            world.hub.down().await;
            assert_pulls(&program, "held", &held).await;
        }
        assert_eq!(program.terminate().await.0.code(), Some(0));
        world.age_to_now();
    }
}

#[tokio::test]
async fn a_clock_that_jumps_expires_nothing_and_breaks_nothing() {
    let Some(library) = library() else { return lacking("a clock that jumps", "libfaketime is not installed") };
    let mut tally = Tally::of("clock jumps");
    for (n, jump) in (0..).zip([DAY, -DAY, YEARS, -YEARS]) {
        let hub = Registry::hub().await;
        let settings = Builder::in_memory().upstream("docker.io", &hub);
        let world = World { hub, settings, library: library.clone() };
        world.set_clock(0);
        let program = world.start().await;
        let held = world.push("held", 10 * n);
        assert_pulls(&program, "held", &held).await;

        // What is held is served, and the tag is still believed: nobody upstream is asked anything.
        world.set_clock(jump);
        world.hub.forget();
        assert_pulls(&program, "held", &held).await;
        assert_eq!(world.hub.requests().len(), 0, "{jump}: {}", world.hub.story());
        // What is not held is fetched, also when the token is refused that the mirror believes to be good.
        world.hub.revoke_tokens();
        let new = world.push("new", 10 * n + 1);
        assert_pulls(&program, "new", &new).await;
        assert!(world.hub.count(Kind::Token) >= 1, "{jump}: {}", world.hub.story());
        assert_eq!(program.terminate().await.0.code(), Some(0));
        assert!((world.checked("new") - jump).abs() < 600, "the program did not see the jump: {}", world.checked("new"));

        // A start in the time after the jump, and one in the time before it again, with nobody upstream.
        for clock in [jump, 0] {
            world.set_clock(clock);
            let program = world.start().await;
            assert_pulls(&program, "new", &new).await;
            world.hub.down().await;
            for image in [&held, &new] {
                assert_pulls(&program, image.digest, image).await;
            }
            assert_pulls(&program, "new", &new).await;
            world.hub.up().await;
            assert_eq!(program.terminate().await.0.code(), Some(0));
        }
        world.settings.audit().assert_sound().assert_temporary(0);
        world.settings.verify().await.unwrap();
        tally.again(Duration::ZERO);
    }
    tally.note();
}
