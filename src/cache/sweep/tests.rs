//! What is swept out, and above all what is not.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::cache::flight::Role;
use crate::cache::folder::Durability;
use crate::cache::repos::TagRecord;
use crate::cache::tests::keep;
use crate::cache::{Config, MaxSize};
use crate::observe::Metrics;
use crate::oci::{MediaType, Name, Registry, Tag};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a tag can be of use in these tests.
const TAG_LIFE: Duration = Duration::from_secs(10 * 24 * 60 * 60);

fn open_with(dir: &Path, stop: CancellationToken, tasks: &TaskTracker) -> Cache {
    let config = Config {
        dir: dir.to_owned(),
        max_size: MaxSize::Bytes(1 << 30),
        memory: 0,
        patrol: 0,
        disk_patience: Duration::from_secs(10),
        tag_life: TAG_LIFE,
    };
    Cache::open(&config, Metrics::new(), tasks.clone(), stop).expect("opens")
}

/// A cache in which nothing happens by itself.
async fn open(dir: &Path) -> Cache {
    let stop = CancellationToken::new();
    stop.cancel();
    let tasks = TaskTracker::new();
    let cache = open_with(dir, stop, &tasks);
    tasks.close();
    tasks.wait().await;
    cache.0.space.set_counted();
    cache
}

fn repository(name: &str) -> Repository {
    Repository { registry: Registry::docker_hub(), name: Name::parse(name).expect("valid") }
}

fn tag(name: &str) -> Tag {
    Tag::parse(name).expect("valid")
}

/// A tag that was confirmed so long ago.
fn set_tag(cache: &Cache, repository: &Repository, name: &str, digest: Digest, checked: SystemTime) {
    cache.0.repos.set_tag(repository, &tag(name), &TagRecord { digest, checked }, Durability::Renamed).expect("writes");
}

fn link(cache: &Cache, repository: &Repository, manifest: &Digest) {
    cache.0.repos.set_manifest(repository, manifest, &MediaType::parse("application/x").expect("valid")).expect("writes");
}

/// Every file under `repos/` was written two days ago.
fn age(dir: &Path) {
    for entry in fs::read_dir(dir).expect("reads").map(|entry| entry.expect("reads").path()) {
        if entry.is_dir() {
            age(&entry);
        } else {
            fs::File::open(&entry).expect("opens").set_modified(SystemTime::now() - 2 * DAY).expect("sets");
        }
    }
}

/// Sweeps everything once, and counts it again.
fn sweep(cache: &Cache) -> Vec<Record> {
    let repos = &cache.0.repos;
    let mut gone = Vec::new();
    for repository in repos.census(&CancellationToken::new()).expect("counts") {
        for record in repos.records(&repository).expect("lists") {
            if cache.sweep(&repository, &record) {
                gone.push(record);
            }
        }
        repos.remove_empty_dirs(&repository);
    }
    let counted = cache.0.space.beside().bytes();
    repos.census(&CancellationToken::new()).expect("counts");
    assert_eq!(cache.0.space.beside().bytes(), counted, "it was counted along");
    gone
}

#[tokio::test]
async fn only_what_is_old_and_leads_to_nothing_goes() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = open(dir.path()).await;
    let (held, lost, arriving) = (keep(&cache, 1, 100_000).await, Digest::sha256_of(b"lost"), Digest::sha256_of(b"arriving"));
    let Role::Writer(_permit) = cache.0.flights.join(&arriving, 0) else { panic!("nobody has it") };
    let (outer, inner) = (repository("a"), repository("a/b"));
    let now = SystemTime::now();
    for (name, digest, checked) in [
        ("held-ancient", held, now - 1000 * DAY),
        ("lost-ancient", lost, now - 11 * DAY),
        ("arriving-ancient", arriving, now - 11 * DAY),
        ("lost-could-be-served", lost, now - 9 * DAY),
        ("lost-of-tomorrow", lost, now + DAY),
    ] {
        set_tag(&cache, &outer, name, digest, checked);
    }
    fs::write(dir.path().join("repos/docker.io/a/_tags/garbled"), "?").expect("writes");
    for digest in [held, lost, arriving] {
        link(&cache, &outer, &digest);
        cache.0.repos.set_blob(&inner, &digest).expect("writes");
    }
    cache.0.repos.set_visibility(&outer, Visibility::Public).expect("writes");
    let private = repository("private");
    cache.0.repos.set_visibility(&private, Visibility::Private).expect("writes");
    assert!(cache.withhold(&lost, Some(&outer.registry)).await);
    age(&dir.path().join("repos"));
    let young = Digest::sha256_of(b"young");
    link(&cache, &outer, &young);
    fs::write(dir.path().join("repos/docker.io/a/_tags/garbled-young"), "?").expect("writes");

    let mut gone = sweep(&cache).into_iter().map(|record| format!("{record:?}")).collect::<Vec<_>>();
    gone.sort();
    let mut expected = [Record::Tag(tag("garbled")), Record::Tag(tag("lost-ancient")), Record::Manifest(lost), Record::Blob(lost)]
        .map(|record| format!("{record:?}"));
    expected.sort();
    assert_eq!(gone, expected);
    let mut manifests = cache.0.repos.manifests(&outer).expect("lists");
    manifests.sort();
    let mut stay = vec![held, arriving, young];
    stay.sort();
    assert_eq!(manifests, stay);
    assert_eq!(cache.0.repos.visibility(&outer).expect("looks"), Some(Visibility::Public));
    assert_eq!(cache.0.repos.visibility(&private).expect("looks"), Some(Visibility::Private));
    assert!(cache.withheld(&lost).await.is_some());
    assert!(sweep(&cache).is_empty(), "once is enough");
}

#[tokio::test(start_paused = true)]
async fn only_the_mark_of_what_is_gone_goes_and_whoever_brings_it_back_marks_it_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = open(dir.path()).await;
    let (held, small) = (keep(&cache, 1, 100_000).await, keep(&cache, 2, 100).await);
    let [lost, arriving] = [&b"lost"[..], b"arriving"].map(Digest::sha256_of);
    let Role::Writer(_permit) = cache.0.flights.join(&arriving, 0) else { panic!("nobody has it") };
    let owner = Registry::docker_hub();
    let marks = [held, small, arriving, lost];
    for digest in &marks {
        assert!(cache.withhold(digest, Some(&owner)).await);
    }
    let swept = |cache: &Cache| marks.into_iter().filter(|digest| cache.sweep_mark(digest)).collect::<Vec<_>>();
    assert_eq!(swept(&cache), [], "they are young");
    age(&dir.path().join("repos"));
    assert_eq!(swept(&cache), [], "somebody relied on them a moment ago, whatever the time of day says");
    tokio::time::advance(Duration::from_secs(60 * 60)).await;
    assert!(cache.withhold(&lost, Some(&owner)).await, "it is on its way, and its mark is an old one");
    assert_eq!(swept(&cache), []);
    tokio::time::advance(Duration::from_secs(60 * 60)).await;
    assert_eq!(swept(&cache), [lost]);
    assert_eq!(swept(&cache), [], "once");
    for digest in [held, small, arriving] {
        assert!(cache.withheld(&digest).await.is_some(), "what is here, or on its way, stays withheld");
    }
    assert!(cache.withheld(&lost).await.is_none());
    assert!(cache.withhold(&lost, Some(&owner)).await);
    assert_eq!(cache.withheld(&lost).await.map(|owners| owners.len()), Some(1));
    // Where it cannot be said whether it is gone it stays.
    tokio::time::advance(Duration::from_secs(60 * 60)).await;
    age(&dir.path().join("repos"));
    fs::remove_dir_all(cache.0.blobs.path(&lost).parent().expect("a shard")).expect("removes");
    assert_eq!(swept(&cache), []);
}

#[tokio::test]
async fn a_repository_of_which_nothing_is_left_leaves_no_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = open(dir.path()).await;
    let (lost, held) = (Digest::sha256_of(b"lost"), keep(&cache, 1, 100_000).await);
    let (gone, stays) = (repository("team/gone"), repository("team/gone/inner"));
    set_tag(&cache, &gone, "x", lost, SystemTime::now() - 11 * DAY);
    link(&cache, &gone, &lost);
    cache.0.repos.set_blob(&gone, &lost).expect("writes");
    cache.0.repos.set_visibility(&gone, Visibility::Public).expect("writes");
    link(&cache, &stays, &held);
    age(&dir.path().join("repos"));
    assert_eq!(sweep(&cache).len(), 4);
    assert_eq!(cache.0.repos.manifests(&stays).expect("lists"), [held]);
    fs::remove_file(cache.0.blobs.path(&held)).expect("removes");
    cache.forget(&held);
    assert_eq!(sweep(&cache), [Record::Manifest(held)]);
    assert_eq!(fs::read_dir(dir.path().join("repos")).expect("reads").count(), 0);
    // And it can come again.
    set_tag(&cache, &gone, "x", lost, SystemTime::now());
    assert_eq!(cache.0.repos.list_tags(&gone).expect("lists"), [tag("x")]);
}

#[tokio::test]
async fn memory_forgets_what_was_swept_so_that_it_is_written_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = open(dir.path()).await;
    let (owner, lost) = (repository("a"), Digest::sha256_of(b"lost"));
    cache.link_blob(&owner, &lost, false).await;
    set_tag(&cache, &owner, "x", lost, SystemTime::now() - 11 * DAY);
    assert!(cache.tag(&owner, &tag("x")).await.is_some() && cache.shows(&owner, &lost).await);
    age(&dir.path().join("repos"));
    assert_eq!(sweep(&cache).len(), 2);
    assert!(cache.tag(&owner, &tag("x")).await.is_none() && !cache.shows(&owner, &lost).await);
    cache.link_blob(&owner, &lost, false).await;
    assert_eq!(cache.0.repos.blobs(&owner).expect("lists"), [lost]);
}

#[tokio::test]
async fn what_comes_back_between_the_look_and_the_removal_stays() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = open(dir.path()).await;
    let owner = repository("a");
    let media_type = MediaType::parse("application/x").expect("valid");
    for record in ["x", "y"].map(|name| Record::Tag(tag(name))) {
        let bytes = bytes::Bytes::from(format!("a manifest for {record:?}"));
        let digest = Digest::sha256_of(&bytes);
        let Record::Tag(name) = &record else { unreachable!() };
        set_tag(&cache, &owner, name.as_str(), digest, SystemTime::now() - 11 * DAY);
        link(&cache, &owner, &digest);
        age(&dir.path().join("repos"));
        let kept = cache.admit(bytes.len() as u64).await;
        for record in [record.clone(), Record::Manifest(digest)] {
            assert!(cache.leads_nowhere(&owner, &record), "{record:?}");
        }
        // Its manifest and its tag come just after the first look.
        let (looks, kept) = (Cell::new(0), Cell::new(Some(kept)));
        let look = |record: &Record| {
            let found = cache.leads_nowhere(&owner, record);
            looks.set(looks.get() + 1);
            if let Some(kept) = kept.take() {
                cache.store_manifest(kept, &owner, &digest, &media_type, &bytes).expect("stores");
                set_tag(&cache, &owner, name.as_str(), digest, SystemTime::now());
            } else {
                assert!(cache.0.repos.is_still(), "nobody can write from the second look to the removal");
            }
            found
        };
        let record = if name.as_str() == "x" { record.clone() } else { Record::Manifest(digest) };
        assert!(!cache.sweep_if(&owner, &record, || look(&record)));
        assert_eq!(looks.get(), 2);
        assert_eq!(cache.0.repos.manifest(&owner, &digest).expect("reads"), Some(media_type.clone()));
        assert_eq!(cache.0.repos.tag(&owner, name).expect("reads").map(|record| record.digest), Some(digest));
    }
}

#[tokio::test(start_paused = true)]
async fn what_lies_beside_the_blobs_is_counted_at_the_start_and_along() {
    let dir = tempfile::tempdir().expect("a folder");
    let told = |cache: &Cache| {
        let text = cache.0.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix("millpond_cache_beside_bytes ")).expect("it is told");
        line.parse::<u64>().expect("a number")
    };
    let bad = {
        let cache = open(dir.path()).await;
        let lost = Digest::sha256_of(b"lost");
        for name in ["x", "y", "x"] {
            set_tag(&cache, &repository("a"), name, lost, SystemTime::now());
        }
        link(&cache, &repository("b"), &lost);
        assert_eq!(told(&cache), 3 * 4096);
        cache.drop_tag(&repository("a"), &tag("y")).await;
        cache.drop_tag(&repository("a"), &tag("y")).await;
        assert_eq!(told(&cache), 2 * 4096);
        let bad = keep(&cache, 1, 10_000).await;
        cache.set_aside(&cache.0.blobs.open(&bad).expect("opens").expect("is there"));
        assert_eq!(told(&cache), 2 * 4096 + 10_000);
        bad
    };
    let cache = open_with(dir.path(), CancellationToken::new(), &TaskTracker::new());
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(told(&cache), 2 * 4096 + 10_000);
    assert!(!cache.0.blobs.path(&bad).exists());
}
